"""Figures that nothing was timed for, predicted or recorded, in the form of measured ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from autocompress.hardware import HardwareProfile
from autocompress.measure.latency import Contestant
from autocompress.measure.rounds import Rounds, Turn
from autocompress.records import Latency, Source, Tier


def one_round(contestants: Sequence[Contestant], load: Callable[[Contestant], float]) -> Rounds:
    """One round in which each contestant takes the seconds that `load` gives it."""
    found = {contestant.name: load(contestant) for contestant in contestants}
    return Rounds({name: [Turn(seconds, (seconds,))] for name, seconds in found.items()})


def latency_of(
    profile: HardwareProfile,
    source: Source,
    tier: Tier,
    seconds: float,
    ratios: tuple[float, float],
    *,
    doubt: float = 0.0,
    warning: str,
    **more: Any,
) -> Latency:
    """The latency of a file that did not run.

    Args:
        profile: of the device.
        source: "predicted" or "recorded".
        tier: is written down.
        seconds: per query.
        ratios: to the dense model in the same setting, and to the fastest dense setting.
        doubt: half the width of the ratios' intervals, as a share of them.
        warning: says what the figure is.
        more: further fields of `Latency`.
    """
    ratio, best = ratios
    low, high = max(0.0, 1 - doubt), 1 + doubt
    return Latency(
        latency_s=seconds,
        iqr_s=0.0,
        p90_s=seconds,
        ratio=ratio,
        ratio_low=ratio * low,
        ratio_high=ratio * high,
        ratio_best_dense=best,
        ratio_best_dense_low=best * low,
        ratio_best_dense_high=best * high,
        source=source,
        tier=tier,
        runtime=profile.runtime,
        threads=profile.threads,
        blocks=0,
        rejected_blocks=0,
        queries=0,
        warnings=(warning,),
        **more,
    )
