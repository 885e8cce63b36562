"""What a user asks for: budgets of latency, speed-up, quality, size and memory, and how far a trial is from them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from autocompress.drop import NUMBER, Drop
from autocompress.errors import ConfigError
from autocompress.records import Part, Trial

_SECONDS = {"us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
#: Excess that is rounding: 0.90 - 0.89 is a little more than 0.01, and yet no more than one point.
ROUNDING = 1e-9

_BYTES = {"b": 1, "kb": 1e3, "mb": 1e6, "gb": 1e9, "tb": 1e12, "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}


def parse_seconds(text: str, flag: str, bare: str = "") -> float:
    """Seconds in a text such as ``5ms``, ``90s``, ``30m``, ``2h``; `bare` is the unit of a plain number.

    Raises:
        ConfigError: naming the flag and what would be right.
    """
    match = re.fullmatch(NUMBER + r"\s*([a-zµ]*)", str(text).strip().lower())
    unit = match.group(2) or bare if match else ""
    if not match or unit not in _SECONDS or float(match.group(1)) <= 0:
        raise ConfigError(f"{flag} must be a time above 0 such as 5ms, 90s or 30m, but got {text!r}")
    return float(match.group(1)) * _SECONDS[unit]


def parse_bytes(text: str, flag: str = "--bank-limit", bare: str = "") -> int:
    """Bytes in a text such as ``500MB``, ``2GB`` or ``1.5GiB``; `bare` is the unit of a plain number.

    Raises:
        ConfigError: naming the flag and what would be right.
    """
    match = re.fullmatch(NUMBER + r"\s*([a-z]*)", str(text).strip().lower())
    size = float(match.group(1)) * _BYTES.get(match.group(2) or bare, 0) if match else 0
    if size < 1:
        raise ConfigError(f"{flag} must be a size above 0 such as 500MB, 2GB or 1.5GiB, but got {text!r}")
    return int(size)


def parse_speedup(text: str, flag: str = "--min-speedup") -> float:
    """The factor in a text such as ``2x`` or ``2``; raises `ConfigError` below 1."""
    match = re.fullmatch(NUMBER + r"\s*[x×]?", str(text).strip().lower())
    if not match or float(match.group(1)) < 1:
        raise ConfigError(f"{flag} must be a factor of 1 or more such as 2x, but got {text!r}")
    return float(match.group(1))


@dataclass(frozen=True)
class Budgets:
    """What must hold; None where nothing is asked.

    Attributes:
        max_latency_s: upper end of the latency's interval.
        min_speedup: against the fastest dense fp32 setting, at the upper end of the ratio's interval.
        max_drop: of the validation quality.
        max_size_bytes: of the file.
        max_memory_bytes: peak of a process that loads the file and runs one query; what is not measured is over it.
    """

    max_latency_s: float | None = None
    min_speedup: float | None = None
    max_drop: Drop | None = None
    max_size_bytes: int | None = None
    max_memory_bytes: int | None = None

    def __bool__(self) -> bool:
        """Whether anything is asked."""
        return any(value is not None for value in asdict(self).values())

    @property
    def asks_fastest(self) -> bool:
        """Whether the fastest within an allowed drop is asked for: no latency or speed-up is."""
        return self.max_drop is not None and self.max_latency_s is None and self.min_speedup is None

    def violations(self, trial: Trial, quality_dense: float, maximize: bool, part: Part = "select") -> dict[str, float]:
        """Budget name to how far a measured trial is over it (0 or less: within); always the same names.

        Args:
            trial: measured.
            quality_dense: of the dense model on the same part of validation.
            maximize: whether more quality is better.
            part: of validation that the quality is taken of.
        """
        assert trial.latency is not None
        quality = trial.quality_on(part)
        assert quality is not None
        result = {}
        if self.max_latency_s is not None:
            result["latency"] = latency_high(trial) / self.max_latency_s - 1
        if self.min_speedup is not None:
            result["speedup"] = trial.latency.ratio_best_dense_high * self.min_speedup - 1
        if self.max_drop is not None:
            over = self.max_drop.lost(quality, quality_dense, maximize) - self.max_drop.amount
            result["drop"] = over if over > ROUNDING else min(over, 0.0)
        if self.max_size_bytes is not None and trial.artifact is not None:
            result["size"] = trial.artifact.size_bytes / self.max_size_bytes - 1
        if self.max_memory_bytes is not None:
            peak = trial.latency.peak_memory_bytes
            result["memory"] = math.inf if peak is None else peak / self.max_memory_bytes - 1
        return result

    def sentences(self) -> Iterator[str]:
        """What is asked, in words."""
        if self.max_latency_s is not None:
            yield f"answers within {self.max_latency_s * 1e3:.4g} ms"
        if self.min_speedup is not None:
            yield f"at least {self.min_speedup:g}x faster than the fastest dense fp32"
        if self.max_drop is not None:
            yield f"loses at most {self.max_drop} of validation quality"
        if self.max_size_bytes is not None:
            yield f"takes at most {self.max_size_bytes / 1e6:.4g} MB"
        if self.max_memory_bytes is not None:
            yield f"needs at most {self.max_memory_bytes / 1e6:.4g} MB of memory"

    def lacks(self, trial: Trial, quality_dense: float, maximize: bool, part: Part = "select") -> list[str]:
        """What keeps a trial from fitting, in words; arguments as of `violations`."""
        assert trial.latency is not None
        quality = trial.quality_on(part)
        assert quality is not None
        over = self.violations(trial, quality_dense, maximize, part)
        words = []
        if over.get("latency", 0) > 0 and self.max_latency_s:
            words.append(
                f"its latency is {latency_high(trial) * 1e3:.3g} ms (upper end), "
                f"{self.max_latency_s * 1e3:.3g} ms allowed"
            )
        if over.get("speedup", 0) > 0:
            words.append(
                f"it is {1 / trial.latency.ratio_best_dense_high:.3f}x faster (lower end), {self.min_speedup:g}x asked"
            )
        if over.get("drop", 0) > 0 and self.max_drop:
            lost = self.max_drop.lost(quality, quality_dense, maximize)
            shown = f"{lost * 100:.3g} %" if self.max_drop.relative else f"{lost * self.max_drop.points:.2f} points"
            where = "the confirm part of validation" if part == "confirm" else "validation"
            words.append(f"it loses {shown} on {where}, {self.max_drop} allowed")
        if over.get("size", 0) > 0 and self.max_size_bytes and trial.artifact:
            words.append(
                f"its file takes {trial.artifact.size_bytes / 1e6:.3g} MB, {self.max_size_bytes / 1e6:.3g} MB allowed"
            )
        if over.get("memory", 0) > 0 and self.max_memory_bytes:
            peak, allowed = trial.latency.peak_memory_bytes, f"{self.max_memory_bytes / 1e6:.3g} MB allowed"
            needs = "is not measured" if peak is None else f"is {peak / 1e6:.3g} MB"
            words.append(f"its peak memory {needs}, {allowed}")
        return words


def latency_high(trial: Trial) -> float:
    """Upper end of a trial's latency: its median, scaled by its ratio's relative half-interval."""
    assert trial.latency is not None
    return trial.latency.latency_s * trial.latency.ratio_high / trial.latency.ratio
