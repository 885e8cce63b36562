"""One candidate as frozen data: what to prune, factorize, quantize, and how to recover.

A plan holds no tensor and names no library. Its constructor refuses what is illegal by itself;
`check_plan` refuses what is illegal for one model. Equal plans have one fingerprint in every process.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from types import MappingProxyType
from typing import Any, Literal

from autocompress.errors import PlanError, near
from autocompress.layers import Layer, LayerTable

Precision = Literal["fp32", "int8", "int8-dynamic", "int8-weights", "int4-weights"]

#: From heavy to light in weight bytes and arithmetic; the order of the levels in every space.
PRECISIONS: tuple[Precision, ...] = ("fp32", "int8-dynamic", "int8", "int8-weights", "int4-weights")

#: Neighbouring weights that share one scale in the 4-bit format.
INT4_GROUP = 32

#: Bits that one weight takes, scales not counted.
WEIGHT_BITS: Mapping[str, int] = MappingProxyType(
    {"fp32": 32, "int8-dynamic": 8, "int8": 8, "int8-weights": 8, "int4-weights": 4}
)


def _is_count(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


@dataclass(frozen=True)
class Prune:
    """Keep `keep` structures of a group (0 only for a block: removed).

    `score` chooses them: "obs" (optimal brain surgeon on the consumer, Hassibi & Stork 1993) or
    "magnitude". `repair` re-solves the consumer's surviving columns by least squares.
    """

    keep: int
    score: Literal["obs", "magnitude"] = "obs"
    repair: bool = True

    def __post_init__(self) -> None:
        """Refuse a negative count or an unknown score."""
        if not _is_count(self.keep, 0):
            raise PlanError(f"Prune.keep must be an integer of 0 or more, but got {self.keep!r}")
        if not isinstance(self.repair, bool):
            raise PlanError(f"Prune.repair must be true or false, but got {self.repair!r}")
        if self.score not in ("obs", "magnitude"):
            raise PlanError(f"Prune.score must be 'obs' or 'magnitude', but got {self.score!r}")


@dataclass(frozen=True)
class Factorize:
    """Replace a weight ``(out, in)`` by two of rank `rank`: ``(out, rank) @ (rank, in)``."""

    rank: int

    def __post_init__(self) -> None:
        """Refuse a rank below 1."""
        if not _is_count(self.rank, 1):
            raise PlanError(f"Factorize.rank must be an integer of 1 or more, but got {self.rank!r}")


@dataclass(frozen=True)
class Quantize:
    """Integers for one layer; `precision` is one of `PRECISIONS` other than "fp32"."""

    precision: Precision

    def __post_init__(self) -> None:
        """Refuse an unknown precision; fp32 is said by leaving Quantize out."""
        legal = PRECISIONS[1:]
        if self.precision not in legal:
            raise PlanError(f"Quantize.precision must be one of {', '.join(legal)}, but got {self.precision!r}")


@dataclass(frozen=True)
class LayerPlan:
    """What happens to one layer; the order is fixed: structure, rank, bits."""

    factorize: Factorize | None = None
    quantize: Quantize | None = None

    @property
    def precision(self) -> Precision:
        """The layer's precision, "fp32" when it is not quantized."""
        return self.quantize.precision if self.quantize else "fp32"


@dataclass(frozen=True)
class Distill:
    """Recovery by distillation: ``(1-λ)·L_hard + λ·T²·KL(teacher_T ‖ student_T)`` (Hinton et al. 2015).

    Attributes:
        soft_weight: λ in [0, 1].
        temperature: T, above 0.
        learning_rate: peak of AdamW's linear decay, above 0.
        steps: optimizer steps, 1 or more.
    """

    soft_weight: float = 0.5
    temperature: float = 2.0
    learning_rate: float = 3e-4
    steps: int = 100

    def __post_init__(self) -> None:
        """Refuse values outside their ranges, all at once; whole numbers become floats, so that equal is equal."""
        faults = []
        for name, words in (("soft_weight", "in [0, 1]"), ("temperature", "above 0"), ("learning_rate", "above 0")):
            value = getattr(self, name)
            legal = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf
            if not legal or (value > 1 if name == "soft_weight" else value == 0):
                faults.append(f"{name} must be {words}, but got {value!r}")
            else:
                object.__setattr__(self, name, float(value))
        if not _is_count(self.steps, 1):
            faults.append(f"steps must be an integer of 1 or more, but got {self.steps!r}")
        if faults:
            raise PlanError("Distill: " + "; ".join(faults))


