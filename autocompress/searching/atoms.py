"""What each single choice of a joint space loses: KL to the dense model with one variable at one level alone.

Fewer bits are measured on top of the precision that they belong to: alone they have no effect.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from autocompress.compressing.bank import Bank
from autocompress.compressing.losses import losses
from autocompress.compressing.sensitivity import sensitivities
from autocompress.layers import LayerTable
from autocompress.plan import Plan
from autocompress.searching.parts import Parts
from autocompress.space import SearchSpace, Values, Variable

Say = Callable[[str], None]

#: A variable and one of its levels.
Atom = tuple[str, int]

#: Options of fewer bits that are worked on together.
TOGETHER = 8

#: Weight of the penalty that decides where nothing was measured.
RIDGE = 1e-3

#: What counts as no loss, in nats.
NOTHING = 1e-9


@dataclass(frozen=True)
class Atoms:
    """Losses of single choices.

    Attributes:
        kl: by variable, of each of its levels, in nats above the base, or of fewer bits above the precision that they
            belong to; 0 for the base's own level.
        measured: how many of them were measured.
        count: how many there are; the others are estimated from their like.
        known: the measured ones.
    """

    kl: Mapping[str, tuple[float, ...]]
    measured: int
    count: int
    known: frozenset[Atom] = frozenset()


class SingleLosses:
    """Measures what single choices of a space lose, and estimates what the others do; what is known is kept.

    Args:
        bank: of the run.
        space: without recovery.
        parts: of the space.
        samples: training samples that predictions are compared on.
        say: is told how far it is.
        clock: gives the seconds that limits are of.
    """

    def __init__(
        self,
        bank: Bank,
        space: SearchSpace,
        parts: Parts,
        samples: int,
        say: Say,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._bank, self._space, self._samples, self._say, self._clock = bank, space, samples, say, clock
        self._wanted = _in_order(space, parts)
        under = {name: _belongs_to(name, space, parts.base) for name, _level in self._wanted}
        self._plans = {(name, level): space.decode({**under[name], name: level}) for name, level in self._wanted}
        self._before = {name: space.decode(values) for name, values in under.items()}
        self._base = space.decode(parts.base)
        self._found: dict[Plan, float] = {}

    def measure(self, limit_s: float) -> Atoms:
        """As many as there is time for, about, what tells most of the others first."""
        return self._measured([self._base, *self._needed(self._wanted)], limit_s)

    def look(self, atoms: Sequence[Atom], limit_s: float) -> Atoms:
        """Some of them, in their order, as long as there is time for, about; with all that is known besides."""
        return self._measured(self._needed(atoms), limit_s)

    def _measured(self, plans: Sequence[Plan], limit_s: float) -> Atoms:
        """Those that only round by the faster way, in a share of the time that is theirs by number."""
        left = [plan for plan in dict.fromkeys(plans) if plan not in self._found]
        rounds = {plan: self._base == Plan() and _only_quantizes(plan) for plan in left}
        rounding, others = ([plan for plan in left if rounds[plan] is one] for one in (True, False))
        share, begun = len(rounding) / max(len(left), 1), self._clock()
        for start in range(0, len(rounding), TOGETHER):
            if start == 0 or self._clock() - begun < share * limit_s:
                part = rounding[start : start + TOGETHER]
                errors = sensitivities(self._bank, part, samples=self._samples, say=self._say)
                self._found |= {plan: one.kl for plan, one in errors.items()}
        if others:
            left_s = limit_s - (self._clock() - begun)
            self._found |= losses(
                self._bank, others, samples=self._samples, limit_s=left_s, say=self._say, clock=self._clock
            )
        return self._atoms()

    def _needed(self, atoms: Sequence[Atom]) -> list[Plan]:
        """Plans by which some atoms are told."""
        return [plan for name, level in atoms for plan in (self._before[name], self._plans[name, level])]

    def _atoms(self) -> Atoms:
        """What is known, and what is estimated from it."""
        known = {
            (name, level): max(0.0, self._found[plan] - self._found[self._before[name]])
            for (name, level), plan in self._plans.items()
            if plan in self._found and self._before[name] in self._found
        }
        structure = self._space.structure
        filled = estimated({v.name: _kind(v, self._space.table) for v in structure}, known, self._wanted)
        kl = {
            variable.name: tuple(filled.get((variable.name, level), 0.0) for level in range(len(variable.levels)))
            for variable in structure
        }
        return Atoms(kl, len(known), len(self._wanted), frozenset(known))


def _belongs_to(name: str, space: SearchSpace, base: Values) -> Values:
    """The base; for fewer bits, with the heaviest precision that has a use for them."""
    kind, _, scope = name.partition(":")
    precision = space.by_name.get(f"precision:{scope}")
    if kind == "bits" and precision is not None:
        lightest = len(space.by_name[name].levels) - 1
        for level in range(len(precision.levels)):
            values: Values = {**base, precision.name: level}
            if space.decode(values) != space.decode({**values, name: lightest}):
                return values
    return dict(base)


def _only_quantizes(plan: Plan) -> bool:
    return not plan.groups and plan.mask is None and all(not (lp.factorize or lp.mask) for lp in plan.layers.values())


def _in_order(space: SearchSpace, parts: Parts) -> list[Atom]:
    """Every level of every variable but the base's: first what tells most of the others.

    All levels of one variable of each kind, then the lightest level of all variables, then the rest.
    """
    chosen = parts.chosen
    variables = [variable for variable in space.structure if variable.name in chosen]
    kinds: dict[Kind, list[Variable]] = {}
    for variable in variables:
        kinds.setdefault(_kind(variable, space.table), []).append(variable)
    examples = [alike[len(alike) // 2] for alike in kinds.values()]
    first = [(variable.name, level) for variable in examples for level in range(len(variable.levels))]
    lightest = [(variable.name, len(variable.levels) - 1) for variable in variables]
    rest = [(v.name, level) for level in range(MOST_LEVELS) for v in variables if level < len(v.levels)]
    base = parts.base
    return [atom for atom in dict.fromkeys([*first, *lightest, *rest]) if atom[1] != base[atom[0]]]


#: More levels than any variable has.
MOST_LEVELS = 100


#: What variables share that are estimated from each other: the choice, whether it is a block's, how many levels it has.
Kind = tuple[str, bool, int]


def _kind(variable: Variable, table: LayerTable) -> Kind:
    choice, _, scope = variable.name.partition(":")
    return choice, any(scope.startswith(block) for block in table.blocks), len(variable.levels)


def estimated(kinds: Mapping[str, Kind], known: Mapping[Atom, float], wanted: Sequence[Atom]) -> dict[Atom, float]:
    """All wanted losses: the known ones, and the others as ``exp(variable's part + level's part)``.

    The parts are fitted to the logarithms of the known ones of like variables by least squares.
    """
    rows = sorted({name for name, _level in wanted})
    columns = sorted({(kinds[name], level) for name, level in wanted})
    sides: dict[object, int] = {side: place for place, side in enumerate([*rows, *columns])}
    if not known:
        return dict.fromkeys(wanted, 1.0)
    logs = {atom: float(np.log(max(kl, NOTHING))) for atom, kl in known.items()}
    middle = float(np.mean(list(logs.values())))
    design = np.zeros((len(logs), len(sides)))
    for number, (name, level) in enumerate(logs):
        design[number, sides[name]] = design[number, sides[kinds[name], level]] = 1.0
    wished = np.array([value - middle for value in logs.values()])
    solution = np.linalg.solve(design.T @ design + RIDGE * np.eye(len(sides)), design.T @ wished)
    result = {}
    for atom in wanted:
        own, level = sides[atom[0]], sides[kinds[atom[0]], atom[1]]
        result[atom] = known.get(atom, float(np.exp(middle + solution[own] + solution[level])))
    return result
