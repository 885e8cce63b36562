"""Oracle: the torch model, with its integers simulated in float, on inputs that the export never saw."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from autocompress.compressing.codes import Codes
from autocompress.compressing.quantize import quantize
from autocompress.errors import ExportError
from autocompress.export import export, export_model, float_graph
from autocompress.export.export import TOLERANCE, agreement
from autocompress.export.tracing import OPSET
from autocompress.plan import LayerPlan, Plan, Quantize, legal_precisions
from autocompress.runtimes import installed_runtimes
from autocompress.tasks.task import Task
from tests.export.conftest import Exported
from tests.tiny import bert, build, claimed, cnn, mlp, quantized, run, table_of, task_of, texts

MODELS = {
    "bert": bert,
    "roberta": lambda: build("roberta"),
    "vit": lambda: build("vit"),
    "mlp": mlp,
    "cnn": cnn,
}
PRECISIONS = ["fp16", "int8", "int8-dynamic", "int8-weights", "int4-weights"]
CASES = [
    (model, precision)
    for model in ("bert", "vit", "mlp", "cnn")
    for precision in PRECISIONS
    if not (precision == "int8-weights" and model != "bert")
]


def everywhere(task: Task, precision: str) -> Plan:
    """One precision on every layer that has it."""
    legal = {la.name: legal_precisions(la) for la in table_of(task).layers}
    return quantized(precision, *(name for name, precisions in legal.items() if precision in precisions))


def in_turn(task: Task) -> Plan:
    """All precisions in one file: the layers take what they may in turn."""
    layers = {}
    for number, layer in enumerate(table_of(task).layers):
        precisions = claimed(layer)
        precision = precisions[(number + 1) % len(precisions)]
        if precision != "fp32":
            layers[layer.name] = LayerPlan(quantize=Quantize(precision))
    return Plan(layers=layers)


def unseen(task: Task) -> dict[str, Tensor]:
    return task.test.batch(range(10))[0]


@pytest.mark.parametrize("runtime", installed_runtimes())
@pytest.mark.parametrize("model", MODELS)
def test_float_agrees_with_torch(export: Callable[..., Exported], model: str, runtime: str) -> None:
    made = export(task_of(MODELS[model]()), runtime=runtime)
    assert made.deviation(unseen(made.task), runtime) < 1e-5


@pytest.mark.parametrize("runtime", installed_runtimes())
@pytest.mark.parametrize(("model", "precision"), CASES)
def test_each_precision_agrees_with_its_simulation(
    export: Callable[..., Exported], model: str, precision: str, runtime: str
) -> None:
    task = task_of(MODELS[model]())
    made = export(task, everywhere(task, precision), runtime)
    assert made.codes
    assert made.artifact.deviation <= TOLERANCE[precision]
    assert made.deviation(unseen(task), runtime) <= max(0.02, TOLERANCE["fp32"])  # far inside what is allowed


@pytest.mark.parametrize("runtime", installed_runtimes())
@pytest.mark.parametrize("model", MODELS)
def test_all_precisions_in_one_file(export: Callable[..., Exported], model: str, runtime: str) -> None:
    task = task_of(MODELS[model]())
    made = export(task, in_turn(task), runtime)
    assert len({codes.precision for codes in made.codes.values()}) >= (4 if model in ("bert", "roberta") else 2)
    assert made.deviation(unseen(task), runtime) < 0.03


@pytest.mark.parametrize("precision", ["int8-weights", "int4-weights"])
def test_embeddings_take_integers(export: Callable[..., Exported], precision: str) -> None:
    names = [f"bert.embeddings.{name}_embeddings" for name in ("word", "position", "token_type")]
    made = export(task_of(bert()), quantized(precision, *names))
    assert list(made.codes) == sorted(names)
    assert made.deviation(unseen(made.task)) < 1e-5  # a lookup computes nothing


@pytest.mark.parametrize("plan", ["float", "integers"])
@pytest.mark.parametrize("model", ["bert", "roberta"])
@pytest.mark.parametrize(("batch", "length"), [(1, 5), (1, 30), (7, 17)])
def test_batch_and_sequence_length_are_free(
    export: Callable[..., Exported], model: str, batch: int, length: int, plan: str
) -> None:
    task = task_of(MODELS[model]())
    made = export(task, in_turn(task) if plan == "integers" else Plan())
    inputs = texts(batch, 5, (length,)).batch(range(batch))[0]
    assert inputs["input_ids"].shape == (batch, length)
    assert made.deviation(inputs) < (0.03 if plan == "integers" else 1e-5)


@pytest.mark.parametrize("lengths", [(5, 9, 12), (9,)], ids=["ragged-training-data", "training-data-of-one-length"])
@pytest.mark.parametrize("model", ["bert", "roberta"])
def test_the_mask_is_traced(export: Callable[..., Exported], model: str, lengths: tuple[int, ...]) -> None:
    """Padding leaves the logits of a sample where they are, and another mask moves them."""
    made = export(task_of(MODELS[model](), lengths))
    inputs = texts(4, 5, (4, 15)).batch(range(4))[0]
    padded = made.run(inputs)
    assert np.allclose(padded, made.twin(inputs), atol=1e-5)
    alone = {name: value[:1, :4] for name, value in inputs.items()}
    assert np.allclose(padded[:1], made.run(alone), atol=1e-5)
    unmasked = {**inputs, "attention_mask": torch.ones_like(inputs["attention_mask"])}
    assert not np.allclose(padded[0], made.run(unmasked)[0], atol=1e-3)


@pytest.mark.parametrize("batch", [1, 9])
@pytest.mark.parametrize("model", ["vit", "cnn", "mlp"])
def test_the_batch_is_free(export: Callable[..., Exported], model: str, batch: int) -> None:
    made = export(task_of(MODELS[model]()))
    assert made.deviation(made.task.train.batch(range(batch))[0]) < 1e-5


def test_the_artifact_describes_the_file(export: Callable[..., Exported], tmp_path: Path) -> None:
    made = export(task_of(mlp()), quantized("int8", "first"))
    content = made.path.read_bytes()
    assert made.artifact.path == "artifacts/model.onnx"
    assert made.artifact.size_bytes == len(content)
    assert made.artifact.sha256 == hashlib.sha256(content).hexdigest()
    assert made.artifact.plan_fingerprint == quantized("int8", "first").fingerprint
    assert [path.name for path in made.path.parent.iterdir()] == ["model.onnx"]


def test_integers_make_the_file_smaller(export: Callable[..., Exported]) -> None:
    sizes = []
    for precision in ("int8", "int4-weights"):
        task = task_of(mlp(width=2000))
        sizes.append(export(task, everywhere(task, precision)).artifact.size_bytes)
    dense = export(task_of(mlp(width=2000))).artifact.size_bytes
    assert sizes[1] < sizes[0] < dense / 2


def test_the_same_plan_gives_the_same_bytes(export: Callable[..., Exported]) -> None:
    task = task_of(bert())
    assert len({export(task, in_turn(task)).artifact.sha256 for _ in range(2)}) == 1


def test_float_graph_is_a_valid_graph_of_named_weights(tmp_path: Path) -> None:
    task = task_of(bert())
    graph = float_graph(task.model, task)
    onnx.checker.check_model(graph, full_check=True)
    assert {item.domain: item.version for item in graph.opset_import}[""] == OPSET
    names = {item.name for item in graph.graph.initializer}
    assert {f"model.{name}" for name, _p in task.model.named_parameters()} <= names
    assert [item.name for item in graph.graph.input] == ["input_ids", "attention_mask"]
    assert [item.name for item in graph.graph.output] == ["logits"]


def test_export_leaves_the_model_alone(export: Callable[..., Exported]) -> None:
    task = task_of(bert())
    before = {name: value.clone() for name, value in task.model.state_dict().items()}
    attention = task.model.config._attn_implementation
    export(task, in_turn(task))
    assert all(torch.equal(value, before[name]) for name, value in task.model.state_dict().items())
    assert task.model.config._attn_implementation == attention


@pytest.mark.parametrize(("precision", "name"), [
    ("int8", "bert.pooler.dense"),
    ("int8-dynamic", "bert.pooler.dense"),
    ("int4-weights", "bert.pooler.dense"),
    ("int8-weights", "bert.embeddings.word_embeddings"),
    ("int4-weights", "bert.embeddings.word_embeddings"),
])  # fmt: skip
def test_a_planted_wrong_scale_is_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str, name: str
) -> None:
    """Cosine similarity would not see it; the relative distance does."""
    task = task_of(bert())
    made = quantize(task.model, quantized(precision, name), table_of(task), task.calibration())
    real = export.insert_codes

    def wrong(graph: onnx.ModelProto, codes: dict[str, Codes]) -> onnx.ModelProto:
        return real(graph, {name: replace(made, scales=made.scales * 1.5) for name, made in codes.items()})

    monkeypatch.setattr(export, "insert_codes", wrong)
    with pytest.raises(ExportError, match=r"m\.onnx: its outputs lie 0\.\d+ .* than the .* allowed for fp32"):
        export_model(made.model, made.codes, task, tmp_path / "m.onnx", tmp_path, "f", "onnxruntime")
    assert not list(tmp_path.iterdir()), "a file that disagrees is not kept under any name"


def test_outputs_of_nan_are_caught(tmp_path: Path) -> None:
    model = mlp()
    model.second.bias.data[0] = float("nan")
    task = task_of(model)
    with pytest.raises(ExportError, match="its outputs lie inf"):
        export_model(model, {}, task, tmp_path / "m.onnx", tmp_path, "f", "onnxruntime")


def test_another_model_does_not_agree(export: Callable[..., Exported]) -> None:
    made = export(task_of(mlp()))
    other = mlp()
    other.second.weight.data *= 2
    other.second.bias.data *= 2
    assert agreement(other, made.path, made.task, "onnxruntime") == pytest.approx(0.5, rel=1e-4)
    assert agreement(made.task.model, made.path, made.task, "onnxruntime") < 1e-5


class Untraceable(nn.Module):
    """Uses an operator that ONNX does not have."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.eigvalsh(self.linear(x)[:, :, None] @ self.linear(x)[:, None, :])


def test_a_model_that_cannot_be_traced_is_refused(tmp_path: Path) -> None:
    template = task_of(mlp())
    task = Task("bad", Untraceable(), template.train, template.validation, template.test)
    with pytest.raises(ExportError, match="torch cannot export Untraceable to ONNX"):
        export_model(task.model, {}, task, tmp_path / "m.onnx", tmp_path, "f", "onnxruntime")


def test_dynamic_axes_reach_the_file(export: Callable[..., Exported]) -> None:
    made = export(task_of(bert()))
    shapes = {
        item.name: [d.dim_param or d.dim_value for d in item.type.tensor_type.shape.dim] for item in made.graph.input
    }
    assert shapes == {"input_ids": ["batch", "sequence"], "attention_mask": ["batch", "sequence"]}
    assert run(made.task.model, unseen(made.task)).shape == (10, 3)
