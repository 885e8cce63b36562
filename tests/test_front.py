"""Oracle: a run of six trials whose answers are read off by hand; dense takes 10 ms and has quality 0.90."""

from __future__ import annotations

import json
import math

import pytest

from autocompress.budgets import Budgets, Drop
from autocompress.errors import NothingFitsError
from autocompress.front import Front, fits, front_entries, front_entry
from autocompress.plan import Plan


@pytest.fixture
def trials(make_trial):
    """Ratio and quality: dense 1.0/.90; int8 .6/.89; half .5/.87; dominated .55/.86; least .2/.70; one failed."""
    return (
        make_trial(0, 1.0, 0.90, plan=Plan(), origin="dense", quality_test=0.88),
        make_trial(1, 0.6, 0.89, origin="uniform-int8", quality_test=0.85),
        make_trial(2, 0.5, 0.87),
        make_trial(3, 0.55, 0.86),
        make_trial(4, 0.2, 0.70),
        make_trial(5, 0.1, 0.99).replace(state="FAILED", latency=None, quality=None, artifact=None, error="no kernel"),
    )


@pytest.fixture
def front(trials):
    return Front(trials, True)


def numbers(trials):
    return [t.number for t in trials]


def test_points_are_non_dominated_and_fast_to_slow(front):
    assert numbers(front.points) == [4, 2, 1, 0]
    assert numbers(front.all_nondominated()) == [4, 2, 1, 0]


def test_points_leave_out_what_is_over_a_budget(trials):
    over = tuple(t.replace(state="INFEASIBLE") if t.number in (0, 1) else t for t in trials)
    front = Front(over, True)
    assert numbers(front.points) == [4, 2]
    assert numbers(front.feasible) == [2, 3, 4]
    assert numbers(front.all_nondominated()) == [4, 2, 1, 0]


def test_a_quality_that_is_minimized_turns_the_front(make_trial):
    perplexity = (make_trial(0, 1.0, 20.0, origin="dense"), make_trial(1, 0.5, 22.0), make_trial(2, 0.6, 23.0))
    front = Front(perplexity, False)
    assert numbers(front.points) == [1, 0]
    assert front.drop(perplexity[1]) == pytest.approx(2.0)


def test_references_are_dense_and_the_fastest_uniform_int8(trials, make_trial):
    slower = make_trial(6, 0.7, 0.90, origin="uniform-int8")
    assert numbers(Front((*trials, slower), True).references) == [0, 1]
    assert numbers(Front(trials[2:], True).references) == []


def test_hypervolume_is_the_area_by_hand(make_trial):
    trials = (make_trial(0, 1.0, 0.90, origin="dense"), make_trial(1, 0.5, 0.85))
    # Reference: 1.05 x dense, quality 0.90 - 0.10.
    area = math.log(1.05 / 0.5) * 0.05 + math.log(1.05 / 1.0) * 0.05
    assert Front(trials, True).hypervolume() == pytest.approx(area)
    assert Front(trials[1:], True).hypervolume() == 0.0


def test_drop_needs_dense_and_a_quality(front, trials):
    assert front.drop(trials[2]) == pytest.approx(0.03)
    assert front.drop(trials[5]) is None
    assert Front(trials[1:], True).drop(trials[2]) is None


@pytest.mark.parametrize(
    ("budgets", "number"),
    [
        pytest.param(Budgets(min_speedup=1.5), 1, id="speedup_asked_best_quality"),
        pytest.param(Budgets(min_speedup=2.0), 2, id="speedup_at_the_edge_fits"),
        pytest.param(Budgets(max_latency_s=0.0055), 2, id="latency_asked_best_quality"),
        pytest.param(Budgets(max_drop=Drop(0.02, False)), 1, id="only_drop_asked_fastest"),
        pytest.param(Budgets(max_drop=Drop(0.25, True)), 4, id="only_relative_drop_asked_fastest"),
        pytest.param(Budgets(None, 1.5, Drop(0.05, False)), 1, id="both_asked_best_quality"),
        pytest.param(Budgets(), 4, id="nothing_asked_fastest"),
    ],
)
def test_choose(front, budgets, number):
    assert front.choose(budgets).number == number


def test_choose_of_a_quality_that_is_minimized(make_trial):
    perplexity = (make_trial(0, 1.0, 20.0, origin="dense"), make_trial(1, 0.5, 22.0), make_trial(2, 0.4, 23.0))
    assert Front(perplexity, False).choose(Budgets(min_speedup=2.0)).number == 1
    assert Front(perplexity, False).choose(Budgets(max_drop=Drop(0.2, True))).number == 2


