"""The verb `measure_latency`: an artefact against the dense references, each in a measuring process."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np

from autocompress.errors import MeasureError
from autocompress.hardware import HardwareProfile, Timing
from autocompress.measure.timing import Interval, Rounds, bootstrap_median, queries_per_block, time_in_turn
from autocompress.records import Latency

Tier = Literal["search", "report"]


@dataclass(frozen=True)
class Setting:
    """Where an artefact runs."""

    runtime: str
    threads: int

    def __str__(self) -> str:
        """Runtime and threads, as reports show them."""
        return f"{self.runtime}, {self.threads} thread{'s' if self.threads > 1 else ''}"


@dataclass(frozen=True)
class Contestant:
    """An artefact in a setting."""

    name: str
    path: Path
    setting: Setting


class Worker:
    """One measuring process; see `measure.worker`."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        command = [sys.executable, "-m", "autocompress.measure.worker", setting.runtime, str(setting.threads)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )

    def ask(self, **request: Any) -> dict[str, Any]:
        """Send a request and wait for the answer; raises `MeasureError` on any fault in the process."""
        to_worker, from_worker = self._process.stdin, self._process.stdout
        assert to_worker is not None
        assert from_worker is not None
        try:
            to_worker.write(json.dumps(request) + "\n")
            to_worker.flush()
            line = from_worker.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            code = self._process.wait()
            raise MeasureError(f"the measuring process ({self.setting}) died with exit code {code} at {request}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise MeasureError(answer["error"])
        return answer

    @property
    def alive(self) -> bool:
        """Whether the process still runs."""
        return self._process.poll() is None

    def close(self) -> None:
        """End the process."""
        streams: tuple[IO[str] | None, ...] = (self._process.stdin, self._process.stdout)
        for stream in streams:
            with contextlib.suppress(BrokenPipeError):
                if stream:
                    stream.close()
        self._process.terminate()
        self._process.wait()


class Bench:
    """The measuring processes of a run, one per setting, and what is loaded in them.

    Args:
        profile: gives the setting of candidates and the protocol.
        inputs: .npz file with the inputs of one workload query.
        dense: the dense artefact.
        best_dense: the setting in which dense is fastest; None until the probe has found it.
    """

    def __init__(self, profile: HardwareProfile, inputs: Path, dense: Path, best_dense: Setting | None = None) -> None:
        self.profile = profile
        self.inputs = inputs
        self.setting = Setting(profile.runtime, profile.threads)
        self.dense = Contestant("dense", dense, self.setting)
        self.best_dense = best_dense or self.setting
        self._workers: dict[Setting, Worker] = {}
        self._open: set[tuple[Setting, str]] = set()

    def __enter__(self) -> Bench:
        """The bench itself."""
        return self

    def __exit__(self, *_fault: object) -> None:
        """End all processes."""
        self.close()

    def close(self) -> None:
        """End all processes; the next measurement starts fresh ones."""
        for worker in self._workers.values():
            worker.close()
        self._workers.clear()
        self._open.clear()

    def measure(self, path: Path, tier: Tier = "search") -> Latency:
        """Latency of an artefact against both dense references, timed in turn.

        The report tier starts fresh processes, and while the interval is wider than the profile wants, goes on until
        `report_queries` queries of each contestant are kept.

        Raises:
            MeasureError: the runtime refuses the file or its process dies.
        """
        if tier == "report":
            self.close()
        candidate = Contestant(f"candidate:{path}", path, self.setting)
        contestants = [self.dense, candidate]
        best = self.dense
        if self.best_dense != self.setting:
            best = Contestant("best-dense", self.dense.path, self.best_dense)
            contestants.append(best)
        timing = self.profile.timing
        try:
            rounds = self.race(contestants, timing, timing.report_queries if tier == "report" else 0)
        finally:
            self._close_session(candidate)
        return _latency(rounds, candidate, self.dense, best, timing, tier)

    def race(self, contestants: Sequence[Contestant], timing: Timing, enough_queries: int = 0) -> Rounds:
        """Time contestants in turn; the first is the reference."""
        queries = {}
        for contestant in contestants:
            seconds = self.load(contestant)
            queries[contestant.name] = queries_per_block(seconds, timing.block_seconds)
        by_name = {contestant.name: contestant for contestant in contestants}

        def run_block(name: str) -> list[float]:
            worker = self._worker(by_name[name].setting)
            times: list[float] = worker.ask(do="block", key=name, queries=queries[name])["times"]
            return times

        return time_in_turn(list(by_name), run_block, timing, enough_queries)

    def _worker(self, setting: Setting) -> Worker:
        worker = self._workers.get(setting)
        if worker is None or not worker.alive:
            if worker is not None:
                worker.close()
            self._open = {item for item in self._open if item[0] != setting}
            worker = self._workers[setting] = Worker(setting)
        return worker

    def load(self, contestant: Contestant) -> float:
        """Load an artefact, or wake a loaded one; returns a first guess of its seconds per query.

        Raises:
            MeasureError: the runtime refuses the file or its process dies.
        """
        worker = self._worker(contestant.setting)
        if (contestant.setting, contestant.name) in self._open:
            times = worker.ask(do="block", key=contestant.name, queries=3)["times"]
            return float(np.median(times))
        answer = worker.ask(
            do="open",
            key=contestant.name,
            path=str(contestant.path),
            inputs=str(self.inputs),
            warmup_seconds=self.profile.timing.warmup_seconds,
        )
        self._open.add((contestant.setting, contestant.name))
        return float(answer["query_s"])

    def _close_session(self, contestant: Contestant) -> None:
        key = (contestant.setting, contestant.name)
        if key in self._open:
            self._open.discard(key)
            worker = self._workers.get(contestant.setting)
            if worker and worker.alive:
                worker.ask(do="close", key=contestant.name)


def _latency(
    rounds: Rounds, candidate: Contestant, dense: Contestant, best: Contestant, timing: Timing, tier: Tier
) -> Latency:
    times = np.array(rounds.times[candidate.name])
    ratios = rounds.ratios(candidate.name, dense.name)
    ratio = bootstrap_median(ratios)
    ratio_best = ratio if best is dense else bootstrap_median(rounds.ratios(candidate.name, best.name))
    quarter, median, three_quarters, ninety = np.quantile(times, [0.25, 0.5, 0.75, 0.9])
    return Latency(
        latency_s=float(median),
        iqr_s=float(three_quarters - quarter),
        p90_s=float(ninety),
        ratio=ratio.value,
        ratio_low=ratio.low,
        ratio_high=ratio.high,
        ratio_best_dense=ratio_best.value,
        ratio_best_dense_low=ratio_best.low,
        ratio_best_dense_high=ratio_best.high,
        source="measured",
        tier=tier,
        runtime=candidate.setting.runtime,
        threads=candidate.setting.threads,
        blocks=len(rounds),
        rejected_blocks=rounds.rejected,
        queries=len(times),
        block_ratios=tuple(round(float(r), 5) for r in ratios),
        warnings=tuple(_warnings(rounds, ratio, timing)),
    )


def _warnings(rounds: Rounds, ratio: Interval, timing: Timing) -> Iterator[str]:
    if rounds.drifting:
        yield f"the dense reference drifted by more than {timing.drift:.0%} within {rounds.drifting} kept rounds"
    if ratio.half_width > 3 * timing.half_width:
        yield f"noisy: the ratio's interval is ±{ratio.half_width:.1%}"
