"""Oracles: a slow O(n²) twin of domination, areas of rectangles worked out by hand, a slow twin of the area."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autocompress.pareto import (
    best_first,
    domination_ranks,
    hypervolume,
    log_ratio,
    nondominated,
    reference_point,
)

coarse = st.integers(0, 4).map(float)  # few values, so that ties and duplicates are common
rows = st.lists(st.tuples(coarse, coarse), max_size=12)
directions = st.tuples(st.booleans(), st.booleans())


def slow_nondominated(points: list[tuple[float, ...]], maximize: tuple[bool, ...]) -> list[bool]:
    """For each point, look for one that is nowhere worse and somewhere better, or equal and earlier."""
    sign = [-1.0 if up else 1.0 for up in maximize]
    costs = [[s * v for s, v in zip(sign, point, strict=True)] for point in points]
    mask = []
    for i, mine in enumerate(costs):
        stays = all(math.isfinite(v) for v in mine)
        for j, other in enumerate(costs):
            if not all(math.isfinite(v) for v in other):
                continue
            no_worse = all(o <= m for o, m in zip(other, mine, strict=True))
            if no_worse and (other != mine or j < i):
                stays = False
        mask.append(stays)
    return mask


def slow_area(points: list[tuple[float, float]], reference: tuple[float, float]) -> float:
    """Both minimized, whole numbers: count the unit cells that some point dominates."""
    low = int(min([*(v for p in points for v in p), 0]))
    cells = [(x, y) for x in range(low, int(reference[0])) for y in range(low, int(reference[1]))]
    return float(sum(any(px <= x and py <= y for px, py in points) for x, y in cells))


@given(rows, directions)
def test_nondominated_equals_the_slow_twin(points, maximize):
    assert nondominated(points, maximize).tolist() == slow_nondominated(points, maximize)


@given(st.lists(st.tuples(coarse, coarse, coarse), max_size=8), st.tuples(*[st.booleans()] * 3))
def test_nondominated_equals_the_slow_twin_in_three_objectives(points, maximize):
    assert nondominated(points, maximize).tolist() == slow_nondominated(points, maximize)


@given(st.lists(st.tuples(coarse, coarse | st.sampled_from([math.nan, math.inf])), max_size=8), directions)
def test_points_that_are_not_finite_never_stay_and_never_dominate(points, maximize):
    assert nondominated(points, maximize).tolist() == slow_nondominated(points, maximize)


def test_of_equal_points_the_first_stays():
    assert nondominated([(1, 2), (1, 2), (0, 3)], [False, False]).tolist() == [True, False, True]


def test_no_points_give_an_empty_mask_and_no_volume():
    assert nondominated([], [False, True]).shape == (0,)
    assert hypervolume([], [1, 1], [False, True]) == 0.0


@pytest.mark.parametrize(
    ("points", "reference", "maximize", "area"),
    [
        pytest.param([(1, 1)], (3, 4), (False, False), 6.0, id="one_rectangle"),
        pytest.param([(1, 2), (2, 1)], (3, 3), (False, False), 3.0, id="two_overlapping"),
        pytest.param([(1, 2), (2, 1), (2, 2)], (3, 3), (False, False), 3.0, id="dominated_adds_nothing"),
        pytest.param([(1, 0.9)], (2, 0.5), (False, True), 0.4, id="latency_down_quality_up"),
        pytest.param([(2, 2)], (0, 0), (True, True), 4.0, id="both_up"),
        pytest.param([(5, 1), (1, 5)], (3, 3), (False, False), 0.0, id="beyond_the_reference"),
        pytest.param([(3, 1)], (3, 3), (False, False), 0.0, id="on_the_reference"),
        pytest.param([(1, math.nan), (1, 1)], (3, 3), (False, False), 4.0, id="nan_left_out"),
        pytest.param([(-math.inf, 1), (1, 1)], (3, 3), (False, False), 4.0, id="infinite_left_out"),
        pytest.param([(math.nan, 1)], (3, 3), (False, False), 0.0, id="only_nan"),
    ],
)
def test_hypervolume_closed_forms(points, reference, maximize, area):
    assert hypervolume(points, reference, maximize) == pytest.approx(area, abs=1e-12)


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=8))
def test_hypervolume_equals_the_counted_cells(points):
    assert hypervolume(points, (5, 5), [False, False]) == pytest.approx(slow_area(points, (5, 5)))


@given(rows, st.tuples(coarse, coarse))
def test_one_more_point_never_shrinks_the_hypervolume(points, another):
    before = hypervolume(points, (5, -1), [False, True])
    assert hypervolume([*points, another], (5, -1), [False, True]) >= before - 1e-12


def test_log_ratio_of_what_is_no_ratio_is_no_number():
    assert log_ratio(0.5) == math.log(0.5)
    assert all(np.isnan(log_ratio(ratio)) for ratio in (0.0, -1.0, math.nan))


@pytest.mark.parametrize(
    ("dense", "maximize", "given", "quality"),
    [
        pytest.param(0.02, False, {"fraction": True}, 0.12, id="error_rate_ten_points"),
        pytest.param(0.3, False, {"fraction": True}, 0.6, id="error_rate_doubled"),
        pytest.param(0.0, False, {"fraction": True}, 0.1, id="no_error_at_all"),
        pytest.param(0.88, True, {"fraction": False}, 0.704, id="correlation_a_fifth_worse"),
        pytest.param(20.0, False, {"allowed": 6.0}, 26.3, id="beyond_what_is_allowed"),
        pytest.param(20.0, False, {"allowed": 1.0}, 24.0, id="allowed_is_nearer"),
        pytest.param(0.98, True, {"fraction": True, "allowed": 0.2}, 0.77, id="points_allowed"),
    ],
)
def test_reference_point_of_what_is_known(dense, maximize, given, quality):
    assert reference_point(dense, maximize, **given)[1] == pytest.approx(quality)


@pytest.mark.parametrize(
    ("dense", "maximize", "quality"),
    [
        pytest.param(0.7, True, 0.4, id="error_doubled"),
        pytest.param(0.98, True, 0.88, id="ten_points_at_least"),
        pytest.param(20.0, False, 24.0, id="perplexity_a_fifth_worse"),
        pytest.param(30.0, True, 24.0, id="bleu_a_fifth_worse"),
        pytest.param(-2.0, True, -2.4, id="negative_score_a_fifth_worse"),
    ],
)
def test_reference_point_is_worse_than_dense(dense, maximize, quality):
    latency, worst = reference_point(dense, maximize)
    assert latency == math.log(1.05)
    assert worst == pytest.approx(quality)


def slow_ranks(points: list[tuple[float, ...]], maximize: tuple[bool, ...]) -> list[int]:
    """Peel front after front off; equal points go together, points with a NaN are left to the end."""
    sign = [-1.0 if up else 1.0 for up in maximize]
    costs = [tuple(s * v for s, v in zip(sign, point, strict=True)) for point in points]
    ranks = [len(points)] * len(points)
    left = {i for i, cost in enumerate(costs) if all(math.isfinite(v) for v in cost)}
    for rank in range(len(points)):
        peeled = {
            i
            for i in left
            if not any(costs[j] != costs[i] and all(map(float.__le__, costs[j], costs[i])) for j in left)
        }
        for i in peeled:
            ranks[i] = rank
        left -= peeled
    return ranks


@given(st.lists(st.tuples(coarse, coarse | st.sampled_from([math.nan, math.inf])), max_size=10), directions)
def test_domination_ranks_equal_the_slow_twin(points, maximize):
    assert domination_ranks(points, maximize).tolist() == slow_ranks(points, maximize)


@given(rows, directions)
def test_best_first_is_by_rank_then_by_what_a_point_alone_adds(points, maximize):
    """Oracle: ranks of the slow twin, and the hypervolume of a rank with and without the point."""
    reference = [-1.0 if up else 5.0 for up in maximize]
    order, ranks = best_first(points, reference, maximize), slow_ranks(points, maximize)
    assert sorted(order) == list(range(len(points)))

    def alone(i: int) -> float:
        alike = [p for p, rank in zip(points, ranks, strict=True) if rank == ranks[i]]
        less = [p for j, p in enumerate(points) if ranks[j] == ranks[i] and j != i]
        return hypervolume(alike, reference, maximize) - hypervolume(less, reference, maximize)

    keys = [(ranks[i], -round(alone(i), 9), i) for i in order]
    assert keys == sorted(keys)


def test_best_first_by_hand():
    """The front is (1, 4), (2, 2), (4, 1); alone they add 1·1, 2·2 and 1·1 up to (5, 5); behind come the others."""
    points = [(4.0, 4.0), (1.0, 4.0), (math.nan, 0.0), (4.0, 1.0), (2.0, 2.0), (3.0, 3.0)]
    assert domination_ranks(points, (False, False)).tolist() == [2, 0, 6, 0, 0, 1]
    assert best_first(points, (5.0, 5.0), (False, False)) == [4, 1, 3, 5, 0, 2]
    assert best_first([], (5.0, 5.0), (False, False)) == []
