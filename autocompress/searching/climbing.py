"""The recovery stages of a staged search: settings tuned at anchors, then rung by rung."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from autocompress.found import Audit
from autocompress.plan import Plan
from autocompress.records import Origin, Trial
from autocompress.searching.controller import Proposal, Tuner, typical_seconds
from autocompress.searching.rungs import ETA, Recovered, audits_of, most_gained, promoted
from autocompress.searching.seen import NO_PROPOSAL, Seen, ratio_of, structure_of
from autocompress.space import SearchSpace, Values

#: Share of the recovery's time in which its settings are tuned; candidates at an anchor at least and at most.
TUNED_SHARE, TUNED_LEAST, TUNED_MOST = 0.3, 3, 15

#: Learning rates that are tried before anything is modelled: the space's own, and that moved by shares of its interval.
RATES = (0.0, 0.25, -0.25)

#: Share of the recovery's time by which the first rung is done, where there are more.
FIRST_RUNG_SHARE = 0.6


class Climb:
    """Proposes recoveries of what was measured without.

    Args:
        space: the whole space, recovery included.
        seen: of the search.
        seed: of all that is drawn.
    """

    def __init__(self, space: SearchSpace, seen: Seen, seed: int = 0) -> None:
        self.space = space
        self._seen = seen
        self._seed = seed
        self._tuner = Tuner(space.recovery, seed)

    def proposals(self) -> Iterator[Proposal | None]:
        """Rung by rung; the settings of the recoveries are tuned on the way, at the first rung."""
        begun_s = self._seen.clock.elapsed()
        available = max(0.0, min(self._seen.left_s, self._seen.clock.left_s))
        rungs = list(enumerate(self.space.steps, start=1))
        yield from self._tuned(rungs[0], TUNED_SHARE * available)
        for place, (rung, steps) in enumerate(rungs):
            yield from self._seen.settled()
            last = place == len(rungs) - 1
            until = begun_s + available * (1.0 if last else FIRST_RUNG_SHARE)
            yield from self.climb(rung, steps, until)

    def _tuned(self, rung: tuple[int, int], limit_s: float) -> Iterator[Proposal]:
        """Recover the anchors with different settings, as long as it pays; more settings where there is more time."""
        number, steps = rung
        begun, anchors = self._seen.clock.elapsed(), self._anchors()
        least = TUNED_LEAST if self.space.recovery else 1
        for place, anchor in enumerate(anchors):
            until_s = begun + limit_s * (place + 1) / len(anchors)
            for tried in range(len(self._tried(anchor)), TUNED_MOST if self.space.recovery else 1):
                enough = tried >= least or place > 0
                if not self._time_for(number) or (enough and self._seen.clock.elapsed() > until_s):
                    break
                proposal = self._recovery(anchor, self._settings(anchor, tried), steps, number, "tuned")
                if proposal is not None:
                    yield proposal

    def _anchors(self) -> list[Trial]:
        """Structures at which settings are tuned: a light and a middle one that lose least for their latency."""
        pool, front = self._seen.structures(), list[Trial]()
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

        Worst of all did what failed.
        """
        found = []
        for trial in self._seen.trials.values():
            if trial.rung != 1 or trial.plan.distill is None:
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

    def climb(self, rung: int, steps: int, until_s: float) -> Iterator[Proposal]:
        """Recover on one rung until its time is up: on the first what promises most, then the best of the one below."""
        if rung == 1:
            while self._seen.clock.elapsed() < until_s and self._time_for(rung):
                trial = self._most_promising()
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
        count = math.ceil(len(below) / ETA)
        for place, trial in enumerate(ordered):
            if not (self._seen.clock.elapsed() < until_s and self._time_for(rung)):
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
        reference = self._seen.reference()
        points = [(math.log(ratio_of(trial)), self._seen.drop(trial)) for trial in trials]
        return [trials[i] for i in promoted(points, reference, [False, False], max(1, count))]

    def _most_promising(self) -> Trial | None:
        """The structure, not yet recovered, that is expected to add most hypervolume once it is."""
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
        offered = {t.fingerprint: (math.log(ratio_of(t)), model.drop(self._seen.loss(t))) for t in pool}
        worth = filter(self._seen.worth, self._seen.trials.values())
        measured = [(math.log(ratio_of(trial)), self._seen.drop(trial)) for trial in worth]
        best = most_gained(offered, measured, self._seen.reference())
        return None if best is None else self._seen.trials[best]

    def _recovery(
        self, trial: Trial, settings: Mapping[str, int | float], steps: int, rung: int, origin: Origin
    ) -> Proposal | None:
        """The same structure with a recovery; None where this very one was evaluated."""
        level = self.space.rules.distill.steps.index(steps)
        distill = self.space.recovery_of({**settings, "steps": level}, trial.plan)
        plan = replace(structure_of(trial.plan), distill=distill, seed=self._seed)
        return None if self._seen.proposed(plan) else Proposal(NO_PROPOSAL, plan, origin, rung)

    def _time_for(self, rung: int) -> bool:
        """Whether there is time for one more on a rung, by what its like or shorter ones took."""
        alike = [trial for trial in self._seen.trials.values() if trial.rung == rung]
        if alike:
            return self._seen.left_s >= typical_seconds(alike)
        lower = [trial for trial in self._seen.trials.values() if trial.rung == rung - 1]
        steps = self.space.steps
        more = steps[rung - 1] / steps[rung - 2] if rung > 1 else 1.0
        return self._seen.left_s >= more * typical_seconds(lower)
