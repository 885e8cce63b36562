"""One self-contained HTML file of a run: no request leaves it, plotly.js included once.

Knows the order of the page; the numbers come from `figures`, `candidates` and `words`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from html import escape
from importlib import resources
from itertools import cycle
from typing import Any

from autocompress.report import figures, insight, words
from autocompress.report.candidates import candidates_table, panel_data
from autocompress.report.elsewhere import draw_elsewhere, elsewhere_info, elsewhere_table
from autocompress.report.html import scroll as _scroll
from autocompress.report.html import section as _section
from autocompress.report.html import table as _table
from autocompress.report.sensitivity import draw_sensitivity, sensitivity_info
from autocompress.report.sensitivity import height as sensitivity_height
from autocompress.report.stages import bands_info, shade
from autocompress.report.taken import draw_taken, taken_info, taken_words
from autocompress.report.view import RunView


def render_report(view: RunView) -> str:
    """The report as HTML text, a few MB; write it to ``report.html`` as UTF-8."""
    parts = {
        "title": escape(f"{view.name} · autocompress"),
        "css": _asset("page.css"),
        "body": "\n".join(_body(view)),
        "data": embed_json(page_data(view)),
        "plotly": figures.plotly_script(),
        "js": _asset("page.js"),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], _asset("page.html"))


def _asset(name: str) -> str:
    return resources.files("autocompress.report").joinpath(name).read_text(encoding="utf-8")


def embed_json(data: object) -> str:
    """JSON that is safe inside a ``<script>``; raises `ValueError` on NaN, which JSON cannot hold."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"), ensure_ascii=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def page_data(view: RunView) -> dict[str, Any]:
    """What the page's script needs: figures, candidates, a pool of layer cells, the first selection."""
    cells: dict[figures.LayerCell, int] = {}
    front = frozenset(words.front_indices(view))
    info = figures.front_info(view)
    scale = 100.0 if info.percent else 1.0
    points = {p.index: [p.ratio, p.quality * scale] for p in info.points}
    candidates = []
    for index in range(len(view.trials)):
        one = panel_data(view, index, index in front)
        one["point"] = points.get(index)
        one["cells"] = [cells.setdefault(c, len(cells)) for c in figures.layers_info(view, index).cells]
        candidates.append(one)
    selected = default_selection(view)
    pool = [{**asdict(c), "numbers": [figures.cell_number(c, band[1]) for band in figures.BANDS]} for c in cells]
    return {"figures": _figures(view, selected), "candidates": candidates, "cells": pool, "selected": selected}


def default_selection(view: RunView) -> int | None:
    """Position of the trial shown first: the headline's, else the first of the front, else the first."""
    index = words.headline(view).index
    if index is not None:
        return index
    front = words.front_indices(view)
    return front[0] if front else 0 if view.trials else None


def _figures(view: RunView, selected: int | None) -> dict[str, Any]:
    drawn = {}
    if figures.front_info(view).points:
        drawn["front"] = figures.draw_front(figures.front_info(view))
    drawn |= {name: draw_taken(taken_info(view, name)) for name in view.objectives.more}
    if selected is not None and view.table.layers:
        drawn["layers"] = figures.draw_layers(figures.layers_info(view, selected))
    if view.elsewhere:
        drawn["elsewhere"] = draw_elsewhere(elsewhere_info(view))
    drawn |= insight.figures(view)
    if view.sensitivities:
        drawn["sensitivity"] = draw_sensitivity(sensitivity_info(view))
    if figures.progress_info(view).index:
        drawn["progress"] = shade(figures.draw_progress(figures.progress_info(view)), bands_info(view))
    if sum(figures.seconds_info(view).seconds) > 0:
        drawn["seconds"] = figures.draw_seconds(figures.seconds_info(view)).update_layout(showlegend=False)
    return {name: json.loads(figure.to_json()) for name, figure in drawn.items()}


