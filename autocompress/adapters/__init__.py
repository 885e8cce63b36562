"""Which modules of a model family can be removed together. One short file per family; see docs/adapters.md."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from autocompress.adapters import bert, vit
from autocompress.layers import Group

#: Asked in order; each returns the groups that it knows in the model.
ADAPTERS: tuple[Callable[[nn.Module], list[Group]], ...] = (bert.groups, vit.groups)


def find_groups(model: nn.Module) -> tuple[Group, ...]:
    """Heads, neurons and blocks of the model; empty when no family fits (layers can still be compressed)."""
    return tuple(group for adapter in ADAPTERS for group in adapter(model))
