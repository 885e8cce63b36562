"""What single choices lose, block by block: as a record and as a figure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import plotly.graph_objects as go
from plotly.colors import sample_colorscale

from autocompress.found import Loss
from autocompress.report import words
from autocompress.report.figures import base_layout, short_blocks
from autocompress.report.view import RunView

#: Kind of a choice to its words, in the order of columns; of another kind its name is taken.
KINDS: Mapping[str, str] = {
    "heads": "heads", "neurons": "neurons", "channels": "channels", "hidden": "width", "rank": "rank",
    "bits": "", "precision": "", "remove": "without",
}  # fmt: skip

#: Rows and columns shown; of more rows, those that lose most.
MOST_ROWS = 40

#: Losses below this are drawn as this, in nats: on a logarithmic scale nothing has no colour.
LEAST = 1e-6

#: Little to much.
COLOURS: list[list[Any]] = [[0, "#fef3d3"], [0.3, "#fcd07a"], [0.55, "#f79a4b"], [0.8, "#d9432f"], [1, "#7f1226"]]


@dataclass(frozen=True)
class Cell:
    """The largest loss of one choice in one row.

    Attributes:
        row, column: its place.
        kl: in nats.
        measured: whether it was, or was estimated.
        text: hover text, escaped.
    """

    row: int
    column: int
    kl: float
    measured: bool
    text: str


@dataclass(frozen=True)
class LossesInfo:
    """Rows (blocks, then layers outside them), columns (choices, light to heavy within a kind), and the cells."""

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    cells: tuple[Cell, ...]
    left_out: int


def losses_info(view: RunView) -> LossesInfo:
    """The run's losses of single choices; where a block has several of the same choice, the worst of them."""
    blocks = dict(zip(view.table.blocks, short_blocks(view.table), strict=True))
    grouped: dict[tuple[str, str], list[Loss]] = {}
    kinds: dict[str, dict[str, None]] = {}
    for loss in view.losses:
        grouped.setdefault((_row(loss, blocks), column_of(loss)), []).append(loss)
        kinds.setdefault(loss.kind, {})[column_of(loss)] = None
    order = [*(kind for kind in KINDS if kind in kinds), *(kind for kind in kinds if kind not in KINDS)]
    columns = tuple(column for kind in order for column in kinds[kind])
    worst: dict[str, float] = {}
    for (row, _column), alike in grouped.items():
        worst[row] = max(worst.get(row, 0.0), *(loss.kl for loss in alike))
    kept = set(sorted(worst, key=lambda row: -worst[row])[:MOST_ROWS])
    named = [f"block {short}" for short in blocks.values()]
    rows = [*(name for name in named if name in kept), *(row for row in worst if row in kept and row not in named)]
    cells = (
        _cell(rows.index(row), columns.index(column), row, column, alike)
        for (row, column), alike in grouped.items()
        if row in kept
    )
    return LossesInfo(tuple(rows), columns, tuple(cells), len(worst) - len(rows))


def _row(loss: Loss, blocks: Mapping[str, str]) -> str:
    home = next((block for block in blocks if loss.scope == block or loss.scope.startswith(f"{block}.")), None)
    return loss.scope if home is None else f"block {blocks[home]}"


def column_of(loss: Loss) -> str:
    """A choice in words, such as "heads 50 %", "int8" or "without block"."""
    level = loss.level.replace("_", "-")
    return f"{KINDS.get(loss.kind, loss.kind)} {level}".strip()


def _cell(row: int, column: int, name: str, words_: str, alike: list[Loss]) -> Cell:
    worst = max(alike, key=lambda loss: loss.kl)
    several = f"<br>worst of {len(alike)}: {escape(worst.scope)}" if len(alike) > 1 else ""
    how = "measured" if worst.measured else "estimated from its like"
    text = f"<b>{escape(name)}</b><br>{escape(words_)}: {worst.kl:.2g} nats, {how}{several}"
    return Cell(row, column, worst.kl, worst.measured, text)


