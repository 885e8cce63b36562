"""One candidate, once through: `evaluate` writes the order of the stages as lines."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
from numpy.typing import NDArray
from scipy.special import log_softmax
from torch import nn

from autocompress.compressing.batchnorm import refresh_batchnorm
from autocompress.compressing.codes import Codes
from autocompress.compressing.quantize import quantize
from autocompress.compressing.shape import restore, shape
from autocompress.distill import recover
from autocompress.errors import ModelError, StorageError
from autocompress.export.export import export_model, to_arrays
from autocompress.export.folder import INTEGERS, save_integers
from autocompress.export.fresh import SAME, check_deviation
from autocompress.export.products import exact
from autocompress.learn import learn
from autocompress.learn.gates import plan_widths
from autocompress.learn.latency import LatencyFit, calibration_plans, fit_latency
from autocompress.measure.decoding import open_graded
from autocompress.measure.dense import AnyBench
from autocompress.measure.queries import read_queries
from autocompress.plan import (
    INT4_GROUP,
    Cofi,
    EffectiveLayer,
    LayerPlan,
    Plan,
    Quantize,
    describe,
    effective_layers,
    plan_from_json,
)
from autocompress.records import (
    Artifact,
    Latency,
    Trial,
    storage_errors,
    write_answer,
    write_array,
    write_atomic,
    write_json,
    write_scores,
)
from autocompress.runtimes import model_file
from autocompress.tasks.causal_lm import decodes
from autocompress.tasks.task import Examples, Metric
from autocompress.workshop import Workshop

#: In the run folder, what the dense model says of the select part.
DENSE_OUTPUTS = "teacher/select-{identity}.npy"


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
    """Quality of an artefact on some samples.

    Attributes:
        value: the task's metric.
        stderr: its standard error, or None where the metric is no mean over samples.
        per_sample: ``(n,)`` numbers whose mean is the metric, or None.
    """

    value: float
    stderr: float | None
    per_sample: NDArray[Any] | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class Grades:
    """What scoring a file on validation gives.

    Attributes:
        select, confirm: on either part.
        divergence: mean KL of the dense model's predictions to the file's, on the select part, where both are kept.
        answer: the file's first output for the workload's first query.
    """

    select: Score
    confirm: Score
    divergence: float | None
    answer: NDArray[Any]


@dataclass(frozen=True)
class Made:
    """What any process can find out about a plan, without the device.

    Attributes:
        trial: not measured yet; "FAILED" with a reason where the plan came to nothing.
        answer: what the file answered where it was scored; None where it was not.
    """

    trial: Trial
    answer: NDArray[Any] | None = None


def evaluate(plan: Plan, shop: Workshop, number: int = 0, rung: int = 0) -> Trial:
    """Take one plan through all stages and return its trial, "DONE" or "FAILED" with the reason.

    Only a full disk and an interrupt end the search; whatever else goes wrong belongs to the candidate.
    """
    return measured(make(plan, shop, rung), shop.root, shop.bench).replace(number=number)


def make(plan: Plan, shop: Workshop, rung: int = 0) -> Made:
    """Build a plan's file and score it: what any process can do."""
    clock = _Clock()
    trial = Trial(0, plan, "FAILED", "sampled", rung=rung, seconds=clock.seconds, what=describe(plan, shop.table))
    try:
        artifact = build(plan, shop, clock, rung)
        with clock.stage("score"):
            found = score_validation(artifact, shop)
            write_answer(shop.root / artifact.path, found.answer)
            if found.confirm.per_sample is not None:
                write_scores(shop.root / artifact.path, found.confirm.per_sample)
    except StorageError:
        raise
    except Exception as fault:
        return Made(trial.replace(error=f"{type(fault).__name__}: {fault}"))
    graded = trial.replace(
        artifact=artifact, divergence=found.divergence,
        quality=found.select.value, quality_stderr=found.select.stderr,
        quality_confirm=found.confirm.value, quality_confirm_stderr=found.confirm.stderr,
    )  # fmt: skip
    return Made(graded, found.answer)


def measured(made: Made, root: Path, bench: AnyBench) -> Trial:
    """Time what was made: what only the process that owns the device may do."""
    trial, clock = made.trial, _Clock(dict(made.trial.seconds))
    if trial.artifact is None or made.answer is None:
        return trial
    path = root / trial.artifact.path
    try:
        with clock.stage("measure"):
            outputs = bench.outputs(path)
            latency = bench.measure(path)
        if outputs is not None:  # what is timed is what is graded
            check_deviation(path, outputs, made.answer, SAME)
    except StorageError:
        raise
    except Exception as fault:
        blank = dict.fromkeys(("quality", "quality_stderr", "quality_confirm", "quality_confirm_stderr", "divergence"))
        failed = trial.replace(**blank, artifact=None, seconds=clock.seconds)
        return failed.replace(error=f"{type(fault).__name__}: {fault}")
    return trial.replace(state="DONE", latency=latency, seconds=clock.seconds)


