"""The recovery stages of a staged search: settings tuned at anchors, then rung by rung."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from autocompress.found import Audit
from autocompress.plan import Plan
from autocompress.records import Origin, Trial
from autocompress.searching.controller import Proposal, Tuner, typical_seconds
from autocompress.searching.rungs import ETA, Recovered, audits_of, most_gained, promoted
from autocompress.searching.seen import NO_PROPOSAL, Clock, Seen, ratio_of, structure_of
from autocompress.space import SearchSpace, Values

#: Settings that are tried at an anchor before other structures are recovered with the best of them, and at most.
TUNED_LEAST, TUNED_MOST = 3, 15

#: Learning rates that are tried before anything is modelled: the space's own, and that moved by shares of its interval.
RATES = (0.0, 0.25, -0.25)

#: Share of the recovery's time by which tuning ends, and the first rung where there are more; these divide the rest.
FIRST_RUNG_SHARE = 0.6


class Climb:
    """Proposes recoveries of what was measured without.

    Args:
        space: the whole space, recovery included.
        seen: of the search.
        seed: of all that is drawn.
        begin: called before settings are tuned, and before each rung.
    """

    def __init__(self, space: SearchSpace, seen: Seen, seed: int = 0, begin: Callable[[], None] = lambda: None) -> None:
        self.space = space
        self._begin = begin
        self._seen = seen
        self._seed = seed
        self._tuner = Tuner(space.recovery, seed)

    def proposals(self, tune: bool = True, wider: int = 0) -> Iterator[Proposal | None]:
        """Rung by rung, within the time that is left; on the first, tuning and recovering other structures take turns.

        Args:
            tune: whether settings are tried at the anchors.
            wider: times that nothing was left to do; each time more settings are tried and more candidates go on, and
                structures need not be on the front.
        """
        clock = self._seen.time_left()
        rungs = list(enumerate(self.space.steps, start=1))
        if tune:
            self._begin()
            yield from self._tuned(rungs[0], clock, TUNED_LEAST)
        for place, (rung, steps) in enumerate(rungs):
            yield from self._seen.settled()
            above = place / (len(rungs) - 1) if len(rungs) > 1 else 1.0
            share = FIRST_RUNG_SHARE + (1 - FIRST_RUNG_SHARE) * above
            self._begin()
            climbed = self.climb(rung, steps, functools.partial(_in_time, clock, share), wider)
            if tune and place == 0:
                climbed = _in_turn(self._tuned(rungs[0], clock, TUNED_MOST * (1 + wider)), climbed)
            yield from climbed

    def _tuned(self, rung: tuple[int, int], clock: Clock, most: int) -> Iterator[Proposal]:
        """Recover the anchors in turn, with at most so many different settings each, as long as it pays."""
        number, steps = rung
        anchors, most = self._anchors(), most if self.space.recovery else 1
        turns = [(t, place) for place, anchor in enumerate(anchors) for t in range(len(self._tried(anchor)), most)]
        for tried, place in sorted(turns):
            if not self.time_for(number):
                return
            enough = tried >= TUNED_LEAST or place > 0
            if enough and not _in_time(clock, FIRST_RUNG_SHARE):
                continue
            anchor = anchors[place]
            proposal = self._recovery(anchor, self._settings(anchor, tried), steps, number, "tuned")
            if proposal is not None:
                yield proposal

    def _anchors(self) -> list[Trial]:
        """Structures at which settings are tuned: a light and a middle one that lose least for their latency.

        Once two were, they stay the anchors.
        """
        pool, front = self._seen.structures(), list[Trial]()
        tuned = {structure_of(trial.plan) for trial in self._seen.trials.values() if trial.origin == "tuned"}
        known = [trial for trial in pool if structure_of(trial.plan) in tuned]
        if len(known) > 1:
            return known
        for trial in pool:
            if not front or self._seen.loss(trial) < self._seen.loss(front[-1]):
                front.append(trial)
        return [front[place] for place in dict.fromkeys([len(front) // 5, len(front) // 2])] if front else pool[:1]

    def _settings(self, anchor: Trial, tried: int) -> Values:
        """The next settings to try at an anchor: the space's own, with higher and lower learning rates, then tuned."""
        default = {name: value for name, value in self.space.uniform().items() if name in self._recovery_names}
        rate = self.space.by_name.get("learning_rate")
        if rate is not None and 0 < tried < len(RATES):
            found = default["learning_rate"] * (rate.high / rate.low) ** RATES[tried]
            return {**default, "learning_rate": min(max(found, rate.low), rate.high)}
        return default if tried == 0 else self._tuner.suggest(self._tried(anchor), len(self._seen.under_way))

    @property
    def _recovery_names(self) -> tuple[str, ...]:
        return tuple(variable.name for variable in self.space.recovery)

    def _tried(self, anchor: Trial | None) -> list[tuple[Values, float]]:
        """Settings and how well they did, of recoveries at the first rung; of one structure, or of all.

        Worst of all did what failed. What an earlier run was recovered with need not lie within this space.
        """
        found = []
        for trial in self._seen.trials.values():
            if trial.rung != 1 or trial.plan.distill is None or trial.origin == "warm-start":
                continue
            if anchor is None or structure_of(trial.plan) == structure_of(anchor.plan):
                values: Values = {name: getattr(trial.plan.distill, name) for name in self._recovery_names}
                found.append((values, self._seen.goodness(trial) if trial.measured else -math.inf))
        return found

    def _shared(self, trial: Trial) -> Values:
        """The settings that did best at the anchor that is nearest in latency."""
        anchors: dict[Plan, list[Trial]] = {}
        for other in self._seen.trials.values():
            if other.origin == "tuned" and other.measured and other.plan.distill is not None:
                anchors.setdefault(structure_of(other.plan), []).append(other)
        if not anchors:
            return self._settings(trial, 0)
        nearest = min(anchors.values(), key=lambda alike: abs(math.log(ratio_of(alike[0]) / ratio_of(trial))))
        best = max(nearest, key=self._seen.goodness)
        return {name: getattr(best.plan.distill, name) for name in self._recovery_names}

    def climb(self, rung: int, steps: int, in_time: Callable[[], bool], wider: int = 0) -> Iterator[Proposal]:
        """Recover on one rung while it has time: on the first what promises most, then the best of the one below."""
        if rung == 1:
            while in_time() and self.time_for(rung):
                trial = self._most_promising(wider > 0)
                proposal = (
                    None if trial is None else self._recovery(trial, self._shared(trial), steps, rung, "recovered")
                )
                if proposal is None:
                    return
                yield proposal
            return
        under = (trial for trial in self._seen.trials.values() if trial.rung == rung - 1 and self._seen.worth(trial))
        below = list(self._recovered(under).values())
        ordered = self._best(below, len(below))
        count = math.ceil(len(below) * (1 + wider) / ETA)
        for place, trial in enumerate(ordered):
            if not (in_time() and self.time_for(rung)):
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
            best = found.setdefault(structure_of(trial.plan), trial)
            if self._seen.drop(trial) < self._seen.drop(best):
                found[structure_of(trial.plan)] = trial
        return found

    def _in_doubt(self, trial: Trial, rung: int) -> bool:
        """Whether the rung below foretold this one badly at the latency of a trial."""
        return any(
            audit.low <= ratio_of(trial) <= audit.high and not audit.trusted
            for audit in self.audits()
            if audit.upper == rung
        )

    def audits(self) -> list[Audit]:
        """How well each rung's qualities foretold the next one's."""
        return audits_of(self._seen.trials.values(), self._seen.judge.maximize)

    def _best(self, trials: Sequence[Trial], count: int) -> list[Trial]:
        points = [self._seen.point(trial) for trial in trials]
        best = promoted(points, self._seen.reference(), self._seen.judge.directions, max(1, count))
        return [trials[i] for i in best]

    def _most_promising(self, any_structure: bool) -> Trial | None:
        """The structure, not yet recovered, that is expected to add most hypervolume once it is.

        Where a loss is allowed, of those that are expected to keep it, as long as one adds anything.
        """
        tried = [trial for trial in self._seen.trials.values() if trial.rung]
        recovered = self._recovered(trial for trial in tried if trial.measured)
        begun = [proposal.plan for proposal in self._seen.under_way.values() if proposal.rung]
        known = {structure_of(plan) for plan in (*(trial.plan for trial in tried), *begun)}
        pool = [trial for trial in self._seen.structures() if structure_of(trial.plan) not in known]
        if not pool:
            return None
        before = {t.fingerprint: t for t in self._seen.structures()}
        seen = [(before[p.fingerprint], trial) for p, trial in recovered.items() if p.fingerprint in before]
        if not seen:
            return pool[len(pool) // 2]
        losses, drops = [self._seen.loss(one) for one, _trial in seen], [self._seen.drop(trial) for _one, trial in seen]
        model = Recovered(tuple(losses), tuple(drops))
        expected = {t.fingerprint: self._after(t, model) for t in pool}
        measured = list(filter(self._seen.worth, self._seen.trials.values()))
        best = None
        if self._seen.most_lost < math.inf:  # what loses more is not wanted, and hides nothing
            kept = {name: trial for name, trial in expected.items() if self._seen.keeps(trial)}
            best = self._most_gained(kept, list(filter(self._seen.keeps, measured)))
        best = best or self._most_gained(expected, measured)
        return self._furthest(known, any_structure) if best is None else self._seen.trials[best]

    def _most_gained(self, expected: Mapping[str, Trial], measured: Sequence[Trial]) -> str | None:
        offered = {name: self._seen.point(trial) for name, trial in expected.items()}
        points = [self._seen.point(trial) for trial in measured]
        return most_gained(offered, points, self._seen.reference(), self._seen.judge.directions)

    def _furthest(self, known: Collection[Plan], any_structure: bool) -> Trial | None:
        """Of the front without recovery, the structure furthest in log latency from all that were recovered.

        Where nothing is expected to add anything: what is expected is a line through few points.
        """
        left, spots = list[Trial](), list[Trial]()
        for trial in self._seen.structures():
            (spots if structure_of(trial.plan) in known else left).append(trial)
        front = {trial.fingerprint for trial in self._seen.front()}
        logs = [math.log(ratio_of(trial)) for trial in spots]
        return max(
            (trial for trial in left if any_structure or trial.fingerprint in front),
            key=lambda trial: min((abs(math.log(ratio_of(trial)) - log) for log in logs), default=math.inf),
            default=None,
        )

    def _after(self, trial: Trial, model: Recovered) -> Trial:
        """A trial with the quality that its recovery is expected to give."""
        drop = model.drop(self._seen.loss(trial))
        return trial.replace(quality=self._seen.dense_quality() - drop * (1 if self._seen.judge.maximize else -1))

    def _recovery(
        self, trial: Trial, settings: Mapping[str, int | float], steps: int, rung: int, origin: Origin
    ) -> Proposal | None:
        """The same structure with a recovery; None where this very one was evaluated."""
        level = self.space.rules.distill.steps.index(steps)
        distill = self.space.recovery_of({**settings, "steps": level}, trial.plan)
        seed = trial.plan.seed if trial.plan.draws else self._seed
        plan = replace(structure_of(trial.plan), distill=distill, seed=seed)
        return None if self._seen.proposed(plan) else Proposal(NO_PROPOSAL, plan, origin, rung)

    def time_for(self, rung: int) -> bool:
        """Whether there is time for one more on a rung, by what its like or shorter ones took."""
        alike = [trial for trial in self._seen.trials.values() if trial.rung == rung]
        if alike:
            return self._seen.left_s >= typical_seconds(alike)
        lower = [trial for trial in self._seen.trials.values() if trial.rung == rung - 1]
        steps = self.space.steps
        more = steps[rung - 1] / steps[rung - 2] if rung > 1 else 1.0
        return self._seen.left_s >= more * typical_seconds(lower)


def _in_turn(*several: Iterator[Proposal]) -> Iterator[Proposal]:
    """One of each, until all are at their end."""
    left = list(several)
    while left:
        for one in list(left):
            proposal = next(one, None)
            if proposal is None:
                left.remove(one)
            else:
                yield proposal


def _in_time(clock: Clock, share: float) -> bool:
    """Whether a share of the time is not spent yet, and still adds anything."""
    return clock.before(share) and not clock.stagnates()
