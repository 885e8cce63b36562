"""Plan: a whole candidate, its fingerprint, and its JSON. Names and patterns are resolved by `plan_from_json`."""

from __future__ import annotations

import fnmatch
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from functools import cache, cached_property
from types import MappingProxyType
from typing import Any, Literal

from autocompress.errors import PlanError, near
from autocompress.layers import LayerTable
from autocompress.plan.choices import (
    Distill,
    Factorize,
    GlobalMask,
    LayerPlan,
    Lora,
    Mask,
    Prune,
    Quantize,
    Terms,
    is_count,
    one_of,
    records,
)
from autocompress.plan.recipes import RECIPES, Recipe


@dataclass(frozen=True)
class Plan:
    """A whole candidate. The empty plan is the dense model.

    Attributes:
        groups: group name to what stays of it.
        layers: layer name to its zeros, rank and bits.
        distill: the recovery.
        seed: of everything random.
        mask: zeros spread over all layers together.
        repair: "dense": consumers are re-solved from the dense model's inputs, each on its own; "sequential": again
            from the inputs that their compressed predecessors give them.
        learn: a recipe that learns what to remove, before all else; its result is a plan with `init`.
        init: sha256 of whole-model weights in the bank that take the place of the shaped ones.
    """

    groups: Mapping[str, Prune] = field(default_factory=dict)
    layers: Mapping[str, LayerPlan] = field(default_factory=dict)
    distill: Distill | None = None
    seed: int = 0
    mask: GlobalMask | None = None
    repair: Literal["dense", "sequential"] = "dense"
    learn: Recipe | None = None
    init: str | None = None

    def __post_init__(self) -> None:
        """Sort and freeze the mappings; drop layer plans that say nothing; refuse what contradicts itself."""
        nothing = LayerPlan()
        said = {name: lp for name, lp in self.layers.items() if lp != nothing}
        object.__setattr__(self, "groups", MappingProxyType(dict(sorted(self.groups.items()))))
        object.__setattr__(self, "layers", MappingProxyType(dict(sorted(said.items()))))
        faults = [*self._strangers()] or [*self._contradictions()]
        faults += one_of(self, repair=("dense", "sequential"))
        if not is_count(self.seed, 0):
            faults.append(f"seed: must be an integer of 0 or more, but got {self.seed!r}")
        if self.init is not None and not (isinstance(self.init, str) and re.fullmatch("[0-9a-f]{64}", self.init)):
            faults.append(f"init: must be a sha256, 64 hexadecimal digits, but got {self.init!r}")
        if faults:
            raise PlanError("; ".join(faults))

    @property
    def draws(self) -> bool:
        """Whether what stays of the model depends on the seed: it is learned, or drawn at random."""
        masks = [self.mask, *(lp.mask for lp in self.layers.values())]
        scores = [prune.score for prune in self.groups.values()] + [mask.score for mask in masks if mask]
        return self.learn is not None or "random" in scores

    def _strangers(self) -> Iterable[str]:
        """Faults of what is no record of the right kind."""
        yield from records(self, distill=(Distill,), mask=(GlobalMask,), learn=tuple(RECIPES.values()))
        for place, kind, held in (("groups", Prune, self.groups), ("layers", LayerPlan, self.layers)):
            for name, value in held.items():
                if not isinstance(value, kind):
                    yield f"{place}: {name}: must be {kind.__name__}, but got {value!r}"

    def _contradictions(self) -> Iterable[str]:
        masked = [name for name, lp in self.layers.items() if lp.mask]
        if self.mask and masked:
            yield f"mask: covers all layers, so layer {masked[0]} can have none of its own"
        if self.mask and any(lp.factorize for lp in self.layers.values()):
            name = next(name for name, lp in self.layers.items() if lp.factorize)
            yield f"mask: covers all layers, so layer {name} cannot be factorized"
        if self.learn and (self.groups or self.mask or masked or self.init):
            yield "learn: finds groups and masks itself, so the plan can give no groups, mask or init"
        if self.learn and self.repair != "dense":
            yield "learn: repairs nothing, so repair must be 'dense'"
        if self.init:
            yield from self._beside_init()
        if self.mask and self.distill and self.distill.lora:
            yield "distill: lora adds to weights without zeros only, and mask leaves none"
        given = [n for n, p in self.groups.items() if p.score == "given"]
        given += [n for n in masked if self.layers[n].mask.score == "given"]  # type: ignore[union-attr]
        if given and not self.init:
            yield f"{given[0]}: score 'given' needs the plan's init"
        factorized = next((name for name, lp in self.layers.items() if lp.factorize), None)
        if self.learn and factorized:
            yield f"learn: finds whole weights, so layer {factorized} cannot be factorized"
        if self.distill and self.distill.fake_quantize:
            yield from self._unlearnable()

    def _beside_init(self) -> Iterable[str]:
        """What would be asked of weights that are already there."""
        if self.mask or self.repair != "dense":
            yield "init: gives the weights as they are, so mask and repair cannot be asked for beside it"
        for name, prune in self.groups.items():
            if prune.score != "given" and prune.keep:
                yield f"groups: {name}: score must be 'given' beside init, but got {prune.score!r}"
        for name, lp in self.layers.items():
            if lp.mask and lp.mask.score != "given":
                yield f"layers: {name}: mask: score must be 'given' beside init, but got {lp.mask.score!r}"

    def _unlearnable(self) -> Iterable[str]:
        """What quantization-aware training cannot go with."""
        rounded = {name: lp.quantize for name, lp in self.layers.items() if lp.quantize}
        if not rounded:
            yield "distill: fake_quantize needs layers with quantize"
        for name, quantize in rounded.items():
            if quantize.rounding == "gptq" or quantize.bias_correction:
                yield (
                    f"distill: fake_quantize trains on plainly rounded weights, which gptq or bias_correction of "
                    f"{name} would undo"
                )
                return

    def __reduce__(self) -> tuple[type[Plan], tuple[Any, ...]]:
        """Pickled and copied by its values, since frozen mappings cannot be."""
        values = (getattr(self, item.name) for item in fields(self))
        return Plan, tuple(dict(value) if isinstance(value, Mapping) else value for value in values)

    def __hash__(self) -> int:
        """Hash of the fingerprint, since mappings have none."""
        return hash(self.fingerprint)

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits, the same in every process."""
        text = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def to_json(self) -> dict[str, Any]:
        """Plain data that `plan_from_json` reads back; what is default is left out."""
        data = _plain(self)
        if self.learn:
            kind = next(name for name, cls in RECIPES.items() if type(self.learn) is cls)
            data["learn"] = {"recipe": kind, **data["learn"]}
        return data


def _plain(record: Any) -> dict[str, Any]:
    """Fields of a record that differ from their defaults."""
    result: dict[str, Any] = {}
    for name, default in _defaults(type(record)):  # type: ignore[arg-type]
        value = getattr(record, name)
        if isinstance(value, MappingProxyType):
            if value:
                result[name] = {key: _plain(inner) for key, inner in value.items()}
        elif hasattr(value, "__dataclass_fields__"):
            result[name] = _plain(value)
        elif value != default:
            result[name] = value
    return result


@cache
def _defaults(record: type) -> tuple[tuple[str, Any], ...]:
    """Names and defaults of a record's fields."""
    return tuple((item.name, item.default) for item in fields(record))


