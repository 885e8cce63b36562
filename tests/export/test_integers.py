"""Oracles: the codes themselves, read back from the file; the kernels that ONNX Runtime makes of the graph."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto
from torch import Tensor, nn
from torch.nn import functional as F

from autocompress.compressing.codes import quantize_weight
from autocompress.errors import ExportError
from autocompress.export import float_graph
from autocompress.export.integers import insert_codes
from autocompress.plan import INT4_GROUP, Plan, Quantize
from autocompress.tasks.task import Task
from tests.compressing.test_quantize import NormCnn
from tests.export.conftest import Exported, unpack
from tests.tiny import bert, cnn, mlp, quantized, task_of, tensors, vit

ATTENTION = [f"bert.encoder.layer.0.attention.self.{name}" for name in ("query", "key", "value")]


def linears(task: Task) -> list[str]:
    return [name for name, module in task.model.named_modules() if isinstance(module, nn.Linear)]


def vector_task(model: nn.Module) -> Task:
    splits = {name: tensors("x", (16,), 24, seed) for seed, name in enumerate(("train", "validation", "test"))}
    return Task("vectors", model, **splits)


def kernels(path: Path) -> Counter[str]:
    """Operators of the graph that ONNX Runtime runs after all its fusions."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(path.with_name("optimized.onnx"))
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)


@pytest.mark.parametrize("precision", ["int8", "int8-dynamic"])
def test_the_files_linears_hold_the_codes(export: Callable[..., Exported], precision: str) -> None:
    task = task_of(bert())
    made = export(task, quantized(precision, *linears(task)))
    arrays = made.arrays()
    assert len(made.codes) == 14
    for name, codes in made.codes.items():
        np.testing.assert_array_equal(arrays[f"{name}.weight_q"], codes.values.numpy().T)
        np.testing.assert_array_equal(arrays[f"{name}.weight_scale"], codes.scales.numpy())
        assert arrays[f"{name}.weight_q"].dtype == np.int8
        assert f"model.{name}.weight" not in arrays  # the floats are gone


def test_the_files_convolutions_hold_the_codes(export: Callable[..., Exported]) -> None:
    made = export(task_of(cnn()), quantized("int8", "first", "second"))
    for name, codes in made.codes.items():
        np.testing.assert_array_equal(made.arrays()[f"{name}.weight_q"], codes.values.numpy())
        np.testing.assert_array_equal(made.arrays()[f"{name}.weight_scale"], codes.scales.numpy())


