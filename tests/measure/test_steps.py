"""Steps of exported files. Oracles: the LayerTable's multiply-adds, and steps counted by hand."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from autocompress.compressing.quantize import quantize
from autocompress.errors import MeasureError
from autocompress.export.export import float_graph
from autocompress.export.integers import insert_codes
from autocompress.measure.graphs import Size
from autocompress.measure.steps import Step, Work, read_work
from autocompress.plan import Plan
from autocompress.survey import survey
from tests.measure.test_graphs import save
from tests.tiny import any_task, cnn, mlp, quantized, table_of, task_of

TOKENS = 9


def work_of(task, folder: Path, plan: Plan | None = None) -> Work:
    """The steps of a task's model at one sample (of 9 tokens), rounded as a plan says."""
    codes = quantize(task.source, plan, table_of(task), task.calibration()).codes if plan else {}
    onnx.save_model(insert_codes(float_graph(task.source, task), codes), folder / "model.onnx")
    return read_work(folder / "model.onnx", Size(1, TOKENS))


def made(name: str):
    return {"mlp": lambda: task_of(mlp()), "cnn": lambda: task_of(cnn())}.get(name, lambda: any_task(name))()


@pytest.mark.parametrize("name", ["mlp", "cnn", "bert", "vit", "distilbert", "llama"])
def test_multiply_adds_are_those_of_the_layer_table(name, tmp_path):
    task = made(name)
    inputs = task.workload_inputs(2, None)
    table = survey(task.source, inputs)
    work_of(task, tmp_path)
    shapes = tuple((key, tuple(value.shape)) for key, value in inputs.items())
    found = read_work(tmp_path / "model.onnx", Size(shapes=shapes)).macs
    found.pop("", None)
    assert found == {layer.name: layer.macs for layer in table.layers if layer.macs}


def test_a_head_that_shares_the_embeddings_weight_counts_under_its_name(tmp_path):
    found = work_of(made("gpt2"), tmp_path).macs
    assert found["transformer.wte"] == TOKENS * 32 * 60


def test_products_of_two_activations_belong_to_no_layer(tmp_path):
    heads, size, layers = 4, 8, 2
    assert work_of(made("bert"), tmp_path).macs[""] == layers * 2 * heads * TOKENS * TOKENS * size


def test_a_product_takes_its_activation_along_and_a_norm_is_one_pass(tmp_path):
    steps = work_of(made("bert"), tmp_path).steps
    kinds = Counter(step.kind for step in steps)
    # per block: q, k, v, scores, weighted sum, output, up, down; a softmax and two norms. Beside them: the mask, the
    # norm of the embeddings, pooler and classifier, two tables.
    assert kinds == {"product": 2 * 8 + 2, "pass": 2 * 3 + 2, "lookup": 2}
    up = next(step for step in steps if step.layer.endswith("0.intermediate.dense"))
    assert (up.weights, up.weight_bits, up.constant_bytes) == (32 * 64, 32, 4 * 64)
    assert up.precision == "fp32"


def test_a_residual_is_read_by_the_pass_that_adds_it(tmp_path):
    steps = work_of(made("bert"), tmp_path).steps
    norm = next(step for step in steps if step.kind == "pass" and "attention/output" in step.name)
    assert len(norm.reads) == 2
    assert len(norm.writes) == 1
    assert norm.constant_bytes == 3 * 4 * 32  # bias of the product before, weight and bias of the norm


def test_static_integers_are_written_by_whoever_comes_before(tmp_path):
    work = work_of(task_of(mlp()), tmp_path, quantized("int8", "first", "second"))
    rounding, first, second = work.steps
    assert rounding.kind == "pass"
    assert [step.precision for step in (first, second)] == ["int8", "int8"]
    assert [step.weight_bits for step in (first, second)] == [8, 8]
    assert {work.tensors[name].bits for name in (*first.factors, *first.writes, *second.factors)} == {8}
    assert work.tensors[second.writes[0]].bits == 32


def test_a_range_that_must_be_found_is_a_pass(tmp_path):
    work = work_of(task_of(mlp()), tmp_path, quantized("int8-dynamic", "first", "second"))
    assert [step.kind for step in work.steps] == ["pass", "product", "pass", "product"]
    assert [step.writes for step in work.steps][-1] == ("logits",)
    assert {step.layer: step.precision for step in work.steps if step.layer} == {"first": "int8", "second": "int8"}


def test_four_bits_count_their_scales(tmp_path):
    work = work_of(task_of(mlp(64)), tmp_path, quantized("int4-weights", "second"))
    second = next(step for step in work.steps if step.layer == "second")
    assert (second.precision, second.weights, second.weight_bits) == ("int4-weights", 3 * 64, 4 + 32 / 32)
    assert second.macs == 3 * 64


def test_halves_are_told_by_their_weights(tmp_path):
    work = work_of(task_of(mlp()), tmp_path, quantized("fp16", "first"))
    assert {step.layer: (step.precision, step.weight_bits) for step in work.steps} == {
        "first": ("fp16", 16),
        "second": ("fp32", 32),
    }


@pytest.mark.parametrize(("precision", "bits"), [("int8-weights", 8), ("int4-weights", 5)])
def test_embeddings_are_looked_up_in_their_bits(precision, bits, tmp_path):
    task = made("bert")
    work = work_of(task, tmp_path, quantized(precision, "bert.embeddings.word_embeddings"))
    rows = [s for s in work.steps if s.kind == "lookup" and s.layer.endswith("word_embeddings")]
    assert (rows[0].precision, rows[0].weights, rows[0].weight_bits) == (precision, TOKENS * 32, bits)


def test_no_step_waits_for_itself(tmp_path):
    work = work_of(made("llama"), tmp_path)
    known = set(work.tensors) - {name for step in work.steps for name in step.writes}
    for step in work.steps:
        assert set(step.factors) | set(step.reads) <= known, step.name
        known |= set(step.writes)


def test_transposed_and_grouped_convolutions(tmp_path):
    shapes = {"up.weight": (4, 3, 2, 2), "down.weight": (6, 1, 1, 1)}
    nodes = [
        helper.make_node("ConvTranspose", ["x", "up.weight"], ["wide"], strides=[2, 2]),
        helper.make_node("Conv", ["wide", "down.weight"], ["y"], group=3),
    ]
    file = save(tmp_path / "a.onnx", nodes, {n: np.zeros(s, np.float32) for n, s in shapes.items()}, [1, 4, 5, 5])
    # every input value meets 3 · 2 · 2 weights; every output value of the grouped one a single weight
    assert read_work(file, Size()).macs == {"up": 4 * 25 * 3 * 4, "down": 6 * 100}


def test_a_recurrent_layer_is_refused(tmp_path):
    constants = {"w": np.zeros((1, 8, 4), np.float32), "r": np.zeros((1, 8, 2), np.float32)}
    node = helper.make_node("LSTM", ["x", "w", "r"], ["y"], name="cells", hidden_size=2)
    with pytest.raises(MeasureError, match=r"LSTM \('cells'\): an operator whose work is not known"):
        read_work(save(tmp_path / "a.onnx", [node], constants, [5, 1, 4]), Size())


def test_work_without_products_has_no_multiply_adds():
    assert Work((Step("pass", "a", "Relu"),), {}, frozenset()).macs == {}
