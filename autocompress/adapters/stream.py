"""The residual stream of a transformer as one group: its hidden dimensions.

A dimension that is removed is gone from everything that writes, carries and reads the stream, so norms are then taken
over fewer features: that is what removal means here. The group is offered only where a trial cut shows that no module
of the model was overlooked.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.adapters.cut import keep_structures
from autocompress.adapters.family import Base, Family
from autocompress.layers import Group, Slice
from autocompress.weights import linearized, tied_weights, weight_of


def hidden_group(model: nn.Module, family: Family, base: Base, example_inputs: Mapping[str, Tensor]) -> Group | None:
    """The stream's group, named by the base model; None where something unknown handles the stream."""
    if not base.whole:
        return None
    group = _described(model, family, base)
    return group if _is_complete(model, group, example_inputs) else None


def _described(model: nn.Module, family: Family, base: Base) -> Group:
    """The group as the family describes it."""
    stream, inner = family.stream, model.get_submodule(base.name)
    reader = _first_reader(model, family, base.name)

    def outside(paths: tuple[str, ...]) -> list[str]:
        return [_join(base.name, path) for path in paths if _has(inner, path)]

    def inside(paths: tuple[str, ...]) -> list[str]:
        return [f"{name}.{path}" for name in base.blocks for path in paths]

    carriers = [Slice(name) for name in (*outside(stream.norms), *inside(family.norms))]
    first = next(iter(base.blocks.values()))
    return Group(
        name=f"{base.name or type(model).__name__}/hidden",
        kind="hidden",
        size=weight_of(first.get_submodule(family.down)).shape[0],
        producers=tuple(Slice(n) for n in (*outside(stream.writers), *inside((family.output, family.down)))),
        consumers=tuple(Slice(n) for n in (*inside((*family.projections, *family.up)), *reader)),
        carriers=(*carriers, *(Slice(name, axis=2) for name in outside(stream.parameters))),
    )


def _first_reader(model: nn.Module, family: Family, base: str) -> list[str]:
    """Name of the linear that reads the stream after the blocks, if the family knows one."""
    for path in family.stream.readers:
        for holder in (base, base.rpartition(".")[0]):
            if _has(model.get_submodule(holder), path):
                return [_join(holder, path)]
    return []


def _is_complete(model: nn.Module, group: Group, example_inputs: Mapping[str, Tensor]) -> bool:
    """Whether a copy without the last dimension still runs and answers in the same shape.

    A module that handles the stream and is not in the group has one feature more than the rest and stops the run; one
    that shares its weight with a member would silently lose it.
    """
    members = {item.name for item in (*group.producers, *group.consumers)}
    if group.size < 3 or any(0 < len(members & set(names)) < len(names) for names in tied_weights(model)):
        return False
    trial = linearized(copy.deepcopy(model)).eval()
    try:
        with torch.inference_mode():
            dense = _answer(trial(**example_inputs))
            keep_structures(trial, [(group, range(group.size - 1))])
            return _answer(trial(**example_inputs)).shape == dense.shape
    except Exception:  # the model is the user's: whatever it raises, the description does not fit it
        return False


def _answer(output: Any) -> Tensor:
    """The logits, or whatever tensor comes first."""
    if isinstance(output, Tensor):
        return output
    result: Tensor = output.logits if hasattr(output, "logits") else output[0]
    return result


def _has(module: nn.Module, path: str) -> bool:
    found: Any = module
    for part in path.split("."):
        found = getattr(found, part, None)
    return isinstance(found, nn.Module | nn.Parameter)


def _join(holder: str, path: str) -> str:
    return f"{holder}.{path}" if holder else path
