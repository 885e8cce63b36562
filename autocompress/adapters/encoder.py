"""What encoder families share: a block with one attention and one feed-forward part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from autocompress.layers import Group


@dataclass(frozen=True)
class EncoderBlock:
    """Where a family keeps the parts of its block, as paths from the block's module.

    A block takes the hidden states as its first positional argument and returns them, so that
    it can be replaced by a module that hands its input on.

    Attributes:
        attention: module that gives the heads group its name.
        projections: query, key and value linears.
        output: linear that mixes the heads.
        up, down: the two feed-forward linears.
        head_width: attribute path of the features per head.
    """

    attention: str
    projections: tuple[str, str, str]
    output: str
    up: str
    down: str
    head_width: str

    def groups(self, name: str, block: nn.Module) -> list[Group]:
        """The three groups of one block."""
        width = _get(block, self.head_width)
        size = _get(block, self.projections[0]).out_features // width
        neurons = _get(block, self.up).out_features
        heads = Group(
            name=f"{name}.{self.attention}/heads",
            kind="heads",
            size=size,
            width=width,
            producers=tuple(f"{name}.{p}" for p in self.projections),
            consumers=(f"{name}.{self.output}",),
            block=name,
        )
        feed_forward = Group(
            name=f"{name}.{self.up}/neurons",
            kind="neurons",
            size=neurons,
            producers=(f"{name}.{self.up}",),
            consumers=(f"{name}.{self.down}",),
            block=name,
        )
        return [heads, feed_forward, Group(name=name, kind="block", size=1, block=name)]


def _get(module: nn.Module, path: str) -> Any:
    value: Any = module
    for part in path.split("."):
        value = getattr(value, part)
    return value


def find_blocks(model: nn.Module, class_names: Sequence[str], pattern: EncoderBlock) -> list[Group]:
    """Groups of every module whose class is named so."""
    found = [(name, module) for name, module in model.named_modules() if type(module).__name__ in class_names]
    return [group for name, module in found for group in pattern.groups(name, module)]
