"""What a run writes down: artefacts, latencies, trials; and how it is written so that nothing is lost.

Plain data and plain files. Knows no torch, no runtime.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import io
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from autocompress.errors import AutocompressError, RunMismatchError, StorageError
from autocompress.plan import Plan, plan_from_json

State = Literal["DONE", "INFEASIBLE", "FAILED"]
Origin = Literal[
    "dense", "uniform-int8", "warm-start", "uniform", "seed", "sampled", "solved", "refined", "tuned", "recovered"
]
Source = Literal["measured", "recorded", "predicted"]
Tier = Literal["table", "search", "report", "full"]

#: Part of the validation split: the search chooses by one, the front is chosen by the other at the end.
Part = Literal["select", "confirm"]

#: Per-sample scores of an artefact on the confirm part, beside it.
SCORES = "scores.npy"

#: What the file answered the workload's first query where it was graded, where that is no more than so many bytes.
ANSWER, MOST_ANSWERED = "answer.npy", 1_000_000


@dataclass(frozen=True)
class Artifact:
    """An exported file.

    Attributes:
        path: relative to the run folder.
        format: "onnx" or "pt2".
        size_bytes: of the file.
        sha256: of the file.
        plan_fingerprint: of the plan that it holds.
        deviation: relative L2 distance of its outputs from the torch model's on calibration samples.
    """

    path: str
    format: str
    size_bytes: int
    sha256: str
    plan_fingerprint: str
    deviation: float


@dataclass(frozen=True)
class Latency:
    """One measured latency, with its doubt. Ratios are candidate / reference: lower is faster.

    Attributes:
        latency_s: median seconds per workload query.
        iqr_s: interquartile range of the same.
        p90_s: 90th percentile of the same.
        ratio, ratio_low, ratio_high: to dense fp32 in the same runtime and threads, timed in turn,
            with the 95 % bootstrap interval over blocks.
        ratio_best_dense, ratio_best_dense_low, ratio_best_dense_high: the same to the fastest dense fp32
            setting that the probe found; claims use this one.
        source: "measured" means on this device from this candidate's own file; "recorded" comes from a table taken on
            another device, "predicted" from a chip's published figures.
        tier: "search" (in turn with the references), "report" (fresh processes, more queries) or "full" (1,024
            queries or more, several fresh processes); "table" (a part of a model) is never a candidate's.
        runtime, threads: where it ran.
        blocks, rejected_blocks, queries: rounds kept for candidate and references, rounds thrown away, and queries of
            the candidate in the former.
        block_ratios: candidate / dense of each kept block.
        warnings: what a reader should know before trusting the figure.
        p99_s: 99th percentile; None below 1,000 queries. With `p99_low_s` and `p99_high_s`, its 95 % order-statistic
            interval.
        processes: fresh processes that the figures come from.
        contended_blocks: of the rejected ones, those in which other programs took the processor.
        load_s: seconds to load the file, compiling included; not part of the latency.
        peak_memory_bytes: largest resident set of a process that loads the file and runs one query.
        throughput: queries per second, back to back.
        energy_j, energy_source: joules per query, and where they come from: "rapl", "nvml" or "predicted".
        first_token_s, per_token_s: of a decoder: the prompt, and each token after the first.
    """

    latency_s: float
    iqr_s: float
    p90_s: float
    ratio: float
    ratio_low: float
    ratio_high: float
    ratio_best_dense: float
    ratio_best_dense_low: float
    ratio_best_dense_high: float
    source: Source
    tier: Tier
    runtime: str
    threads: int
    blocks: int
    rejected_blocks: int
    queries: int
    block_ratios: tuple[float, ...] = ()
    warnings: tuple[str, ...] = ()
    p99_s: float | None = None
    p99_low_s: float | None = None
    p99_high_s: float | None = None
    processes: int = 1
    contended_blocks: int = 0
    load_s: float | None = None
    peak_memory_bytes: int | None = None
    throughput: float | None = None
    energy_j: float | None = None
    energy_source: Literal["rapl", "nvml", "predicted"] | None = None
    first_token_s: float | None = None
    per_token_s: float | None = None


@dataclass(frozen=True)
class Trial:
    """One evaluation of one plan; the unit of `trials.jsonl`.

    Attributes:
        number: order in which evaluations ended, from 0.
        proposal: number of the controller's proposal that it answers.
        plan: what was evaluated; with `rung` and the plan's seed it is the evaluation key.
        rung: grade of the evaluation: 0 without recovery; of a staged search, then by the steps of it.
        origin: who proposed it.
        state: "DONE" (measured and within the budgets), "INFEASIBLE" (measured, over a budget),
            "FAILED" (`error` says why).
        quality: the task's metric on the artefact, select part of validation (all of it in old runs).
        quality_stderr: its standard error, where the metric is a mean over samples.
        quality_confirm, quality_confirm_stderr: the same on the confirm part; None in old runs.
        quality_test, quality_test_stderr: the same on the test split; only set for finalists, never used to choose.
        divergence: mean KL(dense ‖ artefact) of its predictions on the select part, in nats; None where they are too
            many to keep.
        latency, artifact: None unless measured.
        seconds: stage name to wall-clock seconds.
        finished_s: seconds since the run's search began, pauses between resumes left out.
        error: reason of a failure.
        what: the plan in a few words.
    """

    number: int
    plan: Plan
    state: State
    origin: Origin
    proposal: int = -1
    rung: int = 0
    quality: float | None = None
    quality_stderr: float | None = None
    quality_confirm: float | None = None
    quality_confirm_stderr: float | None = None
    quality_test: float | None = None
    quality_test_stderr: float | None = None
    divergence: float | None = None
    latency: Latency | None = None
    artifact: Artifact | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    finished_s: float = 0.0
    error: str = ""
    what: str = ""

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the plan."""
        return self.plan.fingerprint

    @property
    def measured(self) -> bool:
        """Whether latency and quality are both known."""
        return self.latency is not None and self.quality is not None

    @property
    def graded(self) -> bool:
        """Whether it was graded as a finalist: timed in fresh processes, and scored on the test split."""
        timed = self.latency is not None and self.latency.tier in ("report", "full")
        return timed and self.quality_test is not None

    def quality_on(self, part: Part) -> float | None:
        """The quality on a part of validation."""
        return self.quality if part == "select" else self.quality_confirm

    def stderr_on(self, part: Part) -> float | None:
        """The standard error of `quality_on`."""
        return self.quality_stderr if part == "select" else self.quality_confirm_stderr

    def replace(self, **changes: Any) -> Trial:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    def to_json(self) -> dict[str, Any]:
        """Plain data that `trial_from_json` reads back."""
        data = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        data["plan"] = self.plan.to_json()
        data["fingerprint"] = self.fingerprint
        data["latency"] = asdict(self.latency) if self.latency else None
        data["artifact"] = asdict(self.artifact) if self.artifact else None
        data["seconds"] = dict(self.seconds)
        return data


