"""Search spaces: YAML + a model's layers + a profile → variables, and values → Plan. Knows nothing of Optuna."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

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
from autocompress.settings import find_yaml, read_yaml, validate

FOLDER = "search_spaces"

Share = Annotated[float, Field(gt=0, le=1)]
Values = dict[str, int | float]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _from_full(levels: tuple[float, ...]) -> tuple[float, ...]:
    """Levels from all to least, each once."""
    return tuple(sorted(set(levels), reverse=True))


class GroupRules(_Strict):
    """Shares of structures that may stay, such as ``heads: [1.0, 0.5]``; what is left out is not pruned."""

    heads: tuple[Share, ...] = (1.0,)
    neurons: tuple[Share, ...] = (1.0,)

    _order = field_validator("heads", "neurons")(_from_full)


class BlockRule(_Strict):
    """Whether whole blocks may go, and the share of them that always stays."""

    remove: bool = False
    keep_at_least: Share = 0.5


class LayerRule(_Strict):
    """Precisions and ranks of the layers whose name fits `match`; of several rules the last that fits counts."""

    match: str = "*"
    kind: Literal["linear", "conv", "embedding"] | None = None
    precision: tuple[Precision, ...] = ("fp32",)
    rank: tuple[Share, ...] = (1.0,)
    share: Literal["layer", "block", "all"] = "layer"

    _order = field_validator("rank")(_from_full)

    @field_validator("precision")
    @classmethod
    def _heavy_first(cls, levels: tuple[Precision, ...]) -> tuple[Precision, ...]:
        return tuple(p for p in PRECISIONS if p in levels)


class Bounds(_Strict):
    """An interval of real values."""

    low: float
    high: float
    log: bool = False

    @model_validator(mode="after")
    def _check(self) -> Bounds:
        if self.low > self.high or (self.log and self.low <= 0):
            raise ValueError("low must not be above high, and above 0 where log is true")
        return self


class DistillRule(_Strict):
    """Ranges of the recovery; ``steps: [0]`` turns it off."""

    soft_weight: Bounds = Bounds(low=0.0, high=1.0)
    temperature: Bounds = Bounds(low=1.0, high=8.0, log=True)
    learning_rate: Bounds = Bounds(low=1e-4, high=1e-3, log=True)
    steps: tuple[Annotated[int, Field(ge=0)], ...] = (0,)
    default: Distill = Distill()

    @field_validator("steps")
    @classmethod
    def _ascending(cls, steps: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(sorted(set(steps)))


class SpaceRules(_Strict):
    """The schema of ``search_spaces/*.yaml``."""

    name: str
    description: str = ""
    groups: GroupRules = GroupRules()
    blocks: BlockRule = BlockRule()
    layers: tuple[LayerRule, ...] = ()
    distill: DistillRule = DistillRule()


def load_space(name_or_path: str | Path) -> SpaceRules:
    """A shipped space by name, or one's own by path; raises `SpaceError` with all mistakes at once."""
    path = find_yaml(name_or_path, FOLDER, SpaceError)
    data = read_yaml(path, SpaceError)
    data.setdefault("name", path.stem)
    return validate(SpaceRules, data, str(path), SpaceError)


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
class SearchSpace:
    """Variables of one model on one profile, and what their values mean."""

    rules: SpaceRules
    table: LayerTable
    profile: HardwareProfile
    variables: tuple[Variable, ...]
    scopes: Mapping[str, str] = field(default_factory=dict)  # layer name -> scope of its rule

    @property
    def by_name(self) -> dict[str, Variable]:
        """Variables by name."""
        return {variable.name: variable for variable in self.variables}

    def decode(self, values: Mapping[str, int | float], seed: int = 0) -> Plan:
        """The plan that the values mean; what has no effect is left out, so that equal candidates are equal plans.

        A removed block takes its other choices with it; full shares, full ranks, ranks at or above break-even and
        fp32 say nothing; no steps, no distillation settings. When more blocks would go than `keep_at_least` allows,
        the first ones stay.
        """
        groups, gone = self._decode_groups(values)
        bits = self._decode_precisions(values, gone)
        layers = self._decode_ranks(values, Plan(groups, bits), gone)
        return Plan(groups, layers, self._decode_distill(values), seed)

    def _level(self, values: Mapping[str, int | float], name: str, default: float | str) -> float | str:
        variable = self.by_name.get(name)
        return variable.levels[int(values[name])] if variable and name in values else default

    def _decode_groups(self, values: Mapping[str, int | float]) -> tuple[dict[str, Prune], set[str]]:
        asked = [b for b in self.table.blocks if self._level(values, f"remove:{b}", 0) == 1]
        allowed = len(self.table.blocks) - max(1, _up(len(self.table.blocks) * self.rules.blocks.keep_at_least, 1))
        gone = set(asked[len(asked) - allowed :] if len(asked) > allowed else asked)
        groups = {block: Prune(0) for block in gone}
        for group in self.table.groups:
            if group.kind == "block" or group.block in gone:
                continue
            share = float(self._level(values, f"keep:{group.name}", 1.0))
            step = self.profile.rounding.heads if group.kind == "heads" else self.profile.rounding.neurons
            keep = min(group.size, _up(group.size * share, step))
            if keep < group.size:
                groups[group.name] = Prune(keep)
        return groups, gone

    def _decode_precisions(self, values: Mapping[str, int | float], gone: set[str]) -> dict[str, LayerPlan]:
        layers = {}
        for layer in self.table.layers:
            precision = self._level(values, f"precision:{self.scopes.get(layer.name)}", "fp32")
            if precision != "fp32" and layer.block not in gone and precision in legal_precisions(layer):
                layers[layer.name] = LayerPlan(quantize=Quantize(precision))
        return layers

    def _decode_ranks(self, values: Mapping[str, int | float], plan: Plan, gone: set[str]) -> dict[str, LayerPlan]:
        layers = dict(plan.layers)
        for effective in effective_layers(plan, self.table):
            layer = effective.layer
            share = float(self._level(values, f"rank:{self.scopes.get(layer.name)}", 1.0))
            if share == 1.0 or layer.block in gone or not layer.allows("factorize"):
                continue
            out, into = effective.shape
            rank = _up(min(out, into) * share, self.profile.rounding.rank)
            if rank * (out + into) < out * into:
                layers[layer.name] = LayerPlan(Factorize(rank), layers.get(layer.name, LayerPlan()).quantize)
        return layers

    def _decode_distill(self, values: Mapping[str, int | float]) -> Distill | None:
        default = self.rules.distill.default
        steps = int(self._level(values, "steps", self.rules.distill.steps[0]))
        if not steps:
            return None
        chosen = {name: float(values.get(name, getattr(default, name))) for name in _DISTILL}
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

    def smallest(self, precision: Precision) -> Values:
        """Values of the least of everything at one precision, without recovery."""
        least = min((lv for lv in (*self.rules.groups.heads, *self.rules.groups.neurons)), default=1.0)
        return self.uniform(keep=least, precision=precision, removed=self.table.blocks)


_DISTILL = ("soft_weight", "temperature", "learning_rate")


def _up(value: float, step: int) -> int:
    """The value rounded to the nearest multiple of `step`, at least one step."""
    return max(1, round(value / step)) * step


def _nearest(levels: tuple[float | str, ...], wanted: float) -> int:
    return min(range(len(levels)), key=lambda i: abs(float(levels[i]) - wanted))


def _lightest_up_to(levels: tuple[float | str, ...], wanted: Precision) -> int:
    """Index of the wanted precision; where a layer lacks it, of the lightest that is not lighter."""
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
        default = replace(rules.distill.default, learning_rate=learning_rate)
        rules = rules.model_copy(update={"distill": rules.distill.model_copy(update={"default": default})})
    variables: list[Variable] = []
    for group in table.groups:
        if group.kind == "block":
            if rules.blocks.remove:
                variables.append(Variable(f"remove:{group.name}", (0, 1)))
            continue
        levels = rules.groups.heads if group.kind == "heads" else rules.groups.neurons
        if len(levels) > 1:
            variables.append(Variable(f"keep:{group.name}", levels))
    scopes: dict[str, str] = {}
    precision_levels: dict[str, list[Precision]] = {}
    rank_levels: dict[str, tuple[float, ...]] = {}
    for number, rule in enumerate(rules.layers):
        matched = table.match(rule.match)
        if rule.kind and not any(layer.kind == rule.kind for layer in matched):
            kinds = ", ".join(sorted({layer.kind for layer in matched}))
            if rule.match != "*":
                raise SpaceError(f"space {rules.name!r}: layers.{number}: {rule.match!r} matches only {kinds} layers")
            continue
        for layer in matched:
            if rule.kind and layer.kind != rule.kind:
                continue
            scope = _scope(rule, number, layer)
            scopes[layer.name] = scope
            available = profile.precisions.get(layer.kind, ("fp32",))
            legal = legal_precisions(layer)
            levels_here = [p for p in rule.precision if p in legal and p in available and p not in dropped]
            before = precision_levels.setdefault(scope, [])
            before += [p for p in levels_here if p not in before]
            rank_levels[scope] = rule.rank if layer.allows("factorize") else rank_levels.get(scope, (1.0,))
    live = dict.fromkeys(scopes.values())
    for scope in live:
        levels_of_scope = tuple(p for p in PRECISIONS if p in precision_levels[scope])
        if len(levels_of_scope) > 1:
            variables.append(Variable(f"precision:{scope}", levels_of_scope))
        if len(rank_levels[scope]) > 1:
            variables.append(Variable(f"rank:{scope}", rank_levels[scope]))
    if not variables:
        raise SpaceError(
            f"space {rules.name!r} leaves nothing to choose for this model on profile {profile.name!r}: "
            f"{len(table.layers)} layers ({', '.join(sorted({la.kind for la in table.layers}))}), "
            f"{len(table.groups)} groups; precisions with a kernel: "
            + "; ".join(f"{kind} {', '.join(levels)}" for kind, levels in profile.precisions.items())
        )
    return SearchSpace(rules, table, profile, (*variables, *_distill_variables(rules.distill)), scopes)


def _scope(rule: LayerRule, number: int, layer: Layer) -> str:
    if rule.share == "all":
        return f"{rule.match}#{number}"
    if rule.share == "block" and layer.block:
        return layer.block if rule.match == "*" else f"{layer.block}#{number}"
    return layer.name


def _distill_variables(rule: DistillRule) -> list[Variable]:
    if rule.steps == (0,):
        return []
    variables = [Variable("steps", tuple(float(s) for s in rule.steps))] if len(rule.steps) > 1 else []
    for name in _DISTILL:
        bounds: Bounds = getattr(rule, name)
        if bounds.low < bounds.high:
            variables.append(Variable(name, low=bounds.low, high=bounds.high, log=bounds.log))
    return variables


def default_space(table: LayerTable) -> str:
    """Name of the shipped space for a model: with structure where an adapter knows it."""
    return "transformer" if table.groups else "generic"
