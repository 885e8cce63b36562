"""Oracle: the runtimes' own account of the kernels that ran, for a model of every kind in static int8."""

from __future__ import annotations

import copy
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autocompress.compressing.quantize import quantize
from autocompress.export import export_model, forms
from autocompress.export.products import exact
from autocompress.plan import Plan, legal_precisions
from autocompress.runtimes import installed_runtimes, open_session
from autocompress.tasks.task import Task
from autocompress.weights import linearized, untie
from tests.tiny import any_task, quantized, stirred, table_of, tensors

Query = dict[str, Tensor]


class Residual(nn.Module):
    """Two convolutions with norms around a shortcut, which is thinned and padded where the width doubles."""

    def __init__(self, into: int, out: int) -> None:
        super().__init__()
        self.stride, self.pad = (1, 0) if into == out else (2, (out - into) // 2)
        self.conv1 = nn.Conv2d(into, out, 3, self.stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x
        if self.pad:
            shortcut = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.pad, self.pad))
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + shortcut)


class ResNet(nn.Module):
    """A stem, blocks of residuals and a classifier on images ``(n, 3, 16, 16)``, as ResNet-20 has them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.blocks = nn.Sequential(Residual(8, 8), Residual(8, 8), Residual(8, 16), Residual(16, 16))
        self.linear = nn.Linear(16, 3)

    def forward(self, pixel_values: Tensor) -> Tensor:
        hidden = self.blocks(F.relu(self.bn1(self.conv1(pixel_values))))
        return self.linear(F.adaptive_avg_pool2d(hidden, 1).flatten(1))


def resnet_task() -> Task:
    torch.manual_seed(0)
    pixels = tensors("pixel_values", (3, 16, 16), 24, 0)
    return Task("resnet", stirred(ResNet(), 0, 0.02).eval(), pixels, pixels, pixels)


def task_called(name: str) -> Task:
    task = resnet_task() if name == "resnet" else any_task(name)
    return replace(task, model=linearized(copy.deepcopy(task.model)))


def everywhere(task: Task, precision: str) -> Plan:
    legal = {la.name: legal_precisions(la) for la in table_of(task).layers}
    return quantized(precision, *(name for name, precisions in legal.items() if precision in precisions))


def onnxruntime_kernels(path: Path, query: Query) -> Counter[str]:
    """Operators that a run called."""
    options = onnxruntime.SessionOptions()
    options.enable_profiling = True
    options.log_severity_level = 3
    options.profile_file_prefix = str(path.with_name("profile"))
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    session.run(None, {name: value.numpy() for name, value in query.items()})
    events = json.loads(Path(session.end_profiling()).read_text())
    return Counter(event["args"]["op_name"] for event in events if event.get("cat") == "Node")


def openvino_kernels(path: Path, query: Query) -> Counter[tuple[str, str]]:
    """Layer types and arithmetic of the compiled graph, of what multiplies."""
    openvino = pytest.importorskip("openvino", reason="OpenVINO is an extra")
    compiled = openvino.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    compiled({name: value.numpy() for name, value in query.items() if name in {p.any_name for p in compiled.inputs}})
    found: Counter[tuple[str, str]] = Counter()
    for operation in compiled.get_runtime_model().get_ops():
        told = {key: str(value.value) for key, value in operation.get_rt_info().items()}
        if "Convolution" in told["layerType"] or "FullyConnected" in told["layerType"]:
            found[told["layerType"], told["runtimePrecision"]] += 1
    return found


#: Model to its rank-2 linears, which are Gemm in the graph.
MODELS = {"bert": 2, "vit": 1, "gpt2": 0, "llama": 0, "resnet": 1}


@pytest.fixture
def made(tmp_path: Path) -> Callable[[str, str, str], tuple[Path, Query, Counter[str]]]:
    def make(model: str, precision: str, runtime: str) -> tuple[Path, Query, Counter[str]]:
        task = task_called(model)
        plan = exact(everywhere(task, precision), runtime)
        untie(task.model, plan.layers)  # as `shape` does
        ready = quantize(task.model, plan, table_of(task), task.calibration())
        path = tmp_path / "model.onnx"
        export_model(ready.model, ready.codes, task, path, tmp_path, "f", runtime)
        kinds = Counter(type(ready.model.get_submodule(name)).__name__ for name in ready.codes)
        return path, task.test.batch(range(2))[0], kinds

    return make


@pytest.mark.parametrize("model", MODELS)
def test_onnxruntime_runs_every_layer_in_integers(
    made: Callable[[str, str, str], tuple[Path, Query, Counter[str]]], model: str
) -> None:
    path, query, kinds = made(model, "int8", "onnxruntime")
    found, gemms = onnxruntime_kernels(path, query), MODELS[model]
    assert found["QGemm"] == gemms
    assert found["MatMulIntegerToFloat"] + found["QLinearMatMul"] == kinds["Linear"] - gemms
    assert found["QLinearConv"] == kinds["Conv2d"]
    assert found["Conv"] + found["FusedConv"] + found["Gemm"] == 0
    attention = 0 if model == "resnet" else 2 * 2  # two products of activations in each of two layers
    assert found["MatMul"] + found["FusedMatMul"] == attention


def test_onnxruntime_adds_shortcuts_in_integers(
    made: Callable[[str, str, str], tuple[Path, Query, Counter[str]]],
) -> None:
    path, query, _kinds = made("resnet", "int8", "onnxruntime")
    found = onnxruntime_kernels(path, query)
    assert (found["QLinearAdd"], found["Add"], found["Relu"]) == (4, 0, 0)  # the padded one, and what is pooled, too
    assert (found["QLinearGlobalAveragePool"], found["GlobalAveragePool"]) == (1, 0)
    assert (found["QuantizeLinear"], found["DequantizeLinear"]) == (1, 0)  # images in; logits leave QGemm as floats


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_shortcuts_moved_as_integers_are_those_moved_as_floats(
    made: Callable[[str, str, str], tuple[Path, Query, Counter[str]]],
    monkeypatch: pytest.MonkeyPatch,
    runtime: str,
) -> None:
    if runtime not in installed_runtimes():
        pytest.skip("OpenVINO is an extra")
    found = []
    for form in (forms.move_rounded, forms.read_rounded):
        monkeypatch.setattr(forms, "move_rounded", form)
        path, query, _kinds = made("resnet", "int8", runtime)
        inputs = {name: value.numpy() for name, value in query.items()}
        found.append(open_session(path, runtime, 1).run(inputs)[0])
    np.testing.assert_array_equal(*found)


@pytest.mark.skipif("openvino" not in installed_runtimes(), reason="OpenVINO is an extra")
@pytest.mark.parametrize("model", MODELS)
def test_openvino_runs_every_layer_in_integers(
    made: Callable[[str, str, str], tuple[Path, Query, Counter[str]]], model: str
) -> None:
    path, query, kinds = made(model, "int8", "openvino")
    found: Counter[tuple[str, bool]] = Counter()
    for (layer, precision), count in openvino_kernels(path, query).items():
        found["Conv2d" if "Convolution" in layer else "Linear", precision in ("u8", "i8")] += count
    assert {kind: found[kind, True] for kind in kinds} == kinds
    assert found["Linear", False] + found["Conv2d", False] == 0


@pytest.mark.parametrize("model", ["bert", "gpt2", "llama"])
def test_onnxruntime_runs_every_linear_in_dynamic_integers(
    made: Callable[[str, str, str], tuple[Path, Query, Counter[str]]], model: str
) -> None:
    path, query, kinds = made(model, "int8-dynamic", "onnxruntime")
    found = onnxruntime_kernels(path, query)
    assert found["DynamicQuantizeMatMul"] + found["MatMulIntegerToFloat"] == kinds["Linear"]
    assert found["MatMulInteger"] == 0


@pytest.mark.parametrize("model", ["bert", "gpt2", "llama"])
def test_onnxruntime_runs_every_four_bit_linear_in_blocks(
    made: Callable[[str, str, str], tuple[Path, Query, Counter[str]]], model: str
) -> None:
    path, query, kinds = made(model, "int4-weights", "onnxruntime")
    assert onnxruntime_kernels(path, query)["MatMulNBits"] == kinds["Linear"]
