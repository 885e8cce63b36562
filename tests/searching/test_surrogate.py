"""Oracles: finite differences; the textbook's formula with a dense solve; a planted interaction; drawn samples."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.optimize import approx_fprime

from autocompress.pareto import hypervolume
from autocompress.searching import surrogate
from autocompress.searching.surrogate import JITTER, Surrogate, expected_gains, likely_below

KINDS = ["keep", "keep", "keep", "rank", "rank", "rank"]
LEVELS = [5, 5, 5, 3, 3, 3]


def drawn(count, seed=0):
    """Choices; what each adds by itself; and that with a pair that is worse together, and noise that grows with it."""
    draw = np.random.default_rng(seed)
    choices = draw.integers(0, LEVELS, (count, len(LEVELS))).astype(float)
    alone = choices @ [0.02, 0.05, 0.01, 0.03, 0.01, 0.02]
    together = alone + 0.5 * ((choices[:, 0] >= 3) & (choices[:, 3] == 2))
    return choices, alone, together * (1 + 0.02 * draw.normal(size=count))


def error(found, truth):
    return float(np.sqrt(np.mean((found - truth) ** 2)))


def test_what_choices_do_together_is_learned_where_a_sum_cannot_tell_it():
    choices, alone, measured = drawn(400)
    made = Surrogate(KINDS, LEVELS, 0.1)
    made.learn(choices[:300], alone[:300], measured[:300])
    mean, spread = made.foretell(choices[300:], alone[300:])
    slope, level = np.polyfit(alone[:300], measured[:300], 1)
    by_sum = error(level + slope * alone[300:], measured[300:])
    assert error(mean, measured[300:]) < 0.35 * by_sum
    assert np.corrcoef(spread, np.abs(mean - measured[300:]))[0, 1] > 0.2, "it knows where it errs"


def test_little_was_measured_and_the_sum_is_believed():
    choices, alone, _measured = drawn(60)
    made = Surrogate(KINDS, LEVELS, 0.1)
    made.learn(choices[:12], alone[:12], 2 * alone[:12])
    mean, _spread = made.foretell(choices[12:], alone[12:])
    inside = (alone[12:] > alone[:12].min()) & (alone[12:] < alone[:12].max())
    assert error(mean[inside], 2 * alone[12:][inside]) < 0.2 * np.std(2 * alone)


def test_the_slopes_of_the_posterior_are_those_of_finite_differences():
    choices, alone, measured = drawn(40)
    made = Surrogate(KINDS, LEVELS, 0.1)
    made.learn(choices, alone, measured)
    apart = made._apart(choices, choices)
    own = np.random.default_rng(1).normal(size=40)
    for settings in (made._believed, made._settings, np.array([0.3, -0.5, -1.0, 0.2, -0.7])):
        slopes = made._posterior(settings, apart, own)[1]
        by_steps = approx_fprime(settings, lambda at: made._posterior(at, apart, own)[0], 1e-6)
        assert slopes == pytest.approx(by_steps, rel=1e-3, abs=1e-3)


def test_mean_and_spread_are_those_of_the_formula():
    """``K* K⁻¹ y`` and ``k** - K* K⁻¹ K*ᵀ`` with the kernel written out candidate by candidate."""
    choices, _alone, measured = drawn(30)
    foretold = np.zeros(30)  # nothing is foretold, so that the scale is one for all
    made = Surrogate(KINDS, LEVELS, 1.0)
    made.learn(choices[:25], foretold[:25], measured[:25])
    amplitude, _share, *weights, noise = np.exp(made._settings)
    level, spread = measured[:25].mean(), measured[:25].std()

    def kernel(one, other):
        apart = 0.0
        for place, weight in enumerate(weights):
            for i in range(3 * place, 3 * place + 3):
                gap = abs(one[i] - other[i])
                apart += weight * 0.5 * (float(gap > 0) + gap / (LEVELS[i] - 1))
        return amplitude**2 * math.exp(-apart)

    known = np.array([[kernel(a, b) for b in choices[:25]] for a in choices[:25]])
    known += np.eye(25) * (noise**2 + JITTER * (1 + amplitude**2 + _share**2))
    new = np.array([[kernel(a, b) for b in choices[:25]] for a in choices[25:]])
    expected = level + spread * new @ np.linalg.solve(known, (measured[:25] - level) / spread)
    variance = amplitude**2 - np.einsum("ij,ji->i", new, np.linalg.solve(known, new.T))
    mean, found = made.foretell(choices[25:], foretold[25:])
    assert mean == pytest.approx(expected, rel=1e-6)
    assert found == pytest.approx(spread * np.sqrt(variance), rel=1e-4)


def test_doubt_grows_with_the_figure_down_to_the_floor():
    """Two regions, as far from what was measured: one where nothing is lost, one where ten times the floor is."""
    choices, _alone, _measured = drawn(200)
    foretold = np.where(np.arange(200) % 2, 1.0, 0.0)
    draw = np.random.default_rng(3)
    made = Surrogate(KINDS, LEVELS, 0.1)
    made.learn(choices, foretold, foretold + (0.1 + foretold) * 0.3 * draw.normal(size=200))
    strange = np.tile([[9.0] * len(LEVELS)], (2, 1))
    _mean, spread = made.foretell(strange, np.array([0.0, 1.0]))
    assert 5 < spread[1] / spread[0] < 20


def test_the_kernel_is_fitted_again_only_once_a_third_more_was_measured(monkeypatch):
    fitted = []
    minimize = surrogate.minimize
    monkeypatch.setattr(surrogate, "minimize", lambda *a, **k: fitted.append(1) or minimize(*a, **k))
    choices, alone, measured = drawn(60)
    made = Surrogate(KINDS, LEVELS, 0.1)
    for count in range(30, 60):
        made.learn(choices[:count], alone[:count], measured[:count])
    assert len(fitted) == 3, "at 30, 39 and 51"


def test_equal_figures_and_equal_candidates_are_no_trouble():
    choices, alone, _measured = drawn(30)
    made = Surrogate(KINDS, LEVELS, 0.1)
    made.learn(np.concatenate([choices, choices]), np.concatenate([alone, alone]), np.full(60, 0.5))
    mean, spread = made.foretell(choices, alone)
    assert mean == pytest.approx(np.full(30, 0.5), abs=1e-6)
    assert np.isfinite(spread).all()


FRONT = np.array([(-1.5, 0.6), (-1.2, 0.3), (-0.7, 0.1), (-0.3, -0.05)])
CORNER = (0.05, 1.0)


@pytest.mark.parametrize(
    ("place", "mean", "spread"), [(-1.4, 0.4, 0.1), (-1.6, 0.9, 0.3), (-0.9, 0.2, 0.05), (-0.1, -0.1, 0.02)]
)
def test_expected_gains_are_the_mean_of_hypervolumes_gained(place, mean, spread):
    ys = np.random.default_rng(0).normal(mean, spread, 4000)
    points = [tuple(point) for point in FRONT]
    before = hypervolume(points, CORNER, [False, False])
    gained = [hypervolume([*points, (place, y)], CORNER, [False, False]) - before for y in ys]
    found = expected_gains(FRONT, CORNER, np.array([place]), np.array([mean]), np.array([spread]))
    assert found == pytest.approx([np.mean(gained)], rel=0.03)


@pytest.mark.parametrize("most", [-0.02, 0.15, 0.5, 2.0], ids=["below the front", "within", "above some", "beyond"])
@pytest.mark.parametrize(("place", "mean", "spread"), [(-1.4, 0.4, 0.1), (-0.9, 0.2, 0.05), (-0.2, -0.05, 0.05)])
def test_what_loses_more_than_may_be_lost_gains_nothing(place, mean, spread, most):
    ys = np.random.default_rng(0).normal(mean, spread, 4000)
    points = [tuple(point) for point in FRONT]
    before = hypervolume(points, CORNER, [False, False])
    gained = [hypervolume([*points, (place, y)], CORNER, [False, False]) - before if y <= most else 0.0 for y in ys]
    found = expected_gains(FRONT, CORNER, np.array([place]), np.array([mean]), np.array([spread]), most)
    assert found == pytest.approx([np.mean(gained)], rel=0.1, abs=1e-4)


def test_without_a_front_the_whole_corner_is_gained_and_beyond_it_nothing():
    nothing = np.empty((0, 2))
    found = expected_gains(nothing, CORNER, np.array([-0.95, 0.05]), np.array([0.5, 0.5]), np.array([1e-9, 1e-9]))
    assert found == pytest.approx([0.5, 0.0])


def test_how_likely_a_figure_is_below_a_limit():
    """By the table of the normal distribution."""
    found = likely_below(1.0, np.array([1.0, 0.8, 1.2]), np.array([0.1, 0.2, 0.1]))
    assert found == pytest.approx([0.5, 0.8413, 0.0228], abs=1e-4)
    assert likely_below(np.inf, np.array([1.0]), np.array([0.1])) == pytest.approx([1.0])
