"""From the lines of single searches to hypervolume over time, time-to-target and one table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import common
import moocore
import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray
from plotly.subplots import make_subplots

from autocompress.pareto import hypervolume, log_ratio, nondominated, reference_point
from autocompress.records import write_atomic, write_json

#: Points of each curve that are kept, evenly in the logarithm of the seconds, from the first one on.
TIMES, FIRST_S = 120, 1.0

#: Methods that begin with candidates that another way has found: no time to target is told for them.
SEEDED = ("nsga2-uniform", "nsga2-knapsack")

#: Hypervolumes that differ by less are the same.
SAME = 1e-9

COLOURS = ("#2563eb", "#94a3b8", "#a855f7", "#d97706", "#0d9488", "#dc2626", "#65a30d", "#111827", "#db2777")
CHROMIUM = "/usr/bin/chromium"


@dataclass(frozen=True, eq=False)
class Run:
    """One search, as it went.

    Attributes:
        seconds: at which the hypervolume grew, ascending, ``(n,)``.
        volumes: of all that was found until then, in (ln latency ratio, quality) up to the reference, ``(n,)``.
        points: latency ratio and quality of all that was found, ``(candidates, 2)``.
        maximize: whether more quality is better.
        worst: quality of the reference, below which nothing counts.
        prepared_s: of `spent_s`, what went into bank and losses before the first proposal.
        spent_s: the whole clock.
        fresh: hypervolume of its last front as graded on samples that no search saw; nan where it was not.
        fresh_both: the same of that front together with the one by divergence.
    """

    seconds: NDArray[np.float64]
    volumes: NDArray[np.float64]
    points: NDArray[np.float64]
    maximize: bool
    worst: float
    prepared_s: float
    spent_s: float
    fresh: float
    fresh_both: float

    @property
    def final(self) -> float:
        return self.at(math.inf)

    def at(self, second: float) -> float:
        """Hypervolume of what was known at a second."""
        known = int(np.searchsorted(self.seconds, second, side="right"))
        return float(self.volumes[known - 1]) if known else 0.0

    def reached(self, volume: float) -> float:
        """The second at which a hypervolume was reached; 0 for none, inf where it never was."""
        if volume <= 0:
            return 0.0
        place = int(np.searchsorted(self.volumes, volume - SAME))
        return float(self.seconds[place]) if place < len(self.seconds) else math.inf


def run_of(values: Mapping) -> Run:
    """A search from its line of results."""
    directions, front = [False, bool(values["maximize"])], np.empty((0, 2))
    seconds, volumes, last = [], [], 0.0
    for second, ratio, quality in values["found"]:
        more = np.vstack([front, (log_ratio(ratio), quality)])
        volume = hypervolume(more, values["reference"], directions)
        if volume > last:
            front, last = more[nondominated(more, directions)], volume
            seconds.append(second)
            volumes.append(volume)
    points = np.array([(ratio, quality) for _second, ratio, quality in values["found"]]).reshape(-1, 2)
    return Run(
        np.array(seconds), np.array(volumes), points, directions[1], values["reference"][1],
        values["prepared_s"], values["spent_s"], fresh_volume(values), fresh_volume(values, divergence=True),
    )  # fmt: skip


def fresh_volume(values: Mapping, divergence: bool = False) -> float:
    """Hypervolume of the last front, each member graded anew on samples that no search saw, as dense is.

    Args:
        values: of a line.
        divergence: with those that are on the front by divergence from dense.
    """
    members = values["front"] if "fresh" in values else []
    if not members or (divergence and any("by_quality" not in one for one in members)):
        return math.nan
    maximize = bool(values["maximize"])
    points = [
        (log_ratio(one["ratio"]), one["fresh_quality"]) for one in members if divergence or one.get("by_quality", True)
    ]
    return hypervolume(points, reference_point(values["fresh"]["dense_quality"], maximize), [False, maximize])


#: Runs by method and seed.
Runs = Mapping[str, Mapping[int, Run]]


def runs_of(lines: Sequence[Mapping], task: str) -> Runs:
    """All runs of a task; refuses to hold against each other what another evaluator graded, or another machine timed.

    Methods are compared seed by seed. Another seed may be of another machine, whose digits model was trained anew.
    """
    own = [line for line in lines if line["case"]["task"] == task]
    judges: dict[int, set[str]] = {}
    for line in own:
        told = [line["values"]["evaluator"], line["values"]["reference"], line["environment"]["machine"]["cpu"]]
        judges.setdefault(line["case"]["seed"], set()).add(str(told))
    for seed, several in judges.items():
        if len(several) > 1:
            raise SystemExit(
                f"{task}, seed {seed}: lines of {len(several)} evaluators; remove those of the older ones:\n"
                + "\n".join(sorted(several))
            )
    found: dict[str, dict[int, Run]] = {}
    for line in own:
        found.setdefault(line["case"]["method"], {})[line["case"]["seed"]] = run_of(line["values"])
    return found


def compare(
    sheet: common.Sheet, titles: Mapping[str, str], folder: Path, page: Path, picture: Path | None, told: Path | None
) -> None:
    """Print the tables of what is there; write summary, environment, curves and tables into a folder, and a page.

    Args:
        sheet: with the lines.
        titles: of the tasks.
        folder: for the files.
        page: for the figure that can be looked into.
        picture: of it, as a PNG.
        told: a text that shows the tables, each below its title, and is to show these ones.
    """
    sheet.read()
    tasks = {task: runs_of(sheet.lines, task) for task in titles}
    tasks = {task: runs for task, runs in tasks.items() if "staged" in runs}
    records = [record(task, name, runs) for task, runs in tasks.items() for name in runs if name != "staged"]
    if not records:
        return
    for task, runs in tasks.items():
        common.show(f"{titles[task]}: medians over seeds", HEADS, rows(task, runs))
    write_json(folder / "summary.json", records)
    write_json(folder / "environment.json", environments(sheet.lines))
    curves = {task: {name: curve(list(found.values())) for name, found in runs.items()} for task, runs in tasks.items()}
    write_json(folder / "curves.json", curves)
    tables = [f"**{titles[task]}**\n\n{markdown(HEADS, rows(task, runs))}" for task, runs in tasks.items()]
    write_atomic(folder / "table.md", "\n\n".join(tables) + "\n")
    if told is not None:
        write_atomic(told, renewed(told.read_text(encoding="utf-8"), tables))
    figure = drawn(curves, {task: fronts(runs) for task, runs in tasks.items()}, titles)
    page.parent.mkdir(parents=True, exist_ok=True)
    figure.write_html(page)
    print(page)
    if picture is not None:
        photograph(page, picture, 1200, figure.layout.height)


def record(task: str, name: str, runs: Runs) -> dict:
    """A line of the summary: medians over the seeds that both have.

    Time to target is the second at which staged had the baseline's final hypervolume, over all the seconds that the
    baseline took: what a user waits for either.
    """
    ours, theirs = runs["staged"], runs[name]
    seeds = sorted(set(ours) & set(theirs))
    spans = [(ours[s].reached(theirs[s].final), ours[s].prepared_s, theirs[s].spent_s) for s in seeds]
    told = bool(seeds) and name not in SEEDED
    return {
        "task": task,
        "baseline": name,
        "seeds": len(seeds),
        "time_to_target_ratio": median([a / c for a, _b, c in spans]) if told else None,
        "time_to_target_ratio_without_bank": median([max(0.0, a - b) / c for a, b, c in spans]) if told else None,
        "hypervolume_staged": median([ours[s].final for s in seeds]),
        "hypervolume_baseline": median([theirs[s].final for s in seeds]),
        "hypervolume_fresh_staged": median([ours[s].fresh for s in seeds]),
        "hypervolume_fresh_baseline": median([theirs[s].fresh for s in seeds]),
        "hypervolume_fresh_both_staged": median([ours[s].fresh_both for s in seeds]),
        "hypervolume_fresh_both_baseline": median([theirs[s].fresh_both for s in seeds]),
    }


def median(values: Sequence[float]) -> float | None:
    """None for none, and where it is no finite number: more than half never got there, or one is not known."""
    if any(math.isnan(one) for one in values):
        return None
    found = sorted(values)[(len(values) - 1) // 2 : len(values) // 2 + 1]
    return round(sum(found) / len(found), 5) if found and math.isfinite(found[-1]) else None


def curve(found: Sequence[Run]) -> dict:
    """Hypervolume over the seconds that all seeds had: least, median and most of them."""
    seconds = np.geomspace(FIRST_S, max(FIRST_S, min(run.spent_s for run in found)), TIMES)
    volumes = np.array([[run.at(second) for second in seconds] for run in found])
    shares = {"low": 0.0, "median": 0.5, "high": 1.0}
    levels = {label: np.quantile(volumes, share, axis=0) for label, share in shares.items()}
    return {
        "seconds": [round(float(second), 2) for second in seconds],
        **{label: [round(float(value), 5) for value in level] for label, level in levels.items()},
    }


def fronts(runs: Runs) -> dict[str, NDArray[np.float64]]:
    """Median attainment of each method over its seeds ``(n, 2)``, fast to slow: latency ratio, quality that counts."""
    found = {}
    for name, seeds in runs.items():
        sign = -1 if next(iter(seeds.values())).maximize else 1  # moocore's is for minima alone
        points = [run.points * (1, sign) for run in seeds.values()]
        worst = max(sign * run.worst for run in seeds.values())
        sets = np.repeat(np.arange(1, len(points) + 1), [len(own) for own in points])
        surface = moocore.eaf(np.vstack(points), sets=sets, percentiles=[50])
        surface = surface[np.argsort(surface[:, 0])]
        surface = surface[surface[:, 1] <= worst]
        found[name] = surface[:, :2] * (1, sign)
    return found


#: Method to how a table calls it.
CALLED: Mapping[str, str] = {
    "staged": "**staged**",
    "nsga2": "plain NSGA-II",
    "tpe": "plain TPE, multivariate",
    "nsga2-knapsack": "NSGA-II from the program's front",
    "nsga2-uniform": "NSGA-II from uniform levels",
    "knapsack": "the program alone",
    "sequential": "prune, then factorize, then quantize",
    "random": "random",
    "uniform": "uniform levels",
}

HEADS = (
    "method",
    "seeds",
    "seconds",
    "candidates",
    "hypervolume (range)",
    "staged has",
    "fresh",
    "with divergence",
    "time to target",
    "without bank",
)


def rows(task: str, runs: Runs) -> list[tuple[str, ...]]:
    """One row per method, staged first, then by hypervolume; time to target as a share of the method's seconds."""

    def order(name: str) -> tuple[bool, float]:
        return name != "staged", -float(np.median([run.final for run in runs[name].values()]))

    made = []
    for name in sorted(runs, key=order):
        line, found = record(task, name, runs), list(runs[name].values())
        finals = [run.final for run in found]
        spread = f" ({min(finals):.4f}–{max(finals):.4f})" if len(finals) > 1 else ""
        ours, theirs = line["hypervolume_staged"], line["hypervolume_baseline"]
        made.append(
            (
                CALLED[name],
                str(len(found)),
                f"{np.median([run.spent_s for run in found]):.0f}",
                f"{np.median([len(run.points) for run in found]):.0f}",
                f"{np.median(finals):.4f}{spread}",
                f"{ours / theirs - 1:+.1%}" if ours and theirs and name != "staged" else "–",
                graded([run.fresh for run in found]),
                graded([run.fresh_both for run in found]),
                *(shown(line[key], name) for key in ("time_to_target_ratio", "time_to_target_ratio_without_bank")),
            )
        )
    return made


