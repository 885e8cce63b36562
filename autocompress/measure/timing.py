"""The arithmetic of timing: blocks in turn, their faults, intervals, when to stop. Pure; the caller runs blocks.

A *contestant* is something that can be run. A *round* runs every contestant's block once forwards and once
backwards (ABC CBA), so that a slow drift of the machine hits all alike. The first contestant is the reference.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from autocompress.hardware import Timing
from autocompress.measure.blocks import Block
from autocompress.measure.rounds import Fault, Rounds, Turn

BOOTSTRAPS = 1000
PATIENCE = 3
#: After so many rounds nothing better is waited for.
HOPE = 12
#: What a contestant takes when nobody disturbs it: this quantile of its blocks, least of all for few of them.
FLOOR = 0.1

#: Differences under this are called equal, however narrow the interval: two loads of one file differ by as much.
RESOLUTION = 0.02

#: Below so many queries a 99th percentile is not told.
P99_QUERIES = 1000


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


#: Contestant to its two blocks of each round.
_Pairs = Mapping[str, list[tuple[Block, Block]]]


def time_in_turn(
    names: Sequence[str],
    run_block: Callable[[str], Block],
    protocol: Timing,
    enough_queries: int = 0,
    decided: Callable[[Rounds], bool] | None = None,
    *,
    references: Sequence[str] = (),
) -> Rounds:
    """Run rounds until every ratio to the first name is known to `protocol.half_width`, or the rounds run out.

    A round does not count for a contestant when other programs took the processor in a block of its own or of a
    reference, when the blocks of the first, before and after, differ by more than `protocol.drift`, or when one of
    those blocks takes more than `protocol.slowed` longer than the same contestant's undisturbed ones do. The last is
    all that a guest sees of other guests on its machine: they slow blocks in bursts of seconds, short layers more than
    long ones, so that a ratio of slowed blocks is another ratio.

    Where fewer than `protocol.min_blocks` rounds are left to one, the least slowed of the others stand in, a quarter
    of all rounds, and are counted as such: a busy machine still gives an answer, and in no more than `PATIENCE` times
    the time of `protocol.max_blocks` undisturbed rounds, unless the fewest take longer.

    Args:
        names: contestants, a reference first.
        run_block: runs a block of queries of one contestant.
        protocol: numbers of blocks, half-width, what is called drifting and slowed.
        enough_queries: while an interval is too wide, go on past `protocol.max_blocks` rounds, up to `PATIENCE` times
            as many, until each contestant has so many.
        decided: another reason to stop, asked once each contestant has `protocol.min_blocks` rounds without fault.
        references: beside the first, contestants that the others are compared with.
    """
    done: _Pairs = {name: [] for name in names}
    rounds = Rounds()
    for number in range(1, PATIENCE * protocol.max_blocks + 1):
        if number > protocol.max_blocks and _is_enough(rounds, enough_queries):
            break
        if number > protocol.min_blocks and _overtime(done) > PATIENCE * protocol.max_blocks:
            break
        _run_round(done, run_block)
        turns = {name: _turns(pairs, protocol, first=name == names[0]) for name, pairs in done.items()}
        rounds = Rounds(turns, (names[0], *references), protocol.min_blocks)
        if any(rounds.kept(name).faultless < protocol.min_blocks for name in names):
            continue
        if _settled(rounds, names, protocol) or (decided is not None and decided(rounds)):
            break
    return rounds


def _is_enough(rounds: Rounds, enough_queries: int) -> bool:
    """Whether to be content with more than `protocol.max_blocks` rounds."""
    faultless = all(rounds.kept(name).faultless >= rounds.least for name in rounds.turns)
    fewest = min(len(rounds.times(name)) for name in rounds.turns)
    return fewest >= enough_queries and (faultless or len(rounds) >= HOPE)


def _run_round(done: _Pairs, run_block: Callable[[str], Block]) -> None:
    first = {name: run_block(name) for name in done}
    second = {name: run_block(name) for name in reversed(list(done))}
    for name, pairs in done.items():
        pairs.append((first[name], second[name]))


def _overtime(done: _Pairs) -> float:
    """Seconds spent so far, in rounds whose every query would take as long as the fastest one on its input."""
    spent = fastest = 0.0
    for pairs in done.values():
        blocks = [np.array(block.times).reshape(-1, block.inputs) for pair in pairs for block in pair]
        spent += sum(float(block.sum()) for block in blocks)
        least = np.min([block.min(axis=0) for block in blocks], axis=0)
        fastest += 2 * len(blocks[0]) * float(least.sum())
    return spent / max(fastest, 1e-12) - 1e-9


def _turns(pairs: Sequence[tuple[Block, Block]], protocol: Timing, *, first: bool) -> list[Turn]:
    """A contestant's turns, judged by its own undisturbed blocks; of the `first` contestant, by its drift, too."""
    floor = float(np.quantile([block.seconds for pair in pairs for block in pair], FLOOR, method="lower"))
    turns = []
    for pair in pairs:
        fast, slow = sorted(block.seconds for block in pair)
        slowed = slow / max(floor, 1e-12) - 1
        drifts = first and (slow - fast) / max(fast, 1e-12) > protocol.drift
        fault: Fault | None = None
        if any(block.contended for block in pair):
            fault = "contended"
        elif drifts or slowed > protocol.slowed + 1e-9:
            fault = "unsteady"
        turns.append(Turn((fast + slow) / 2, pair[0].kept_times + pair[1].kept_times, slowed, fault))
    return turns


def _settled(rounds: Rounds, names: Sequence[str], protocol: Timing) -> bool:
    return all(bootstrap_median(rounds.ratios(name, names[0])).half_width < protocol.half_width for name in names[1:])
