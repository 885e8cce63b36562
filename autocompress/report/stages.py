"""The stages of a search: what each one took and gained, and when it was under way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import plotly.graph_objects as go

from autocompress.report import words
from autocompress.report.figures import time_unit
from autocompress.report.view import RunView

#: Origin of a trial to the stage that proposed it; those of `joint` and `solve` lie in the order of the stages, too.
STAGES: Mapping[str, str] = {
    "dense": "references",
    "uniform-int8": "references",
    "warm-start": "warm start",
    "uniform": "solve",
    "seed": "solve",
    "solved": "solve",
    "sampled": "refine",
    "refined": "refine",
    "tuned": "recover",
    "recovered": "recover",
}

#: The same in a study over everything at once.
JOINT: Mapping[str, str] = {**STAGES, "uniform": "seeds", "seed": "seeds", "sampled": "sampler"}

#: Stages that take turns; what others propose once another one has begun counts as that one's.
TURNS = ("refine", "recover")

#: Bands are tinted in turn.
TINTS = ("rgba(37,99,235,0.05)", "rgba(128,138,155,0.13)")

#: Share of the time that a letter of a label needs; a band that is too narrow for its name carries none.
LETTER = 0.0145


@dataclass(frozen=True)
class Band:
    """Seconds of search in which a stage was under way."""

    stage: str
    begin_s: float
    end_s: float


@dataclass(frozen=True)
class StageRow:
    """What one stage did, in words: time, candidates, hypervolume before and after, and what it gained."""

    stage: str
    time: str
    candidates: str
    before: str
    after: str
    gain: str


def bands_info(view: RunView) -> tuple[Band, ...]:
    """Bands by the origins of the trials, as long as the trials tell several stages; several where stages take turns.

    A stage begins where the first of its candidates was begun, and ends where the next one begins.
    """
    names = STAGES if view.strategy == "staged" else JOINT
    begun: list[tuple[str, float]] = []
    for trial in sorted(view.trials, key=lambda one: (one.finished_s, one.number)):
        stage, (now, since) = names.get(trial.origin, ""), begun[-1] if begun else ("", 0.0)
        if stage in ("", now) or (stage not in TURNS and any(stage == known for known, _begin in begun)):
            continue
        begun.append((stage, max(trial.finished_s - sum(trial.seconds.values()), since)))
    last = max((trial.finished_s for trial in view.trials), default=0.0)
    if len(begun) < 2:
        return ()
    ends = [*begun, ("", last)]
    bands = [Band(stage, begin, end) for (stage, begin), (_next, end) in pairwise(ends) if end > begin]
    first = begun[0][1]
    return (Band("before", 0.0, first), *bands) if first > 0 else tuple(bands)


def shade(figure: go.Figure, bands: tuple[Band, ...]) -> go.Figure:
    """The progress figure with the bands behind its line."""
    longest = max((band.end_s for band in bands), default=0.0)
    _unit, scale = time_unit(longest)
    for place, band in enumerate(bands):
        label = {"text": band.stage, "textposition": "top center", "font": {"size": 11}}
        figure.add_shape(
            type="rect", x0=band.begin_s / scale, x1=band.end_s / scale, y0=0, y1=1, yref="paper", layer="below",
            line={"width": 0}, fillcolor=TINTS[place % len(TINTS)],
            label=label if band.end_s - band.begin_s >= LETTER * len(band.stage) * longest else None,
        )  # fmt: skip
    return figure


def stages_info(stages: Sequence[Mapping[str, object]]) -> tuple[StageRow, ...]:
    """Rows of the stages of ``state.json``; without a figure there stands a dash."""
    rows = []
    for one in stages:
        before, after = (_float(one.get(f"hypervolume_{when}")) for when in ("before", "after"))
        gain = words.MISSING
        if before is not None and after is not None:
            gain = f"+{words.number(after - before)}" if after > before else "0"
        rows.append(
            StageRow(
                str(one.get("stage", "")),
                words.duration(_float(one.get("seconds"))),
                str(one.get("candidates", words.MISSING)),
                words.number(before),
                words.number(after),
                gain,
            )
        )
    return tuple(rows)


def _float(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None
