"""A transformer family as data: where its blocks keep attention, feed-forward part and norms. Makes their groups.

Knows paths, no family by name; `stream` knows what lies outside the blocks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from autocompress.layers import Group, Slice, Stub
from autocompress.weights import Stand, weight_of


@dataclass(frozen=True)
class Stream:
    """What lies on the residual stream outside the blocks, as paths from the base model; absent ones are passed over.

    Attributes:
        writers: embeddings and convolutions that write it.
        norms: on it, before and after the blocks.
        readers: linears that may read it after the blocks, from the base model or from what holds it (the head of a
            task); the first that exists is taken, so one behind another stands after it.
        parameters: added to it or put beside it, ``(1, positions, hidden)``.
    """

    writers: tuple[str, ...]
    norms: tuple[str, ...]
    readers: tuple[str, ...]
    parameters: tuple[str, ...] = ()


@dataclass(frozen=True)
class Family:
    """Where a family keeps the parts of its block, as paths from the block's module.

    A block takes the hidden states as its first argument and returns them; its attention infers the number of heads
    from the tensors, so that narrower projections still work.

    Attributes:
        blocks: class names of the block.
        layers: path from the base model to the list of blocks.
        attention: module that gives the heads their name.
        projections: query, key and value linears; or the one linear that makes all three in this order.
        output: linear that mixes the heads and writes the residual stream.
        head_width: attribute with the features per head.
        up: linears that make the neurons, the gate first; the last one gives the neurons their name.
        down: linear that reads the neurons and writes the residual stream.
        norms: the norm of the attention and that of the feed-forward part.
        pre_norm: whether nothing but its part reads a norm's output; otherwise norms lie on the stream itself.
        attention_stubs, feed_forward_stubs: what stands in their place when one of them is removed.
        stream: the residual stream outside the blocks.
        fused_width: attribute in which a fused projection's width is remembered, third of its rows; "" if none.
        causal: whether it is a decoder; families that are not are refused where a config makes them one.
    """

    blocks: tuple[str, ...]
    layers: str
    attention: str
    projections: tuple[str, ...]
    output: str
    head_width: str
    up: tuple[str, ...]
    down: str
    norms: tuple[str, str]
    pre_norm: bool
    attention_stubs: tuple[Stub, ...]
    feed_forward_stubs: tuple[Stub, ...]
    stream: Stream
    fused_width: str = ""
    causal: bool = False

    @property
    def linears(self) -> tuple[str, ...]:
        """All linears of a block; the one that writes the stream last."""
        return (*self.projections, self.output, *self.up, self.down)


@dataclass(frozen=True)
class Base:
    """One stack of a family's blocks in a model.

    Attributes:
        name: of the base model, which holds embeddings and blocks; "" if it is the model itself.
        blocks: module name to module, in order.
        whole: whether the blocks lie where the family says, so that embeddings and norms do too.
    """

    name: str
    blocks: dict[str, nn.Module]
    whole: bool


def _has_parts(family: Family, block: nn.Module) -> bool:
    """Whether a block of the right name is built as the family says; names such as TransformerBlock are common."""
    paths = (*family.linears, *family.norms)
    return all(_reaches(block, path) for path in paths) and _reaches(block, family.head_width)


def _reaches(block: nn.Module, path: str) -> bool:
    value: Any = block
    for part in path.split("."):
        if isinstance(value, Stand):  # removed from a block that was whole
            return True
        value = getattr(value, part, None)
        if value is None:
            return False
    return True


def find_bases(model: nn.Module, family: Family) -> list[Base]:
    """Each stack of the family's blocks."""
    stacks: dict[str, dict[str, nn.Module]] = {}
    for name, module in model.named_modules():
        if type(module).__name__ in family.blocks and _has_parts(family, module):
            stacks.setdefault(name.rpartition(".")[0], {})[name] = module
    bases = []
    for stack, blocks in stacks.items():
        whole = f".{stack}".endswith(f".{family.layers}")
        bases.append(Base(stack.removesuffix(family.layers).rstrip(".") if whole else stack, blocks, whole))
    return bases


def config_of(model: nn.Module, base: Base) -> Any:
    """Config of the base model, or of the model that holds it; None where there is none."""
    inner = model.get_submodule(base.name)
    return getattr(inner, "config", getattr(model, "config", None))