@dataclass(frozen=True)
class Plan:
    """A whole candidate. The empty plan is the dense model."""

    groups: Mapping[str, Prune] = field(default_factory=dict)
    layers: Mapping[str, LayerPlan] = field(default_factory=dict)
    distill: Distill | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Sort and freeze the mappings; drop layer plans that say nothing."""
        said = {name: lp for name, lp in self.layers.items() if lp != LayerPlan()}
        object.__setattr__(self, "groups", MappingProxyType(dict(sorted(self.groups.items()))))
        object.__setattr__(self, "layers", MappingProxyType(dict(sorted(said.items()))))

    def __hash__(self) -> int:
        """Hash of the fingerprint, since mappings have none."""
        return hash(self.fingerprint)

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits, the same in every process."""
        text = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def to_json(self) -> dict[str, Any]:
        """Plain data that `plan_from_json` reads back."""
        return {
            "groups": {name: asdict(prune) for name, prune in self.groups.items()},
            "layers": {
                name: {key: value for key, value in asdict(lp).items() if value is not None}
                for name, lp in self.layers.items()
            },
            "distill": asdict(self.distill) if self.distill else None,
            "seed": self.seed,
        }


_SETTINGS = {"factorize": Factorize, "quantize": Quantize}


def _mapping(data: object, where: str) -> Mapping[str, Any]:
    if not isinstance(data, Mapping):
        raise PlanError(f"{where}: expected an object, but got {data!r}")
    return data


def _build(kind: type, data: object, where: str) -> Any:
    data = _mapping(data, where)
    legal = kind.__dataclass_fields__  # type: ignore[attr-defined]
    for key in data:
        if key not in legal:
            raise PlanError(f"{where}: unknown key {key!r}{near(str(key), legal)}")
    try:
        return kind(**data)
    except (PlanError, TypeError, OverflowError) as error:
        raise PlanError(f"{where}: {error}") from None


def plan_from_json(data: object, source: str = "plan") -> Plan:
    """Read a plan; raises `PlanError` naming `source`, the key and the value."""
    data = _mapping(data, source)
    for key in data:
        if key not in Plan.__dataclass_fields__:
            raise PlanError(f"{source}: unknown key {key!r}{near(str(key), Plan.__dataclass_fields__)}")
    groups = {
        name: _build(Prune, value, f"{source}: groups: {name}")
        for name, value in _mapping(data.get("groups", {}), f"{source}: groups").items()
    }
    layers = {}
    for name, value in _mapping(data.get("layers", {}), f"{source}: layers").items():
        where = f"{source}: layers: {name}"
        for key in _mapping(value, where):
            if key not in _SETTINGS:
                raise PlanError(f"{where}: unknown key {key!r}{near(str(key), _SETTINGS)}")
        layers[name] = LayerPlan(**{k: _build(_SETTINGS[k], v, f"{where}: {k}") for k, v in value.items()})
    distill, seed = data.get("distill"), data.get("seed", 0)
    if not _is_count(seed, 0):
        raise PlanError(f"{source}: seed: must be an integer of 0 or more, but got {seed!r}")
    return Plan(
        groups,
        layers,
        _build(Distill, distill, f"{source}: distill") if distill is not None else None,
        seed,
    )


@dataclass(frozen=True)
class EffectiveLayer:
    """What a plan leaves of one layer.

    Attributes:
        layer: the layer before compression.
        shape: linear ``(out, in)`` after structure removal; unchanged for other kinds.
        rank: rank of the factors, or None.
        precision: of the weights (and activations, see `PRECISIONS`).
        removed: the whole layer is gone with its block.
    """

    layer: Layer
    shape: tuple[int, ...]
    rank: int | None
    precision: Precision
    removed: bool

    @property
    def kept_fraction(self) -> float:
        """Share of the layer's weights that structure removal leaves, in [0, 1]."""
        if self.removed:
            return 0.0
        kept = total = 1
        for new, old in zip(self.shape, self.layer.weight_shape, strict=True):
            kept, total = kept * new, total * old
        return kept / total

    @property
    def weights(self) -> int:
        """Number of weights left, factors counted, bias not."""
        if self.removed:
            return 0
        if self.rank is not None:
            return self.rank * (self.shape[0] + self.shape[1])
        count = 1
        for size in self.shape:
            count *= size
        return count


def removed_blocks(plan: Plan, table: LayerTable) -> frozenset[str]:
    """Blocks that the plan takes out."""
    return frozenset(b for b in table.blocks if b in plan.groups and plan.groups[b].keep == 0)


def effective_layers(plan: Plan, table: LayerTable) -> tuple[EffectiveLayer, ...]:
    """What the plan leaves of each layer, in the table's order."""
    gone = removed_blocks(plan, table)
    out = {la.name: la.weight_shape[0] for la in table.layers}
    into = {la.name: la.weight_shape[-1] for la in table.layers if la.kind == "linear"}
    for group in table.groups:
        prune = plan.groups.get(group.name)
        if prune is None or group.kind == "block":
            continue
        for name in group.producers:
            out[name] = prune.keep * group.width
        for name in group.consumers:
            into[name] = prune.keep * group.width
    result = []
    for layer in table.layers:
        shape = (out[layer.name], into[layer.name]) if layer.kind == "linear" else layer.weight_shape
        lp = plan.layers.get(layer.name, LayerPlan())
        rank = lp.factorize.rank if lp.factorize else None
        result.append(EffectiveLayer(layer, shape, rank, lp.precision, layer.block in gone))
    return tuple(result)


