"""The verb `measure_latency`: an artefact against the dense references, each in a measuring process."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autocompress.hardware import HardwareProfile, Timing
from autocompress.measure.blocks import Block, queries_per_block
from autocompress.measure.cores import idlest
from autocompress.measure.lock import DeviceLock, warn
from autocompress.measure.process import Contestant, Setting, Worker
from autocompress.measure.rounds import Rounds
from autocompress.measure.summary import Names, Race, Stream, summarize
from autocompress.measure.timing import bootstrap_median, order_decided, time_in_turn
from autocompress.records import Latency, Tier

__all__ = ["Bench", "Contestant", "Setting", "Worker"]

#: Fresh processes of the report and full tiers. Fewer than three cannot outvote one that drew a bad lot.
PROCESSES = 3
#: Queries back to back: by time in the report tier, by count in the full one (MLPerf's single stream: 1,024).
STREAM_SECONDS = 0.2
FULL_QUERIES = 1024
#: How often in one race the bench looks for idler cores after other programs took the ones it has.
LOOKS = 5

#: More cores than a machine has: all of them, idlest first.
ALL = 1 << 16


@dataclass(frozen=True)
class _Known:
    """What loading told: seconds of it, seconds of the fastest query, and how many queries the workload has."""

    load_s: float
    query_s: float
    inputs: int


class Bench:
    """The measuring processes of a run, one per setting, and what is loaded in them.

    While it times, and only then, it holds the device's lock: searches on one machine take turns.

    Args:
        profile: gives the setting of candidates and the protocol.
        inputs: .npz file with the queries of the workload; see `measure.queries`.
        dense: the dense artefact.
        best_dense: the setting in which dense is fastest; None until the probe has found it.
        say: told who is waited for; stderr by default.
        memory: whether the search tier measures peak memory too, in one more process for each candidate.
    """

    def __init__(
        self,
        profile: HardwareProfile,
        inputs: Path,
        dense: Path,
        best_dense: Setting | None = None,
        *,
        say: Callable[[str], None] = warn,
        memory: bool = False,
    ) -> None:
        self.profile = profile
        self.inputs = inputs
        self.memory = memory
        self.setting = Setting(profile.runtime, profile.threads, profile.device)
        self.dense = Contestant("dense", dense, self.setting)
        self.best_dense = best_dense or self.setting
        self._lock = DeviceLock(profile.device, say)
        self._cores: list[int] | None = None
        self._workers: dict[Setting, Worker] = {}
        self._open: dict[tuple[Setting, str], _Known] = {}

    def __enter__(self) -> Bench:
        """The bench itself."""
        return self

    def __exit__(self, *_fault: object) -> None:
        """End all processes."""
        self.close()

    def close(self) -> None:
        """End all processes; the next measurement starts fresh ones, on the cores that are idlest then."""
        for worker in self._workers.values():
            worker.close()
        self._workers.clear()
        self._open.clear()
        self._cores = None

    def measure(self, path: Path, tier: Tier = "search", *, rivals: Sequence[float] = ()) -> Latency:
        """Latency of an artefact against both dense references, timed in turn.

        The report tier starts `PROCESSES` fresh processes one after another and pools them: an interval from one
        does not see what differs between processes. While the interval within one is wider than the profile wants,
        it goes on there until `report_queries` queries of each contestant are kept over all. The full tier adds
        `FULL_QUERIES` queries back to back, enough for a 99th percentile.

        Args:
            path: the artefact.
            tier: "search", "report" or "full".
            rivals: ratios to the fastest dense of other candidates; in the search tier the timing also stops once
                the interval excludes them all.

        Raises:
            MeasureError: the runtime refuses the file or its process dies.
            ValueError: the tier is "table"; see `table_ratio`.
        """
        if tier == "table":
            raise ValueError("a candidate has no table tier; table_ratio times a part of a model")
        candidate = Contestant(f"candidate:{path}", path, self.setting)
        contestants, best = [self.dense, candidate], self.dense
        if self.best_dense != self.setting:
            best = Contestant("best-dense", self.dense.path, self.best_dense)
            contestants.append(best)
        names = Names(candidate.name, self.dense.name, best.name)
        timing = self.profile.timing
        with self._lock:
            if tier == "search":
                races = [self._search(contestants, names, rivals)]
            else:
                races = [self._fresh(contestants, names, tier) for _ in range(PROCESSES)]
            peak = self._peak_memory(candidate) if self.memory or tier != "search" else None
        return summarize(races, names, self.setting, timing, tier=tier, peak=peak)

    def outputs(self, path: Path) -> NDArray[Any]:
        """First output of a candidate's file for the workload's first query, as its measuring process gets it.

        Raises:
            MeasureError: the runtime refuses the file or its process dies.
        """
        candidate = Contestant(f"candidate:{path}", path, self.setting)
        self.load(candidate)
        with tempfile.TemporaryDirectory() as folder:
            answer = Path(folder) / "outputs.npy"
            self._worker(candidate.setting).ask(do="outputs", key=candidate.name, path=str(answer))
            found: NDArray[Any] = np.load(answer, allow_pickle=False)
        return found

    def race(self, contestants: Sequence[Contestant], timing: Timing, enough_queries: int = 0) -> Rounds:
        """Time contestants in turn; the first is the reference."""
        with self._lock:
            return self._race(contestants, timing, enough_queries).rounds

    def table_ratio(self, path: Path, inputs: Path) -> float:
        """Seconds per query of a part of a model, as a share of the dense model's; for tables, never for claims.

        They are timed in turn: a machine that others share may be slower by half for minutes on end, and what is timed
        alone then seems longer by so much.

        Args:
            path: the part's file.
            inputs: .npz file with its own query.

        Raises:
            MeasureError: the runtime refuses the file or its process dies.
        """
        part = Contestant(f"part:{path}", path, self.setting)
        with self._lock:
            try:
                self._load(part, inputs)
                rounds = self._race([self.dense, part], self.profile.timing).rounds
                return bootstrap_median(rounds.ratios(part.name, self.dense.name)).value
            finally:
                self._close_session(part)

    def load(self, contestant: Contestant) -> float:
        """Load an artefact, or wake a loaded one; returns a first guess of its seconds per query.

        Raises:
            MeasureError: the runtime refuses the file or its process dies.
        """
        with self._lock:
            return self._load(contestant, self.inputs)

    def _search(self, contestants: Sequence[Contestant], names: Names, rivals: Sequence[float]) -> Race:
        def decided(rounds: Rounds) -> bool:
            return order_decided(rounds.ratios(names.candidate, names.best), rivals)

        try:
            return self._race(
                contestants, self.profile.timing, decided=decided if rivals else None, references=[names.best]
            )
        finally:
            self._close_session(contestants[1])

    def _fresh(self, contestants: Sequence[Contestant], names: Names, tier: Tier) -> Race:
        """One race in fresh processes, with a share of the rounds and queries that all of them are to have."""
        self.close()
        timing, candidate = self.profile.timing, contestants[1]
        rounds = max(timing.min_blocks, math.ceil(timing.max_blocks / PROCESSES))
        share = timing.model_copy(update={"max_blocks": rounds})
        try:
            enough = math.ceil(timing.report_queries / PROCESSES)
            race = self._race(contestants, share, enough, references=[names.best])
            seconds = self._load(candidate, self.inputs)
            queries = math.ceil(FULL_QUERIES / PROCESSES) if tier == "full" else 1
            race.stream = self._stream(candidate, max(queries, round(STREAM_SECONDS / max(seconds, 1e-9))))
            return race
        finally:
            self._close_session(candidate)

    def _race(
        self,
        contestants: Sequence[Contestant],
        timing: Timing,
        enough_queries: int = 0,
        decided: Callable[[Rounds], bool] | None = None,
        *,
        references: Sequence[str] = (),
    ) -> Race:
        race, looks = Race(), 0
        by_name = {contestant.name: contestant for contestant in contestants}
        seconds = {name: self._load(contestant, self.inputs) for name, contestant in by_name.items()}
        race.load_s = {c.name: self._open[c.setting, c.name].load_s for c in contestants}

        def run_block(name: str) -> Block:
            nonlocal looks
            block = self._block(by_name[name], seconds[name], timing, race.steps.setdefault(name, []))
            if block.contended and looks < LOOKS:
                looks += 1
                self._move()
            return block

        race.rounds = time_in_turn(list(by_name), run_block, timing, enough_queries, decided, references=references)
        return race

    def _block(
        self,
        contestant: Contestant,
        seconds: float,
        timing: Timing,
        steps: list[tuple[float, list[float]]] | None = None,
    ) -> Block:
        inputs = self._open[contestant.setting, contestant.name].inputs
        queries = queries_per_block(seconds, timing.block_seconds, inputs)
        answer = self._worker(contestant.setting).ask(do="block", key=contestant.name, queries=queries)
        if steps is not None:
            steps += [(first, after) for first, after in answer.get("steps", [])]
        return Block(tuple(answer["times"]), tuple(answer["waited"]), inputs, contestant.setting.threads == 1)

    def _stream(self, contestant: Contestant, queries: int) -> Stream:
        answer = self._worker(contestant.setting).ask(do="stream", key=contestant.name, queries=queries)
        return Stream(**{**answer, "times": tuple(answer["times"])})

    def _peak_memory(self, contestant: Contestant) -> int:
        """Largest resident set of a fresh process that loads the file and answers one query."""
        worker = Worker(contestant.setting, self._cores_of(contestant.setting))
        try:
            answer = worker.ask(do="memory", path=str(contestant.path), **self._query(self.inputs))
        finally:
            worker.close()
        return int(answer["peak_memory_bytes"])

    def _query(self, inputs: Path) -> dict[str, str | int | None]:
        """What a query of the workload is; the parts of a model, with inputs of their own, do not generate."""
        workload = self.profile.workload
        generates = inputs == self.inputs
        return {
            "inputs": str(inputs),
            "prompt_length": workload.prompt_length if generates else None,
            "new_tokens": workload.new_tokens if generates else None,
        }

    def _worker(self, setting: Setting) -> Worker:
        worker = self._workers.get(setting)
        if worker is None or not worker.alive:
            if worker is not None:
                worker.close()
            self._open = {item: known for item, known in self._open.items() if item[0] != setting}
            worker = self._workers[setting] = Worker(setting, self._cores_of(setting))
        return worker

    def _cores_of(self, setting: Setting) -> Sequence[int]:
        """Where a process should compute; any core where the work is done elsewhere."""
        if setting.device != "cpu":
            return ()
        if self._cores is None:
            self._cores = idlest(ALL)
        return self._cores

    def _move(self) -> None:
        """Look for idler cores, and let all processes run there: contestants share their cores."""
        self._cores = None
        for setting, worker in self._workers.items():
            worker.move(self._cores_of(setting))

    def _load(self, contestant: Contestant, inputs: Path) -> float:
        worker = self._worker(contestant.setting)
        known = self._open.get((contestant.setting, contestant.name))
        if known:
            worker.ask(do="block", key=contestant.name, queries=known.inputs)  # wakes it
            return known.query_s
        answer = worker.ask(
            do="open",
            key=contestant.name,
            path=str(contestant.path),
            warmup_seconds=self.profile.timing.warmup_seconds,
            **self._query(inputs),
        )
        self._open[contestant.setting, contestant.name] = _Known(**answer)
        return float(answer["query_s"])

    def _close_session(self, contestant: Contestant) -> None:
        key = (contestant.setting, contestant.name)
        if key in self._open:
            del self._open[key]
            worker = self._workers.get(contestant.setting)
            if worker and worker.alive:
                worker.ask(do="close", key=contestant.name)
