"""Oracles: every choice of small instances counted out, the bound of the linear relaxation, and normal equations."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linprog

from autocompress.searching.solve import front, left_out, monotone, refit, solve, undominated

#: Errors and costs in seconds as small as real ones, so that a solver's absolute tolerances would show.
small = st.integers(0, 50).map(lambda n: n * 1e-7)
rows = st.integers(1, 4).flatmap(lambda n: st.lists(st.tuples(small, small, small), min_size=n, max_size=n))
instances = st.lists(rows, min_size=1, max_size=5)


def tables(instance):
    errors = [[e for e, _, _ in row] for row in instance]
    costs = {
        "latency": [[t for _, t, _ in row] for row in instance],
        "size": [[s for _, _, s in row] for row in instance],
    }
    return errors, costs


def total(table, choice):
    return sum(row[o] for row, o in zip(table, choice, strict=True))


def least_error(errors, costs, limits):
    """Every choice tried; None where none keeps the limits."""
    tried = itertools.product(*(range(len(row)) for row in errors))
    kept = [c for c in tried if all(total(costs[n], c) <= limit + 1e-12 for n, limit in limits.items())]
    return min((total(errors, c) for c in kept), default=None)


@given(instances, st.integers(0, 250), st.integers(0, 250))
def test_solve_finds_what_counting_out_finds(instance, latency, size):
    errors, costs = tables(instance)
    limits = {"latency": latency * 1e-7, "size": size * 1e-7}
    best = least_error(errors, costs, limits)
    found = solve(errors, costs, limits)
    assert (found.options is None) == (best is None)
    if found.options is not None:
        assert found.error == pytest.approx(best, abs=1e-11)
        assert found.error == pytest.approx(total(errors, found.options))
        assert found.bound <= found.error + 1e-11
        for name, limit in limits.items():
            assert found.costs[name] == pytest.approx(total(costs[name], found.options))
            assert found.costs[name] <= limit + 1e-12


@pytest.mark.parametrize("seed", range(4))
def test_error_lies_above_the_linear_relaxation_and_near_it(seed):
    """Oracle: the relaxation's optimum; with one budget, at most one unit is split, so the gap is one unit's error."""
    draw = np.random.default_rng(seed)
    units, options = 30, 5
    errors, costs = draw.random((units, options)), draw.random((units, options))
    limit = 0.35 * units
    once = np.kron(np.eye(units), np.ones(options))
    relaxed = linprog(errors.ravel(), costs.reshape(1, -1), [limit], once, np.ones(units), bounds=(0, 1))
    found = solve(errors.tolist(), {"t": costs.tolist()}, {"t": limit})
    assert relaxed.fun <= found.error + 1e-9
    assert found.error <= relaxed.fun + errors.max()
    assert found.bound == pytest.approx(found.error, rel=1e-6)


def test_nothing_is_printed_by_native_code(capfd):
    """An instance on which HiGHS prints debug lines."""
    draw = np.random.default_rng(0)
    bits = np.array([32, 16, 8, 7, 6, 5, 4, 3])
    seconds = draw.lognormal(size=(200, 1)) * 1e-4 * (bits / 32) * draw.uniform(0.8, 1.2, (200, 8))
    errors = draw.lognormal(sigma=2, size=(200, 1)) * 4.0**-bits * draw.uniform(0.5, 2, (200, 8))
    limit = 0.3 * float(seconds[:, 0].sum())
    assert solve(errors.tolist(), {"t": seconds.tolist()}, {"t": limit}).costs["t"] <= limit
    print("after")
    assert capfd.readouterr().out == "after\n"


def test_infeasible_tells_the_least_that_can_be_reached():
    found = solve([[0, 1], [0, 2]], {"s": [[5, 2], [7, 3]]}, {"s": 4.9})
    assert found.options is None
    assert found.error == float("inf")
    assert found.least == {"s": 5.0}
    assert solve([[0, 1], [0, 2]], {"s": [[5, 2], [7, 3]]}, {"s": 5.0}).options == (1, 1)


def test_limits_that_can_be_kept_only_one_by_one_are_infeasible():
    costs = {"a": [[0, 9]], "b": [[9, 0]]}
    found = solve([[1, 1]], costs, {"a": 1, "b": 1})
    assert found.options is None
    assert found.least == {"a": 0, "b": 0}


def test_a_budget_of_the_dearest_choice_gives_no_error():
    assert solve([[0, 1], [3, 0]], {"s": [[5, 2], [1, 4]]}, {"s": 9}).options == (0, 1)


@given(instances)
def test_a_front_is_nondominated_and_has_both_ends(instance):
    errors, costs = tables(instance)
    costs["latency"] = [[1e-6 + t for t in row] for row in costs["latency"]]
    points = front(errors, costs, "latency", points=6)
    values = [(p.costs["latency"], p.error) for p in points]
    assert values == sorted(values)
    assert values[-1][1] == pytest.approx(least_error(errors, costs, {}), abs=1e-11)
    least = sum(min(row) for row in costs["latency"])
    assert values[0][0] == pytest.approx(least, rel=1e-6)
    for (_, error), (_, lower) in itertools.pairwise(values):
        assert lower <= error + 1e-11
    for point in points:
        assert point.error == pytest.approx(least_error(errors, costs, {"latency": point.costs["latency"]}), abs=1e-11)


def test_a_front_keeps_the_other_limits():
    errors, costs = [[0, 1], [0, 2]], {"t": [[4, 1], [4, 1]], "s": [[8, 2], [8, 6]]}
    assert [p.options for p in front(errors, costs, "t", 9)] == [(1, 1), (1, 0), (0, 0)]
    assert [p.options for p in front(errors, costs, "t", 9, {"s": 10})] == [(1, 1), (1, 0)]
    assert front(errors, costs, "t", 9, {"s": 1}) == ()


@given(rows)
def test_undominated_options_are_those_that_no_other_beats(row):
    errors = [e for e, _, _ in row]
    costs = [[t for _, t, _ in row], [s for _, _, s in row]]
    kept = undominated(errors, costs)
    for place, value in enumerate(row):
        beaten = any(all(a <= b for a, b in zip(row[k], value, strict=True)) for k in kept if k != place)
        assert (place in kept) != beaten


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=6))
def test_monotone_errors_are_the_nearest_that_never_fall(pairs):
    """Oracle: the min-max formula of isotonic regression, over options in order of cost."""
    errors, costs = [float(e) for e, _ in pairs], [float(c) for _, c in pairs]
    found = monotone(errors, costs)
    prices = sorted(set(costs), reverse=True)
    by_price = [[e for e, c in zip(errors, costs, strict=True) if c == price] for price in prices]

    def mean(a, b):
        values = [e for part in by_price[a : b + 1] for e in part]
        return sum(values) / len(values)

    last = len(prices) - 1
    for value, cost in zip(found, costs, strict=True):
        i = prices.index(cost)
        expected = max(min(mean(a, b) for b in range(i, last + 1)) for a in range(i + 1))
        assert value == pytest.approx(expected)


def test_refit_is_ridge_regression_towards_the_table():
    """Oracle: the normal equations of the same posterior, ``(P⁻¹ + Xᵀ·N⁻¹·X)⁻¹``."""
    draw = np.random.default_rng(0)
    table, doubts = draw.random((4, 3)), 0.1 + draw.random((4, 3))
    choices = draw.integers(0, 3, (6, 4))
    totals, noise = draw.random(6) * 4, 0.1 + draw.random(6)
    chosen = np.zeros((6, 12))
    for i, choice in enumerate(choices):
        chosen[i, 3 * np.arange(4) + choice] = 1
    inverse = np.diag(1 / doubts.ravel() ** 2)
    weights = chosen.T / noise**2
    expected = np.linalg.solve(inverse + weights @ chosen, inverse @ table.ravel() + weights @ totals)
    found = refit(table.tolist(), doubts.tolist(), choices.tolist(), totals.tolist(), noise.tolist())
    assert np.array(found).ravel() == pytest.approx(expected)


def test_refit_finds_planted_values_and_leaves_what_is_not_doubted():
    planted = np.array([[1.0, 0.4], [2.0, 0.7], [3.0, 2.9]])
    believed = [[1.0, 0.8], [2.0, 1.5], [3.0, 1.0]]
    doubts = [[0.0, 1.0]] * 3
    choices = list(itertools.product(range(2), repeat=3))
    totals = [total(planted, c) for c in choices]
    found = refit(believed, doubts, choices, totals, [1e-6] * len(choices))
    assert np.array(found) == pytest.approx(planted, abs=1e-4)
    assert refit(believed, doubts, [], [], []) == believed


@pytest.mark.parametrize(
    ("errors", "costs", "limits", "message"),
    [
        ([[0], []], {"t": [[0], []]}, {}, r"every unit must have an option, but the units have \[1, 0\]"),
        ([], {}, {}, r"the units have \[\]"),
        ([[0, 1]], {"t": [[0]]}, {}, r"t must have \[2\] options, but has \[1\]"),
        ([[0, float("nan")]], {}, {}, "errors hold a value that is no number"),
        ([[0]], {"t": [[0]]}, {"size": 1}, "limit of an unknown cost 'size'; known: t"),
    ],
    ids=["no-option", "no-unit", "shape", "nan", "unknown-limit"],
)
def test_wrong_tables_are_refused(errors, costs, limits, message):
    with pytest.raises(ValueError, match=message):
        solve(errors, costs, limits)


def test_what_is_left_out_is_foretold_from_all_others():
    """Oracle: `refit` with all totals but one, one after another."""
    draw = np.random.default_rng(3)
    table = [draw.uniform(0, 1, options).tolist() for options in (3, 4, 2, 5)]
    doubts = [[0.6 * value for value in row] for row in table]
    choices = [[int(draw.integers(len(row))) for row in table] for _ in range(8)]
    totals = [float(draw.uniform(0.5, 4)) for _ in choices]
    noise = [0.3 * total for total in totals]
    for place, own in enumerate(choices):
        rest = [i for i in range(len(choices)) if i != place]
        known = refit(table, doubts, *([values[i] for i in rest] for values in (choices, totals, noise)))
        foretold = sum(row[option] for row, option in zip(known, own, strict=True))
        assert left_out(table, doubts, choices, totals, noise)[place] == pytest.approx(totals[place] - foretold)
