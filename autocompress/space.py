"""Search spaces: rules + a model's layers + a profile → variables, and values → Plan. Knows nothing of Optuna."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from autocompress.errors import SpaceError
from autocompress.hardware import HardwareProfile
from autocompress.layers import Layer, LayerTable
from autocompress.plan import (
    PRECISIONS,
    Distill,
    Factorize,
    LayerPlan,
    Plan,
    Precision,
    Prune,
    Quantize,
    effective_layers,
    legal_precisions,
)
from autocompress.rules import Bounds, DistillRule, LayerRule, SpaceRules

#: Variable name to the index of its level, or to a real number.
Values = dict[str, int | float]


@dataclass(frozen=True)
class Variable:
    """One choice of the search.

    Attributes:
        name: ``keep:GROUP``, ``remove:BLOCK``, ``precision:SCOPE``, ``rank:SCOPE``, or a distillation setting.
        levels: ordered options; its value is an index. Empty for an interval.
        low, high, log: the interval, where there are no levels.
    """

    name: str
    levels: tuple[float | str, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False


@dataclass(frozen=True)
class LayerChoice:
    """What one layer may take.

    Attributes:
        scope: layers of one scope share their choices.
        precisions: of its rule that exist for it, have a kernel, and were not dropped; "fp32" where none is left.
    """

    scope: str
    precisions: tuple[Precision, ...]


@dataclass(frozen=True)
class SearchSpace:
    """Variables of one model on one profile, and what their values mean.

    Attributes:
        rules, table, profile: what it was built from.
        variables: what is searched: more than one level, or an interval.
        fixed: what the rules leave one level of, by the name its variable would have.
        choices: layer name to what it may take.
    """

    rules: SpaceRules
    table: LayerTable
    profile: HardwareProfile
    variables: tuple[Variable, ...]
    fixed: Mapping[str, float | str]
    choices: Mapping[str, LayerChoice]

    @cached_property
    def by_name(self) -> dict[str, Variable]:
        """Variables by name."""
        return {variable.name: variable for variable in self.variables}

    def decode(self, values: Mapping[str, int | float], seed: int = 0) -> Plan:
        """The plan that the values mean; what has no effect is left out, so that equal candidates are equal plans.

        A removed block takes its other choices with it; full shares, full ranks, ranks at or above break-even and
        fp32 say nothing; no steps, no distillation settings and no seed. A layer whose scope chose a precision that
        the layer lacks takes the lightest it has that is not lighter. When more blocks would go than `keep_at_least`
        allows, the first ones stay.
        """
        groups, gone = self._decode_groups(values)
        bits = self._decode_precisions(values, gone)
        layers = self._decode_ranks(values, Plan(groups, bits), gone)
        distill = self._decode_distill(values)
        return Plan(groups, layers, distill, seed if distill else 0)

    def _level(self, values: Mapping[str, int | float], name: str, default: float | str) -> float | str:
        if name in self.fixed:
            return self.fixed[name]
        variable = self.by_name.get(name)
        return variable.levels[int(values[name])] if variable and name in values else default

    def _decode_groups(self, values: Mapping[str, int | float]) -> tuple[dict[str, Prune], set[str]]:
        asked = [b for b in self.table.blocks if self._level(values, f"remove:{b}", 0) == 1]
        allowed = len(self.table.blocks) - math.ceil(len(self.table.blocks) * self.rules.blocks.keep_at_least - 1e-9)
        gone = set(asked[len(asked) - allowed :] if len(asked) > allowed else asked)
        groups = {block: Prune(0) for block in gone}
        for group in self.table.groups:
            if group.kind == "block" or group.block in gone:
                continue
            share = float(self._level(values, f"keep:{group.name}", 1.0))
            step = self.profile.rounding.heads if group.kind == "heads" else self.profile.rounding.neurons
            keep = min(group.size, _round_to(group.size * share, step))
            if keep < group.size:
                groups[group.name] = Prune(keep)
        return groups, gone

    def _decode_precisions(self, values: Mapping[str, int | float], gone: set[str]) -> dict[str, LayerPlan]:
        layers = {}
        for layer in self.table.layers:
            choice = self.choices.get(layer.name)
            if choice is None or layer.block in gone:
                continue
            wanted = self._level(values, f"precision:{choice.scope}", "fp32")
            precision = choice.precisions[_lightest_up_to(choice.precisions, wanted)]
            if precision != "fp32":
                layers[layer.name] = LayerPlan(quantize=Quantize(precision))
        return layers

    def _decode_ranks(self, values: Mapping[str, int | float], plan: Plan, gone: set[str]) -> dict[str, LayerPlan]:
        layers = dict(plan.layers)
        for effective in effective_layers(plan, self.table):
            layer, choice = effective.layer, self.choices.get(effective.layer.name)
            if choice is None or layer.block in gone or not layer.allows("factorize"):
                continue
            share = float(self._level(values, f"rank:{choice.scope}", 1.0))
            out, into = effective.shape
            rank = min(_round_to(min(out, into) * share, self.profile.rounding.rank), min(out, into))
            if share < 1.0 and rank * (out + into) < out * into:
                layers[layer.name] = LayerPlan(Factorize(rank), layers.get(layer.name, LayerPlan()).quantize)
        return layers

    def _decode_distill(self, values: Mapping[str, int | float]) -> Distill | None:
        steps = int(self._level(values, "steps", 0.0))
        if not steps:
            return None
        default = self.rules.distill.default
        chosen = {name: float(self.fixed.get(name, values.get(name, getattr(default, name)))) for name in _DISTILL}
        if chosen["soft_weight"] == 0:
            chosen["temperature"] = default.temperature
        return Distill(**chosen, steps=steps)

    def uniform(
        self,
        keep: float = 1.0,
        precision: Precision = "fp32",
        rank: float = 1.0,
        removed: tuple[str, ...] = (),
        recover: bool = False,
    ) -> Values:
        """Values that treat all groups and layers alike, at the nearest levels that each has.

        With `recover`, the most steps and the space's default settings.
        """
        values: Values = {}
        for variable in self.variables:
            kind, _, scope = variable.name.partition(":")
            if kind == "keep":
                values[variable.name] = _nearest(variable.levels, keep)
            elif kind == "rank":
                values[variable.name] = _nearest(variable.levels, rank)
            elif kind == "remove":
                values[variable.name] = int(scope in removed)
            elif kind == "precision":
                values[variable.name] = _lightest_up_to(variable.levels, precision)
            elif kind == "steps":
                values[variable.name] = len(variable.levels) - 1 if recover else 0
            else:
                default = float(getattr(self.rules.distill.default, kind))
                values[variable.name] = min(max(default, variable.low), variable.high)
        return values


_DISTILL = ("soft_weight", "temperature", "learning_rate")


def _round_to(value: float, step: int) -> int:
    """The value rounded to the nearest multiple of `step`, at least one step."""
    return max(1, round(value / step)) * step


def _nearest(levels: tuple[float | str, ...], wanted: float) -> int:
    return min(range(len(levels)), key=lambda i: abs(float(levels[i]) - wanted))


def _lightest_up_to(levels: Sequence[float | str], wanted: float | str) -> int:
    """Index of the wanted precision among heavy-to-light levels; without it, of the lightest that is not lighter."""
    if wanted in levels:
        return list(levels).index(wanted)
    limit = PRECISIONS.index(wanted)
    if wanted in ("int8", "int8-dynamic") and "int8-weights" in levels:
        limit = PRECISIONS.index("int8-weights")  # embeddings hold weights only
    legal = [i for i, level in enumerate(levels) if PRECISIONS.index(level) <= limit]
    return max(legal, default=0)


def build_space(
    rules: SpaceRules,
    table: LayerTable,
    profile: HardwareProfile,
    dropped: frozenset[Precision] = frozenset(),
    learning_rate: float | None = None,
) -> SearchSpace:
    """The variables that a space has for one model on one profile.

    Args:
        rules: from `load_space`.
        table: from `survey`.
        profile: says which precisions have a kernel.
        dropped: precisions that the probe found slower than the next heavier one.
        learning_rate: default of the recoveries, in place of the space's own.

    Raises:
        SpaceError: a pattern matches no layer, or nothing is left to choose; says why.
    """
    if learning_rate is not None:
        default = rules.distill.default.model_copy(update={"learning_rate": learning_rate})
        rules = rules.model_copy(update={"distill": rules.distill.model_copy(update={"default": default})})
    choices: dict[str, LayerChoice] = {}
    levels = _group_levels(rules, table)
    for layer, number, rule in _ruled_layers(rules, table):
        available = profile.precisions.get(layer.kind, ("fp32",))
        legal = [p for p in legal_precisions(layer) if p == "fp32" or (p in available and p not in dropped)]
        scope = _scope(rule, number, layer)
        offered = tuple(p for p in rule.precision if p in legal) or ("fp32",)
        choices[layer.name] = LayerChoice(scope, offered)
        before = levels.get(f"precision:{scope}", ())
        levels[f"precision:{scope}"] = tuple(
            p for p in PRECISIONS if p in before or (p in offered and p in rule.precision)
        )
        if layer.allows("factorize"):
            levels[f"rank:{scope}"] = rule.rank
    searched = [Variable(name, options) for name, options in levels.items() if len(options) > 1]
    recovery, held = _distill_variables(rules.distill)
    if not searched and not recovery:
        raise SpaceError(
            f"space {rules.name!r} leaves nothing to choose for this model on profile {profile.name!r}: "
            f"{len(table.layers)} layers ({', '.join(sorted({la.kind for la in table.layers}))}), "
            f"{len(table.groups)} groups; precisions with a kernel: "
            + "; ".join(f"{kind} {', '.join(offers)}" for kind, offers in profile.precisions.items())
        )
    fixed: dict[str, float | str] = {name: options[0] for name, options in levels.items() if len(options) == 1}
    return SearchSpace(rules, table, profile, (*searched, *recovery), {**fixed, **held}, choices)


def _group_levels(rules: SpaceRules, table: LayerTable) -> dict[str, tuple[float | str, ...]]:
    levels: dict[str, tuple[float | str, ...]] = {}
    for group in table.groups:
        if group.kind != "block":
            levels[f"keep:{group.name}"] = rules.groups.heads if group.kind == "heads" else rules.groups.neurons
        elif rules.blocks.remove:
            levels[f"remove:{group.name}"] = (0, 1)
    return levels


def _ruled_layers(rules: SpaceRules, table: LayerTable) -> Iterator[tuple[Layer, int, LayerRule]]:
    """Each layer that a rule fits, with the number of its last rule."""
    last: dict[str, int] = {}
    for number, rule in enumerate(rules.layers):
        matched = table.match(rule.match)
        fitting = [layer for layer in matched if rule.kind in (None, layer.kind)]
        if not fitting and rule.match != "*":
            kinds = ", ".join(sorted({layer.kind for layer in matched}))
            raise SpaceError(f"space {rules.name!r}: layers.{number}: {rule.match!r} matches only {kinds} layers")
        last.update({layer.name: number for layer in fitting})
    for layer in table.layers:
        if layer.name in last:
            yield layer, last[layer.name], rules.layers[last[layer.name]]


def _scope(rule: LayerRule, number: int, layer: Layer) -> str:
    """Rules have scopes of their own, so that a later rule takes its layers out of an earlier one's."""
    if rule.share == "all":
        return f"rule {number}"
    if rule.share == "block" and layer.block:
        return f"{layer.block} (rule {number})"
    return layer.name


def _distill_variables(rule: DistillRule) -> tuple[list[Variable], dict[str, float]]:
    """What is searched of the recovery, and what is held."""
    if rule.steps == (0,):
        return [], {"steps": 0.0}
    variables: list[Variable] = []
    held: dict[str, float] = {}
    if len(rule.steps) > 1:
        variables.append(Variable("steps", tuple(float(s) for s in rule.steps)))
    else:
        held["steps"] = float(rule.steps[0])
    for name in _DISTILL:
        bounds: Bounds = getattr(rule, name)
        if bounds.low < bounds.high:
            variables.append(Variable(name, low=bounds.low, high=bounds.high, log=bounds.log))
        else:
            held[name] = bounds.low
    return variables, held


def default_space(table: LayerTable) -> str:
    """Name of the shipped space for a model: with structure where an adapter knows it."""
    return "transformer" if table.groups else "generic"