def is_refused(family: Family, config: Any) -> bool:
    """Whether blocks do more than the family says: cross-attention, or an encoder that is used as a decoder."""
    decodes = getattr(config, "is_decoder", False) and not family.causal
    return bool(decodes or getattr(config, "add_cross_attention", False))


def block_groups(family: Family, name: str, block: nn.Module, config: Any = None) -> list[Group]:
    """Heads, neurons, attention, feed-forward part and the whole of one block.

    Where layers differ in kind (sliding and full attention), the key-value cache has a place for each, which no other
    can take: there nothing is removed as a whole.
    """
    structures = [_heads(family, name, block), _neurons(family, name, block)]
    if len(set(getattr(config, "layer_types", None) or ())) > 1:
        return structures
    attention = (*family.projections, family.output)
    feed_forward = (*family.up, family.down)
    parts = (
        Group(f"{name}/attention", "attention", 1, removes=attention, stubs=family.attention_stubs),
        Group(f"{name}/feed_forward", "feed_forward", 1, removes=feed_forward, stubs=family.feed_forward_stubs),
    )
    whole = Group(name, "block", 1, block=name, removes=_under(name, family.linears), stubs=(Stub(name),))
    return [*structures, *(_placed(part, name) for part in parts), whole]


def block_norms(family: Family, name: str) -> Iterator[tuple[str, str]]:
    """Linears of one block with the norm whose output only they read."""
    if family.pre_norm:
        for linears, norm in ((family.projections, family.norms[0]), (family.up, family.norms[1])):
            for linear in linears:
                yield f"{name}.{linear}", f"{name}.{norm}"


def settle_base(family: Family, base: Base) -> None:
    """Bring what attentions remember in line: the width of fused projections, and their place in the cache.

    A cache has one entry per attention, and takes the length of what it holds from the first; so the attentions that
    are left are numbered from 0.
    """
    if family.fused_width:
        for block in base.blocks.values():
            owner, _, leaf = family.fused_width.rpartition(".")
            attention = block.get_submodule(owner)
            if hasattr(attention, leaf):
                setattr(attention, leaf, weight_of(block.get_submodule(family.projections[0])).shape[0] // 3)
    left = [m for block in base.blocks.values() for m in block.modules() if hasattr(m, "layer_idx")]
    for place, attention in enumerate(left):
        setattr(attention, "layer_idx", place)  # noqa: B010  (to a type checker, a module's attributes are tensors)


def _heads(family: Family, name: str, block: nn.Module) -> Group:
    """One structure is a key/value head with all query heads that share it."""
    width = _attribute(block, family.head_width)
    rows = [weight_of(block.get_submodule(path)).shape[0] for path in family.projections]
    if len(rows) == 1:
        size = rows[0] // 3 // width
        made = tuple(Slice(f"{name}.{family.projections[0]}", width, part * size * width) for part in range(3))
    else:
        size = rows[1] // width
        made = tuple(Slice(f"{name}.{p}", n // size) for p, n in zip(family.projections, rows, strict=True))
    read = weight_of(block.get_submodule(family.output)).shape[1] // size
    return Group(
        name=f"{name}.{family.attention}/heads",
        kind="heads",
        size=size,
        producers=made,
        consumers=(Slice(f"{name}.{family.output}", read),),
        block=name,
    )


def _neurons(family: Family, name: str, block: nn.Module) -> Group:
    return Group(
        name=f"{name}.{family.up[-1]}/neurons",
        kind="neurons",
        size=weight_of(block.get_submodule(family.down)).shape[1],
        producers=tuple(Slice(path) for path in _under(name, family.up)),
        consumers=(Slice(f"{name}.{family.down}"),),
        block=name,
    )


def _placed(part: Group, name: str) -> Group:
    """A part of a block whose paths start at the block, as names in the model."""
    stubs = tuple(Stub(f"{name}.{stub.name}", stub.gives) for stub in part.stubs)
    return replace(part, block=name, removes=_under(name, part.removes), stubs=stubs)


def _under(name: str, paths: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"{name}.{path}" for path in paths)


def _attribute(module: nn.Module, path: str) -> Any:
    value: Any = module
    for part in path.split("."):
        value = getattr(value, part)
    return value
