"""Oracles: rows by hand, and the page's own data."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from autocompress.report.page import page_data, render_report
from autocompress.report.sensitivity import LEAST, MOST_ROWS, draw_sensitivity, sensitivity_info
from autocompress.report.view import RunView


def row(layer: str, precision: str, kl: float, **changes: Any) -> dict[str, Any]:
    values = {"layer": layer, "layers": [layer], "precision": precision, "weight_bits": None, "kl": kl,
              "measured": True, "cost_s": -1e-4, "size_bytes": -3000.0}  # fmt: skip
    return {**values, **changes}


ROWS = (
    row("a", "int8", 0.0),
    row("a", "int4-weights", 0.2, measured=False, cost_s=2e-4),
    row("b & c", "int8", 0.5, layers=["b", "c", "d", "e"]),
    row("b & c", "int8", 0.01, weight_bits=4, size_bytes=10.0),
)


def seen(view: RunView, *rows: dict[str, Any]) -> RunView:
    return dataclasses.replace(view, sensitivities=rows or ROWS)


def test_layers_stand_by_their_worst_option(vit_view: RunView) -> None:
    info = sensitivity_info(seen(vit_view))
    assert info.layers == ("b & c", "a")
    assert list(info.options) == ["int8", "int4-weights", "int8, 4 bits"]
    assert [(p.layer, p.kl) for p in info.options["int8"]] == [(1, 0.0), (0, 0.5)]


def test_a_point_says_what_it_is(vit_view: RunView) -> None:
    info = sensitivity_info(seen(vit_view))
    (predicted,) = info.options["int4-weights"]
    assert predicted.text == (
        "<b>a</b><br>int4-weights: 0.2 nats, predicted<br>alone it changes the model's latency by +0.200 ms"
        "<br>and its weights by −0.00300 MB"
    )
    (few,) = info.options["int8, 4 bits"]
    assert "<b>b &amp; c</b>" in few.text
    assert "and its weights by +" in few.text
    assert "4 layers: b, c, d, …" in info.options["int8"][1].text


def test_predicted_ones_are_hollow_and_nothing_has_a_place_on_the_axis(vit_view: RunView) -> None:
    eight, four, _few = draw_sensitivity(sensitivity_info(seen(vit_view))).data
    assert list(eight.marker.symbol) == ["circle", "circle"]
    assert list(four.marker.symbol) == ["circle-open"]
    assert list(eight.x) == [LEAST, 0.5]


def test_of_many_layers_the_most_sensitive_are_shown(vit_view: RunView) -> None:
    rows = [row(f"layer{i}", "int8", i / 100) for i in range(MOST_ROWS + 7)]
    info = sensitivity_info(seen(vit_view, *rows))
    assert (len(info.layers), info.left_out) == (MOST_ROWS, 7)
    assert info.layers[0] == f"layer{MOST_ROWS + 6}"
    assert "7 less sensitive layers are not shown" in render_report(seen(vit_view, *rows))


@pytest.mark.parametrize("known", [True, False])
def test_the_page_has_the_section_where_something_is_known(vit_view: RunView, known: bool) -> None:
    view = seen(vit_view) if known else vit_view
    assert ("What fewer bits cost" in render_report(view)) == known
    assert ("sensitivity" in page_data(view)["figures"]) == known
