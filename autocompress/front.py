"""The front of a set of trials: by which figure they are judged, which are non-dominated, which one fits a request.

Pure, no files.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autocompress.budgets import Budgets
from autocompress.errors import NothingFitsError
from autocompress.objectives import USUAL, Objectives
from autocompress.pareto import hypervolume, most_telling, nondominated
from autocompress.records import Part, Trial

#: Trials that are graded whatever time they take.
LEAST_GRADED = 8

#: Divergence, in nats, up to which predictions are the same.
SAME = 1e-9


@dataclass(frozen=True)
class Front:
    """Trials of one run, the direction of their quality, and by which figure they are judged.

    A search under way is judged by the select part of validation. When it is over, the finalists are judged among
    themselves by the confirm part, which the search never looked at: the best of many was lucky on what it was chosen
    by.

    Attributes:
        trials: every evaluation.
        maximize: whether more quality is better.
        points_per_unit: 100 where quality is a fraction, else 1.
        final: whether the search is over.
        scores: fingerprint to per-sample scores on the confirm part, of finalists that have them; for `ties`.
        objectives: by which trials are compared.
    """

    trials: tuple[Trial, ...]
    maximize: bool
    points_per_unit: float = 100.0
    final: bool = False
    scores: Mapping[str, NDArray[Any]] = field(default_factory=dict, repr=False, compare=False)
    objectives: Objectives = USUAL

    @cached_property
    def dense(self) -> Trial | None:
        """The measured dense trial."""
        return next((t for t in self.measured if t.origin == "dense"), None)

    @cached_property
    def measured(self) -> tuple[Trial, ...]:
        """Trials with latency and quality that did not fail afterwards, within the budgets or not."""
        return tuple(t for t in self.trials if t.measured and t.state in ("DONE", "INFEASIBLE"))

    @cached_property
    def finalists(self) -> tuple[Trial, ...]:
        """Trials that were graded as finalists; none before the search is over."""
        return tuple(t for t in self.measured if t.graded) if self.final else ()

    @cached_property
    def part(self) -> Part:
        """The part of validation that trials are judged by; select where a run knows of no other."""
        known = all(t.quality_confirm is not None for t in self.measured)
        return "confirm" if self.finalists and known else "select"

    def quality(self, trial: Trial) -> float:
        """What a measured trial is judged by."""
        value = trial.quality_on(self.part)
        assert value is not None
        return value

    @cached_property
    def judged(self) -> tuple[Trial, ...]:
        """What the front is chosen from: the finalists, or before there are any, every measured trial."""
        return self.finalists or self.measured

    @cached_property
    def feasible(self) -> tuple[Trial, ...]:
        """Judged trials within the budgets."""
        return tuple(t for t in self.judged if t.state == "DONE")

    @cached_property
    def points(self) -> tuple[Trial, ...]:
        """Feasible trials that no other dominates in the objectives, with validation quality; fast to slow."""
        return self._nondominated(self.feasible)

    @cached_property
    def closest(self) -> tuple[Trial, ...]:
        """Feasible trials that are no points, but on the front with their divergence in quality's place; fast to slow.

        The best of many by quality were lucky on the samples that chose them, and hide what loses less on others. How
        far predictions are from the dense model's is a mean of figures, not of hits and misses: luck has less hold of
        it. Left out is what is of no use: dense itself, and a quality at the worst corner of the hypervolume.
        """
        useful = [t for t in self.feasible if (t.divergence or 0.0) > 0 and self._useful(t)]
        points = {t.fingerprint for t in self.points}
        return tuple(t for t in self._nondominated(useful, divergence=True) if t.fingerprint not in points)

    @cached_property
    def promising(self) -> tuple[Trial, ...]:
        """What is worth grading: the points, and the closest beside them."""
        return (*self.points, *self.closest)

    def ungraded(self, budgets: Budgets) -> tuple[Trial, ...]:
        """What was worth grading, was not graded, and is beaten by no finalist as far as is known; fast to slow.

        None before the search is over.

        Args:
            budgets: of the search, to be kept on the part of validation that finalists are judged by.
        """
        if self.dense is None or not self.finalists:
            return ()
        dense = self.quality(self.dense)
        left = [
            t for t in replace(self, final=False).promising
            if not t.graded and self._useful(t) and fits(t, budgets, dense, self.maximize, self.part)
        ]  # fmt: skip
        return tuple(t for t in self._nondominated([*self.points, *left]) if not t.graded)

    def _useful(self, trial: Trial) -> bool:
        """Whether a measured trial loses less than the worst corner of the hypervolume; none without dense."""
        drop = self.drop(trial)
        return drop is not None and drop < self._worst

    @cached_property
    def _worst(self) -> float:
        """Quality lost at that corner."""
        assert self.dense is not None
        return self.lost(self._corner[self._place], self.quality(self.dense))

    def affordable(self, count: float) -> tuple[Trial, ...]:
        """The trials to grade: `count` of the promising at most, but at least `LEAST_GRADED`.

        Of points and closest those that add most hypervolume, half of them each where there are enough of both.
        """
        dense, count = self.dense, int(min(max(count, LEAST_GRADED), len(self.promising)))
        if dense is None or len(self.promising) <= count:
            return self.promising
        points, closest, corner = self.points, self.closest, self._corner
        room = max(count - len(closest), min(len(points), (count + 1) // 2))
        places = [self.objectives.point(t, dense, self.part) for t in points]
        chosen = [points[i] for i in most_telling(places, corner, self._directions, room)]
        near = [self._by_divergence(self.objectives.point(t, dense, self.part), t) for t in closest]
        furthest = self._by_divergence(corner, max(closest, key=lambda t: t.divergence or 0.0, default=dense))
        left = most_telling(near, furthest, self._directions, count - len(chosen))
        return (*chosen, *(closest[i] for i in left))

    @property
    def _corner(self) -> tuple[float, ...]:
        """Worst corner of the hypervolume."""
        assert self.dense is not None
        return self.objectives.reference(self.quality(self.dense), self.maximize)

    @property
    def _place(self) -> int:
        return self.objectives.names.index("quality")

    def _by_divergence(self, figures: Sequence[float], trial: Trial) -> tuple[float, ...]:
        """Figures of a trial with its divergence in quality's place, in logarithms, and turned as quality is."""
        told = math.log(max(trial.divergence or 0.0, SAME)) * (-1 if self.maximize else 1)
        return tuple(told if place == self._place else figure for place, figure in enumerate(figures))

    @cached_property
    def ties(self) -> dict[str, tuple[str, ...]]:
        """Fingerprint of a point to that of its faster neighbour, where its better quality lies within the noise."""
        found: dict[str, tuple[str, ...]] = {}
        for faster, slower in pairwise(self.points) if self.part == "confirm" else ():
            ours, theirs = (self.scores.get(t.fingerprint) for t in (slower, faster))
            if self._takes_less(slower, faster):
                continue  # not better quality is what it is there for
            if ours is not None and theirs is not None and within_noise(ours, theirs, self.maximize):
                found[slower.fingerprint] = (faster.fingerprint,)
        return found

    @cached_property
    def references(self) -> tuple[Trial, ...]:
        """What every reader compares with: dense, and the best of the uniform int8 trials."""
        uniform = [t for t in self.measured if t.origin == "uniform-int8"]
        best = min(uniform, key=_ratio, default=None)
        return tuple(t for t in (self.dense, best) if t is not None)

    def all_nondominated(self) -> tuple[Trial, ...]:
        """Non-dominated measured trials, budgets left aside, fast to slow."""
        return self._nondominated(self.measured)

    def _nondominated(self, trials: Sequence[Trial], divergence: bool = False) -> tuple[Trial, ...]:
        """Fast to slow; with `divergence`, that in quality's place."""
        figures = [self.objectives.values(t, self.part) for t in trials]
        if divergence:
            figures = [self._by_divergence(own, t) for own, t in zip(figures, trials, strict=True)]
        mask = nondominated(figures, self._directions)
        return tuple(sorted((t for t, keep in zip(trials, mask, strict=True) if keep), key=_ratio))

    @property
    def _directions(self) -> tuple[bool, ...]:
        return self.objectives.directions(self.maximize)

    def _takes_less(self, trial: Trial, other: Trial) -> bool:
        """Whether a trial is better than another in an objective beside latency and quality."""
        taken = (self.objectives.taken(one) for one in (trial, other))
        return any(mine < theirs for mine, theirs in zip(*taken, strict=True))

    def clearly_dominated(self, trial: Trial, faster: float = 0.95, better: float = 0.01) -> bool:
        """Whether a measured trial is over 5 % faster than this one and better by over 0.01 of the quality's size.

        It must take no more of anything else that is an objective, and keep the budgets where this one does.
        """
        ratios, qualities, taken = self._figures
        quality = self.quality(trial)
        gained = (qualities - quality) * (1 if self.maximize else -1)
        beaten = (ratios < faster * _ratio(trial)) & (gained > better * max(abs(quality), 1e-9))
        if trial.state == "DONE":
            beaten &= np.array([other.state == "DONE" for other in self.measured], dtype=bool)
        return bool((beaten & ~(self.objectives.taken(trial) < taken).any(axis=1)).any())

    @cached_property
    def _figures(self) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Latency ratios and qualities of the measured trials, ``(n,)`` each; what else they take, ``(n, others)``."""
        found = np.array([[_ratio(t), self.quality(t), *self.objectives.taken(t)] for t in self.measured])
        found = found.reshape(-1, len(self.objectives.names))
        return found[:, 0], found[:, 1], found[:, 2:]

    def hypervolume(self) -> float:
        """Of the feasible trials, in the coordinates of `Objectives.point`; 0.0 before dense is measured."""
        dense = self.dense
        if dense is None:
            return 0.0
        points = [self.objectives.point(t, dense, self.part) for t in self.feasible]
        return hypervolume(points, self._corner, self._directions)

    def drop(self, trial: Trial) -> float | None:
        """Validation quality lost against dense, in the metric's unit; positive is worse."""
        quality = trial.quality_on(self.part)
        if self.dense is None or quality is None:
            return None
        return self.lost(quality, self.quality(self.dense))

    def lost(self, quality: float, dense: float) -> float:
        """How much worse a quality is than the dense one, in the metric's unit; 0.0, never -0.0, where equal."""
        return dense - quality if self.maximize else quality - dense

    def choose(self, budgets: Budgets) -> Trial:
        """The trial that answers a request, by validation.

        With a drop but no latency or speed-up asked, or with nothing, the fastest; otherwise the best quality. Where no
        finalist keeps what is asked, any other measured trial may.

        Raises:
            NothingFitsError: with the nearest miss and what it lacks.
        """
        if self.dense is None:
            raise NothingFitsError("the run holds no measured model yet")
        dense = self.quality(self.dense)
        by_speed = budgets.asks_fastest or not budgets
        for trials in (self.judged, self.measured):
            fitting = [t for t in trials if fits(t, budgets, dense, self.maximize, self.part)]
            if fitting:
                return min(fitting, key=_ratio) if by_speed else max(fitting, key=self._goodness)
        nearest = self.nearest_miss(budgets)
        lacks = "; ".join(budgets.lacks(nearest, dense, self.maximize, self.part))
        raise NothingFitsError(f"no model fits; the nearest is {nearest.fingerprint} ({nearest.what}): {lacks}")

    def _goodness(self, trial: Trial) -> tuple[float, float]:
        quality = self.quality(trial)
        return (quality if self.maximize else -quality, -_ratio(trial))

    def nearest_miss(self, budgets: Budgets) -> Trial:
        """The measured trial with the least sum of budget violations, each relative to its budget."""
        assert self.dense is not None
        dense = self.quality(self.dense)

        def distance(trial: Trial) -> float:
            over = budgets.violations(trial, dense, self.maximize, self.part)
            scale = {"drop": max(budgets.max_drop.amount, 1e-3) if budgets.max_drop else 1.0}
            return sum(max(0.0, value) / scale.get(name, 1.0) for name, value in over.items())

        return min(self.measured, key=distance)


