"""What models take beside time: a figure of bytes against quality, for each further objective.

First an info record, then the drawing. Knows trials and plotly; knows no HTML page.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import plotly.graph_objects as go

from autocompress.objectives import Objective, amount
from autocompress.report import words
from autocompress.report.figures import LINE, axis_style, base_layout, front_info
from autocompress.report.view import RunView


@dataclass(frozen=True)
class TakenPoint:
    """One measured trial; `index` is its position in the view's trials, `speed` its speed-up to the fastest dense."""

    index: int
    megabytes: float
    quality: float
    speed: float
    on_front: bool
    hover: str


@dataclass(frozen=True)
class TakenInfo:
    """What one such figure shows.

    Attributes:
        name: of the objective.
        points: measured trials whose bytes are known, in the order of the trials.
        dense: megabytes and quality of the dense model; None where not known.
        metric, maximize, percent, validation: of the quality.
        y_range: shown qualities, as in the main figure.
    """

    name: Objective
    points: tuple[TakenPoint, ...]
    dense: tuple[float, float] | None
    metric: str
    maximize: bool
    percent: bool
    validation: str
    y_range: tuple[float, float]


def taken_info(view: RunView, name: Objective) -> TakenInfo:
    """The measured trials as points of (megabytes, validation quality)."""
    whole, found, dense = front_info(view), [], None
    front = {whole.points[place].index for place in whole.front}
    for point in whole.points:
        taken = amount(view.trials[point.index], name)
        if taken is None:
            continue
        speed = words.speed_up(point.ratio)
        found.append(TakenPoint(point.index, taken / 1e6, point.quality, speed, point.index in front, point.hover))
        if point.kind == "dense":
            dense = (taken / 1e6, point.quality)
    return TakenInfo(
        name, tuple(found), dense, view.metric, view.maximize, whole.percent, whole.validation, whole.y_range
    )


def draw_taken(info: TakenInfo) -> go.Figure:
    """The scatter: the front coloured by speed-up, all others in grey; dotted lines through the dense model."""
    figure = go.Figure(layout=base_layout(height=380))
    rest = [point for point in info.points if not point.on_front]
    front = [point for point in info.points if point.on_front]
    bar = {"title": {"text": "speed-up", "side": "right"}, "ticksuffix": "×", "thickness": 12}
    figure.add_trace(_markers(info, rest, "evaluated", {"size": 7, "color": "#94a3b8", "opacity": 0.7}))
    shades = {"size": 11, "color": [point.speed for point in front], "colorscale": "Viridis", "colorbar": bar}
    figure.add_trace(_markers(info, front, "on the front", shades))
    scale = 100.0 if info.percent else 1.0
    figure.update_xaxes(type="log", title=f"{words.TAKEN[info.name]}, MB", **axis_style())
    better = "" if info.maximize else " (lower is better)"
    figure.update_yaxes(
        range=[quality * scale for quality in info.y_range],
        ticksuffix=" %" if info.percent else "",
        title=f"{escape(info.metric)}, {info.validation}{better}",
        **axis_style(),
    )
    if info.dense:
        figure.add_vline(x=info.dense[0], line={"color": LINE, "width": 1, "dash": "dot"})
        figure.add_hline(y=info.dense[1] * scale, line={"color": LINE, "width": 1, "dash": "dot"})
    figure.update_layout(hovermode="closest", legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"})
    return figure


def taken_words(info: TakenInfo) -> tuple[str, str, str]:
    """Title, HTML and caption of the figure's section."""
    what = words.TAKEN[info.name]
    title = f"{what.capitalize()} and quality"
    if not info.points:
        return title, f'<p class="empty">No candidate\'s {what} is known.</p>', ""
    under = (
        "Further left takes less; coloured points are the front, by their speed-up. Dotted lines are the dense model. "
        "Click a point to see what it is."
    )
    return title, f'<div id="{info.name}" class="figure" style="height:380px"></div>', under


def _markers(info: TakenInfo, points: Sequence[TakenPoint], name: str, marker: dict[str, Any]) -> go.Scatter:
    scale = 100.0 if info.percent else 1.0
    return go.Scatter(
        x=[point.megabytes for point in points],
        y=[point.quality * scale for point in points],
        customdata=[point.index for point in points],
        hovertext=[point.hover for point in points],
        hovertemplate="%{hovertext}<extra></extra>",
        mode="markers",
        name=name,
        marker=marker,
    )
