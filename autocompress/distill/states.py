"""What goes on inside a model while it answers: outputs of its blocks, and queries, keys and values of the last one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from autocompress.errors import ModelError
from autocompress.layers import Group, LayerTable, Slice
from autocompress.survey import hooked
from autocompress.weights import Stand


@dataclass(frozen=True)
class Watched:
    """Which modules of a model are listened to.

    Attributes:
        blocks: modules of the blocks that the model still has, in order.
        places: of these, among all the blocks of the dense model.
        depth: number of blocks of the dense model.
        projections: where queries, keys and values of its last attention come from, in this order; maybe empty.
        causal: whether that attention sees no later tokens.
    """

    blocks: tuple[str, ...]
    places: tuple[int, ...]
    depth: int
    projections: tuple[Slice, ...] = ()
    causal: bool = False


@dataclass
class States:
    """What a model's last forward went through.

    Attributes:
        hidden: block to its output ``(n, t, width)``.
        raw: module to its output, of the projections; fused ones are whole here.
    """

    hidden: dict[str, Tensor] = field(default_factory=dict)
    raw: dict[str, Tensor] = field(default_factory=dict)

    def projections(self, slices: tuple[Slice, ...]) -> tuple[Tensor, ...]:
        """Queries, keys and values ``(n, t, width)``, cut out of fused layers."""
        return tuple(_cut(self.raw[item.name], item, slices) for item in slices)


def _cut(output: Tensor, item: Slice, slices: tuple[Slice, ...]) -> Tensor:
    """One slice of a layer's output; what is left of a fused layer is shared out as the slices' widths are."""
    fused = sorted((s for s in slices if s.name == item.name), key=lambda s: s.offset)
    share = output.shape[-1] // sum(s.width for s in fused)
    start = share * sum(s.width for s in fused[: fused.index(item)])
    return output[..., start : start + share * item.width]


def what_to_watch(model: nn.Module, table: LayerTable, relations: bool, whose: str) -> Watched:
    """The blocks that a model still has and, if asked, the projections of its last attention.

    Args:
        model: the dense or the shaped one that the table describes.
        table: of the dense model.
        relations: whether queries, keys and values are wanted.
        whose: "student" or "teacher", for messages.

    Raises:
        ModelError: there are no blocks, or no heads, to look at.
    """
    if not table.blocks:
        raise ModelError(
            f"distillation terms on hidden states need to know the blocks of the {whose}, {type(model).__name__}, and "
            "no adapter finds any (see docs/adapters.md); leave terms out"
        )
    places = tuple(i for i, name in enumerate(table.blocks) if not isinstance(model.get_submodule(name), Stand))
    blocks = tuple(table.blocks[i] for i in places)
    if not blocks:
        raise ModelError(f"all {len(table.blocks)} blocks of the {whose} are removed, so no hidden states are left")
    if not relations:
        return Watched(blocks, places, len(table.blocks))
    heads = [g for g in table.groups if g.kind == "heads" and all(_has(model, s.name) for s in g.producers)]
    if not heads or len(heads[-1].producers) != 3:
        raise ModelError(
            f"the term relations needs queries, keys and values, but the {whose}, {type(model).__name__}, has no "
            "group of attention heads left; leave relations at 0"
        )
    return Watched(blocks, places, len(table.blocks), heads[-1].producers, _is_causal(model, heads[-1]))


def _has(model: nn.Module, name: str) -> bool:
    try:
        model.get_submodule(name)
    except AttributeError:
        return False
    return True


def _is_causal(model: nn.Module, group: Group) -> bool:
    """What the attention module that holds the projections says of itself."""
    path = group.producers[0].name
    while path:
        path = path.rpartition(".")[0]
        causal = getattr(model.get_submodule(path), "is_causal", None)
        if isinstance(causal, bool):
            return causal
    return False


@contextlib.contextmanager
def watching(model: nn.Module, watched: Watched) -> Iterator[States]:
    """States that each forward of the model fills anew; afterwards nothing listens any more."""
    states = States()

    def note(kept: dict[str, Tensor], name: str) -> Any:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            kept[name] = output if isinstance(output, Tensor) else output[0]

        return model.get_submodule(name).register_forward_hook(hook)

    blocks = (note(states.hidden, name) for name in watched.blocks)
    projections = (note(states.raw, name) for name in {item.name for item in watched.projections})
    with hooked(blocks), hooked(projections):
        yield states
