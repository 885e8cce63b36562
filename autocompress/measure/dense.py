"""Which setting of a device is the fastest for the dense model: what every speed-up is held against."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from autocompress.errors import MeasureError
from autocompress.hardware import HardwareProfile, Timing
from autocompress.measure.latency import Contestant, Setting
from autocompress.measure.rounds import Rounds
from autocompress.measure.timing import bootstrap_median
from autocompress.processors import cores
from autocompress.records import Latency, Tier
from autocompress.runtimes import FILES, installed_runtimes


@dataclass(frozen=True)
class DenseSetting:
    """How long the dense model takes in one setting; `ratio` is to the profile's own."""

    runtime: str
    threads: int
    latency_s: float
    ratio: float


class AnyBench(Protocol):
    """What gives latencies of files: measured here, recorded on the device, or predicted from its chip.

    Attributes:
        profile: of the device.
        inputs: .npz file of the workload's queries.
        setting: runtime and threads of candidates.
        dense: the dense model's file there.
        best_dense: the setting in which dense is fastest.
    """

    profile: HardwareProfile
    inputs: Path
    setting: Setting
    dense: Contestant
    best_dense: Setting

    def measure(self, path: Path, tier: Tier = "search", *, rivals: Sequence[float] = ()) -> Latency:
        """Latency of a file, with its ratios to the dense one."""
        ...

    def outputs(self, path: Path) -> NDArray[Any] | None:
        """First output of a candidate's file for the first query, where a process of its own runs it."""
        ...

    def table_ratio(self, path: Path, inputs: Path) -> float:
        """Seconds of a part of a model, with a query of its own, as a share of the dense model's."""
        ...

    def load(self, contestant: Contestant) -> float:
        """Load a file; a first guess of its seconds per query."""
        ...

    def race(self, contestants: Sequence[Contestant], timing: Timing, enough_queries: int = 0) -> Rounds:
        """Time files in turn; the first is the reference."""
        ...

    def close(self) -> None:
        """End what was started."""
        ...


def find_best_dense(bench: AnyBench) -> tuple[DenseSetting, ...]:
    """The dense artefact in every installed runtime that loads it, in one and all threads, in turn, fastest first.

    Of a profile whose latencies are not measured, its own setting alone.
    """
    profile = bench.profile
    contestants = [Contestant(f"dense:{s}", bench.dense.path, s) for s in _settings(bench)]
    for contestant in contestants[1:]:
        try:
            bench.load(contestant)
        except MeasureError:  # another runtime may lack an operator; the profile's own must not
            contestants.remove(contestant)
    rounds = bench.race(contestants, profile.timing)
    reference = contestants[0].name
    found = [
        DenseSetting(
            c.setting.runtime,
            c.setting.threads,
            bootstrap_median(np.array(rounds.times(c.name))).value,
            bootstrap_median(rounds.ratios(c.name, reference)).value,
        )
        for c in contestants
    ]
    bench.close()  # the losers' processes are not needed again
    return tuple(sorted(found, key=lambda item: item.ratio))


def _settings(bench: AnyBench) -> list[Setting]:
    """The profile's own first."""
    profile, settings = bench.profile, [bench.setting]
    if profile.latencies != "measured":
        return settings
    form = next(form for form, name in FILES.items() if Path(name).suffix == bench.dense.path.suffix)
    for runtime in installed_runtimes(profile.device, form):
        for threads in sorted({1, profile.threads, cores()}) if profile.device == "cpu" else [profile.threads]:
            setting = Setting(runtime, threads, profile.device)
            if setting not in settings:
                settings.append(setting)
    return settings
