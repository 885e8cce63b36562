"""The integer programs of a space: what choices of its parts lose and take, for each combination of shared values.

What options add to a plan is worked out once; what is believed of losses, seconds and other amounts prices it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from autocompress.plan import PRECISIONS, Plan
from autocompress.searching.amounts import Amounts
from autocompress.searching.choices import Choices
from autocompress.searching.parts import Part, Parts, likeness, merged, reached_layers, touched_layers
from autocompress.searching.solve import Table
from autocompress.searching.work import WorkModel
from autocompress.space import SearchSpace, Values

Array = NDArray[np.float64]

#: Losses of single choices, in nats: by variable, of each of its levels.
Losses = Mapping[str, Sequence[float]]


class Program(NamedTuple):
    """That of one combination of shared values.

    Attributes:
        errors: of the choices of each part that are worth considering.
        costs: the same of seconds, under "latency", and of other amounts by name.
        values: of each choice of each part.
        shared: the combination.
    """

    errors: Table
    costs: Mapping[str, Table]
    values: Sequence[Sequence[Values]]
    shared: Values


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


class Programs:
    """The programs of a space.

    Args:
        space: without recovery.
        parts: of the space.
        amounts: what is believed of everything beside seconds.
        work: seconds of plans, as they are believed at first.
    """

    def __init__(self, space: SearchSpace, parts: Parts, amounts: Amounts, work: WorkModel) -> None:
        self._space, self._parts, self._amounts, self._work = space, parts, amounts, work

    def each(self, kl: Losses, work: WorkModel) -> Iterator[Program]:
        """That of each combination of shared values, by these losses and seconds."""
        for shared, (whole, cells) in zip(self._parts.shared, self._cells, strict=True):
            totals = {"latency": work.seconds(whole)}
            totals |= {name: self._amounts.of(name, whole) for name in self._amounts.takes}
            share = np.array(list(totals.values())) / max(1, len(cells))
            found = [self._choices(cell, kl, work) for cell in cells]
            costs = {
                name: [(share[place] + choices.takes[:, place]).tolist() for choices in found]
                for place, name in enumerate(totals)
            }
            errors, values = [choices.lost.tolist() for choices in found], [choices.values for choices in found]
            yield Program(errors, costs, values, shared)

    @cached_property
    def _cells(self) -> list[tuple[Plan, list[_Cell]]]:
        """For each combination: a plan, and what options add to it."""
        return [self._cells_under(shared) for shared in self._parts.shared]

    @cached_property
    def _around(self) -> Values:
        """Everything in the precision that is fastest: what the other parts are while the options of one are priced.

        Seconds of a latency table do not quite add up, since neighbours that compute alike save each other something;
        near the plans that are worth finding they then do.
        """
        offered = {str(level) for v in self._space.structure if v.name.startswith("precision:") for level in v.levels}
        uniform = [self._space.uniform(precision=precision) for precision in PRECISIONS if precision in offered]
        every = [merged(self._parts.base, self._precisions(values)) for values in uniform]
        fastest = min(every, key=lambda values: self._work.seconds(self._space.decode(values)), default={})
        return self._precisions(fastest)

    @staticmethod
    def _precisions(values: Values) -> Values:
        return {name: level for name, level in values.items() if name.startswith("precision:")}

    def _cells_under(self, shared: Values) -> tuple[Plan, list[_Cell]]:
        rest = merged(self._parts.base, self._around, shared)
        whole, cells = self._space.decode(rest), []
        twins: dict[object, _Cell] = {}
        for part in self._parts.parts:
            alike = likeness(part, rest, self._space, self._work.by_place)
            if alike in twins:
                cells.append(replace(twins[alike], part=part))
                continue
            twins[alike] = _Cell(part, self._added(rest, part.options), tuple(self._inner(part, rest)))
            cells.append(twins[alike])
        return whole, cells

    def _added(self, rest: Values, options: Sequence[Values]) -> _Added:
        whole, plans = self._space.decode(rest), [self._space.decode(merged(rest, option)) for option in options]
        before = self._work.features(whole)
        more = np.array([self._work.features(plan) - before for plan in plans])
        others = {
            name: np.array([take(plan) - take(whole) for plan in plans]) for name, take in self._amounts.takes.items()
        }
        return _Added(more, others)

    def _inner(self, part: Part, rest: Values) -> Iterator[tuple[_Added, ...]]:
        """What each inner part's options add under every option of the part, of which few reach its layers."""
        for alone in part.inner:
            layers = reached_layers(alone, self._space)
            near = [name for name in part.options[0] if not layers.isdisjoint(touched_layers(name, self._space))]
            known: dict[tuple[int | float | None, ...], _Added] = {}
            found = []
            for option in part.options:
                key = tuple(option.get(name) for name in near)
                if key not in known:
                    own = {name: option[name] for name in near if name in option}
                    known[key] = self._added(merged(rest, own), alone.options)
                found.append(known[key])
            yield tuple(found)

    def _choices(self, cell: _Cell, kl: Losses, work: WorkModel) -> Choices:
        """Those of a part that none beats; its inner parts are taken in one after another, under each option."""
        outer = self._priced(cell.part.options, cell.added, kl, work)
        if not cell.inner:
            return outer.kept()
        known: dict[int, Choices] = {}
        found = []
        for place in range(len(cell.part.options)):
            made = Choices(outer.lost[[place]], outer.takes[[place]], [outer.values[place]])
            for alone, each in zip(cell.part.inner, cell.inner, strict=True):
                added = each[place]
                if id(added) not in known:
                    known[id(added)] = self._priced(alone.options, added, kl, work).kept()
                made = made.times(known[id(added)])
            found.append(made)
        return Choices(
            np.concatenate([made.lost for made in found]),
            np.concatenate([made.takes for made in found]),
            [values for made in found for values in made.values],
        ).kept()

    def _priced(self, options: Sequence[Values], added: _Added, kl: Losses, work: WorkModel) -> Choices:
        lost = np.array([sum(kl[name][int(level)] for name, level in option.items()) for option in options])
        others = (self._amounts.slopes[name] * added.others[name] for name in self._amounts.takes)
        return Choices(lost, np.stack([added.more @ work.fitted, *others], axis=1), options)
