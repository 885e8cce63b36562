"""What of a model can be compressed, as plain data. Knows names and shapes, holds no tensor."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Literal

from autocompress.errors import ModelError, SpaceError, near

LayerKind = Literal["linear", "conv", "embedding"]
GroupKind = Literal["heads", "neurons", "channels", "hidden", "attention", "feed_forward", "block"]

#: Kinds that are kept or removed as a whole.
REMOVABLE = ("attention", "feed_forward", "block")


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
        groups: of a convolution; 1 for all else.
        why_not: technique ("quantize", "factorize", "mask") to the reason that it is not offered here.
        shares: name of the first layer that holds the same weight; "" for that one, and where it is this layer's own.
    """

    name: str
    kind: LayerKind
    weight_shape: tuple[int, ...]
    params: int
    macs: int
    block: str = ""
    why_not: Mapping[str, str] = field(default_factory=dict)
    groups: int = 1
    shares: str = ""

    def allows(self, technique: str) -> bool:
        """Whether `technique` may be applied to this layer."""
        return technique not in self.why_not


@dataclass(frozen=True)
class Slice:
    """Where the structures of a group lie in one weight.

    Attributes:
        name: dotted name of a module; or of a parameter that belongs to no layer, such as a class token.
        width: neighbouring positions that one structure owns.
        offset: first position of the first structure; fused weights hold several slices.
        index: the positions written out, `width` per structure, where they do not lie side by side.
        axis: of a bare parameter; a module's own axis follows from its role.
    """

    name: str
    width: int = 1
    offset: int = 0
    index: tuple[int, ...] = ()
    axis: int = 0

    def positions(self, structures: Iterable[int]) -> list[int]:
        """Positions of some structures, in their order."""
        spans = (range(s * self.width, (s + 1) * self.width) for s in structures)
        if self.index:
            return [self.index[i] for span in spans for i in span]
        return [self.offset + i for span in spans for i in span]


@dataclass(frozen=True)
class Stub:
    """What stands where a part was removed.

    Attributes:
        name: module that it replaces.
        gives: "input" (its first argument, unchanged) or "constant" (a vector, the removed module's mean output
            where repair is on); with "-pair", None follows, as attention modules answer.
    """

    name: str
    gives: Literal["input", "input-pair", "constant", "constant-pair"] = "input"


@dataclass(frozen=True)
class Group:
    """A unit of structural choice: structures that can only be removed together.

    Attributes:
        name: module name and kind, such as ``bert.encoder.layer.0.attention/heads``; a block's is its module.
        kind: "heads", "neurons", "channels" and "hidden" are counted in structures; "attention", "feed_forward"
            and "block" are kept or removed as a whole (size 1).
        size: number of structures.
        producers: weights that make the structures: output rows of linears and convolutions, features of embeddings.
        consumers: weights that read them: input columns of linears, input channels of convolutions.
        carriers: what handles each structure alone: norms, depthwise convolutions, bare parameters.
        block: name of the block that holds the group ("" if none); for a block, its own module.
        removes: layers that are gone when the group is removed as a whole; the last one writes the stream.
        stubs: what stands in their place.
    """

    name: str
    kind: GroupKind
    size: int
    producers: tuple[Slice, ...] = ()
    consumers: tuple[Slice, ...] = ()
    carriers: tuple[Slice, ...] = ()
    block: str = ""
    removes: tuple[str, ...] = ()
    stubs: tuple[Stub, ...] = ()

    @property
    def removable(self) -> bool:
        """Whether it is kept or removed as a whole."""
        return self.kind in REMOVABLE


@dataclass(frozen=True)
class LayerTable:
    """All layers and groups of one model, in forward order of their modules.

    Attributes:
        layers, groups: what can be compressed.
        total_params: of the model.
        norms: layer to the norm whose output nothing but it and its like reads; a scale can move from one to the other.
    """

    layers: tuple[Layer, ...]
    groups: tuple[Group, ...]
    total_params: int
    norms: Mapping[str, str] = field(default_factory=dict)

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

    @property
    def writes_tokens(self) -> bool:
        """Whether a head outside the blocks scores the very tokens that are read, as language models do.

        Tokens are what the first embedding looks up; a classifier may well have as many classes as there are types.
        """
        tokens = next((layer.weight_shape for layer in self.layers if layer.kind == "embedding"), None)
        return any(la.kind == "linear" and not la.block and la.weight_shape == tokens for la in self.layers)

    def to_json(self) -> dict[str, Any]:
        """Plain data that `from_json` reads back."""
        return asdict(self)

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> LayerTable:
        """Inverse of `to_json`."""
        layers = tuple(Layer(**{**la, "weight_shape": tuple(la["weight_shape"])}) for la in data["layers"])
        groups = tuple(
            Group(
                **{
                    **g,
                    **{role: tuple(_slice(x) for x in g[role]) for role in ("producers", "consumers", "carriers")},
                    "removes": tuple(g["removes"]),
                    "stubs": tuple(Stub(**x) for x in g["stubs"]),
                }
            )
            for g in data["groups"]
        )
        return LayerTable(layers, groups, data["total_params"], data["norms"])


def _slice(data: Mapping[str, Any]) -> Slice:
    return Slice(**{**data, "index": tuple(data["index"])})
