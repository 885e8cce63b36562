"""`strategy: staged`: what is cheap to know decides what is worth training.

Without recovery first: uniform levels, then the front that an integer program expects, then refinements of what was
measured. Then recovery: its settings are tuned at anchors and shared, the candidates that promise most are recovered
for few steps, and the best of these for more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from autocompress.pareto import hypervolume, reference_point
from autocompress.plan import Plan
from autocompress.records import Origin, Trial
from autocompress.searching.controller import Controller, Proposal, Tuner, typical_seconds
from autocompress.searching.knapsack import Expected, Knapsack
from autocompress.searching.rungs import ETA, Audit, Recovered, audits_of, most_gained, promoted
from autocompress.space import SearchSpace, Values

#: Share of the time by which candidates without recovery are done, where there is recovery.
UNTRAINED_SHARE = 0.45

#: Candidates that were measured since the tables were last corrected by them.
REFIT_EVERY = 6

#: The same once the front that the program expects is measured: it then changes little.
REFINED_EVERY = 18

#: The front, and so many of the last candidates, correct the tables.
MOST_LEARNED = 200

#: Uniform levels that are measured before the program's own choices.
FIRST = 2

#: Budgets of the program.
POINTS = 40

#: Share of the recovery's time in which its settings are tuned; candidates at an anchor at least and at most.
TUNED_SHARE, TUNED_LEAST, TUNED_MOST = 0.3, 3, 15

#: Learning rates that are tried before anything is modelled: the space's own, and that moved by shares of its interval.
RATES = (0.0, 0.25, -0.25)

#: Spread of the losses that a refinement believes, as the standard deviation of their logarithm.
SPREAD = 0.5

#: Refinements in a row that add less than this share of the hypervolume end them, where recovery waits.
PATIENCE, LITTLE = 10, 0.002

#: What counts as no loss.
NOTHING = 1e-6

#: Number that stands for "no proposal of the controller".
NO_PROPOSAL = -1


@dataclass(frozen=True)
class Clock:
    """Where a search stands in time.

    Attributes:
        elapsed: gives wall-clock seconds of this and earlier sessions.
        begun_s: of these, when the stages began.
        budget_s: allowed in all.
    """

    elapsed: Callable[[], float]
    begun_s: float
    budget_s: float

    @property
    def left_s(self) -> float:
        """Seconds that are left."""
        return self.budget_s - self.elapsed()

    def before(self, share: float) -> bool:
        """Whether less than a share of the time since the beginning is spent."""
        return self.elapsed() - self.begun_s < share * (self.budget_s - self.begun_s)


@dataclass(frozen=True)
class Teller:
    """Who is told what happens.

    Attributes:
        say: a fact worth a line.
        stage: what begins.
        detail: what is being done within it.
    """

    say: Callable[[str], None] = lambda _text: None
    stage: Callable[[str], None] = lambda _text: None
    detail: Callable[[str], None] = lambda _text: None


@dataclass(frozen=True)
class Judge:
    """How a search looks at trials.

    Attributes:
        maximize: whether more quality is better.
        fits: whether a trial is fast and small enough to be worth recovering.
    """

    maximize: bool
    fits: Callable[[Trial], bool]


class Staged:
    """Proposes plans stage by stage and learns from trials.

    Args:
        space: the whole space, recovery included.
        knapsack: over the same space without recovery; None where there is no structure to choose.
        controller: over the same space without recovery; keeps the proposals of rung 0.
        judge: how trials are looked at.
        clock: where the search stands.
        corners: values without recovery that are measured whatever the program says, the most telling first.
        seed: of all that is drawn.
        trials: finished evaluations.
        teller: is told what each stage finds.
    """

    def __init__(
        self,
        space: SearchSpace,
        knapsack: Knapsack | None,
        controller: Controller,
        judge: Judge,
        clock: Clock,
        *,
        corners: Sequence[tuple[Origin, Values]] = (),
        seed: int = 0,
        trials: Sequence[Trial] = (),
        teller: Teller = Teller(),
    ) -> None:
        self.space = space
        self.knapsack = knapsack
        self._controller = controller
        self._judge = judge
        self._clock = clock
        self._corners = list(corners)
        self._seed = seed
        self._teller = teller
        self._trials: dict[str, Trial] = {}
        self._dense: float | None = None
        self._under_way: dict[str, Proposal] = {}
        self._values: dict[str, Values] = {}
        self._left_s = math.inf
        self._fresh = 0
        self._draw = np.random.default_rng([seed, len(trials)])
        self._tuner = Tuner(space.recovery, seed)
        self._flow = self._stages()
        for trial in trials:
            self._keep(trial)
            values = controller.values(trial)
            if trial.rung == 0 and values is not None:
                self._values[trial.fingerprint] = values

    def ask(self, left_s: float = math.inf) -> Proposal | None:
        """The next plan; None when all that is worth it is done, or too little time is left.

        None as well where what comes next depends on those that are under way: tell, and ask again.

        Args:
            left_s: seconds that the next candidate may take.
        """
        self._left_s = left_s
        proposal = next(self._flow, None)
        if proposal is not None:
            self._under_way[proposal.plan.fingerprint] = proposal
        return proposal

    def tell(self, number: int, trial: Trial) -> None:
        """Learn the outcome of a proposal."""
        self._keep(trial)
        self._under_way.pop(trial.fingerprint, None)
        self._fresh += trial.measured
        if number != NO_PROPOSAL:
            self._controller.tell(number, trial)
        elif trial.rung == 0:
            self._controller.add(self._values[trial.fingerprint], trial)

    def _keep(self, trial: Trial) -> None:
        self._trials[trial.fingerprint] = trial
        if self._dense is None and trial.quality is not None and trial.plan == Plan():
            self._dense = trial.quality

    def _settled(self) -> Iterator[None]:
        """Nothing to propose until all that is under way is told."""
        while self._under_way:
            yield None

    def _proposed(self, plan: Plan) -> bool:
        return plan.fingerprint in self._trials or plan.fingerprint in self._under_way

    def _stages(self) -> Iterator[Proposal | None]:
        if self.knapsack is not None:
            yield from self._untrained(self.knapsack)
        else:
            yield from self._propose({}, "seed")
        yield from self._settled()
        if self.space.steps:
            yield from self._recoveries()

    # Without recovery

    def _untrained(self, knapsack: Knapsack) -> Iterator[Proposal | None]:
        share = UNTRAINED_SHARE if self.space.steps else 1.0
        for origin, values in self._corners[:FIRST]:
            if self._time_for_untrained(share):
                yield from self._propose(values, origin)
        front = self._corrected_front(knapsack)
        self._teller.stage("solve")
        self._teller.say(
            f"the integer program expects {len(front)} candidates from {front[0].seconds * 1e3:.3g} to "
            f"{front[-1].seconds * 1e3:.3g} ms"
            if front
            else "the integer program finds no candidate"
        )
        corners, gains = self._corners[FIRST:], [math.inf]
        turn = 0
        while self._time_for_untrained(share) and not (self.space.steps and self._stagnates(gains)):
            if self._fresh >= (REFINED_EVERY if turn else REFIT_EVERY):
                front = self._corrected_front(knapsack)
            before = self._volume()
            needed = self._most_needed(front)
            proposal = None
            if needed is not None:
                proposal = self._proposal(needed.values, "solved")
            elif corners:
                origin, values = corners.pop(0)
                proposal = self._proposal(values, origin)
                if proposal is None:
                    continue
            else:
                if not turn:
                    self._teller.stage("refine")
                turn += 1
                proposal = self._refined(knapsack, turn)
            if proposal is None and not self._under_way:
                return
            yield proposal  # or None: those under way may yet bring something to refine
            if proposal is None:
                continue
            gains = gains if needed is not None or corners else [*gains, self._volume() / max(before, 1e-12) - 1]

    def _time_for_untrained(self, share: float) -> bool:
        done = [trial for trial in self._trials.values() if trial.rung == 0]
        return self._clock.before(share) and self._left_s >= typical_seconds(done)

    @staticmethod
    def _stagnates(gains: Sequence[float]) -> bool:
        return len(gains) >= PATIENCE and max(gains[-PATIENCE:]) < LITTLE

    def _corrected_front(self, knapsack: Knapsack) -> list[Expected]:
        """Correct the tables by what was measured, and solve for the front."""
        every = [trial for trial in self._trials.values() if trial.measured and trial.rung == 0]
        found = {trial.fingerprint: trial for trial in [*self._front(), *every[-MOST_LEARNED:]]}
        measured = [trial for trial in found.values() if trial.plan.learn is None]  # what is learned says no shapes
        knapsack.learn_seconds([(trial.plan, knapsack.dense_s * _own_ratio(trial)) for trial in measured])
        known = [trial for trial in measured if trial.fingerprint in self._values]
        knapsack.learn_losses([(self._values[trial.fingerprint], self._loss(trial)) for trial in known])
        self._fresh = 0
        return knapsack.front(POINTS)

    def _most_needed(self, front: Sequence[Expected]) -> Expected | None:
        """Of the expected front, the new one furthest in log seconds from all that was measured, or is about to be."""
        assert self.knapsack is not None
        spots = [
            math.log(_own_ratio(trial) * self.knapsack.dense_s)
            for trial in self._trials.values()
            if trial.measured and trial.rung == 0
        ]
        begun = [proposal.plan for proposal in self._under_way.values() if proposal.rung == 0]
        spots += [math.log(self.knapsack.work.seconds(plan)) for plan in begun]
        left = [one for one in front if not self._proposed(one.plan)]
        if not left:
            return None
        return max(left, key=lambda one: min((abs(math.log(one.seconds) - spot) for spot in spots), default=math.inf))

    def _refined(self, knapsack: Knapsack, turn: int) -> Proposal | None:
        """A new candidate near what is good, by one of several ways in turn."""
        ways = (self._resolved, self._switched, self._crossed, self._resolved, self._switched, self._sampled)
        for offset in range(len(ways)):
            proposal = ways[(turn + offset) % len(ways)](knapsack)
            if proposal is not None:
                return proposal
        return None

    def _resolved(self, knapsack: Knapsack) -> Proposal | None:
        """The program's choice by losses drawn near those that are believed, at a latency where the front is thin."""
        kl = {
            name: [value * math.exp(self._draw.normal(0, SPREAD)) for value in row] for name, row in knapsack.kl.items()
        }
        seconds = [knapsack.work.seconds(trial.plan) for trial in self._front()]
        if not seconds:
            return None
        low, high = math.log(min(seconds)), math.log(max(seconds))
        found = knapsack.at(math.exp(self._draw.uniform(low, high)), kl)
        return None if found is None else self._proposal(found.values, "refined")

    def _switched(self, knapsack: Knapsack) -> Proposal | None:
        """A front member with one choice heavier and another lighter, at about the same seconds."""
        parents = [trial for trial in self._front() if trial.fingerprint in self._values]
        if not parents:
            return None
        parent = self._values[parents[self._draw.integers(len(parents))].fingerprint]
        seconds = knapsack.expected(parent).seconds
        best: tuple[float, Values] | None = None
        for _ in range(SWITCHES):
            one, other = self._moved(knapsack, parent, -1), None
            if one is not None:
                other = self._moved(knapsack, one, 1)
            if other is None:
                continue
            found = knapsack.expected(other)
            if self._proposed(found.plan):
                continue
            worth = found.loss * math.exp(abs(found.seconds / seconds - 1) / SAME)
            if best is None or worth < best[0]:
                best = (worth, other)
        return None if best is None else self._proposal(best[1], "refined")

    def _moved(self, knapsack: Knapsack, values: Values, step: int) -> Values | None:
        """One variable of the program, drawn, a level lighter (1) or heavier (-1)."""
        chosen = knapsack.parts.chosen
        movable = [
            variable
            for variable in self.space.structure
            if variable.name in chosen and 0 <= values[variable.name] + step < len(variable.levels)
        ]
        if not movable:
            return None
        name = movable[self._draw.integers(len(movable))].name
        return {**values, name: values[name] + step}

    def _crossed(self, knapsack: Knapsack) -> Proposal | None:
        """Two neighbours on the front mixed part by part."""
        parents = [trial for trial in self._front() if trial.fingerprint in self._values]
        if len(parents) < 2:
            return None
        place = int(self._draw.integers(len(parents) - 1))
        one, other = (self._values[parents[place + i].fingerprint] for i in (0, 1))
        child = dict(one)
        for part in knapsack.parts.parts:
            if self._draw.random() < 0.5:
                child.update({name: other[name] for name in part.options[0]})
        return self._proposal(child, "refined")

    def _sampled(self, _knapsack: Knapsack) -> Proposal | None:
        proposal = self._controller.ask()
        if proposal is not None and proposal.plan.fingerprint in self._under_way:
            return None  # the controller hears of it when it is told
        values = None if proposal is None else self._controller.asked(proposal.number)
        if proposal is not None and values is not None:
            self._values[proposal.plan.fingerprint] = values
        return proposal

    # Recovery

    def _recoveries(self) -> Iterator[Proposal | None]:
        """Rung by rung; the settings of the recoveries are tuned on the way, at the first rung."""
        self._teller.stage("recover")
        begun_s = self._clock.elapsed()
        available = max(0.0, min(self._left_s, self._clock.left_s))
        rungs = list(enumerate(self.space.steps, start=1))
        yield from self._tuned(rungs[0], TUNED_SHARE * available)
        for place, (rung, steps) in enumerate(rungs):
            yield from self._settled()
            last = place == len(rungs) - 1
            until = begun_s + available * (1.0 if last else FIRST_RUNG_SHARE)
            yield from self._climb(rung, steps, until)

    def _tuned(self, rung: tuple[int, int], limit_s: float) -> Iterator[Proposal]:
        """Recover the anchors with different settings, as long as it pays; more settings where there is more time."""
        number, steps = rung
        begun, anchors = self._clock.elapsed(), self._anchors()
        least = TUNED_LEAST if self.space.recovery else 1
        for place, anchor in enumerate(anchors):
            until_s = begun + limit_s * (place + 1) / len(anchors)
            for tried in range(len(self._tried(anchor)), TUNED_MOST if self.space.recovery else 1):
                enough = tried >= least or place > 0
                if not self._time_for(number) or (enough and self._clock.elapsed() > until_s):
                    break
                proposal = self._recovery(anchor, self._settings(anchor, tried), steps, number, "tuned")
                if proposal is not None:
                    yield proposal

    def _anchors(self) -> list[Trial]:
        """Structures at which settings are tuned: a light and a middle one that lose least for their latency."""
        pool, front = self._structures(), list[Trial]()
        for trial in pool:
            if not front or self._loss(trial) < self._loss(front[-1]):
                front.append(trial)
        return [front[place] for place in dict.fromkeys([len(front) // 5, len(front) // 2])] if front else pool[:1]

    def _settings(self, anchor: Trial, tried: int) -> Values:
        """The next settings to try at an anchor: the space's own, with higher and lower learning rates, then tuned."""
        default = {name: value for name, value in self.space.uniform().items() if name in self._recovery_names}
        rate = self.space.by_name.get("learning_rate")
        if rate is not None and 0 < tried < len(RATES):
            found = default["learning_rate"] * (rate.high / rate.low) ** RATES[tried]
            return {**default, "learning_rate": min(max(found, rate.low), rate.high)}
        return default if tried == 0 else self._tuner.suggest(self._tried(anchor), len(self._under_way))

    @property
    def _recovery_names(self) -> tuple[str, ...]:
        return tuple(variable.name for variable in self.space.recovery)

    def _tried(self, anchor: Trial | None) -> list[tuple[Values, float]]:
        """Settings and how well they did, of recoveries at the first rung; of one structure, or of all.

        Worst of all did what failed.
        """
        found = []
        for trial in self._trials.values():
            if trial.rung != 1 or trial.plan.distill is None:
                continue
            if anchor is None or _structure(trial.plan) == _structure(anchor.plan):
                values: Values = {name: getattr(trial.plan.distill, name) for name in self._recovery_names}
                found.append((values, self._goodness(trial) if trial.measured else -math.inf))
        return found

    def _shared(self, trial: Trial) -> Values:
        """The settings that did best at the anchor that is nearest in latency."""
        anchors: dict[Plan, list[Trial]] = {}
        for other in self._trials.values():
            if other.origin == "tuned" and other.measured and other.plan.distill is not None:
                anchors.setdefault(_structure(other.plan), []).append(other)
        if not anchors:
            return self._settings(trial, 0)
        nearest = min(anchors.values(), key=lambda alike: abs(math.log(_ratio(alike[0]) / _ratio(trial))))
        best = max(nearest, key=self._goodness)
        return {name: getattr(best.plan.distill, name) for name in self._recovery_names}

    def _climb(self, rung: int, steps: int, until_s: float) -> Iterator[Proposal]:
        """Recover on one rung until its time is up: on the first what promises most, then the best of the one below."""
        if rung == 1:
            while self._clock.elapsed() < until_s and self._time_for(rung):
                trial = self._most_promising()
                proposal = (
                    None if trial is None else self._recovery(trial, self._shared(trial), steps, rung, "recovered")
                )
                if proposal is None:
                    return
                yield proposal
            return
        under = (trial for trial in self._trials.values() if trial.rung == rung - 1 and self._worth(trial))
        below = list(self._recovered(under).values())
        ordered = self._best(below, len(below))
        count = math.ceil(len(below) / ETA)
        for place, trial in enumerate(ordered):
            if not (self._clock.elapsed() < until_s and self._time_for(rung)):
                return
            if place >= count and not (place < 2 * count and self._in_doubt(trial, rung)):
                continue
            assert trial.plan.distill is not None
            settings = {name: getattr(trial.plan.distill, name) for name in self._recovery_names}
            proposal = self._recovery(trial, settings, steps, rung, "recovered")
            if proposal is not None:
                yield proposal

    def _recovered(self, trials: Iterable[Trial]) -> dict[Plan, Trial]:
        """Of some recoveries, the best one of each structure."""
        found: dict[Plan, Trial] = {}
        for trial in trials:
            best = found.setdefault(_structure(trial.plan), trial)
            if self._drop(trial) < self._drop(best):
                found[_structure(trial.plan)] = trial
        return found

    def _in_doubt(self, trial: Trial, rung: int) -> bool:
        """Whether the rung below foretold this one badly at the latency of a trial."""
        return any(
            audit.low <= _ratio(trial) <= audit.high and not audit.trusted
            for audit in self.audits()
            if audit.upper == rung
        )

    def audits(self) -> list[Audit]:
        """How well each rung's qualities foretold the next one's."""
        return audits_of(self._trials.values(), self._judge.maximize)

    def _best(self, trials: Sequence[Trial], count: int) -> list[Trial]:
        reference = self._reference()
        points = [(math.log(_ratio(trial)), self._drop(trial)) for trial in trials]
        return [trials[i] for i in promoted(points, reference, [False, False], max(1, count))]

    def _most_promising(self) -> Trial | None:
        """The structure, not yet recovered, that is expected to add most hypervolume once it is."""
        tried = [trial for trial in self._trials.values() if trial.rung]
        recovered = self._recovered(trial for trial in tried if trial.measured)
        begun = [proposal.plan for proposal in self._under_way.values() if proposal.rung]
        known = {_structure(plan) for plan in (*(trial.plan for trial in tried), *begun)}
        pool = [trial for trial in self._structures() if _structure(trial.plan) not in known]
        if not pool:
            return None
        before = {t.fingerprint: t for t in self._structures()}
        seen = [(before[p.fingerprint], trial) for p, trial in recovered.items() if p.fingerprint in before]
        if not seen:
            return pool[len(pool) // 2]
        losses, drops = [self._loss(one) for one, _trial in seen], [self._drop(trial) for _one, trial in seen]
        model = Recovered(tuple(losses), tuple(drops))
        offered = {t.fingerprint: (math.log(_ratio(t)), model.drop(self._loss(t))) for t in pool}
        measured = [(math.log(_ratio(t)), self._drop(t)) for t in self._trials.values() if self._worth(t)]
        best = most_gained(offered, measured, self._reference())
        return None if best is None else self._trials[best]

    def _structures(self) -> list[Trial]:
        """Measured candidates without recovery that are fast enough, fast to slow; dense itself has nothing to gain."""
        found = [t for t in self._trials.values() if t.rung == 0 and self._worth(t)]
        return sorted([t for t in found if t.plan != Plan()] or found, key=_ratio)

    def _worth(self, trial: Trial) -> bool:
        return trial.measured and self._judge.fits(trial)

    def _recovery(
        self, trial: Trial, settings: Mapping[str, int | float], steps: int, rung: int, origin: Origin
    ) -> Proposal | None:
        """The same structure with a recovery; None where this very one was evaluated."""
        level = self.space.rules.distill.steps.index(steps)
        distill = self.space.recovery_of({**settings, "steps": level}, trial.plan)
        plan = replace(_structure(trial.plan), distill=distill, seed=self._seed)
        return None if self._proposed(plan) else Proposal(NO_PROPOSAL, plan, origin, rung)

    def _time_for(self, rung: int) -> bool:
        """Whether there is time for one more on a rung, by what its like or shorter ones took."""
        alike = [trial for trial in self._trials.values() if trial.rung == rung]
        if alike:
            return self._left_s >= typical_seconds(alike)
        lower = [trial for trial in self._trials.values() if trial.rung == rung - 1]
        steps = self.space.steps
        more = steps[rung - 1] / steps[rung - 2] if rung > 1 else 1.0
        return self._left_s >= more * typical_seconds(lower)

    # What trials are

    def _plan(self, values: Values) -> Plan:
        return self._controller.space.decode(values)

    def _propose(self, values: Values, origin: Origin) -> Iterator[Proposal]:
        proposal = self._proposal(values, origin)
        if proposal is not None:
            yield proposal

    def _proposal(self, values: Values, origin: Origin) -> Proposal | None:
        """Rung 0 of some values; None where it is known or under way."""
        plan = self._plan(values)
        if self._proposed(plan):
            return None
        self._values[plan.fingerprint] = dict(values)
        return Proposal(NO_PROPOSAL, plan, origin)

    def _front(self) -> list[Trial]:
        """Non-dominated candidates without recovery, fast to slow."""
        trials = [trial for trial in self._trials.values() if trial.rung == 0 and trial.measured]
        left: list[Trial] = []
        for trial in sorted(trials, key=lambda t: (_ratio(t), self._drop(t))):
            if not left or self._drop(trial) < self._drop(left[-1]):
                left.append(trial)
        return left

    def _volume(self) -> float:
        points = [(math.log(_ratio(trial)), self._drop(trial)) for trial in self._front()]
        return hypervolume(points, self._reference(), [False, False])

    def _reference(self) -> tuple[float, float]:
        dense = self._dense_quality()
        latency, quality = reference_point(dense, self._judge.maximize)
        return latency, abs(quality - dense)

    def _dense_quality(self) -> float:
        if self._dense is not None:
            return self._dense
        return max((trial.quality or 0.0 for trial in self._trials.values()), default=0.0)

    def _drop(self, trial: Trial) -> float:
        assert trial.quality is not None
        return (self._dense_quality() - trial.quality) * (1 if self._judge.maximize else -1)

    def _loss(self, trial: Trial) -> float:
        """How far the predictions are from the dense model's; where nobody looked, how much worse they are."""
        if trial.divergence is not None:
            return max(trial.divergence, NOTHING)
        quality, dense = trial.quality or 0.0, self._dense_quality()
        if not self._judge.maximize and quality > 0 and dense > 0:
            return max(math.log(quality / dense), NOTHING)
        return max(self._drop(trial), NOTHING)

    def _goodness(self, trial: Trial) -> float:
        return -self._drop(trial)


#: Pairs of moves that a switch chooses from, and the difference in seconds, as a share, that it should keep within.
SWITCHES, SAME = 12, 0.01

#: Share of the recovery's time by which the first rung is done, where there are more.
FIRST_RUNG_SHARE = 0.6


def _structure(plan: Plan) -> Plan:
    """A plan without its recovery."""
    return replace(plan, distill=None, seed=0)


def _ratio(trial: Trial) -> float:
    assert trial.latency is not None
    return trial.latency.ratio_best_dense


def _own_ratio(trial: Trial) -> float:
    """To dense in the same runtime."""
    assert trial.latency is not None
    return trial.latency.ratio
