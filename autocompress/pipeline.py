"""One candidate, once through: `evaluate` writes the order of the stages as lines."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import safetensors.torch
from torch import nn

from autocompress.compress.bank import Bank
from autocompress.compress.quantize import quantize
from autocompress.compress.shape import shape
from autocompress.distill import TeacherCache, recover
from autocompress.errors import ModelError, StorageError
from autocompress.export.export import export_model, to_arrays
from autocompress.hardware import HardwareProfile
from autocompress.layers import LayerTable
from autocompress.measure.latency import Bench
from autocompress.plan import Plan, describe
from autocompress.records import Artifact, Latency, Trial, storage_errors, write_atomic, write_json
from autocompress.runtimes import open_session
from autocompress.tasks.task import Examples, Task

SCORE_BATCH = 32


@dataclass(frozen=True)
class Workshop:
    """What every evaluation of a run shares.

    Attributes:
        root: the run folder.
        task, table, profile: what is compressed, and for what.
        bank, teacher: computed once, on disk.
        bench: the measuring processes.
    """

    root: Path
    task: Task
    table: LayerTable
    profile: HardwareProfile
    bank: Bank
    teacher: TeacherCache
    bench: Bench

    def artifact_folder(self, plan: Plan, rung: int = 0) -> Path:
        """Where the files of a plan lie."""
        return artifact_folder(self.root, plan, rung)


def artifact_folder(root: Path, plan: Plan, rung: int = 0) -> Path:
    """Where the files of a plan lie in a run folder."""
    return root / "artifacts" / f"{plan.fingerprint}-r{rung}"


@dataclass
class _Clock:
    """Seconds per stage."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


@dataclass(frozen=True)
class Score:
    """Quality of an artefact on a split.

    Attributes:
        value: the task's metric.
        stderr: its standard error, or None where the metric is no mean over samples.
    """

    value: float
    stderr: float | None


def evaluate(plan: Plan, shop: Workshop, number: int = 0, rung: int = 0) -> Trial:
    """Take one plan through all stages and return its trial, "DONE" or "FAILED" with the reason.

    Only a full disk and an interrupt end the search; whatever else goes wrong belongs to the candidate.
    """
    clock = _Clock()
    trial = Trial(number, plan, "FAILED", "sampled", rung=rung, seconds=clock.seconds, what=describe(plan, shop.table))
    try:
        artifact = build(plan, shop, clock, rung)
        with clock.stage("measure"):
            latency = shop.bench.measure(shop.root / artifact.path)
        with clock.stage("score"):
            score = score_artifact(artifact, shop, shop.task.validation)
    except StorageError:
        raise
    except Exception as fault:
        return trial.replace(error=f"{type(fault).__name__}: {fault}")
    return trial.replace(
        state="DONE", artifact=artifact, latency=latency, quality=score.value, quality_stderr=score.stderr
    )


def build(
    plan: Plan, shop: Workshop, clock: _Clock | None = None, rung: int = 0, keep_weights: bool = True
) -> Artifact:
    """Everything up to the exported, verified file: shape, recover, integers, export."""
    clock = clock or _Clock()
    folder = shop.artifact_folder(plan, rung)
    with clock.stage("compress"):
        model = shape(shop.task.model, plan, shop.table, shop.bank)
    if plan.distill:
        with clock.stage("recover"):
            model = recover(model, plan.distill, shop.task, shop.teacher, plan.seed)
    with clock.stage("quantize"):
        codes = quantize(model, plan, shop.task.calibration())
    with clock.stage("export"):
        artifact = export_model(
            model, codes, shop.task, folder / "model.onnx", shop.root, plan.fingerprint, shop.profile.runtime
        )
        write_json(folder / "plan.json", plan.to_json())
        if keep_weights:
            save_weights(model, folder / "weights.safetensors")
    return artifact


def save_weights(model: nn.Module, path: Path) -> None:
    """The float weights of a compressed model, by parameter name; weights that are shared are stored once."""
    with storage_errors(path):
        seen: set[int] = set()
        state = {}
        for name, value in model.state_dict().items():
            if value.data_ptr() not in seen or not value.numel():
                state[name] = value.detach().clone().contiguous()
                seen.add(value.data_ptr())
        write_atomic(path, safetensors.torch.save(state))


def score_artifact(artifact: Artifact, shop: Workshop, examples: Examples) -> Score:
    """The task's metric of an exported file on a split, run in the profile's runtime.

    Raises:
        ModelError: the metric gives no finite number.
    """
    session = open_session(shop.root / artifact.path, shop.profile.runtime, shop.profile.threads)
    outputs = None
    for rows, inputs, _targets in examples.batches(SCORE_BATCH):
        values = session.run(to_arrays(inputs))[0]
        if outputs is None:
            outputs = np.zeros((len(examples), *values.shape[1:]), dtype=values.dtype)
        outputs[rows] = values
    assert outputs is not None
    metric, targets = shop.task.metric, examples.targets.numpy()
    stderr = None
    if metric.per_sample is not None and len(examples) > 1:
        stderr = float(metric.per_sample(outputs, targets).std(ddof=1) / np.sqrt(len(examples)))
    value = float(metric.score(outputs, targets))
    if not np.isfinite(value):
        raise ModelError(f"{metric.name} of {artifact.path} is {value}")
    return Score(value, stderr)


def measure_again(trial: Trial, shop: Workshop) -> Latency:
    """The report tier's latency of a trial's own file, in fresh processes."""
    assert trial.artifact is not None
    return shop.bench.measure(shop.root / trial.artifact.path, tier="report")
