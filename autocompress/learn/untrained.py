"""A model's architecture with fresh weights, as if it had never been trained."""

from __future__ import annotations

import copy

import torch
from torch import nn

from autocompress.errors import ModelError


def untrained(model: nn.Module, seed: int) -> nn.Module:
    """A copy of the model, in evaluation mode, with weights drawn anew; the same for the same seed.

    Models of transformers are built again from their config; of other modules, each that owns parameters is reset by
    its own `reset_parameters`, which sets running statistics back, too.

    Raises:
        ModelError: a module cannot be reset, or the config builds another architecture.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = _from_config(model) if hasattr(model, "config") and hasattr(model, "save_pretrained") else _reset(model)
    wanted, found = ({name: value.shape for name, value in m.state_dict().items()} for m in (model, fresh))
    if wanted != found:
        name = next(name for name in (*wanted, *found) if wanted.get(name) != found.get(name))
        raise ModelError(
            f"{type(model).__name__} cannot be built untrained: its config gives {name} the shape "
            f"{_shown(found.get(name))}, but the model has {_shown(wanted.get(name))}"
        )
    return fresh.eval()


def _shown(shape: torch.Size | None) -> str:
    return "(none)" if shape is None else str(tuple(shape))


def _from_config(model: nn.Module) -> nn.Module:
    try:
        fresh: nn.Module = type(model)(copy.deepcopy(model.config))
    except Exception as fault:  # the class may be the user's: whatever its constructor raises
        raise ModelError(
            f"{type(model).__name__} cannot be built untrained from its config: {type(fault).__name__}: {fault}"
        ) from fault
    return fresh


def _reset(model: nn.Module) -> nn.Module:
    fresh = copy.deepcopy(model)
    for name, module in fresh.named_modules():
        if next(module.parameters(recurse=False), None) is None:
            continue
        reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
        if reset is None:
            own = ", ".join(leaf for leaf, _value in module.named_parameters(recurse=False))
            raise ModelError(
                f"{type(model).__name__} cannot be built untrained: module {name or '(the model)'} "
                f"({type(module).__name__}) owns {own}, but has no reset_parameters()"
            )
        reset()
    return fresh
