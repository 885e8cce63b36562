"""A model whose structures are scaled by gates: by hooks while it trains, and for good in its weights afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from autocompress.layers import Group, Slice
from autocompress.learn.gates import Gates, settled, spread
from autocompress.weights import parameter_at


@contextmanager
def gated(model: nn.Module, groups: tuple[Group, ...], values: Mapping[str, Tensor]) -> Iterator[None]:
    """Inside, the model computes as if every structure were scaled by its gate.

    Args:
        model: its weights are not touched.
        groups: whose gates are in `values`.
        values: group name to gates ``(size,)``; read at each forward, so they may be replaced.

    Norms on the residual stream take mean and variance over the dimensions whose gate is above 0.
    """
    with ExitStack() as stack:
        for group in groups:
            for item in (*_scaled_inputs(group), *_tied_readers(model, group)):
                module = model.get_submodule(item.name)
                stack.callback(module.register_forward_pre_hook(_scale_input(group, item, values)).remove)
            for name, item in _scaled_outputs(group):
                module = model.get_submodule(name)
                stack.callback(module.register_forward_hook(_scale_output(group, item, values)).remove)
            if group.kind == "hidden":
                for item in group.carriers:
                    _carry(model, group, item, values, stack)
        yield


def _scaled_inputs(group: Group) -> tuple[Slice, ...]:
    return group.consumers if group.kind in ("heads", "neurons") else ()


def _tied_readers(model: nn.Module, group: Group) -> list[Slice]:
    """Readers that share their weight with a writer, such as a language model's head: gates in the one are in both."""
    if group.kind != "hidden":
        return []
    written = {id(getattr(model.get_submodule(item.name), "weight", None)) for item in group.producers}
    return [item for item in group.consumers if id(model.get_submodule(item.name).weight) in written]


def _scaled_outputs(group: Group) -> Iterator[tuple[str, Slice]]:
    if group.kind == "hidden":
        yield from ((item.name, item) for item in group.producers)
    elif group.kind in ("attention", "feed_forward"):
        yield group.removes[-1], Slice(group.removes[-1])


def _scale_input(group: Group, item: Slice, values: Mapping[str, Tensor]) -> Callable[..., Any]:
    def hook(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (args[0] * spread(item, values[group.name], args[0].shape[-1]), *args[1:])

    return hook


def _scale_output(group: Group, item: Slice, values: Mapping[str, Tensor]) -> Callable[..., Any]:
    def hook(module: nn.Module, _args: Any, output: Tensor) -> Tensor:
        if group.kind != "hidden":
            return output * values[group.name]
        channels = isinstance(module, nn.Conv2d)
        scale = spread(item, values[group.name], output.shape[1 if channels else -1])
        return output * (scale[:, None, None] if channels else scale)

    return hook


def _along(item: Slice, gates: Tensor, parameter: Tensor) -> Tensor:
    """Gates in a form that broadcasts over a bare parameter."""
    shape = [1] * parameter.dim()
    shape[item.axis] = -1
    return spread(item, gates, parameter.shape[item.axis]).reshape(shape)


class _Scaled(nn.Module):
    """A parametrization that scales a bare parameter along one axis."""

    def __init__(self, group: Group, item: Slice, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.group, self.item, self.values = group, item, values

    def forward(self, value: Tensor) -> Tensor:
        """The scaled parameter."""
        return value * _along(self.item, self.values[self.group.name], value)


def _carry(model: nn.Module, group: Group, item: Slice, values: Mapping[str, Tensor], stack: ExitStack) -> None:
    owner, leaf = parameter_at(model, item.name)
    value = getattr(owner, leaf)
    if isinstance(value, nn.Parameter):
        parametrize.register_parametrization(owner, leaf, _Scaled(group, item, values))
        stack.callback(parametrize.remove_parametrizations, owner, leaf, leave_parametrized=False)
        return
    hook = value.register_forward_hook(lambda module, args, _out: _renormed(module, args[0], values[group.name]))
    stack.callback(hook.remove)


def _renormed(norm: nn.Module, value: Tensor, gates: Tensor) -> Tensor:
    """LayerNorm or RMSNorm over the dimensions whose gate is above 0; 0 in the others."""
    active = (gates.detach() > 0).to(value.dtype)
    count = active.sum()
    weight: Tensor = norm.weight  # type: ignore[assignment]
    if isinstance(norm, nn.LayerNorm):
        value = (value - (value * active).sum(-1, keepdim=True) / count) * active
    eps: float = getattr(norm, "variance_epsilon", 0.0) or getattr(norm, "eps", None) or 1e-6
    scaled = value * active * torch.rsqrt((value * active).pow(2).sum(-1, keepdim=True) / count + eps)
    bias: Tensor | None = getattr(norm, "bias", None)
    result = scaled * weight
    if bias is not None:
        result = result + bias
    return result * active


def fold(model: nn.Module, gates: Gates, kept: Mapping[str, Tensor]) -> None:
    """Multiply what is left of the gates into the weights; edits the model."""
    with torch.no_grad():
        for group, value in gates.by_group():
            scale = settled(value) * torch.zeros(group.size).index_fill(0, kept[group.name], 1.0)
            for item in _scaled_inputs(group):
                weight = model.get_parameter(f"{item.name}.weight")
                weight.mul_(spread(item, scale, weight.shape[1]))
            for name, item in _scaled_outputs(group):
                _fold_output(model.get_submodule(name), group, item, scale)
            for item in group.carriers if group.kind == "hidden" else ():
                owner, leaf = parameter_at(model, item.name)
                parameter = getattr(owner, leaf)
                if isinstance(parameter, nn.Parameter):
                    parameter.mul_(_along(item, scale, parameter))


def _fold_output(module: nn.Module, group: Group, item: Slice, scale: Tensor) -> None:
    weight: Tensor = module.weight  # type: ignore[assignment]
    if group.kind != "hidden":
        weight.mul_(scale)
    elif isinstance(module, nn.Embedding):
        weight.mul_(spread(item, scale, weight.shape[1]))
        return
    else:
        weight.mul_(spread(item, scale, weight.shape[0]).reshape(-1, *[1] * (weight.dim() - 1)))
    bias = getattr(module, "bias", None)
    if bias is not None:
        bias.mul_(scale if group.kind != "hidden" else spread(item, scale, len(bias)))