#: Fields that hold a record of their own.
_NESTED: dict[type, dict[str, type]] = {
    LayerPlan: {"mask": Mask, "factorize": Factorize, "quantize": Quantize},
    Distill: {"terms": Terms, "lora": Lora},
}


def _mapping(data: object, where: str) -> Mapping[str, Any]:
    if not isinstance(data, Mapping):
        raise PlanError(f"{where}: expected an object, but got {data!r}")
    for key in data:
        if not isinstance(key, str):
            raise PlanError(f"{where}: keys must be text, but got {key!r}")
    return data


def _build(kind: type, data: object, where: str) -> Any:
    data = _mapping(data, where)
    legal = kind.__dataclass_fields__  # type: ignore[attr-defined]
    values = {}
    for key, value in data.items():
        if key not in legal:
            raise PlanError(f"{where}: unknown key {key!r}{near(key, legal)}")
        inner = _NESTED.get(kind, {}).get(key)
        values[key] = _build(inner, value, f"{where}: {key}") if inner and value is not None else value
    missing = [name for name, item in legal.items() if item.default is MISSING and name not in values]
    if missing:
        raise PlanError(f"{where}: {kind.__name__} needs {' and '.join(repr(name) for name in missing)}")
    try:
        return kind(**values)
    except (PlanError, TypeError, OverflowError) as error:
        raise PlanError(f"{where}: {error}") from None


