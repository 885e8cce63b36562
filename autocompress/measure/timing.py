"""The arithmetic of timing: blocks in turn, drift, bootstrap, early stop. Pure; whoever calls gives the clocked runs.

A *contestant* is something that can be run. A *round* runs every contestant's block once forwards and once
backwards (ABC CBA), so that a slow drift of the machine hits all alike. The first contestant is the reference.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from autocompress.hardware import Timing

BOOTSTRAPS = 1000
PATIENCE = 3
MAX_REJECTED_SHARE = 0.5


@dataclass
class Rounds:
    """What was timed.

    Attributes:
        times: contestant to the seconds of each query, in the rounds that were kept.
        blocks: contestant to its mean block median of each kept round.
        rejected: rounds thrown away because the reference drifted.
        drifting: rounds kept although the reference drifted, because too many did.
    """

    times: dict[str, list[float]] = field(default_factory=dict)
    blocks: dict[str, list[float]] = field(default_factory=dict)
    rejected: int = 0
    drifting: int = 0

    def ratios(self, contestant: str, reference: str) -> NDArray[np.float64]:
        """Contestant / reference of each kept round."""
        ratios: NDArray[np.float64] = np.array(self.blocks[contestant]) / np.array(self.blocks[reference])
        return ratios

    def __len__(self) -> int:
        """Number of kept rounds."""
        return len(next(iter(self.blocks.values()), []))


@dataclass(frozen=True)
class Interval:
    """A median with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float

    @property
    def half_width(self) -> float:
        """Half the interval, relative to the value."""
        return (self.high - self.low) / 2 / self.value


def bootstrap_median(values: NDArray[np.float64], seed: int = 0) -> Interval:
    """Median of the values and the 2.5 and 97.5 % points of the medians of `BOOTSTRAPS` resamples."""
    draws = np.random.default_rng(seed).integers(0, len(values), (BOOTSTRAPS, len(values)))
    medians = np.median(values[draws], axis=1)
    low, high = np.quantile(medians, [0.025, 0.975])
    return Interval(float(np.median(values)), float(low), float(high))


def time_in_turn(
    names: Sequence[str],
    run_block: Callable[[str], list[float]],
    protocol: Timing,
    enough_queries: int = 0,
) -> Rounds:
    """Run rounds until every ratio to the first name is known to `protocol.half_width`, or the rounds run out.

    A round whose reference blocks, before and after, differ by more than `protocol.drift` is thrown away, unless
    more than half of all rounds would be: then it is kept and counted as drifting.

    Args:
        names: contestants, the reference first.
        run_block: runs a block of queries of one contestant and returns the seconds of each.
        protocol: numbers of blocks, half-width, drift.
        enough_queries: while an interval is too wide, go on past `protocol.max_blocks` rounds, up to `PATIENCE` times
            as many, until each contestant has so many.
    """
    rounds = Rounds({name: [] for name in names}, {name: [] for name in names})
    order = [*names, *reversed(names)]
    for done in range(1, PATIENCE * protocol.max_blocks + 1):
        if done > protocol.max_blocks and _fewest(rounds) >= enough_queries:
            break
        halves: dict[str, list[list[float]]] = {name: [] for name in names}
        for name in order:
            halves[name].append(run_block(name))
        before, after = (float(np.median(block)) for block in halves[names[0]])
        if abs(before - after) > protocol.drift * min(before, after):
            if rounds.rejected < MAX_REJECTED_SHARE * done:
                rounds.rejected += 1
                continue
            rounds.drifting += 1
        for name, (first, second) in halves.items():
            rounds.times[name] += first + second
            rounds.blocks[name].append((float(np.median(first)) + float(np.median(second))) / 2)
        if len(rounds) >= protocol.min_blocks and _settled(rounds, names, protocol):
            break
    return rounds


def _fewest(rounds: Rounds) -> int:
    return min(len(times) for times in rounds.times.values())


def _settled(rounds: Rounds, names: Sequence[str], protocol: Timing) -> bool:
    return all(bootstrap_median(rounds.ratios(name, names[0])).half_width < protocol.half_width for name in names[1:])


def queries_per_block(seconds_per_query: float, block_seconds: float) -> int:
    """Queries that fill a block, 2 or more."""
    return max(2, round(block_seconds / max(seconds_per_query, 1e-9)))
