"""A tiny task through all stages. Oracles: the torch twin's own score, the files on disk, and planted faults."""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from autocompress import pipeline
from autocompress.compressing.quantize import quantize, simulate
from autocompress.compressing.shape import restore
from autocompress.distill import TeacherCache
from autocompress.errors import ExportError, ModelError, StorageError
from autocompress.export import export_model
from autocompress.export.products import exact
from autocompress.measure.latency import Bench
from autocompress.pipeline import (
    build,
    build_into,
    evaluate,
    latency_fit,
    measure_again,
    save_weights,
    score_artifact,
    shaped,
)
from autocompress.plan import (
    Cofi,
    Distill,
    Factorize,
    LayerPlan,
    Mask,
    Plan,
    Prune,
    Quantize,
    effective_layers,
    plan_from_json,
)
from autocompress.plan.check import removed_layers
from autocompress.records import Trial, read_scores, storage_errors, trial_from_json
from autocompress.tasks.task import ACCURACY, Metric, Task
from autocompress.workshop import Workshop
from tests.tiny import bank_of, bert, mlp, profile_of, run, task_of, tensors, texts

BLOCK = "bert.encoder.layer.0"
SPLITS = ("train", "validation", "test")
STAGES = {"compress", "quantize", "export", "measure", "score"}
EVERYTHING = Plan(
    groups={f"{BLOCK}.attention/heads": Prune(2), f"{BLOCK}.intermediate.dense/neurons": Prune(24)},
    layers={
        f"{BLOCK}.intermediate.dense": LayerPlan(Factorize(8), Quantize("int8")),
        "bert.encoder.layer.1.output.dense": LayerPlan(quantize=Quantize("int8-dynamic")),
        "bert.embeddings.word_embeddings": LayerPlan(quantize=Quantize("int8-weights")),
    },
    distill=Distill(steps=3),
)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workshop]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("run")
    task = task_of(bert())
    bank = bank_of(task, root / "bank")
    profile = profile_of()
    dense = root / "dense.onnx"
    export_model(task.model, {}, task, dense, root, "dense", "onnxruntime")
    np.savez(root / "inputs.npz", **{name: value.numpy() for name, value in task.workload_inputs(1, None).items()})
    teacher = TeacherCache(root / "teacher" / "logits.npy", task)
    with Bench(profile, root / "inputs.npz", dense) as bench:
        yield Workshop(root, task, bank.table, profile, bank, teacher, bench)
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def done(shop: Workshop) -> Trial:
    return evaluate(EVERYTHING, shop, number=7)


def test_a_whole_candidate_is_done_with_all_stages_timed(done: Trial) -> None:
    assert (done.state, done.error, done.number) == ("DONE", "", 7)
    assert set(done.seconds) == STAGES | {"recover"}
    assert all(seconds > 0 for seconds in done.seconds.values())
    assert done.measured
    assert "heads 75 %" in done.what


def test_a_trial_survives_json(done: Trial) -> None:
    assert trial_from_json(json.loads(json.dumps(done.to_json()))) == done


def test_without_distillation_nothing_is_recovered(shop: Workshop) -> None:
    trial = evaluate(Plan(), shop)
    assert trial.state == "DONE"
    assert set(trial.seconds) == STAGES
    assert trial.what == "dense fp32"


def test_dense_scores_what_torch_scores(shop: Workshop) -> None:
    trial = evaluate(Plan(), shop)
    split = shop.task.validation
    hits = run(shop.task.model, split.batch(range(12))[0]).argmax(dim=1) == split.targets
    assert trial.quality == pytest.approx(float(hits.float().mean()))
    assert trial.quality_stderr == pytest.approx(float(hits.float().std(correction=1)) / 12**0.5)
    assert (trial.quality_confirm, trial.quality_confirm_stderr) == (trial.quality, trial.quality_stderr)


def test_both_parts_are_scored_from_one_pass(shop: Workshop) -> None:
    """Oracle: the torch model's hits on each part, and a count of the samples that went through the metric."""
    seen: list[int] = []

    def counted(outputs: np.ndarray, _targets: np.ndarray) -> np.ndarray:
        seen.append(len(outputs))
        return outputs

    validation = texts(120, seed=11)
    task = replace(shop.task, validation=validation, metric=replace(ACCURACY, reduce=counted))
    trial = evaluate(Plan(seed=3), replace(shop, task=task))
    hits = np.concatenate([
        (run(task.model, validation.batch([row])[0]).argmax(dim=1) == validation.targets[row]).numpy()
        for row in range(120)
    ]).astype(float)  # fmt: skip
    assert sum(seen) == 120
    for part, rows in (("select", task.parts.select), ("confirm", task.parts.confirm)):
        assert trial.quality_on(part) == pytest.approx(hits[rows].mean())
        assert trial.stderr_on(part) == pytest.approx(hits[rows].std(ddof=1) / 60**0.5)
    scores = read_scores(shop.root, [trial])
    assert scores[trial.fingerprint].tolist() == hits[task.parts.confirm].tolist()