def test_choose_ignores_the_budgets_of_the_search(trials):
    over = tuple(t.replace(state="INFEASIBLE") if t.measured else t for t in trials)
    assert Front(over, True).choose(Budgets(min_speedup=1.5)).number == 1


def test_choose_counts_the_doubt_of_a_latency(make_trial):
    trials = (make_trial(0, 1.0, 0.9, origin="dense"), make_trial(1, 0.49, 0.89, doubt=0.05), make_trial(2, 0.4, 0.8))
    assert Front(trials, True).choose(Budgets(min_speedup=2.0)).number == 2


def test_choose_finds_a_fitting_trial_behind_one_that_does_not_fit(make_trial):
    wide, narrow = make_trial(1, 0.49, 0.89, doubt=0.05), make_trial(2, 0.495, 0.885, doubt=0.005)
    front = Front((make_trial(0, 1.0, 0.9, origin="dense"), wide, narrow), True)
    assert fits(narrow, Budgets(min_speedup=2.0), 0.9, True)
    assert front.choose(Budgets(min_speedup=2.0)) == narrow


def test_choose_never_gives_a_failed_trial(make_trial):
    failed = make_trial(1, 0.4, 0.89, state="FAILED", error="final grading: the file is gone")
    sound = make_trial(2, 0.5, 0.88)
    front = Front((make_trial(0, 1.0, 0.9, origin="dense"), failed, sound), True)
    assert numbers(front.measured) == numbers(front.feasible) == [0, 2]
    assert numbers(front.points) == numbers(front.all_nondominated()) == [2, 0]
    assert front.choose(Budgets(min_speedup=2.0)) == sound


@pytest.mark.parametrize(
    ("budgets", "message"),
    [
        pytest.param(
            Budgets(min_speedup=8.0), r"\(candidate 4\): it is 5\.000x faster \(lower end\), 8x asked$", id="speedup"
        ),
        pytest.param(
            Budgets(max_latency_s=0.001), r"\(candidate 4\): its latency is 2 ms \(upper end\), 1 ms allowed$",
            id="latency",
        ),
        pytest.param(
            Budgets(None, 2.0, Drop(0.02, False)),
            r"\(candidate 1\): it is 1\.667x faster \(lower end\), 2x asked$",
            id="two_budgets_nearest_sum",
        ),
    ],
)  # fmt: skip
def test_nothing_fits_names_the_nearest_miss_and_what_it_lacks(front, budgets, message):
    with pytest.raises(NothingFitsError, match="^no model fits; the nearest is [0-9a-f]{16} " + message):
        front.choose(budgets)


@pytest.mark.parametrize("kept", [slice(0, 0), slice(1, None), slice(5, None)], ids=["empty", "no_dense", "all_failed"])
def test_choose_of_a_run_without_a_measured_dense_model(trials, kept):
    with pytest.raises(NothingFitsError, match="the run holds no measured model yet"):
        Front(trials[kept], True).choose(Budgets())


def test_an_empty_front_is_empty():
    front = Front((), True)
    assert (front.points, front.references, front.dense, front.hypervolume()) == ((), (), None, 0.0)
    assert front_entries(front) == []


def test_front_entry_gives_points_and_keeps_units(front, trials):
    entry = front_entry(trials[1], front, True)
    assert entry["drop_points_validation"] == pytest.approx(1.0)
    assert entry["drop_points_test"] == pytest.approx(3.0)
    assert entry["latency_s"] == pytest.approx(0.006)
    assert (entry["size_bytes"], entry["size_bytes_dense"]) == (1001, 1000)
    assert front_entry(trials[2], front, True)["drop_points_test"] is None


def test_front_entries_hold_the_references_that_are_not_on_the_front(trials, make_trial):
    better = make_trial(6, 0.58, 0.895)  # dominates the uniform int8 trial
    entries = front_entries(Front((*trials, better), True))
    shown = [(e["latency_ratio_best_dense"], e["on_front"], e["origin"]) for e in entries]
    assert shown == [
        (0.2, True, "sampled"), (0.5, True, "sampled"), (0.58, True, "sampled"),
        (0.6, False, "uniform-int8"), (1.0, True, "dense"),
    ]  # fmt: skip
    assert json.loads(json.dumps(entries)) == entries