def _body(view: RunView) -> Iterator[str]:
    yield _header(view)
    yield _front_section(view)
    yield from (_section(*taken_words(taken_info(view, name))) for name in view.objectives.more)
    if view.elsewhere:
        yield _elsewhere_section(view)
    if view.trials and view.table.layers:
        yield _section(
            "Layer by layer",
            '<p class="note" id="layers-of"></p><div class="scroll"><div id="layers" class="figure"'
            f' style="min-width:{_layers_width(view)}px"></div></div>',
            "Darker is compressed more: weights kept by structure removal in % of the layer, bits of each weight, rank "
            "in % of the full rank (no number: not factorized). A cross marks a layer that is gone with what holds it.",
        )
    yield from insight.loss_section(view)
    if view.sensitivities:
        yield _sensitivity_section(view)
    if view.trials:
        yield f'<div class="pair">{_progress_section(view)}{_seconds_section(view)}</div>'
    yield from insight.outcome_sections(view)
    if view.trials:
        yield _section(
            f"All {len(view.trials)} candidates",
            '<p class="note">Click a row to see it above; click a column title to sort. Speed-up and ratio are to '
            "the fastest dense fp32 runtime; the small figures are the 95 % interval, or say that it was not measured. "
            f"{_parts_words(view)}Change is {'in points' if view.percent else 'in units of the metric'}, to dense on "
            f"{words.validation(view)}.</p>"
            + f'<div class="scroll table-tall">{candidates_table(view, frozenset(words.front_indices(view)))}</div>',
        )
    yield from _facts(view)
    yield "<footer>Written by autocompress. This file loads nothing from the network.</footer>"


def _header(view: RunView) -> str:
    head = words.headline(view)
    lead = f'<p class="lead">{escape(head.detail)}</p>' if head.detail else ""
    said = [*(f"budget: {b}" for b in view.budgets), view.status]
    meta = "".join(f"<li>{escape(item)}</li>" for item in said if item)
    return (
        f'<header><p class="eyebrow"><b>autocompress</b> · {escape(view.name)}</p><h1>{escape(head.title)}</h1>{lead}'
        f"{_tiles(view, head) if head.good else ''}<ul class=meta>{meta}</ul></header>"
    )


def _tiles(view: RunView, head: words.Headline) -> str:
    trial = view.trials[head.index or 0]
    assert trial.latency is not None
    latency = trial.latency
    low, high = words.speed_up(latency.ratio_best_dense_high), words.speed_up(latency.ratio_best_dense_low)
    dense = _dense_size(view)
    tiles = [
        (
            "Speed-up to fastest dense",
            words.times(words.speed_up(latency.ratio_best_dense)),
            f"interval {words.interval(low, high, '×')}" if latency.source == "measured" else latency.source,
        ),
        (
            "Latency, median" if latency.source == "measured" else f"Latency, {latency.source}",
            words.milliseconds(latency.latency_s),
            f"{latency.runtime}, {latency.threads} threads" if latency.source == "measured" else "not measured",
        ),
        (
            f"{view.metric}, {f'{view.part} part' if view.divided else 'validation'}",
            words.change(view, view.quality_of(trial), view.quality_dense),
            f"{words.quality(view, view.quality_dense)} → "
            f"{words.quality(view, view.quality_of(trial), trial.stderr_on(view.part))}",
        ),
        (
            f"{view.metric}, test",
            words.change(view, trial.quality_test, view.quality_dense_test),
            f"{words.quality(view, view.quality_dense_test)} → "
            f"{words.quality(view, trial.quality_test, trial.quality_test_stderr)}",
        ),
    ]
    if trial.artifact:
        smaller = f"{words.times(dense / trial.artifact.size_bytes)} smaller than dense" if dense else ""
        tiles.append(("File size", words.size(trial.artifact.size_bytes), smaller))
    html = "".join(
        f'<div class="tile"><dt>{escape(k)}</dt><dd>{escape(v)}<small>{escape(s)}</small></dd></div>'
        for k, v, s in tiles
        if v != words.MISSING
    )
    return f'<dl class="tiles">{html}</dl>'


def _dense_size(view: RunView) -> int | None:
    sizes = [t.artifact.size_bytes for t in view.trials if t.origin == "dense" and t.artifact]
    return sizes[0] if sizes else None


