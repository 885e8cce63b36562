"""What rounding a layer does to a model's predictions, to second order, from one backward pass for all layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from autocompress.survey import evaluating, hooked
from autocompress.tasks.task import Examples, Inputs, logits_of

BATCH = 32

#: Layers by name, with what stands in their place.
Twins = Mapping[str, nn.Module]


def real_places(inputs: Inputs, logits: Tensor) -> Tensor:
    """Which predictions count: samples ``(n,)``, or tokens ``(n, t)`` that are no padding."""
    mask = inputs.get("attention_mask")
    if logits.dim() == 3 and mask is not None and mask.shape == logits.shape[:2]:
        return mask.bool()
    return torch.ones(logits.shape[:-1], dtype=torch.bool)


def perturbations(model: nn.Module, options: Sequence[Twins], examples: Examples) -> list[float]:
    """``½·E(Σ g·Δy)²`` of each option, in nats: what KL is to second order in the change Δy of the layers' outputs.

    g is the gradient in y of ``Σ_c ε_c·√p_c·(z_c - Σ_k p_k·z_k)`` with random signs ε, whose outer product with itself
    is the Fisher information of the prediction, ``diag(p) - p·pᵀ``, in the mean; one backward pass for all options.

    Args:
        model: in float, with parameters that take gradients.
        options: the layers that each swaps, by name.
        examples: samples that predictions are made on.
    """
    modules = {name: model.get_submodule(name) for swap in options for name in swap}
    draw = torch.Generator().manual_seed(0)
    totals, count = [0.0] * len(options), 0
    with evaluating(model):
        for _rows, inputs, targets in examples.batches(BATCH):
            calls: list[tuple[str, tuple[Any, ...], Tensor]] = []
            with torch.enable_grad(), hooked(_watch(name, module, calls) for name, module in modules.items()):
                logits = logits_of(model(**inputs))
            real = real_places(inputs, logits)
            count += int(real.sum())
            direction = _direction(logits.detach(), draw) * real[..., None]
            outputs = [output for _name, _args, output in calls]
            gradients = torch.autograd.grad((direction * logits).sum(), outputs, allow_unused=True)
            with torch.inference_mode():
                for number, swap in enumerate(options):
                    moved = torch.zeros(len(targets))
                    for (name, args, output), gradient in zip(calls, gradients, strict=True):
                        if name in swap and gradient is not None:
                            moved = moved + _by_sample(gradient * (swap[name](*args) - output), len(targets))
                    totals[number] += 0.5 * float(moved.double().pow(2).sum())
    return [total / count for total in totals]


def _direction(logits: Tensor, draw: torch.Generator) -> Tensor:
    """``√p·ε - p·Σ(√p·ε)`` with random signs: a direction in the logits ``(…, classes)``."""
    p = logits.softmax(dim=-1)
    signs = torch.randint(0, 2, p.shape, generator=draw) * 2 - 1
    drawn = p.sqrt() * signs
    return drawn - p * drawn.sum(dim=-1, keepdim=True)


def _by_sample(products: Tensor, count: int) -> Tensor:
    """Sums ``(count,)`` of each sample's products.

    What all samples share, such as positions, is summed at once and stands in the first place: signs of different
    samples are independent, so that products of two of them vanish in the mean.
    """
    rows = products.reshape(len(products), -1).sum(dim=1)
    if len(rows) % count == 0:
        return rows.reshape(count, -1).sum(dim=1)
    return torch.cat([rows.sum()[None], torch.zeros(count - 1)])


def _watch(name: str, module: nn.Module, calls: list[tuple[str, tuple[Any, ...], Tensor]]) -> Any:
    def hook(_module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        calls.append((name, tuple(tree_map(_detached, args)), output))
        return output.clone()  # what is edited in place afterwards is not what is watched

    return module.register_forward_hook(hook)


def _detached(leaf: Any) -> Any:
    return leaf.detach().clone() if isinstance(leaf, Tensor) else leaf