def _plan_faults(plan: Plan, table: LayerTable) -> Iterator[str]:
    names = {g.name: g for g in table.groups}
    for name, prune in plan.groups.items():
        if name not in names:
            yield f"groups: {name}: the model has no such group{near(name, names)}"
        elif prune.keep > names[name].size:
            yield f"groups: {name}: keep must be at most {names[name].size}, but got {prune.keep}"
        elif prune.keep == 0 and names[name].kind != "block":
            yield f"groups: {name}: keep must be 1 or more (remove the block to remove all), but got 0"
        elif names[name].kind != "block" and names[name].block in removed_blocks(plan, table):
            yield f"groups: {name}: its block is removed, so nothing else can be done to it"
    known = {la.name: la for la in table.layers}
    for name in plan.layers:
        if name not in known:
            yield f"layers: {name}: the model has no such layer{near(name, known)}"
    for eff in effective_layers(plan, table):
        name, layer_plan = eff.layer.name, plan.layers.get(eff.layer.name, LayerPlan())
        if eff.removed and layer_plan != LayerPlan():
            yield f"layers: {name}: its block is removed, so nothing else can be done to it"
            continue
        if layer_plan.factorize:
            if not eff.layer.allows("factorize"):
                yield f"layers: {name}: factorize: {eff.layer.why_not['factorize']}"
            elif layer_plan.factorize.rank > min(eff.shape):
                yield f"layers: {name}: rank must be at most {min(eff.shape)}, but got {layer_plan.factorize.rank}"
        if layer_plan.quantize:
            legal = legal_precisions(eff.layer)
            if layer_plan.precision not in legal:
                yield f"layers: {name}: precision must be one of {', '.join(legal)}, but got {layer_plan.precision}"


def legal_precisions(layer: Layer) -> tuple[Precision, ...]:
    """Precisions that exist for a layer's kind, whatever the runtime; "fp32" always does."""
    if not layer.allows("quantize"):
        return ("fp32",)
    if layer.kind == "embedding":
        whole = layer.weight_shape[1] % INT4_GROUP == 0  # the runtime's 4-bit gather knows whole groups only
        return ("fp32", "int8-weights", "int4-weights") if whole else ("fp32", "int8-weights")
    if layer.kind == "conv":
        return ("fp32", "int8")
    return ("fp32", "int8-dynamic", "int8", "int4-weights")


def check_plan(plan: Plan, table: LayerTable) -> None:
    """Raise `PlanError` with every reason why the plan does not fit the model."""
    faults = list(_plan_faults(plan, table))
    if faults:
        raise PlanError("the plan does not fit this model:\n  " + "\n  ".join(faults))


def _shares(pairs: list[tuple[int, int]]) -> str:
    kept, total = sum(p[0] for p in pairs), sum(p[1] for p in pairs)
    return f"{100 * kept / total:.0f} %"


def describe(plan: Plan, table: LayerTable) -> str:
    """What was done, in a few words, such as ``heads 50 %, neurons 25 %, int8 ×24, λ 0.5, T 2``."""
    gone = removed_blocks(plan, table)
    parts = []
    for kind in ("heads", "neurons"):
        live = [g for g in table.groups if g.kind == kind and g.block not in gone]
        if any(g.name in plan.groups for g in live):
            pairs = [(plan.groups[g.name].keep if g.name in plan.groups else g.size, g.size) for g in live]
            parts.append(f"{kind} {_shares(pairs)}")
    if gone:
        which = ", ".join(str(i) for i, block in enumerate(table.blocks) if block in gone)
        parts.append(f"{len(gone)} of {len(table.blocks)} blocks removed ({which})")
    live_layers = [e for e in effective_layers(plan, table) if not e.removed]
    ranks = [e.rank for e in live_layers if e.rank is not None]
    if ranks:
        parts.append(f"rank {min(ranks)}–{max(ranks)} ×{len(ranks)}" if len(set(ranks)) > 1 else f"rank {ranks[0]}")
    for precision in PRECISIONS[1:]:
        count = sum(e.precision == precision for e in live_layers)
        if count:
            parts.append(f"{precision} ×{count}")
    if plan.distill:
        d = plan.distill
        parts.append(f"λ {d.soft_weight:.2f}, T {d.temperature:.1f}, {d.steps} steps")
    return ", ".join(parts) or "dense fp32"