def settle(plan: Plan, shop: Workshop) -> None:
    """Have the device's process find out what `make` may want to know of the device."""
    if isinstance(plan.learn, Cofi) and plan.learn.latency_ratio is not None:
        latency_fit(shop)


@dataclass(frozen=True)
class Built:
    """A compressed model and its file.

    Attributes:
        plan: as it was done: with what was learned in place of its recipe, and in as many bits as are exact here.
        model: the torch model in float, before rounding.
        codes: integers by module name.
        artifact: the exported, verified file.
    """

    plan: Plan
    model: nn.Module
    codes: Mapping[str, Codes]
    artifact: Artifact


def build(
    plan: Plan, shop: Workshop, clock: _Clock | None = None, rung: int = 0, keep_weights: bool = True
) -> Artifact:
    """Everything up to the exported, verified file, in the plan's own folder of the run."""
    return build_into(shop.artifact_folder(plan, rung), plan, shop, clock, keep_weights).artifact


def build_into(
    folder: Path, plan: Plan, shop: Workshop, clock: _Clock | None = None, keep_weights: bool = True
) -> Built:
    """Everything up to the exported, verified file: learn, shape, recover, integers, export."""
    clock = clock or _Clock()
    task, asked = shop.task, plan
    if plan.learn:
        with clock.stage("learn"):
            plan = learned(plan, shop)
    plan = exact(plan, shop.profile.runtime, shop.profile.host_device)
    with clock.stage("compress"):
        model = shaped(plan, shop)
    if plan.distill:
        with clock.stage("recover"):
            model = recover(model, plan, task, shop.teacher, shop.table)
    with clock.stage("quantize"):
        made = quantize(model, plan, shop.table, task.calibration())
    with clock.stage("export"):
        runtime = shop.profile.runtime
        path = folder / model_file(runtime)
        artifact = export_model(
            made.model, made.codes, task, path, shop.root, asked.fingerprint, runtime,
            device=shop.profile.host_device, past=decodes(task, shop.profile.workload),
        )  # fmt: skip
        write_json(folder / "plan.json", plan.to_json())
        if keep_weights:
            save_weights(model, folder / "weights.safetensors")
            save_integers(model, made, folder / INTEGERS)
    return Built(plan, model, made.codes, artifact)


def learned(plan: Plan, shop: Workshop) -> Plan:
    """The plan that a recipe comes to; learned once per recipe, model, data and seed, and kept in the bank."""
    asked = Plan(learn=plan.learn, seed=plan.seed)
    aims_at_latency = isinstance(plan.learn, Cofi) and plan.learn.latency_ratio is not None
    depends = shop.task.training_key + (_fit_key(shop) if aims_at_latency else "")
    path = shop.bank.folder / f"learned-{asked.fingerprint}-{hashlib.sha256(depends.encode()).hexdigest()[:16]}.json"
    answer = _remembered(path, shop)
    if answer is None:
        predict = latency_fit(shop) if aims_at_latency else None
        try:
            found = learn(
                shop.task, asked, shop.table, shop.bank.put_weights,
                teacher=shop.teacher, predict=predict, order=shop.bank.order,
            )  # fmt: skip
        except ModelError as fault:  # told to every candidate that asks for it, and not tried again
            write_json(path, {"error": str(fault)})
            raise
        write_json(path, {"plan": found.plan.to_json(), "history": list(found.history)})
        answer = found.plan
    layers = dict(answer.layers)
    for left in effective_layers(answer, shop.table):
        name = left.layer.name
        quantize = _fitting(plan.layers.get(name, LayerPlan()).quantize, left)
        layers[name] = replace(layers.get(name, LayerPlan()), quantize=quantize)
    return replace(answer, layers=layers, distill=plan.distill)


def _remembered(path: Path, shop: Workshop) -> Plan | None:
    """What was learned before, if its weights are there; raises again what went wrong then."""
    if not path.is_file():
        return None
    answer = json.loads(path.read_text())
    if "error" in answer:
        raise ModelError(answer["error"])
    return plan_from_json(answer["plan"], str(path)) if shop.bank.holds_weights(answer["plan"]["init"]) else None


def _fitting(quantize: Quantize | None, left: EffectiveLayer) -> Quantize | None:
    """Bits for what a recipe left of a layer: none where it is gone; 4-bit embeddings want whole groups."""
    if quantize is None or left.removed:
        return None
    embedding = left.layer.kind == "embedding" and quantize.precision == "int4-weights"
    return Quantize("int8-weights") if embedding and left.shape[1] % INT4_GROUP else quantize


def _fit_key(shop: Workshop) -> str:
    """What measured latencies depend on: model, runtime, threads and the timed query."""
    query = hashlib.sha256(shop.bench.inputs.read_bytes()).hexdigest()[:16]
    return f"{shop.task.identity}-{shop.profile.runtime}-{shop.profile.threads}-{query}"


