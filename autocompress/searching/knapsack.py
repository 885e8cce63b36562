"""The knapsack over a joint space: the front that tables of losses and a model of seconds expect.

What whole candidates were measured to lose and to take corrects both, and the program is solved again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from autocompress.objectives import Objective
from autocompress.plan import PRECISIONS, Plan, removed_blocks
from autocompress.plan.check import removed_layers
from autocompress.searching.atoms import Atom, Atoms
from autocompress.searching.choices import Choices
from autocompress.searching.expected import Expected, thinned
from autocompress.searching.parts import Part, Parts, likeness, merged, reached_layers, touched_layers
from autocompress.searching.solve import Table, bent, front, left_out, refit, solve, unbent
from autocompress.searching.work import WorkModel
from autocompress.space import SearchSpace, Values

Array = NDArray[np.float64]

#: Doubt of a single choice's loss, as a share of it.
LOSS_DOUBT = 0.6

#: Doubt of what a whole candidate loses, as a share of it: the first, where choices interact; the second where it makes
#: the mean square by which candidates are foretold from all others at least so many times smaller.
LOSS_NOISES, CLEARER = (0.5, 0.15), 2.0

#: What is believed to be over a limit by less than this factor may yet keep it.
NEARLY = 1.05

#: Candidates from which on it is told by what law sums of losses come to what is lost.
USUAL_FROM = 6

#: Limits on each further objective that the front is solved under too, each at one in so many of the budgets: a program
#: with two tight limits takes many times as long as one with a single one.
LEVELS = 4

#: Savings that are believed to be what the layers' bytes say, against measured ones; bounds of what is saved for each.
SLOPE_DOUBT, SLOPES = 0.3, (0.2, 5.0)


@dataclass(frozen=True)
class _Added:
    """What some options add to a plan.

    Attributes:
        more: to the features of seconds, ``(options, features)``.
        others: to each other resource, ``(options,)``.
    """

    more: Array
    others: Mapping[str, Array]


@dataclass(frozen=True)
class _Cell:
    """The options of one part under one combination of shared values.

    Attributes:
        part: whose options.
        added: by its options.
        inner: by those of each of its inner parts, one for each of its own options, which may share them.
    """

    part: Part
    added: _Added
    inner: tuple[tuple[_Added, ...], ...] = ()


#: What a plan takes of something beside seconds.
Resource = Callable[[Plan], float]


class Knapsack:
    """The program of one space, with what is believed of it.

    Args:
        space: without recovery.
        parts: of the space.
        atoms: losses of single choices.
        work: seconds of plans.
        limits: largest seconds, under "latency", and largest totals of other resources by name.
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
        self.limits = {**limits, "removed": float(_most_removed(space))}
        self._resources: dict[str, Resource] = {"removed": self._removed, **(resources or {})}
        self.resources = tuple(resources or ())
        self.along = tuple(along)
        self._slopes = dict.fromkeys(self._resources, 1.0)
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
        others: dict[str, float] = {name: self.amount(name, plan) for name in self.along}
        return Expected(values, plan, self.work.seconds(plan), self.loss(values, plan), others)

    def amount(self, name: str, plan: Plan) -> float:
        """What a plan is believed to take of a resource."""
        dense = self._dense_amounts[name]
        return dense + self._slopes[name] * (self._resources[name](plan) - dense)

    def keeps(self, values: Values, nearly: float = NEARLY) -> bool:
        """Whether a candidate is believed to keep the limits on seconds and on what else is counted, up to a factor."""
        limited = [name for name in self.resources if name in self.limits]
        if "latency" not in self.limits and not limited:
            return True  # as of most searches, which ask for dozens of candidates at a time
        plan = self.space.decode(values)
        if self.work.seconds(plan) > nearly * self.limits.get("latency", math.inf):
            return False
        return all(self.amount(name, plan) <= nearly * self.limits[name] for name in limited)

    @cached_property
    def _dense_amounts(self) -> dict[str, float]:
        return {name: take(Plan()) for name, take in self._resources.items()}

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
        for number in range(len(self.parts.shared)):
            errors, costs, values = self._program(number, self.kl)
            solved: dict[tuple[int, ...], None] = {}
            for limits in (self.limits, *self._levels(errors, costs)):
                budgets = points if limits is self.limits else max(2, points // LEVELS)
                for solution in front(errors, costs, "latency", budgets, limits):
                    assert solution.options is not None
                    solved[solution.options] = None
            found += [self._chosen(number, values, options) for options in solved]
        return thinned(found, self.along)

    def _levels(self, errors: Table, costs: Mapping[str, Table]) -> Iterator[dict[str, float]]:
        """The limits, with one on a further objective: log-spaced from the least of it to what the least loss takes."""
        best = solve(errors, costs, self.limits) if self.along else None
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
        kl: Mapping[str, Sequence[float]] | None = None,
        others: Mapping[str, float] | None = None,
    ) -> Expected | None:
        """The candidate with the least loss within some seconds, and some amounts of further objectives.

        None where nothing is that fast and small.
        """
        tighter = {name: min(amount, self.limits.get(name, math.inf)) for name, amount in (others or {}).items()}
        best: Expected | None = None
        for number in range(len(self.parts.shared)):
            errors, costs, values = self._program(number, kl or self.kl)
            limits = {**self.limits, **tighter, "latency": min(seconds, self.limits.get("latency", math.inf))}
            options = solve(errors, costs, limits).options
            if options is not None:
                made = self._chosen(number, values, options)
                best = made if best is None or made.loss < best.loss else best
        return best

    def learn_seconds(self, measured: Sequence[tuple[Plan, float]]) -> None:
        """Fit the model of seconds to whole candidates."""
        self.work = self.work.fit([plan for plan, _seconds in measured], [seconds for _plan, seconds in measured])

    def learn_amounts(self, name: str, measured: Sequence[tuple[Plan, float]]) -> None:
        """Correct what plans save of a resource by what whole candidates were measured to take of it.

        A file keeps more than its layers' bytes, and a process more than its file; what is saved is taken to grow in
        proportion. ``min Σ (s·x - y)² + SLOPE_DOUBT·max x²·(s - 1)²`` for believed and measured savings x and y.
        """
        take, dense = self._resources[name], self._dense_amounts[name]
        believed = np.array([dense - take(plan) for plan, _amount in measured])
        saved = np.array([dense - amount for _plan, amount in measured])
        if not believed.any():
            return
        doubt = SLOPE_DOUBT * (believed**2).max()
        slope = (believed @ saved + doubt) / (believed @ believed + doubt)
        self._slopes[name] = float(np.clip(slope, *SLOPES))

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

    @cached_property
    def _cells(self) -> list[tuple[Plan, list[_Cell]]]:
        """For each combination: a plan, and what options add to it."""
        return [self._cells_under(shared) for shared in self.parts.shared]

    def _removed(self, plan: Plan) -> float:
        return float(len(removed_blocks(plan, self.space.table)))

    @cached_property
    def _around(self) -> Values:
        """Everything in the precision that is fastest: what the other parts are while the options of one are priced.

        Seconds of a latency table do not quite add up, since neighbours that compute alike save each other something;
        near the plans that are worth finding they then do.
        """
        offered = {str(level) for v in self.space.structure if v.name.startswith("precision:") for level in v.levels}
        uniform = [self.space.uniform(precision=precision) for precision in PRECISIONS if precision in offered]
        every = [merged(self.parts.base, self._precisions(values)) for values in uniform]
        fastest = min(every, key=lambda values: self.work.seconds(self.space.decode(values)), default={})
        return self._precisions(fastest)

    @staticmethod
    def _precisions(values: Values) -> Values:
        return {name: level for name, level in values.items() if name.startswith("precision:")}

    def _cells_under(self, shared: Values) -> tuple[Plan, list[_Cell]]:
        rest = merged(self.parts.base, self._around, shared)
        whole, cells = self.space.decode(rest), []
        twins: dict[object, _Cell] = {}
        for part in self.parts.parts:
            alike = likeness(part, rest, self.space, self.work.by_place)
            if alike in twins:
                cells.append(replace(twins[alike], part=part))
                continue
            twins[alike] = _Cell(part, self._added(rest, part.options), tuple(self._inner(part, rest)))
            cells.append(twins[alike])
        return whole, cells

    def _added(self, rest: Values, options: Sequence[Values]) -> _Added:
        whole, plans = self.space.decode(rest), [self.space.decode(merged(rest, option)) for option in options]
        before = self.work.features(whole)
        more = np.array([self.work.features(plan) - before for plan in plans])
        others = {
            name: np.array([take(plan) - take(whole) for plan in plans]) for name, take in self._resources.items()
        }
        return _Added(more, others)

    def _inner(self, part: Part, rest: Values) -> Iterator[tuple[_Added, ...]]:
        """What each inner part's options add under every option of the part, of which few reach its layers."""
        for alone in part.inner:
            layers = reached_layers(alone, self.space)
            near = [name for name in part.options[0] if not layers.isdisjoint(touched_layers(name, self.space))]
            known: dict[tuple[int | float | None, ...], _Added] = {}
            found = []
            for option in part.options:
                key = tuple(option.get(name) for name in near)
                if key not in known:
                    own = {name: option[name] for name in near if name in option}
                    known[key] = self._added(merged(rest, own), alone.options)
                found.append(known[key])
            yield tuple(found)

    def _program(
        self, number: int, kl: Mapping[str, Sequence[float]]
    ) -> tuple[list[list[float]], dict[str, list[list[float]]], list[Sequence[Values]]]:
        """Errors and costs of the choices of each part that are worth considering, and their values."""
        whole, cells = self._cells[number]
        totals = {"latency": self.work.seconds(whole)} | {name: self.amount(name, whole) for name in self._resources}
        share = np.array(list(totals.values())) / max(1, len(cells))
        found = [self._choices(cell, kl) for cell in cells]
        errors = [choices.lost.tolist() for choices in found]
        costs = {
            name: [(share[place] + choices.takes[:, place]).tolist() for choices in found]
            for place, name in enumerate(totals)
        }
        return errors, costs, [choices.values for choices in found]

    def _choices(self, cell: _Cell, kl: Mapping[str, Sequence[float]]) -> Choices:
        """Those of a part that none beats; its inner parts are taken in one after another, under each option."""
        outer = self._priced(cell.part.options, cell.added, kl)
        if not cell.inner:
            return outer.kept()
        known: dict[int, Choices] = {}
        found = []
        for place in range(len(cell.part.options)):
            made = Choices(outer.lost[[place]], outer.takes[[place]], [outer.values[place]])
            for alone, each in zip(cell.part.inner, cell.inner, strict=True):
                added = each[place]
                if id(added) not in known:
                    known[id(added)] = self._priced(alone.options, added, kl).kept()
                made = made.times(known[id(added)])
            found.append(made)
        return Choices(
            np.concatenate([made.lost for made in found]),
            np.concatenate([made.takes for made in found]),
            [values for made in found for values in made.values],
        ).kept()

    def _priced(self, options: Sequence[Values], added: _Added, kl: Mapping[str, Sequence[float]]) -> Choices:
        lost = np.array([sum(kl[name][int(level)] for name, level in option.items()) for option in options])
        others = (self._slopes[name] * added.others[name] for name in self._resources)
        return Choices(lost, np.stack([added.more @ self.work.fitted, *others], axis=1), options)

    def _chosen(self, number: int, values: Sequence[Sequence[Values]], options: Sequence[int]) -> Expected:
        chosen = [row[option] for row, option in zip(values, options, strict=True)]
        return self.expected(merged(self.parts.base, self.parts.shared[number], *chosen))


def _most_removed(space: SearchSpace) -> int:
    """Blocks that a plan of the space may remove."""
    blocks = space.table.blocks
    return len(blocks) - math.ceil(len(blocks) * space.rules.blocks.keep_at_least - 1e-9)
