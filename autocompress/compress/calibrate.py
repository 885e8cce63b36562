"""What calibration samples tell about each layer's input: its Gram matrix, and the range of its values."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.errors import DataError
from autocompress.survey import evaluating
from autocompress.tasks.task import Examples


def _watch_inputs(
    model: nn.Module, names: Iterable[str], examples: Examples, batch_size: int, see: Callable[[str, Tensor], None]
) -> None:
    """Run the model over the examples and show `see` each input of each named module."""

    def hook_for(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(_module: nn.Module, args: tuple[Any, ...]) -> None:
            see(name, args[0].detach())

        return hook

    handles = [model.get_submodule(name).register_forward_pre_hook(hook_for(name)) for name in names]
    try:
        with evaluating(model), torch.inference_mode():
            for _rows, inputs, _targets in examples.batches(batch_size):
                model(**inputs)
    finally:
        for handle in handles:
            handle.remove()


def gram_matrices(
    model: nn.Module, names: Iterable[str], examples: Examples, batch_size: int = 32
) -> dict[str, Tensor]:
    """``Xᵀ·X / N`` of each linear layer's inputs X ``(N, in_features)``, float64 ``(in, in)``.

    Raises `DataError` where an input holds NaN or infinity.
    """
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def see(name: str, value: Tensor) -> None:
        rows = value.reshape(-1, value.shape[-1]).to(torch.float32)
        if name not in sums:
            sums[name] = torch.zeros(rows.shape[1], rows.shape[1], dtype=torch.float64)
            counts[name] = 0
        sums[name] += (rows.T @ rows).to(torch.float64)
        counts[name] += rows.shape[0]

    _watch_inputs(model, names, examples, batch_size, see)
    for name, total in sums.items():
        if not torch.isfinite(total).all():
            raise DataError(f"layer {name}: its calibration inputs hold NaN or infinity")
    return {name: total / counts[name] for name, total in sums.items()}


@dataclass(frozen=True)
class Range:
    """Lowest and highest value that an activation is calibrated to; always holds 0."""

    low: float
    high: float


def input_ranges(
    model: nn.Module, names: Iterable[str], examples: Examples, batch_size: int = 32, tail: float = 1e-5
) -> dict[str, Range]:
    """Range of each layer's input that leaves out a share `tail` of the values at either end.

    Quantiles are taken per batch and averaged; `tail` 0 is the plain minimum and maximum over all.
    """
    lows: dict[str, list[float]] = {}
    highs: dict[str, list[float]] = {}

    def see(name: str, value: Tensor) -> None:
        flat = value.reshape(-1).to(torch.float32)
        cut = int(flat.numel() * tail)
        low = flat.kthvalue(cut + 1).values if cut else flat.min()
        high = flat.kthvalue(flat.numel() - cut).values if cut else flat.max()
        lows.setdefault(name, []).append(float(low))
        highs.setdefault(name, []).append(float(high))

    _watch_inputs(model, names, examples, batch_size, see)
    ranges = {}
    for name in lows:
        low = min(lows[name]) if not tail else sum(lows[name]) / len(lows[name])
        high = max(highs[name]) if not tail else sum(highs[name]) / len(highs[name])
        if not (abs(low) < float("inf") and abs(high) < float("inf")):
            raise DataError(f"layer {name}: its calibration inputs hold NaN or infinity")
        ranges[name] = Range(min(0.0, low), max(0.0, high))
    return ranges
