"""What a plan leaves of each layer, and whether it fits a model at all."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from autocompress.errors import PlanError, near
from autocompress.layers import Group, Layer, LayerTable, Slice
from autocompress.plan.choices import INT4_GROUP, Factorize, LayerPlan, Precision, Quantize
from autocompress.plan.plan import Plan

#: Faults that a message spells out.
MOST_FAULTS = 20


@dataclass(frozen=True)
class EffectiveLayer:
    """What a plan leaves of one layer.

    Attributes:
        layer: the layer before compression.
        shape: of its weight after structure removal.
        factorize: its rank, or None.
        quantize: its bits, or None for fp32.
        removed: the whole layer is gone with its block, attention or feed-forward part.
    """

    layer: Layer
    shape: tuple[int, ...]
    factorize: Factorize | None
    quantize: Quantize | None
    removed: bool

    @property
    def rank(self) -> int | None:
        """Rank of the factors, or None."""
        return self.factorize.rank if self.factorize else None

    @property
    def precision(self) -> Precision:
        """Of the weights (and activations, see `PRECISIONS`)."""
        return self.quantize.precision if self.quantize else "fp32"

    @property
    def kept_fraction(self) -> float:
        """Share of the layer's weights that structure removal leaves, in [0, 1]."""
        return 0.0 if self.removed else math.prod(self.shape) / math.prod(self.layer.weight_shape)

    @property
    def weights(self) -> int:
        """Number of weights left, factors counted, bias not."""
        if self.removed:
            return 0
        if self.factorize is None:
            return math.prod(self.shape)
        return self.factorize.rank * factor_size(self.shape, self.factorize.split)


def factor_size(shape: tuple[int, ...], split: str = "channel") -> int:
    """Weights that one rank of two factors takes in place of a weight of this shape."""
    out, into, *window = shape
    if split == "spatial" and window:
        return into * window[0] + out * window[1]
    return out + into * math.prod(window)


def largest_rank(shape: tuple[int, ...], split: str = "channel") -> int:
    """Rank at which two factors hold any weight of this shape exactly."""
    out, into, *window = shape
    if split == "spatial" and window:
        return min(into * window[0], out * window[1])
    return min(out, into * math.prod(window))


def removed_groups(plan: Plan, table: LayerTable) -> frozenset[str]:
    """Blocks, attention and feed-forward parts that the plan takes out."""
    return frozenset(g.name for g in table.groups if g.removable and g.name in plan.groups)


def removed_blocks(plan: Plan, table: LayerTable) -> frozenset[str]:
    """Blocks that the plan takes out."""
    return removed_groups(plan, table) & frozenset(table.blocks)


def removed_layers(plan: Plan, table: LayerTable) -> frozenset[str]:
    """Layers that are gone with what the plan takes out."""
    gone = removed_groups(plan, table)
    return frozenset(name for group in table.groups if group.name in gone for name in group.removes)


def lies_in(group: Group, gone: frozenset[str]) -> bool:
    """Whether all layers that make and read a group's structures are gone, and its choice with them."""
    layers = {s.name for s in (*group.producers, *group.consumers)} or set(group.removes)
    return bool(layers) and layers <= gone


def kept_layers(plan: Plan, table: LayerTable) -> dict[str, tuple[int, ...]]:
    """Weight shape of each layer after the plan's structure removal."""
    shapes = {la.name: list(la.weight_shape) for la in table.layers}
    kinds = {la.name: la.kind for la in table.layers}

    def shrink(slices: tuple[Slice, ...], axis: int, lost: int) -> None:
        for item in slices:
            if item.name in shapes:
                shapes[item.name][1 if kinds[item.name] == "embedding" else axis] -= lost * item.width

    for group in table.groups:
        prune = plan.groups.get(group.name)
        if prune is None or group.removable:
            continue
        lost = group.size - prune.keep
        shrink(group.producers, 0, lost)
        shrink(group.carriers, 0, lost)
        shrink(group.consumers, 1, lost)
    return {name: tuple(shape) for name, shape in shapes.items()}


def effective_layers(plan: Plan, table: LayerTable) -> tuple[EffectiveLayer, ...]:
    """What the plan leaves of each layer, in the table's order."""
    gone, shapes = removed_layers(plan, table), kept_layers(plan, table)
    nothing = LayerPlan()
    return tuple(
        EffectiveLayer(layer, shapes[layer.name], lp.factorize, lp.quantize, layer.name in gone)
        for layer in table.layers
        for lp in (plan.layers.get(layer.name, nothing),)
    )


def _group_faults(plan: Plan, table: LayerTable) -> Iterator[str]:
    names = {g.name: g for g in table.groups}
    gone_layers = removed_layers(plan, table)
    for name, prune in plan.groups.items():
        if name not in names:
            yield f"groups: {name}: the model has no such group{near(name, names)}"
            continue
        group = names[name]
        if group.removable:
            if prune.keep != 0:
                yield f"groups: {name}: is kept or removed as a whole: keep must be 0, but got {prune.keep}"
            owner = group.block if group.block != name else ""
            if owner in removed_blocks(plan, table):
                yield f"groups: {name}: its block is removed, so nothing else can be done to it"
        elif prune.keep > group.size:
            yield f"groups: {name}: keep must be at most {group.size}, but got {prune.keep}"
        elif prune.keep == 0:
            yield f"groups: {name}: keep must be 1 or more (remove the whole part to remove all), but got 0"
        elif lies_in(group, gone_layers):
            yield f"groups: {name}: its layers are removed, so nothing else can be done to it"