def _front_section(view: RunView) -> str:
    info = figures.front_info(view)
    if not view.trials:
        return _section(
            "Speed and quality", '<p class="empty">There is nothing to plot: no candidate was evaluated.</p>'
        )
    if info.points:
        plot = '<div id="front" class="figure"></div>'
    else:
        plot = '<p class="empty">There is nothing to plot: no candidate has both a latency and a quality.</p>'
    bars = ", vertical bars one standard error" if any(p.stderr for p in info.points) else ""
    outside = f" {info.hidden} with far worse quality lie outside the first view." if info.hidden else ""
    under = (
        f"Further left is faster, {'higher' if view.maximize else 'lower'} is better. Horizontal bars are 95 % "
        f"intervals{bars}; dotted lines are the dense model. "
        f"{words.sized(view)}Click a point to see what it is.{outside} "
        "Double-click to see every point, once more to return; drag to zoom."
    )
    more = words.ungraded(view)
    if any(p.tied for p in info.points):
        more += (
            " Hollow points of the front are tied: the same samples do not show them better than their faster "
            "neighbour (paired, 95 %)."
        )
    return _section(
        "Speed and quality",
        f'<p class="note">Every evaluated model, {words.how_timed(view)} and scored on the exported file. '
        f"{_front_words(view, len(info.front))}</p>"
        f'<div class="split"><div>{plot}<p class="under">{under if info.points else ""}{more}</p></div>'
        '<aside class="panel" id="panel" aria-live="polite"></aside></div>',
    )


def _elsewhere_section(view: RunView) -> str:
    info = elsewhere_info(view)
    if not info.rows:
        return _section("On other devices", '<p class="empty">None of these models was timed on another device.</p>')
    return _section(
        "On other devices",
        '<p class="note">The very files of this run, timed again without compressing anything; small: speed-up to the '
        "fastest dense fp32 of that device, with its 95 % interval.</p>"
        f'<div id="elsewhere" class="figure"></div><div class="scroll">{elsewhere_table(info)}</div>',
        "Figures marked as predicted come from a chip's published rates, those from a table from layers timed on the "
        "device; neither is a measurement of the file.",
    )


def _sensitivity_section(view: RunView) -> str:
    info = sensitivity_info(view)
    more = f" {info.left_out} less sensitive layers are not shown." if info.left_out else ""
    return _section(
        "What fewer bits cost, layer by layer",
        '<p class="note">How far the dense model\'s predictions move when one layer alone is rounded, the most '
        f"sensitive first.{more}</p>"
        f'<div id="sensitivity" class="figure" style="height:{sensitivity_height(info)}px"></div>',
        "Hollow: predicted from the change of the layer's output along the gradient, not measured.",
    )


def _front_words(view: RunView, count: int) -> str:
    if not count:
        return "The front is empty."
    models = f"{count} model{'s' if count != 1 else ''}"
    if view.part == "select" or not view.divided:
        return f"Front: {models} that no other beats in {words.all_objectives(view)}."
    return (
        f"Front: {models} that no other finalist beats in {words.all_objectives(view)}. The search chose the "
        "finalists on the select part of validation; shown is the confirm part, which it never looked at."
    )


def _parts_words(view: RunView) -> str:
    if not view.divided:
        return ""
    return "Select and confirm are the parts of validation that the search and the front at the end are chosen by. "


def _layers_width(view: RunView) -> int:
    count = len(view.table.layers)
    return 70 + (25 if count <= figures.MOST_NUMBERED else 13) * count


def _progress_section(view: RunView) -> str:
    if not figures.progress_info(view).index:
        return _section("Progress", '<p class="empty">No candidate within the budgets has been measured.</p>')
    return _section(
        "Progress",
        f'<div id="progress" class="figure"></div>{insight.stages_table(view)}',
        f"Hypervolume of ({words.coordinates(view)}) dominated so far; large dots advanced the front.",
    )


def _seconds_section(view: RunView) -> str:
    info = figures.seconds_info(view)
    if not sum(info.seconds) > 0:
        return _section("Where the time went", '<p class="empty">No times were recorded.</p>')
    swatch = '<i class="swatch" style="background:{}"></i>{}'
    colours = dict(zip(info.stages, cycle(figures.STAGE_COLOURS), strict=False))
    rows = [
        [swatch.format(colours[stage], escape(stage)), words.duration(s), f"{100 * s / sum(info.seconds):.0f} %"]
        for stage, s in sorted(zip(info.stages, info.seconds, strict=True), key=lambda pair: -pair[1])
    ]
    content = '<div id="seconds" class="figure"></div>' + _table(("Stage", "Total", "Share"), rows, numeric=(1, 2))
    return _section("Where the time went", content)