def latency_fit(shop: Workshop) -> LatencyFit:
    """Latency from widths on the shop's profile, fitted on measured models once and kept in the bank."""
    path = shop.bank.folder / f"latency-fit-{_fit_key(shop)}.json"
    if not path.is_file():
        if not shop.bench.dense.path.is_file():
            build_into(shop.bench.dense.path.parent, Plan(), shop, keep_weights=False)
        folder, ratios = shop.root / "latency-fit", []
        plans = calibration_plans(shop.table)
        for plan in plans:
            ratios.append(
                shop.bench.measure(shop.root / build_into(folder, plan, shop, keep_weights=False).artifact.path).ratio
            )
        shutil.rmtree(folder)
        write_json(path, asdict(fit_latency([plan_widths(plan, shop.table) for plan in plans], ratios)))
    return LatencyFit(**json.loads(path.read_text()))


def shaped(plan: Plan, shop: Workshop) -> nn.Module:
    """The compressed float model before recovery: assembled from the bank, or from the weights that the plan names."""
    source, table = shop.task.source, shop.table
    if plan.init:
        return restore(source, plan, table, shop.bank.weights(plan.init))
    model = shape(source, plan, table, shop.bank)
    if plan.groups or plan.mask or any(lp.mask or lp.factorize for lp in plan.layers.values()):
        refresh_batchnorm(model, shop.task.calibration())
    return model


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
    """The task's metric of an exported file on a split; raises as `score_validation` does."""
    outputs, _answer = _outputs(artifact, shop, examples)
    return _score(outputs, examples.targets.numpy(), shop.task.metric, artifact)


def score_validation(artifact: Artifact, shop: Workshop) -> Grades:
    """The task's metric of an exported file on the select and on the confirm part of validation, in one pass.

    The dense model's outputs on the select part are kept, for those that come after to be compared with.

    Args:
        artifact: the file; run in the profile's runtime.
        shop: gives task and profile.

    Raises:
        ModelError: the metric gives no finite number.
    """
    task = shop.task
    outputs, answer = _outputs(artifact, shop, task.validation)
    targets, rows = task.validation.targets.numpy(), task.parts.select
    select, confirm = (
        _score(outputs[part], targets[part], task.metric, artifact) for part in (rows, task.parts.confirm)
    )
    classes = task.metric.reduce is None and targets.ndim == 1 and targets.dtype.kind in "iu" and outputs.ndim == 2
    distance = _divergence(artifact, outputs[rows], shop) if classes else None
    return Grades(select, confirm, distance, answer)


def _outputs(artifact: Artifact, shop: Workshop, examples: Examples) -> tuple[NDArray[Any], NDArray[Any]]:
    """What the metric keeps of a file's outputs, ``(n, …)`` in the order of samples; its first query's output."""
    profile = shop.profile
    session = open_graded(shop.root / artifact.path, profile.runtime, profile.host_threads, profile.host_device)
    answer = session.run(read_queries(shop.bench.inputs)[0])[0]
    metric, outputs = shop.task.metric, None
    for rows, inputs, wanted in examples.batches(shop.task.score_batch):
        values = metric.kept(session.run(to_arrays(inputs))[0], wanted.numpy())
        if outputs is None:
            outputs = np.zeros((len(examples), *values.shape[1:]), dtype=values.dtype)
        outputs[rows] = values
    assert outputs is not None
    return outputs, answer


def _score(outputs: NDArray[Any], targets: NDArray[Any], metric: Metric, artifact: Artifact) -> Score:
    value = float(metric.score(outputs, targets))
    if not np.isfinite(value):
        raise ModelError(f"{metric.name} of {artifact.path} is {value}")
    if metric.per_sample is None or len(targets) < 2:
        return Score(value, None)
    per_sample = metric.per_sample(outputs, targets)
    return Score(value, float(per_sample.std(ddof=1) / np.sqrt(len(targets))), per_sample)


def _divergence(artifact: Artifact, outputs: NDArray[Any], shop: Workshop) -> float | None:
    """Of logits ``(n, classes)`` on the select part; None where nobody knows the dense model's."""
    path = dense_outputs(shop)
    if artifact.plan_fingerprint == Plan().fingerprint:
        write_array(path, outputs)
        return 0.0
    return divergence(np.load(path), outputs) if path.is_file() else None


def dense_outputs(shop: Workshop) -> Path:
    """File of the dense model's logits ``(n, classes)`` on the select part, which its evaluation writes."""
    return shop.root / DENSE_OUTPUTS.format(identity=shop.task.identity)


def divergence(dense: NDArray[Any], outputs: NDArray[Any]) -> float:
    """Mean KL(dense ‖ other) of two sets of logits ``(n, classes)``, in nats; never below 0."""
    log_p, log_q = (log_softmax(logits.astype(np.float64), axis=-1) for logits in (dense, outputs))
    return max(0.0, float((np.exp(log_p) * (log_p - log_q)).sum(axis=-1).mean()))


def measure_again(trial: Trial, shop: Workshop) -> Latency:
    """The report tier's latency of a trial's own file, in fresh processes."""
    assert trial.artifact is not None
    return shop.bench.measure(shop.root / trial.artifact.path, tier="report")
