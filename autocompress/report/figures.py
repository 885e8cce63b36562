"""The four figures of a report: for each, compute an info record, then draw it.

Knows trials and plotly; knows no HTML page.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from typing import Any

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from autocompress import pareto
from autocompress.layers import Layer, LayerTable
from autocompress.objectives import Objective, amount
from autocompress.plan import EffectiveLayer, effective_layers
from autocompress.records import Trial
from autocompress.report import words
from autocompress.report.view import RunView

GRID = "rgba(128,138,155,0.18)"
LINE = "rgba(128,138,155,0.65)"
FONT = "Inter, system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif"

#: Kind of a point to its legend entry, marker symbol, colour and size, in drawing order.
KINDS: dict[str, tuple[str, str, str, int]] = {
    "over budget": ("over budget", "circle-open", "#d97706", 8),
    "candidate": ("evaluated", "circle", "#94a3b8", 8),
    "uniform": ("uniform levels", "triangle-up", "#a855f7", 12),
    "uniform-int8": ("uniform int8", "square", "#0d9488", 11),
    "dense": ("dense", "diamond", "#dc2626", 13),
}
FRONT_COLOUR = "#2563eb"

#: With a third objective, diameters of markers that take next to nothing of it, and as much as dense; in pixels.
SMALL, LARGE = 5.0, 16.0

#: Shares of dense that the legend shows markers of.
SHARES = (0.1, 0.25, 0.5, 1.0)


@dataclass(frozen=True)
class FrontPoint:
    """One measured trial; `index` is its position in the view's trials, `kind` a key of `KINDS`.

    `tied` says that it is on the front without being shown better than its faster neighbour; `share` is what it takes
    of the third objective, as a share of dense.
    """

    index: int
    kind: str
    ratio: float
    ratio_low: float
    ratio_high: float
    quality: float
    stderr: float | None
    hover: str
    tied: bool = False
    share: float | None = None

    @property
    def diameter(self) -> float:
        """Of its marker, whose area grows with the share."""
        share = min(self.share or 0.0, 1.25)
        return math.sqrt(SMALL**2 + (LARGE**2 - SMALL**2) * share)


@dataclass(frozen=True)
class FrontInfo:
    """What the Pareto figure shows.

    Attributes:
        points: measured trials, in the order of the trials.
        front: positions in `points`, fast to slow.
        x_range: shown latency ratios.
        y_range: shown qualities, low to high; catastrophic ones lie outside.
        hidden: number of points outside the shown window.
        source: of the latencies; "measured", "recorded" or "predicted".
        validation: what the qualities are of.
        sized: the third objective, which the markers' areas show; None where there is none.
    """

    points: tuple[FrontPoint, ...]
    front: tuple[int, ...]
    metric: str
    maximize: bool
    percent: bool
    quality_dense: float
    x_range: tuple[float, float]
    y_range: tuple[float, float]
    hidden: int
    source: str = "measured"
    validation: str = "validation"
    sized: Objective | None = None

    @property
    def steps(self) -> tuple[int, ...]:
        """Of `front`, those that no other beats in latency and quality alone."""
        found: list[int] = []
        for place in self.front:
            quality = self.points[place].quality
            if not found or (quality > self.points[found[-1]].quality) == self.maximize:
                found.append(place)
        return tuple(found)


def front_info(view: RunView) -> FrontInfo:
    """The measured trials as points of (latency ratio to the fastest dense fp32, validation quality)."""
    points = tuple(_front_point(view, i, t) for i, t in enumerate(view.trials) if _plotted(view, t))
    place = {point.index: position for position, point in enumerate(points)}
    front = tuple(place[i] for i in words.front_indices(view) if i in place)
    percent = view.percent
    corner = view.objectives.reference(view.quality_dense, view.maximize)[view.objectives.names.index("quality")]
    y_range = _quality_range(points, view.quality_dense, corner, view.maximize, percent)
    shown = [p for p in points if y_range[0] <= p.quality <= y_range[1]]
    return FrontInfo(
        points,
        front,
        view.metric,
        view.maximize,
        percent,
        view.quality_dense,
        _ratio_range(shown),
        y_range,
        len(points) - len(shown),
        words.source(view),
        words.validation(view),
        next(iter(view.objectives.more), None),
    )


def _plotted(view: RunView, trial: Trial) -> bool:
    if trial.latency is None or trial.state not in ("DONE", "INFEASIBLE"):
        return False
    return words.known(view.quality_of(trial)) and words.known(trial.latency.ratio_best_dense)


def _front_point(view: RunView, index: int, trial: Trial) -> FrontPoint:
    latency, quality = trial.latency, view.quality_of(trial)
    assert latency is not None
    assert quality is not None
    kind = "over budget" if trial.state == "INFEASIBLE" else "candidate"
    return FrontPoint(
        index,
        trial.origin if trial.origin in KINDS else kind,
        latency.ratio_best_dense,
        latency.ratio_best_dense_low,
        latency.ratio_best_dense_high,
        quality,
        trial.stderr_on(view.part),
        point_hover(view, trial),
        bool(words.tied_with(view, trial)),
        _share(view, trial),
    )


def _share(view: RunView, trial: Trial) -> float | None:
    """What a trial takes of the third objective, as a share of dense; None where there is none, or it is not known."""
    for name in view.objectives.more[:1]:
        taken, dense = amount(trial, name), amount(view.dense, name) if view.dense else None
        return taken / dense if taken is not None and dense else None
    return None


def point_hover(view: RunView, trial: Trial) -> str:
    """Hover text of a measured trial, escaped for plotly's pseudo-HTML."""
    latency = trial.latency
    assert latency is not None
    low, high = latency.ratio_best_dense_low, latency.ratio_best_dense_high
    lines = textwrap.wrap(words.what(view, trial), 56) or [words.MISSING]
    head = "<br>".join(f"<b>{escape(line)}</b>" for line in lines)
    rows = [
        f"{words.milliseconds(latency.latency_s)} · {words.speed_up_text(latency)} the fastest dense fp32",
        f"ratio {words.number(latency.ratio_best_dense)} ({words.doubt(latency, low, high)})",
        f"{words.validation(view)} {words.quality(view, view.quality_of(trial), trial.stderr_on(view.part))}"
        f" ({words.change(view, view.quality_of(trial), view.quality_dense)})",
    ]
    if tied := words.tied_with(view, trial):
        rows.append(f"tied with candidate {tied}, which is faster")
    if words.known(trial.quality_test):
        test = words.change(view, trial.quality_test, view.quality_dense_test)
        graded = words.quality(view, trial.quality_test, trial.quality_test_stderr)
        rows.append(f"test {graded}" + (f" ({test})" if test != words.MISSING else ""))
    if trial.artifact:
        rows.append(words.size(trial.artifact.size_bytes))
    return "<br>".join([head, *(escape(row) for row in rows), f"<i>{trial.fingerprint}</i>"])