def fits(trial: Trial, budgets: Budgets, quality_dense: float, maximize: bool, part: Part = "select") -> bool:
    """Whether a measured trial keeps every budget, with its quality on a part of validation."""
    return all(value <= 0 for value in budgets.violations(trial, quality_dense, maximize, part).values())


def within_noise(ours: NDArray[Any], theirs: NDArray[Any], maximize: bool) -> bool:
    """Whether what one model is better than another lies within the noise, at 95 %.

    It does where ``mean(d) ≤ 1.96·sd(d)/√n`` for the differences d of their scores, ``(n,)`` each, of the very same
    samples. Of hits and misses this is McNemar's comparison: only samples that one of the two gets right count.
    """
    gained = (ours.astype(float) - theirs) * (1 if maximize else -1)
    return len(gained) < 2 or bool(gained.mean() <= 1.96 * gained.std(ddof=1) / np.sqrt(len(gained)))


def _ratio(trial: Trial) -> float:
    assert trial.latency is not None
    return trial.latency.ratio_best_dense


def front_entry(trial: Trial, front: Front, on_front: bool) -> dict[str, Any]:
    """One row of ``autocompress front --json``.

    The validation figures are of ``validation_part``, which the front is chosen by: "select" while a search is under
    way, "confirm" at the end, "all" in runs from before there were parts.
    """
    dense, latency = front.dense, trial.latency
    assert latency is not None
    assert trial.artifact is not None
    dense_test = dense.quality_test if dense else None
    drop_test = None
    if dense_test is not None and trial.quality_test is not None:
        drop_test = front.points_per_unit * front.lost(trial.quality_test, dense_test)
    drop = front.drop(trial)
    return {
        "fingerprint": trial.fingerprint,
        "on_front": on_front,
        "origin": trial.origin,
        "what": trial.what,
        "latency_s": latency.latency_s,
        "latency_source": latency.source,
        "latency_ratio": latency.ratio,
        "latency_ratio_low": latency.ratio_low,
        "latency_ratio_high": latency.ratio_high,
        "latency_ratio_best_dense": latency.ratio_best_dense,
        "latency_ratio_best_dense_low": latency.ratio_best_dense_low,
        "latency_ratio_best_dense_high": latency.ratio_best_dense_high,
        "validation_part": "all" if trial.quality_confirm is None else front.part,
        "quality_validation": trial.quality_on(front.part),
        "quality_select": trial.quality,
        "quality_confirm": trial.quality_confirm,
        "quality_test": trial.quality_test,
        "stderr_validation": trial.stderr_on(front.part),
        "stderr_test": trial.quality_test_stderr,
        "quality_dense_test": dense_test,
        "drop_points_validation": front.points_per_unit * drop if drop is not None else None,
        "drop_points_test": drop_test,
        "tied_with": list(front.ties.get(trial.fingerprint, ())),
        "size_bytes": trial.artifact.size_bytes,
        "size_bytes_dense": dense.artifact.size_bytes if dense and dense.artifact else None,
        "peak_memory_bytes": latency.peak_memory_bytes,
        "peak_memory_bytes_dense": dense.latency.peak_memory_bytes if dense and dense.latency else None,
        "artifact": trial.artifact.path,
        "artifact_dense": dense.artifact.path if dense and dense.artifact else None,
        "plan": trial.plan.to_json(),
    }


def front_entries(front: Front) -> list[dict[str, Any]]:
    """The front fast to slow, and the reference points that are not on it."""
    points = front.points
    on_front = {t.fingerprint for t in points}
    rest = [t for t in front.references if t.fingerprint not in on_front]
    both = sorted([*points, *rest], key=_ratio)
    return [front_entry(t, front, t.fingerprint in on_front) for t in both]
