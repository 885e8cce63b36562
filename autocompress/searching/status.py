"""How far a search is, and who wants to know. Plain data, so that a terminal can show it without the search."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from autocompress.budgets import Budgets
from autocompress.drop import Drop
from autocompress.front import Front
from autocompress.records import Trial, aside

if TYPE_CHECKING:
    from autocompress.tasks.task import Metric


@dataclass(frozen=True)
class Status:
    """How far a search is.

    Attributes:
        stage: what is being done.
        done, failed: candidates evaluated, and how many of them failed.
        elapsed_s, budget_s: wall-clock spent and allowed.
        hypervolume: of what was found so far.
        best: the best candidate under the budgets, in words.
        detail: what within the stage, for a line that comes and goes; "" for nothing.
    """

    stage: str
    done: int
    failed: int
    elapsed_s: float
    budget_s: float
    hypervolume: float
    best: str
    detail: str = ""


class Watcher(Protocol):
    """Whoever wants to see the search at work."""

    def say(self, text: str) -> None:
        """A fact worth a line."""
        ...

    def update(self, status: Status) -> None:
        """Where the search stands."""
        ...

    def candidate(self, trial: Trial, front: Front) -> None:
        """A candidate has ended."""
        ...


class Silent:
    """A watcher that shows nothing."""

    def say(self, text: str) -> None:
        """Nothing."""

    def update(self, status: Status) -> None:
        """Nothing."""

    def candidate(self, trial: Trial, front: Front) -> None:
        """Nothing."""


def best_words(front: Front, budgets: Budgets, metric: Metric) -> str:
    """The best candidate under the budgets, by the select part: the fastest of those that lose little, or the best."""
    points = [t for t in front.points if t.latency]
    if not points:
        return "nothing within the budgets yet"
    by_speed = not budgets or budgets.max_drop is not None
    limit = _drop_limit(front, budgets, metric)
    within = [t for t in points if by_speed is False or (front.drop(t) or 0.0) <= limit]
    best = within[0] if by_speed and within else max(points, key=lambda trial: _goodness(trial, metric))
    assert best.latency is not None
    speed_up = 1 / best.latency.ratio_best_dense
    return f"{speed_up:.2f}x at {metric.name} {best.quality:.4g}{aside(best.latency.source)}"


def _goodness(trial: Trial, metric: Metric) -> float:
    quality = trial.quality or 0.0
    return quality if metric.maximize else -quality


def _drop_limit(front: Front, budgets: Budgets, metric: Metric) -> float:
    """Drop in the metric's unit up to which speed decides: what is asked, else a point, or 1 % of a raw metric."""
    dense = front.dense
    if dense is None or dense.quality is None:
        return 0.01
    drop = budgets.max_drop or Drop(0.01, relative=not metric.fraction)
    return drop.of(dense.quality)