def _quality_range(
    points: Sequence[FrontPoint], dense: float, corner: float, maximize: bool, percent: bool
) -> tuple[float, float]:
    """From the best point to the worst that is better than the hypervolume's corner; dense always inside."""
    fair = [p for p in points if (p.quality >= corner) == maximize or p.quality == corner] or list(points)
    ends = [dense]
    for point in fair:
        ends += [point.quality - (point.stderr or 0.0), point.quality + (point.stderr or 0.0)]
    pad = 0.07 * (max(ends) - min(ends)) or (0.005 if percent else 0.01 * abs(dense) or 1.0)
    return min(ends) - pad, max(ends) + pad


def _ratio_range(points: Iterable[FrontPoint]) -> tuple[float, float]:
    """Shown ratios with a margin, 1 (dense) always inside."""
    ends = [1.0]
    for point in points:
        ends += [r for r in (point.ratio, point.ratio_low, point.ratio_high) if words.known(r) and r > 0]
    margin = max((max(ends) / min(ends)) ** 0.06, 1.06)
    return min(ends) / margin, max(ends) * margin


def ratio_ticks(low: float, high: float, most: int = 9) -> tuple[tuple[float, str], ...]:
    """Round speed-ups inside a range of ratios, as (ratio, label such as ``0.25<br>4×``)."""
    steps = (1, 1.25, 1.5, 2, 2.5, 3, 4, 5, 6, 8)
    speeds = sorted(s * 10**e for e in range(-2, 4) for s in steps)
    ratios = sorted((1 / s for s in speeds if low <= 1 / s <= high), key=lambda r: abs(math.log(r)))
    gap = math.log(high / low) / most
    chosen: list[float] = []
    for ratio in ratios:
        if all(abs(math.log(ratio / other)) >= gap * 0.999 for other in chosen):
            chosen.append(ratio)
    return tuple((r, f"{float(f'{r:.3g}'):g}<br>{float(f'{1 / r:.3g}'):g}×") for r in sorted(chosen))


