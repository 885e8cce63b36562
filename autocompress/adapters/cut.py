"""Structures taken out of a model's modules: which rows and columns stay, and what is cut beside them.

Knows slices, not families. A part that is already gone (a `Stand` is in its place) is passed over.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import nn

from autocompress.layers import Group, Slice
from autocompress.weights import (
    Stand,
    keep_carried,
    keep_columns,
    keep_rows,
    matrix_of,
    parameter_at,
    retie,
    tied_weights,
    weight_of,
    window_of,
)

Key = TypeVar("Key", bound=Hashable)


def narrow(left: dict[Key, list[int]], found: Mapping[Key, list[int]]) -> None:
    """Let `left` hold only what is also in `found`; what is not named in one of them is whole. Edits `left`."""
    for key, positions in found.items():
        stays = set(positions)
        left[key] = [p for p in left.get(key, positions) if p in stays]


def columns_left(model: nn.Module, group: Group, structures: Sequence[int]) -> dict[str, list[int]]:
    """Columns of each reader's matrix that are left: of a consumer's inputs, of an embedding's features."""
    left: dict[str, list[int]] = {}
    for item in (*group.consumers, *group.producers):
        found = _at(model, item.name)
        if isinstance(found, nn.Embedding) or (item in group.consumers and not isinstance(found, Stand)):
            window = window_of(found)
            inputs = _stays(item, group, structures, matrix_of(found).shape[1] // window)
            narrow(left, {item.name: [c * window + i for c in inputs for i in range(window)]})
    return left


def rows_left(model: nn.Module, group: Group, structures: Sequence[int]) -> dict[str, list[int]]:
    """Rows of each producing linear and convolution that are left; a fused weight keeps what no slice of it loses."""
    left: dict[str, list[int]] = {}
    for item in group.producers:
        found = _at(model, item.name)
        if not isinstance(found, Stand | nn.Embedding | nn.Parameter):
            narrow(left, {item.name: _stays(item, group, structures, weight_of(found).shape[0])})
    return left


def carried_left(model: nn.Module, group: Group, structures: Sequence[int]) -> dict[tuple[str, int], list[int]]:
    """Positions left of what handles each structure alone, by name and axis; and of removed producers' constants."""
    left: dict[tuple[str, int], list[int]] = {}
    for item in (*group.producers, *group.carriers):
        found = _at(model, item.name)
        held = isinstance(found, Stand) and found.value is not None and item in group.producers
        if held or isinstance(found, nn.Parameter) or (item in group.carriers and not isinstance(found, Stand)):
            narrow(left, {(item.name, item.axis): _stays(item, group, structures, _size(found, item.axis))})
    return left


def keep_carriers(model: nn.Module, left: Mapping[tuple[str, int], Sequence[int]]) -> None:
    """Cut norms, depthwise convolutions, bare parameters and constants of removed producers; edits the model."""
    for (name, axis), positions in left.items():
        found = _at(model, name)
        index = torch.tensor(positions, dtype=torch.long)
        if isinstance(found, Stand):
            assert found.value is not None
            found.value = nn.Parameter(found.value.detach()[index])
        elif isinstance(found, nn.Parameter):
            owner, leaf = parameter_at(model, name)
            setattr(owner, leaf, nn.Parameter(found.detach().index_select(axis, index), found.requires_grad))
        else:
            keep_carried(found, positions)


def keep_structures(model: nn.Module, chosen: Iterable[tuple[Group, Sequence[int]]]) -> None:
    """Take all structures but the chosen ones of some groups out of the model, without repair; edits the model."""
    ties = tied_weights(model)
    columns: dict[str, list[int]] = {}
    rows: dict[str, list[int]] = {}
    carried: dict[tuple[str, int], list[int]] = {}
    for group, structures in chosen:
        narrow(columns, columns_left(model, group, structures))
        narrow(rows, rows_left(model, group, structures))
        narrow(carried, carried_left(model, group, structures))
    for name, left in columns.items():
        keep_columns(model.get_submodule(name), left)
    for name, left in rows.items():
        keep_rows(model.get_submodule(name), left)
    keep_carriers(model, carried)
    retie(model, ties)


def _stays(item: Slice, group: Group, structures: Sequence[int], count: int) -> list[int]:
    """Of `count` positions, those that `item` does not lose with the structures that go."""
    lost = set(item.positions(range(group.size))) - set(item.positions(structures))
    return [position for position in range(count) if position not in lost]


def _size(found: nn.Module | nn.Parameter, axis: int) -> int:
    """Number of positions along an axis of a parameter, or of what a module carries."""
    if isinstance(found, nn.Parameter):
        return found.shape[axis]
    value = next(v for n in ("value", "weight", "running_mean") if (v := getattr(found, n, None)) is not None)
    return len(value)


def _at(model: nn.Module, name: str) -> nn.Module:
    """The module or parameter called `name`, or the Stand that took its place or that of what held it."""
    found = model
    for part in name.split("."):
        if isinstance(found, Stand):
            return found
        found = getattr(found, part)
    return found
