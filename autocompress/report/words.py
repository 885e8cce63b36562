"""How a report says numbers: rounding, units, signs, and its one-sentence headline. Knows no HTML."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from autocompress.objectives import Objective
from autocompress.plan import describe
from autocompress.records import Latency, Trial, aside
from autocompress.report.view import RunView

MISSING = "–"

#: Source of a latency to what is said of it, the least certain first.
HOW_TIMED = {
    "predicted": "its latency predicted from the chip's published rates (not measured)",
    "recorded": "its latency composed from a table recorded on the device (not measured)",
    "measured": "timed on this device",
}

#: Objective beside latency and quality to what its bytes are of.
TAKEN: dict[Objective, str] = {"size": "file size", "memory": "peak memory"}

#: The largest drop that the headline accepts: 1 point, or 1 % relative for raw metrics.
HEADLINE_DROP = 0.01


#: Candidates that are named where there may be many.
NAMED = 6


def known(value: float | None) -> bool:
    """Whether there is a finite number to show."""
    return value is not None and math.isfinite(value)


def number(value: float | None, digits: int = 3) -> str:
    """`value` to `digits` significant digits, without an exponent where it can be avoided."""
    if value is None or not math.isfinite(value):
        return MISSING
    if value == 0:
        return "0"
    places = digits - 1 - math.floor(math.log10(abs(value)))
    return f"{value:,.{max(0, min(places, 9))}f}".replace("-", "−")


def milliseconds(seconds: float | None) -> str:
    """A latency, such as ``8.61 ms``."""
    return f"{number(seconds * 1e3)} ms" if seconds is not None and known(seconds) else MISSING


def duration(seconds: float | None) -> str:
    """A length of time, such as ``182 s``, ``12 min`` or ``2.4 h``."""
    if seconds is None or not math.isfinite(seconds):
        return MISSING
    if seconds < 300:
        return f"{number(seconds, 2 if seconds < 10 else 3)} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def size(size_bytes: int | None) -> str:
    """A file size in megabytes (10⁶ bytes), such as ``22.7 MB``."""
    return MISSING if size_bytes is None else f"{number(size_bytes / 1e6)} MB"


def deviation(value: float | None) -> str:
    """A relative deviation, such as ``1.2e−06``."""
    return MISSING if value is None or not math.isfinite(value) else f"{value:.1e}".replace("-", "−")


def times(speed_up: float | None) -> str:
    """A speed-up, such as ``4.12×``."""
    return f"{number(speed_up)}×" if known(speed_up) else MISSING


def interval(low: float, high: float, unit: str = "") -> str:
    """An interval, such as ``3.98–4.27×``."""
    return f"{number(low)}–{number(high)}{unit}" if known(low) and known(high) else MISSING


def speed_up(ratio: float) -> float:
    """How many times faster a latency ratio is; NaN for a ratio that is none."""
    return 1.0 / ratio if known(ratio) and ratio > 0 else math.nan


def speed_up_text(latency: Latency) -> str:
    """Speed-up to the fastest dense fp32 with its interval, such as ``4.12× (3.98–4.27)``; or "predicted"."""
    low, high = speed_up(latency.ratio_best_dense_high), speed_up(latency.ratio_best_dense_low)
    return f"{times(speed_up(latency.ratio_best_dense))} ({doubt(latency, low, high)})"


def doubt(latency: Latency, low: float, high: float) -> str:
    """What stands behind a figure: its interval, or "predicted" or "recorded" where it was not measured."""
    return interval(low, high) if latency.source == "measured" else latency.source


def source(view: RunView) -> str:
    """Where a run's latencies come from: the least certain of them."""
    sources = {trial.latency.source for trial in view.trials if trial.latency}
    return next((one for one in HOW_TIMED if one in sources), "measured")


def how_timed(view: RunView) -> str:
    """Where the latencies of a run come from, such as "timed on this device"."""
    return HOW_TIMED[source(view)]


def probed(view: RunView) -> str:
    """What is said of what the search began with."""
    where = source(view)
    if where == "measured":
        return "Measured before the search, with the dense model."
    return f"Before the search, with the dense model; {where}, not measured."


def quality(view: RunView, value: float | None, stderr: float | None = None) -> str:
    """A quality, such as ``97.2 %`` or ``97.2 ± 0.5 %``; raw numbers for metrics that are no share."""
    if value is None or not math.isfinite(value):
        return MISSING
    percent = view.percent
    text = f"{100 * value:.1f}" if percent else number(value, 4)
    if stderr is not None and known(stderr):
        text += f" ± {100 * stderr:.1f}" if percent else f" ± {number(stderr, 2)}"
    return f"{text} %" if percent else text