def draw_front(info: FrontInfo) -> go.Figure:
    """The Pareto scatter; each point carries its trial's index as customdata."""
    figure = go.Figure(layout=base_layout(height=600))
    for kind in KINDS:
        chosen = [p for i, p in enumerate(info.points) if p.kind == kind and not _plain_front(info, i)]
        if chosen:
            figure.add_trace(_markers(kind, chosen, info.percent, info.sized is not None))
    if info.front:
        figure.add_trace(_front_line(info))
    if info.sized is not None:
        _show_shares(figure, info, info.sized)
    figure.add_trace(
        go.Scatter(
            x=[],
            y=[],
            mode="markers",
            name="selected",
            meta="selected",
            showlegend=False,
            hoverinfo="skip",
            marker={"symbol": "circle-open", "size": 21, "color": "#db2777", "line": {"width": 2.5}},
        )
    )
    _front_axes(figure, info)
    return figure


def _plain_front(info: FrontInfo, position: int) -> bool:
    return position in info.front and info.points[position].kind in ("candidate", "over budget")


def _markers(kind: str, points: Sequence[FrontPoint], percent: bool, sized: bool) -> go.Scatter:
    name, symbol, colour, size = KINDS[kind]
    symbols = [f"{symbol}-open" if p.tied else symbol for p in points]
    sizes = [p.diameter for p in points] if sized else size
    marker: dict[str, Any] = {"symbol": symbols, "color": colour, "size": sizes, "opacity": 1}
    marker["line"] = {"width": [1.5 if "open" in one else 0 for one in symbols]}
    return go.Scatter(name=name, mode="markers", marker=marker, **_coordinates(points, percent, colour))


def _front_line(info: FrontInfo) -> go.Scatter:
    steps = info.steps if info.sized else info.front
    points = [info.points[i] for i in steps]
    sizes = [(info.points[i].diameter if info.sized else 11) if _plain_front(info, i) else 0 for i in steps]
    return go.Scatter(
        name="Pareto front",
        mode="lines+markers",
        line={"shape": "hv", "color": FRONT_COLOUR, "width": 2},
        marker={
            "color": FRONT_COLOUR,
            "size": sizes,
            "opacity": 1,
            "symbol": ["circle-open" if p.tied else "circle" for p in points],
            "line": {"width": [2 if p.tied else 0 for p in points]},
        },
        **_coordinates(points, info.percent, FRONT_COLOUR),
    )


def _show_shares(figure: go.Figure, info: FrontInfo, sized: Objective) -> None:
    """What is on the front by the third objective alone, and a legend of what areas mean."""
    points = [info.points[i] for i in info.front if i not in info.steps and _plain_front(info, i)]
    if points:
        marker = {"color": "#38bdf8", "opacity": 1, "size": [p.diameter for p in points]}
        name = f"on the front by its {words.TAKEN[sized]}"
        figure.add_trace(
            go.Scatter(name=name, mode="markers", marker=marker, **_coordinates(points, info.percent, "#38bdf8"))
        )
    for share in SHARES:
        size = FrontPoint(-1, "", 0, 0, 0, 0, None, "", share=share).diameter
        marker = {"color": LINE, "size": size}
        name = f"{share:.0%}".replace("%", " %")
        figure.add_trace(
            go.Scatter(x=[None], y=[None], mode="markers", marker=marker, name=name, legend="legend2", hoverinfo="skip")
        )
    title = {"text": f"{words.TAKEN[sized]}, share of dense"}
    place = {"orientation": "h", "x": 1, "xanchor": "right", "y": 0.01, "yanchor": "bottom", "title": title}
    figure.update_layout(legend2={**place, "itemclick": False, "itemdoubleclick": False})


