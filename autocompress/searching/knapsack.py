"""The knapsack over a joint space: the front that tables of losses and a model of seconds expect.

What whole candidates were measured to lose and to take corrects both, and the program is solved again.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property

import numpy as np

from autocompress.objectives import Objective
from autocompress.plan import Plan, removed_blocks
from autocompress.plan.check import removed_layers
from autocompress.searching.amounts import Amounts, Resource
from autocompress.searching.atoms import Atom, Atoms
from autocompress.searching.expected import Expected, thinned
from autocompress.searching.parts import Parts, merged, touched_layers
from autocompress.searching.programs import Losses, Program, Programs
from autocompress.searching.solve import bent, front, left_out, refit, solve, unbent
from autocompress.searching.work import WorkModel
from autocompress.space import SearchSpace, Values

#: Doubt of a single choice's loss, as a share of it.
LOSS_DOUBT = 0.6

#: Doubt of what a whole candidate loses, as a share of it: the first, where choices interact; the second where it makes
#: the mean square by which candidates are foretold from all others at least so many times smaller.
LOSS_NOISES, CLEARER = (0.5, 0.15), 2.0

#: What is believed to be over a limit by less than this factor may yet keep it; and of seconds, what is over that by
#: less than so many standard deviations of what is believed.
NEARLY, DOUBTED = 1.05, 1.0

#: Candidates from which on it is told by what law sums of losses come to what is lost.
USUAL_FROM = 6

#: Limits on each further objective that the front is solved under too, each at one in so many of the budgets: a program
#: with two tight limits takes many times as long as one with a single one.
LEVELS = 4


class Knapsack:
    """The program of one space, with what is believed of it.

    Args:
        space: without recovery.
        parts: of the space.
        atoms: losses of single choices.
        work: seconds of plans.
        limits: largest seconds, under "latency", and largest totals of other resources by name, as they are asked for.
        dense_s: seconds of the dense model.
        resources: what else is limited or an objective, by name.
        along: which of these are objectives beside latency and loss.
    """

    def __init__(
        self,
        space: SearchSpace,
        parts: Parts,
        atoms: Atoms,
        work: WorkModel,
        limits: Mapping[str, float],
        dense_s: float,
        resources: Mapping[str, Resource] | None = None,
        along: Sequence[Objective] = (),
    ) -> None:
        self.space = space
        self.parts = parts
        self.work = work
        self.dense_s = dense_s
        self._asked = {**limits, "removed": float(_most_removed(space))}
        self.amounts = Amounts({"removed": self._removed, **(resources or {})})
        self.resources = tuple(resources or ())
        self.along = tuple(along)
        self._programs = Programs(space, parts, self.amounts, work)
        self._limits: tuple[WorkModel, Mapping[str, float]] | None = None
        self.take(atoms)

    def take(self, atoms: Atoms) -> None:
        """Believe these losses of single choices; what whole candidates said of others is to be learned anew."""
        self._measured_kl = {name: list(row) for name, row in atoms.kl.items()}
        self.kl: dict[str, list[float]] = dict(self._measured_kl)
        self.known = atoms.known
        self._usual = (0.0, 1.0)

    def choices(self, values: Values, plan: Plan) -> list[Atom]:
        """The single choices of a candidate that have an effect, off the base; of those that the program decides on."""
        effective, base = self.effective(values, plan), self.parts.base
        names = (name for name in self.kl if name in self.parts.chosen)
        return [(name, int(effective[name])) for name in names if effective.get(name, base[name]) != base[name]]

    def decides(self, values: Values) -> bool:
        """Whether nothing is chosen that the program leaves alone: no recipe, no zeros."""
        alone = self.parts.base.keys() - self.parts.chosen
        return all(values.get(name, self.parts.base[name]) == self.parts.base[name] for name in alone)

    def foretold(self, values: Values, plan: Plan) -> float:
        """What a candidate is expected to lose, in nats, by the law that most candidates were found to follow."""
        level, bend = self._usual
        return math.exp(level) * math.pow(self.loss(values, plan), bend)

    def loss(self, values: Values, plan: Plan) -> float:
        """Sum of what the single choices lose that have an effect."""
        effective = self.effective(values, plan)
        return sum(row[int(effective[name])] for name, row in self.kl.items() if name in effective)

    def expected(self, values: Values) -> Expected:
        """What is expected of any candidate."""
        plan = self.space.decode(values)
        others: dict[str, float] = {name: self.amounts.of(name, plan) for name in self.along}
        return Expected(values, plan, self.work.seconds(plan), self.loss(values, plan), others)

    def keeps(self, values: Values, nearly: float = NEARLY, doubted: float = DOUBTED) -> bool:
        """Whether a candidate may keep the limits on seconds and on what else is counted, by what is believed.

        Up to a factor; and of seconds, up to so many standard deviations of what is believed.
        """
        limited = [name for name in self.resources if name in self._asked]
        if "latency" not in self._asked and not limited:
            return True  # as of most searches, which ask for dozens of candidates at a time
        plan = self.space.decode(values)
        if "latency" in self._asked:
            least_s = self.work.seconds(plan) - doubted * self.work.spread(plan)
            if least_s > nearly * self.limits["latency"]:
                return False
        return all(self.amounts.of(name, plan) <= nearly * self._asked[name] for name in limited)

    @property
    def limits(self) -> Mapping[str, float]:
        """What a plan may take, by name.

        Where nothing is believed to be as fast as is asked, that may be as slow as a little over the fastest: what is
        believed errs, and only candidates near there tell by how much.
        """
        if self._limits is None or self._limits[0] is not self.work:
            self._limits = self.work, self._within_reach(self._programs.each(self.kl, self.work))
        return self._limits[1]

    def _within_reach(self, programs: Iterable[Program]) -> Mapping[str, float]:
        """The limits, by what the programs of all combinations take."""
        if "latency" not in self._asked:
            return self._asked
        others = {name: most for name, most in self._asked.items() if name != "latency"}
        fastest_s = min(solve(program.costs["latency"], program.costs, others).error for program in programs)
        if math.isinf(fastest_s):  # whatever its seconds, nothing keeps the others
            return self._asked
        return {**self._asked, "latency": max(self._asked["latency"], NEARLY * fastest_s)}

    def effective(self, values: Values, plan: Plan) -> Values:
        """The values with choices at their base, which loses nothing, that the plan leaves no place for.

        Those in what it removes, and fewer bits where the precision has no use for them.
        """
        gone, effective = removed_layers(plan, self.space.table), dict(values)
        for name, touched in self._touched.items():
            kind, _, scope = name.partition(":")
            idle = scope not in plan.groups if kind == "remove" else touched <= gone
            if kind == "bits" and not idle:
                rounded = (plan.layers[layer].quantize for layer in touched if layer in plan.layers)
                idle = all(quantize is None or quantize.weight_bits is None for quantize in rounded)
            if idle and name in effective:
                effective[name] = self.parts.base[name]
        return effective

    @cached_property
    def _touched(self) -> dict[str, frozenset[str]]:
        return {name: touched_layers(name, self.space) for name in self.parts.chosen}

    def front(self, points: int) -> list[Expected]:
        """The best choices at budgets evenly spaced in log seconds, fast to slow, over all shared combinations.

        Args:
            points: budgets for each combination.
        """
        found: list[Expected] = []
        for program in self._programs.each(self.kl, self.work):
            solved: dict[tuple[int, ...], None] = {}
            for limits in (self.limits, *self._levels(program)):
                budgets = points if limits is self.limits else max(2, points // LEVELS)
                for solution in front(program.errors, program.costs, "latency", budgets, limits):
                    assert solution.options is not None
                    solved[solution.options] = None
            found += [self._chosen(program, options) for options in solved]
        return thinned(found, self.along)

    def _levels(self, program: Program) -> Iterator[dict[str, float]]:
        """The limits, with one on a further objective: log-spaced from the least of it to what the least loss takes."""
        best = solve(program.errors, program.costs, self.limits) if self.along else None
        if best is None or best.options is None:
            return
        for name in self.along:
            high = best.costs[name]
            low = max(best.least[name], 1e-3 * high)
            for level in np.geomspace(low, max(low, high), LEVELS + 1)[:-1]:
                yield {**self.limits, name: float(level) * (1 + 1e-9)}

    def at(
        self,
        seconds: float,
        kl: Losses | None = None,
        others: Mapping[str, float] | None = None,
        work: WorkModel | None = None,
    ) -> Expected | None:
        """The candidate with the least loss within some seconds, and some amounts of further objectives.

        None where nothing is that fast and small.

        Args:
            seconds: inf for what is asked, or is within reach.
            kl: losses to go by instead of those that are believed.
            others: largest amounts of further objectives, by name.
            work: model of seconds to go by instead of that which is believed.
        """
        programs = list(self._programs.each(kl or self.kl, work or self.work))
        held = self.limits if work is None else self._within_reach(programs)
        tighter = {name: min(amount, held.get(name, math.inf)) for name, amount in (others or {}).items()}
        limits = {**held, **tighter, "latency": min(seconds, held.get("latency", math.inf))}
        best: Expected | None = None
        for program in programs:
            options = solve(program.errors, program.costs, limits).options
            if options is not None:
                made = self._chosen(program, options)
                best = made if best is None or made.loss < best.loss else best
        return best

    def learn_seconds(self, measured: Sequence[tuple[Plan, float]]) -> None:
        """Fit the model of seconds to whole candidates."""
        self.work = self.work.fit([plan for plan, _seconds in measured], [seconds for _plan, seconds in measured])

    def learn_losses(self, measured: Sequence[tuple[Values, Plan, float]]) -> None:
        """Correct the losses of single choices by what whole candidates, values and plan, lost, in nats.

        A sum of losses stands for what it comes to by a power law, since what is lost in one place makes the others
        lose more; the power is fitted first, then each choice's loss is corrected by what is left: much where that
        foretells a candidate from all others, little where what is left is of choices together. Candidates with choices
        that are left alone teach nothing.
        """
        names = list(self._measured_kl)
        rows = [self._measured_kl[name] for name in names]
        whole = [(self.effective(values, plan), kl) for values, plan, kl in measured if kl > 0 and self.decides(values)]
        base = self.parts.base
        choices = [[int(values.get(name, base[name])) for name in names] for values, _kl in whole]
        sums = [sum(row[level] for row, level in zip(rows, levels, strict=True)) for levels in choices]
        usable = [i for i, total in enumerate(sums) if total > 0]
        if not usable:
            return
        lost, told = [whole[i][1] for i in usable], [sums[i] for i in usable]
        level, bend = bent(told, lost)
        straight = unbent(lost, (level, bend))
        if len(usable) >= USUAL_FROM:  # by the middle one, since some are what a wrong estimate had broken
            self._usual = float(np.median(np.log(lost) - bend * np.log(told))), bend
        doubts = [[LOSS_DOUBT * value for value in row] for row in rows]
        chosen = [choices[i] for i in usable]
        noises = [[share * value for value in straight] for share in LOSS_NOISES]
        off = [np.mean((left_out(rows, doubts, chosen, straight, noise) / straight) ** 2) for noise in noises]
        corrected = refit(rows, doubts, chosen, straight, noises[int(off[0] > CLEARER * off[1])])
        self.kl = {
            name: [max(0.1 * old, new) for old, new in zip(before, after, strict=True)]
            for name, before, after in zip(names, rows, corrected, strict=True)
        }

    def _removed(self, plan: Plan) -> float:
        return float(len(removed_blocks(plan, self.space.table)))

    def _chosen(self, program: Program, options: Sequence[int]) -> Expected:
        chosen = [row[option] for row, option in zip(program.values, options, strict=True)]
        return self.expected(merged(self.parts.base, program.shared, *chosen))


def _most_removed(space: SearchSpace) -> int:
    """Blocks that a plan of the space may remove."""
    blocks = space.table.blocks
    return len(blocks) - math.ceil(len(blocks) * space.rules.blocks.keep_at_least - 1e-9)
