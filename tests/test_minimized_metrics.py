"""A metric of which less is better, through every room that compares. Oracle: four perplexities, read off by hand."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

from autocompress.budgets import Budgets
from autocompress.drop import parse_drop
from autocompress.errors import NothingFitsError
from autocompress.front import Front, front_entry
from autocompress.layers import LayerTable
from autocompress.plan import Plan
from autocompress.records import Trial
from autocompress.report import words
from autocompress.report.figures import front_info
from autocompress.report.view import RunView
from autocompress.run import make_budgets
from autocompress.searching.loop import Loop
from autocompress.searching.status import Status, best_words
from autocompress.tasks.task import Metric
from tests.conftest import MakeTrial

PERPLEXITY = Metric("perplexity", False, lambda outputs, _targets: float(outputs.mean()), fraction=False)


@pytest.fixture
def trials(make_trial: MakeTrial) -> tuple[Trial, ...]:
    """Ratio and perplexity: dense 1.0/20; int8 .8/20.1; half .5/21; least .2/40."""
    return (
        make_trial(0, 1.0, 20.0, plan=Plan(), origin="dense", quality_test=21.0),
        make_trial(1, 0.8, 20.1, quality_test=21.5),
        make_trial(2, 0.5, 21.0),
        make_trial(3, 0.2, 40.0),
    )


@pytest.fixture
def front(trials: tuple[Trial, ...]) -> Front:
    return Front(trials, PERPLEXITY.maximize, PERPLEXITY.points)


@pytest.mark.parametrize(
    ("drop", "number"),
    [("0.5%", 1), ("0.4%", 0), ("5%", 2), ("0.1pt", 1), ("0.09pt", 0), ("1pt", 2), ("100%", 3), ("20pt", 3)],
)
def test_a_drop_is_a_rise(front: Front, drop: str, number: int) -> None:
    """The fastest candidate within the drop; a point is one unit, a share is one of the dense value."""
    assert front.choose(make_budgets(max_drop=drop, points=PERPLEXITY.points)).number == number


@pytest.mark.parametrize(("speedup", "number"), [("2x", 2), ("4x", 3), ("1.2x", 1)])
def test_with_a_speed_asked_the_least_perplexity_is_chosen(front: Front, speedup: str, number: int) -> None:
    assert front.choose(make_budgets(min_speedup=speedup)).number == number


def test_a_model_that_got_better_keeps_any_drop(make_trial: MakeTrial) -> None:
    budgets = Budgets(max_drop=parse_drop("1%", points=1.0))
    assert budgets.violations(make_trial(1, 0.5, 19.0), 20.0, False)["drop"] == pytest.approx(-0.06)


@pytest.mark.parametrize(
    ("drop", "reason"),
    [
        ("1%", "it loses 5 % on validation, 1 % of the dense quality allowed"),
        ("0.5pt", "it loses 1.00 points on validation, 0.5 points allowed"),
    ],
)
def test_what_lacks_is_said_in_shares_and_in_points(trials: tuple[Trial, ...], drop: str, reason: str) -> None:
    budgets = make_budgets(max_drop=drop, points=PERPLEXITY.points)
    assert budgets.lacks(trials[2], 20.0, PERPLEXITY.maximize) == [reason]


def test_the_nearest_miss_is_told_when_nothing_fits(front: Front) -> None:
    with pytest.raises(NothingFitsError, match=r"the nearest is .* it loses 100 % on validation, 60 % of the dense"):
        front.choose(make_budgets(min_speedup="4x", max_drop="60%"))


def test_an_entry_tells_losses_as_positive_points(front: Front, trials: tuple[Trial, ...]) -> None:
    entry = front_entry(trials[1], front, True)
    assert entry["drop_points_validation"] == pytest.approx(0.1)
    assert entry["drop_points_test"] == pytest.approx(0.5)
    dense = front_entry(trials[0], front, True)
    assert f"{dense['drop_points_validation']:+.2f} {dense['drop_points_test']:+.2f}" == "+0.00 +0.00"


def test_weights_are_kept_of_what_only_a_worse_model_outruns(front: Front, make_trial: MakeTrial) -> None:
    assert not front.clearly_dominated(front.trials[1])
    assert front.clearly_dominated(make_trial(9, 0.9, 25.0))


def test_hypervolume_grows_with_a_lower_perplexity(trials: tuple[Trial, ...], make_trial: MakeTrial) -> None:
    before = Front(trials[:2], False).hypervolume()
    assert Front((*trials[:2], make_trial(4, 0.8, 19.0)), False).hypervolume() > before
    assert Front((*trials[:2], make_trial(4, 0.8, 20.5)), False).hypervolume() == pytest.approx(before)


class Recorder:
    """A watcher that remembers the last status."""

    last: Status

    def update(self, status: Status) -> None:
        self.last = status


@pytest.mark.parametrize(
    ("budgets", "best"),
    [
        (make_budgets(), "1.25x at perplexity 20.1"),  # 1 % without anything asked
        (make_budgets(max_drop="2pt", points=1.0), "2.00x at perplexity 21"),
        (make_budgets(max_drop="0.2%", points=1.0), "1.00x at perplexity 20"),
        (make_budgets(min_speedup="1x"), "1.00x at perplexity 20"),
    ],
    ids=["nothing", "points", "share", "speed"],
)
def test_the_status_names_the_best_so_far(trials: tuple[Trial, ...], budgets: Budgets, best: str) -> None:
    shop, watcher = SimpleNamespace(task=SimpleNamespace(metric=PERPLEXITY)), Recorder()
    loop = Loop(shop, None, budgets, list(trials), 60.0, 0.0, watcher, lambda _front: None)  # type: ignore[arg-type]
    loop.announce("search")
    assert watcher.last.best == best


def test_the_status_says_what_was_not_measured(trials: tuple[Trial, ...]) -> None:
    there = [t.replace(latency=replace(t.latency, source="recorded")) for t in trials if t.latency]
    told = best_words(Front(tuple(there), False), make_budgets(), PERPLEXITY)
    assert told == "1.25x at perplexity 20.1, recorded"


@pytest.fixture
def view(front: Front) -> RunView:
    points = tuple(t.fingerprint for t in front.points)
    table = LayerTable((), (), 0)
    return RunView("lm", front.trials, points, table, {}, {}, {}, "perplexity", False, 20.0, 21.0, (), "finished")


def test_the_report_speaks_of_raw_numbers(view: RunView, trials: tuple[Trial, ...]) -> None:
    assert not view.percent
    assert words.quality(view, 20.1, 0.25) == "20.10 ± 0.25"
    assert words.change(view, 20.1, 20.0) == "+0.10"
    assert words.drop(view, trials[2]) == pytest.approx(0.05)


def test_the_headline_is_the_fastest_within_one_percent(view: RunView) -> None:
    found = words.headline(view)
    assert (found.index, found.good) == (1, True)
    assert "+0.10 perplexity on validation" in found.title


def test_the_figure_shows_the_front_and_hides_what_is_beyond_reach(view: RunView) -> None:
    info = front_info(view)
    assert [info.points[i].index for i in info.front] == [3, 2, 1, 0]
    assert info.y_range[0] < 20.0 < info.y_range[1] < 40.0
    assert info.hidden == 1