def _coordinates(points: Sequence[FrontPoint], percent: bool, colour: str) -> dict[str, Any]:
    scale = 100.0 if percent else 1.0
    bar = {"color": faded(colour, 0.5 if len(points) <= 40 else 0.2), "thickness": 1.2, "width": 3}
    result: dict[str, Any] = {
        "x": [p.ratio for p in points],
        "y": [p.quality * scale for p in points],
        "customdata": [p.index for p in points],
        "hovertext": [p.hover for p in points],
        "hovertemplate": "%{hovertext}<extra></extra>",
        "error_x": {
            "array": [max(0.0, p.ratio_high - p.ratio) if words.known(p.ratio_high) else 0.0 for p in points],
            "arrayminus": [max(0.0, p.ratio - p.ratio_low) if words.known(p.ratio_low) else 0.0 for p in points],
            **bar,
        },
    }
    if any(p.stderr for p in points):
        result["error_y"] = {"array": [(p.stderr or 0.0) * scale for p in points], **bar}
    return result


def faded(colour: str, alpha: float = 0.5) -> str:
    """A ``#rrggbb`` colour as half transparent ``rgba(...)``."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{alpha})"


def _front_axes(figure: go.Figure, info: FrontInfo) -> None:
    scale = 100.0 if info.percent else 1.0
    ticks = ratio_ticks(*info.x_range)
    better = "" if info.maximize else " (lower is better)"
    figure.update_xaxes(
        type="log",
        range=[math.log10(r) for r in info.x_range],
        tickvals=[t[0] for t in ticks],
        ticktext=[t[1] for t in ticks],
        title="latency ratio to the fastest dense fp32" + ("" if info.source == "measured" else f" ({info.source})"),
        **axis_style(),
    )
    figure.update_yaxes(
        range=[q * scale for q in info.y_range],
        ticksuffix=" %" if info.percent else "",
        title=f"{escape(info.metric)}, {info.validation}{better}",
        **axis_style(),
    )
    figure.add_vline(x=1.0, line={"color": LINE, "width": 1, "dash": "dot"})
    figure.add_hline(y=info.quality_dense * scale, line={"color": LINE, "width": 1, "dash": "dot"})
    figure.update_layout(hovermode="closest", legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"})


@dataclass(frozen=True)
class LayerCell:
    """What is left of one layer.

    Attributes:
        kept: weights left by structure removal, in %.
        bits: of each weight.
        rank: in % of the full rank.
        removed: the layer is gone with its block; the three numbers then mean nothing.
        text: hover text, escaped.
    """

    kept: float
    bits: int
    rank: float
    removed: bool
    text: str


@dataclass(frozen=True)
class LayersInfo:
    """The layers of one candidate: short labels, positions where a new block starts, one cell per layer."""

    labels: tuple[str, ...]
    breaks: tuple[int, ...]
    cells: tuple[LayerCell, ...]


def layers_info(view: RunView, index: int) -> LayersInfo:
    """What the plan of `view.trials[index]` leaves of each layer, in the table's order."""
    left = effective_layers(view.trials[index].plan, view.table)
    breaks = (i for i, (a, b) in enumerate(pairwise(view.table.layers), start=1) if a.block != b.block)
    return LayersInfo(short_labels(view.table), tuple(breaks), tuple(_cell(e) for e in left))


