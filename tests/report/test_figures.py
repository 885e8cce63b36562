"""Oracles: hand values on a tiny run, `pareto.hypervolume` on every prefix, invariants on a larger one."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest

from autocompress import pareto
from autocompress.front import Front
from autocompress.layers import Layer, LayerTable
from autocompress.objectives import Objectives
from autocompress.report import figures, words
from autocompress.report.page import render_report
from autocompress.report.taken import draw_taken, taken_info, taken_words
from autocompress.report.view import RunView


def test_front_points_of_a_tiny_run(tiny_view: RunView) -> None:
    info = figures.front_info(tiny_view)
    told = [(p.index, p.kind, p.ratio, p.quality) for p in info.points]
    assert told == [
        (0, "dense", 1.0, 0.9),
        (1, "candidate", 0.5, 0.9),
        (3, "over budget", 0.8, 0.88),
        (4, "candidate", 0.25, 0.85),
    ]
    assert info.front == (3, 1)  # fast to slow
    assert (info.hidden, info.percent, info.metric) == (0, True, "accuracy")
    assert (info.points[1].ratio_low, info.points[1].ratio_high) == (0.49, 0.51)


def test_seconds_are_totals_in_order_of_appearance(tiny_view: RunView) -> None:
    expected = figures.SecondsInfo(("compress", "recover", "export", "measure", "score"), (2.0, 15.5, 4.5, 6.0, 2.5))
    assert figures.seconds_info(tiny_view) == expected


def test_layers_of_a_removed_block(tiny_view: RunView) -> None:
    assert figures.layers_info(tiny_view, 4) == figures.LayersInfo(
        labels=("0 · fc", "1 · fc"),
        breaks=(1,),
        cells=(
            figures.LayerCell(0.0, 32, 100.0, True, "<b>net.0.fc</b><br>removed with its part<br>was 8 × 4"),
            figures.LayerCell(
                100.0, 32, 100.0, False, "<b>net.1.fc</b><br>linear 8 × 8<br>full rank<br>fp32<br>64 of 64 weights"
            ),
        ),
    )


def test_layer_cell_of_a_factorized_layer(tiny_view: RunView) -> None:
    cell = figures.layers_info(tiny_view, 3).cells[1]
    assert (cell.kept, cell.bits, cell.rank, cell.removed) == (100.0, 32, 25.0, False)
    assert "rank 2" in cell.text
    assert "32 of 64 weights" in cell.text
    assert [figures.cell_number(cell, band[1]) for band in figures.BANDS] == ["100", "32", "25"]


def test_progress_is_the_hypervolume_of_each_prefix(vit_view: RunView) -> None:
    info = figures.progress_info(vit_view)
    reference = pareto.reference_point(vit_view.quality_dense, vit_view.maximize)
    done = [t for t in vit_view.trials if t.state == "DONE" and t.measured]
    assert info.finished_s == tuple(t.finished_s for t in done)
    for count in range(1, len(done) + 1):
        points = [
            (math.log(t.latency.ratio_best_dense), t.quality)
            for t in done[:count]
            if t.latency is not None and t.quality is not None
        ]
        assert info.hypervolume[count - 1] == pytest.approx(pareto.hypervolume(points, reference, (False, True)))
    assert list(info.hypervolume) == sorted(info.hypervolume)


def test_progress_follows_time_not_the_order_of_the_trials(vit_view: RunView) -> None:
    turned = dataclasses.replace(vit_view, trials=vit_view.trials[::-1])
    assert figures.progress_info(turned).hypervolume == figures.progress_info(vit_view).hypervolume


def test_catastrophic_points_lie_outside_the_first_view(vit_view: RunView) -> None:
    info = figures.front_info(vit_view)
    low, high = info.y_range
    outside = [p for p in info.points if not low <= p.quality <= high]
    assert len(outside) == info.hidden == 2
    assert all(p.quality < 0.7 for p in outside)
    assert low < vit_view.quality_dense < high
    assert low > 0.85


def test_lower_is_better_keeps_the_bad_end_outside(tiny_view: RunView) -> None:
    qualities = {0: 20.0, 1: 20.2, 3: 21.0, 4: 90.0}
    trials = tuple(
        t.replace(quality=qualities.get(t.number), quality_test=None, quality_stderr=None) for t in tiny_view.trials
    )
    view = dataclasses.replace(
        tiny_view, trials=trials, metric="perplexity", maximize=False, quality_dense=20.0, quality_dense_test=None
    )
    info = figures.front_info(view)
    assert (info.percent, info.hidden) == (False, 1)
    assert info.y_range[1] < 24.0
    line = next(trace for trace in figures.draw_front(info).data if trace.name == "Pareto front")
    assert line.line.shape == "hv"
    assert list(line.x) == [0.25, 0.5]
    assert list(line.y) == [90.0, 20.2]


@pytest.mark.parametrize(("low", "high"), [(0.11, 1.1), (0.9, 1.3), (0.004, 1.1), (0.24, 1.02)])
def test_ratio_ticks_are_inside_apart_and_labelled(low: float, high: float) -> None:
    ticks = figures.ratio_ticks(low, high)
    assert 2 <= len(ticks) <= 10
    assert (1.0, "1<br>1×") in ticks
    for ratio, label in ticks:
        assert low <= ratio <= high
        assert float(label.split("<br>")[1].rstrip("×")) == pytest.approx(1 / ratio, rel=0.01)


def test_short_labels_are_unique_and_keep_the_block(vit_view: RunView) -> None:
    labels = figures.short_labels(vit_view.table)
    assert len(set(labels)) == len(vit_view.table.layers)
    assert labels[:7] == (
        "projection",
        "0 · query",
        "0 · key",
        "0 · value",
        "0 · attention.output.dense",
        "0 · intermediate.dense",
        "0 · output.dense",
    )


def test_short_labels_of_a_model_without_blocks() -> None:
    names = ("net.0", "net.2", "head")
    table = LayerTable(tuple(Layer(n, "linear", (4, 4), 20, 16) for n in names), (), 60)
    assert figures.short_labels(table) == names


def test_hover_text_is_escaped(tiny_view: RunView) -> None:
    trial = tiny_view.trials[1].replace(what="<img src=x>")
    assert "&lt;img src=x&gt;" in figures.point_hover(tiny_view, trial)


def test_drawn_figures_carry_every_point_and_layer(vit_view: RunView) -> None:
    info = figures.front_info(vit_view)
    drawn = json.loads(figures.draw_front(info).to_json())
    shown = {i for trace in drawn["data"] for i in trace.get("customdata", [])}
    assert shown == {p.index for p in info.points}
    layers = figures.draw_layers(figures.layers_info(vit_view, 27))
    assert [len(t.z[0]) for t in layers.data if t.type == "heatmap"] == [len(vit_view.table.layers)] * 3
    assert len(figures.draw_progress(figures.progress_info(vit_view)).data) == 1
    assert len(figures.draw_seconds(figures.seconds_info(vit_view)).data) == 5


def test_headline_is_the_fastest_front_point_within_one_point(tiny_view: RunView) -> None:
    head = words.headline(tiny_view)
    assert (head.index, head.good) == (1, True)
    assert head.title == (
        "2.00× faster than the fastest dense fp32 (95 % interval 1.96–2.04×), "
        "±0.0 points on validation, −1.0 points on test"
    )


def test_headline_names_the_faster_model_that_it_is_tied_with(tiny_view: RunView) -> None:
    """Oracle: by hand; the faster one of the tiny front is 4x as fast as dense, and 5 points worse."""
    fast, slow = tiny_view.front
    tied = words.headline(dataclasses.replace(tiny_view, ties={slow: (fast,)}))
    assert (tied.index, tied.title) == (1, words.headline(tiny_view).title)
    assert tied.detail == words.headline(tiny_view).detail + (
        " Candidate 4, 4.00× and −5.0 points, is tied with it: what lies between is noise."
    )


def test_a_tied_model_that_was_not_measured_says_so(tiny_view: RunView) -> None:
    fast, slow = tiny_view.front
    trials = tuple(
        t.replace(latency=dataclasses.replace(t.latency, source="predicted")) if t.latency else t
        for t in tiny_view.trials
    )
    tied = words.headline(dataclasses.replace(tiny_view, trials=trials, ties={slow: (fast,)}))
    assert " Candidate 4, 4.00× and −5.0 points, predicted, is tied with it" in tied.detail


def test_headline_admits_that_no_front_point_keeps_quality(tiny_view: RunView) -> None:
    head = words.headline(dataclasses.replace(tiny_view, front=tiny_view.front[:1]))
    assert (head.index, head.good) == (4, False)
    assert head.title == "No model on the front loses at most 1 point on validation"


def test_headline_shows_the_nearest_miss(tiny_view: RunView) -> None:
    trials = tuple(t.replace(state="INFEASIBLE") if t.measured else t for t in tiny_view.trials)
    view = dataclasses.replace(tiny_view, trials=trials, front=())
    assert words.headline(view).title == "No candidate met the budgets"
    assert words.headline(view).index == 1
    told = dataclasses.replace(view, nearest_miss=(trials[3].fingerprint, "It is 0.3 ms too slow."))
    assert words.headline(told).index == 3
    assert words.headline(told).detail.endswith("It is 0.3 ms too slow.")


def test_a_tied_point_is_hollow_and_says_with_which(tiny_view: RunView) -> None:
    fast, slow = tiny_view.front
    view = dataclasses.replace(tiny_view, ties={slow: (fast,)})
    assert [words.tied_with(view, t) for t in view.trials] == ["", "4", "", "", ""]
    info = figures.front_info(view)
    assert [p.index for p in info.points if p.tied] == [1]
    assert "tied with candidate 4, which is faster" in info.points[1].hover
    line = next(trace for trace in figures.draw_front(info).data if trace.name == "Pareto front")
    assert list(line.marker.symbol) == ["circle", "circle-open"]


def test_what_there_was_no_time_to_grade_is_named(tiny_view: RunView) -> None:
    assert words.ungraded(tiny_view) == ""
    fingerprints = [trial.fingerprint for trial in tiny_view.trials]
    one = words.ungraded(dataclasses.replace(tiny_view, ungraded=(fingerprints[3],)))
    assert ": 3, which would stand on the front by what the search measured; the same command with --stage" in one
    joint = {"resolved": {"space": {"strategy": "joint"}}}
    assert "--stage" not in words.ungraded(
        dataclasses.replace(tiny_view, ungraded=(fingerprints[3],), experiment=joint)
    )
    many = dataclasses.replace(tiny_view, ungraded=(*fingerprints, *fingerprints))
    assert "0, 1, 2, 3, 4, 0 and 4 more, which would stand" in words.ungraded(many)
    assert words.ungraded(many).strip() in render_report(many)


def test_a_tied_reference_is_hollow_too(tiny_view: RunView) -> None:
    dense = tiny_view.trials[0].replace(state="DONE", quality=0.91)
    front = (*tiny_view.front, dense.fingerprint)
    trials, ties = (dense, *tiny_view.trials[1:]), {dense.fingerprint: tiny_view.front[1:]}
    info = figures.front_info(dataclasses.replace(tiny_view, trials=trials, front=front, ties=ties))
    drawn = {trace.name: trace for trace in figures.draw_front(info).data}
    assert list(drawn["dense"].marker.symbol) == ["diamond-open"]


def test_a_divided_run_is_drawn_and_told_by_its_part(confirmed_view: RunView) -> None:
    """Oracle: confirm is select less 0.01 for all, so that no change to dense differs."""
    info = figures.front_info(confirmed_view)
    assert [p.quality for p in info.points] == pytest.approx([0.89, 0.89, 0.87, 0.84])
    assert {p.stderr for p in info.points} == {0.006}
    assert figures.draw_front(info).layout.yaxis.title.text == "accuracy, validation (confirm part)"
    trial = confirmed_view.trials[4]
    assert words.drop(confirmed_view, trial) == pytest.approx(0.05)
    assert "validation (confirm part) 84.0 ± 0.6 % (−5.0 points)" in figures.point_hover(confirmed_view, trial)


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "0"), (4.118, "4.12"), (41.18, "41.2"), (-0.0497, "−0.0497"), (1234.5, "1,234")]
)
def test_number_rounds_to_three_digits(value: float, text: str) -> None:
    assert words.number(value) == text


@pytest.mark.parametrize("value", [None, math.nan, math.inf])
def test_a_missing_number_is_a_dash(value: float | None) -> None:
    assert words.number(value) == words.milliseconds(value) == words.times(value) == words.MISSING


# three objectives


@pytest.fixture
def sized_view(tiny_view: RunView) -> RunView:
    """Bytes 1,000, 500, 400, 100 of trials 0, 1, 3, 4; number 3 is slower and worse than 1, but smaller."""
    sizes = {0: 1000, 1: 500, 3: 400, 4: 100}
    trials = tuple(
        t.replace(artifact=dataclasses.replace(t.artifact, size_bytes=sizes[t.number]), state="DONE")
        if t.artifact
        else t
        for t in tiny_view.trials
    )
    front = tuple(trials[i].fingerprint for i in (4, 1, 3))
    return dataclasses.replace(
        tiny_view, trials=trials, front=front, objectives=Objectives(("latency", "quality", "size"))
    )


def test_areas_of_markers_grow_with_the_share_of_dense(sized_view: RunView) -> None:
    info = figures.front_info(sized_view)
    assert info.sized == "size"
    assert [p.share for p in info.points] == [1.0, 0.5, 0.4, 0.1]
    areas = [p.diameter**2 for p in info.points]
    assert areas[0] - areas[3] == pytest.approx((figures.LARGE**2 - figures.SMALL**2) * 0.9)
    assert info.points[0].diameter == figures.LARGE
    assert info.steps == (3, 1)  # positions; what is there for its size is no step of the line


def test_what_is_on_the_front_for_its_size_stands_beside_the_line(sized_view: RunView) -> None:
    figure = figures.draw_front(figures.front_info(sized_view))
    traces = {trace.name: trace for trace in figure.data}
    assert list(traces["Pareto front"].x) == [0.25, 0.5]
    assert list(traces["on the front by its file size"].customdata) == [3]
    assert [name for name, trace in traces.items() if trace.legend == "legend2"] == ["10 %", "25 %", "50 %", "100 %"]
    assert figure.layout.legend2.title.text == "file size, share of dense"


def test_bytes_and_quality_are_a_figure_of_their_own(sized_view: RunView) -> None:
    info = taken_info(sized_view, "size")
    assert [(p.index, p.megabytes, p.quality, p.on_front) for p in info.points] == [
        (0, 0.001, 0.9, False),
        (1, 0.0005, 0.9, True),
        (3, 0.0004, 0.88, True),
        (4, 0.0001, 0.85, True),
    ]
    assert info.dense == (0.001, 0.9)
    rest, front = draw_taken(info).data
    assert (list(rest.customdata), list(front.customdata)) == ([0], [1, 3, 4])
    assert list(front.marker.color) == pytest.approx([2.0, 1.25, 4.0])
    assert (
        taken_words(taken_info(sized_view, "memory"))[1] == '<p class="empty">No candidate\'s peak memory is known.</p>'
    )


def test_progress_counts_all_objectives(sized_view: RunView) -> None:
    """Oracle: `Front.hypervolume` of the same trials."""
    front = Front(sized_view.trials, True, objectives=sized_view.objectives)
    assert figures.progress_info(sized_view).hypervolume[-1] == pytest.approx(front.hypervolume())
