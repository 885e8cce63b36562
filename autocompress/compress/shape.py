"""The verb `shape`: a really smaller copy of a model, as a plan's groups and ranks say.

This is the one place that knows the order: blocks, structures, rank.
"""

from __future__ import annotations

import copy
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from autocompress.compress.factorize import factorize
from autocompress.compress.prune import columns_of, repair
from autocompress.layers import Group, LayerTable
from autocompress.plan import Plan, Prune, check_plan, removed_blocks


class Choices(Protocol):
    """What `shape` has to be told about the dense model; the bank is one, `FirstOnes` another."""

    def gram(self, layer: str) -> Tensor:
        """Second moment of a linear layer's inputs, ``(in, in)``."""
        ...

    def kept(self, group: Group, prune: Prune) -> Tensor:
        """Numbers of the structures that stay, ascending."""
        ...


class FirstOnes:
    """Keeps the first structures and repairs nothing: right shapes for weights that are loaded afterwards."""

    def __init__(self, table: LayerTable) -> None:
        self.table = table

    def gram(self, layer: str) -> Tensor:
        """The identity: every input counts the same."""
        return torch.eye(self.table.layer(layer).weight_shape[1])

    def kept(self, _group: Group, prune: Prune) -> Tensor:
        """Structures 0 to keep - 1."""
        return torch.arange(prune.keep)


class Passthrough(nn.Module):
    """Stands where a block was removed: hands its first argument on."""

    def forward(self, hidden_states: Tensor, *_args: Any, **_kwargs: Any) -> Tensor:
        """The input, unchanged."""
        return hidden_states


def shape(model: nn.Module, plan: Plan, table: LayerTable, choices: Choices) -> nn.Module:
    """A copy of the model without what the plan removes, and with factors where it asks for a rank.

    The input model is not edited; an empty plan gives an exact copy. Names of the layers that stay do not change;
    a factorized linear ``x`` becomes ``x.0`` (in, rank; no bias) and ``x.1`` (rank, out).

    Raises:
        PlanError: the plan does not fit the model.
    """
    check_plan(plan, table)
    small = copy.deepcopy(model)
    gone = removed_blocks(plan, table)
    for block in gone:
        small.set_submodule(block, Passthrough())
    kept_inputs: dict[str, Tensor] = {}
    for group in table.groups:
        prune = plan.groups.get(group.name)
        if prune is None or group.kind == "block" or group.block in gone or prune.keep == group.size:
            continue
        kept = columns_of(choices.kept(group, prune), group.width)
        for name in group.producers:
            _keep_rows(_linear(small, name), kept)
        for name in group.consumers:
            _keep_columns(_linear(small, name), kept, choices.gram(name) if prune.repair else None)
            kept_inputs[name] = kept
    for name, layer_plan in plan.layers.items():
        if layer_plan.factorize and table.layer(name).block not in gone:
            gram = choices.gram(name)
            if name in kept_inputs:
                gram = gram[kept_inputs[name]][:, kept_inputs[name]]
            small.set_submodule(name, _factors(_linear(small, name), gram, layer_plan.factorize.rank))
    return small


def _linear(model: nn.Module, name: str) -> nn.Linear:
    module = model.get_submodule(name)
    assert isinstance(module, nn.Linear), f"{name} is {type(module).__name__}"
    return module


def _keep_rows(linear: nn.Linear, kept: Tensor) -> None:
    linear.weight = nn.Parameter(linear.weight.detach()[kept].clone())
    if linear.bias is not None:
        linear.bias = nn.Parameter(linear.bias.detach()[kept].clone())
    linear.out_features = len(kept)


def _keep_columns(linear: nn.Linear, kept: Tensor, gram: Tensor | None) -> None:
    weight = linear.weight.detach()
    new = weight[:, kept].clone() if gram is None else repair(weight, gram, kept)
    linear.weight = nn.Parameter(new.contiguous())
    linear.in_features = len(kept)


def _factors(linear: nn.Linear, gram: Tensor, rank: int) -> nn.Sequential:
    out_factor, in_factor = factorize(linear.weight.detach(), gram, rank)
    first = nn.Linear(linear.in_features, rank, bias=False)
    second = nn.Linear(rank, linear.out_features, bias=linear.bias is not None)
    first.weight = nn.Parameter(in_factor.contiguous())
    second.weight = nn.Parameter(out_factor.contiguous())
    if linear.bias is not None:
        second.bias = nn.Parameter(linear.bias.detach().clone())
    return nn.Sequential(first, second)


def restore(model: nn.Module, plan: Plan, table: LayerTable, weights: dict[str, Tensor]) -> nn.Module:
    """The compressed torch model again, from the dense architecture, its plan and its saved weights."""
    small = shape(model, plan, table, FirstOnes(table))
    stored = dict(weights)
    owners = {small.state_dict()[name].data_ptr(): name for name in weights if name in small.state_dict()}
    for name, value in small.state_dict().items():
        if name not in stored and value.data_ptr() in owners:  # shared weights are stored once
            stored[name] = weights[owners[value.data_ptr()]]
    small.load_state_dict(stored, strict=True)
    return small.eval()
