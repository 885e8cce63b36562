"""The verb `compress`: every example plan runs on the digits model, and what is written loads."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import autocompress
from autocompress.errors import ConfigError, ModelError, PlanError, ProfileError
from autocompress.plan import LayerPlan, Plan, Quantize
from autocompress.tasks.digits import MODEL
from autocompress.tasks.task import Task
from autocompress.techniques import TECHNIQUES, Technique
from autocompress.toolbox import compress
from tests.tiny import _one_thread, bert, stirred, task_of, tensors  # noqa: F401


@pytest.fixture(scope="module")
def digits() -> Task:
    """The demo's architecture, untrained, on a few random images: what a plan does to it does not need its data."""
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    model = stirred(ViTForImageClassification(ViTConfig(**MODEL)), amount=0.01)
    made = {split: tensors("pixel_values", (1, 8, 8), 24, seed) for seed, split in enumerate(SPLITS)}
    return Task("digits", model, **made, batch_size=8)


SPLITS = ("train", "validation", "test")


@pytest.fixture(autouse=True)
def _same_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def shortened(plan: Mapping[str, Any]) -> dict[str, Any]:
    """The plan with a few steps."""
    short = json.loads(json.dumps(plan))
    if "distill" in short:
        short["distill"]["steps"] = 2
    if "learn" in short:
        few = {"steps": 4, "warmup_steps": 1, "finetune_steps": 1, "rewind_steps": 1, "updates": 2}
        short["learn"].update({name: few[name] for name in few if name in short["learn"]})
    return short


@pytest.mark.parametrize("item", TECHNIQUES, ids=lambda t: t.id)
def test_every_example_plan_runs_and_reloads(item: Technique, digits: Task, tmp_path: Path) -> None:
    result = compress(digits, shortened(item.example_plan), tmp_path / "out")
    assert result.reloaded
    assert result.layers_changed
    assert result.artifact.is_file()
    assert result.artifact.stat().st_size == result.size_bytes_after
    assert set(json.loads((tmp_path / "out" / "result.json").read_text())) > {"quality_before", "quality_after"}


def test_the_empty_plan_changes_nothing(digits: Task, tmp_path: Path) -> None:
    result = compress(digits, Plan(), tmp_path / "out")
    assert result.layers_changed == ()
    assert result.quality_after == result.quality_before
    assert result.size_bytes_after == result.size_bytes_before


def test_layers_changed_are_those_that_the_plan_names(digits: Task, tmp_path: Path) -> None:
    name = "vit.layers.2.mlp.fc1"
    plan = Plan(layers={name: LayerPlan(quantize=Quantize("int8-dynamic"))})
    result = compress(digits, plan, tmp_path / "out")
    assert result.layers_changed == (name,)
    assert result.size_bytes_after < result.size_bytes_before


def test_a_compressed_folder_loads_by_itself(digits: Task, tmp_path: Path) -> None:
    result = compress(digits, {"groups": {"*/neurons": {"keep": 96}}}, tmp_path / "out", measure=True)
    session = autocompress.load(result.folder)
    inputs, _targets = digits.validation.batch(range(3))
    logits = session.run({name: value.numpy() for name, value in inputs.items()})[0]
    assert logits.shape == (3, 10)
    assert np.isfinite(logits).all()
    assert result.latency is not None
    assert result.latency.ratio > 0
    assert (result.folder / "survivors.html").is_file()