def _recipe(data: object, where: str) -> Recipe:
    values = dict(_mapping(data, where))
    name = values.pop("recipe", None)
    if name not in RECIPES:
        raise PlanError(f"{where}: recipe must be one of {', '.join(RECIPES)}, but got {name!r}")
    built: Recipe = _build(RECIPES[name], values, where)
    return built


def _resolve(data: Mapping[str, Any], names: Iterable[str] | None, where: str) -> dict[str, Any]:
    """Patterns spelt out; an exact name goes before a pattern, and a later pattern before an earlier one."""
    if names is None:
        return dict(data)
    known = list(names)
    patterns = {key: value for key, value in data.items() if key not in known and any(sign in key for sign in "*?[")}
    resolved: dict[str, Any] = {}
    for pattern, value in patterns.items():
        found = [name for name in known if fnmatch.fnmatchcase(name, pattern)]
        if not found:
            raise PlanError(f"{where}: pattern {pattern!r} matches nothing in this model{near(pattern, known)}")
        resolved.update(dict.fromkeys(found, value))
    return {**resolved, **{key: value for key, value in data.items() if key not in patterns}}


def plan_from_json(data: object, source: str = "plan", table: LayerTable | None = None) -> Plan:
    """Read a plan; raises `PlanError` naming `source`, the key and the value.

    Args:
        data: what `Plan.to_json` gives, or a user writes.
        source: file or the like, for messages.
        table: of the model; with it, keys of ``groups`` and ``layers`` may be patterns such as ``"*.mlp.fc1"``.
    """
    data = _mapping(data, source)
    for key in data:
        if key not in Plan.__dataclass_fields__:
            raise PlanError(f"{source}: unknown key {key!r}{near(key, Plan.__dataclass_fields__)}")
    groups = _resolve(
        _mapping(data.get("groups", {}), f"{source}: groups"),
        [g.name for g in table.groups] if table else None,
        f"{source}: groups",
    )
    layers = _resolve(
        _mapping(data.get("layers", {}), f"{source}: layers"),
        [la.name for la in table.layers] if table else None,
        f"{source}: layers",
    )
    values: dict[str, Any] = {key: data[key] for key in ("repair", "init", "seed") if key in data}
    for key, kind in (("mask", GlobalMask), ("distill", Distill)):
        if data.get(key) is not None:
            values[key] = _build(kind, data[key], f"{source}: {key}")
    if data.get("learn") is not None:
        values["learn"] = _recipe(data["learn"], f"{source}: learn")
    made_groups = {name: _build(Prune, value, f"{source}: groups: {name}") for name, value in groups.items()}
    made_layers = {name: _build(LayerPlan, value, f"{source}: layers: {name}") for name, value in layers.items()}
    try:
        return Plan(made_groups, made_layers, **values)
    except PlanError as error:
        raise PlanError(f"{source}: {error}") from None
