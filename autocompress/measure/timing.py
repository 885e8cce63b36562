"""The arithmetic of timing: blocks in turn, what is thrown away, intervals, when to stop. Pure; the caller runs blocks.

A *contestant* is something that can be run. A *round* runs every contestant's block once forwards and once
backwards (ABC CBA), so that a slow drift of the machine hits all alike. The first contestant is the reference.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from autocompress.hardware import Timing
from autocompress.measure.blocks import Block

BOOTSTRAPS = 1000
PATIENCE = 3
#: Of rounds that are all faulty, the best quarter is kept.
KEPT_SHARE = 0.25
#: After so many rounds nothing better is waited for.
HOPE = 12
#: What a contestant takes when nobody disturbs it: this quantile of its blocks, least of all for few of them.
FLOOR = 0.1

#: Differences under this are called equal, however narrow the interval: two loads of one file differ by as much.
RESOLUTION = 0.02

#: Below so many queries a 99th percentile is not told.
P99_QUERIES = 1000


@dataclass
class Rounds:
    """What was timed.

    Attributes:
        times: contestant to the seconds of each query that nobody disturbed, in the rounds that were kept.
        blocks: contestant to its mean block figure of each kept round.
        rejected: rounds thrown away.
        contended: of these, the ones in which other programs took the processor; the others were unsteady.
        crowded, unsteady: rounds kept although other programs took the processor, or although a block was slowed or
            the reference drifted, for want of better ones.
    """

    times: dict[str, list[float]] = field(default_factory=dict)
    blocks: dict[str, list[float]] = field(default_factory=dict)
    rejected: int = 0
    contended: int = 0
    crowded: int = 0
    unsteady: int = 0

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
    low, high = np.quantile(_medians(values, np.random.default_rng(seed)), [0.025, 0.975])
    return Interval(float(np.median(values)), float(low), float(high))


def bootstrap_nested(groups: Sequence[NDArray[np.float64]], seed: int = 0) -> Interval:
    """Median over the groups of each group's median; the interval resamples groups, then values within them.

    What differs from one process to the next (where memory lies, which core serves) is constant within it: blocks of
    one process, however many, do not see it. Each group weighs alike. One group gives `bootstrap_median`.
    """
    if len(groups) == 1:
        return bootstrap_median(groups[0], seed)
    rng = np.random.default_rng(seed)
    picks = rng.integers(0, len(groups), (BOOTSTRAPS, len(groups)))
    drawn = np.zeros(picks.shape)
    for slot in range(len(groups)):
        for number, values in enumerate(groups):
            chosen = picks[:, slot] == number
            drawn[chosen, slot] = _medians(values, rng)[chosen]
    low, high = np.quantile(np.median(drawn, axis=1), [0.025, 0.975])
    return Interval(float(np.median([np.median(values) for values in groups])), float(low), float(high))


def _medians(values: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    draws = rng.integers(0, len(values), (BOOTSTRAPS, len(values)))
    medians: NDArray[np.float64] = np.median(values[draws], axis=1)
    return medians


def verdict(ratio: Interval) -> Literal["faster", "equal", "slower"]:
    """What a ratio's interval allows to say: a difference must exclude 1 and exceed `RESOLUTION`."""
    if ratio.high < 1 and ratio.value < 1 - RESOLUTION:
        return "faster"
    return "slower" if ratio.low > 1 and ratio.value > 1 + RESOLUTION else "equal"


def order_decided(ratios: NDArray[np.float64], rivals: Sequence[float]) -> bool:
    """Whether the interval of the ratios' median excludes every rival's ratio, so that its rank is known."""
    found = bootstrap_median(ratios)
    return bool(rivals) and not any(found.low <= rival <= found.high for rival in rivals)


def p99(times: Sequence[float]) -> Interval | None:
    """The 99th percentile with its order-statistic interval of 95 % or more; None below `P99_QUERIES` values.

    The interval runs between the r-th and s-th smallest values with P(r ≤ B < s) ≥ 0.95 for B ~ Binomial(n, 0.99),
    with at most 2.5 % on either side (Conover, Practical Nonparametric Statistics, 3.2).
    """
    n = len(times)
    if n < P99_QUERIES:
        return None
    ordered = np.sort(np.array(times))
    k = np.arange(n + 1)
    logs = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n + 1)))])
    below = np.cumsum(np.exp(logs[n] - logs[k] - logs[n - k] + k * math.log(0.99) + (n - k) * math.log(0.01)))
    first = int(np.searchsorted(below, 0.025, side="right"))  # P(B < first) ≤ 2.5 %
    last = min(n, int(np.searchsorted(below, 0.975)) + 1)  # P(B ≥ last) ≤ 2.5 %
    return Interval(float(np.quantile(ordered, 0.99)), float(ordered[max(1, first) - 1]), float(ordered[last - 1]))


@dataclass(frozen=True)
class _Round:
    """Both blocks of every contestant, and what is wrong with them."""

    halves: Mapping[str, tuple[Block, Block]]
    drift: float

    @property
    def contended(self) -> bool:
        return any(block.contended for pair in self.halves.values() for block in pair)

    def slowed(self, floors: Mapping[str, float]) -> float:
        """By which share its slowest block takes longer than that contestant's floor."""
        slowest = {name: max(block.seconds for block in pair) for name, pair in self.halves.items()}
        return max(slowest[name] / max(floors[name], 1e-12) for name in slowest) - 1