def short_labels(table: LayerTable) -> tuple[str, ...]:
    """Layer names that fit an axis: block index and the shortest ending that is unique in the block."""
    blocks = sorted({la.block for la in table.layers if la.block})
    prefix = _common_prefix([b.split(".") for b in blocks])
    inside: dict[str, list[str]] = {}
    for layer in table.layers:
        inside.setdefault(layer.block, []).append(_local_name(layer))
    labels = []
    for layer in table.layers:
        ending = _unique_ending(_local_name(layer), inside[layer.block])
        block = ".".join(layer.block.split(".")[prefix:])
        labels.append(f"{block} · {ending}" if layer.block else ending)
    return tuple(labels)


def short_blocks(table: LayerTable) -> tuple[str, ...]:
    """Names of the blocks without what all of them begin with."""
    parts = [block.split(".") for block in table.blocks]
    prefix = _common_prefix(parts)
    return tuple(".".join(names[prefix:]) for names in parts)


def _local_name(layer: Layer) -> str:
    return layer.name.removeprefix(f"{layer.block}.")


def _common_prefix(names: Sequence[Sequence[str]]) -> int:
    if len(names) < 2:
        return max(0, len(names[0]) - 1) if names else 0
    count = 0
    for parts in zip(*names, strict=False):
        if len(set(parts)) > 1:
            break
        count += 1
    return min(count, min(len(n) for n in names) - 1)


def _unique_ending(name: str, names: Sequence[str]) -> str:
    """Shortest dotted ending of `name` that no other of `names` shares; never a bare index."""
    parts = name.split(".")
    for count in range(1, len(parts)):
        ending = ".".join(parts[-count:])
        if not parts[-count].isdigit() and sum(f".{n}".endswith(f".{ending}") for n in names) == 1:
            return ending
    return name


def _cell(left: EffectiveLayer) -> LayerCell:
    full = max(1, min(left.shape[0], math.prod(left.shape[1:])))
    rank = 100.0 * min(1.0, left.rank / full) if left.rank is not None else 100.0
    return LayerCell(
        100.0 * left.kept_fraction, left.quantize.bits if left.quantize else 32, rank, left.removed, _cell_text(left)
    )


def _cell_text(left: EffectiveLayer) -> str:
    def shape(sizes: Sequence[int]) -> str:
        return " × ".join(str(s) for s in sizes)

    before = shape(left.layer.weight_shape)
    if left.removed:
        return f"<b>{escape(left.layer.name)}</b><br>removed with its part<br>was {before}"
    after = f" → {shape(left.shape)}" if left.shape != left.layer.weight_shape else ""
    lines = [f"{left.layer.kind} {before}{after}"]
    lines.append(f"rank {left.rank}" if left.rank is not None else "full rank")
    lines.append(left.precision)
    lines.append(f"{left.weights:,} of {math.prod(left.layer.weight_shape):,} weights")
    return "<br>".join([f"<b>{escape(left.layer.name)}</b>", *lines])


#: Band title, cell attribute, top of the colour range, colours from strongly compressed to dense.
BANDS: tuple[tuple[str, str, float, list[list[Any]]], ...] = (
    ("kept %", "kept", 100.0, [[0, "#1e3a8a"], [0.5, "#5b93f5"], [1, "#dfe9f8"]]),
    ("bits", "bits", 32.0, [[0, "#134e4a"], [0.125, "#0f766e"], [0.25, "#4fc3b5"], [0.5, "#9fdcd4"], [1, "#dcefec"]]),
    ("rank %", "rank", 100.0, [[0, "#4c1d95"], [0.5, "#a78bfa"], [1, "#e9e4f7"]]),
)

#: More layers than this leave no room for numbers in the cells.
MOST_NUMBERED = 44


def draw_layers(info: LayersInfo) -> go.Figure:
    """Three stacked heat maps, one column per layer; a removed layer is an empty column with a cross."""
    figure = go.Figure(layout=base_layout(height=400))
    gone = [i for i, cell in enumerate(info.cells) if cell.removed]
    for band, (title, key, top, colours) in enumerate(BANDS):
        axis = f"y{band + 1 if band else ''}"
        figure.add_trace(_heat(info, key, top, colours).update(yaxis=axis))
        cross = {"symbol": "x-thin", "size": 9, "line": {"width": 1.6, "color": "#e11d48"}}
        crosses = go.Scatter(x=gone, y=[0] * len(gone), mode="markers", marker=cross, yaxis=axis, meta="removed")
        figure.add_trace(crosses.update(hoverinfo="skip", showlegend=False))
        ends = [1 - band * 0.345 - 0.31, 1 - band * 0.345]
        row = {"domain": ends, "tickvals": [0], "ticktext": [title], "range": [-0.5, 0.5], "ticks": ""}
        figure.update_layout({axis.replace("y", "yaxis"): {**row, **_STILL}})
    _layer_axis(figure, info)
    return figure


