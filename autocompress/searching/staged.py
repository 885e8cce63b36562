"""`strategy: staged`: what is cheap to know decides what is worth training.

Without recovery first: uniform levels, then the front that an integer program expects, then refinements of what was
measured. Then recovery: its settings are tuned at anchors and shared, the candidates that promise most are recovered
for few steps, and the best of these for more. While there is time, both go on in turn.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np

from autocompress.objectives import OBJECTIVES, amount
from autocompress.plan import Plan
from autocompress.records import Origin, Trial
from autocompress.searching.climbing import TUNED_MOST, Climb
from autocompress.searching.controller import Controller, Proposal
from autocompress.searching.expected import Expected, expectation, furthest
from autocompress.searching.knapsack import Knapsack
from autocompress.searching.rungs import ETA
from autocompress.searching.seen import NO_PROPOSAL, Clock, Judge, Seen, Teller, own_ratio
from autocompress.searching.warm import encode, rung_of
from autocompress.space import SearchSpace, Values

#: Share of the time by which candidates without recovery are done, where there is recovery.
UNTRAINED_SHARE = 0.45

#: Candidates that were measured since the tables were last corrected by them.
REFIT_EVERY = 6

#: The same once the front that the program expects is measured: it then changes little.
REFINED_EVERY = 18

#: The front, and so many of the last candidates, correct the tables.
MOST_LEARNED = 200

#: Trials up to which the sampler proposes, too: what it takes to model them grows with their number.
MOST_SAMPLED = 1000

#: Uniform levels that are measured before the program's own choices.
FIRST = 2

#: Budgets of the program.
POINTS = 40

#: Spread of the losses that a refinement believes, as the standard deviation of their logarithm.
SPREAD = 0.5

#: Refinements in a row that add less than this share of the hypervolume end them, where recovery waits.
PATIENCE, LITTLE = 10, 0.002

#: Pairs of moves that a switch chooses from, and the difference in seconds, as a share, that it should keep within.
SWITCHES, SAME = 12, 0.01


class Staged:
    """Proposes plans stage by stage and learns from trials.

    Plans of `warm`, which may be set before the first is asked for, are evaluated first of all.
    Where `only` is set ("solve", "refine" or "recover"), that stage is all there is, and takes all the time.
    `stagnated` says whether it ended because its last stage added next to nothing.

    Args:
        space: the whole space, recovery included.
        knapsack: over the same space without recovery; None where there is no structure to choose.
        controller: over what refinements draw from in the same space; keeps the proposals of rung 0.
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
        teller: Teller | None = None,
    ) -> None:
        self.space = space
        self.knapsack = knapsack
        self._controller = controller
        self._plain = space.untrained()
        self._heaviest = {v.name: 0 for v in self._plain.structure}
        self._seen = Seen(judge, clock)
        self.climb = Climb(space, self._seen, seed, self._begin)
        self.stagnated = False
        self.warm: Sequence[Plan] = ()
        self.only: str | None = None
        self._sampler_repeats = False
        self._corners = list(corners)
        self._teller = teller or Teller()
        self._values: dict[str, Values] = {}
        self._front: list[Expected] | None = None
        self._fresh = self._made = self._turn = self._refinements = 0
        self._exhausted = knapsack is None
        self._draw = np.random.default_rng([seed, len(trials)])
        self._flow = self._stages()
        for trial in trials:
            self._seen.keep(trial)
            values = controller.values(trial)
            if trial.rung == 0 and values is not None:
                self._values[trial.fingerprint] = {**self._heaviest, **values}

    def ask(self, left_s: float = math.inf) -> Proposal | None:
        """The next plan; None when all that is worth it is done, or too little time is left.

        None as well where what comes next depends on those that are under way: tell, and ask again.

        Args:
            left_s: seconds that the next candidate may take.
        """
        self._seen.left_s = left_s
        proposal = next(self._flow, None)
        if proposal is not None:
            self._seen.under_way[proposal.plan.fingerprint] = proposal
            self._made += 1
        return proposal

    def tell(self, number: int, trial: Trial) -> None:
        """Learn the outcome of a proposal."""
        self._seen.keep(trial)
        self._seen.under_way.pop(trial.fingerprint, None)
        self._fresh += trial.measured
        if number != NO_PROPOSAL:
            self._controller.tell(number, trial)
        elif trial.rung == 0 and trial.fingerprint in self._values:
            self._controller.add(self._values[trial.fingerprint], trial)

    def _stages(self) -> Iterator[Proposal | None]:
        """Solve, refine and recover; then refine and recover in turn, until the time or the space is used up."""
        if self.only is not None:
            yield from self._alone(self.only)
            return
        clock, recovers = self._seen.clock, self._recovers()
        yield from self._warmed()
        if self.knapsack is None:
            yield from self._propose({}, "seed")
        tune, wider = True, 0
        for self._turn in itertools.count():
            made = self._made
            if self._turn == 1:
                self._teller.begin()
            if self.knapsack is not None and not self._exhausted and (self._turn or not recovers):
                yield from self._untrained(self.knapsack, clock)
            yield from self._seen.settled()
            gave_up, refined = clock.stagnates(), self._made
            if self.space.steps:
                self._teller.stage("recover")
                yield from self.climb.proposals(tune, wider)
                yield from self._seen.settled()
            if clock.stagnates() or (gave_up and self._made == refined):
                self.stagnated = True
                return
            tune = self._turn > 0 and self._made == made
            if tune and not (self._exhausted and self._more_to_recover(wider)):
                return
            wider += tune
            clock = self._seen.time_left()

    def _alone(self, stage: str) -> Iterator[Proposal | None]:
        """One stage, as long as it has something to propose."""
        if stage != "recover" and self.knapsack is not None:
            yield from self._untrained(self.knapsack, self._seen.clock)
        for wider in itertools.count() if stage == "recover" else ():
            made = self._made
            self._teller.stage("recover")
            yield from self.climb.proposals(wider=wider)
            yield from self._seen.settled()
            if self._seen.clock.stagnates() or (self._made == made and not self._more_to_recover(wider)):
                break
        yield from self._seen.settled()
        self.stagnated = self._seen.clock.stagnates()

    def _recovers(self) -> bool:
        """Whether an earlier session came to recovering what it found itself."""
        return any(trial.rung and trial.origin != "warm-start" for trial in self._seen.trials.values())

    def _warmed(self) -> Iterator[Proposal | None]:
        """What an earlier run found, as it is; without recovery, it is refined where the space can express it."""
        left = [plan for plan in self.warm if not self._seen.proposed(plan)]
        if left:
            self._teller.stage("warm start")
        for plan in left:
            rung = rung_of(plan, self.space)
            if self._seen.left_s < self._seen.typical_seconds(rung):
                continue
            values = encode(plan, self._controller.space)
            if rung == 0 and self._plan(values) == plan:
                self._values[plan.fingerprint] = values
            yield Proposal(NO_PROPOSAL, plan, "warm-start", rung)
        yield from self._seen.settled()

    def _begin(self) -> None:
        """Something new begins; but once all stages had their chance, they count as one."""
        if not self._turn:
            self._teller.begin()

    def _more_to_recover(self, wider: int) -> bool:
        """Whether recovery may find something to do once it is allowed more settings and candidates."""
        if not self.space.steps or not self.climb.time_for(1):
            return False
        return wider < ETA + len(self._seen.trials) // TUNED_MOST

    def _untrained(self, knapsack: Knapsack, clock: Clock) -> Iterator[Proposal | None]:
        """Measure the front that the program expects, then refine, within a share of the time or until it stagnates."""
        waits = bool(self.space.steps) and self.only is None
        share = UNTRAINED_SHARE if waits else 1.0
        if self._front is None and self.only == "refine":
            self._front = self._corrected_front(knapsack)
        elif self._front is None:
            self._teller.stage("solve")
            self._begin()
            for origin, values in self._corners[:FIRST]:
                if self._time_for_untrained(clock, share):
                    yield from self._propose(values, origin)
            self._front = self._corrected_front(knapsack)
            self._teller.say(expectation(self._front))
        elif self._turn:
            self._teller.stage("refine")
        gains, refines, solves = [math.inf], False, self.only != "refine"
        while self._time_for_untrained(clock, share) and not (waits and self._stagnates(gains)):
            if clock.stagnates() and (refines or self._turn or self.only == "solve"):
                return
            solves = solves and not clock.stagnates()
            if self._fresh >= (REFINED_EVERY if self._refinements else REFIT_EVERY):
                self._front = self._corrected_front(knapsack)
            before = self._seen.volume()
            needed = self._most_needed(self._front) if solves else None
            proposal = None
            if needed is not None:
                proposal = self._proposal(needed.values, "solved")
            elif self._corners and solves:
                origin, values = self._corners.pop(0)
                proposal = self._proposal(values, origin)
                if proposal is None:
                    continue
            elif self.only == "solve":
                return
            else:
                if not refines:
                    self._teller.stage("refine")
                    self._begin()
                refines = True
                self._refinements += 1
                proposal = self._refined(knapsack, self._refinements)
            if proposal is None and not self._seen.under_way:
                self._exhausted = True
                return
            yield proposal  # or None: those under way may yet bring something to refine
            if proposal is not None and needed is None and refines:
                gains.append(self._seen.volume() / max(before, 1e-12) - 1)

    def _time_for_untrained(self, clock: Clock, share: float) -> bool:
        return clock.before(share) and self._seen.left_s >= self._seen.typical_seconds(0)

    @staticmethod
    def _stagnates(gains: Sequence[float]) -> bool:
        return len(gains) >= PATIENCE and max(gains[-PATIENCE:]) < LITTLE

    def _corrected_front(self, knapsack: Knapsack) -> list[Expected]:
        """Correct the tables by what was measured, and solve for the front."""
        every = [trial for trial in self._seen.trials.values() if trial.measured and trial.rung == 0]
        found = {trial.fingerprint: trial for trial in [*self._seen.front(), *every[-MOST_LEARNED:]]}
        measured = [trial for trial in found.values() if trial.plan.learn is None]  # what is learned says no shapes
        knapsack.learn_seconds([(trial.plan, knapsack.dense_s * own_ratio(trial)) for trial in measured])
        known = [trial for trial in measured if trial.fingerprint in self._values]
        knapsack.learn_losses(
            [(self._values[trial.fingerprint], trial.plan, self._seen.loss(trial)) for trial in known]
        )
        for name in (name for name in OBJECTIVES if name in knapsack.resources):
            amounts = [(trial.plan, amount(trial, name)) for trial in measured]
            knapsack.learn_amounts(name, [(plan, float(taken)) for plan, taken in amounts if taken is not None])
        self._fresh = 0
        return knapsack.front(POINTS)

    def _most_needed(self, front: Sequence[Expected]) -> Expected | None:
        """Of the expected front, the new one furthest from all that was measured, or is about to be.

        In log seconds, and in the logarithms of further objectives; each as a share of what the front spans.
        """
        assert self.knapsack is not None
        knapsack, more = self.knapsack, self.knapsack.along
        left = [one for one in front if not self._seen.proposed(one.plan)]
        if not left:
            return None
        known = [t for t in self._seen.trials.values() if t.measured and t.rung == 0]
        spots = [(own_ratio(t) * knapsack.dense_s, *(amount(t, name) or math.nan for name in more)) for t in known]
        begun = [proposal.plan for proposal in self._seen.under_way.values() if proposal.rung == 0]
        spots += [(knapsack.work.seconds(p), *(knapsack.amount(name, p) for name in more)) for p in begun]
        return furthest(left, front, spots, more)

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
        seconds = [knapsack.work.seconds(trial.plan) for trial in self._seen.front()]
        if not seconds:
            return None
        low, high = math.log(min(seconds)), math.log(max(seconds))
        found = knapsack.at(math.exp(self._draw.uniform(low, high)), kl, self._drawn_amounts(knapsack))
        return None if found is None else self._proposal(found.values, "refined")

    def _drawn_amounts(self, knapsack: Knapsack) -> dict[str, float]:
        """A limit on one further objective, drawn within what the front spans; half of the time none."""
        if not knapsack.along or self._draw.random() < 0.5:
            return {}
        name = knapsack.along[self._draw.integers(len(knapsack.along))]
        logs = np.log([amount(trial, name) or math.nan for trial in self._seen.front()])
        return {name: math.exp(self._draw.uniform(np.nanmin(logs), np.nanmax(logs)))}

    def _switched(self, knapsack: Knapsack) -> Proposal | None:
        """A front member with one choice heavier and another lighter, at about the same seconds."""
        parents = self._parents()
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
            if self._seen.proposed(found.plan):
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
        parents = self._parents()
        if len(parents) < 2:
            return None
        place = int(self._draw.integers(len(parents) - 1))
        one, other = (self._values[parents[place + i].fingerprint] for i in (0, 1))
        child = dict(one)
        for part in knapsack.parts.parts:
            if self._draw.random() < 0.5:
                child.update({name: other[name] for name in part.names})
        return self._proposal(child, "refined")

    def _sampled(self, _knapsack: Knapsack) -> Proposal | None:
        if self._sampler_repeats or len(self._seen.trials) > MOST_SAMPLED:
            return None
        proposal = self._controller.ask()
        self._sampler_repeats = proposal is None  # so often that asking again would only take time
        if proposal is not None and proposal.plan.fingerprint in self._seen.under_way:
            return None  # the controller hears of it when it is told
        values = None if proposal is None else self._controller.asked(proposal.number)
        if proposal is not None and values is not None:
            self._values[proposal.plan.fingerprint] = {**self._heaviest, **values}
        return proposal

    def _plan(self, values: Values) -> Plan:
        return self._plain.decode(values)

    def _parents(self) -> list[Trial]:
        """Front members that refinements start from: those with recipes or zeros stay the corners that they are."""
        held = self._heaviest.keys() - self._controller.space.by_name.keys()
        found = ((trial, self._values.get(trial.fingerprint)) for trial in self._seen.front())
        return [trial for trial, values in found if values is not None and not any(values[name] for name in held)]

    def _propose(self, values: Values, origin: Origin) -> Iterator[Proposal]:
        proposal = self._proposal(values, origin)
        if proposal is not None:
            yield proposal

    def _proposal(self, values: Values, origin: Origin) -> Proposal | None:
        """Rung 0 of some values; None where it is known or under way."""
        plan = self._plan(values)
        if self._seen.proposed(plan):
            return None
        self._values[plan.fingerprint] = dict(values)
        return Proposal(NO_PROPOSAL, plan, origin)
