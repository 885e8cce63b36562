"""From the lines of single searches to hypervolume over time, time-to-target and one table."""

from __future__ import annotations

import json
import math
from pathlib import Path

import common
import moocore
import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from autocompress.pareto import hypervolume
from autocompress.records import write_json

#: Points of each curve that are kept, evenly in time.
TIMES = 120

#: Methods that start from what staged knows, or from what uniform levels tell: no time to target is told for them.
SEEDED = ("uniform", "nsga2-uniform", "nsga2-knapsack", "knapsack", "sequential")


def compare(sheet: common.Sheet, folder: Path) -> None:
    """Print the tables of what is there, and write the summary, the curves and a figure."""
    tasks = list(dict.fromkeys(line["case"]["task"] for line in sheet.lines))
    records, curves = [], {}
    for task in tasks:
        runs = {}
        for line in sheet.lines:
            if line["case"]["task"] == task:
                runs.setdefault(line["case"]["method"], {})[line["case"]["seed"]] = line["values"]
        if "staged" not in runs:
            continue
        records += [record(task, name, runs) for name in runs if name != "staged"]
        curves[task] = {name: curve(found) for name, found in runs.items()}
        show(task, runs)
    if not records:
        return
    write_json(folder / "summary.json", {"records": records, "environment": sheet.lines[-1]["environment"]})
    write_json(folder / "curves.json", curves)
    draw(curves, fronts(sheet), common.ROOT / "runs" / "bench-search.html")


def volumes(values: dict) -> tuple[np.ndarray, np.ndarray]:
    """Seconds ``(n,)``, and the hypervolume of all that was found until then, in (ln latency ratio, quality)."""
    points, seconds, found = [], [], []
    for second, ratio, quality in values["found"]:
        points.append((math.log(ratio), quality))
        seconds.append(second)
        found.append(hypervolume(points, values["reference"], [False, values["maximize"]]))
    return np.array(seconds), np.array(found)


def at(values: dict, second: float) -> float:
    seconds, found = volumes(values)
    known = found[seconds <= second]
    return float(known[-1]) if len(known) else 0.0


def reached(values: dict, target: float) -> float:
    """The second at which a hypervolume was reached; inf where it never was."""
    seconds, found = volumes(values)
    enough = seconds[found >= target - 1e-12]
    return float(enough[0]) if len(enough) else math.inf


def record(task: str, name: str, runs: dict) -> dict:
    """A line of the summary: medians over the seeds that both have."""
    ours, theirs = runs["staged"], runs[name]
    seeds = sorted(set(ours) & set(theirs))
    # the clock is that of the baseline's whole run: what a user waits for it
    spans = [(reached(ours[s], at(theirs[s], math.inf)), ours[s]["prepared_s"], theirs[s]["spent_s"]) for s in seeds]
    plain = name not in SEEDED
    return {
        "task": task,
        "baseline": name,
        "seeds": len(seeds),
        "time_to_target_ratio": median([a / c for a, _b, c in spans]) if plain else None,
        "time_to_target_ratio_without_bank": median([max(0.0, a - b) / c for a, b, c in spans]) if plain else None,
        "hypervolume_staged": median([at(ours[s], math.inf) for s in seeds]),
        "hypervolume_baseline": median([at(theirs[s], math.inf) for s in seeds]),
    }


def median(values: list[float]) -> float | None:
    found = float(np.median(values)) if values else math.inf
    return round(found, 5) if math.isfinite(found) else None


def curve(found: dict) -> dict:
    """Hypervolume at even seconds: median, least and most over the seeds."""
    last = min(values["spent_s"] for values in found.values())
    seconds = np.linspace(0, last, TIMES)
    rows = np.array([[at(values, second) for second in seconds] for values in found.values()])
    return {
        "seconds": [round(float(s), 1) for s in seconds],
        **{
            label: [round(float(v), 5) for v in np.quantile(rows, q, axis=0)]
            for label, q in (("low", 0.0), ("median", 0.5), ("high", 1.0))
        },
    }


def fronts(sheet: common.Sheet) -> dict:
    """Task and method to the median attainment front over seeds ``(n, 2)``: latency ratio, quality."""
    found = {}
    for line in sheet.lines:
        values = line["values"]
        sign = -1 if values["maximize"] else 1
        points = np.array([(ratio, sign * quality) for _second, ratio, quality in values["found"]])
        found.setdefault((line["case"]["task"], line["case"]["method"]), []).append((points, sign))
    surfaces = {}
    for key, runs in found.items():
        sets = np.concatenate([np.full(len(points), i + 1) for i, (points, _sign) in enumerate(runs)])
        surface = moocore.eaf(np.vstack([points for points, _sign in runs]), sets=sets, percentiles=[50])
        surfaces[key] = np.column_stack([surface[:, 0], runs[0][1] * surface[:, 1]])
    return surfaces


def show(task: str, runs: dict) -> None:
    rows = []
    for name, found in runs.items():
        spent = np.median([values["spent_s"] for values in found.values()])
        finals = [at(values, math.inf) for values in found.values()]
        line = record(task, name, runs)
        rows.append(
            (
                name,
                str(len(found)),
                f"{spent:.0f} s",
                f"{np.median([len(values['found']) for values in found.values()]):.0f}",
                f"{np.median(finals):.4f} ({min(finals):.4f}–{max(finals):.4f})",
                "–" if name == "staged" else f"{line['hypervolume_staged'] / line['hypervolume_baseline'] - 1:+.1%}",
                shown(line["time_to_target_ratio"], name),
                shown(line["time_to_target_ratio_without_bank"], name),
            )
        )
    heads = (
        "method",
        "seeds",
        "seconds",
        "candidates",
        "hypervolume (range)",
        "staged has",
        "time to target",
        "without bank",
    )
    common.show(f"{task}: joint space without training, medians over seeds", heads, rows)


def shown(ratio: float | None, name: str) -> str:
    if name == "staged" or name in SEEDED:
        return "–"
    return "not reached" if ratio is None else f"{ratio:.3f}"


def draw(curves: dict, surfaces: dict, path: Path) -> None:
    """Hypervolume against seconds, and median attainment, side by side per task."""
    tasks = list(curves)
    figure = make_subplots(
        rows=len(tasks), cols=2, column_titles=("hypervolume", "median attainment"), row_titles=tasks
    )
    colours = ("#2563eb", "#94a3b8", "#a855f7", "#d97706", "#0d9488", "#dc2626", "#65a30d", "#0891b2", "#db2777")
    names = list(dict.fromkeys(name for task in tasks for name in curves[task]))
    for row, task in enumerate(tasks, start=1):
        for name, found in curves[task].items():
            style = {"color": colours[names.index(name) % len(colours)]}
            figure.add_trace(
                go.Scatter(
                    x=found["seconds"], y=found["median"], name=name, legendgroup=name, showlegend=row == 1, line=style
                ),
                row=row, col=1,
            )  # fmt: skip
            surface = surfaces[task, name]
            surface = surface[np.argsort(surface[:, 0])]
            figure.add_trace(
                go.Scatter(
                    x=surface[:, 0], y=surface[:, 1], name=name, legendgroup=name, showlegend=False,
                    line={**style, "shape": "hv"},
                ),
                row=row, col=2,
            )  # fmt: skip
    figure.update_xaxes(type="log", title="seconds of one thread", col=1)
    figure.update_xaxes(type="log", title="latency / dense", col=2)
    figure.update_layout(height=420 * len(tasks), template="plotly_white")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.write_html(path)
    print(json.dumps({"figure": str(path)}))
