"""The multiple-choice knapsack: one option for every unit, the least total error within additive budgets.

Pure numbers: a table is a row per unit with a value per option; rows may differ in length. Knows no plan and no model.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, isotonic_regression, milp
from scipy.sparse import csr_array, vstack

Table = Sequence[Sequence[float]]
Array = NDArray[np.float64]

#: HiGHS has absolute tolerances: total error, and each total cost, are brought to about this size.
ERROR_SCALE = 1e5
COST_SCALE = 1e2

#: Excess over a limit, relative to the costs' size, that is rounding.
ROUNDING = 1e-9

#: Whole candidates from which the bend between sums of losses and what they come to is fitted, and its bounds.
BEND_FROM, BENDS = 4, (0.5, 2.5)

#: Times that a limit is drawn in where the solver's tolerance let a choice pass it.
TIGHTENED = 4


@dataclass(frozen=True)
class Solution:
    """What the program found.

    Attributes:
        options: number of the option of each unit; None where no choice keeps the limits.
        error: total error of the choice; inf without one.
        costs: total cost of the choice, by name; empty without one.
        bound: no choice within the limits has a smaller error.
        least: the least total that any choice can have of each cost, taken by itself.
    """

    options: tuple[int, ...] | None
    error: float
    costs: Mapping[str, float]
    bound: float
    least: Mapping[str, float]


def solve(errors: Table, costs: Mapping[str, Table], limits: Mapping[str, float]) -> Solution:
    """Choose one option per unit with the least sum of errors, each limited sum of costs at most its limit.

    ``min Σ e[u,x_u]  s.t.  Σ c[u,x_u] ≤ limit`` as a 0-1 program, solved to optimality (gap 0) by HiGHS.

    Args:
        errors: finite.
        costs: name to a table shaped like `errors`; seconds, bytes, joules. May be negative.
        limits: name of a cost to its largest total; what is not named is not limited.

    Raises:
        ValueError: tables of different shapes, a unit without options, a value that is no number, a limit of no cost.
        RuntimeError: HiGHS gave up.
    """
    _check(errors, costs, limits)
    least = {name: _total(table, [int(np.argmin(row)) for row in table]) for name, table in costs.items()}
    slack = {name: ROUNDING * _size(costs[name]) for name in limits}
    allowed = {name: limit + slack[name] for name, limit in limits.items()}
    if any(least[name] > allowed[name] for name in limits):
        return Solution(None, float("inf"), {}, float("inf"), least)
    kept = [undominated(row, [costs[name][u] for name in costs]) for u, row in enumerate(errors)]
    drawn = dict(allowed)
    for _ in range(TIGHTENED):
        found = _program(errors, costs, drawn, kept)
        if found is None:
            break
        options, bound = found
        totals = {name: _total(table, options) for name, table in costs.items()}
        over = {name: totals[name] - allowed[name] for name in limits if totals[name] > allowed[name]}
        if not over:
            return Solution(tuple(options), _total(errors, options), totals, bound, least)
        drawn.update({name: drawn[name] - 2 * excess for name, excess in over.items()})
    return Solution(None, float("inf"), {}, float("inf"), least)


def front(
    errors: Table,
    costs: Mapping[str, Table],
    along: str,
    points: int = 40,
    limits: Mapping[str, float] | None = None,
) -> tuple[Solution, ...]:
    """The different best choices at budgets evenly spaced in the logarithm of one cost, cheap to dear.

    From the least that can be reached to the cost of the choice with the least error of all.

    Args:
        errors: as in `solve`.
        costs: as in `solve`; totals of `along` are above 0.
        along: name of the cost.
        points: number of budgets.
        limits: that hold for every choice, on `along` too.
    """
    held = dict(limits or {})
    best = solve(errors, costs, held)
    if best.options is None:
        return ()
    low, high = solve(costs[along], costs, held).error, best.costs[along]
    found = {best.options: best}
    for budget in np.geomspace(low, max(low, high), points)[:-1]:
        solution = solve(errors, costs, {**held, along: float(budget)})
        if solution.options is not None:
            found.setdefault(solution.options, solution)
    return tuple(sorted(found.values(), key=lambda s: (s.costs[along], s.error)))


def undominated(errors: Sequence[float] | Array, costs: Sequence[Sequence[float]] | Array) -> list[int]:
    """Options of one unit that no other beats: at most its error and its costs, and less of one (or, equal, earlier).

    Args:
        errors: of the options, ``(options,)``.
        costs: ``(costs, options)``.
    """
    values = np.array([errors, *costs], dtype=float)
    values = values[(values != values[:, :1]).any(axis=1)]
    if not len(values):
        return [0]
    order = np.lexsort(values[::-1])  # stable, so that whoever beats an option comes before it
    if len(values) <= 2:
        last = values[-1, order]
        best = np.minimum.accumulate(last)
        return sorted(int(o) for o in order[np.append(True, last[1:] < best[:-1])])
    kept, sorted_values = [0], values[:, order].T
    for place in range(1, len(order)):
        if not (sorted_values[kept] <= sorted_values[place]).all(axis=1).any():
            kept.append(place)
    return sorted(int(order[place]) for place in kept)


def monotone(errors: Sequence[float], costs: Sequence[float]) -> list[float]:
    """The errors of one unit's options, brought by isotonic regression to where a cheaper option never errs less.

    For errors that are estimates; options of equal cost get one error.
    """
    values, prices = np.asarray(errors, dtype=float), np.asarray(costs, dtype=float)
    levels, group = np.unique(-prices, return_inverse=True)
    counts = np.bincount(group, minlength=len(levels)).astype(float)
    means = np.bincount(group, weights=values, minlength=len(levels)) / counts
    fitted: Array = isotonic_regression(means, weights=counts, increasing=True).x
    return [float(value) for value in fitted[group]]


def refit(
    table: Table, doubts: Table, choices: Sequence[Sequence[int]], totals: Sequence[float], noise: Sequence[float]
) -> list[list[float]]:
    """The table corrected by what whole choices were measured to come to.

    Every value is taken as normal around what the table says, every total as the sum of its choice's values with
    normal noise; the result is the mean given the totals (Gaussian conditioning, i.e. ridge regression towards the
    table): ``t + P·Xᵀ(X·P·Xᵀ + N)⁻¹(y - X·t)``.

    Args:
        table: what is believed.
        doubts: standard deviation of each value, shaped like `table`; 0 leaves a value as it is.
        choices: of the measured totals, an option per unit each.
        totals: measured, one per choice.
        noise: standard deviation of each total, above 0.
    """
    starts = np.cumsum([0, *(len(row) for row in table)])
    before, variance, chosen = _believed(table, doubts, choices)
    after = before
    if len(choices):
        spread = (chosen * variance) @ chosen.T + np.diag(np.asarray(noise, dtype=float) ** 2)
        after = before + variance * (chosen.T @ np.linalg.solve(spread, np.asarray(totals) - chosen @ before))
    return [[float(v) for v in after[a:b]] for a, b in itertools.pairwise(starts)]


def left_out(
    table: Table, doubts: Table, choices: Sequence[Sequence[int]], totals: Sequence[float], noise: Sequence[float]
) -> Array:
    """How far `refit` is off each total that it is not given, when it is given all others, ``(totals,)``.

    In closed form, ``(S⁻¹r)_i / (S⁻¹)_ii`` with ``S = X·P·Xᵀ + N`` and ``r = y - X·t``.
    """
    before, variance, chosen = _believed(table, doubts, choices)
    inverse = np.linalg.inv((chosen * variance) @ chosen.T + np.diag(np.asarray(noise, dtype=float) ** 2))
    found: Array = inverse @ (np.asarray(totals, dtype=float) - chosen @ before) / np.diag(inverse)
    return found


def _believed(table: Table, doubts: Table, choices: Sequence[Sequence[int]]) -> tuple[Array, Array, Array]:
    """Values and their variances ``(values,)``, and which of them each choice sums up, ``(choices, values)``."""
    starts = np.cumsum([0, *(len(row) for row in table)])
    before = np.concatenate([np.asarray(row, dtype=float) for row in table])
    variance = np.concatenate([np.asarray(row, dtype=float) for row in doubts]) ** 2
    chosen = np.zeros((len(choices), len(before)))
    for row, options in enumerate(choices):
        chosen[row, starts[:-1] + np.asarray(options)] = 1.0
    return before, variance, chosen


def _program(
    errors: Table, costs: Mapping[str, Table], limits: Mapping[str, float], kept: Sequence[Sequence[int]]
) -> tuple[list[int], float] | None:
    """The best of the kept options and the bound on the total error, or None where there is no choice."""
    scale = ERROR_SCALE / (_size(errors) or 1.0)
    objective = np.array([errors[u][o] for u, row in enumerate(kept) for o in row]) * scale
    owners = np.repeat(np.arange(len(kept)), [len(row) for row in kept])
    columns = np.arange(len(owners))
    once = csr_array((np.ones(len(owners)), (owners, columns)), shape=(len(kept), len(owners)))
    rows, lower, upper = [once], [1.0] * len(kept), [1.0] * len(kept)
    for name, limit in limits.items():
        size = COST_SCALE / (_size(costs[name]) or 1.0)
        values = np.array([costs[name][u][o] for u, row in enumerate(kept) for o in row]) * size
        rows.append(csr_array(values[None, :]))
        lower.append(-np.inf)
        upper.append(limit * size)
    with _quiet():
        answer = milp(
            objective,
            integrality=np.ones(len(owners)),
            bounds=Bounds(0, 1),
            constraints=LinearConstraint(vstack(rows), lower, upper),
            options={"mip_rel_gap": 0.0},
        )
    if answer.status == 2:
        return None
    if answer.x is None or answer.status != 0:
        raise RuntimeError(f"HiGHS gave up on {len(kept)} units and {len(owners)} options: {answer.message}")
    spans = itertools.pairwise(np.cumsum([0, *(len(row) for row in kept)]))
    options = [row[int(np.argmax(answer.x[a:b]))] for row, (a, b) in zip(kept, spans, strict=True)]
    return options, float(answer.mip_dual_bound) / scale


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Nothing that native code prints reaches the terminal: on some instances HiGHS leaves debug lines there."""
    sys.stdout.flush()
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    try:
        yield
    finally:
        ctypes.CDLL(None).fflush(None)  # what C still holds belongs to the lines above
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)


