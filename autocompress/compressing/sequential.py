"""Repair in sequence: consumers re-solved, first to last, for the inputs that the compressed model gives them.

Repair from dense inputs treats each layer as if all before it were still dense; here every layer also makes up for what
its predecessors lost. Costs one pass of both models per consumer (consumers of one input share it).
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from autocompress.compressing.calibrate import patches_of, real_positions
from autocompress.compressing.choices import Kept
from autocompress.compressing.prune import DAMPING
from autocompress.errors import ModelError
from autocompress.survey import evaluating, hooked
from autocompress.tasks.task import Examples, Inputs
from autocompress.weights import matrix_of, weight_of

BATCH = 32


@dataclass(frozen=True)
class Step:
    """Consumers that read one input.

    Attributes:
        names: of the layers.
        calls: of each in one forward pass.
    """

    names: tuple[str, ...]
    calls: int


@dataclass(frozen=True, eq=False)
class Moments:
    """Of a layer's inputs x in the dense model and x_c in the compressed one; float64.

    Attributes:
        cross: C = E x·x_cᵀ, ``(in, kept)``.
        own: G = E x_c·x_cᵀ, ``(kept, kept)``.
        power: mean of x².
    """

    cross: Tensor
    own: Tensor
    power: float


def repair_in_sequence(
    small: nn.Module, dense: nn.Module, names: Sequence[str], kept: Kept, examples: Examples
) -> dict[str, Tensor]:
    """Re-solve some layers of a model that lost structures; biases stay. Edits `small`.

    Args:
        small: the model without its structures, runnable.
        dense: the model that it was.
        names: layers of both that lost inputs.
        kept: rows and columns of the dense matrices that are left.
        examples: calibration samples.

    Returns:
        Layer name to its new matrix ``(out, in·kh·kw)``; layers that are not called stay as they are.

    Raises:
        ModelError: an input holds NaN or infinity.
    """
    solved = {}
    with evaluating(small), evaluating(dense):
        for step in steps_of(small, names, examples):
            moments = moments_between(dense, small, step, examples)
            for name in step.names:
                whole, weight = matrix_of(dense.get_submodule(name)), weight_of(small.get_submodule(name))
                rows = whole[torch.tensor(kept.rows[name])] if name in kept.rows else whole
                solved[name] = solve(rows, moments, torch.tensor(kept.columns[name]))
                weight.copy_(solved[name].reshape(weight.shape))
    return solved


def solve(weight: Tensor, moments: Moments, columns: Tensor) -> Tensor:
    """``W' = (W·C + δ·W[:,columns])·(G + δ·I)⁻¹``: ``(out, kept)``.

    The least-squares optimum of ``E |W·x - W'·x_c|²`` with a ridge δ, `prune.DAMPING` of the mean of x², towards the
    dense columns. Where x_c is x[columns], this is `prune.repair`.

    Args:
        weight: W, the dense matrix ``(out, in)``.
        moments: C and G of its inputs.
        columns: of W that stay, ``(kept,)``.
    """
    dense = weight.to(torch.float64)
    ridge = DAMPING * moments.power if moments.power > 0 else 1.0
    matrix = moments.own + ridge * torch.eye(len(columns), dtype=torch.float64)
    wanted = dense @ moments.cross + ridge * dense[:, columns]
    solved: Tensor = torch.linalg.solve(matrix, wanted.T).T
    return solved.to(weight.dtype).contiguous()


def steps_of(model: nn.Module, names: Sequence[str], examples: Examples) -> list[Step]:
    """The layers in the order in which they are called; linears that read the same tensor share a step."""
    inputs, _targets = examples.batch(range(min(2, len(examples))))
    reads: dict[str, tuple[object, ...]] = {}
    alive: list[Tensor] = []  # so that no two tensors share an address
    calls: Counter[str] = Counter()

    def hook_for(name: str) -> RemovableHandle:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            value = args[0]
            alive.append(value)
            alone = () if isinstance(module, nn.Linear) else (name,)
            reads.setdefault(name, (value.data_ptr(), value._version, value.shape, *alone))
            calls[name] += 1

        return model.get_submodule(name).register_forward_pre_hook(hook)

    with hooked(hook_for(name) for name in names), torch.no_grad():
        model(**inputs)
    steps: dict[tuple[object, ...], list[str]] = {}
    for name, what in reads.items():
        steps.setdefault((*what, calls[name]), []).append(name)
    return [Step(tuple(found), calls[found[0]]) for found in steps.values()]


def moments_between(dense: nn.Module, small: nn.Module, step: Step, examples: Examples) -> Moments:
    """Moments of the inputs that a step's layers get in two models; raises `ModelError` where they are not finite."""
    name = step.names[0]
    cross, own, power, count = torch.zeros(()), torch.zeros(()), 0.0, 0
    with torch.inference_mode():
        for _rows, inputs, _targets in examples.batches(BATCH):
            before = _inputs_of(dense, name, step.calls, inputs)
            after = _inputs_of(small, name, step.calls, inputs)
            cross = cross + (before.T @ after).to(torch.float64)
            own = own + (after.T @ after).to(torch.float64)
            power += float(before.to(torch.float64).pow(2).mean(dim=1).sum())
            count += len(after)
    if not (torch.isfinite(cross).all() and torch.isfinite(own).all()):
        raise ModelError(f"layer {name}: its inputs in the compressed model hold NaN or infinity")
    return Moments(cross / count, own / count, power / count)


class _Seen(Exception):
    """Ends a forward pass after the input that was waited for."""


def _inputs_of(model: nn.Module, name: str, calls: int, inputs: Inputs) -> Tensor:
    """Rows ``(n, in·kh·kw)`` of what a layer reads in a batch; the pass ends there."""
    module = model.get_submodule(name)
    seen: list[Tensor] = []

    def hook(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen.append(_rows_of(module, real_positions(args[0], inputs)))
        if len(seen) == calls:
            raise _Seen

    with hooked([module.register_forward_pre_hook(hook)]), contextlib.suppress(_Seen):
        model(**inputs)
    return torch.cat(seen)


def _rows_of(module: nn.Module, value: Tensor) -> Tensor:
    """What each output position reads, ``(n, in·kh·kw)``; of large maps, the same positions in both models."""
    if isinstance(module, nn.Conv2d):
        return patches_of(module, value, torch.Generator().manual_seed(0))
    return value.reshape(-1, value.shape[-1])
