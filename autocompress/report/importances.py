"""What decides of a recovery's quality, or of a joint study's outcomes: as a record and as a figure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from html import escape

import plotly.graph_objects as go

from autocompress.found import Found, Importances
from autocompress.report.figures import GRID, base_layout, faded

#: Outcome to its words and its colour.
OUTCOMES: Mapping[str, tuple[str, str]] = {
    "recovery": ("quality after recovery", "#2563eb"),
    "quality": ("quality", "#2563eb"),
    "latency": ("latency", "#d97706"),
}

#: Words of a variable or group, where its name says too little.
NAMES: Mapping[str, str] = {"soft_weight": "λ, weight of the teacher", "temperature": "temperature T"}


@dataclass(frozen=True)
class Bar:
    """Share of one variable or group in one outcome, in %, with the most that chance gave; `shown` is above it."""

    name: str
    share: float
    chance: float
    shown: bool


@dataclass(frozen=True)
class ImportancesInfo:
    """What decides.

    Attributes:
        outcomes: words of an outcome to its bars, the largest first; those that are not told are left out.
        names: of all bars, in the order of the first outcome.
        colours: of the outcomes.
        notes: sentences on what is told, or why it is not.
    """

    outcomes: Mapping[str, tuple[Bar, ...]]
    names: tuple[str, ...]
    colours: tuple[str, ...]
    notes: tuple[str, ...]


def importances_info(found: Found) -> ImportancesInfo:
    """What a search found of what decides; outcomes of which too little is known become a note."""
    outcomes: dict[str, tuple[Bar, ...]] = {}
    colours = []
    for one in found.importances:
        words, colour = OUTCOMES[one.of]
        if one.shares:
            outcomes[words] = tuple(Bar(name_of(s.name), 100 * s.share, 100 * s.chance, s.shown) for s in one.shares)
            colours.append(colour)
    names = dict.fromkeys(bar.name for bars in outcomes.values() for bar in bars)
    return ImportancesInfo(outcomes, tuple(names), tuple(colours), tuple(_notes(found)))


def name_of(name: str) -> str:
    """A variable or group in words."""
    return NAMES.get(name, name.replace("_", " "))


def _notes(found: Found) -> Iterator[str]:
    for one in found.importances:
        words = OUTCOMES[one.of][0]
        told = "recoveries of structures that were recovered at least twice" if one.of == "recovery" else "trials"
        if one.count < one.least:
            yield f"Which settings matter for the {words} is not told below {one.least} {told}: there are {one.count}."
        elif not one.shares:
            yield f"Which settings matter for the {words} cannot be told: one alone, or all {one.count} {told} alike."
        else:
            yield f"{_decisive(one)} for the {words} ({one.count} {told})."


def _decisive(one: Importances) -> str:
    """Which of them are shown to matter, such as "Learning rate and steps matter"."""
    sure = [name_of(share.name) for share in one.shares if share.shown]
    if not sure:
        return "Nothing is shown to matter"
    listed = " and ".join([*([", ".join(sure[:-1])] if sure[:-1] else []), sure[-1]])
    return f"{listed[0].upper()}{listed[1:]} {'matter' if len(sure) > 1 else 'matters'}"


def height(info: ImportancesInfo) -> int:
    """Pixels in which every bar has room."""
    return 110 + 34 * len(info.names) * max(1, len(info.outcomes))


def draw_importances(info: ImportancesInfo) -> go.Figure:
    """A bar per variable, pale where chance gives as much; a stroke marks the most that chance gave."""
    figure = go.Figure(layout=base_layout(height=height(info)))
    for (words, bars), colour in zip(info.outcomes.items(), info.colours, strict=True):
        figure.add_trace(
            go.Bar(
                x=[bar.share for bar in bars],
                y=[escape(bar.name) for bar in bars],
                orientation="h",
                name=f"explains of the {words}",
                offsetgroup=words,
                text=[f"{bar.share:.0f} %" for bar in bars],
                textposition="outside",
                cliponaxis=False,
                marker={
                    "color": [colour if bar.shown else faded(colour, 0.25) for bar in bars],
                    "line": {"color": colour, "width": 1},
                },
                hovertemplate="%{y}: %{x:.0f} %<extra>" + words + "</extra>",
            )
        )
    _add_chance(figure, info)
    figure.update_xaxes(
        title="variance explained by it alone", ticksuffix=" %", gridcolor=GRID, zeroline=False,
        range=[0, max([20.0, *(1.18 * max(b.share, b.chance) for bars in info.outcomes.values() for b in bars)])],
    )  # fmt: skip
    figure.update_yaxes(
        categoryorder="array", categoryarray=[escape(n) for n in reversed(info.names)], automargin=True, fixedrange=True
    )
    figure.update_layout(
        barmode="group",
        scattermode="group",
        bargap=0.35,
        margin={"l": 20, "r": 30, "t": 30, "b": 50},
        legend={"orientation": "h", "x": 0, "y": 1.0, "yanchor": "bottom"},
        showlegend=True,
    )
    return figure


def _add_chance(figure: go.Figure, info: ImportancesInfo) -> None:
    for place, (words, bars) in enumerate(info.outcomes.items()):
        figure.add_trace(
            go.Scatter(
                x=[bar.chance for bar in bars],
                y=[escape(bar.name) for bar in bars],
                mode="markers",
                orientation="h",
                offsetgroup=words,
                name="the most that chance gave",
                showlegend=place == 0,
                marker={"symbol": "line-ns", "size": 22, "opacity": 1, "line": {"width": 2.5, "color": "#dc2626"}},
                hovertemplate="%{y}: chance gave up to %{x:.0f} %<extra></extra>",
            )
        )
