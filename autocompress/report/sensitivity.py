"""Which layers fewer bits hurt most: as a record and as a figure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from typing import Any

import plotly.graph_objects as go

from autocompress.report import words
from autocompress.report.figures import GRID, base_layout
from autocompress.report.view import RunView

#: Colours of the options, heavy to light.
COLOURS = ("#0d9488", "#2563eb", "#a855f7", "#d97706", "#dc2626", "#64748b")

#: Layers shown; of more, the most sensitive.
MOST_ROWS = 40

#: Errors below this are drawn here, in nats: on a logarithmic axis nothing has no place.
LEAST = 1e-7


@dataclass(frozen=True)
class Point:
    """One option of one layer.

    Attributes:
        layer: place of its row.
        kl: mean KL(dense ‖ dense with this option alone), nats.
        measured: whether it was, or was predicted.
        text: hover text, escaped.
    """

    layer: int
    kl: float
    measured: bool
    text: str


@dataclass(frozen=True)
class SensitivityInfo:
    """What rounding each layer by itself costs.

    Attributes:
        layers: names, the most sensitive first.
        left_out: how many less sensitive ones are not shown.
        options: name of an option, such as "int8" or "int8, 4 bits", to its points.
    """

    layers: tuple[str, ...]
    left_out: int
    options: Mapping[str, tuple[Point, ...]]


def sensitivity_info(view: RunView) -> SensitivityInfo:
    """The run's sensitivities by option, layers by their worst one."""
    worst: dict[str, float] = {}
    for row in view.sensitivities:
        worst[row["layer"]] = max(worst.get(row["layer"], 0.0), row["kl"])
    order = sorted(worst, key=lambda layer: -worst[layer])
    place = {layer: number for number, layer in enumerate(order[:MOST_ROWS])}
    options: dict[str, list[Point]] = {}
    for row in view.sensitivities:
        points = options.setdefault(_option(row), [])
        if row["layer"] in place:
            points.append(Point(place[row["layer"]], row["kl"], row["measured"], _text(row)))
    kept = {name: tuple(points) for name, points in options.items() if points}
    return SensitivityInfo(tuple(place), len(order) - len(place), kept)


def _option(row: Mapping[str, Any]) -> str:
    return str(row["precision"]) + (f", {row['weight_bits']} bits" if row["weight_bits"] else "")


def _text(row: Mapping[str, Any]) -> str:
    names = row["layers"] if row["layers"] != [row["layer"]] else []
    shared = f"{len(names)} layers: {', '.join(names[:3])}{', …' if len(names) > 3 else ''}" if names else ""
    lines = [
        f"<b>{escape(row['layer'])}</b>",
        escape(shared),
        f"{escape(_option(row))}: {row['kl']:.2g} nats" + ("" if row["measured"] else ", predicted"),
        f"alone it changes the model's latency by {_signed(row['cost_s'])}",
        f"and its weights by {'−' if row['size_bytes'] < 0 else '+'}{words.size(round(abs(row['size_bytes'])))}",
    ]
    return "<br>".join(line for line in lines if line)


def _signed(seconds: float) -> str:
    return f"{'−' if seconds < 0 else '+'}{words.milliseconds(abs(seconds))}"


def height(info: SensitivityInfo) -> int:
    """Pixels in which every row has room for its name."""
    return 110 + 19 * len(info.layers)


def draw_sensitivity(info: SensitivityInfo) -> go.Figure:
    """One row per layer, one dot per option, hollow where predicted; further right changes the predictions more."""
    figure = go.Figure(layout=base_layout(height=height(info)))
    for number, (name, points) in enumerate(info.options.items()):
        colour = COLOURS[number % len(COLOURS)]
        figure.add_trace(
            go.Scatter(
                x=[max(point.kl, LEAST) for point in points],
                y=[point.layer for point in points],
                text=[point.text for point in points],
                name=escape(name),
                mode="markers",
                marker={
                    "size": 9,
                    "opacity": 1,
                    "color": colour,
                    "symbol": ["circle" if point.measured else "circle-open" for point in points],
                    "line": {"width": [0 if point.measured else 1.8 for point in points], "color": colour},
                },
                hovertemplate="%{text}<extra></extra>",
            )
        )
    figure.update_xaxes(
        title="KL to dense with this layer alone rounded, nats",
        type="log",
        exponentformat="power",
        gridcolor=GRID,
        zeroline=False,
    )
    figure.update_yaxes(
        tickvals=list(range(len(info.layers))),
        ticktext=[escape(name) for name in info.layers],
        range=[len(info.layers) - 0.5, -0.5],
        automargin=True,
        fixedrange=True,
        zeroline=False,
        gridcolor=GRID,
    )
    figure.update_layout(
        hovermode="closest",
        margin={"l": 20, "r": 16, "t": 40, "b": 50},
        legend={"orientation": "h", "x": 0, "y": 1.0, "yanchor": "bottom"},
    )
    return figure
