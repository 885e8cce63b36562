"""Oracle: a run of six trials whose answers are read off by hand; dense takes 10 ms and has quality 0.90."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from autocompress.budgets import Budgets
from autocompress.drop import Drop
from autocompress.errors import NothingFitsError
from autocompress.front import Front, fits, front_entries, front_entry, within_noise
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
        pytest.param(Budgets(max_size_bytes=1003), 0, id="only_size_asked_best_quality"),
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


# the end of a search: by the confirm part, among the finalists


def graded(trial):
    return trial.replace(latency=replace(trial.latency, tier="report"), quality_test=0.5)


@pytest.fixture
def finished(make_trial):
    """Ratio, select, confirm: dense 1.0/.90/.88; lucky .5/.95/.80; sound .55/.89/.87; slow .8/.90/.86; 4 not graded."""
    return (
        graded(make_trial(0, 1.0, 0.90, plan=Plan(), origin="dense", quality_confirm=0.88)),
        graded(make_trial(1, 0.5, 0.95, quality_confirm=0.80)),
        graded(make_trial(2, 0.55, 0.89, quality_confirm=0.87)),
        graded(make_trial(3, 0.8, 0.90, quality_confirm=0.86)),
        make_trial(4, 0.3, 0.70, quality_confirm=0.99),
    )


def test_a_search_under_way_is_judged_by_select(finished):
    front = Front(finished, True)
    assert (front.part, numbers(front.points)) == ("select", [4, 1])
    assert front.drop(finished[1]) == pytest.approx(-0.05)


def test_a_finished_search_is_judged_by_confirm_among_its_finalists(finished):
    front = Front(finished, True, final=True)
    assert (front.part, numbers(front.judged)) == ("confirm", [0, 1, 2, 3])
    assert numbers(front.points) == [1, 2, 0]
    assert front.drop(finished[1]) == pytest.approx(0.08)
    assert front.drop(finished[4]) == pytest.approx(-0.11)


def test_what_would_stand_on_the_front_but_was_not_graded_is_told(finished, make_trial):
    """By hand: 4 is better than all on confirm, and 7 faster than it. 5 is beaten there by 1, 6 loses all that counts;
    8 is lucky on confirm and was beaten by 1 on select, where it was not worth grading; 9 is over a budget."""
    more = (
        make_trial(5, 0.45, 0.94, quality_confirm=0.70),
        make_trial(6, 0.1, 0.88, quality_confirm=0.30),
        make_trial(7, 0.2, 0.89, quality_confirm=0.80),
        make_trial(8, 0.52, 0.94, quality_confirm=1.0),
        make_trial(9, 0.15, 0.95, quality_confirm=0.99).replace(state="INFEASIBLE"),
    )
    four = finished[4].replace(quality=0.93)
    every = (*finished[:4], four, *more)
    front = Front(every, True, final=True)
    assert numbers(front.ungraded(Budgets())) == [7, 4]
    assert numbers(front.ungraded(Budgets(min_speedup=4.5))) == [7]
    assert numbers(front.ungraded(Budgets(max_drop=Drop(0.07, relative=False)))) == [4], "on confirm"
    assert Front(every, True).ungraded(Budgets()) == (), "nothing is left over before the end"
    assert Front((), True, final=True).ungraded(Budgets()) == ()


def test_what_won_on_select_and_lost_on_confirm_is_not_on_the_final_front(finished):
    worse = (*finished[:1], finished[1].replace(latency=finished[3].latency), *finished[2:])
    assert 1 in numbers(Front(worse, True).points)
    assert numbers(Front(worse, True, final=True).points) == [2, 0]


@pytest.mark.parametrize(
    "trials",
    [
        pytest.param(lambda found: [t.replace(quality_confirm=None) for t in found], id="old_run"),
        pytest.param(lambda found: [found[0].replace(quality_confirm=None), *found[1:]], id="dense_of_an_old_run"),
        pytest.param(lambda found: [t.replace(quality_test=None) for t in found], id="nothing_graded"),
    ],
)
def test_without_confirm_figures_or_finalists_select_judges(finished, trials):
    front = Front(tuple(trials(finished)), True, final=True)
    assert front.part == "select"
    assert front.drop(front.trials[1]) == pytest.approx(-0.05)


@pytest.mark.parametrize(
    ("budgets", "number"),
    [
        pytest.param(Budgets(max_drop=Drop(0.02, False)), 2, id="drop_on_confirm_fastest_finalist"),
        pytest.param(Budgets(min_speedup=1.2), 2, id="speedup_best_finalist_on_confirm"),
        pytest.param(Budgets(min_speedup=3.0), 4, id="what_no_finalist_keeps"),
    ],
)
def test_choose_of_a_finished_search(finished, budgets, number):
    assert Front(finished, True, final=True).choose(budgets).number == number


def test_a_finished_search_tells_what_is_lacking_on_confirm(finished):
    with pytest.raises(
        NothingFitsError, match=r"loses 8\.00 points on the confirm part of validation, 7.9 points allowed"
    ):
        Front(finished[:4], True, final=True).choose(Budgets(None, 2.0, Drop(0.079, False)))


def test_an_entry_says_which_part_its_figures_are_of(finished):
    entry = front_entry(finished[1], Front(finished, True, final=True), True)
    assert (entry["validation_part"], entry["quality_validation"]) == ("confirm", 0.80)
    assert (entry["quality_select"], entry["quality_confirm"]) == (0.95, 0.80)
    assert entry["drop_points_validation"] == pytest.approx(8.0)
    before = front_entry(finished[1], Front(finished, True), True)
    assert (before["validation_part"], before["quality_validation"]) == ("select", 0.95)
    assert before["drop_points_validation"] == pytest.approx(-5.0)
    old = finished[1].replace(quality_confirm=None)
    assert front_entry(old, Front((old,), True, final=True), True)["validation_part"] == "all"


# ties


def hits(count, won, lost):
    """Scores of two models on `count` samples: `won` that only the first gets right, `lost` only the second."""
    ours, theirs = np.zeros(count), np.zeros(count)
    ours[:won] = theirs[won : won + lost] = 1
    ours[won + lost :] = theirs[won + lost :] = 1
    return ours, theirs


@pytest.mark.parametrize("count", [200, 5000])
@pytest.mark.parametrize(("won", "lost"), [(1, 0), (3, 0), (4, 0), (10, 3), (11, 3), (40, 20), (40, 25), (5, 5)])
def test_within_noise_is_mcnemars_comparison(count, won, lost):
    """Closed form: (b − c)/n against 1.96·sqrt(((b + c)/n − ((b − c)/n)²)/(n − 1))."""
    share, gain = (won + lost) / count, (won - lost) / count
    expected = gain <= 1.96 * math.sqrt((share - gain**2) / (count - 1))
    assert within_noise(*hits(count, won, lost), True) is expected


def test_the_comparison_is_paired(make_trial):
    """Ten of 400 that only one gets right and none the other way: 2.5 points, within two independent errors."""
    ours, theirs = hits(400, 10, 0)
    ours[200:] = theirs[200:] = 0
    independent = 1.96 * math.hypot(*(s.std(ddof=1) / 20 for s in (ours, theirs)))
    assert ours.mean() - theirs.mean() < independent
    assert not within_noise(ours, theirs, True)


def test_of_a_quality_that_is_minimized_less_is_an_advantage():
    losses = np.random.default_rng(0).normal(20, 5, 300)
    assert not within_noise(losses - 0.1, losses, False)
    assert within_noise(losses + 0.1, losses, False)


@pytest.mark.parametrize("samples", [0, 1])
def test_one_sample_shows_nothing(samples):
    assert within_noise(np.ones(samples), np.zeros(samples), True)


def test_a_point_is_tied_with_its_faster_neighbour_where_that_is_not_shown_to_be_worse(finished):
    """On the front are 1, 2 and 0: 2 is shown to be better than 1, dense is not shown to be better than 2."""
    names = [t.fingerprint for t in finished]
    fast, sound, dense = np.zeros(100), np.zeros(100), np.zeros(100)
    fast[:80], sound[:87], dense[1:89] = 1, 1, 1
    scores = {names[1]: fast, names[2]: sound, names[0]: dense}
    front = Front(finished, True, final=True, scores=scores)
    assert front.ties == {names[0]: (names[2],)}
    told = {e["fingerprint"]: e["tied_with"] for e in front_entries(front)}
    assert told == {names[1]: [], names[2]: [], names[0]: [names[2]]}


def test_without_scores_or_before_the_end_nothing_is_tied(finished):
    same = {t.fingerprint: np.ones(50) for t in finished}
    assert Front(finished, True, scores=same).ties == {}
    assert Front(finished, True, final=True).ties == {}
    assert Front(finished, True, final=True, scores={finished[0].fingerprint: np.ones(50)}).ties == {}


@pytest.fixture
def lucky(make_trial):
    """By luck the fast one is as good as dense, and hides one that answers as dense does; a broken one is no use."""
    return (
        make_trial(0, 1.0, 0.90, plan=Plan(), origin="dense", divergence=0.0),
        make_trial(1, 0.5, 0.91, divergence=0.4),
        make_trial(2, 0.6, 0.89, divergence=0.1),
        make_trial(3, 0.7, 0.89, divergence=0.2),
        make_trial(4, 0.3, 0.50, divergence=3.0),
        make_trial(5, 0.4, 0.79, divergence=0.3),
    )


def test_what_answers_as_dense_does_is_promising_behind_a_lucky_one(lucky):
    """Reference: quality 0.80, which 4 and 5 miss; of the others 2 alone is nearer to dense than all that is faster."""
    front = Front(lucky, True)
    assert numbers(front.points) == [4, 5, 1]
    assert numbers(front.closest) == [2]
    assert numbers(front.promising) == [4, 5, 1, 2]
    assert front.affordable(math.inf) == front.promising


def test_of_a_quality_that_is_minimized_the_closest_are_the_same(lucky):
    turned = tuple(t.replace(quality=20 + 100 * (0.9 - t.quality) / 5) for t in lucky)  # the corner is at 24
    assert numbers(Front(turned, False).closest) == [2]


def test_without_divergences_the_points_alone_are_promising(lucky, trials):
    unknown = tuple(t.replace(divergence=None) for t in lucky)
    assert Front(unknown, True).promising == Front(unknown, True).points
    assert Front(lucky[1:], True).closest == ()


def test_what_is_over_a_budget_is_not_promising(lucky):
    over = tuple(t.replace(state="INFEASIBLE") if t.number == 2 else t for t in lucky)
    assert numbers(Front(over, True).closest) == [3]


def test_points_and_closest_have_a_half_each_of_what_can_be_graded(make_trial):
    """Twelve of each: the closest are slower and worse by quality than a point, but nearer to dense."""
    dense = make_trial(0, 1.0, 0.90, plan=Plan(), origin="dense", divergence=0.0)
    points = [make_trial(i, 0.2 + 0.01 * i, 0.85 + 0.001 * i, divergence=2 - 0.01 * i) for i in range(1, 13)]
    closest = [make_trial(20 + i, 0.4 + 0.01 * i, 0.85, divergence=1 - 0.05 * i) for i in range(1, 13)]
    front = Front((dense, *points, *closest), True)
    assert (len(front.points), len(front.closest)) == (13, 12)
    for count, expected in ((3, (4, 4)), (11, (6, 5)), (25, (13, 12))):
        chosen = set(numbers(front.affordable(count)))
        assert (len(chosen & set(range(13))), len(chosen - set(range(13)))) == expected
    few = Front((dense, *points, *closest[:2]), True)
    chosen = numbers(few.affordable(10))
    assert (sum(n < 20 for n in chosen), sum(n > 20 for n in chosen)) == (8, 2)


def test_what_is_over_the_budgets_dominates_nothing_within_them(make_trial):
    """Float weights are dropped by it. Oracle: by hand, the faster and better one is too large."""
    within, over = make_trial(1, 0.5, 0.80), make_trial(2, 0.25, 0.90).replace(state="INFEASIBLE")
    front = Front((make_trial(0, 1.0, 0.91, plan=Plan(), origin="dense"), within, over), True)
    assert not front.clearly_dominated(within)
    assert front.clearly_dominated(within.replace(state="INFEASIBLE"))
    assert Front((within, over.replace(state="DONE")), True).clearly_dominated(within)
