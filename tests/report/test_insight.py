"""Oracles: records by hand, and the page's own data."""

from __future__ import annotations

import dataclasses
import math

import pytest

from autocompress.found import Audit, Found, Importances, Loss, Share
from autocompress.plan import Distill, Plan
from autocompress.report import audits, figures, importances, losses, stages
from autocompress.report.page import page_data, render_report
from autocompress.report.view import RunView

AUDITS = (
    Audit(0, 1, 0.2, 0.4, 4, 0.8, (0.5, 0.6, 0.7, 0.8), (0.8, 0.82, 0.84, 0.83)),
    Audit(1, 2, 0.2, 0.25, 4, -0.5, (0.8, 0.81, 0.82, 0.83), (0.9, 0.89, 0.88, 0.89)),
    Audit(1, 2, 0.3, 0.5, 4, math.nan, (0.8, 0.8, 0.8, 0.8), (0.9, 0.89, 0.88, 0.89)),
)
TOLD = Importances("recovery", 20, 12, (Share("learning_rate", 0.6, 0.3), Share("soft_weight", 0.1, 0.2)))
LOSSES = (
    Loss("net.0", "neurons", "50 %", 0.02, True),
    Loss("net.0", "neurons", "25 %", 0.2, False),
    Loss("net.1.fc", "precision", "int8", 1e-9, True),
    Loss("net.1.gc", "precision", "int8", 3e-4, False),
    Loss("head", "precision", "int8", 1e-4, True),
    Loss("net.1", "remove", "block", 0.5, True),
)
STAGES = (
    {"stage": "solve", "seconds": 61.0, "candidates": 3, "hypervolume_before": 0.1, "hypervolume_after": 0.15},
    {"stage": "recover", "seconds": 400.0, "candidates": 2, "hypervolume_before": 0.15, "hypervolume_after": 0.15},
)


def test_audits_are_pairs_of_rungs_with_bins(tiny_view: RunView) -> None:
    trials = [tiny_view.trials[0].replace(rung=1, plan=Plan(distill=Distill(steps=100)))]
    view = dataclasses.replace(tiny_view, trials=(*trials, *tiny_view.trials[1:]), found=Found(audits=AUDITS))
    info = audits.audits_info(view)
    assert (info.metric, info.percent) == ("accuracy", True)
    assert [(pair.lower, pair.upper) for pair in info.pairs] == [
        ("rung 0 (no recovery)", "rung 1 (100 steps)"), ("rung 1 (100 steps)", "rung 2"),
    ]  # fmt: skip
    assert [[one.label for one in pair.bins] for pair in info.pairs] == [
        ["2.50× to 5.00×: ρ 0.80, 4 structures"],
        ["4.00× to 5.00×: ρ −0.50, 4 structures, not trusted", "2.00× to 3.33×: all alike, 4 structures"],
    ]
    assert info.pairs[0].bins[0].below == pytest.approx((50.0, 60.0, 70.0, 80.0))
    said = audits.sentence(view)
    assert "as the one after it in 1 of 1 bins" in said
    assert "the ranking holds in 1 of 2 bins" in said


def test_untrusted_bins_are_hollow(tiny_view: RunView) -> None:
    info = audits.audits_info(dataclasses.replace(tiny_view, found=Found(audits=AUDITS)))
    dots = [trace for trace in audits.draw_audits(info).data if trace.mode == "markers"]
    assert [dot.marker.symbol for dot in dots] == ["circle", "circle-open", "circle"]
    assert [dot.legend for dot in dots] == ["legend", "legend2", "legend2"]


def test_importances_are_bars_in_percent() -> None:
    info = importances.importances_info(Found((TOLD,)))
    assert info == importances.ImportancesInfo(
        {"quality after recovery": (
            importances.Bar("learning rate", 60.0, 30.0, True),
            importances.Bar("λ, weight of the teacher", 10.0, 20.0, False),
        )},
        ("learning rate", "λ, weight of the teacher"), ("#2563eb",),
        ("Learning rate matters for the quality after recovery (20 recoveries of structures that were recovered at "
         "least twice).",),
    )  # fmt: skip
    bars, chance = importances.draw_importances(info).data
    assert list(chance.x) == [30.0, 20.0]
    assert bars.marker.color[0] != bars.marker.color[1]


@pytest.mark.parametrize(
    ("found", "note"),
    [
        (Importances("recovery", 5, 12), "Which settings matter for the quality after recovery is not told below 12"),
        (Importances("latency", 40, 12), "Which settings matter for the latency cannot be told"),
        (Importances("quality", 40, 12, (Share("bits", 0.1, 0.2),)), "Nothing is shown to matter for the quality"),
        (Importances("quality", 40, 12, tuple(Share(n, 0.3, 0.2) for n in ("bits", "rank", "structure"))),
         "Bits, rank and structure matter for the quality (40 trials)."),
    ],
)  # fmt: skip
def test_importances_say_what_they_are_worth(found: Importances, note: str) -> None:
    info = importances.importances_info(Found((found,)))
    assert info.notes[0].startswith(note)
    assert bool(info.outcomes) == bool(found.shares)


def test_losses_are_cells_of_blocks_and_choices(tiny_view: RunView) -> None:
    info = losses.losses_info(dataclasses.replace(tiny_view, losses=LOSSES))
    assert info.rows == ("block 0", "block 1", "head")
    assert info.columns == ("neurons 50 %", "neurons 25 %", "int8", "without block")
    assert [(c.row, c.column, c.kl, c.measured) for c in info.cells] == [
        (0, 0, 0.02, True), (0, 1, 0.2, False), (1, 2, 3e-4, False), (2, 2, 1e-4, True), (1, 3, 0.5, True),
    ]  # fmt: skip
    assert info.cells[2].text == (
        "<b>block 1</b><br>int8: 0.0003 nats, estimated from its like<br>worst of 2: net.1.gc"
    )


