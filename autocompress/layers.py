"""What of a model can be compressed, as plain data. Knows names and shapes, holds no tensor."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Literal

from autocompress.errors import ModelError, SpaceError, near

LayerKind = Literal["linear", "conv", "embedding"]
GroupKind = Literal["heads", "neurons", "block"]


@dataclass(frozen=True)
class Layer:
    """One weight matrix that a plan may change.

    Attributes:
        name: dotted module name.
        kind: what the module is.
        weight_shape: linear ``(out_features, in_features)``, conv ``(out, in/groups, kh, kw)``,
            embedding ``(rows, features)``.
        params: number of weights, bias included.
        macs: multiply-adds per workload query (one multiply-add = 1); 0 for embeddings.
        block: name of the removable block that holds the layer, or "".
        why_not: technique ("quantize", "factorize") to the reason that it is not offered here.
    """

    name: str
    kind: LayerKind
    weight_shape: tuple[int, ...]
    params: int
    macs: int
    block: str = ""
    why_not: Mapping[str, str] = field(default_factory=dict)

    def allows(self, technique: str) -> bool:
        """Whether `technique` may be applied to this layer."""
        return technique not in self.why_not


@dataclass(frozen=True)
class Group:
    """A unit of structural choice: structures that can only be removed together.

    Attributes:
        name: module name and kind, such as ``bert.encoder.layer.0.attention/heads``.
        kind: "heads", "neurons" (both counted in structures) or "block" (kept or removed).
        size: number of structures; 1 for a block.
        width: rows of each producer, and columns of each consumer, that one structure owns.
        producers: linears whose output rows belong to the structures.
        consumers: linears whose input columns belong to the structures.
        block: name of the block that holds the group ("" if none); for a block, its own module.
    """

    name: str
    kind: GroupKind
    size: int
    width: int = 1
    producers: tuple[str, ...] = ()
    consumers: tuple[str, ...] = ()
    block: str = ""


@dataclass(frozen=True)
class LayerTable:
    """All layers and groups of one model, in forward order of their modules."""

    layers: tuple[Layer, ...]
    groups: tuple[Group, ...]
    total_params: int

    @cached_property
    def _by_name(self) -> dict[str, Layer]:
        return {layer.name: layer for layer in self.layers}

    @cached_property
    def _groups_by_name(self) -> dict[str, Group]:
        return {group.name: group for group in self.groups}

    def layer(self, name: str) -> Layer:
        """The layer called `name`; raises `ModelError` that shows near names."""
        if name not in self._by_name:
            raise ModelError(f"the model has no layer {name!r}{near(name, self._by_name)}")
        return self._by_name[name]

    def group(self, name: str) -> Group:
        """The group called `name`; raises `ModelError` that shows near names."""
        if name not in self._groups_by_name:
            raise ModelError(f"the model has no group {name!r}{near(name, self._groups_by_name)}")
        return self._groups_by_name[name]

    def match(self, pattern: str) -> tuple[Layer, ...]:
        """Layers whose name fits the glob `pattern`; raises `SpaceError` when none does."""
        found = tuple(la for la in self.layers if fnmatch.fnmatchcase(la.name, pattern))
        if not found:
            raise SpaceError(
                f"layer pattern {pattern!r} matches no layer of this model{near(pattern.strip('*'), self._by_name)}"
            )
        return found

    @property
    def blocks(self) -> tuple[str, ...]:
        """Names of the removable blocks, in order."""
        return tuple(g.name for g in self.groups if g.kind == "block")

    def to_json(self) -> dict[str, Any]:
        """Plain data that `from_json` reads back."""
        return asdict(self)

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> LayerTable:
        """Inverse of `to_json`."""
        layers = tuple(Layer(**{**la, "weight_shape": tuple(la["weight_shape"])}) for la in data["layers"])
        groups = tuple(
            Group(**{**g, "producers": tuple(g["producers"]), "consumers": tuple(g["consumers"])})
            for g in data["groups"]
        )
        return LayerTable(layers, groups, data["total_params"])
