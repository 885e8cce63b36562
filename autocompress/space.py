"""Search spaces: rules + a model's layers + a profile → variables, and values → Plan. Knows nothing of Optuna."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from autocompress.hardware import HardwareProfile
from autocompress.layers import Layer, LayerTable
from autocompress.misfit import check_fits, nothing_to_choose
from autocompress.plan import (
    INT4_GROUP,
    PRECISIONS,
    Distill,
    EffectiveLayer,
    Factorize,
    GlobalMask,
    LayerPlan,
    Plan,
    Precision,
    Prune,
    Quantize,
    effective_layers,
    legal_precisions,
)
from autocompress.plan.check import factor_size, largest_rank, lies_in, removed_layers
from autocompress.rules import Bounds, DistillRule, LayerRule, SpaceRules

#: Variable name to the index of its level, or to a real number.
Values = dict[str, int | float]


@dataclass(frozen=True)
class Variable:
    """One choice of the search.

    Attributes:
        name: ``keep:GROUP``, ``remove:GROUP``, ``precision:SCOPE``, ``bits:SCOPE``, ``rank:SCOPE``,
            ``sparsity:SCOPE`` (of a layer rule, or "all layers"), ``learn``, or a distillation setting.
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
        rule: where they come from.
    """

    scope: str
    precisions: tuple[Precision, ...]
    rule: LayerRule


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

    @cached_property
    def structure(self) -> tuple[Variable, ...]:
        """Variables of the model itself: all but those of the recovery."""
        return tuple(variable for variable in self.variables if variable.name not in RECOVERY)

    @cached_property
    def recovery(self) -> tuple[Variable, ...]:
        """Variables of the recovery, but its steps."""
        return tuple(variable for variable in self.variables if variable.name in _DISTILL)

    @property
    def steps(self) -> tuple[int, ...]:
        """Levels of recovery steps above 0, few to many."""
        return () if self.fixed.get("steps") == 0 else tuple(step for step in self.rules.distill.steps if step)

    def untrained(self) -> SearchSpace:
        """The same space without its recovery."""
        return replace(self, variables=self.structure, fixed={**self.fixed, "steps": 0.0})

    def decode(self, values: Mapping[str, int | float], seed: int = 0, learn: bool = True) -> Plan:
        """The plan that the values mean; what has no effect is left out, so that equal candidates are equal plans.

        A removed part takes its other choices with it, a recipe takes groups, ranks and zeros, zeros over all layers
        take ranks and zeros of each, a rank takes zeros; full shares, full ranks, ranks at or above break-even and
        fp32 say nothing; no steps, no distillation settings and no seed. A layer whose scope chose a precision that
        the layer lacks takes the lightest it has that is not lighter. When more blocks would go than `keep_at_least`
        allows, the first ones stay. Without `learn`, recipes are passed over.
        """
        recipe = self.rules.recipes[int(self._level(values, "learn", 0))] if learn else None
        if recipe is not None:
            learned = Plan(layers=self._bits(values, Plan()), learn=recipe)
            return replace(learned, distill=self.recovery_of(values, learned), seed=seed)
        groups = self._decode_groups(values)
        shaped = Plan(groups, self._bits(values, Plan(groups)))
        zeros = float(self._level(values, "sparsity:all layers", 0.0))
        mask = GlobalMask(zeros, self.rules.mask_score) if zeros else None
        layers = shaped.layers if mask else self._decode_weights(values, shaped)
        repaired = any(prune.repair and prune.keep for prune in groups.values())
        plan = Plan(groups, layers, mask=mask, repair=self.rules.repair if repaired else "dense")
        distill = self.recovery_of(values, plan)
        return replace(plan, distill=distill, seed=seed if distill or _draws(plan) else 0)

    def _level(self, values: Mapping[str, int | float], name: str, default: float | str) -> float | str:
        if name in self.fixed:
            return self.fixed[name]
        variable = self.by_name.get(name)
        return variable.levels[int(values[name])] if variable and name in values else default

    def _decode_groups(self, values: Mapping[str, int | float]) -> dict[str, Prune]:
        rules, table = self.rules.groups, self.table
        asked = {g.name for g in table.groups if g.removable and self._level(values, f"remove:{g.name}", 0) == 1}
        blocks = [b for b in table.blocks if b in asked]
        allowed = len(table.blocks) - math.ceil(len(table.blocks) * self.rules.blocks.keep_at_least - 1e-9)
        gone = set(blocks[len(blocks) - allowed :] if len(blocks) > allowed else blocks)
        gone |= {g.name for g in table.groups if g.name in asked - set(table.blocks) and g.block not in gone}
        groups = {name: Prune(0, repair=rules.repair) for name in gone if name not in table.blocks}
        groups.update({name: Prune(0) for name in gone if name in table.blocks})
        lost = removed_layers(Plan(groups), table)
        for group in table.groups:
            if group.removable or lies_in(group, lost):
                continue
            share = float(self._level(values, f"keep:{group.name}", 1.0))
            step: int = getattr(self.profile.rounding, group.kind)
            keep = min(group.size, _round_to(group.size * share, step))
            if keep < group.size:
                groups[group.name] = Prune(keep, rules.score, rules.repair)
        return groups

    def _live(self, plan: Plan) -> Iterator[tuple[EffectiveLayer, LayerChoice]]:
        """Layers that the plan leaves and a rule fits."""
        for effective in effective_layers(plan, self.table):
            choice = self.choices.get(effective.layer.name)
            if choice is not None and not effective.removed:
                yield effective, choice

    def _bits(self, values: Mapping[str, int | float], plan: Plan) -> dict[str, LayerPlan]:
        layers = {}
        for effective, choice in self._live(plan):
            wanted = self._level(values, f"precision:{choice.scope}", "fp32")
            precision = choice.precisions[_lightest_up_to(choice.precisions, wanted)]
            if precision == "int4-weights" and effective.layer.kind == "embedding" and effective.shape[1] % INT4_GROUP:
                precision = choice.precisions[_lightest_up_to(choice.precisions, "int8-weights")]
            bits = int(self._level(values, f"bits:{choice.scope}", 8))
            key = (effective.layer.name, precision, bits)
            if key not in self._rounded:
                self._rounded[key] = LayerPlan(quantize=_quantized(effective.layer, choice.rule, precision, bits))
            layers[effective.layer.name] = self._rounded[key]
        return layers

    @cached_property
    def _rounded(self) -> dict[tuple[str, Precision, int], LayerPlan]:
        """Layer plans of bits alone that were made before, by layer: a search decodes the same ones over and over."""
        return {}

    def _decode_weights(self, values: Mapping[str, int | float], plan: Plan) -> dict[str, LayerPlan]:
        """Ranks, and zeros where there is no rank, beside the bits of the plan."""
        layers = dict(plan.layers)
        for effective, choice in self._live(plan):
            layer, rule, quantize = effective.layer, choice.rule, effective.quantize
            share = float(self._level(values, f"rank:{choice.scope}", 1.0))
            zeros = float(self._level(values, f"sparsity:{choice.scope}", 0.0))
            split = rule.split if math.prod(layer.weight_shape[2:]) > 1 else "channel"
            rank = self._rank(effective, share, split) if layer.allows("factorize") else 0
            if rank and quantize and layer.kind == "embedding" and rank % INT4_GROUP:
                quantize = None if quantize.precision == "int4-weights" else quantize
            if rank:
                factorize = Factorize(rank, rule.method, split)
                layers[layer.name] = LayerPlan(factorize=factorize, quantize=quantize)
            elif zeros and layer.allows("mask"):
                mask = rule.mask(zeros)
                if mask and layer.groups > 1 and mask.score in ("wanda", "obs"):
                    mask = replace(mask, score="magnitude")
                whole = mask is None or mask.n_m is None or math.prod(effective.shape[1:]) % mask.n_m[1] == 0
                layers[layer.name] = LayerPlan(quantize=quantize, mask=mask if whole else None)
        return layers

    def _rank(self, effective: EffectiveLayer, share: float, split: str) -> int:
        """The rank that a share means, or 0 where it would save nothing."""
        shape = effective.shape
        full = largest_rank(shape, split)
        rank = min(_round_to(full * share, self.profile.rounding.rank), full)
        return rank if share < 1.0 and rank * factor_size(shape, split) < math.prod(shape) else 0

    def recovery_of(self, values: Mapping[str, int | float], plan: Plan) -> Distill | None:
        """The recovery that the values mean for a plan; None where they ask for no steps."""
        steps = int(self._level(values, "steps", 0.0))
        if not steps:
            return None
        default = self.rules.distill.default
        chosen = {name: float(self.fixed.get(name, values.get(name, getattr(default, name)))) for name in _DISTILL}
        if chosen["soft_weight"] == 0:
            chosen["temperature"] = default.temperature
        searched = Distill(chosen["soft_weight"], chosen["temperature"], chosen["learning_rate"], steps)
        distill = self.rules.distill.record(searched)
        whole = any(lp.quantize for lp in plan.layers.values())
        return distill if whole or not distill.fake_quantize else replace(distill, fake_quantize=False)

    def uniform(
        self,
        keep: float = 1.0,
        precision: Precision = "fp32",
        rank: float = 1.0,
        removed: tuple[str, ...] = (),
        recover: bool = False,
    ) -> Values:
        """Values that treat all groups and layers alike, at the nearest levels that each has.

        With `recover`, the most steps and the space's default settings. The hidden width stays, but for `keep` 0,
        which is the least of everything; zeros, fewer bits within a precision and recipes are left out.
        """
        values: Values = {}
        for variable in self.variables:
            kind, _, scope = variable.name.partition(":")
            if kind == "keep":
                stream = self.table.group(scope).kind == "hidden" and keep > 0  # it touches every layer at once
                values[variable.name] = 0 if stream else _nearest(variable.levels, keep)
            elif kind in ("learn", "sparsity", "bits"):
                values[variable.name] = 0
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


def _quantized(layer: Layer, rule: LayerRule, precision: Precision, bits: int) -> Quantize | None:
    quantize = rule.quantized(precision, bits)
    if quantize and layer.groups > 1:
        quantize = replace(quantize, rounding="nearest")
    if quantize and layer.kind == "embedding":
        quantize = replace(quantize, rounding="nearest", bias_correction=False)
    return quantize


def _draws(plan: Plan) -> bool:
    """Whether something of the plan is drawn at random."""
    scores = {prune.score for prune in plan.groups.values()}
    scores |= {lp.mask.score for lp in plan.layers.values() if lp.mask}
    return "random" in scores or (plan.mask is not None and plan.mask.score == "random")


_DISTILL = ("soft_weight", "temperature", "learning_rate")

RECOVERY = (*_DISTILL, "steps")


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
    dropped_there: Mapping[str, Collection[Precision]] | None = None,
) -> SearchSpace:
    """The variables that a space has for one model on one profile.

    Args:
        rules: from `load_space`.
        table: from `survey`.
        profile: says which precisions have a kernel.
        dropped: precisions that the probe found slower than the next heavier one.
        learning_rate: default of the recoveries, in place of the space's own.
        dropped_there: the same of single layers, by name.

    Raises:
        SpaceError: a pattern matches no layer, a recipe is not for this model, or nothing is left to choose; says why.
    """
    check_fits(rules, table)
    if learning_rate is not None:
        default = rules.distill.default.model_copy(update={"learning_rate": learning_rate})
        rules = rules.model_copy(update={"distill": rules.distill.model_copy(update={"default": default})})
    choices: dict[str, LayerChoice] = {}
    levels = _group_levels(rules, table)
    for layer, number, rule in _ruled_layers(rules, table):
        available = profile.precisions.get(layer.kind, ("fp32",))
        gone = {*dropped, *(dropped_there or {}).get(layer.name, ())}
        legal = [p for p in legal_precisions(layer) if p == "fp32" or (p in available and p not in gone)]
        scope = rule.scope(number, layer)
        offered = tuple(p for p in rule.precision if p in legal) or ("fp32",)
        choices[layer.name] = LayerChoice(scope, offered, rule)
        before = levels.get(f"precision:{scope}", ())
        levels[f"precision:{scope}"] = tuple(
            p for p in PRECISIONS if p in before or (p in offered and p in rule.precision)
        )
        if layer.allows("factorize"):
            levels[f"rank:{scope}"] = rule.rank
        if layer.allows("mask") and rule.sparsity != (0.0,):
            levels[f"sparsity:{scope}"] = rule.sparsity
        if any(rule.quantized(p, bits) != rule.quantized(p, 8) for p in offered for bits in rule.weight_bits):
            levels[f"bits:{scope}"] = tuple(float(bits) for bits in rule.weight_bits)
    if rules.sparsity != (0.0,):
        levels["sparsity:all layers"] = rules.sparsity
    if rules.learn != (None,):
        levels["learn"] = tuple(float(number) for number in range(len(rules.learn)))
    searched = [Variable(name, options) for name, options in levels.items() if len(options) > 1]
    recovery, held = _distill_variables(rules.distill)
    fixed: dict[str, float | str] = {name: options[0] for name, options in levels.items() if len(options) == 1}
    space = SearchSpace(rules, table, profile, (*searched, *recovery), {**fixed, **held}, choices)
    if not space.variables or (not dropped and rules.asks_beyond_recovery and _leaves_all(space)):
        raise nothing_to_choose(rules, table, profile, dropped, default_space(table))
    return space


def _leaves_all(space: SearchSpace) -> bool:
    """Whether even the least of everything is the dense model: all shares rounded up, no rank that saves anything."""
    least = {v.name: len(v.levels) - 1 for v in space.variables if v.levels and v.name != "steps"}
    return space.rules.recipes == (None,) and replace(space.decode(least), distill=None, seed=0) == Plan()


def _group_levels(rules: SpaceRules, table: LayerTable) -> dict[str, tuple[float | str, ...]]:
    levels: dict[str, tuple[float | str, ...]] = {}
    removable = {
        "block": rules.blocks.remove,
        "attention": rules.groups.remove_attention,
        "feed_forward": rules.groups.remove_feed_forward,
    }
    for group in table.groups:
        if not group.removable:
            levels[f"keep:{group.name}"] = rules.groups.shares(group.kind)
        elif removable[group.kind]:
            levels[f"remove:{group.name}"] = (0, 1)
    return levels


def _ruled_layers(rules: SpaceRules, table: LayerTable) -> Iterator[tuple[Layer, int, LayerRule]]:
    """Each layer that a rule fits, with the number of its last rule."""
    last: dict[str, int] = {}
    for number, rule in enumerate(rules.layers):
        fitting = [layer for layer in table.match(rule.match) if rule.kind in (None, layer.kind)]
        last.update({layer.name: number for layer in fitting})
    for layer in table.layers:
        if layer.name in last:
            yield layer, last[layer.name], rules.layers[last[layer.name]]


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
    kinds = {group.kind for group in table.groups}
    if not kinds or "channels" in kinds:
        return "cnn" if kinds else "generic"
    return "decoder" if table.writes_tokens else "transformer"
