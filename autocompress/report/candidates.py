"""What the page says of each candidate: the side panel's data and the table's rows. Knows no figure layout."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

from autocompress.plan import Distill
from autocompress.records import Latency, Trial
from autocompress.report import words
from autocompress.report.view import RunView

#: The command that copies one model out of a run; `folder` is quoted for a shell.
PICK = "autocompress pick {folder} --fingerprint {fingerprint} --out picked"

STATES: Mapping[str, str] = {
    "DONE": "in budget",
    "INFEASIBLE": "over budget",
    "FAILED": "failed",
}
ORIGINS: Mapping[str, str] = {
    "dense": "dense",
    "uniform-int8": "uniform int8",
    "warm-start": "of an earlier run",
    "uniform": "uniform levels",
    "seed": "seed",
    "sampled": "sampled",
    "solved": "solved",
    "refined": "refined",
    "tuned": "settings tried",
    "recovered": "recovered",
}


def panel_data(view: RunView, index: int, on_front: bool) -> dict[str, Any]:
    """Plain JSON data of one trial for the side panel; every number is already words."""
    trial = view.trials[index]
    return {
        "kicker": f"Candidate {trial.number}",
        "title": words.what(view, trial),
        "badges": _badges(trial, on_front, words.tied_with(view, trial)),
        "rows": [[key, text] for key, text in _rows(view, trial) if text != words.MISSING],
        "warnings": list(trial.latency.warnings) if trial.latency else [],
        "error": trial.error,
        "command": _command(view, trial),
        "plan": trial.plan.to_json(),
    }


def _badges(trial: Trial, on_front: bool, tied: str) -> list[tuple[str, str]]:
    badges = [("front", "Pareto front")] if on_front else []
    badges.append((trial.state.lower(), STATES[trial.state]))
    badges.append(("origin", ORIGINS.get(trial.origin, trial.origin)))
    return [*badges, ("tied", f"tied in quality with {tied}")] if tied else badges


def _command(view: RunView, trial: Trial) -> str:
    if trial.artifact is None:
        return ""
    return PICK.format(folder=shlex.quote(view.folder or view.name), fingerprint=trial.fingerprint)


def _rows(view: RunView, trial: Trial) -> list[tuple[str, str]]:
    rows = _latency_rows(trial.latency) if trial.latency else []
    rows += [
        *_validation_rows(view, trial),
        ("Test", words.quality(view, trial.quality_test, trial.quality_test_stderr)),
        ("– change", words.change(view, trial.quality_test, view.quality_dense_test)),
    ]
    if trial.artifact:
        rows += [
            ("Size", words.size(trial.artifact.size_bytes)),
            ("Deviation", words.deviation(trial.artifact.deviation)),
            ("File", trial.artifact.path),
        ]
    if trial.plan.distill:
        rows.append(("Recovery", _distill_words(trial.plan.distill)))
    total = sum(trial.seconds.values())
    return [*rows, ("Time spent", words.duration(total or None)), ("Fingerprint", trial.fingerprint)]


def _validation_rows(view: RunView, trial: Trial) -> Iterator[tuple[str, str]]:
    """What the trial is judged by, with its change; then what it was selected by, where that is another figure."""
    name = f"Validation, {view.part}" if view.divided else "Validation"
    yield name, words.quality(view, view.quality_of(trial), trial.stderr_on(view.part))
    yield "– change", words.change(view, view.quality_of(trial), view.quality_dense)
    if view.divided and view.part == "confirm":
        yield "Validation, select", words.quality(view, trial.quality, trial.quality_stderr)


def _latency_rows(latency: Latency) -> list[tuple[str, str]]:
    measured = latency.source == "measured"
    own = words.doubt(latency, latency.ratio_low, latency.ratio_high)
    best = words.doubt(latency, latency.ratio_best_dense_low, latency.ratio_best_dense_high)
    rows = [("Latency p50" if measured else "Latency", words.milliseconds(latency.latency_s))]
    if measured:
        rows.append(("Latency p90", words.milliseconds(latency.p90_s)))
    rows += [
        ("Speed-up", words.speed_up_text(latency)),
        ("Ratio, fastest dense", f"{words.number(latency.ratio_best_dense)} ({best})"),
        ("Ratio, same runtime", f"{words.number(latency.ratio)} ({own})"),
        ("Timed", f"measured, {latency.tier} tier, {latency.queries:,} queries" if measured else latency.source),
        ("Runtime", f"{latency.runtime}, {latency.threads} thread{'s' if latency.threads != 1 else ''}"),
    ]
    return [*rows, *_where_known(latency)]


def _where_known(latency: Latency) -> Iterator[tuple[str, str]]:
    """Rows of what not every tier measures."""
    if latency.p99_s is not None:
        spread = words.interval(1e3 * (latency.p99_low_s or math.nan), 1e3 * (latency.p99_high_s or math.nan))
        yield "Latency p99", f"{words.milliseconds(latency.p99_s)} ({spread})"
    if latency.first_token_s is not None:
        yield "First token", words.milliseconds(latency.first_token_s)
        yield "Each further token", words.milliseconds(latency.per_token_s)
    if latency.throughput is not None:
        yield "Throughput", f"{words.number(latency.throughput)} queries/s"
    if latency.peak_memory_bytes is not None:
        yield "Peak memory", words.size(latency.peak_memory_bytes)
    if latency.energy_j is not None:
        yield "Energy per query", f"{words.number(latency.energy_j * 1e3)} mJ ({latency.energy_source})"


def _distill_words(distill: Distill) -> str:
    return (
        f"λ {distill.soft_weight:.2f}, T {distill.temperature:.1f}, "
        f"learning rate {distill.learning_rate:.1e}, {distill.steps:,} steps"
    )


#: Column title and whether it holds numbers, up to the qualities and after them; `_cells` gives them in this order.
FIRST: tuple[tuple[str, bool], ...] = (
    ("#", True),
    ("State", False),
    ("Origin", False),
    ("What was done", False),
    ("Speed-up", True),
    ("Ratio", True),
    ("Latency", True),
)
LAST: tuple[tuple[str, bool], ...] = (
    ("Change", True),
    ("Test", True),
    ("Size", True),
    ("Fingerprint", False),
)


def columns(view: RunView) -> tuple[tuple[str, bool], ...]:
    """The table's columns: both parts of validation, or all of it where not divided; memory where it is compared."""
    qualities = ("Select", "Confirm") if view.divided else ("Validation",)
    memory = [("Memory", True)] if "memory" in view.objectives.names else []
    return (*FIRST, *((name, True) for name in qualities), *LAST[:-1], *memory, LAST[-1])


