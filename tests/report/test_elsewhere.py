"""Oracles: the records that went in; what is not measured says so."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from autocompress.elsewhere import Elsewhere, read_elsewhere
from autocompress.errors import ConfigError
from autocompress.records import write_json
from autocompress.report.elsewhere import draw_elsewhere, elsewhere_info, elsewhere_table
from autocompress.report.page import render_report
from autocompress.report.view import RunView
from tests.report.conftest import latency


def with_devices(vit_view: RunView) -> RunView:
    timed = {t.fingerprint: latency(0.5) for t in vit_view.trials if t.fingerprint in vit_view.front}
    predicted = {name: latency(0.25, source="predicted") for name in timed}
    devices = (
        Elsewhere("cpu (Some CPU)", {"name": "cpu"}, {}, "openvino, 2 threads", timed),
        Elsewhere("h200", {"name": "h200"}, {}, "onnxruntime, 1 thread", predicted),
    )
    return dataclasses.replace(vit_view, elsewhere=devices)


def test_the_file_gives_back_what_was_written(vit_view: RunView, tmp_path: Path) -> None:
    devices = with_devices(vit_view).elsewhere
    write_json(tmp_path / "measured.json", {"devices": [device.to_json() for device in devices]})
    assert read_elsewhere(tmp_path / "measured.json") == devices
    assert read_elsewhere(tmp_path / "none.json") == ()


@pytest.mark.parametrize("text", ["[]", "{", json.dumps({"devices": [{"name": "x"}]})])
def test_another_file_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "measured.json").write_text(text)
    with pytest.raises(ConfigError, match=r"measured\.json: not written by autocompress measure"):
        read_elsewhere(tmp_path / "measured.json")


def test_rows_are_the_timed_models_fast_to_slow(vit_view: RunView) -> None:
    info = elsewhere_info(with_devices(vit_view))
    assert info.devices == ("cpu (Some CPU)", "h200")
    assert {vit_view.trials[row.index].fingerprint for row in info.rows} == set(vit_view.front)
    ratios = [row.here.ratio_best_dense for row in info.rows]
    assert ratios == sorted(ratios)


def test_what_was_not_measured_is_marked_in_table_and_figure(vit_view: RunView) -> None:
    info = elsewhere_info(with_devices(vit_view))
    table = elsewhere_table(info)
    assert table.count(">predicted</span>") == len(info.rows)
    measured, predicted, _line = draw_elsewhere(info).data
    assert measured.marker.symbol == "circle"
    assert predicted.marker.symbol == "circle-open"
    assert "not measured" in predicted.name
    assert list(predicted.y) == [4.0] * len(info.rows)


def test_the_page_shows_the_devices_only_where_there_are_any(vit_view: RunView) -> None:
    assert "On other devices" not in render_report(vit_view)
    assert "On other devices" in render_report(with_devices(vit_view))


def test_a_run_of_predictions_never_says_that_it_was_timed(vit_view: RunView) -> None:
    timed = [t for t in vit_view.trials if t.latency]
    trials = [t.replace(latency=dataclasses.replace(t.latency, source="predicted")) for t in timed]
    html = render_report(dataclasses.replace(vit_view, trials=tuple(trials)))
    assert "timed on this device" not in html
    assert "predicted from the chip" in html
    assert "95 % interval 1" not in html
