"""Oracles: ranks and areas by hand, SciPy's Spearman correlation, and that a worse start never promises more."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from autocompress.found import Audit
from autocompress.plan import Distill, Plan, Prune
from autocompress.searching.rungs import Recovered, audits, audits_of, most_gained, promoted

REFERENCE, LEAST = (math.log(1.05), 0.2), (False, False)


def structure(number: int) -> Plan:
    return Plan({"net.0.mlp/neurons": Prune(1 + number)})


# promotion


def test_the_front_is_promoted_before_what_it_dominates():
    points = [(-0.1, 0.10), (-1.0, 0.10), (-0.5, 0.05), (-0.4, 0.06), (0.0, 0.0)]
    assert set(promoted(points, REFERENCE, LEAST, 3)) == {1, 2, 4}
    assert promoted(points, REFERENCE, LEAST, 4)[3] == 3
    assert promoted([], REFERENCE, LEAST, 3) == []


def test_within_a_front_what_adds_most_is_promoted_first():
    points = [(-1.0, 0.10), (-0.9, 0.099), (-0.5, 0.01)]  # the middle one adds next to nothing
    assert promoted(points, REFERENCE, LEAST, 2) == [2, 0]


# audits


def test_an_audit_is_spearmans_correlation_in_bins_of_latency():
    ratios = [0.1 * n for n in range(1, 13)]
    below = [0.5, 0.6, 0.7, 0.8, 0.5, 0.6, 0.7, 0.8, 0.5, 0.6, 0.7, 0.8]
    above = [0.6, 0.7, 0.8, 0.9, 0.9, 0.8, 0.7, 0.6, 0.7, 0.9, 0.8, 0.95]
    found = audits(1, 2, ratios[::-1], below[::-1], above[::-1])
    assert [(a.lower, a.upper, a.count) for a in found] == [(1, 2, 4)] * 3
    assert [(a.low, a.high) for a in found] == [(ratios[i], ratios[i + 3]) for i in (0, 4, 8)]
    expected = [spearmanr(below[i : i + 4], above[i : i + 4]).statistic for i in (0, 4, 8)]
    assert [a.correlation for a in found] == pytest.approx(expected)
    assert [a.trusted for a in found] == [True, False, True]


@pytest.mark.parametrize(("count", "bins"), [(0, 0), (3, 0), (4, 1), (7, 1), (8, 2), (12, 3), (40, 3)])
def test_bins_hold_at_least_four(count, bins):
    values = [float(n) for n in range(count)]
    found = audits(0, 1, values, values, values)
    assert len(found) == bins
    assert sum(audit.count for audit in found) == (count if bins else 0)


def test_a_correlation_that_is_not_known_does_not_tell_against_a_rung():
    (audit,) = audits(0, 1, [0.1, 0.2, 0.3, 0.4], [0.5] * 4, [0.5, 0.6, 0.7, 0.8])
    assert math.isnan(audit.correlation)
    assert audit.trusted
    assert not Audit(0, 1, 0.1, 0.4, 4, 0.69).trusted


@pytest.mark.parametrize("maximize", [True, False])
def test_structures_are_matched_across_rungs_and_the_best_recovery_counts(make_trial, maximize):
    """Oracle: four structures in the same order on both rungs; a second, worse recovery of each is in reverse order."""
    sign = 1 if maximize else -1
    trials, number = [], 0
    for rung, steps in ((0, 0), (1, 10)):
        for place in range(4):
            for rate, quality in ((1e-4, 0.5 + 0.1 * place), (1e-3, 0.4 - 0.1 * place))[: 2 if rung else 1]:
                distill = Distill(learning_rate=rate, steps=steps) if rung else None
                plan = Plan(structure(place).groups, distill=distill)
                trials.append(make_trial(number, 0.3 + 0.1 * place, sign * quality, plan=plan, rung=rung))
                number += 1
    trials.append(make_trial(number, 0.9, sign * 0.1, plan=Plan(structure(9).groups), rung=0))
    for order in (trials, trials[::-1]):
        (audit,) = audits_of(order, maximize)
        assert (audit.lower, audit.upper, audit.count, audit.correlation) == (0, 1, 4, pytest.approx(1.0))


def test_an_audit_speaks_of_the_latency_that_candidates_are_chosen_by(make_trial):
    trials = []
    for place in range(4):
        for rung in (0, 1):
            distill = Distill(steps=10) if rung else None
            plan = Plan(structure(place).groups, distill=distill)
            trial = make_trial(2 * place + rung, 0.1 * (place + 1), 0.5, plan=plan, rung=rung)
            trials.append(trial.replace(latency=replace(trial.latency, ratio=3 * trial.latency.ratio)))
    (audit,) = audits_of(trials, True)
    assert (audit.low, audit.high) == pytest.approx((0.1, 0.4))


def test_failures_are_left_out_of_audits(make_trial):
    trials = [make_trial(n, 0.5, 0.5, plan=structure(n), rung=n % 2) for n in range(8)]
    assert audits_of([t.replace(quality=None, latency=None) for t in trials], True) == []


# what recovery promises


def test_between_known_losses_the_drop_is_linear_in_the_logarithm():
    model = Recovered((1e-3, 1e-1), (0.01, 0.05))
    assert model.drop(1e-2) == pytest.approx(0.03)
    assert model.drop(1e-3) == pytest.approx(0.01)
    assert model.drop(1e-5) == pytest.approx(0.01)
    assert model.drop(1.0) == pytest.approx(0.05 + 2 * 0.02)  # twice the slope of 0.02 per factor of 10


losses = st.lists(st.tuples(st.floats(1e-6, 10), st.floats(-0.05, 0.5)), min_size=1, max_size=6)


@example([(0.1, -0.01)], 0.1, 2.0)
@example([(0.1, -0.01), (0.1, -0.02)], 0.1, 2.0)
@given(losses, st.floats(1e-7, 100), st.floats(1, 100))
def test_more_loss_never_promises_a_smaller_drop(known, loss, factor):
    model = Recovered(tuple(x for x, _ in known), tuple(y for _, y in known))
    assert model.drop(loss * factor) >= model.drop(loss) - 1e-9


def test_what_lost_less_and_dropped_more_bounds_the_drop_from_below():
    assert Recovered((1e-1, 1e-2, 1e-3), (0.02, 0.04, 0.01)).drop(1e-1) == pytest.approx(0.04)


# what adds most


def test_the_candidate_that_adds_most_area_is_taken():
    """Up to (0, 1): beside (-1, 0.5), which covers 0.5, (-2, 0.6) adds 0.4, (-0.5, 0.1) adds 0.2, (-1, 0.7) nothing."""
    candidates = {"fast": (-2.0, 0.6), "good": (-0.5, 0.1), "none": (-1.0, 0.7)}
    assert most_gained(candidates, [(-1.0, 0.5)], (0.0, 1.0), LEAST) == "fast"
    assert most_gained({k: candidates[k] for k in ("good", "none")}, [(-1.0, 0.5)], (0.0, 1.0), LEAST) == "good"
    assert most_gained({"none": candidates["none"]}, [(-1.0, 0.5)], (0.0, 1.0), LEAST) is None
    assert most_gained({}, [(-1.0, 0.5)], (0.0, 1.0), LEAST) is None
    assert most_gained({"beyond": (0.5, 0.1)}, [], (0.0, 1.0), LEAST) is None


@given(
    st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=6),
    st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=4),
)
def test_most_gained_counts_cells(candidates, known):
    """Oracle: unit cells up to (5, 5), counted."""

    def cells(points):
        return sum(any(x <= i and y <= j for x, y in points) for i in range(5) for j in range(5))

    gains = [cells([*known, point]) - cells(known) for point in candidates]
    found = most_gained({str(i): point for i, point in enumerate(candidates)}, known, (5, 5), LEAST)
    assert (found is None) == (max(gains) == 0)
    if found is not None:
        assert gains[int(found)] == max(gains)
