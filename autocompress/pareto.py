"""Domination and hypervolume of plain numbers, through moocore. Knows no trial and no model.

Points are ``(n, m)`` with one column per objective; `maximize` says for each column which way is better.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import moocore
import numpy as np
from numpy.typing import ArrayLike, NDArray


def nondominated(points: ArrayLike, maximize: Sequence[bool]) -> NDArray[np.bool_]:
    """Mask ``(n,)`` of the points that no other point dominates.

    Of equal points the first stays. A point with a NaN never stays.
    """
    values = np.asarray(points, dtype=float).reshape(-1, len(maximize))
    mask = np.zeros(len(values), dtype=bool)
    finite = np.isfinite(values).all(axis=1)
    if finite.any():
        mask[finite] = moocore.is_nondominated(values[finite], maximise=list(maximize), keep_weakly=False)
    return mask


def hypervolume(points: ArrayLike, reference: Sequence[float], maximize: Sequence[bool]) -> float:
    """Volume that the points dominate up to `reference`; 0.0 for none, NaN points are left out."""
    values = np.asarray(points, dtype=float).reshape(-1, len(maximize))
    values = values[np.isfinite(values).all(axis=1)]
    if not len(values):
        return 0.0
    return float(moocore.hypervolume(values, ref=list(reference), maximise=list(maximize)))


def log_ratio(ratio: float) -> float:
    """Natural logarithm of a ratio, in which progress is told; NaN for one that is none."""
    return math.log(ratio) if ratio > 0 else math.nan


#: The worst corner lies so much further than a loss that is allowed, so that what just keeps it counts.
BEYOND = 1.05


def reference_point(
    quality_dense: float, maximize: bool, fraction: bool | None = None, allowed: float = 0.0
) -> tuple[float, float]:
    """Fixed worst corner of the progress hypervolume of ``(ln latency ratio, quality)``.

    1.05 × the dense latency; for a share (accuracy, or an error rate), the dense error plus itself or plus 0.10,
    whichever is more; otherwise 20 % worse than dense; but `BEYOND` what is allowed to be lost, where that is further.

    Args:
        quality_dense: of the dense model.
        maximize: whether more is better.
        fraction: whether it is a share; None takes for one what is maximized and lies in [0, 1].
        allowed: loss that a user accepts, in the quality's unit.
    """
    share = 0.0 <= quality_dense <= 1.0 and (maximize if fraction is None else fraction)
    error = 1.0 - quality_dense if maximize else quality_dense
    lost = max(max(error, 0.10) if share else 0.2 * abs(quality_dense), BEYOND * allowed)
    return math.log(1.05), quality_dense - lost if maximize else quality_dense + lost


def domination_ranks(points: ArrayLike, maximize: Sequence[bool]) -> NDArray[np.int64]:
    """Non-domination rank of each point ``(n,)``: 0 for the front, 1 for what is the front without those, and so on.

    Points with a NaN rank behind all others.
    """
    values = np.asarray(points, dtype=float).reshape(-1, len(maximize))
    ranks = np.full(len(values), len(values), dtype=np.int64)
    finite = np.isfinite(values).all(axis=1)
    if finite.any():
        ranks[finite] = moocore.pareto_rank(values[finite], maximise=list(maximize))
    return ranks


def best_first(points: ArrayLike, reference: Sequence[float], maximize: Sequence[bool]) -> list[int]:
    """Numbers of the points by non-domination rank; within a rank, by the hypervolume that they alone add."""
    values = np.asarray(points, dtype=float).reshape(-1, len(maximize))
    ranks, added = domination_ranks(values, maximize), np.zeros(len(values))
    for rank in set(ranks.tolist()) - {len(values)}:
        alike = ranks == rank
        added[alike] = moocore.hv_contributions(values[alike], ref=list(reference), maximise=list(maximize))
    return sorted(range(len(values)), key=lambda i: (ranks[i], -added[i], i))


def most_telling(points: ArrayLike, reference: Sequence[float], maximize: Sequence[bool], count: int) -> list[int]:
    """Numbers of at most `count` points, in their order; what adds least hypervolume to those left goes first."""
    values = np.asarray(points, dtype=float).reshape(-1, len(maximize))
    left = list(range(len(values)))
    while len(left) > count:
        added = moocore.hv_contributions(values[left], ref=list(reference), maximise=list(maximize))
        left.pop(int(np.argmin(added)))
    return left