def change(view: RunView, value: float | None, dense: float | None, unit: bool = True) -> str:
    """Difference from dense, such as ``−0.3 points`` (absolute) or ``+0.21`` for raw metrics."""
    if value is None or dense is None or not (math.isfinite(value) and math.isfinite(dense)):
        return MISSING
    if view.percent:
        points = round(100 * (value - dense), 1)
        sign = "±" if points == 0 else "+" if points > 0 else "−"
        return f"{sign}{abs(points):.1f}" + (" points" if unit else "")
    difference = value - dense
    return f"{'+' if difference > 0 else ''}{number(difference, 2)}"


def validation(view: RunView) -> str:
    """What the qualities that trials are judged by are of, such as "validation (confirm part)"."""
    return f"validation ({view.part} part)" if view.divided else "validation"


def drop(view: RunView, trial: Trial) -> float:
    """What the validation quality loses (negative: gains); absolute for shares, relative otherwise."""
    quality = view.quality_of(trial)
    if quality is None:
        return math.nan
    lost = view.quality_dense - quality if view.maximize else quality - view.quality_dense
    return lost if view.percent else lost / abs(view.quality_dense) if view.quality_dense else lost


def what(view: RunView, trial: Trial) -> str:
    """The plan in a few words."""
    return (trial.what or describe(trial.plan, view.table)).replace("λ ", "λ\u00a0").replace(", T ", ", T\u00a0")


def front_indices(view: RunView) -> tuple[int, ...]:
    """Positions in `view.trials` of the front's trials, fast to slow."""
    last = {t.fingerprint: i for i, t in enumerate(view.trials) if t.measured and t.state in ("DONE", "INFEASIBLE")}
    found = {last[fingerprint] for fingerprint in view.front if fingerprint in last}
    return tuple(sorted(found, key=lambda i: _ratio(view.trials[i])))


def ungraded(view: RunView) -> str:
    """Which candidates may stand on the front, but were not graded, and what grades them; "" where there are none."""
    number = _numbers(view)
    named = [str(number[one]) for one in view.ungraded[:NAMED]]
    if not named:
        return ""
    rest = f" and {len(view.ungraded) - len(named)} more" if len(view.ungraded) > len(named) else ""
    more = "; the same command with --stage finalists does that" if view.strategy == "staged" else ""
    return (
        f" Not graded, as grading has its share of the time: {', '.join(named)}{rest}, which would stand on the front "
        f"by what the search measured{more}."
    )


def _numbers(view: RunView) -> dict[str, int]:
    return {t.fingerprint: t.number for t in view.trials}


def tied_with(view: RunView, trial: Trial) -> str:
    """Numbers of the faster trials that a point of the front is tied with in quality, such as "12"; or ""."""
    number = _numbers(view)
    return ", ".join(str(number[other]) for other in view.ties.get(trial.fingerprint, ()) if other in number)


def all_objectives(view: RunView) -> str:
    """In what a point of the front is not beaten: "both", or "all of" with the names."""
    names = view.objectives.names
    return f"all of {', '.join(names[:-1])} and {names[-1]}" if view.objectives.more else "both"


def coordinates(view: RunView) -> str:
    """In what the hypervolume is told."""
    more = "".join(f", log {name} ratio" for name in view.objectives.more)
    return f"log latency ratio, quality{more}"


def sized(view: RunView) -> str:
    """What the areas of markers mean, where they mean something."""
    name = next(iter(view.objectives.more), None)
    return f"The area of a marker is its {TAKEN[name]}: small ones take little. " if name else ""


def _ratio(trial: Trial) -> float:
    return trial.latency.ratio_best_dense if trial.latency else math.inf


@dataclass(frozen=True)
class Headline:
    """The best honest result in words.

    Attributes:
        index: position in `view.trials` of the trial it speaks of, or None.
        title: one sentence.
        detail: a second one, or "".
        good: whether a front point within the drop was found.
    """

    index: int | None
    title: str
    detail: str
    good: bool


def headline(view: RunView) -> Headline:
    """What answers the budgets; else the fastest front point that loses at most 1 point on validation.

    With the faster one that it is tied with, if any: which side of a point that falls on is chance. Where there is no
    such point, what stands in its way.
    """
    answers = [i for i in front_indices(view) if view.trials[i].fingerprint == view.answer]
    if answers and view.trials[answers[0]].origin != "dense":
        return _result(view, answers[0])
    front = [i for i in front_indices(view) if view.trials[i].origin != "dense"]
    within = [i for i in front if drop(view, view.trials[i]) <= HEADLINE_DROP + 1e-9]
    faster = [i for i in within if _ratio(view.trials[i]) < 1]
    if faster:
        return _result(view, faster[0])
    limit = _limit_words(view)
    if within:
        text = f"{what(view, view.trials[within[0]])}: {_speed_words(view.trials[within[0]])}."
        return Headline(
            within[0], f"No model that loses at most {limit} beats the fastest dense fp32 model", text, False
        )
    if front:
        best = min(front, key=lambda i: drop(view, view.trials[i]))
        text = f"The closest, {what(view, view.trials[best])}: {_result_words(view, view.trials[best])}."
        return Headline(best, f"No model on the front loses at most {limit} on validation", text, False)
    return _nothing(view)