def cell_number(cell: LayerCell, key: str) -> str:
    """The number written into a cell of a band; none for a removed layer and for a full rank."""
    value = getattr(cell, key)
    return "" if cell.removed or (key == "rank" and value >= 100) else f"{value:.0f}"


def _heat(info: LayersInfo, key: str, top: float, colours: list[list[Any]]) -> go.Heatmap:
    return go.Heatmap(
        z=[[None if c.removed else getattr(c, key) for c in info.cells]],
        x=list(range(len(info.cells))),
        y=[0],
        zmin=0,
        zmax=top,
        colorscale=colours,
        showscale=False,
        xgap=1,
        text=[[cell_number(c, key) for c in info.cells]],
        texttemplate="%{text}" if len(info.cells) <= MOST_NUMBERED else None,
        textfont={"size": 11},
        hovertext=[[c.text for c in info.cells]],
        hovertemplate="%{hovertext}<extra></extra>",
        hoverongaps=True,
        meta=key,
    )


_STILL = {"showgrid": False, "zeroline": False, "fixedrange": True}


def _layer_axis(figure: go.Figure, info: LayersInfo) -> None:
    count = len(info.labels)
    axis = {
        "tickvals": list(range(count)),
        "ticktext": [escape(label) for label in info.labels],
        "tickangle": -90,
        "range": [-0.5, count - 0.5],
        "tickfont": {"size": 11 if count <= MOST_NUMBERED else 9},
        "anchor": "y3",
        "ticks": "",
        "automargin": True,
    }
    margin = {"l": 56, "r": 12, "t": 8, "b": 20}
    back = "rgba(128,138,155,0.10)"
    figure.update_layout(plot_bgcolor=back, hovermode="closest", margin=margin, xaxis={**axis, **_STILL})
    for position in info.breaks:
        x = position - 0.5
        figure.add_shape(x0=x, x1=x, y0=0, y1=1, yref="paper", line={"color": "rgba(15,23,42,0.75)", "width": 1.5})


@dataclass(frozen=True)
class ProgressInfo:
    """Hypervolume after each measured feasible trial, in the order in which they ended.

    Attributes:
        index: positions in the view's trials.
        finished_s: seconds of search until each.
        hypervolume: of all until then, itself included.
        text: hover texts, escaped.
    """

    index: tuple[int, ...]
    finished_s: tuple[float, ...]
    hypervolume: tuple[float, ...]
    text: tuple[str, ...]


def progress_info(view: RunView) -> ProgressInfo:
    """Hypervolume over time in the coordinates of `Objectives.point`, DONE and measured trials only."""
    counted = [(i, t) for i, t in enumerate(view.trials) if t.state == "DONE" and _plotted(view, t)]
    counted.sort(key=lambda pair: (pair[1].finished_s, pair[1].number))
    objectives, dense = view.objectives, view.dense
    reference, maximize = objectives.reference(view.quality_dense, view.maximize), objectives.directions(view.maximize)
    points: list[tuple[float, ...]] = []
    volumes = []
    for _, trial in counted:
        points.append(objectives.point(trial, dense, view.part))
        volumes.append(pareto.hypervolume(points, reference, maximize))
    texts = tuple("<br>".join(escape(w) for w in textwrap.wrap(words.what(view, t), 56)) for _, t in counted)
    return ProgressInfo(tuple(i for i, _ in counted), tuple(t.finished_s for _, t in counted), tuple(volumes), texts)