def test_measured_losses_are_filled_and_estimated_ones_hollow(tiny_view: RunView) -> None:
    figure = losses.draw_losses(losses.losses_info(dataclasses.replace(tiny_view, losses=LOSSES)))
    filled, numbers = figure.data
    assert [[value is not None for value in row] for row in filled.z] == [
        [True, False, False, False], [False, False, False, True], [False, False, True, False],
    ]  # fmt: skip
    assert filled.z[2][2] == pytest.approx(-4)
    assert list(zip(numbers.x, numbers.y, strict=True)) == [(1, 0), (2, 1)]
    assert len(figure.layout.shapes) == 2


def test_of_many_rows_those_that_lose_most_are_shown(tiny_view: RunView) -> None:
    many = tuple(Loss(f"layer{i}", "rank", "50 %", 0.1 * i, True) for i in range(losses.MOST_ROWS + 3))
    info = losses.losses_info(dataclasses.replace(tiny_view, losses=many))
    assert (len(info.rows), info.left_out) == (losses.MOST_ROWS, 3)
    assert "layer2" not in info.rows


@pytest.mark.parametrize(
    ("kl", "text"), [(0.0, "0"), (1.234, "1.2"), (0.0456, "0.046"), (4.2e-4, "4.2e−4"), (1e-10, "1.0e−10")]
)
def test_losses_fit_their_cells(kl: float, text: str) -> None:
    assert losses.short(kl) == text


def test_stages_are_bands_by_the_origins_of_trials(tiny_view: RunView) -> None:
    origins, ends = ("dense", "uniform", "sampled", "refined", "tuned"), (10.0, 20.0, 30.0, 40.0, 60.0)
    trials = tuple(
        t.replace(origin=origin, finished_s=end, seconds={"measure": 4.0})
        for t, origin, end in zip(tiny_view.trials, origins, ends, strict=True)
    )
    assert stages.bands_info(dataclasses.replace(tiny_view, trials=trials)) == (
        stages.Band("before", 0.0, 6.0), stages.Band("references", 6.0, 16.0), stages.Band("solve", 16.0, 26.0),
        stages.Band("refine", 26.0, 56.0), stages.Band("recover", 56.0, 60.0),
    )  # fmt: skip
    joint = {"resolved": {"space": {"strategy": "joint"}}}
    names = [band.stage for band in stages.bands_info(dataclasses.replace(tiny_view, trials=trials, experiment=joint))]
    assert names[:4] == ["before", "references", "seeds", "sampler"]
    assert stages.bands_info(dataclasses.replace(tiny_view, trials=trials[:1])) == ()


def test_stages_that_take_turns_have_several_bands(tiny_view: RunView) -> None:
    """The program's later proposals belong to the refining that they come up in."""
    origins = ("dense", "warm-start", "solved", "refined", "solved", "tuned", "refined", "recovered")
    trials = tuple(
        tiny_view.trials[0].replace(number=place, origin=origin, finished_s=10.0 * place + 10, seconds={"measure": 9.0})
        for place, origin in enumerate(origins)
    )
    bands = stages.bands_info(dataclasses.replace(tiny_view, trials=trials))
    assert [(band.stage, band.begin_s, band.end_s) for band in bands[1:]] == [
        ("references", 1.0, 11.0), ("warm start", 11.0, 21.0), ("solve", 21.0, 31.0), ("refine", 31.0, 51.0),
        ("recover", 51.0, 61.0), ("refine", 61.0, 71.0), ("recover", 71.0, 80.0),
    ]  # fmt: skip


def test_bands_lie_behind_the_progress(vit_view: RunView) -> None:
    bands = (stages.Band("solve", 0.0, 60.0), stages.Band("refine", 60.0, 61.0), stages.Band("recover", 61.0, 120.0))
    shapes = stages.shade(figures.draw_progress(figures.progress_info(vit_view)), bands).layout.shapes
    assert [(shape.x0, shape.x1) for shape in shapes] == [(0.0, 60.0), (60.0, 61.0), (61.0, 120.0)]
    assert [shape.label.text for shape in shapes] == ["solve", None, "recover"]


def test_rows_of_stages() -> None:
    assert stages.stages_info(STAGES) == (
        stages.StageRow("solve", "61.0 s", "3", "0.100", "0.150", "+0.0500"),
        stages.StageRow("recover", "7 min", "2", "0.150", "0.150", "0"),
    )
    assert stages.stages_info(({"stage": "probe"},)) == (stages.StageRow("probe", "–", "–", "–", "–", "–"),)


TITLES = ("What single choices lose", "Can few steps foretell many?", "Which settings matter", "Hypervolume before")


@pytest.mark.parametrize("known", [True, False])
def test_the_page_has_the_sections_where_something_is_known(vit_view: RunView, known: bool) -> None:
    more = {"found": Found((TOLD,), AUDITS), "losses": LOSSES, "stages": STAGES}
    view = dataclasses.replace(vit_view, **more) if known else vit_view
    html, drawn = render_report(view), page_data(view)["figures"]
    assert [title in html for title in TITLES] == [known] * 4
    assert [name in drawn for name in ("losses", "audits", "importances")] == [known] * 3


def test_importances_that_are_not_told_say_why(vit_view: RunView) -> None:
    view = dataclasses.replace(vit_view, found=Found((Importances("recovery", 3, 12),)))
    assert "there are 3." in render_report(view)
    assert "importances" not in page_data(view)["figures"]
