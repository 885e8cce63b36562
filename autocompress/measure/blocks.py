"""One block of queries: which of them other programs slowed, and the one figure that stands for it. Pure.

Why waiting, of all that a kernel tells. Where strangers kept the cores busy, a query took 1.2 ms or 6 to 20 ms and
hardly anything between: threads that were ready stood in line for whole time slices of 4 ms. Linux counts exactly
this, per thread (`measure.usage`). Wall-clock minus processor time tells it only with one thread (a runtime's threads
wait for one another, too, and spin), and a count of switches cannot tell 5 µs from 4 ms.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

#: A query is disturbed when its threads stood in line for more than this share of its time.
WAITED = 0.05
#: Of a contended block of several threads the lower quartile is taken: the queries that strangers slowed least.
QUARTILE = 0.25
#: A block is contended when fewer than this share of its queries are undisturbed.
UNDISTURBED = 0.25


@dataclass(frozen=True)
class Block:
    """Queries that ran back to back.

    Attributes:
        times: seconds of each query; the workload's inputs in turn, in whole passes.
        waited: seconds that the process' threads stood in line for a core, as known at the end of each query; empty
            where nobody counts it.
        inputs: how many different inputs a pass has.
        one_thread: whether a second in line is a second more that the query took; of several threads, one may go on
            while another stands in line.
    """

    times: tuple[float, ...]
    waited: tuple[float, ...] = ()
    inputs: int = 1
    one_thread: bool = False

    @cached_property
    def contended(self) -> bool:
        """Whether other programs left too few queries alone, or one of the inputs none."""
        alone = undisturbed(self).reshape(-1, self.inputs)
        return bool(alone.mean() < UNDISTURBED or not alone.any(axis=0).all())

    @cached_property
    def seconds(self) -> float:
        """Mean over the inputs of the median over the passes, of undisturbed queries.

        Of a contended block all queries count: their median without the waiting, where that is known, or else their
        lower quartile.
        """
        share = QUARTILE if self.contended and not self.one_thread else 0.5
        return float(np.nanquantile(self._kept(), share, axis=0).mean())

    @cached_property
    def kept_times(self) -> tuple[float, ...]:
        """Seconds of the undisturbed queries; of a contended block all, without the waiting where that is known."""
        kept = self._kept().ravel()
        return tuple(kept[~np.isnan(kept)].tolist())

    def _kept(self) -> NDArray[np.float64]:
        """Seconds ``(passes, inputs)``, NaN where a query does not count."""
        times = np.array(self.times)
        if not self.contended:
            times = np.where(undisturbed(self), times, np.nan)
        elif self.one_thread:
            waited = np.array(self.waited)
            times = np.where(waited < times, times - waited, times)  # more was waited between two queries
        return times.reshape(-1, self.inputs)


def undisturbed(block: Block) -> NDArray[np.bool_]:
    """Which queries ``(n,)`` no other program slowed.

    A wait is known once its thread runs again. One of w seconds that a query tells may have begun w seconds before
    that query did, while another thread of the process went on alone: queries from there on count as disturbed.
    Where there is no other thread, the wait lies within the query.
    """
    times = np.array(block.times)
    alone = np.ones(len(times), dtype=np.bool_)
    if not block.waited:
        return alone
    waited = np.array(block.waited)
    if block.one_thread:
        return waited <= WAITED * times
    ends = np.cumsum(times)
    for i in np.flatnonzero(waited > WAITED * times):
        begun = ends[i] - times[i] - waited[i]
        alone[: i + 1] &= ends[: i + 1] <= begun
    return alone


def queries_per_block(seconds_per_query: float, block_seconds: float, inputs: int = 1) -> int:
    """Queries that fill a block: whole passes over the inputs, and 2 or more."""
    passes = round(block_seconds / max(seconds_per_query * inputs, 1e-9))
    return max(1 if inputs > 1 else 2, passes) * inputs
