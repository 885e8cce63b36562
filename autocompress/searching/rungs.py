"""Who is recovered, for how many steps: promotion from rung to rung, and how well lower rungs foretell higher ones.

Rung 0 is a candidate without recovery; each further rung recovers it from its start for more steps.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from autocompress.found import Audit
from autocompress.pareto import best_first, hypervolume, nondominated
from autocompress.plan import Plan
from autocompress.records import Trial
from autocompress.tables.table import rank_correlation

#: Of the candidates of one rung, one in so many goes on to the next.
ETA = 3

#: Latency bins of an audit, and the least number of candidates that a correlation is told for.
BINS, LEAST_AUDITED = 3, 4


def promoted(
    points: Sequence[tuple[float, ...]], reference: Sequence[float], maximize: Sequence[bool], count: int
) -> list[int]:
    """Numbers of the best `count` points: by non-domination rank, then by the hypervolume that they alone add."""
    return best_first(list(points), reference, maximize)[:count] if points else []


def audits(
    lower: int, upper: int, ratios: Sequence[float], below: Sequence[float], above: Sequence[float]
) -> list[Audit]:
    """Audit candidates that two rungs share, in bins of equal numbers along the latency ratio.

    Args:
        lower: number of the one rung.
        upper: number of the other.
        ratios: latency of each candidate.
        below: its quality on the lower rung.
        above: its quality on the upper one.
    """
    order = sorted(range(len(ratios)), key=lambda i: ratios[i])
    bins = max(1, min(BINS, len(order) // LEAST_AUDITED))
    found = []
    for part in np.array_split(np.array(order, dtype=int), bins):
        if len(part) >= LEAST_AUDITED:
            pairs = tuple(below[i] for i in part), tuple(above[i] for i in part)
            span = ratios[part[0]], ratios[part[-1]]
            found.append(Audit(lower, upper, *span, len(part), rank_correlation(*pairs), *pairs))
    return found


def audits_of(trials: Iterable[Trial], maximize: bool) -> list[Audit]:
    """Audits of neighbouring rungs, by the structures that both have; of several recoveries of one the best counts."""
    rungs: dict[int, dict[Plan, Trial]] = {}
    for trial in trials:
        if trial.latency is not None and trial.quality is not None:
            structure, alike = replace(trial.plan, distill=None, seed=0), rungs.setdefault(trial.rung, {})
            best = alike.get(structure)
            if best is None or best.quality is None or (trial.quality > best.quality) == maximize:
                alike[structure] = trial
    found = []
    for lower, upper in itertools.pairwise(sorted(rungs)):
        both = [(rungs[lower][plan], trial) for plan, trial in rungs[upper].items() if plan in rungs[lower]]
        ratios = [below.latency.ratio_best_dense for below, _above in both if below.latency]
        below, above = ([pair[i].quality or 0.0 for pair in both] for i in (0, 1))
        found += audits(lower, upper, ratios, below, above)
    return found


@dataclass(frozen=True)
class Recovered:
    """What recovery gave to candidates so far, and what it may give to another. Qualities are drops: less is better.

    Attributes:
        losses: of candidates before recovery, in nats, ``(n,)``.
        drops: their drops of quality after it, ``(n,)``.
    """

    losses: tuple[float, ...]
    drops: tuple[float, ...]

    def drop(self, loss: float) -> float:
        """Expected drop after recovery, never less for more loss.

        Linear in log loss between known ones, twice as steep above them; with the square root where only one is known.
        """
        logs = np.log(np.maximum(self.losses, 1e-9))
        order = np.argsort(logs)
        x, y = logs[order], np.maximum.accumulate(np.asarray(self.drops)[order])
        at = math.log(max(loss, 1e-9))
        if len(x) == 1 or x[-1] - x[0] < 1e-9:
            known = float(y.mean())
            return known + abs(known) * (math.exp(0.5 * (at - float(x.mean()))) - 1)
        if at > x[-1]:
            slope = (y[-1] - y[0]) / (x[-1] - x[0])
            return float(y[-1] + 2 * slope * (at - x[-1]))
        return float(np.interp(at, x, y))


def most_gained(
    candidates: Mapping[str, tuple[float, ...]],
    known: Sequence[tuple[float, ...]],
    reference: Sequence[float],
    maximize: Sequence[bool],
) -> str | None:
    """The candidate that would add most hypervolume; None where none would add any.

    Args:
        candidates: expected points by name.
        known: the points of what was measured.
        reference: the corner.
        maximize: whether more is better, of each coordinate.
    """
    front = [point for point, keep in zip(known, nondominated(known, maximize), strict=True) if keep]
    whole = hypervolume(front, reference, maximize)
    gains = {name: hypervolume([*front, point], reference, maximize) - whole for name, point in candidates.items()}
    best = max(gains, key=lambda name: gains[name], default=None)
    return best if best is not None and gains[best] > 0 else None