def graded(values: Sequence[float]) -> str:
    """The median of those that were graded, and of how many where not of all."""
    known = [value for value in values if not math.isnan(value)]
    if not known:
        return "–"
    return f"{np.median(known):.4f}" + (f" ({len(known)} of {len(values)})" if len(known) < len(values) else "")


def shown(ratio: float | None, name: str) -> str:
    if name == "staged" or name in SEEDED:
        return "–"
    return "not reached" if ratio is None else f"{ratio:.3f}"


def markdown(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table that can be pasted."""
    under = ["---", *["---:"] * (len(heads) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (heads, under, *lines))


def environments(lines: Sequence[Mapping]) -> list[dict]:
    """Of each processor the last environment, and which seeds of which tasks it ran."""
    found: dict[str, dict] = {}
    for line in lines:
        environment, case = line["environment"], line["case"]
        cpu = environment["machine"]["cpu"]
        ran = found.get(cpu, {}).get("ran", {})
        seeds = {*ran.get(case["task"], []), case["seed"]}
        found[cpu] = {**environment, "ran": {**ran, case["task"]: sorted(seeds)}}
    return list(found.values())


def renewed(text: str, tables: Sequence[str]) -> str:
    """A text with tables in place of those of the same titles; it must have all of them."""
    for table in tables:
        title = table.partition("\n")[0]
        before, found, rest = text.partition(f"{title}\n\n|")
        if not found:
            raise SystemExit(f"the text has no table below {title}")
        _old, _end, after = rest.partition("\n\n")
        text = f"{before}{table}\n\n{after}"
    return text


def drawn(curves: Mapping, surfaces: Mapping, titles: Mapping[str, str]) -> go.Figure:
    """Hypervolume against seconds with its range over seeds, and median attainment, side by side per task."""
    tasks = list(curves)
    figure = make_subplots(
        rows=len(tasks), cols=2, horizontal_spacing=0.09, vertical_spacing=0.28 / len(tasks),
        subplot_titles=[text for task in tasks for text in (titles[task], "median attainment")],
    )  # fmt: skip
    names = list(dict.fromkeys(name for task in tasks for name in curves[task]))
    seen: set[str] = set()
    for row, task in enumerate(tasks, start=1):
        for name, found in curves[task].items():
            colour, wide = COLOURS[names.index(name) % len(COLOURS)], 3 if name == "staged" else 1.5
            style = {"name": name, "legendgroup": name, "line": {"color": colour, "width": wide}}
            edges = [*found["high"], *reversed(found["low"])]
            figure.add_scatter(
                x=[*found["seconds"], *reversed(found["seconds"])], y=edges, fill="toself", fillcolor=colour,
                opacity=0.15, line={"width": 0}, hoverinfo="skip", showlegend=False, legendgroup=name, row=row, col=1,
            )  # fmt: skip
            figure.add_scatter(
                x=found["seconds"],
                y=found["median"],
                mode="lines",
                showlegend=name not in seen,
                row=row,
                col=1,
                **style,
            )
            seen.add(name)
            surface = surfaces[task][name]
            style["line"] = {**style["line"], "shape": "hv"}
            figure.add_scatter(
                x=surface[:, 0], y=surface[:, 1], mode="lines", showlegend=False, row=row, col=2, **style
            )
        figure.update_yaxes(title="hypervolume", row=row, col=1)
        figure.update_yaxes(title="quality", row=row, col=2)
    figure.update_xaxes(type="log", title="seconds of one thread", col=1)
    figure.update_xaxes(type="log", title="latency / dense", col=2)
    return figure.update_layout(height=420 * len(tasks) + 60, width=1200, template="plotly_white")


def photograph(page: Path, picture: Path, width: int, height: int) -> None:
    """A page of a figure as a PNG, by Playwright and Debian's Chromium."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as tool:
        browser = tool.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        sheet = browser.new_page(viewport={"width": width, "height": height})
        sheet.goto(page.resolve().as_uri())
        sheet.wait_for_selector(".main-svg")
        picture.parent.mkdir(parents=True, exist_ok=True)
        sheet.screenshot(path=picture)
        browser.close()
    print(picture)
