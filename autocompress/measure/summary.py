"""From what was timed in one or several processes to a `Latency`. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from autocompress.hardware import Timing
from autocompress.measure.blocks import WAITED
from autocompress.measure.decoding import decoded
from autocompress.measure.energy import EnergySource
from autocompress.measure.process import Setting
from autocompress.measure.rounds import Kept, Rounds
from autocompress.measure.timing import Interval, bootstrap_nested, p99
from autocompress.records import Latency, Tier


@dataclass(frozen=True)
class Stream:
    """Queries that ran back to back, with nothing between them.

    Attributes:
        times: seconds of each.
        seconds: of all.
        waited: seconds that threads stood in line for a core.
        joules, energy_source: of all; None where the machine does not count.
    """

    times: tuple[float, ...]
    seconds: float
    waited: float = 0.0
    joules: float | None = None
    energy_source: EnergySource | None = None


@dataclass
class Race:
    """What one process, or one per setting, gave.

    Attributes:
        rounds: the contestants in turn.
        load_s: contestant to seconds of loading.
        steps: contestant to the seconds of each decoded query: of its prompt, and of each token after.
        stream: the candidate's queries back to back.
    """

    rounds: Rounds = field(default_factory=Rounds)
    load_s: dict[str, float] = field(default_factory=dict)
    steps: dict[str, list[tuple[float, list[float]]]] = field(default_factory=dict)
    stream: Stream | None = None


@dataclass(frozen=True)
class Names:
    """Contestants by their part in the race; `best` is `dense` where the profile's own setting is the fastest."""

    candidate: str
    dense: str
    best: str


def summarize(
    races: Sequence[Race], names: Names, setting: Setting, timing: Timing, *, tier: Tier, peak: int | None = None
) -> Latency:
    """The latency of a candidate, from one race per fresh process.

    Args:
        races: at least one.
        names: of the contestants.
        setting: of the candidate.
        timing: the protocol, for what it calls noisy.
        tier: as asked.
        peak: largest resident set, bytes.
    """
    candidate = names.candidate
    kept = [race.rounds.kept(candidate) for race in races]
    times = np.concatenate([race.rounds.times(candidate) for race in races])
    ratios = [race.rounds.ratios(candidate, names.dense) for race in races]
    ratio = bootstrap_nested(ratios)
    best = bootstrap_nested([race.rounds.ratios(candidate, names.best) for race in races])
    quarter, median, three_quarters, ninety = np.quantile(times, [0.25, 0.5, 0.75, 0.9])
    return Latency(
        latency_s=float(median),
        iqr_s=float(three_quarters - quarter),
        p90_s=float(ninety),
        ratio=ratio.value,
        ratio_low=ratio.low,
        ratio_high=ratio.high,
        ratio_best_dense=best.value,
        ratio_best_dense_low=best.low,
        ratio_best_dense_high=best.high,
        source="measured",
        tier=tier,
        runtime=setting.runtime,
        threads=setting.threads,
        blocks=sum(len(rounds) for rounds in kept),
        rejected_blocks=sum(rounds.rejected for rounds in kept),
        contended_blocks=sum(rounds.contended for rounds in kept),
        queries=len(times),
        block_ratios=tuple(round(float(r), 5) for r in np.concatenate(ratios)),
        warnings=tuple(_warnings(races, kept, ratios, ratio, timing)),
        processes=len(races),
        load_s=float(np.median([race.load_s[candidate] for race in races])),
        peak_memory_bytes=peak,
        **_stream_figures([race.stream for race in races if race.stream]),
        **_decoder_figures([step for race in races for step in race.steps.get(candidate, [])]),
    )


def _stream_figures(streams: Sequence[Stream]) -> dict[str, Any]:
    """Throughput, the far tail and energy; of nothing, nothing."""
    if not streams:
        return {}
    queries = sum(len(stream.times) for stream in streams)
    tail = p99([seconds for stream in streams for seconds in stream.times])
    counted = [stream for stream in streams if stream.joules is not None]
    joules = sum(stream.joules or 0.0 for stream in counted)
    return {
        "throughput": queries / sum(stream.seconds for stream in streams),
        "p99_s": tail.value if tail else None,
        "p99_low_s": tail.low if tail else None,
        "p99_high_s": tail.high if tail else None,
        "energy_j": joules / sum(len(stream.times) for stream in counted) if counted else None,
        "energy_source": counted[0].energy_source if counted else None,
    }


def _decoder_figures(steps: Sequence[tuple[float, list[float]]]) -> dict[str, Any]:
    if not steps:
        return {}
    found = decoded(steps)
    return {"first_token_s": found.first_token_s, "per_token_s": found.per_token_s}


def _warnings(
    races: Sequence[Race], kept: Sequence[Kept], ratios: Sequence[np.ndarray[Any, Any]], ratio: Interval, timing: Timing
) -> Iterator[str]:
    unsteady = sum(rounds.unsteady for rounds in kept)
    crowded = sum(rounds.crowded for rounds in kept)
    if unsteady:
        yield f"the machine was unsteady in {unsteady} kept rounds: there were too few steady ones"
    if crowded:
        yield f"other programs took the processor in {crowded} kept rounds: there were too few undisturbed ones"
    if ratio.half_width > 3 * timing.half_width:
        yield f"noisy: the ratio's interval is ±{ratio.half_width:.1%}"
    medians = [float(np.median(values)) for values in ratios]
    if max(medians) - min(medians) > 3 * timing.half_width * ratio.value:
        yield f"fresh processes disagree: {min(medians):.3f} to {max(medians):.3f} of dense"
    streams = [race.stream for race in races if race.stream]
    waited = sum(stream.waited for stream in streams) / max(sum(stream.seconds for stream in streams), 1e-9)
    if waited > WAITED:
        yield f"back to back, threads stood in line for a core for {waited:.0%} of the time: tail and throughput suffer"