def _facts(view: RunView) -> Iterator[str]:
    probe = _dense_facts(view.probe) + _precision_facts(view.probe, words.source(view))
    if probe:
        yield _section(
            "What this device can do",
            f'<p class="note">{words.probed(view)}</p>{probe}',
        )
    settings = [("Environment", view.environment), ("Experiment", view.experiment)]
    shown = [_section(title, _key_table(data)) for title, data in settings if data]
    if shown:
        yield f'<div class="{"pair" if len(shown) == 2 else ""}">{"".join(shown)}</div>'


def _dense_facts(probe: Mapping[str, Any]) -> str:
    dense = [d for d in probe.get("dense") or [] if isinstance(d, Mapping)]
    best = probe.get("best_dense") or {}
    rows = []
    for setting in sorted(dense, key=lambda d: d.get("latency_s") or float("inf")):
        fastest = bool(best) and all(setting.get(k) == best.get(k) for k in ("runtime", "threads"))
        mark = ' <span class="badge front">fastest: the reference</span>' if fastest else ""
        rows.append(
            [
                _text(setting.get("runtime")) + mark,
                _text(setting.get("threads")),
                words.milliseconds(setting.get("latency_s")),
            ]
        )
    html = f"<h3>Dense fp32</h3>{_scroll(('Runtime', 'Threads', 'Latency'), rows, (1, 2))}" if rows else ""
    return html + _reachable_words(probe.get("reachable") or {})


def _reachable_words(reachable: Mapping[str, Any]) -> str:
    smallest, dense = reachable.get("smallest_latency_s"), reachable.get("dense_latency_s")
    if not smallest:
        return ""
    against = f" ({words.times(dense / smallest)} faster than dense at {words.milliseconds(dense)})" if dense else ""
    return (
        f'<p class="under">The smallest model of the search space takes {words.milliseconds(smallest)}{against}: '
        "no budget below that can be met.</p>"
    )


def _precision_facts(probe: Mapping[str, Any], source: str) -> str:
    rows = []
    for level in probe.get("precisions") or []:
        kept = level.get("kept")
        badge = "" if kept is None else f'<span class="badge {"kept" if kept else "dropped"}">'
        badge += "" if kept is None else f"{'kept' if kept else 'dropped'}</span>"
        low, high = level.get("low"), level.get("high")
        doubt = ""
        if low is not None and high is not None:
            doubt = f' <span class="sub">{words.interval(low, high) if source == "measured" else source}</span>'
        rows.append(
            [_text(level.get("precision")), words.number(level.get("ratio")) + doubt, badge, _text(level.get("why"))]
        )
    if not rows:
        return ""
    heads = ("Precision", "Latency ratio to fp32", "In the search", "Why")
    return f'<h3 style="margin-top:20px">Precision levels</h3>{_scroll(heads, rows, (1,))}'


def _text(value: object) -> str:
    return words.MISSING if value is None or value == "" else escape(str(value))


def _key_table(data: Mapping[str, Any]) -> str:
    rows = "".join(
        f'<tr class="head"><td colspan="2">{escape(key)}</td></tr>'
        if value is None
        else f"<tr><td>{escape(key)}</td><td>{value}</td></tr>"
        for key, value in key_rows(data)
    )
    return f'<div class="scroll"><table class="keys"><tbody>{rows}</tbody></table></div>'


def key_rows(data: Mapping[str, Any]) -> Iterator[tuple[str, str | None]]:
    """Plain entries first as (key, escaped text), then each nested mapping: (heading, None) and its flat entries."""
    nested = {k: v for k, v in data.items() if isinstance(v, Mapping) and v}
    yield from ((str(k), _value(v)) for k, v in data.items() if k not in nested)
    for key, value in nested.items():
        yield str(key), None
        yield from _flat(value, "")


def _flat(data: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    for key, value in data.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", _value(value)


def _value(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple) and not any(isinstance(v, Mapping | list | tuple) for v in value):
        return escape(", ".join(str(v) for v in value)) or words.MISSING
    if isinstance(value, Mapping | list | tuple):
        return escape(json.dumps(value, default=str, ensure_ascii=False)) if value else words.MISSING
    return _text(value)