def _total(table: Table, options: Sequence[int]) -> float:
    return float(sum(row[option] for row, option in zip(table, options, strict=True)))


def _size(table: Table) -> float:
    """Sum over units of the largest value, signs left aside."""
    return float(sum(max(abs(value) for value in row) for row in table))


def _check(errors: Table, costs: Mapping[str, Table], limits: Mapping[str, float]) -> None:
    lengths = [len(row) for row in errors]
    if not lengths or not all(lengths):
        raise ValueError(f"every unit must have an option, but the units have {lengths}")
    for name, table in {"errors": errors, **costs}.items():
        if [len(row) for row in table] != lengths:
            raise ValueError(f"{name} must have {lengths} options, but has {[len(row) for row in table]}")
        if not all(np.isfinite(row).all() for row in table):
            raise ValueError(f"{name} hold a value that is no number")
    unknown = set(limits) - set(costs)
    if unknown:
        raise ValueError(f"limit of an unknown cost {sorted(unknown)[0]!r}; known: {', '.join(costs)}")


def bent(sums: Sequence[float], measured: Sequence[float]) -> tuple[float, float]:
    """By what power law whole candidates lose what sums of losses say, ``measured ≈ exp(level)·sum^bend``.

    Args:
        sums: above 0.
        measured: above 0.
    """
    x, y = np.log(sums), np.log(measured)
    bend = 1.0
    if len(sums) >= BEND_FROM and x.std() > 0:
        bend = float(np.clip(((x - x.mean()) * (y - y.mean())).mean() / x.var(), *BENDS))
    return float((y - bend * x).mean()), bend


def unbent(measured: Sequence[float], law: tuple[float, float]) -> list[float]:
    """What sums of losses should be for what whole candidates lose, by the law of `bent`."""
    level, bend = law
    return [float(value) for value in np.exp((np.log(measured) - level) / bend)]
