"""The page: well formed, escaped, self-contained, and alive in a real browser without a network."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from autocompress.report import page
from autocompress.report.page import embed_json, render_report
from autocompress.report.view import RunView

VOID = {"meta", "link", "br", "img", "input", "hr"}
HOSTILE = "</script><script>alert('x')</script><b>&"
CHROMIUM = "/usr/bin/chromium"


class Balance(HTMLParser):
    """Fails on a tag that closes what is not open; keeps the text of table cells and of scripts."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.rows: list[list[str]] = []
        self.scripts = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        self.scripts += tag == "script"
        if tag == "tr":
            self.rows.append([])
        if tag == "td":
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "td" in self.open:
            self.rows[-1][-1] += data


def parse(html: str) -> Balance:
    parser = Balance()
    parser.feed(html)
    parser.close()
    assert parser.open == []
    return parser


def data_of(html: str) -> Any:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)
    assert found
    return json.loads(found[1])


@pytest.fixture(scope="module")
def vit_html(vit_view: RunView) -> str:
    return render_report(vit_view)


def test_page_is_well_formed_small_and_asks_for_nothing(vit_html: str) -> None:
    assert parse(vit_html).scripts == 3
    assert len(vit_html.encode()) < 6e6
    assert 'src="http' not in vit_html
    assert not re.search(r"<link[^>]+https?:", vit_html)
    assert "{{" not in vit_html.split("<script>")[0]


def test_every_trial_has_a_row_and_panel_data(vit_view: RunView, vit_html: str) -> None:
    rows = [row for row in parse(vit_html).rows if len(row) == 12]
    assert {row[11] for row in rows} == {t.fingerprint for t in vit_view.trials}
    data = data_of(vit_html)
    assert len(data["candidates"]) == len(vit_view.trials)
    assert [c["plan"] for c in data["candidates"]] == [t.plan.to_json() for t in vit_view.trials]
    assert sum(row[1] == "front" for row in rows) == len(vit_view.front)
    failed = next(row for row in rows if row[1] == "failed")
    assert failed[4:11] == ["–"] * 7
    assert "differs from the torch model" in failed[3]


def test_rows_say_what_the_trial_holds(tiny_view: RunView) -> None:
    rows = {row[0]: row for row in parse(render_report(tiny_view)).rows if len(row) == 12}
    told = ["2.00×", "0.500 0.490–0.510", "2.05 ms", "90.0 %", "±0.0", "89.0 %", "6.27 MB"]
    assert rows["1"][3:11] == ["int8", *told]


def test_rows_and_panel_say_which_part_a_figure_is_of(confirmed_view: RunView) -> None:
    html = render_report(confirmed_view)
    heads = re.findall(r'<button type="button">(.*?)</button>', html.split("<tbody>")[0] + html)
    assert heads[7:10] == ["Select", "Confirm", "Change"]
    rows = {row[0]: row for row in parse(html).rows if len(row) == 13}
    assert rows["1"][1] == "front tied with 4"
    assert rows["1"][7:11] == ["90.0 %", "89.0 %", "±0.0", "89.0 %"]
    panel = data_of(html)["candidates"][1]
    assert ["tied", "tied in quality with 4"] in panel["badges"]
    shown = dict(row for row in panel["rows"] if row[0] != "– change")
    assert (shown["Validation, confirm"], shown["Validation, select"]) == ("89.0 ± 0.6 %", "90.0 ± 0.4 %")
    assert "shown is the confirm part, which it never looked at" in html
    assert "Hollow points of the front are tied" in html


def test_a_run_that_is_not_divided_has_one_validation(tiny_view: RunView) -> None:
    html = render_report(dataclasses.replace(tiny_view, part="confirm"))
    assert not any(word in html.split("<footer>")[0] for word in ("Confirm", "confirm part", "Hollow points of"))


def test_default_selection_is_the_headline(tiny_view: RunView, empty_view: RunView) -> None:
    assert page.default_selection(tiny_view) == 1
    assert page.default_selection(empty_view) is None


def test_hostile_names_stay_text(tiny_view: RunView) -> None:
    trials = tuple(t.replace(what=HOSTILE, error=HOSTILE) for t in tiny_view.trials)
    table = dataclasses.replace(
        tiny_view.table, layers=tuple(dataclasses.replace(la, name=la.name + HOSTILE) for la in tiny_view.table.layers)
    )
    view = dataclasses.replace(
        tiny_view, name=HOSTILE, trials=trials, table=table, metric=HOSTILE, budgets=(HOSTILE,), status=HOSTILE,
        experiment={HOSTILE: HOSTILE, "nested": {HOSTILE: [HOSTILE, {"deep": HOSTILE}]}}, environment={"a": HOSTILE},
        probe={"dense": [{"runtime": HOSTILE}], "precisions": [{"precision": HOSTILE, "why": HOSTILE}]},
    )  # fmt: skip
    html = render_report(view)
    assert "<script>alert" not in html
    assert "<b>&" not in html
    assert parse(html).scripts == 3
    assert data_of(html)["candidates"][0]["title"] == HOSTILE