def draw_progress(info: ProgressInfo) -> go.Figure:
    """A step line with one marker per trial; those that advanced the front are filled."""
    figure = go.Figure(layout=base_layout(height=300))
    unit, scale = time_unit(max(info.finished_s, default=0.0))
    gains = [b > a for a, b in zip((0.0, *info.hypervolume), info.hypervolume, strict=False)]
    figure.add_trace(
        go.Scatter(
            x=[s / scale for s in info.finished_s],
            y=list(info.hypervolume),
            mode="lines+markers",
            showlegend=False,
            line={"shape": "hv", "color": FRONT_COLOUR, "width": 2},
            customdata=list(info.index),
            marker={
                "opacity": 1,
                "size": [9 if g else 5 for g in gains],
                "color": [FRONT_COLOUR if g else "#94a3b8" for g in gains],
            },
            hovertext=list(info.text),
            hovertemplate="%{hovertext}<br>hypervolume %{y:.4g}, %{x:.3g} " + unit + "<extra></extra>",
        )
    )
    figure.update_xaxes(title=f"search time, {unit}", rangemode="tozero", **axis_style())
    figure.update_yaxes(title="hypervolume", rangemode="tozero", **axis_style())
    figure.update_layout(hovermode="closest")
    return figure


def time_unit(longest: float) -> tuple[str, float]:
    """Unit for times up to `longest` seconds, and the seconds in it."""
    return ("s", 1.0) if longest < 300 else ("min", 60.0) if longest < 7200 else ("h", 3600.0)


@dataclass(frozen=True)
class SecondsInfo:
    """Stages in the order of their first appearance, with their total seconds over all trials."""

    stages: tuple[str, ...]
    seconds: tuple[float, ...]


def seconds_info(view: RunView) -> SecondsInfo:
    """Where the time went, failed trials included."""
    totals: dict[str, float] = {}
    for trial in view.trials:
        for stage, seconds in trial.seconds.items():
            totals[stage] = totals.get(stage, 0.0) + seconds
    return SecondsInfo(tuple(totals), tuple(totals.values()))


STAGE_COLOURS = ("#2563eb", "#0d9488", "#d97706", "#a855f7", "#64748b", "#db2777", "#65a30d", "#0891b2")


def draw_seconds(info: SecondsInfo) -> go.Figure:
    """One stacked bar, one segment per stage."""
    figure = go.Figure(layout=base_layout(height=150))
    total = sum(info.seconds) or 1.0
    for place, (stage, seconds) in enumerate(zip(info.stages, info.seconds, strict=True)):
        label = f"{escape(stage)} {words.duration(seconds)}"
        figure.add_trace(
            go.Bar(
                x=[100 * seconds / total],
                y=[""],
                orientation="h",
                name=label,
                marker={"color": STAGE_COLOURS[place % len(STAGE_COLOURS)]},
                hovertemplate=f"{label}, %{{x:.0f}} %<extra></extra>",
            )
        )
    figure.update_layout(
        barmode="stack",
        margin={"l": 12, "r": 12, "t": 8, "b": 30},
        legend={"orientation": "h", "y": 1.05, "yanchor": "bottom", "traceorder": "normal"},
        hovermode="closest",
    )
    figure.update_xaxes(ticksuffix=" %", range=[0, 100], fixedrange=True, **axis_style())
    figure.update_yaxes(visible=False, fixedrange=True)
    return figure


def plotly_script() -> str:
    """The source of plotly.js, about 5 MB; one copy serves all figures of a page."""
    return str(get_plotlyjs())


def axis_style() -> dict[str, Any]:
    """What the axes of all figures share."""
    return {"gridcolor": GRID, "zeroline": False, "linecolor": LINE, "ticks": "", "automargin": True}


def base_layout(height: int) -> dict[str, Any]:
    """What all figures share: fonts, transparent ground, margins."""
    return {
        "template": "none",
        "height": height,
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": FONT, "size": 12.5},
        "hoverlabel": {"font": {"family": FONT, "size": 12.5}, "align": "left"},
        "margin": {"l": 64, "r": 16, "t": 12, "b": 56},
    }
