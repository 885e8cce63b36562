"""The same models on several devices, side by side: as a record, as a table, and as a figure."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape

import plotly.graph_objects as go

from autocompress.records import Latency, Trial
from autocompress.report import words
from autocompress.report.figures import base_layout
from autocompress.report.view import RunView

COLOURS = ("#2563eb", "#0d9488", "#d97706", "#a855f7", "#dc2626", "#64748b")

#: What stands behind a figure that was not measured.
MARKS = {"predicted": "predicted", "recorded": "from a table"}


@dataclass(frozen=True)
class Row:
    """One model.

    Attributes:
        index: of its trial in the view.
        what: in a few words.
        here: its latency where the search ran.
        there: on each other device, None where it was not timed.
    """

    index: int
    what: str
    here: Latency
    there: tuple[Latency | None, ...]


@dataclass(frozen=True)
class ElsewhereInfo:
    """Models of the front and references, fast to slow where the search ran; and the other devices' names."""

    devices: tuple[str, ...]
    rows: tuple[Row, ...]


def elsewhere_info(view: RunView) -> ElsewhereInfo:
    """What is known of other devices."""
    rows = []
    for index, trial in enumerate(view.trials):
        there = tuple(device.latencies.get(trial.fingerprint) for device in view.elsewhere)
        if trial.latency is not None and any(there):
            rows.append(Row(index, _name(view, trial), trial.latency, there))
    rows.sort(key=lambda row: row.here.ratio_best_dense)
    return ElsewhereInfo(tuple(device.name for device in view.elsewhere), tuple(rows))


def _name(view: RunView, trial: Trial) -> str:
    return words.what(view, trial) or trial.origin


def elsewhere_table(info: ElsewhereInfo) -> str:
    """The table as HTML."""
    head = "".join(f"<th class=num>{escape(name)}</th>" for name in ("where the search ran", *info.devices))
    body = "".join(
        f"<tr><td>{escape(row.what)}</td>{''.join(_cell(latency) for latency in (row.here, *row.there))}</tr>"
        for row in info.rows
    )
    return f"<table><thead><tr><th>model</th>{head}</tr></thead><tbody>{body}</tbody></table>"


def _cell(latency: Latency | None) -> str:
    if latency is None:
        return f"<td class=num>{words.MISSING}</td>"
    mark = f' <span class="badge dropped">{MARKS[latency.source]}</span>' if latency.source in MARKS else ""
    if latency.warnings:
        mark += f' <abbr title="{escape("; ".join(latency.warnings))}">⚠</abbr>'
    return (
        f"<td class=num>{words.milliseconds(latency.latency_s)}{mark}<br>"
        f'<span class="sub">{escape(words.speed_up_text(latency))}</span></td>'
    )


def draw_elsewhere(info: ElsewhereInfo) -> go.Figure:
    """Speed-up where the search ran against speed-up on each other device; on the dotted line they are equal."""
    figure = go.Figure(layout=base_layout(height=360))
    speeds = [words.speed_up(row.here.ratio_best_dense) for row in info.rows]
    for place, name in enumerate(info.devices):
        pairs = [(speed, row.there[place], row) for speed, row in zip(speeds, info.rows, strict=True)]
        shown = [(speed, latency, row) for speed, latency, row in pairs if latency is not None]
        predicted = any(latency.source != "measured" for _speed, latency, _row in shown)
        figure.add_trace(
            go.Scatter(
                x=[speed for speed, _latency, _row in shown],
                y=[words.speed_up(latency.ratio_best_dense) for _speed, latency, _row in shown],
                text=[escape(row.what) for _speed, _latency, row in shown],
                customdata=[row.index for _speed, _latency, row in shown],
                name=escape(name) + (" (not measured)" if predicted else ""),
                mode="markers",
                marker={
                    "size": 10,
                    "symbol": "circle-open" if predicted else "circle",
                    "color": COLOURS[place % len(COLOURS)],
                    "line": {"width": 2 if predicted else 0},
                },
                hovertemplate="%{text}<br>here %{x:.2f}×, there %{y:.2f}×<extra>%{fullData.name}</extra>",
            )
        )
    reach = [min([1.0, *speeds]), max([1.0, *speeds])]
    figure.add_trace(
        go.Scatter(
            x=reach, y=reach, mode="lines", name="equal", hoverinfo="skip", line={"dash": "dot", "color": "#94a3b8"}
        )
    )
    figure.update_xaxes(title="speed-up where the search ran", type="log", ticksuffix="×")
    figure.update_yaxes(title="speed-up there", type="log", ticksuffix="×")
    figure.update_layout(legend={"orientation": "h", "y": 1.12, "x": 0})
    return figure