def test_a_metric_without_a_form_per_sample_leaves_no_scores(shop: Workshop) -> None:
    task = replace(shop.task, metric=replace(ACCURACY, per_sample=None))
    trial = evaluate(Plan(seed=4), replace(shop, task=task))
    assert (trial.quality_stderr, trial.quality_confirm_stderr) == (None, None)
    assert read_scores(shop.root, [trial]) == {}


def test_the_artifact_is_graded_and_not_the_float_model(shop: Workshop, done: Trial) -> None:
    """The file's logits are those of the restored weights with their integers, not of the dense model."""
    folder = shop.artifact_folder(EVERYTHING)
    weights = safetensors.torch.load_file(folder / "weights.safetensors")
    model = restore(shop.task.model, EVERYTHING, shop.table, weights)
    made = quantize(model, exact(EVERYTHING, shop.profile.runtime), shop.table, shop.task.calibration())
    split = shop.task.test
    expected = run(simulate(made.model, made.codes), split.batch(range(10))[0]).numpy()
    logits = Metric("mean", True, lambda outputs, _targets: float(np.abs(outputs - expected).max()))
    other = replace(shop, task=replace(shop.task, metric=logits))
    assert score_artifact(done.artifact, other, split).value < 0.05
    assert score_artifact(done.artifact, other, split).stderr is None


def test_the_folder_holds_plan_weights_and_file(shop: Workshop, done: Trial) -> None:
    folder = shop.artifact_folder(EVERYTHING)
    assert folder == shop.root / "artifacts" / f"{EVERYTHING.fingerprint}-r0"
    assert sorted(path.name for path in folder.iterdir()) == [
        "answer.npy", "integers.safetensors", "model.onnx", "plan.json", "scores.npy", "weights.safetensors",
    ]  # fmt: skip
    assert plan_from_json(json.loads((folder / "plan.json").read_text())) == exact(EVERYTHING, shop.profile.runtime)
    content = (shop.root / done.artifact.path).read_bytes()
    assert hashlib.sha256(content).hexdigest() == done.artifact.sha256
    assert done.artifact.plan_fingerprint == done.fingerprint


def test_building_twice_gives_the_same_bytes(shop: Workshop, done: Trial) -> None:
    assert build(EVERYTHING, shop, rung=1).sha256 == done.artifact.sha256


def test_weights_are_only_kept_when_asked_for(shop: Workshop) -> None:
    build(Plan(seed=5), shop, keep_weights=False)
    assert sorted(path.name for path in shop.artifact_folder(Plan(seed=5)).iterdir()) == ["model.onnx", "plan.json"]


def test_measuring_again_is_the_report_tier(shop: Workshop, done: Trial) -> None:
    assert measure_again(done, shop).tier == "report"


@pytest.mark.parametrize(
    ("stage", "fault"),
    [
        ("shape", ValueError("planted")),
        ("quantize", RuntimeError("planted")),
        ("export_model", ExportError("planted")),
        ("score_validation", KeyError("planted")),
    ],
    ids=["shape", "quantize", "export", "score"],
)
def test_a_candidate_that_breaks_keeps_its_reason(
    shop: Workshop, monkeypatch: pytest.MonkeyPatch, stage: str, fault: Exception
) -> None:
    def broken(*_args: object, **_options: object) -> None:
        raise fault

    monkeypatch.setattr(pipeline, stage, broken)
    trial = evaluate(Plan(seed=9), shop, number=3)
    assert (trial.state, trial.number) == ("FAILED", 3)
    assert trial.error == f"{type(fault).__name__}: {fault}"
    assert trial.quality is None
    assert trial.latency is None
    assert "compress" in trial.seconds


def test_a_plan_for_another_model_fails_with_its_reason(shop: Workshop) -> None:
    trial = evaluate(Plan(layers={"no.such.layer": LayerPlan(quantize=Quantize("int8"))}), shop)
    assert trial.state == "FAILED"
    assert trial.error.startswith("PlanError: the plan does not fit this model")