def test_the_files_four_bit_linears_hold_the_codes(export: Callable[..., Exported]) -> None:
    task = task_of(bert(hidden=40))  # 40 columns: the second group is not full
    made = export(task, quantized("int4-weights", *linears(task)))
    for name, codes in made.codes.items():
        packed = made.arrays()[f"{name}.weight_q4"]
        assert packed.shape == (codes.values.shape[0], codes.scales.shape[1], INT4_GROUP // 2)
        np.testing.assert_array_equal(unpack(packed, codes.values.shape[1]), codes.values.numpy())
        np.testing.assert_array_equal(made.arrays()[f"{name}.weight_scale"], codes.scales.numpy().reshape(-1))


@pytest.mark.parametrize("precision", ["int8-weights", "int4-weights"])
def test_the_files_embeddings_hold_the_codes(export: Callable[..., Exported], precision: str) -> None:
    name = "bert.embeddings.word_embeddings"
    made = export(task_of(bert()), quantized(precision, name))
    arrays, codes = made.arrays(), made.codes[name]
    if precision == "int8-weights":
        np.testing.assert_array_equal(arrays[f"{name}.weight_q"], codes.values.numpy())
    else:
        np.testing.assert_array_equal(unpack(arrays[f"{name}.weight_q4"], 32), codes.values.numpy())
    np.testing.assert_array_equal(arrays[f"{name}.weight_scale"].reshape(-1), codes.scales.numpy().reshape(-1))


def test_an_int32_bias_is_the_bias_on_the_accumulators_grid(export: Callable[..., Exported]) -> None:
    made = export(task_of(mlp()), quantized("int8", "first"))
    codes, arrays = made.codes["first"], made.arrays()
    scales = codes.scales.numpy() * np.float32(codes.input.scale)
    assert arrays["first.bias_q"].dtype == np.int32
    np.testing.assert_allclose(arrays["first.bias_scale"], scales, rtol=1e-7)
    bias = made.task.model.first.bias.detach().numpy()
    assert (np.abs(arrays["first.bias_q"] * scales - bias) <= scales / 2 * 1.001).all()


def test_query_key_and_value_share_one_pair(export: Callable[..., Exported]) -> None:
    operators = Counter(export(task_of(bert()), quantized("int8", *ATTENTION)).operators())
    assert operators["QuantizeLinear"] == 1
    assert operators["DequantizeLinear"] == 1 + 3  # the input's and three weights'


def test_query_key_and_value_share_one_dynamic_quantization(export: Callable[..., Exported]) -> None:
    operators = Counter(export(task_of(bert()), quantized("int8-dynamic", *ATTENTION)).operators())
    assert operators["DynamicQuantizeLinear"] == 1
    assert operators["MatMulInteger"] == 3


def test_activations_are_unsigned_and_weights_signed(export: Callable[..., Exported]) -> None:
    """ONNX Runtime fuses a pair shared by several layers only when it is unsigned (facts.md, trap 2)."""
    made = export(task_of(bert()), quantized("int8", *ATTENTION))
    arrays = made.arrays()
    for node in made.graph.node:
        if node.op_type == "QuantizeLinear":
            assert arrays[node.input[2]].dtype == np.uint8


def test_static_linears_become_integer_kernels(export: Callable[..., Exported]) -> None:
    task = task_of(bert())
    found = kernels(export(task, quantized("int8", *linears(task))).path)
    assert found["MatMulIntegerToFloat"] + found["QLinearMatMul"] == 12
    assert found["QGemm"] == 2  # pooler and classifier
    assert found["DequantizeLinear"] == 0
    assert found["MatMul"] + found["FusedMatMul"] == 4  # attention's own products, two in each layer


def test_dynamic_linears_become_integer_kernels(export: Callable[..., Exported]) -> None:
    task = task_of(bert())
    found = kernels(export(task, quantized("int8-dynamic", *linears(task))).path)
    assert found["DynamicQuantizeMatMul"] + found["MatMulIntegerToFloat"] == 14
    assert found["MatMulInteger"] == 0
    assert found["DynamicQuantizeLinear"] == 2  # what query, key and value share, in each layer


def test_four_bit_linears_become_blocked_kernels(export: Callable[..., Exported]) -> None:
    task = task_of(bert())
    assert kernels(export(task, quantized("int4-weights", *linears(task))).path)["MatMulNBits"] == 14


def test_a_rank_two_network_becomes_integer_kernels(export: Callable[..., Exported]) -> None:
    found = kernels(export(task_of(mlp()), quantized("int8", "first", "second")).path)
    assert found == {"QuantizeLinear": 1, "QGemm": 2}


def test_a_convolution_before_another_integer_layer_becomes_an_integer_kernel(
    export: Callable[..., Exported],
) -> None:
    assert kernels(export(task_of(cnn()), quantized("int8", "first", "second")).path)["QLinearConv"] == 2


def test_the_last_convolution_becomes_an_integer_kernel(export: Callable[..., Exported]) -> None:
    found = kernels(export(task_of(cnn()), quantized("int8", "first", "second")).path)
    assert found["QLinearConv"] == 2


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("granularity", ["channel", "tensor"])
def test_settings_of_the_weights_keep_the_integer_kernels(
    export: Callable[..., Exported], granularity: str, symmetric: bool
) -> None:
    settings = {"granularity": granularity, "symmetric": symmetric}
    task = task_of(bert())
    static = kernels(export(task, quantized("int8", *linears(task), weight_bits=5, **settings)).path)
    assert (static["MatMulIntegerToFloat"], static["QGemm"]) == (12, 2)
    dynamic = kernels(export(task, quantized("int8-dynamic", *linears(task), **settings)).path)
    assert dynamic["DynamicQuantizeMatMul"] + dynamic["MatMulIntegerToFloat"] == 14
    images = kernels(export(task_of(cnn()), quantized("int8", "first", "second", "head", **settings)).path)
    assert (images["QLinearConv"], images["QGemm"], images["Conv"]) == (2, 1, 0)


def executed(path: Path, inputs: dict[str, Tensor]) -> Counter[str]:
    """Operators that a run really called, from ONNX Runtime's own profile."""
    options = onnxruntime.SessionOptions()
    options.enable_profiling = True
    options.profile_file_prefix = str(path.with_name("profile"))
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    session.run(None, {name: value.numpy() for name, value in inputs.items()})
    events = json.loads(Path(session.end_profiling()).read_text())
    return Counter(event["args"]["op_name"] for event in events if event.get("cat") == "Node")


@pytest.mark.parametrize("names", [("first",), ("second",), ("first", "second")], ids=str)
def test_convolutions_run_in_integers_whatever_follows(export: Callable[..., Exported], names: tuple[str, ...]) -> None:
    made = export(task_of(cnn()), quantized("int8", *names))
    found = executed(made.path, made.task.test.batch(range(2))[0])
    assert found["QLinearConv"] == len(names)
    assert found["Conv"] + found["FusedConv"] == 2 - len(names)


def test_a_vision_transformers_patches_run_in_integers(export: Callable[..., Exported]) -> None:
    made = export(task_of(vit()), quantized("int8", "vit.embeddings.patch_embeddings.projection"))
    found = executed(made.path, made.task.test.batch(range(2))[0])
    assert (found["QLinearConv"], found["Conv"]) == (1, 0)


def test_two_integer_convolutions_share_one_pair(export: Callable[..., Exported]) -> None:
    made = export(task_of(cnn()), quantized("int8", "first", "second"))
    assert Counter(made.operators())["QuantizeLinear"] == 3  # input, between the two, output


def test_convolutions_with_batchnorms_take_integers(export: Callable[..., Exported]) -> None:
    """The exporter folds BatchNorms by itself, and the weights that it then writes are no layer's."""
    torch.manual_seed(0)
    pixels = tensors("pixel_values", (1, 8, 8), 24, 0)
    task = Task("norms", NormCnn().eval(), pixels, pixels, pixels)
    for precision in ("int8", "fp16"):
        made = export(task, quantized(precision, "first", "second"))
        assert "BatchNormalization" not in made.operators()
        assert made.deviation(pixels.batch(range(24))[0]) < 0.01
    assert kernels(export(task, quantized("int8", "first")).path)["QLinearConv"] == 1


class Shortcut(nn.Module):
    """Two convolutions whose rectified sum with a shortcut is pooled for a linear; the shortcut may go a longer way."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.kind = kind
        self.first = nn.Conv2d(1, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.third = nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(4, 3)

    def forward(self, pixel_values: Tensor) -> Tensor:
        start = F.relu(self.first(pixel_values))
        end = self.third(F.relu(self.second(start)))
        if self.kind.startswith("pad"):
            value = {"pad-ones": 1.0, "pad-zeros": None}[self.kind]
            start = F.pad(start[:, 1:3], (0, 0, 0, 0, 1, 1), value=value)
        hidden = F.relu(end + (start.tanh() if self.kind == "float" else start))
        pooled = F.adaptive_avg_pool2d(hidden, 1).flatten(1)
        return self.head(pooled + hidden.amax((2, 3)) if self.kind == "read-twice" else pooled)


def shortcut(kind: str) -> Task:
    splits = {name: tensors("pixel_values", (1, 8, 8), 24, i) for i, name in enumerate(("train", "validation", "test"))}
    return Task("shortcut", Shortcut(kind).eval(), **splits)


@pytest.mark.parametrize("levels", [{}, {"activation_bits": 4}], ids=["8-bit", "4-bit"])
@pytest.mark.parametrize("kind", ["plain", "pad-zeros", "pad-ones", "float", "read-twice"])
def test_shortcuts_of_every_kind_give_what_torch_gives(
    export: Callable[..., Exported], kind: str, levels: dict[str, int]
) -> None:
    made = export(shortcut(kind), quantized("int8", "first", "second", "third", "head", **levels))
    for size in (1, 24):  # the batch stays free
        assert made.deviation(made.task.test.batch(range(size))[0]) < 0.02


@pytest.mark.parametrize(
    ("kind", "pools"), [("plain", 1), ("pad-zeros", 0), ("pad-ones", 0), ("float", 0), ("read-twice", 0)]
)
def test_pools_read_integers_where_their_range_is_known(export: Callable[..., Exported], kind: str, pools: int) -> None:
    made = export(shortcut(kind), quantized("int8", "first", "second", "third", "head"))
    assert executed(made.path, made.task.test.batch(range(2))[0])["QLinearGlobalAveragePool"] == pools


def test_a_pooled_sum_has_the_range_of_what_is_added(export: Callable[..., Exported]) -> None:
    made = export(shortcut("plain"), quantized("int8", "first", "second", "third", "head"))
    producers = {node.output[0]: node for node in made.graph.node}
    (pool,) = (node for node in made.graph.node if node.op_type == "GlobalAveragePool")
    scale, zero = (made.arrays()[name] for name in producers[pool.input[0]].input[1:])
    highs = made.codes["third"].output.high + made.codes["second"].input.high
    assert (scale, zero) == (pytest.approx(highs / 255), 0)


@pytest.mark.parametrize(("kind", "element"), [("pad-zeros", TensorProto.UINT8), ("pad-ones", TensorProto.FLOAT)])
def test_only_zeros_are_padded_on_as_integers(export: Callable[..., Exported], kind: str, element: int) -> None:
    made = export(shortcut(kind), quantized("int8", "first", "second", "third"))
    inferred = onnx.shape_inference.infer_shapes(onnx.load(made.path)).graph
    types = {item.name: item.type.tensor_type.elem_type for item in inferred.value_info}
    (pad,) = (node for node in inferred.node if node.op_type == "Pad")
    assert types[pad.output[0]] == element


def test_no_codes_leave_the_graph_as_it_is() -> None:
    task = task_of(mlp())
    graph = float_graph(task.model, task)
    assert insert_codes(graph, {}) is graph


def test_the_input_graph_is_not_edited() -> None:
    task = task_of(mlp())
    graph = float_graph(task.model, task)
    before = graph.SerializeToString()
    insert_codes(graph, {"first": quantize_weight(task.model.first.weight.detach(), Quantize("int4-weights"))})
    assert graph.SerializeToString() == before


def test_a_layer_that_the_graph_does_not_hold_is_named() -> None:
    task = task_of(mlp())
    codes = {"third": quantize_weight(torch.ones(2, 2), Quantize("int8-dynamic"))}
    with pytest.raises(ExportError, match="holds no weight of layer 'third'"):
        insert_codes(float_graph(task.model, task), codes)


class Odd(nn.Module):
    """Linears as models are written: without bias, called twice, fed by one tensor, behind equal weights."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.kind = kind
        self.a = nn.Linear(16, 16, bias=kind != "no-bias")
        self.b = nn.Linear(16, 16, bias=kind != "no-bias")
        self.head = nn.Linear(16, 3)
        if kind == "equal-weights":
            self.b.load_state_dict(self.a.state_dict())
        if kind == "equal-biases":
            nn.init.zeros_(self.a.bias)
            nn.init.zeros_(self.b.bias)
        if kind == "dead-neurons":
            self.a.weight.data[:4] *= 1e-9
            self.a.bias.data[:4] = 0.5

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "shared-input":
            return self.head(self.a(x) + self.b(x))
        if self.kind == "called-twice":
            return self.head(torch.relu(self.a(torch.relu(self.a(x)))))
        return self.head(torch.relu(self.b(torch.relu(self.a(x)))))


KINDS = ("plain", "no-bias", "shared-input", "called-twice", "equal-weights", "equal-biases", "dead-neurons")


@pytest.mark.parametrize("precision", ["int8", "int8-dynamic", "int4-weights"])
@pytest.mark.parametrize("kind", KINDS)
def test_linears_as_models_are_written(export: Callable[..., Exported], kind: str, precision: str) -> None:
    made = export(vector_task(Odd(kind)), quantized(precision, "a", "head", *(["b"] * (kind != "called-twice"))))
    assert made.deviation(made.task.test.batch(range(24))[0]) < 0.02


@pytest.mark.parametrize("hidden", [INT4_GROUP, 2 * INT4_GROUP])
def test_four_bit_embeddings_of_whole_groups(export: Callable[..., Exported], hidden: int) -> None:
    made = export(task_of(bert(hidden=hidden)), quantized("int4-weights", "bert.embeddings.word_embeddings"))
    assert made.deviation(made.task.test.batch(range(10))[0]) < 1e-5


def test_four_bit_embeddings_of_part_of_a_group_are_refused(export: Callable[..., Exported]) -> None:
    name = "bert.embeddings.word_embeddings"
    with pytest.raises(ExportError, match=f"layer '{name}': its rows of 48 are no multiple of {INT4_GROUP}"):
        export(task_of(bert(hidden=48)), quantized("int4-weights", name))


class Reused(nn.Module):
    """An embedding whose weight is also used by hand, as output projection."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(60, 32)
        self.mix = nn.Linear(32, 32)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = self.mix(self.embed(input_ids) * attention_mask[..., None]).mean(dim=1)
        return nn.functional.linear(hidden, self.embed.weight)[:, :3]


def test_an_embedding_used_as_a_projection_too_is_refused_by_name(export: Callable[..., Exported]) -> None:
    with pytest.raises(ExportError, match="'embed'"):
        export(task_of(Reused()), quantized("int8-weights", "embed"))


def test_an_empty_plan_has_no_foreign_operators(export: Callable[..., Exported]) -> None:
    graph = export(task_of(bert()), Plan()).graph
    assert {node.domain for node in graph.node} == {""}
