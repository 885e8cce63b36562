"""The verb `compress`: one plan applied to one model, without a search. What it writes loads and runs."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import nn

from autocompress.compressing.shape import restore
from autocompress.devices import open_bench
from autocompress.environment import environment
from autocompress.errors import ConfigError, ModelError, PlanError
from autocompress.export.folder import INTEGERS
from autocompress.hardware import HardwareProfile, check_precisions, load_profile
from autocompress.layers import LayerTable
from autocompress.measure.decoding import open_graded
from autocompress.measure.queries import read_queries
from autocompress.pipeline import Built, build_into, score_artifact
from autocompress.plan import Plan, check_plan, describe, plan_from_json
from autocompress.records import Latency, write_atomic, write_json
from autocompress.report.survivors import SurvivorsInfo, draw_survivors, survivors_info
from autocompress.runtimes import model_file
from autocompress.survey import kind_of, survey
from autocompress.tasks.causal_lm import query_tokens
from autocompress.tasks.task import Task, logits_of
from autocompress.weights import weight_of
from autocompress.workshop import Workshop, open_workshop, write_workload

#: What `compress` writes last; a folder that holds it may be written over.
CARD = "card.json"

#: What it writes first: a folder that was left half-way may be written over, too.
MARK = ".compressed"

#: Largest difference of reloaded outputs, relative to the largest output.
RELOAD_TOLERANCE = 1e-5


@dataclass(frozen=True)
class Compressed:
    """What one plan made of a model.

    Attributes:
        folder: holds the exported file, weights.safetensors, plan.json, the dense model beside it, and the bank.
        plan: as applied: what a recipe learned stands in its place.
        what: the plan in words.
        metric: of the qualities.
        quality_before, quality_after: of the exported files on the validation split.
        size_bytes_before, size_bytes_after: of the exported files.
        layers_changed: layers whose weights are not the dense model's any more.
        artifact: the exported file.
        deviation: relative L2 distance of its outputs from the torch model's.
        reloaded: whether a fresh process gives the same outputs from the file, and the torch model from its weights.
        latency: measured where asked for.
        survivors: what is left of each block, where the plan removes structures.
    """

    folder: Path
    plan: Plan
    what: str
    metric: str
    quality_before: float
    quality_after: float
    size_bytes_before: int
    size_bytes_after: int
    layers_changed: tuple[str, ...]
    artifact: Path
    deviation: float
    reloaded: bool
    latency: Latency | None = None
    survivors: SurvivorsInfo | None = None

    def to_json(self) -> dict[str, Any]:
        """A plain object, the paths as text."""
        shown = {item.name: getattr(self, item.name) for item in fields(self)}
        shown.update(plan=self.plan.to_json(), folder=str(self.folder), artifact=str(self.artifact))
        for name in ("latency", "survivors"):
            shown[name] = asdict(shown[name]) if shown[name] else None
        shown["layers_changed"] = list(self.layers_changed)
        return shown


def compress(
    task: Task,
    plan: Plan | Mapping[str, Any] | str | Path,
    out: str | Path,
    *,
    hardware: str | Path = "cpu",
    bank_limit: int | None = None,
    measure: bool = False,
) -> Compressed:
    """Apply a plan, export the result, and grade the file beside the dense one.

    Args:
        task: model, data and metric.
        plan: a Plan, the object of its JSON (names may be patterns), or a file that holds it.
        out: folder to write; an earlier result of `compress` in it is replaced, its bank is used again.
        hardware: a shipped profile or a .yaml path: the runtime, and which precisions have a kernel.
        bank_limit: bytes that the bank may take.
        measure: time the file against dense, too.

    Raises:
        ConfigError, PlanError, ProfileError: before any work, naming layer and value.
        ModelError, DataError, ExportError: what went wrong with the model, the data or the file.
    """
    profile = load_profile(hardware)
    root = Path(out)
    workload = task.workload_inputs(profile.workload.batch, query_tokens(profile.workload))
    check_student(task)
    table = survey(task.source, workload)
    wanted = read_plan(plan, table)
    check_plan(wanted, table)
    check_precisions(wanted, table, profile)
    _settle(root)
    write_workload(root / "inputs.npz", task, profile.workload)
    dense_file = root / "dense" / model_file(profile.runtime)
    with closing(open_bench(profile, root / "inputs.npz", dense_file, table)) as bench:
        shop = open_workshop(root, task, table, profile, bench, bank_limit=bank_limit)
        dense = build_into(root / "dense", Plan(), _dense_shop(shop), keep_weights=False)
        built = build_into(root, wanted, shop)
        latency = bench.measure(root / built.artifact.path) if measure else None
    before = score_artifact(dense.artifact, shop, task.validation).value
    after = score_artifact(built.artifact, shop, task.validation).value
    write_json(root / CARD, _card(task, profile, latency))
    result = Compressed(
        folder=root,
        plan=built.plan,
        what=describe(wanted, table),
        metric=task.metric.name,
        quality_before=before,
        quality_after=after,
        size_bytes_before=dense.artifact.size_bytes,
        size_bytes_after=built.artifact.size_bytes,
        layers_changed=changed_layers(built, task.source, table),
        artifact=root / built.artifact.path,
        deviation=built.artifact.deviation,
        reloaded=_reloads_file(root, profile) and _reloads_weights(root, built, task, table),
        latency=latency,
        survivors=survivors_info(built.plan, table) if table.blocks and built.plan.groups else None,
    )
    if result.survivors:
        write_atomic(root / "survivors.html", draw_survivors(result.survivors).to_html(include_plotlyjs=True))
    write_json(root / "result.json", {**result.to_json(), "environment": environment()})
    return result


def read_plan(plan: Plan | Mapping[str, Any] | str | Path, table: LayerTable) -> Plan:
    """A plan from whatever names it; raises `PlanError` naming file, key and value."""
    if isinstance(plan, Plan):
        return plan
    if isinstance(plan, Mapping):
        return plan_from_json(plan, "plan", table)
    path = Path(plan)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as fault:
        raise PlanError(f"{path}: not valid JSON: {fault}") from None
    except (OSError, UnicodeDecodeError) as fault:
        raise PlanError(f"--plan {path}: cannot be read: {fault}") from None
    return plan_from_json(data, str(path), table)


def _settle(root: Path) -> None:
    if root.is_file():
        raise ConfigError(f"--out {root}: is a file; give a folder")
    ours = (root / CARD).is_file() or (root / MARK).is_file()
    if root.is_dir() and any(root.iterdir()) and not ours:
        raise ConfigError(f"--out {root}: holds other files; choose an empty folder, or that of an earlier result")
    root.mkdir(parents=True, exist_ok=True)
    written = ("model.onnx", "model.pt2", "weights.safetensors", INTEGERS, "plan.json", "survivors.html")
    for name in (CARD, "result.json", *written):
        (root / name).unlink(missing_ok=True)
    (root / MARK).touch()


def _dense_shop(shop: Workshop) -> Workshop:
    """The same workshop for the dense model, also where a student is compressed in its place."""
    return shop if shop.task.student is None else replace(shop, task=replace(shop.task, student=None))


def check_student(task: Task) -> None:
    """Raise `ModelError` when a student answers in another form than its teacher."""
    if task.student is None:
        return
    inputs, _targets = task.train.batch([0])
    with torch.inference_mode():
        found, wanted = (logits_of(model(**inputs)).shape[-1] for model in (task.student, task.model))
    if found != wanted:
        raise ModelError(f"the student has {found} classes, but its teacher has {wanted}: they must be the same")


def _card(task: Task, profile: HardwareProfile, latency: Latency | None) -> dict[str, Any]:
    return {
        "task": task.name,
        "metric": task.metric.name,
        "runtime": profile.runtime,
        "threads": profile.host_threads,
        "inputs": list(task.input_names),
        "classes": list(task.classes),
        "latency": asdict(latency) if latency else None,
    }


def changed_layers(built: Built, dense: nn.Module, table: LayerTable) -> tuple[str, ...]:
    """Layers that are gone, have another shape, other weights or integers."""
    modules = dict(built.model.named_modules())
    changed = []
    for layer in table.layers:
        module = modules.get(layer.name)
        rounded = any(name == layer.name or name.startswith(layer.name + ".") for name in built.codes)
        whole = module is not None and kind_of(module) is not None and not rounded
        if not whole or not _same(module, dense.get_submodule(layer.name)):  # type: ignore[arg-type]
            changed.append(layer.name)
    return tuple(changed)


def _same(left: nn.Module, right: nn.Module) -> bool:
    ours, theirs = getattr(left, "bias", None), getattr(right, "bias", None)
    biases = (ours is None) == (theirs is None) and (ours is None or torch.equal(ours, theirs))  # type: ignore[arg-type]
    return biases and torch.equal(weight_of(left), weight_of(right))


_RELOAD = """\
import sys, numpy, autocompress
from autocompress.measure.queries import read_queries
folder, inputs, outputs = sys.argv[1:]
numpy.save(outputs, autocompress.load(folder).run(read_queries(inputs)[0])[0], allow_pickle=False)
"""


def _reloads_file(root: Path, profile: HardwareProfile) -> bool:
    """Whether a fresh process gets from the file what this one gets."""
    answer = root / "reloaded.npy"
    command = [sys.executable, "-c", _RELOAD, str(root), str(root / "inputs.npz"), str(answer)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return False
    found = np.load(answer, allow_pickle=False)
    answer.unlink()
    file = root / model_file(profile.runtime)
    session = open_graded(file, profile.runtime, profile.host_threads, profile.host_device)
    return _close(found, session.run(read_queries(root / "inputs.npz")[0])[0])


def _reloads_weights(root: Path, built: Built, task: Task, table: LayerTable) -> bool:
    """Whether plan.json and weights.safetensors give the torch model again."""
    plan = plan_from_json(json.loads((root / "plan.json").read_text()), "plan.json")
    again = restore(task.source, plan, table, safetensors.torch.load_file(root / "weights.safetensors"))
    inputs, _targets = task.calibration().batch(range(min(4, len(task.train))))
    with torch.inference_mode():
        return _close(logits_of(again(**inputs)).numpy(), logits_of(built.model(**inputs)).numpy())


def _close(found: np.ndarray[Any, Any], expected: np.ndarray[Any, Any]) -> bool:
    if found.shape != expected.shape:
        return False
    scale = float(np.abs(expected).max()) or 1.0
    return bool(np.abs(found - expected).max() <= RELOAD_TOLERANCE * scale)