def height(info: LossesInfo) -> int:
    """Pixels in which every row has room for its numbers."""
    return 150 + 26 * len(info.rows)


def draw_losses(info: LossesInfo) -> go.Figure:
    """Rows × choices; the colour is the logarithm of the loss, filled where measured and hollow where estimated."""
    figure = go.Figure(layout=base_layout(height=height(info)))
    logs = [_log(cell.kl) for cell in info.cells]
    low = math.floor(min(logs))
    high = max(math.ceil(max(logs)), low + 1)
    figure.add_trace(_filled(info, low, high))
    hollow = [cell for cell in info.cells if not cell.measured]
    for cell in hollow:
        (colour,) = sample_colorscale(COLOURS, [(_log(cell.kl) - low) / (high - low)])
        figure.add_shape(
            type="rect", x0=cell.column - 0.44, x1=cell.column + 0.44, y0=cell.row - 0.38, y1=cell.row + 0.38,
            line={"width": 2.5, "color": colour},
        )  # fmt: skip
    figure.add_trace(_numbers(hollow))
    figure.update_layout(hovermode="closest", margin={"l": 20, "r": 20, "t": 60, "b": 20}, showlegend=False)
    figure.update_xaxes(
        tickvals=list(range(len(info.columns))), ticktext=[escape(name) for name in info.columns], side="top",
        range=[-0.5, len(info.columns) - 0.5], tickangle=0 if len(info.columns) <= 12 else -45, **_STILL,
    )  # fmt: skip
    figure.update_yaxes(
        tickvals=list(range(len(info.rows))), ticktext=[escape(name) for name in info.rows],
        range=[len(info.rows) - 0.5, -0.5], **_STILL,
    )  # fmt: skip
    return figure


_STILL: dict[str, Any] = {"ticks": "", "showgrid": False, "zeroline": False, "fixedrange": True, "automargin": True}


def _log(kl: float) -> float:
    return math.log10(max(kl, LEAST))


def short(kl: float) -> str:
    """A loss in two digits that fits a cell, such as "0.12", "0.0034" or "5.1e−6"."""
    if kl >= 1e-3 or kl == 0:
        return words.number(kl, 2)
    figure, power = f"{kl:.1e}".split("e")
    return f"{figure}e−{abs(int(power))}"


def _filled(info: LossesInfo, low: int, high: int) -> go.Heatmap:
    grid: list[list[Any]] = [[None] * len(info.columns) for _row in info.rows]
    text, hover = ([[""] * len(info.columns) for _row in info.rows] for _ in range(2))
    for cell in info.cells:
        if cell.measured:
            grid[cell.row][cell.column] = _log(cell.kl)
            text[cell.row][cell.column] = short(cell.kl)
            hover[cell.row][cell.column] = cell.text
    powers = list(range(low, high + 1))
    return go.Heatmap(
        z=grid,
        x=list(range(len(info.columns))),
        y=list(range(len(info.rows))),
        zmin=low,
        zmax=high,
        colorscale=COLOURS,
        xgap=4,
        ygap=4,
        text=text,
        texttemplate="%{text}",
        textfont={"size": 11},
        hovertext=hover,
        hovertemplate="%{hovertext}<extra></extra>",
        hoverongaps=False,
        colorbar={
            "title": {"text": "KL, nats", "side": "right"}, "thickness": 10, "outlinewidth": 0, "tickvals": powers,
            "ticktext": [f"10<sup>{power}</sup>".replace("-", "−") for power in powers],
        },
    )  # fmt: skip


def _numbers(cells: Sequence[Cell]) -> go.Scatter:
    """What stands inside the hollow ones."""
    return go.Scatter(
        x=[cell.column for cell in cells],
        y=[cell.row for cell in cells],
        mode="text",
        text=[short(cell.kl) for cell in cells],
        textfont={"size": 11},
        hovertext=[cell.text for cell in cells],
        hovertemplate="%{hovertext}<extra></extra>",
    )
