"""What a staged search has seen: its trials, what is under way, and how good each of them is."""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from autocompress.budgets import ROUNDING
from autocompress.objectives import USUAL, Objectives, amount
from autocompress.pareto import hypervolume, nondominated
from autocompress.plan import Plan
from autocompress.records import Trial
from autocompress.searching.controller import Proposal

#: What counts as no loss.
NOTHING = 1e-6

#: The least loss that a quality tells, which is noisy where predictions are not.
HARDLY = 1e-3

#: Number that stands for "no proposal of the controller".
NO_PROPOSAL = -1


@dataclass(frozen=True)
class Clock:
    """Where a search stands, in time and in candidates.

    Attributes:
        elapsed: gives wall-clock seconds of this and earlier sessions.
        begun_s: of these, when the stages began.
        budget_s: allowed in all.
        count: gives the candidates that were begun, in earlier sessions too.
        begun_count: of these, how many there were when the stages began.
        most: candidates allowed in all; None for any number.
        stagnates: gives whether the last candidates of what is under way added next to nothing.
    """

    elapsed: Callable[[], float]
    begun_s: float
    budget_s: float
    count: Callable[[], int] = lambda: 0
    begun_count: int = 0
    most: int | None = None
    stagnates: Callable[[], bool] = lambda: False

    @property
    def left_s(self) -> float:
        """Seconds that are left."""
        return self.budget_s - self.elapsed()

    def before(self, share: float) -> bool:
        """Whether less than a share is spent of what there was at the beginning, be it time or candidates."""
        if self.elapsed() - self.begun_s >= share * (self.budget_s - self.begun_s):
            return False
        return self.most is None or self.count() - self.begun_count < share * (self.most - self.begun_count)

    def anew(self, left_s: float) -> Clock:
        """One that begins now, with so many seconds and all candidates that are left."""
        now = self.elapsed()
        return replace(self, begun_s=now, budget_s=now + max(0.0, left_s), begun_count=self.count())


@dataclass(frozen=True)
class Teller:
    """Who is told what happens.

    Attributes:
        say: a fact worth a line.
        stage: what begins.
        detail: what is being done within it.
        begin: something new is tried, so that what came before says nothing of how it goes.
        worked: how many seconds went into measuring something other than candidates.
    """

    say: Callable[[str], None] = lambda _text: None
    stage: Callable[[str], None] = lambda _text: None
    detail: Callable[[str], None] = lambda _text: None
    begin: Callable[[], None] = lambda: None
    worked: Callable[[float], None] = lambda _seconds: None


@dataclass(frozen=True)
class Judge:
    """How a search looks at trials.

    Attributes:
        maximize: whether more quality is better.
        fits: whether a trial is fast and small enough, whatever it loses.
        objectives: by which trials are compared, with the drop of quality that is allowed.
        recovers: whether what a trial loses may yet be won back.
        fastest: whether the fastest that keeps the allowed loss, without recovery, is all that is asked for.
    """

    maximize: bool
    fits: Callable[[Trial], bool]
    objectives: Objectives = USUAL
    recovers: bool = False
    fastest: bool = False

    @property
    def directions(self) -> tuple[bool, ...]:
        """Whether more is better, of each objective."""
        return self.objectives.directions(self.maximize)


