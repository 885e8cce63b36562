"""Candidates as the integer program sees them, before anything of them is measured."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from autocompress.pareto import nondominated
from autocompress.plan import Plan
from autocompress.space import Values


@dataclass(frozen=True)
class Expected:
    """A candidate as the program sees it.

    Attributes:
        values: of its variables.
        plan: what they mean.
        seconds: per query, expected.
        loss: sum of what its choices lose, in nats.
        others: of each further objective, expected.
    """

    values: Values
    plan: Plan
    seconds: float
    loss: float
    others: Mapping[str, float] = field(default_factory=dict)

    def takes(self, along: Sequence[str]) -> tuple[float, ...]:
        """Seconds, and what it takes of further objectives."""
        return self.seconds, *(self.others[name] for name in along)


def thinned(candidates: Iterable[Expected], along: Sequence[str] = ()) -> list[Expected]:
    """Those that no other beats in seconds, loss and further objectives, fast to slow."""
    every = sorted(candidates, key=lambda e: (e.seconds, e.loss))
    values = [(one.loss, *one.takes(along)) for one in every]
    mask = nondominated(values, [False] * (2 + len(along)))
    return [one for one, keep in zip(every, mask, strict=True) if keep]


def furthest(
    candidates: Sequence[Expected], front: Sequence[Expected], spots: Sequence[Sequence[float]], along: Sequence[str]
) -> Expected:
    """Of some candidates the one furthest from all spots, in what they take, ``(n, 1 + len(along))``.

    In logarithms, each as a share of what the front spans. Spots of which something is not known (NaN) do not count.
    """
    span = np.maximum(np.ptp(np.log([one.takes(along) for one in front]), axis=0), 1e-9)
    taken = np.log(np.reshape(spots, (-1, 1 + len(along)))) / span

    def distance(one: Expected) -> float:
        gaps = np.abs(taken - np.log(one.takes(along)) / span).max(axis=1)
        return float(np.nanmin(gaps, initial=math.inf))

    return max(candidates, key=distance)


def expectation(front: Sequence[Expected]) -> str:
    """What the program expects, in words."""
    if not front:
        return "the integer program finds no candidate"
    low, high = (front[place].seconds * 1e3 for place in (0, -1))
    return f"the integer program expects {len(front)} candidates from {low:.3g} to {high:.3g} ms"
