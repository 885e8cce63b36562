"""`strategy: staged`: what is cheap to know decides what is worth training.

Without recovery first: the front that an integer program expects, in turn with uniform levels, then refinements of what
was measured. Then recovery: its settings are tuned at anchors and shared; in turn with that, the candidates that
promise most are recovered for few steps, then the best of these for more. While there is time, both go on.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from autocompress.objectives import OBJECTIVES, amount
from autocompress.plan import Plan
from autocompress.records import Origin, Trial
from autocompress.searching.atoms import Atom, Atoms
from autocompress.searching.climbing import TUNED_MOST, Climb
from autocompress.searching.controller import Controller, Proposal
from autocompress.searching.expected import Expected, expectation, furthest
from autocompress.searching.knapsack import Knapsack
from autocompress.searching.refining import Refining
from autocompress.searching.rungs import ETA
from autocompress.searching.seen import NO_PROPOSAL, Clock, Judge, Seen, Teller, own_ratio
from autocompress.searching.warm import encode, rung_of
from autocompress.space import SearchSpace, Values

#: Share of the time by which candidates without recovery are done, where there is recovery.
UNTRAINED_SHARE = 0.45

#: Candidates that were measured since the tables were last corrected by them.
REFIT_EVERY = 6

#: The same once so many candidates of the expected front are measured: it then changes little.
REFINED_EVERY = 18

#: So many candidates are enough, too, where fewer of the expected front are worth measuring.
SETTLED = 60

#: Nor are they corrected before there are so many more candidates, as a share of all.
REFIT_SHARE = 0.05

#: The front, and so many of the last candidates, correct the tables.
MOST_LEARNED = 200

#: Uniform levels that are measured before the program's own choices; the others take turns with these.
FIRST = 2

#: Budgets of the program, and candidates of its fronts that are measured before refining begins: more add little.
POINTS, SOLVED = 40, 20

#: Choices of the program by what it expects, before the latency that is asked for is sought by what else may be true.
TRUSTED = 2

#: Corners that are believed to be over a limit by more than this factor are not measured: the model of seconds, which
#: nothing has corrected yet, errs by less.
FAR = 1.5

#: Share of the time that may go into measuring choices that were estimated wrongly.
LOOK_SHARE = 1 / 8

#: A candidate that loses so many times what the program expects, and so many nats, says that a single choice of it was
#: estimated wrongly.
SURPRISE, AMISS = 5.0, 0.1

#: Refinements in a row that add less than this share of the hypervolume end them, where recovery waits.
PATIENCE, LITTLE = 10, 0.002


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
        look: measures single choices that are suspected, the first ones first, within some seconds; None where none can
            be.
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
        look: Callable[[Sequence[Atom], float], Atoms] | None = None,
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
        self._corners = [one for one in corners if knapsack is None or self._may_fit(one[1], knapsack)]
        self._teller, self._look = teller or Teller(), look
        self._least: dict[Atom, float] = {}
        self._suspects: set[Atom] = set()
        self._look_s = LOOK_SHARE * clock.left_s
        self._values: dict[str, Values] = {}
        self._front: list[Expected] | None = None
        self._fresh, self._begun = math.inf, False
        self._made = self._turn = self._offered = 0
        self._solved = sum(trial.origin == "solved" for trial in trials)
        self._exhausted = knapsack is None
        self._refining: Refining | None = None
        if knapsack is not None:
            self._refining = Refining(
                knapsack, self._seen, self._values, controller, self._heaviest, self._proposal,
                np.random.default_rng([seed, len(trials)]),
            )  # fmt: skip
        self._flow = self._stages()
        for trial in trials:
            self._seen.keep(trial)
            values = controller.values(trial)
            if trial.rung == 0 and values is not None:
                self._values[trial.fingerprint] = {**self._heaviest, **values}
        if knapsack is not None and self._look is not None and self._values:
            self._correct(knapsack)
            for trial in trials:
                self._suspect(trial)
            self._fresh = math.inf

    def _may_fit(self, values: Values, knapsack: Knapsack) -> bool:
        """Whether a corner is not far over what is asked, by what is believed; of recipes and zeros nothing is."""
        return not knapsack.decides(values) or knapsack.keeps(values, FAR, doubted=0.0)

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
        before = self._seen.volume()
        self._seen.keep(trial)
        if self._refining is not None:
            self._refining.learn(trial, self._seen.volume() - before)
        self._seen.under_way.pop(trial.fingerprint, None)
        self._fresh += trial.measured
        self._suspect(trial)
        if number != NO_PROPOSAL:
            self._controller.tell(number, trial)
        elif trial.rung == 0 and trial.fingerprint in self._values:
            self._controller.add(self._values[trial.fingerprint], trial)

    def _suspect(self, trial: Trial) -> None:
        """Note single choices that were estimated, and that alone explain why a candidate loses far more than expected.

        A choice loses about as much as the best candidate that has it, at most.
        """
        knapsack, values = self.knapsack, self._values.get(trial.fingerprint)
        if knapsack is None or self._look is None or values is None or trial.rung:
            return
        lost, choices = trial.divergence, knapsack.choices(values, trial.plan)
        if lost is None or not trial.measured or not knapsack.decides(values):
            return
        for choice in choices:
            self._least[choice] = min(lost, self._least.get(choice, math.inf))
        if lost > max(AMISS, SURPRISE * knapsack.foretold(values, trial.plan)):
            found = [one for one in choices if one not in knapsack.known and self._least[one] >= lost / 2]
            self._suspects.update(found)

    def _look_closer(self, knapsack: Knapsack) -> bool:
        """Measure what is suspected, the worst first, about as long as a candidate takes; False where nothing is."""
        suspects = [one for one in self._suspects if one not in knapsack.known]
        self._suspects.clear()
        clock, typical_s = self._seen.clock, self._seen.typical_seconds(0)
        limit_s = min(typical_s, self._look_s, self._seen.left_s - typical_s)
        if not suspects or self._look is None or limit_s < typical_s / 2:
            return False
        suspects.sort(key=lambda one: (-self._least[one], one))
        begun_s = clock.elapsed()
        knapsack.take(self._look(suspects, limit_s))
        took_s = clock.elapsed() - begun_s
        self._look_s -= took_s
        self._seen.left_s -= took_s
        self._fresh, self._front = math.inf, None
        self._correct(knapsack)
        return True

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
                self._values[plan.fingerprint] = {**self._heaviest, **values}
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
        assert self._refining is not None
        waits = bool(self.space.steps) and self.only is None
        share = UNTRAINED_SHARE if waits else 1.0
        if not self._begun and self.only != "refine":
            self._begun = True
            self._teller.stage("solve")
            self._begin()
            for _ in range(FIRST):
                if self._corners and self._time_for_untrained(clock, share):
                    origin, values = self._corners.pop(0)
                    yield from self._propose(values, origin)
            self._teller.say(expectation(self._expected(knapsack)))
        elif self._turn:
            self._teller.stage("refine")
        gains, refines, solves = [math.inf], False, self.only != "refine"
        while self._time_for_untrained(clock, share) and not (waits and self._stagnates(gains)):
            if clock.stagnates() and (refines or self._turn or self.only == "solve"):
                return
            solves = solves and not clock.stagnates() and (self._solved < SOLVED or self.only == "solve")
            corners = bool(self._corners) and self.only != "refine" and not clock.stagnates()
            if self._look_closer(knapsack):
                continue
            before = self._seen.volume()
            needed = self._needed(knapsack) if solves and not (corners and self._solved > self._offered) else None
            if needed is not None:
                proposal = self._proposal(needed.values, "solved")
                self._solved += 1
            elif corners:
                origin, values = self._corners.pop(0)
                self._offered += 1
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
                self._correct(knapsack)
                proposal = self._refining.propose()
            if proposal is None and not self._seen.under_way:
                self._exhausted = True
                return
            yield proposal  # or None: those under way may yet bring something to refine
            if proposal is not None and refines:
                gains.append(self._seen.volume() / max(before, 1e-12) - 1)

    def _time_for_untrained(self, clock: Clock, share: float) -> bool:
        return clock.before(share) and self._seen.left_s >= self._seen.typical_seconds(0)

    @staticmethod
    def _stagnates(gains: Sequence[float]) -> bool:
        return len(gains) >= PATIENCE and max(gains[-PATIENCE:]) < LITTLE

    def _learn_seconds(self, knapsack: Knapsack) -> list[Trial]:
        """Correct the model of seconds by what was measured, which is given back."""
        found = self._seen.learned_from(MOST_LEARNED)
        measured = [trial for trial in found if trial.plan.learn is None]  # what is learned says no shapes
        knapsack.learn_seconds([(trial.plan, knapsack.dense_s * own_ratio(trial)) for trial in measured])
        return measured

    def _correct(self, knapsack: Knapsack) -> None:
        """Correct the tables by what was measured, once there is enough of it; the front is then to be solved anew."""
        solving = self._solved < SOLVED and len(self._seen.spots) < SETTLED
        often = REFIT_EVERY if solving else REFINED_EVERY
        if self._fresh < max(often, REFIT_SHARE * len(self._seen.spots)):
            return
        measured = self._learn_seconds(knapsack)
        known = [trial for trial in measured if trial.fingerprint in self._values]
        knapsack.learn_losses(
            [(self._values[trial.fingerprint], trial.plan, self._seen.loss(trial)) for trial in known]
        )
        for name in (name for name in OBJECTIVES if name in knapsack.resources):
            amounts = [(trial.plan, amount(trial, name)) for trial in measured]
            knapsack.amounts.learn(name, [(plan, float(taken)) for plan, taken in amounts if taken is not None])
        self._fresh, self._front = 0, None

    def _expected(self, knapsack: Knapsack) -> list[Expected]:
        """The front that the program expects by the tables as they are now."""
        self._correct(knapsack)
        if self._front is None:
            self._front = knapsack.front(POINTS)
        return self._front

    def _needed(self, knapsack: Knapsack) -> Expected | None:
        """Of the expected front, the new one furthest from all that was measured, or is about to be.

        In log seconds, and in the logarithms of further objectives; each as a share of what the front spans. It is no
        slower than the best that was measured, unless there are further objectives: nothing better is expected there.
        Where a loss is allowed, the fastest that keeps it is all that is asked for: it is then sought between the
        fastest of those that keep it and the slowest that the program chose and that does not. Where a latency is
        asked for, what else may be true of seconds decides two times of three after the first choices, as long as
        nothing that was measured keeps it, and then every second time.
        """
        assert self._refining is not None
        draws = "latency" in knapsack.limits and not self._refining.drawn_out and self._solved >= TRUSTED
        if draws and self._solved % (2 if self._seen.reached() else 3):
            self._learn_seconds(knapsack)
            if (drawn := self._refining.sought()) is not None:
                return drawn
        front, more, best = self._expected(knapsack), knapsack.along, self._seen.best()
        slowest = math.inf if best is None or more else own_ratio(best)
        fast, slow = self._seen.asked_between() if self.only != "solve" else (0.0, math.inf)
        low_s, high_s = knapsack.dense_s * fast, knapsack.dense_s * min(slow, slowest)
        left = [e for e in front if low_s <= e.seconds <= high_s and not self._seen.proposed(e.plan)]
        if not left:
            return None
        places = [self._seen.judge.objectives.more.index(name) for name in more]
        spots = [(r * knapsack.dense_s, *(taken[i] for i in places)) for r, *taken in self._seen.spots.values()]
        begun = [proposal.plan for proposal in self._seen.under_way.values() if proposal.rung == 0]
        spots += [(knapsack.work.seconds(p), *(knapsack.amounts.of(name, p) for name in more)) for p in begun]
        return furthest(left, front, spots, more)

    def _plan(self, values: Values) -> Plan:
        return self._plain.decode(values)

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
