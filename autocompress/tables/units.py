"""What is timed alone, and what tells two such parts apart. Plain facts of a LayerTable and a Plan; no torch.

A *unit* is the module that runtimes fuse within: a transformer's or residual block, or a layer that belongs to none.
Its *signature* is all that its latency depends on, so that equal blocks at different depths are timed once.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from autocompress.errors import MeasureError
from autocompress.layers import Group, Layer, LayerTable
from autocompress.plan import EffectiveLayer, Plan, Quantize, effective_layers, removed_blocks
from autocompress.plan.check import factor_size

#: Layers that a module may hold to be taken for one block, where no adapter says what a block is.
MOST_LAYERS = 6


@dataclass(frozen=True)
class Form:
    """What a plan leaves of one layer of a unit, as far as its latency depends on it.

    Zeros are left out: no runtime that loads these files skips them.

    Attributes:
        role: the layer's name within the unit.
        shape: of its weight.
        option: how it computes: its precision, and what adds nodes to it; "fp32" is plain.
        rank: of two factors, or 0.
        split: of the factors.
    """

    role: str
    shape: tuple[int, ...]
    option: str = "fp32"
    rank: int = 0
    split: str = "channel"

    @property
    def weights(self) -> int:
        """Numbers in its weight, or in its two factors."""
        return self.rank * factor_size(self.shape, self.split) if self.rank else math.prod(self.shape)


@dataclass(frozen=True)
class Signature:
    """What the latency of a unit depends on.

    Attributes:
        family: digest of what the dense unit is.
        forms: of the layers that are left, in the unit's order; none where only norms are.
    """

    family: str
    forms: tuple[Form, ...]

    @property
    def text(self) -> str:
        """One line that is the same in every process."""
        forms = [[f.role, list(f.shape), f.option, *([f.rank, f.split] if f.rank else [])] for f in self.forms]
        return json.dumps([self.family, forms], separators=(",", ":"))


def read_signature(text: str) -> Signature:
    """Inverse of `Signature.text`."""
    family, forms = json.loads(text)
    return Signature(family, tuple(Form(role, tuple(shape), *rest) for role, shape, *rest in forms))


@dataclass(frozen=True)
class Unit:
    """A module that is timed alone.

    Attributes:
        name: dotted module name.
        layers: names of its layers, in order.
        dense: signature of the uncompressed unit.
        cells: roles of layers that share structures within the unit: heads, neurons, a block's inner channels.
        inner: role to whether its outputs, and its inputs, are structures of a cell; others lie on the stream.
        positions: role to the places of one query at which the layer computes; 0 for embeddings.
    """

    name: str
    layers: tuple[str, ...]
    dense: Signature
    cells: tuple[tuple[str, ...], ...]
    inner: Mapping[str, tuple[bool, bool]]
    positions: Mapping[str, int]

    @property
    def roles(self) -> tuple[str, ...]:
        """Names of its layers within it, in order."""
        return tuple(form.role for form in self.dense.forms)

    @property
    def is_block(self) -> bool:
        """Whether it is more than a layer, so that values may run around it as well."""
        return len(self.layers) > 1

    def width(self, role: str) -> int:
        """Outputs of one of its uncompressed layers."""
        return next(form.shape[0] for form in self.dense.forms if form.role == role)

    def to_json(self) -> dict[str, Any]:
        """Plain data that `unit_from_json` reads back."""
        return asdict(self)


def unit_from_json(data: Mapping[str, Any]) -> Unit:
    """Inverse of `Unit.to_json`."""
    forms = (Form(**{**form, "shape": tuple(form["shape"])}) for form in data["dense"]["forms"])
    return Unit(
        data["name"],
        tuple(data["layers"]),
        Signature(data["dense"]["family"], tuple(forms)),
        tuple(tuple(cell) for cell in data["cells"]),
        {role: (bool(out), bool(into)) for role, (out, into) in data["inner"].items()},
        dict(data["positions"]),
    )


def units_of(table: LayerTable, single: frozenset[str] = frozenset()) -> tuple[Unit, ...]:
    """The units of a model, in forward order.

    Blocks are those that adapters name; elsewhere a module that itself holds two layers or more, and no more than
    `MOST_LAYERS` in all; else the layer. Layers that the model does not call are left out.

    Args:
        table: of the dense model.
        single: modules whose layers are to be units of their own.
    """
    homes = _homes(table)
    members: dict[str, list[Layer]] = {}
    for layer in table.layers:
        if layer.macs or layer.kind == "embedding":
            home = homes[layer.name]
            members.setdefault(layer.name if home in single else home, []).append(layer)
    return tuple(_unit(name, layers, table) for name, layers in members.items())


def _homes(table: LayerTable) -> dict[str, str]:
    blocks = {group.block for group in table.groups if group.block}
    blocks |= {layer.block for layer in table.layers if layer.block}
    homes = {la.name: next((b for b in blocks if la.name.startswith(b + ".")), "") for la in table.layers}
    free = [name for name, block in homes.items() if not block]
    holders = [
        holder
        for holder, count in Counter(name.rpartition(".")[0] for name in free).items()
        if holder and count > 1 and sum(la.name.startswith(holder + ".") for la in table.layers) <= MOST_LAYERS
    ]
    for name in free:
        around = [holder for holder in holders if name.startswith(holder + ".")]
        homes[name] = min(around, key=len, default=name)
    return homes


def _unit(name: str, layers: list[Layer], table: LayerTable) -> Unit:
    names = {layer.name: _role(layer.name, name) for layer in layers}
    local = [group for group in table.groups if not group.removable and _touches(group) <= set(names)]
    inner = {
        role: (_makes(local, layer), any(item.name == layer for group in local for item in group.consumers))
        for layer, role in names.items()
    }
    forms = tuple(Form(names[layer.name], layer.weight_shape) for layer in layers)
    dense = Signature(_family(layers, names, table), forms)
    positions = {names[layer.name]: _positions(layer) for layer in layers}
    cells = _cells(local, names)
    return Unit(name, tuple(names), dense, cells, inner, positions)


def _positions(layer: Layer) -> int:
    return layer.macs // math.prod(layer.weight_shape)


def _role(layer: str, unit: str) -> str:
    return layer.removeprefix(unit).lstrip(".")


def _touches(group: Group) -> set[str]:
    return {item.name for item in (*group.producers, *group.consumers)}


def _makes(groups: list[Group], layer: str) -> bool:
    return any(item.name == layer for group in groups for item in (*group.producers, *group.carriers))


def _cells(local: list[Group], names: Mapping[str, str]) -> tuple[tuple[str, ...], ...]:
    """Layers joined by the groups that lie within the unit; a layer of none is alone."""
    parts = [{name} for name in names]
    for group in local:
        joined = _touches(group) | {item.name for item in group.carriers if item.name in names}
        parts = [part for part in parts if not part & joined] + [
            set().union(*(part for part in parts if part & joined))
        ]
    ordered = [tuple(names[name] for name in names if name in part) for part in parts]
    roles = list(names.values())
    return tuple(sorted(ordered, key=lambda part: roles.index(part[0])))


def _family(layers: list[Layer], names: Mapping[str, str], table: LayerTable) -> str:
    """Digest of shapes, positions and groups: blocks that differ in one of them are no twins."""
    facts: list[Any] = [(names[la.name], la.kind, la.weight_shape, _positions(la), la.groups) for la in layers]
    for group in table.groups:
        here = sorted(names[name] for name in _touches(group) if name in names)
        if here:
            facts.append((group.kind, group.size, here))
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]


def option_of(quantize: Quantize | None) -> str:
    """How a layer computes: its precision, and those of its settings that add nodes."""
    if quantize is None:
        return "fp32"
    extras = [
        *(["clipped"] if quantize.activation_bits < 8 else []),
        *(["smoothed"] if quantize.smooth is not None else []),
        *(["offset"] if not quantize.symmetric else []),
    ]
    return "+".join([quantize.precision, *extras])


def signatures(units: tuple[Unit, ...], plan: Plan, table: LayerTable) -> dict[str, Signature]:
    """Signature of every unit that the plan does not remove as a whole, by the unit's name.

    Raises:
        MeasureError: the plan names a recipe whose result is not known yet.
    """
    if plan.learn is not None:
        raise MeasureError("the plan learns what to remove, so its latency is not known before")
    left = {effective.layer.name: effective for effective in effective_layers(plan, table)}
    gone = removed_blocks(plan, table)
    return {
        unit.name: Signature(unit.dense.family, tuple(_forms(unit, left))) for unit in units if unit.name not in gone
    }


def _forms(unit: Unit, left: Mapping[str, EffectiveLayer]) -> Iterator[Form]:
    for role, name in zip(unit.roles, unit.layers, strict=True):
        layer = left[name]
        if layer.removed:
            continue
        option = option_of(layer.quantize)
        if layer.factorize:
            yield Form(role, layer.shape, option, layer.factorize.rank, layer.factorize.split)
        else:
            yield Form(role, layer.shape, option)
