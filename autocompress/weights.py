"""Weights as matrices ``(out, in)``, whatever module holds them, and modules that take a smaller one.

A convolution's matrix is ``(out, in·kh·kw)``: its columns are the weights of one patch, channel by channel.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn


def is_transposed_linear(module: nn.Module) -> bool:
    """Whether the module is transformers' Conv1D: a linear whose weight is kept as ``(in, out)``."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


def weight_of(module: nn.Module) -> Tensor:
    """A module's weight with its outputs first: ``(out, in)``, ``(out, in, kh, kw)`` or ``(rows, features)``."""
    weight: Tensor = module.weight.detach()  # type: ignore[operator]
    return weight.T if is_transposed_linear(module) else weight


def matrix_of(module: nn.Module) -> Tensor:
    """The same as a matrix ``(out, in·kh·kw)``."""
    weight = weight_of(module)
    return weight.reshape(weight.shape[0], -1)


def window_of(module: nn.Module) -> int:
    """Columns of the matrix per input: 1, or a convolution's kh·kw."""
    weight = weight_of(module)
    return weight[0, 0].numel() if weight.dim() > 2 else 1


def linearized(model: nn.Module) -> nn.Module:
    """The model with every Conv1D replaced by the Linear that computes the same; edits its argument."""
    for name, module in list(model.named_modules()):
        if is_transposed_linear(module):
            weight = weight_of(module)
            with torch.device("meta"):  # nothing is drawn for weights that are set at once
                linear = nn.Linear(weight.shape[1], weight.shape[0])
            linear.weight = nn.Parameter(weight.contiguous().clone())
            linear.bias = nn.Parameter(module.bias.detach().clone())
            model.set_submodule(name, linear.train(module.training))
    return model


def tied_weights(model: nn.Module) -> tuple[tuple[str, ...], ...]:
    """Names of the modules that share one weight, in the model's order."""
    owners: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, nn.Parameter):
            owners.setdefault(id(weight), []).append(name)
    return tuple(tuple(names) for names in owners.values() if len(names) > 1)


def retie(model: nn.Module, ties: Sequence[Sequence[str]]) -> None:
    """Let modules share the first one's weight again, after all of them lost the same features; edits the model."""
    for first, *others in ties:
        for name in others:
            model.get_submodule(name).weight = model.get_submodule(first).weight


def untie(model: nn.Module, names: Collection[str]) -> None:
    """Give the named modules weights of their own, equal to those that they shared; edits the model."""
    for tie in tied_weights(model):
        for name in tie:
            if name in names:
                module = model.get_submodule(name)
                set_weight(module, weight_of(module))


def set_weight(module: nn.Module, weight: Tensor) -> None:
    """Give a linear, convolution or embedding another weight and the sizes that go with it."""
    trains = module.weight.requires_grad
    module.weight = nn.Parameter(weight.contiguous().clone(), requires_grad=bool(trains))
    fields: dict[str, int] = {}
    if isinstance(module, nn.Linear):
        fields = {"out_features": weight.shape[0], "in_features": weight.shape[1]}
    elif isinstance(module, nn.Conv2d):
        fields = {"out_channels": weight.shape[0], "in_channels": weight.shape[1] * module.groups}
    elif isinstance(module, nn.Embedding):
        fields = {"num_embeddings": weight.shape[0], "embedding_dim": weight.shape[1]}
    for name, value in fields.items():
        setattr(module, name, value)


def keep_rows(module: nn.Module, rows: Sequence[int]) -> None:
    """Keep some outputs: rows of the weight, entries of the bias."""
    index = torch.tensor(rows, dtype=torch.long)
    set_weight(module, weight_of(module)[index])
    bias = getattr(module, "bias", None)
    if bias is not None:
        module.bias = nn.Parameter(bias.detach()[index].clone(), bias.requires_grad)


def keep_columns(module: nn.Module, columns: Sequence[int], solved: Tensor | None = None) -> None:
    """Keep some columns of the matrix ``(out, in·kh·kw)``: whole inputs, or features of an embedding.

    Args:
        module: linear, convolution or embedding; edited.
        columns: those that stay, in order.
        solved: the matrix ``(out, len(columns))`` to take instead of the columns as they are.
    """
    matrix = matrix_of(module)[:, torch.tensor(columns, dtype=torch.long)] if solved is None else solved
    set_weight(module, matrix.reshape(matrix.shape[0], -1, *weight_of(module).shape[2:]))


def keep_carried(module: nn.Module, positions: Sequence[int]) -> None:
    """Keep some positions of a module that handles each alone: a norm, or a depthwise convolution."""
    index = torch.tensor(positions, dtype=torch.long)
    for name in ("weight", "bias"):
        value = getattr(module, name, None)
        if value is not None:
            setattr(module, name, nn.Parameter(value.detach()[index].clone(), value.requires_grad))
    for name in ("running_mean", "running_var"):
        value = getattr(module, name, None)
        if value is not None:
            setattr(module, name, value.detach()[index].clone())
    count = len(positions)
    fields: dict[str, Any] = dict.fromkeys(("num_features", "num_channels", "num_groups", "num_parameters"), count)
    fields["normalized_shape"] = (count,)
    if isinstance(module, nn.Conv2d):
        fields = {"in_channels": count, "out_channels": count, "groups": count}
    for name, value in fields.items():
        if hasattr(module, name):
            setattr(module, name, value)


def parameter_at(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The module that owns a bare parameter, and the parameter's name in it."""
    owner, _, leaf = name.rpartition(".")
    return model.get_submodule(owner), leaf


class Stand(nn.Module):
    """Stands where a part was removed; see `layers.Stub` for what it gives.

    Args:
        gives: "input" or "constant", alone or with "-pair".
        value: the constant ``(features,)``.
    """

    def __init__(self, gives: str, value: Tensor | None = None) -> None:
        super().__init__()
        self.gives = gives
        self.value = None if value is None else nn.Parameter(value.clone())

    def forward(self, hidden_states: Tensor | None = None, *_args: Any, **_kwargs: Any) -> Any:
        """The first argument or the constant, alone or with None behind it."""
        result = hidden_states if self.gives.startswith("input") else self.value
        return (result, None) if self.gives.endswith("-pair") else result
