"""Predicted latency of a transformer from its widths, fitted on measured models; steers, and is never shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.optimize
from numpy.typing import NDArray
from torch import Tensor

from autocompress.layers import LayerTable
from autocompress.plan import Plan, Prune


@dataclass(frozen=True)
class LatencyFit:
    """Latency ratio to dense as a line: ``base + coefficients · widths``, all 0 or more.

    Attributes:
        base: what stays however small the blocks become.
        coefficients: of `gates.Expected.widths`.
        error: mean absolute relative error on the models that it was fitted on.
    """

    base: float
    coefficients: tuple[float, float, float, float]
    error: float

    def predict(self, widths: Tensor) -> Tensor:
        """Ratio of widths ``(4,)``."""
        return self.base + (widths * widths.new_tensor(self.coefficients)).sum()


def fit_latency(widths: Sequence[Sequence[float]], ratios: Sequence[float]) -> LatencyFit:
    """Non-negative least squares of measured ratios on widths, weighted so that relative errors count.

    Args:
        widths: ``(models, 4)``.
        ratios: ``(models,)``, measured.
    """
    measured: NDArray[np.float64] = np.asarray(ratios, dtype=float)
    rows = np.column_stack([np.ones(len(measured)), np.asarray(widths, dtype=float)])
    solution, _residual = scipy.optimize.nnls(rows / measured[:, None], np.ones(len(measured)))
    error = float(np.abs(rows @ solution / measured - 1).mean())
    base, *coefficients = (float(value) for value in solution)
    return LatencyFit(base, tuple(coefficients), error)  # type: ignore[arg-type]


def calibration_plans(table: LayerTable) -> list[Plan]:
    """Plans whose latencies tell the coefficients apart: dense, and each kind of width made small by itself."""

    def kept(kind: str, share: float) -> dict[str, Prune]:
        found = [g for g in table.groups if g.kind == kind]
        return {g.name: Prune(max(1, round(g.size * share)), "magnitude", False) for g in found}

    def removed(kind: str) -> dict[str, Prune]:
        return {g.name: Prune(0, repair=False) for g in table.groups if g.kind == kind}

    heads, neurons, hidden = kept("heads", 0.5), kept("neurons", 0.25), kept("hidden", 0.5)
    choices = [
        {},
        heads,
        kept("heads", 0.01),
        neurons,
        kept("neurons", 0.01),
        {**heads, **neurons},
        hidden,
        {**hidden, **heads, **neurons},
        removed("attention"),
        removed("feed_forward"),
        {**removed("attention"), **removed("feed_forward")},
    ]
    plans = [Plan(groups) for groups in choices]
    return list(dict.fromkeys(plans))