def time_in_turn(
    names: Sequence[str],
    run_block: Callable[[str], Block],
    protocol: Timing,
    enough_queries: int = 0,
    decided: Callable[[Rounds], bool] | None = None,
) -> Rounds:
    """Run rounds until every ratio to the first name is known to `protocol.half_width`, or the rounds run out.

    A round is thrown away when other programs took the processor in it, when its reference blocks, before and after,
    differ by more than `protocol.drift`, or when one of its blocks takes more than `protocol.slowed` longer than that
    contestant's undisturbed blocks do. The last is all that a guest sees of other guests on its machine: they slow
    blocks in bursts of seconds, short layers more than long ones, so that a ratio of slowed blocks is another ratio.

    Where fewer than `protocol.min_blocks` rounds are left, the least slowed of the others stand in, a quarter of all
    rounds, and are counted as such: a busy machine still gives an answer, and in no more than `PATIENCE` times the
    time of `protocol.max_blocks` undisturbed rounds, unless the fewest take longer.

    Args:
        names: contestants, the reference first.
        run_block: runs a block of queries of one contestant.
        protocol: numbers of blocks, half-width, what is called drifting and slowed.
        enough_queries: while an interval is too wide, go on past `protocol.max_blocks` rounds, up to `PATIENCE` times
            as many, until each contestant has so many.
        decided: another reason to stop, asked once `protocol.min_blocks` rounds without fault are there.
    """
    done: list[_Round] = []
    kept = Rounds()
    for number in range(1, PATIENCE * protocol.max_blocks + 1):
        if number > protocol.max_blocks and _is_enough(kept, enough_queries):
            break
        if number > protocol.min_blocks and _overtime(done) > PATIENCE * protocol.max_blocks:
            break
        done.append(_run_round(names, run_block))
        faulty = _faulty(done, protocol)
        kept = _keep(done, faulty, protocol)
        if faulty.count(False) < protocol.min_blocks or faulty[-1]:
            continue
        if _settled(kept, names, protocol) or (decided is not None and decided(kept)):
            break
    return kept


def _is_enough(kept: Rounds, enough_queries: int) -> bool:
    """Whether to be content with what is kept of more than `protocol.max_blocks` rounds."""
    stand_in = kept.crowded + kept.unsteady > 0
    return _fewest(kept) >= enough_queries and (not stand_in or len(kept) + kept.rejected >= HOPE)


def _run_round(names: Sequence[str], run_block: Callable[[str], Block]) -> _Round:
    first = {name: run_block(name) for name in names}
    second = {name: run_block(name) for name in reversed(names)}
    before, after = first[names[0]].seconds, second[names[0]].seconds
    return _Round(
        {name: (first[name], second[name]) for name in names}, abs(before - after) / max(min(before, after), 1e-12)
    )


def _overtime(done: Sequence[_Round]) -> float:
    """Seconds spent so far, in rounds whose every query would take as long as the fastest one on its input."""
    spent = fastest = 0.0
    for name in done[0].halves:
        blocks = [np.array(b.times).reshape(-1, b.inputs) for item in done for b in item.halves[name]]
        spent += sum(float(block.sum()) for block in blocks)
        least = np.min([block.min(axis=0) for block in blocks], axis=0)
        fastest += 2 * len(blocks[0]) * float(least.sum())
    return spent / max(fastest, 1e-12) - 1e-9


def _floors(done: Sequence[_Round]) -> dict[str, float]:
    """Contestant to the seconds of its undisturbed blocks."""
    return {
        name: float(np.quantile([block.seconds for item in done for block in item.halves[name]], FLOOR, method="lower"))
        for name in done[0].halves
    }


def _faulty(done: Sequence[_Round], protocol: Timing) -> list[bool]:
    floors = _floors(done)
    return [
        item.contended or item.drift > protocol.drift or item.slowed(floors) > protocol.slowed + 1e-9 for item in done
    ]


def _keep(done: Sequence[_Round], faulty: Sequence[bool], protocol: Timing) -> Rounds:
    """The rounds without fault, or the best quarter of all where these are too few; in the order of running."""
    kept = {number for number, fault in enumerate(faulty) if not fault}
    if len(kept) < protocol.min_blocks:
        floors = _floors(done)
        others = sorted(set(range(len(done))) - kept, key=lambda n: (done[n].slowed(floors), done[n].drift))
        enough = max(protocol.min_blocks, math.ceil(KEPT_SHARE * len(done)))
        kept |= set(others[: enough - len(kept)])
    left = [item for number, item in enumerate(done) if number not in kept]
    stand_ins = [done[number] for number in kept if faulty[number]]
    crowded = sum(item.contended for item in stand_ins)
    rounds = Rounds(
        rejected=len(left),
        contended=sum(item.contended for item in left),
        crowded=crowded,
        unsteady=len(stand_ins) - crowded,
    )
    for name in done[0].halves:
        pairs = [done[number].halves[name] for number in sorted(kept)]
        rounds.times[name] = [seconds for pair in pairs for block in pair for seconds in block.kept_times]
        rounds.blocks[name] = [(first.seconds + second.seconds) / 2 for first, second in pairs]
    return rounds


def _fewest(rounds: Rounds) -> int:
    return min(len(times) for times in rounds.times.values())


def _settled(rounds: Rounds, names: Sequence[str], protocol: Timing) -> bool:
    return all(bootstrap_median(rounds.ratios(name, names[0])).half_width < protocol.half_width for name in names[1:])