def test_embedded_json_round_trips_and_closes_no_script() -> None:
    data = {"a": "</script>", "b": "<!--", "c": "\u2028 & é", "d": [1.5, None]}
    text = embed_json(data)
    assert json.loads(text) == data
    assert not set("<>&\u2028") & set(text)


def test_an_empty_run_says_so(empty_view: RunView) -> None:
    html = render_report(empty_view)
    parse(html)
    assert "No candidate has been evaluated yet" in html
    assert data_of(html) == {"figures": {}, "candidates": [], "cells": [], "selected": None}


def test_a_run_of_failures_gives_the_reason(tiny_view: RunView) -> None:
    nothing: dict[str, Any] = {"latency": None, "quality": None, "artifact": None, "origin": "sampled"}
    trials = tuple(t.replace(state="FAILED", error="no kernel", **nothing) for t in tiny_view.trials)
    html = render_report(dataclasses.replace(tiny_view, trials=trials, front=()))
    parse(html)
    assert "None of the 5 candidates could be measured" in html
    assert "The last reason: no kernel" in html


def test_probe_tables_tell_the_reference_and_the_dropped_level(vit_html: str) -> None:
    rows = parse(vit_html).rows
    assert ["openvino fastest: the reference", "2", "4.10 ms"] in rows
    assert ["int4-weights", "0.920 0.890–0.960", "dropped", "slower than int8, which is heavier"] in rows


def test_key_rows_flatten_below_the_first_level() -> None:
    data = {"seed": 0, "deep": {"a": {"b": True}, "list": [1, 2]}, "none": None}
    assert list(page.key_rows(data)) == [
        ("seed", "0"), ("none", "–"), ("deep", None), ("a.b", "yes"), ("list", "1, 2"),
    ]  # fmt: skip


def test_the_report_imports_no_torch_and_no_optuna() -> None:
    code = "import sys, autocompress.report.page; print(sorted({'torch', 'optuna'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_page_works_offline_in_a_browser(vit_view: RunView, vit_html: str, tmp_path: Path) -> None:
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not shutil.which(CHROMIUM):
        pytest.skip(f"{CHROMIUM} is absent: the report cannot be opened in a browser here")
    path = tmp_path / "report.html"
    path.write_text(vit_html, encoding="utf-8")
    flags = ["--no-sandbox", "--headless", "--disable-gpu", "--disable-background-networking"]
    with sync_api.sync_playwright() as tool:
        browser = tool.chromium.launch(executable_path=CHROMIUM, args=flags)
        try:
            context = browser.new_context(offline=True, viewport={"width": 1300, "height": 900})
            _look(context.new_page(), path, vit_view)
        finally:
            browser.close()


def _look(tab: Any, path: Path, view: RunView) -> None:
    faults: list[str] = []
    requests: list[str] = []
    tab.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
    tab.on("pageerror", lambda error: faults.append(str(error)))
    tab.on("request", lambda request: requests.append(request.url))
    tab.goto(path.as_uri())
    tab.wait_for_selector("body[data-ready=yes]", timeout=60_000)
    first = page.default_selection(view)
    assert first is not None
    assert view.trials[first].fingerprint in tab.inner_text("#panel")
    assert tab.get_attribute("body", "data-selected") == str(first)

    bits = "() => document.getElementById('layers').data.find((t) => t.meta === 'bits').z[0]"
    tab.click('#candidates tr[data-index="1"]')
    assert view.trials[1].fingerprint in tab.inner_text("#panel")
    assert tab.evaluate(bits) == [8] * len(view.table.layers)

    other = next(i for i, t in enumerate(view.trials) if t.fingerprint == view.front[0])
    place = """(index) => {
      const plot = document.getElementById('front'), box = plot.getBoundingClientRect();
      const trace = plot.data.find((t) => t.customdata && t.customdata.includes(index));
      const at = trace.customdata.indexOf(index), full = plot._fullLayout;
      return [box.left + full.xaxis._offset + full.xaxis.d2p(trace.x[at]),
              box.top + full.yaxis._offset + full.yaxis.d2p(trace.y[at])];
    }"""
    tab.evaluate("window.scrollTo(0, 0)")
    tab.locator("#front").scroll_into_view_if_needed()
    tab.mouse.move(*tab.evaluate(place, other))
    tab.wait_for_timeout(300)
    tab.mouse.down()
    tab.mouse.up()
    tab.wait_for_function(f"document.body.dataset.selected === '{other}'", timeout=10_000)
    assert view.trials[other].fingerprint in tab.inner_text("#panel")

    tab.click("#candidates th:nth-child(7) button")
    order = tab.eval_on_selector_all("#candidates tbody tr td:nth-child(7)", "cells => cells.map((c) => c.dataset.v)")
    known = [float(v) for v in order if v]
    assert known == sorted(known)
    assert order[len(known) :] == [""] * (len(order) - len(known))
    assert faults == []
    assert [url for url in requests if not url.startswith(("file:", "data:", "blob:"))] == []
