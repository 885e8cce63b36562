"""What a search space asks of a model and a profile that they do not have, in words. Decides nothing of a search."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from autocompress.errors import SpaceError
from autocompress.hardware import HardwareProfile
from autocompress.layers import GroupKind, Layer, LayerTable
from autocompress.plan import Cofi, Precision
from autocompress.rules import LayerRule, SpaceRules

#: Kind of group that is counted in structures, to its name in sentences.
COUNTED: dict[GroupKind, str] = {
    "heads": "heads", "neurons": "neurons", "channels": "channels", "hidden": "hidden dimensions",
}  # fmt: skip

#: Key of a space to the kind of group that it lets go as a whole.
REMOVED: dict[str, GroupKind] = {
    "groups.remove_attention": "attention", "groups.remove_feed_forward": "feed_forward", "blocks.remove": "block",
}  # fmt: skip


@dataclass(frozen=True)
class _Asked:
    """One key of a space that asks for more than the dense model.

    Attributes:
        key, levels: as the file has them.
        missing: what the model lacks for it, or "".
        idle: why several levels make no difference, where nothing is missing.
    """

    key: str
    levels: Sequence[Any]
    missing: str
    idle: str = "makes no difference"

    def __str__(self) -> str:
        """Key, value, and why it is no choice."""
        shown = "true" if self.levels == (False, True) else list(self.levels)
        one = "one level is a decision and no choice; give several" if len(self.levels) == 1 else ""
        return f"{self.key} {shown}: {self.missing or one or self.idle}"


def check_fits(rules: SpaceRules, table: LayerTable) -> None:
    """Refuse patterns and recipes that are not for this model, all at once.

    Raises:
        SpaceError: a pattern matches no layer, or none of its rule's kind; a recipe finds nothing to learn.
    """
    faults = [*_pattern_faults(rules, table), *_recipe_faults(rules, table)]
    if faults:
        raise SpaceError("\n  ".join([f"{rules.source}:", *faults] if faults[1:] else [f"{rules.source}: {faults[0]}"]))


def _pattern_faults(rules: SpaceRules, table: LayerTable) -> Iterator[str]:
    for number, rule in enumerate(rules.layers):
        try:
            matched = table.match(rule.match)
        except SpaceError as fault:
            yield f"layers.{number}.match: {fault}"
            continue
        if rule.match != "*" and rule.kind and all(layer.kind != rule.kind for layer in matched):
            yield f"layers.{number}: {rule.match!r} matches only {_kinds(matched)} layers, but kind is {rule.kind!r}"


def _recipe_faults(rules: SpaceRules, table: LayerTable) -> Iterator[str]:
    gated = any(group.kind in ("heads", "neurons") for group in table.groups) and table.blocks
    if not gated and any(isinstance(recipe, Cofi) for recipe in rules.recipes):
        yield f"learn: recipe cofi needs heads or neurons in blocks, and no adapter knows any here; {_inventory(table)}"


def nothing_to_choose(
    rules: SpaceRules, table: LayerTable, profile: HardwareProfile, dropped: Collection[Precision], default: str
) -> SpaceError:
    """The error of a space that holds but one candidate here: each thing it asks for, and why that is no choice.

    `dropped` are the precisions that the probe found to be slow, `default` names the shipped space for the model.
    """
    asked = [*_structure(rules, table, profile), *_layers(rules, table, profile, dropped)]
    for key, levels in (("sparsity", rules.sparsity), ("learn", rules.learn)):
        if levels != SpaceRules.model_fields[key].default:
            asked.append(_Asked(key, levels, ""))
    lines = [f"{rules.source}: leaves nothing to choose for this model on profile {profile.name!r}"]
    lines += [str(item) for item in asked] or ["it asks for nothing; give levels to groups, blocks or layers"]
    remedy = "" if default == rules.name else f"; the space for it is {default!r}"
    return SpaceError("\n  ".join([*lines, _inventory(table) + remedy]))


def _structure(rules: SpaceRules, table: LayerTable, profile: HardwareProfile) -> Iterator[_Asked]:
    counts = Counter(group.kind for group in table.groups)
    for kind, words in COUNTED.items():
        step = getattr(profile.rounding, kind)
        missing = "" if counts[kind] else f"no adapter knows {words} of this model"
        idle = f"rounded to multiples of {step} (rounding.{kind} of the profile), all of them stay"
        if rules.groups.shares(kind) != (1.0,):
            yield _Asked(f"groups.{kind}", rules.groups.shares(kind), missing, idle)
    flags = (rules.groups.remove_attention, rules.groups.remove_feed_forward, rules.blocks.remove)
    for (key, kind), flag in zip(REMOVED.items(), flags, strict=True):
        missing = "" if counts[kind] else "no adapter knows such parts of this model"
        idle = f"keep_at_least {rules.blocks.keep_at_least:g} keeps all {counts[kind]} of them"
        if flag:
            yield _Asked(key, (False, True), missing, idle)


def _layers(
    rules: SpaceRules, table: LayerTable, profile: HardwareProfile, dropped: Collection[Precision]
) -> Iterator[_Asked]:
    rounded = f"in multiples of {profile.rounding.rank} (rounding.rank of the profile) none is smaller"
    for number, rule in enumerate(rules.layers):
        layers = [layer for layer in table.match(rule.match) if rule.kind in (None, layer.kind)]
        for key, technique, idle in (
            ("precision", "quantize", _kernels(layers, profile, dropped)),
            ("rank", "factorize", rounded),
            ("sparsity", "mask", f"pattern {rule.pattern} fits none of the layers"),
        ):
            levels = getattr(rule, key)
            if levels != LayerRule.model_fields[key].default:
                yield _Asked(f"layers.{number}.{key}", levels, _not_allowed(layers, rule, technique), idle)


def _kernels(layers: Collection[Layer], profile: HardwareProfile, dropped: Collection[Precision]) -> str:
    kinds = sorted({layer.kind for layer in layers})
    there = "; ".join(f"{kind} {', '.join(profile.precisions.get(kind, ('fp32',)))}" for kind in kinds)
    slow = f"; the probe dropped {', '.join(sorted(dropped))}, which save no time here" if dropped else ""
    return f"the profile has kernels for {there}{slow}"


def _not_allowed(layers: Sequence[Layer], rule: LayerRule, technique: str) -> str:
    """Why no layer of a rule takes a technique, or ""."""
    if not layers:
        return f"the model has no {rule.kind} layers"
    barred = [layer for layer in layers if not layer.allows(technique)]
    return f"layer {barred[0].name}: {barred[0].why_not[technique]}" if len(barred) == len(layers) else ""


def _inventory(table: LayerTable) -> str:
    groups = sorted({group.kind for group in table.groups})
    inside = f" ({', '.join(groups)})" if groups else ""
    return f"the model has {len(table.layers)} layers ({_kinds(table.layers)}) and {len(table.groups)} groups{inside}"


def _kinds(layers: Collection[Layer]) -> str:
    return ", ".join(sorted({layer.kind for layer in layers}))
