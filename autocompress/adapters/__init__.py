"""Which modules of a model family can be removed together. One short file per family; see docs/adapters.md."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from autocompress.adapters import bert, channels, distilbert, gpt2, llama, vit
from autocompress.adapters.family import (
    Family,
    block_groups,
    block_norms,
    config_of,
    find_bases,
    is_refused,
    settle_base,
)
from autocompress.adapters.stream import hidden_group
from autocompress.layers import Group

FAMILIES: tuple[Family, ...] = (bert.FAMILY, distilbert.FAMILY, vit.FAMILY, gpt2.FAMILY, llama.FAMILY)


def find_groups(model: nn.Module, example_inputs: Mapping[str, Tensor]) -> tuple[Group, ...]:
    """What of the model can be removed together: a known family's structures, or else the channels of convolutions.

    Args:
        model: any module; not changed.
        example_inputs: keyword arguments of one query, to try what the description of a family promises.
    """
    found = [group for family in FAMILIES for group in _transformer_groups(model, family, example_inputs)]
    return tuple(found or channels.groups(model, example_inputs))


def find_norms(model: nn.Module) -> dict[str, str]:
    """Linears with the norm whose output only they and their like read."""
    found = ((family, base) for family in FAMILIES for base in find_bases(model, family))
    return dict(pair for family, base in found for name in base.blocks for pair in block_norms(family, name))


def settle(model: nn.Module) -> None:
    """Bring what modules remember of their sizes in line with their weights, after structures were removed."""
    for family in FAMILIES:
        for base in find_bases(model, family):
            settle_base(family, base)


def _transformer_groups(model: nn.Module, family: Family, example_inputs: Mapping[str, Tensor]) -> list[Group]:
    groups: list[Group] = []
    for base in find_bases(model, family):
        config = config_of(model, base)
        if is_refused(family, config):
            continue
        for name, block in base.blocks.items():
            groups += block_groups(family, name, block, config)
        hidden = hidden_group(model, family, base, example_inputs)
        groups += [hidden] if hidden else []
    return groups