def _layer_faults(eff: EffectiveLayer, plan: LayerPlan) -> Iterator[str]:
    layer, shape = eff.layer, eff.shape
    if eff.removed:
        yield "it is removed, so nothing else can be done to it"
        return
    for technique in ("mask", "factorize", "quantize"):
        if getattr(plan, technique) and not layer.allows(technique):
            yield f"{technique}: {layer.why_not[technique]}"
    if plan.factorize and layer.allows("factorize"):
        limit = largest_rank(shape, plan.factorize.split)
        if plan.factorize.rank > limit:
            yield f"rank must be at most {limit}, but got {plan.factorize.rank}"
        if plan.factorize.split == "spatial" and layer.kind != "conv":
            yield f"split 'spatial' is for convolutions, and this is {layer.kind}"
        elif plan.factorize.split == "spatial" and math.prod(shape[2:]) == 1:
            yield "split 'spatial' needs a window above 1×1"
    if plan.mask and plan.mask.n_m and layer.allows("mask"):
        columns, (_, m) = math.prod(shape[1:]), plan.mask.n_m
        if columns % m:
            yield f"mask: pattern {plan.mask.pattern} needs a multiple of {m} inputs, but it has {columns}"
    if plan.mask and plan.mask.pattern in ("rows", "columns") and plan.mask.sparsity:
        count = shape[0 if plan.mask.pattern == "rows" else 1]
        if round(plan.mask.sparsity * count) >= count:
            yield f"mask: sparsity {plan.mask.sparsity:g} of {count} {plan.mask.pattern} leaves none"
    yield from _second_moment_faults(layer, plan)
    if plan.quantize and layer.allows("quantize"):
        legal = legal_precisions(layer)
        if plan.quantize.precision not in legal:
            yield f"precision must be one of {', '.join(legal)}, but got {plan.quantize.precision}"
        elif layer.kind == "embedding" and plan.quantize.precision == "int4-weights":
            width = plan.factorize.rank if plan.factorize else shape[1]
            if width % INT4_GROUP:
                yield f"int4-weights need a multiple of {INT4_GROUP} features, but {width} are left"
        if layer.kind == "embedding" and (plan.quantize.rounding == "gptq" or plan.quantize.bias_correction):
            yield "gptq and bias_correction need inputs to calibrate on, and this is an embedding"


def _second_moment_faults(layer: Layer, plan: LayerPlan) -> Iterator[str]:
    """What needs the second moment of all inputs, which a grouped convolution does not have."""
    if layer.groups == 1:
        return
    if plan.mask and plan.mask.score in ("wanda", "obs"):
        yield f"mask: score {plan.mask.score!r} cannot be had for a convolution of {layer.groups} groups"
    if plan.quantize and plan.quantize.rounding == "gptq":
        yield f"quantize: gptq cannot be had for a convolution of {layer.groups} groups"


def legal_precisions(layer: Layer) -> tuple[Precision, ...]:
    """Precisions that exist for a layer's kind, whatever the runtime; "fp32" always does."""
    if not layer.allows("quantize"):
        return ("fp32",)
    if layer.kind == "embedding":
        whole = layer.weight_shape[1] % INT4_GROUP == 0  # the runtime's 4-bit gather knows whole groups only
        halves: tuple[Precision, ...] = ("fp32", "fp16", "int8-weights")
        return (*halves, "int4-weights") if whole else halves
    if layer.kind == "conv":
        return ("fp32", "fp16", "int8")
    return ("fp32", "fp16", "fp8", "int8-dynamic", "int8", "int4-weights")


def _plan_faults(plan: Plan, table: LayerTable) -> Iterator[str]:
    yield from _group_faults(plan, table)
    known = {la.name: la for la in table.layers}
    for name in plan.layers:
        if name not in known:
            yield f"layers: {name}: the model has no such layer{near(name, known)}"
    for eff in effective_layers(plan, table):
        if eff.layer.name in plan.layers:
            for fault in _layer_faults(eff, plan.layers[eff.layer.name]):
                yield f"layers: {eff.layer.name}: {fault}"


def check_plan(plan: Plan, table: LayerTable) -> None:
    """Raise `PlanError` with the reasons, up to `MOST_FAULTS` of them, why the plan does not fit the model."""
    faults = list(_plan_faults(plan, table))
    if faults:
        more = len(faults) - MOST_FAULTS
        shown = [*faults[:MOST_FAULTS], *([f"… and {more} more like these"] if more > 0 else [])]
        raise PlanError("\n  ".join(["the plan does not fit this model:", *shown]))