class Seen:
    """Trials by fingerprint, proposals that are under way, and spots.

    A spot is what a measured candidate without recovery takes: its ratio to dense in the same runtime, and its bytes
    of each further objective, NaN where they are not known.

    Args:
        judge: how trials are looked at.
        clock: where the search stands.
    """

    def __init__(self, judge: Judge, clock: Clock) -> None:
        self.judge = judge
        self.clock = clock
        self.trials: dict[str, Trial] = {}
        self.under_way: dict[str, Proposal] = {}
        self.spots: dict[str, tuple[float, ...]] = {}
        self.left_s = math.inf
        self._dense: Trial | None = None
        self._best: float | None = None
        self._front: list[Trial] | None = None  # known from when it is first asked for
        self._fitting = False  # whether its members are fast and small enough
        self._volume: float | None = None  # the same; until the front, or what it is told by, changes
        self._misses: tuple[float, list[Trial]] | None = None  # of `front_up_to`, until another trial is told
        self._top: Trial | None = None
        self._kept: float | None = None  # ratio of the fastest that keeps the allowed loss, where that is asked for
        self._lost: list[float] = []  # of those that the program chose and that do not keep it
        self._spent: dict[int, tuple[int, float]] = {}

    def keep(self, trial: Trial) -> None:
        """Take in a trial, new or known."""
        known, self._misses = self.trials.get(trial.fingerprint), None
        for one, sign in ((known, -1), (trial, 1)):
            if one is not None and one.measured:
                count, seconds = self._spent.get(one.rung, (0, 0.0))
                self._spent[one.rung] = (count + sign, seconds + sign * sum(one.seconds.values()))
        if known is not None or (not self._fitting and trial.rung == 0 and self.worth(trial)):
            self._front = self._volume = None  # another version of it may be part of it, or what does not fit
        elif self._front is not None and self._changes(trial, self._front):
            self._front, self._volume = self._nondominated([*self._front, trial]), None
        if self._best is not None and (known is not None or (trial.quality or 0.0) > self._best):
            self._best = self._volume = None
        self.trials[trial.fingerprint] = trial
        if known is not None:
            self._kept = None
            self._top = max(filter(_untrained, self.trials.values()), key=self._rank, default=None)
        elif _untrained(trial) and (self._top is None or self._rank(trial) > self._rank(self._top)):
            self._top = trial
        if self._kept is not None:
            self._bracket(trial)
        self.spots.pop(trial.fingerprint, None)
        if _untrained(trial):
            taken = (amount(trial, name) or math.nan for name in self.judge.objectives.more)
            self.spots[trial.fingerprint] = (own_ratio(trial), *taken)
        if self._dense is None and trial.quality is not None and trial.plan == Plan():
            self._dense, self._volume, self._kept = trial, None, None

    def _changes(self, trial: Trial, front: Sequence[Trial]) -> bool:
        """Whether a new trial is on the front: no member is at most as slow, and loses and takes at most as much."""
        if not _untrained(trial) or (self._fitting and not self.worth(trial)):
            return False
        ratio, drop, taken = ratio_of(trial), self.drop(trial), self.judge.objectives.taken
        mine = taken(trial)
        return not any(
            ratio_of(one) <= ratio and self.drop(one) <= drop and all(map(operator.le, taken(one), mine))
            for one in front
        )

    def typical_seconds(self, rung: int) -> float:
        """Mean seconds of the measured trials of a rung; 0 for none."""
        count, seconds = self._spent.get(rung, (0, 0.0))
        return seconds / count if count else 0.0

    def time_left(self) -> Clock:
        """A clock over what is left now, without what the end of the search will take."""
        return self.clock.anew(min(self.left_s, self.clock.left_s))

    def settled(self) -> Iterator[None]:
        """Nothing to propose until all that is under way is told."""
        while self.under_way:
            yield None

    def proposed(self, plan: Plan) -> bool:
        """Whether a plan was evaluated, or is being."""
        return plan.fingerprint in self.trials or plan.fingerprint in self.under_way

    def structures(self) -> list[Trial]:
        """Measured candidates without recovery that are fast enough, fast to slow; dense itself has nothing to gain."""
        found = [t for t in self.trials.values() if t.rung == 0 and self.worth(t)]
        return sorted([t for t in found if t.plan != Plan()] or found, key=ratio_of)

    def worth(self, trial: Trial) -> bool:
        """Whether a trial may be recovered, or lies among what others are held against: it is fast and small enough."""
        return trial.measured and self.judge.fits(trial)

    def keeps(self, trial: Trial) -> bool:
        """Whether a measured trial loses no more than is allowed."""
        return self.drop(trial) <= self.most_lost + ROUNDING

    @property
    def most_lost(self) -> float:
        """Quality that may be lost against dense; inf where nobody said."""
        allowed = self.judge.objectives.allowed
        return math.inf if allowed is None else allowed.of(self.dense_quality())

    def front(self) -> list[Trial]:
        """Non-dominated candidates without recovery that are fast and small enough, or of all, where none is.

        Fast to slow.
        """
        if self._front is None:
            every = list(filter(_untrained, self.trials.values()))
            fitting = [trial for trial in every if self.worth(trial)]
            self._fitting = bool(fitting)
            self._front = self._nondominated(fitting or every)
        return self._front

    def reached(self) -> bool:
        """Whether any candidate without recovery is fast and small enough, whatever it loses."""
        self.front()
        return self._fitting

    def front_up_to(self, ratio: float) -> list[Trial]:
        """The front, and what does not fit, up to a latency, and is not beaten by any of it; fast to slow.

        Where nothing fits, that is the front.

        Args:
            ratio: to dense in the same runtime, up to which it may be; inf for the front alone.
        """
        front = self.front()
        if not self._fitting or ratio == math.inf:
            return front
        if self._misses is None or self._misses[0] != ratio:
            near = (self.trials[name] for name, (own, *_taken) in self.spots.items() if own <= ratio)
            misses = [trial for trial in near if not self.worth(trial)]
            self._misses = ratio, self._nondominated([*front, *misses]) if misses else front
        return self._misses[1]

    def asked_front(self) -> list[Trial]:
        """Those of the front that keep the loss that is allowed; all where recovery may win losses back."""
        front = self.front()
        return front if self.judge.recovers or math.isinf(self.most_lost) else list(filter(self.keeps, front))

    def best(self) -> Trial | None:
        """Of all candidates without recovery the fastest of the best quality."""
        return self._top

    def _rank(self, trial: Trial) -> tuple[float, float]:
        assert trial.quality is not None
        return trial.quality if self.judge.maximize else -trial.quality, -ratio_of(trial)

    def asked_between(self) -> tuple[float, float]:
        """Ratios, to dense in the same runtime, between which the fastest is that keeps the loss which is allowed.

        Of the slowest that the program chose and that does not keep it, and of the fastest that does. 0 and inf where
        something else is asked for. What loses all that counts was believed to be harmless by mistake, and bounds
        nothing.
        """
        if not self.judge.fastest:
            return 0.0, math.inf
        if self._kept is None:
            self._kept, self._lost = math.inf, []
            for trial in self.trials.values():
                self._bracket(trial)
        return max((ratio for ratio in self._lost if ratio < self._kept), default=0.0), self._kept

    def _bracket(self, trial: Trial) -> None:
        if not _untrained(trial) or self._kept is None:
            return
        if self.keeps(trial):
            self._kept = min(self._kept, own_ratio(trial)) if self.worth(trial) else self._kept
        elif trial.origin == "solved" and self.drop(trial) < self.worst_drop():
            self._lost.append(own_ratio(trial))

    def learned_from(self, most: int) -> list[Trial]:
        """Measured candidates without recovery that tell of others: the front, and the last so many, fitting or not."""
        last = [self.trials[name] for name in itertools.islice(reversed(self.spots), most)]
        return list({trial.fingerprint: trial for trial in [*self.front(), *reversed(last)]}.values())

    def _nondominated(self, trials: list[Trial]) -> list[Trial]:
        mask = nondominated([self.judge.objectives.values(trial) for trial in trials], self.judge.directions)
        return sorted((trial for trial, keep in zip(trials, mask, strict=True) if keep), key=ratio_of)

    def point(self, trial: Trial) -> tuple[float, ...]:
        """Coordinates of a trial, in which volumes are told."""
        return self.judge.objectives.point(trial, self._dense)

    def volume(self) -> float:
        """Hypervolume of the candidates without recovery."""
        if self._volume is None:
            points = [self.point(trial) for trial in self.asked_front()]
            self._volume = hypervolume(points, self.reference(), self.judge.directions)
        return self._volume

    def reference(self) -> tuple[float, ...]:
        """The corner of that hypervolume."""
        return self.judge.objectives.reference(self.dense_quality(), self.judge.maximize)

    def worst_drop(self) -> float:
        """Quality lost at that corner: who loses more gains nothing."""
        return abs(self.dense_quality() - self.reference()[1])

    def dense_quality(self) -> float:
        """Of the dense model; before it is known, the best there is."""
        if self._dense is not None and self._dense.quality is not None:
            return self._dense.quality
        if self._best is None:
            self._best = max((trial.quality or 0.0 for trial in self.trials.values()), default=0.0)
        return self._best

    def drop(self, trial: Trial) -> float:
        """Quality lost against dense; more is worse."""
        assert trial.quality is not None
        return (self.dense_quality() - trial.quality) * (1 if self.judge.maximize else -1)

    def loss(self, trial: Trial) -> float:
        """How far the predictions are from the dense model's; where nobody looked, how much worse they are.

        What is no worse says only that it is hardly worse: as a logarithm, in which losses are learned, next to nothing
        would outweigh all others.
        """
        if trial.divergence is not None:
            return max(trial.divergence, NOTHING)
        quality, dense = trial.quality or 0.0, self.dense_quality()
        if not self.judge.maximize and quality > 0 and dense > 0:
            return max(math.log(quality / dense), HARDLY)
        return max(self.drop(trial), HARDLY)

    def goodness(self, trial: Trial) -> float:
        """Of quality; more is better."""
        return -self.drop(trial)


def _untrained(trial: Trial) -> bool:
    return trial.rung == 0 and trial.measured


def structure_of(plan: Plan) -> Plan:
    """A plan without its recovery."""
    return replace(plan, distill=None, seed=0)


def ratio_of(trial: Trial) -> float:
    """Latency to the fastest dense setting."""
    assert trial.latency is not None
    return trial.latency.ratio_best_dense


def own_ratio(trial: Trial) -> float:
    """To dense in the same runtime."""
    assert trial.latency is not None
    return trial.latency.ratio
