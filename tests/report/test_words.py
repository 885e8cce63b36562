"""What a report says of figures. Oracles: by hand."""

from __future__ import annotations

import dataclasses

import pytest

from autocompress.objectives import Objectives
from autocompress.report import candidates, figures, words
from autocompress.report.view import RunView


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ((True, False, 0.86, 0.88), ("0.8600", "−0.020")),
        ((False, True, 0.06, 0.05), ("6.0 %", "+1.0 points")),
    ],
    ids=["raw within 0 and 1", "share that is minimized"],
)
def test_a_point_is_what_the_metric_says(
    tiny_view: RunView, given: tuple[bool, bool, float, float], shown: tuple[str, str]
) -> None:
    """As budgets are: a hundredth of a share, whatever its direction, and nothing else's that lies in [0, 1]."""
    maximize, fraction, value, dense = given
    view = dataclasses.replace(tiny_view, maximize=maximize, objectives=Objectives(fraction=fraction))
    assert words.quality(view, value) == shown[0]
    assert words.change(view, value, dense) == shown[1]


def test_the_headline_answers_what_was_asked(vit_view: RunView) -> None:
    """Oracle: the same fingerprint that a pick by the budgets has."""
    plain = words.headline(vit_view)
    other = next(i for i in words.front_indices(vit_view) if i != plain.index and vit_view.trials[i].origin != "dense")
    asked = dataclasses.replace(vit_view, answer=vit_view.trials[other].fingerprint)
    assert words.headline(asked).index == other
    assert words.headline(asked).good
    assert words.headline(dataclasses.replace(vit_view, answer=vit_view.trials[0].fingerprint)) == plain, "dense"


def test_what_was_not_measured_is_never_said_to_be(vit_view: RunView) -> None:
    trials = tuple(
        t.replace(latency=dataclasses.replace(t.latency, source="predicted")) if t.latency else t
        for t in vit_view.trials
    )
    view = dataclasses.replace(vit_view, trials=trials)
    assert words.probed(vit_view) == "Measured before the search, with the dense model."
    assert words.probed(view) == "Before the search, with the dense model; predicted, not measured."
    hover = figures.front_info(view).points[1].hover
    assert "(predicted)" in hover
    assert "–" not in next(line for line in hover.split("<br>") if line.startswith("ratio"))


def test_the_test_splits_uncertainty_is_shown(vit_view: RunView) -> None:
    index = next(i for i, t in enumerate(vit_view.trials) if t.quality_test is not None and t.latency)
    trials = list(vit_view.trials)
    trials[index] = trials[index].replace(quality_test_stderr=0.012)
    view = dataclasses.replace(vit_view, trials=tuple(trials))
    assert "± 1.2 %" in dict(candidates.panel_data(view, index, True)["rows"])["Test"]
    assert any("test " in p.hover and "± 1.2 %" in p.hover for p in figures.front_info(view).points)