def test_a_recovery_that_diverges_fails_with_its_reason(shop: Workshop) -> None:
    task = replace(shop.task, loss=lambda logits, _targets: logits.sum().detach() * float("nan"))
    trial = evaluate(Plan(distill=Distill(steps=2)), replace(shop, task=task))
    assert trial.state == "FAILED"
    assert "recovery diverged" in trial.error


def test_a_full_disk_ends_the_search(shop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_model: object, path: Path) -> None:
        with storage_errors(path):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pipeline, "save_weights", full)
    with pytest.raises(StorageError, match="no space left on the disk"):
        evaluate(Plan(seed=11), shop)


def test_an_interrupt_ends_the_search(shop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "quantize", interrupted)
    with pytest.raises(KeyboardInterrupt):
        evaluate(Plan(seed=12), shop)


def test_saved_weights_are_the_models(tmp_path: Path) -> None:
    model = bert()
    save_weights(model, tmp_path / "w.safetensors")
    stored = safetensors.torch.load_file(tmp_path / "w.safetensors")
    assert stored.keys() == model.state_dict().keys()
    assert all(torch.equal(value, stored[name]) for name, value in model.state_dict().items())


def test_tied_weights_come_back(tmp_path: Path) -> None:
    model = mlp(width=16)
    model.extra = torch.nn.Linear(16, 16)
    model.extra.weight = model.first.weight
    bank = bank_of(task_of(model), tmp_path)
    save_weights(model, tmp_path / "w.safetensors")
    restore(model, Plan(), bank.table, safetensors.torch.load_file(tmp_path / "w.safetensors"))


def test_what_cofi_removed_takes_no_bits_and_is_learned_once(shop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bits on every layer, half of which the recipe takes away: they stay where there is something left."""
    bits = {layer.name: LayerPlan(quantize=Quantize("int8")) for layer in shop.table.layers if layer.kind == "linear"}
    recipe = Cofi(sparsity=0.8, steps=4, warmup_steps=1, finetune_steps=1)
    built = build_into(shop.root / "cofi", Plan(layers=bits, learn=recipe), shop)
    gone = removed_layers(built.plan, shop.table)
    left = [e for e in effective_layers(built.plan, shop.table) if e.layer.kind == "linear"]
    assert built.plan.init
    assert all((e.quantize is None) == (e.layer.name in gone) for e in left)
    assert built.artifact.plan_fingerprint == Plan(layers=bits, learn=recipe).fingerprint
    monkeypatch.setattr(pipeline, "learn", lambda *_args, **_more: pytest.fail("learned again"))
    assert build_into(shop.root / "again", Plan(learn=recipe), shop).plan.init == built.plan.init


def test_a_recipe_that_failed_fails_again_without_being_tried(shop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def diverge(*_args: object, **_more: object) -> None:
        tried.append(1)
        raise ModelError("cofi diverged: the loss is nan")

    monkeypatch.setattr(pipeline, "learn", diverge)
    plan = Plan(learn=Cofi(sparsity=0.55))
    for _ in range(2):
        with pytest.raises(ModelError, match="cofi diverged"):
            build_into(shop.root / "failed", plan, shop)
    assert tried == [1]


def test_a_latency_target_is_fitted_on_this_profile(shop: Workshop) -> None:
    fit = latency_fit(shop)
    assert fit.base >= 0
    assert len(list(shop.bank.folder.glob("latency-fit-*.json"))) == 1
    assert latency_fit(shop) == fit


class Normed(torch.nn.Module):
    """A convolution, a batch norm with statistics of its own, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(1, 8, 3)
        self.norm = torch.nn.BatchNorm2d(8)
        self.head = torch.nn.Linear(8, 3)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.conv(pixel_values)).relu().mean(dim=(2, 3)))


@pytest.mark.parametrize(
    ("layer_plan", "renewed"),
    [(LayerPlan(quantize=Quantize("int8")), False), (LayerPlan(mask=Mask(0.5)), True), (LayerPlan(Factorize(4)), True)],
    ids=["bits", "zeros", "rank"],
)
def test_batch_norms_are_renewed_only_where_float_weights_changed(
    shop: Workshop, tmp_path: Path, layer_plan: LayerPlan, renewed: bool
) -> None:
    task = Task("normed", Normed(), **{name: tensors("pixel_values", (1, 8, 8), 64, 0) for name in SPLITS})
    bank = bank_of(task, tmp_path)
    model = shaped(Plan(layers={"conv": layer_plan}), replace(shop, task=task, table=bank.table, bank=bank))
    assert torch.equal(model.norm.running_mean, torch.zeros(8)) is not renewed
