"""What a search looks for: its objectives, what trials have of them, their directions, and the corner of their volume.

The one place that lists them. Knows no front and no search.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from autocompress.drop import Drop
from autocompress.errors import ConfigError, near
from autocompress.pareto import log_ratio, reference_point
from autocompress.records import Part, Trial

Objective = Literal["latency", "quality", "size", "memory"]

#: In the order in which values are given.
OBJECTIVES: tuple[Objective, ...] = get_args(Objective)

#: Without these there is nothing to search for.
ALWAYS: tuple[Objective, ...] = ("latency", "quality")

#: Peak memory is told apart in steps of so many bytes: of one and the same file it varies by about as much.
MEMORY_STEP = 1e6


@dataclass(frozen=True)
class Objectives:
    """What the front, its volume and whoever proposes look at.

    Attributes:
        names: in the order of `OBJECTIVES`; latency and quality are always among them.
        fraction: whether the quality is a share; None where nobody said.
        allowed: drop of quality that a user accepts; the corner of the volume lies beyond it.
    """

    names: tuple[Objective, ...] = ALWAYS
    fraction: bool | None = None
    allowed: Drop | None = None

    @property
    def more(self) -> tuple[Objective, ...]:
        """Those beside latency and quality: sizes of a kind, less is better."""
        return tuple(name for name in self.names if name not in ALWAYS)

    def directions(self, maximize: bool) -> tuple[bool, ...]:
        """Whether more is better, of each; `maximize` says it of the quality."""
        return tuple(name == "quality" and maximize for name in self.names)

    def values(self, trial: Trial, part: Part = "select") -> tuple[float, ...]:
        """Of a measured trial: latency ratio to the fastest dense, quality on a part, bytes; NaN where not known."""
        return tuple(_value(trial, name, part) for name in self.names)

    def taken(self, trial: Trial) -> tuple[float, ...]:
        """Of `values`, the bytes of what stands beside latency and quality."""
        return tuple(_value(trial, name, "select") for name in self.more)

    def point(self, trial: Trial, dense: Trial | None, part: Part = "select") -> tuple[float, ...]:
        """Coordinates in which progress is told: logarithms of the ratios to dense, and the quality.

        NaN where a value or the dense model's is not known.
        """
        found = []
        for name in self.names:
            value = _value(trial, name, part)
            if name in self.more:
                value /= _value(dense, name, part) if dense else math.nan
            found.append(value if name == "quality" else log_ratio(value))
        return tuple(found)

    def reference(self, quality_dense: float, maximize: bool) -> tuple[float, ...]:
        """Fixed worst corner of the volume, in the coordinates of `point`: 1.05 × dense, and the quality's own."""
        allowed = self.allowed.of(quality_dense) if self.allowed else 0.0
        latency, quality = reference_point(quality_dense, maximize, self.fraction, allowed)
        return tuple(quality if name == "quality" else latency for name in self.names)


#: What is looked for where nothing else is asked.
USUAL = Objectives()


def amount(trial: Trial, name: Objective) -> int | None:
    """Bytes that a trial takes: of its file ("size"), or at most of the device's memory ("memory"); None: not known."""
    if name == "size":
        return trial.artifact.size_bytes if trial.artifact else None
    assert name == "memory"
    return trial.latency.peak_memory_bytes if trial.latency else None


def _value(trial: Trial, name: Objective, part: Part) -> float:
    if name == "quality":
        quality = trial.quality_on(part)
        return math.nan if quality is None else quality
    if name == "latency":
        return trial.latency.ratio_best_dense if trial.latency else math.nan
    taken = amount(trial, name)
    if taken is None:
        return math.nan
    return float(taken) if name == "size" else MEMORY_STEP * max(1, round(taken / MEMORY_STEP))


def read_objectives(given: str | Sequence[str] | None, flag: str = "--objectives") -> Objectives:
    """The objectives in a text such as ``latency,quality,size``, or in a list; latency and quality of None.

    Raises:
        ConfigError: naming the flag, what was given and what would be right.
    """
    if given is None:
        return USUAL
    names = [name.strip() for name in (given.split(",") if isinstance(given, str) else given)]
    for name in names:
        if name not in OBJECTIVES:
            raise ConfigError(f"{flag}: {name!r} is unknown{near(name, OBJECTIVES)}")
    shown = ",".join(names)
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise ConfigError(f"{flag} {shown}: names {twice} more than once; each may stand there once")
    missing = [name for name in ALWAYS if name not in names]
    if missing:
        right = ",".join(name for name in OBJECTIVES if name in (*ALWAYS, *names))
        raise ConfigError(f"{flag} {shown}: lacks {' and '.join(missing)}, which every search needs; give {right}")
    return Objectives(tuple(name for name in OBJECTIVES if name in names))