def candidates_table(view: RunView, front: frozenset[int]) -> str:
    """HTML table of all trials; front rows are marked, cells carry sortable values as ``data-v``."""
    heads = "".join(
        f'<th scope="col"{" class=num" if num else ""}><button type="button">{title}</button></th>'
        for title, num in columns(view)
    )
    order = sorted(range(len(view.trials)), key=lambda i: (i not in front, _ratio(view.trials[i]), i))
    rows = "".join(_row(view, i, i in front) for i in order)
    return f'<table id="candidates"><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>'


def _ratio(trial: Trial) -> float:
    return trial.latency.ratio_best_dense if trial.latency else math.inf


def _row(view: RunView, index: int, on_front: bool) -> str:
    cells = "".join(
        f'<td data-v="{escape(_sortable(value))}"{_class(title, num)}>{html}</td>'
        for (title, num), (value, html) in zip(columns(view), _cells(view, view.trials[index], on_front), strict=True)
    )
    return f'<tr data-index="{index}" tabindex="0"{" class=on-front" if on_front else ""}>{cells}</tr>'


def _class(title: str, num: bool) -> str:
    return ' class="num"' if num else ' class="what"' if title == "What was done" else ""


def _sortable(value: float | str | None) -> str:
    if isinstance(value, str):
        return value
    return repr(float(value)) if value is not None and math.isfinite(value) else ""


def _cells(view: RunView, trial: Trial, on_front: bool) -> list[tuple[float | str | None, str]]:
    latency, artifact = trial.latency, trial.artifact
    judged, peak = view.quality_of(trial), latency.peak_memory_bytes if latency else None
    change = judged - view.quality_dense if judged is not None else None
    qualities = (trial.quality, trial.quality_confirm) if view.divided else (trial.quality,)
    state = '<span class="badge front">front</span>' if on_front else _state_badge(trial)
    tied = words.tied_with(view, trial)
    state += f' <span class="sub">tied with {tied}</span>' if tied else ""
    return [
        (trial.number, str(trial.number)),
        (("0" if on_front else "1") + trial.state, state),
        (trial.origin, escape(ORIGINS.get(trial.origin, trial.origin))),
        (words.what(view, trial), _what(view, trial)),
        *_latency_cells(latency),
        *((value, escape(words.quality(view, value))) for value in qualities),
        (change, escape(words.change(view, judged, view.quality_dense, unit=False))),
        (trial.quality_test, escape(words.quality(view, trial.quality_test))),
        (artifact.size_bytes if artifact else None, words.size(artifact.size_bytes if artifact else None)),
        *([(peak, words.size(peak))] if "memory" in view.objectives.names else []),
        (trial.fingerprint, f"<code>{trial.fingerprint}</code>"),
    ]


def _latency_cells(latency: Latency | None) -> list[tuple[float | str | None, str]]:
    if latency is None:
        return [(None, words.MISSING)] * 3
    speed = words.speed_up(latency.ratio_best_dense)
    best = words.doubt(latency, latency.ratio_best_dense_low, latency.ratio_best_dense_high)
    return [
        (speed, words.times(speed)),
        (latency.ratio_best_dense, f'{words.number(latency.ratio_best_dense)} <span class="sub">{best}</span>'),
        (latency.latency_s, words.milliseconds(latency.latency_s)),
    ]


def _state_badge(trial: Trial) -> str:
    return f'<span class="badge {trial.state.lower()}">{STATES[trial.state]}</span>'


def _what(view: RunView, trial: Trial) -> str:
    reason = f'<span class="reason">{escape(trial.error)}</span>' if trial.error else ""
    return escape(words.what(view, trial)) + reason
