"""How well each rung of recovery foretold the next one: as a record and as a figure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape
from typing import Any

import plotly.graph_objects as go

from autocompress.found import TRUSTED
from autocompress.report import words
from autocompress.report.figures import GRID, LINE, base_layout
from autocompress.report.view import RunView

#: Of the bins of latency, fast to slow.
COLOURS = ("#dc2626", "#d97706", "#2563eb", "#0d9488")


@dataclass(frozen=True)
class Bin:
    """Candidates of one bin of latency: qualities as they are shown, and how they are ranked alike.

    Attributes:
        label: such as "2.1× to 3.4×: ρ 0.85, 5 structures".
        below, above: qualities on the two rungs.
        trusted: whether the lower rung's ranking is.
    """

    label: str
    below: tuple[float, ...]
    above: tuple[float, ...]
    trusted: bool


@dataclass(frozen=True)
class Pair:
    """Two neighbouring rungs in words, such as "rung 1 (100 steps)", and their bins, fast to slow."""

    lower: str
    upper: str
    bins: tuple[Bin, ...]


@dataclass(frozen=True)
class AuditsInfo:
    """All pairs of rungs, with the metric and whether it is shown in %."""

    pairs: tuple[Pair, ...]
    metric: str
    percent: bool


def audits_info(view: RunView) -> AuditsInfo:
    """The run's audits by pairs of rungs."""
    scale = 100.0 if view.percent else 1.0
    pairs: dict[tuple[int, int], list[Bin]] = {}
    for audit in view.found.audits:
        speeds = sorted(words.number(words.speed_up(ratio)) + "×" for ratio in (audit.low, audit.high))
        figure = "all alike" if math.isnan(audit.correlation) else f"ρ {audit.correlation:.2f}".replace("-", "−")
        label = f"{' to '.join(speeds)}: {figure}, {audit.count} structures" + (
            "" if audit.trusted else ", not trusted"
        )
        below, above = (tuple(scale * value for value in side) for side in (audit.below, audit.above))
        pairs.setdefault((audit.lower, audit.upper), []).append(Bin(label, below, above, audit.trusted))
    made = (Pair(_rung(view, low), _rung(view, high), tuple(bins)) for (low, high), bins in pairs.items())
    return AuditsInfo(tuple(made), view.metric, view.percent)


def _rung(view: RunView, rung: int) -> str:
    steps = {t.plan.distill.steps for t in view.trials if t.rung == rung and t.plan.distill}
    counts = ", ".join(f"{count:,}" for count in sorted(steps))
    return f"rung {rung} ({counts} steps)" if counts else f"rung {rung}" if rung else "rung 0 (no recovery)"


def sentence(view: RunView) -> str:
    """What the audits mean for promotion."""
    said = []
    first = [audit for audit in view.found.audits if audit.lower == 0]
    later = [audit for audit in view.found.audits if audit.lower > 0]
    if first:
        told = sum(audit.trusted for audit in first)
        said.append(
            f"The quality before recovery ranks structures as the one after it in {told} of {len(first)} bins of "
            "latency. What is recovered first is chosen by the divergence of its predictions, not by that quality."
        )
    if later:
        told = sum(audit.trusted for audit in later)
        said.append(
            f"Between recoveries of few and of more steps, the ranking holds in {told} of {len(later)} bins: there a "
            "third goes on to the next rung, and in the others up to twice as many."
        )
    return " ".join(said)


def draw_audits(info: AuditsInfo) -> go.Figure:
    """One plot per pair of rungs: quality on the lower against the upper one, one colour per bin of latency."""
    figure = go.Figure(layout=base_layout(height=420))
    count, gap = len(info.pairs), 0.12
    width = (1 - gap * (count - 1)) / count
    for place, pair in enumerate(info.pairs):
        number, begin = str(place + 1) if place else "", place * (width + gap)
        ends = [value for one in pair.bins for value in (*one.below, *one.above)]
        _add_line(figure, min(ends), max(ends), number)
        for colour, one in zip(COLOURS, pair.bins, strict=False):
            figure.add_trace(_points(one, colour, number, f"legend{number}"))
        suffix = " %" if info.percent else ""
        shared: dict[str, Any] = {"gridcolor": GRID, "zeroline": False, "ticksuffix": suffix, "linecolor": LINE}
        figure.update_layout(
            {
                f"xaxis{number}": {
                    **shared, "domain": [begin, begin + width], "anchor": f"y{number}", "nticks": 7,
                    "title": {"text": f"{escape(info.metric)} on {pair.lower}", "standoff": 12},
                },
                f"yaxis{number}": {
                    **shared, "anchor": f"x{number}", "automargin": True,
                    "title": {"text": f"on {pair.upper}", "standoff": 14},
                },
                f"legend{number}": {"x": begin, "y": 1.02, "yanchor": "bottom", "xanchor": "left"},
            }
        )  # fmt: skip
    figure.update_layout(hovermode="closest", margin={"l": 64, "r": 16, "t": 86, "b": 56})
    return figure


def _add_line(figure: go.Figure, low: float, high: float, number: str) -> None:
    """Where both rungs give the same."""
    figure.add_trace(
        go.Scatter(
            x=[low, high], y=[low, high], mode="lines", line={"color": LINE, "width": 1, "dash": "dot"},
            showlegend=False, hoverinfo="skip", xaxis=f"x{number}", yaxis=f"y{number}",
        )
    )  # fmt: skip


def _points(one: Bin, colour: str, number: str, legend: str) -> go.Scatter:
    symbol = "circle" if one.trusted else "circle-open"
    return go.Scatter(
        x=list(one.below),
        y=list(one.above),
        name=one.label,
        mode="markers",
        marker={"size": 9, "opacity": 1, "color": colour, "symbol": symbol, "line": {"width": 0 if one.trusted else 2}},
        xaxis=f"x{number}",
        yaxis=f"y{number}",
        legend=legend,
        hovertemplate="%{x:.4g} → %{y:.4g}<extra></extra>",
    )


#: What the figure's legend leaves open.
LEGEND = (
    f"ρ: Spearman's rank correlation within a bin of speed-ups; trusted from {TRUSTED:g} on, hollow below. Above the "
    "dotted line, the upper rung is better."
)
