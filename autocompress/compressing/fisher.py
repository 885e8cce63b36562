"""The empirical Fisher information: squared gradients of single samples, of weights and of masks on structures.

A batch takes one forward and one backward pass: per-sample gradients follow from what goes into a layer and from the
gradient of what comes out. Nothing of the model is changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.compressing.calibrate import unfolded
from autocompress.compressing.prune import structure_columns
from autocompress.errors import ModelError
from autocompress.layers import Group
from autocompress.survey import evaluating, hooked
from autocompress.tasks.task import Examples, Task, logits_of
from autocompress.weights import matrix_of

BATCH = 32

#: Numbers that per-sample weight gradients may take at once; larger layers are worked off in parts of a batch.
MOST_GRADIENTS = 1 << 24

#: What a layer's calls left behind in one batch: layer name, its input, and a tensor whose gradient is asked for.
Calls = list[tuple[str, Tensor, Tensor]]


def weight_fisher(model: nn.Module, names: Iterable[str], task: Task, examples: Examples) -> dict[str, Tensor]:
    """Mean over samples of the squared gradient of the sample's loss in each weight.

    Args:
        model: is run in evaluation mode.
        names: of linears (transformers' Conv1D too) and convolutions.
        task: gives the loss, which is called on one sample at a time.
        examples: training samples.

    Returns:
        Layer name to a tensor shaped like `weights.matrix_of`, ``(out, in·kh·kw)``, float32; zeros where a layer has no
        part in the loss.

    Raises:
        ModelError: a gradient is NaN or infinite, or a layer's first axis is not that of the samples.
    """
    modules = {name: model.get_submodule(name) for name in names}
    totals = {name: torch.zeros_like(matrix_of(module)) for name, module in modules.items()}

    def see(count: int, calls: Mapping[str, list[tuple[Tensor, Tensor]]]) -> None:
        for name, pairs in calls.items():
            parts = [_patches(modules[name], into, out, count, name) for into, out in pairs]
            inputs, outputs = (torch.cat(tensors, dim=1) for tensors in zip(*parts, strict=True))
            totals[name] += _squares(inputs, outputs).reshape(totals[name].shape)

    _each_batch(model, modules, task, examples, _watch_output, see)
    return _means(totals, len(examples))


def structure_fisher(model: nn.Module, groups: Iterable[Group], task: Task, examples: Examples) -> dict[str, Tensor]:
    """Mean over samples of the squared gradient of the sample's loss in a mask on each structure.

    The mask multiplies a structure wherever a consumer of the group reads it, so that a sample's gradient is summed
    over the consumers, and over positions, before it is squared (Kwon et al. 2022, A Fast Post-Training Pruning
    Framework for Transformers, eq. 10).

    Args:
        model: is run in evaluation mode.
        groups: of structures.
        task: gives the loss, which is called on one sample at a time.
        examples: training samples.

    Returns:
        Group name to ``(size,)``, float32; zeros where no consumer has a part in the loss.

    Raises:
        ModelError: a gradient is NaN or infinite, or a consumer's first axis is not that of the samples.
    """
    groups = tuple(groups)
    modules = {item.name: model.get_submodule(item.name) for group in groups for item in group.consumers}
    totals = {group.name: torch.zeros(group.size) for group in groups}

    def see(count: int, calls: Mapping[str, list[tuple[Tensor, Tensor]]]) -> None:
        by_input = {name: _input_gradients(modules[name], pairs, count, name) for name, pairs in calls.items()}
        for group in groups:
            slopes = torch.zeros(count, group.size)
            for item in group.consumers:
                if item.name in by_input:
                    slopes += by_input[item.name][:, structure_columns(item, group.size)].sum(dim=2)
            totals[group.name] += slopes.pow(2).sum(dim=0)

    _each_batch(model, modules, task, examples, _watch_input, see)
    return _means(totals, len(examples))


def _each_batch(
    model: nn.Module,
    modules: Mapping[str, nn.Module],
    task: Task,
    examples: Examples,
    watch: Callable[[str, nn.Module, Calls], Any],
    see: Callable[[int, Mapping[str, list[tuple[Tensor, Tensor]]]], None],
) -> None:
    """Show `see` the number of samples and, per layer, what was watched with its gradient: one entry per call."""
    with evaluating(model), torch.enable_grad():
        for _rows, inputs, targets in examples.batches(BATCH):
            calls: Calls = []
            with hooked(watch(name, module, calls) for name, module in modules.items()):
                logits = logits_of(model(**inputs))
            losses = [task.loss(logits[i : i + 1], targets[i : i + 1]) for i in range(len(targets))]
            loss = torch.stack(losses).sum()
            watched = [tensor for _name, _input, tensor in calls]
            if not watched:
                continue
            found: dict[str, list[tuple[Tensor, Tensor]]] = {}
            gradients = torch.autograd.grad(loss, watched, allow_unused=True)
            for (name, value, _tensor), gradient in zip(calls, gradients, strict=True):
                if gradient is not None:
                    found.setdefault(name, []).append((value, gradient))
            with torch.no_grad():
                see(len(targets), found)


def _differentiable(value: Tensor) -> Tensor:
    """The value itself, or a copy of it, as something that a gradient can be taken in."""
    return value if value.requires_grad else value.detach().clone().requires_grad_()


def _watch_output(name: str, module: nn.Module, calls: Calls) -> Any:
    def hook(_module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        watched = _differentiable(output)
        calls.append((name, args[0].detach().clone(), watched))
        return watched.clone()  # what is edited in place afterwards is not what is watched

    return module.register_forward_hook(hook)


def _watch_input(name: str, module: nn.Module, calls: Calls) -> Any:
    def hook(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        watched = _differentiable(args[0]).clone()  # a node of this consumer alone
        calls.append((name, watched.detach(), watched))
        return (watched, *args[1:])

    return module.register_forward_pre_hook(hook)


def _by_sample(value: Tensor, count: int, name: str) -> Tensor:
    """``(…, features)`` as ``(count, positions, features)``."""
    if value.dim() < 2 or value.shape[0] % count:
        raise ModelError(
            f"layer {name}: its input {tuple(value.shape)} does not begin with the {count} samples of a batch, "
            "so there is no telling which gradient is whose"
        )
    return value.reshape(count, -1, value.shape[-1])


def _patches(module: nn.Module, inputs: Tensor, outputs: Tensor, count: int, name: str) -> tuple[Tensor, Tensor]:
    """Inputs and output gradients as ``(samples, positions, groups, features)``; a convolution's inputs unfolded."""
    if not isinstance(module, nn.Conv2d):
        return _by_sample(inputs, count, name)[:, :, None], _by_sample(outputs, count, name)[:, :, None]
    columns = unfolded(module, inputs)
    gradients = outputs.flatten(2).transpose(1, 2)
    shape = (count, columns.shape[1], module.groups, -1)
    return columns.reshape(shape), gradients.reshape(shape)


def _squares(inputs: Tensor, outputs: Tensor) -> Tensor:
    """Squared weight gradients summed over samples, ``(groups, out, in)``."""
    total = torch.zeros(inputs.shape[2], outputs.shape[3], inputs.shape[3])
    size = max(1, MOST_GRADIENTS // total.numel())
    for x, y in zip(torch.split(inputs, size), torch.split(outputs, size), strict=True):
        total += torch.einsum("npgo,npgi->ngoi", y, x).pow(2).sum(dim=0)
    return total


def _input_gradients(module: nn.Module, pairs: Sequence[tuple[Tensor, Tensor]], count: int, name: str) -> Tensor:
    """Gradient in a mask on each input of one consumer, ``(samples, inputs)``."""
    total: Tensor | None = None
    for value, gradient in pairs:
        slopes = value * gradient
        if isinstance(module, nn.Conv2d):
            slopes = slopes.movedim(1, -1)
        slopes = _by_sample(slopes, count, name).sum(dim=1)
        total = slopes if total is None else total + slopes
    assert total is not None
    return total


def _means(totals: dict[str, Tensor], count: int) -> dict[str, Tensor]:
    for name, total in totals.items():
        if not torch.isfinite(total).all():
            raise ModelError(f"{name}: the gradient of the loss holds NaN or infinity")
    return {name: total / count for name, total in totals.items()}