def test_the_same_folder_may_be_used_again_and_a_strangers_not(digits: Task, tmp_path: Path) -> None:
    out = tmp_path / "out"
    compress(digits, {"groups": {"*/heads": {"keep": 3}}}, out)
    assert compress(digits, Plan(), out).layers_changed == ()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match="holds other files"):
        compress(digits, Plan(), tmp_path / "mine")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ('{"group": {}}', "unknown key 'group'; did you mean 'groups'"),
        ('{"layers": {"vit.layer*": {"mask": {"sparsity": 1.0}}}}', r"sparsity must be in \[0, 1\), but got 1.0"),
        ('{"layers": {"*.fc9": {"mask": {"sparsity": 0.5}}}}', r"pattern '\*.fc9' matches nothing"),
        ('{"layers": {"vit.layers.0.mlp.fc1": {"factorize": {"rank": 500}}}}', "rank must be at most 192, but got 500"),
        ('{"groups": {"vit.layers.0.attention/heads": {"keep": 7}}}', "keep must be at most 6, but got 7"),
        ('{"groups": {"vit.layers.9": {"keep": 0}}}', "the model has no such group; did you mean"),
    ],
)
def test_a_wrong_plan_file_names_file_key_and_value(digits: Task, tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "plan.json"
    path.write_text(text)
    with pytest.raises(PlanError, match=message):
        compress(digits, path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_bits_that_the_profile_cannot_run_are_refused(digits: Task, tmp_path: Path) -> None:
    profile = tmp_path / "float.yaml"
    profile.write_text("runtime: onnxruntime\nprecisions: {linear: [fp32], conv: [fp32], embedding: [fp32]}\n")
    plan = Plan(layers={"vit.layers.0.mlp.fc1": LayerPlan(quantize=Quantize("int8"))})
    with pytest.raises(ProfileError, match=r"vit.layers.0.mlp.fc1: int8 has no linear kernel there; it has fp32"):
        compress(digits, plan, tmp_path / "out", hardware=profile)


def test_a_student_of_its_own_is_compressed_and_taught(tmp_path: Path) -> None:
    task = task_of(bert(), student=bert(hidden=16, layers=1, heads=2, neurons=32, seed=5))
    plan = {
        "distill": {"steps": 2, "terms": {"hidden": 1.0}},
        "layers": {"*.dense": {"quantize": {"precision": "int8"}}},
    }
    result = compress(task, plan, tmp_path / "out")
    assert result.reloaded
    assert result.size_bytes_after < result.size_bytes_before


def test_a_student_with_other_classes_is_refused(tmp_path: Path) -> None:
    from transformers import BertConfig, BertForSequenceClassification

    config = {"vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    student = BertForSequenceClassification(BertConfig(**config, intermediate_size=32, num_labels=5))
    with pytest.raises(ModelError, match="the student has 5 classes, but its teacher has 3"):
        compress(task_of(bert(), student=student), Plan(), tmp_path / "out")


def test_weights_that_are_no_numbers_are_named(digits: Task, tmp_path: Path) -> None:
    model = bert()
    with torch.no_grad():
        model.get_submodule("bert.encoder.layer.1.output.dense").weight[0, 0] = torch.nan
    with pytest.raises(Exception, match=r"bert.encoder.layer.1.output.dense.*NaN"):
        compress(
            task_of(model), {"layers": {"*.output.dense": {"quantize": {"precision": "int8-dynamic"}}}}, tmp_path / "o"
        )


class Encoder(nn.Module):
    """Of torch's own layers, which compute a whole layer in one kernel where they are allowed to."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(32, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(x).mean(1))


def test_torchs_own_encoder_layers_are_compressed_as_any_module(tmp_path: Path) -> None:
    """Oracle: the exported file agrees with the torch model whose layers were replaced, which `compress` checks."""
    torch.manual_seed(0)
    made = {split: tensors("x", (5, 32), 24, seed) for seed, split in enumerate(SPLITS)}
    task = Task("own", Encoder(), **made, batch_size=8)
    layers = {
        "encoder.layers.*.linear1": {"factorize": {"rank": 8}},
        "encoder.layers.*.linear2": {"quantize": {"precision": "int8"}},
    }
    result = compress(task, {"layers": layers}, tmp_path / "out")
    assert result.reloaded
    assert set(result.layers_changed) == {f"encoder.layers.{i}.linear{j}" for i in (0, 1) for j in (1, 2)}
    logits = autocompress.load(result.folder).run({"x": task.test.inputs["x"][:7].numpy()})[0]
    assert logits.shape == (7, 3)