def _limit_words(view: RunView) -> str:
    return "1 point" if view.percent else "1 %"


def _result(view: RunView, index: int) -> Headline:
    trial = view.trials[index]
    detail = f"Candidate {trial.number} ({what(view, trial)}): {view.metric} {_quality_words(view, trial)}."
    if trial.latency and trial.latency.ratio_best_dense_high >= 1:
        detail += " The interval includes 1×: not shown to be faster."
    if trial.latency and trial.latency.source != "measured":
        detail += f" Its latency is {trial.latency.source}, not measured from its own file."
    tied = view.ties.get(trial.fingerprint, ())
    for faster in (view.trials[i] for i in front_indices(view) if view.trials[i].fingerprint in tied):
        if faster.latency:
            speed, mark = times(speed_up(faster.latency.ratio_best_dense)), aside(faster.latency.source)
            lost = change(view, view.quality_of(faster), view.quality_dense)
            detail += (
                f" Candidate {faster.number}, {speed} and {lost}{mark}, is tied with it: what lies between is noise."
            )
    title = _result_words(view, trial)
    return Headline(index, title[0].upper() + title[1:], detail, True)


def _quality_words(view: RunView, trial: Trial) -> str:
    text = f"{quality(view, view.quality_dense)} → {quality(view, view.quality_of(trial))} on {validation(view)}"
    if known(trial.quality_test) and known(view.quality_dense_test):
        text += f", {quality(view, view.quality_dense_test)} → {quality(view, trial.quality_test)} on test"
    return text


def _speed_words(trial: Trial) -> str:
    if trial.latency is None:
        return "not timed"
    before = "(95 % interval " if trial.latency.source == "measured" else "("
    return f"{speed_up_text(trial.latency).replace('(', before)} the speed of the fastest dense fp32"


def _result_words(view: RunView, trial: Trial) -> str:
    unit = "" if view.percent else f" {view.metric}"
    lost = change(view, view.quality_of(trial), view.quality_dense)
    parts = [_faster_words(trial), f"{lost}{unit} on validation"]
    if known(trial.quality_test) and known(view.quality_dense_test):
        parts.append(f"{change(view, trial.quality_test, view.quality_dense_test)} on test")
    return ", ".join(parts)


def _faster_words(trial: Trial) -> str:
    latency = trial.latency
    if latency is None or latency.ratio_best_dense >= 1:
        return _speed_words(trial)
    low, high = speed_up(latency.ratio_best_dense_high), speed_up(latency.ratio_best_dense_low)
    speed = times(speed_up(latency.ratio_best_dense))
    if latency.source != "measured":
        return f"{latency.source}: {speed} faster than the dense fp32"
    return f"{speed} faster than the fastest dense fp32 (95 % interval {interval(low, high, '×')})"


def _nothing(view: RunView) -> Headline:
    candidates = [t for t in view.trials if t.origin != "dense"]
    if not candidates:
        return Headline(0 if view.trials else None, "No candidate has been evaluated yet", "", False)
    miss = nearest_miss(view)
    if miss is not None:
        index, lacks = miss
        trial = view.trials[index]
        text = f"Nearest miss, {what(view, trial)}: {_result_words(view, trial)}. {lacks}".strip()
        over = any(t.state == "INFEASIBLE" for t in candidates)
        title = "No candidate met the budgets" if over else "The front holds no compressed model"
        return Headline(index, title, text, False)
    failed = [t for t in candidates if t.error]
    reason = f"The last reason: {failed[-1].error}" if failed else ""
    index = view.trials.index(failed[-1]) if failed else 0
    return Headline(index, f"None of the {len(candidates)} candidates could be measured", reason, False)


def nearest_miss(view: RunView) -> tuple[int, str] | None:
    """Position and lack of the candidate that came closest; where the view does not say, of the least drop.

    Among measured candidates the fastest within the headline's drop is taken, else the one that loses least.
    """
    measured = list(_measured_candidates(view))
    if view.nearest_miss is not None:
        for index in measured:
            if view.trials[index].fingerprint == view.nearest_miss[0]:
                return index, view.nearest_miss[1]
    if not measured:
        return None
    within = [i for i in measured if drop(view, view.trials[i]) <= HEADLINE_DROP + 1e-9]
    if within:
        best = min(within, key=lambda i: _ratio(view.trials[i]))
    else:
        best = min(measured, key=lambda i: drop(view, view.trials[i]))
    return best, view.trials[best].error


def _measured_candidates(view: RunView) -> Iterator[int]:
    for index, trial in enumerate(view.trials):
        if trial.measured and trial.origin != "dense" and known(drop(view, trial)):
            yield index