def aside(source: Source) -> str:
    """What is said beside a latency in running text: nothing where it was measured, else what it is."""
    return "" if source == "measured" else f", {source}"


def latency_from_json(data: Mapping[str, Any]) -> Latency:
    """Inverse of `dataclasses.asdict` through JSON."""
    return Latency(**{**data, "block_ratios": tuple(data["block_ratios"]), "warnings": tuple(data["warnings"])})


def trial_from_json(data: Mapping[str, Any]) -> Trial:
    """Inverse of `Trial.to_json`; raises `RunMismatchError` when the plan does not match its fingerprint."""
    fields = {k: v for k, v in data.items() if k != "fingerprint"}
    fields["plan"] = plan_from_json(data["plan"])
    if data.get("fingerprint") not in (None, fields["plan"].fingerprint):
        raise RunMismatchError(
            f"trial {data.get('number')}: its plan's fingerprint is {fields['plan'].fingerprint}, but the line says "
            f"{data['fingerprint']}; the file was edited or written by another version"
        )
    if data.get("latency"):
        fields["latency"] = latency_from_json(data["latency"])
    if data.get("artifact"):
        fields["artifact"] = Artifact(**data["artifact"])
    return Trial(**fields)


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn a refused write into a `StorageError` that names the path and the remedy."""
    try:
        yield
    except OSError as fault:
        if fault.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageError(
                f"{path}: no space left on the disk; free some and run the same command again: what is done is kept"
            ) from fault
        if fault.errno in (errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR, errno.EEXIST):
            raise StorageError(f"{path}: cannot be written ({fault.strerror}); choose another --out") from fault
        raise


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write aside, fsync, rename: a reader sees the old file or the new one, never a part."""
    data = content.encode() if isinstance(content, str) else content
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, aside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(aside, 0o644)
            os.replace(aside, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(aside)
            raise


def write_json(path: Path, data: object) -> None:
    """`write_atomic` of indented JSON."""
    write_atomic(path, json.dumps(data, indent=1) + "\n")


def write_scores(artifact: Path, scores: NDArray[Any]) -> None:
    """Keep per-sample scores ``(n,)`` beside an artefact, in single precision."""
    write_array(artifact.with_name(SCORES), scores.astype(np.float32))


def write_answer(artifact: Path, answer: NDArray[Any]) -> None:
    """Keep what an artefact answered beside it, unless that is much."""
    if answer.nbytes <= MOST_ANSWERED:
        write_array(artifact.with_name(ANSWER), answer)


def read_answer(artifact: Path) -> NDArray[Any] | None:
    """What an artefact answered where it was graded; None where nobody kept it."""
    path = artifact.with_name(ANSWER)
    return np.load(path, allow_pickle=False) if path.is_file() else None


def write_array(path: Path, values: NDArray[Any]) -> None:
    """Write an array as NumPy does, whole or not at all."""
    file = io.BytesIO()
    np.save(file, values, allow_pickle=False)
    write_atomic(path, file.getvalue())


def read_scores(root: Path, trials: Iterable[Trial]) -> dict[str, NDArray[Any]]:
    """Fingerprint to per-sample scores, of those trials of a run folder that have them."""
    found = {}
    for trial in trials:
        path = (root / trial.artifact.path).with_name(SCORES) if trial.artifact else None
        if path is not None and path.is_file():
            found[trial.fingerprint] = np.load(path, allow_pickle=False)
    return found


def append_line(path: Path, data: Mapping[str, Any]) -> None:
    """Add one JSON line, flushed to the disk before returning; a torn last line is cut off first."""
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        cut_torn_line(path)
        with path.open("ab") as file:
            file.write(json.dumps(data, separators=(",", ":")).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())


def cut_torn_line(path: Path) -> None:
    """Truncate a file of lines to its last newline: what a kill in mid-write left is no line."""
    if not path.is_file() or not path.stat().st_size:
        return
    with path.open("rb+") as file:
        file.seek(-1, os.SEEK_END)
        if file.read(1) == b"\n":
            return
        file.seek(0)
        whole = file.read()
        file.truncate(whole.rfind(b"\n") + 1)


def read_lines(path: Path) -> Iterable[dict[str, Any]]:
    """The JSON objects of a file of lines; a torn last line is left out, a broken one inside is an error."""
    if not path.is_file():
        return []
    text = path.read_text(encoding="utf-8", errors="replace")
    lines = text.split("\n")
    result = []
    for number, line in enumerate(lines[:-1], start=1):
        try:
            result.append(json.loads(line))
        except json.JSONDecodeError as fault:
            raise AutocompressError(f"{path}: line {number} is not JSON ({fault.msg}); remove it to go on") from None
    return result


def read_trials(path: Path) -> list[Trial]:
    """All trials of a `trials.jsonl`; a later line about the same number (test figures added) wins."""
    by_number: dict[int, Trial] = {}
    for line, data in enumerate(read_lines(path), start=1):
        try:
            trial = trial_from_json(data)
        except RunMismatchError as fault:
            raise RunMismatchError(f"{path}: line {line}: {fault}") from None
        except (AutocompressError, TypeError, KeyError, AttributeError) as fault:
            raise AutocompressError(
                f"{path}: line {line} is no trial of this version ({type(fault).__name__}: {fault}); remove it to go on"
            ) from None
        by_number[trial.number] = trial
    return [by_number[number] for number in sorted(by_number)]
