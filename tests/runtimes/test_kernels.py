"""Oracle: the precisions that the file was made with; what runtimes claim is held to what they ran."""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from autocompress.compressing.quantize import quantize, simulate
from autocompress.export import export_model
from autocompress.export.export import codes_for
from autocompress.export.products import exact
from autocompress.export.program import export_program
from autocompress.plan import Plan, legal_precisions
from autocompress.runtimes import RUNTIMES, Kernel, integer_share, kernels, layer_in, open_session, products
from autocompress.tasks.task import Task
from tests.tiny import bert, cnn, mlp, quantized, run, table_of, task_of, tensors

needs = {
    name: pytest.mark.skipif(importlib.util.find_spec(made.package) is None, reason=f"{name} is not installed")
    for name, made in RUNTIMES.items()
}


class Embedder(nn.Module):
    """An embedding and a linear."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(60, 64)
        self.head = nn.Linear(64, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.head((self.embed(input_ids) * attention_mask[..., None]).mean(dim=1))


class Parts(nn.Module):
    """A layer of every kind, on images ``(n, 1, 8, 8)``, for all precisions in one file."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(1, 8, 3, padding=1)
        self.embeds = nn.ModuleList(nn.Embedding(8, 32) for _ in range(2))
        self.linears = nn.ModuleList(nn.Linear(32, 32) for _ in range(4))
        self.mix = nn.Linear(8, 32)

    def forward(self, pixel_values: Tensor) -> Tensor:
        hidden = torch.relu(self.conv(pixel_values)).mean(dim=(2, 3))
        places = torch.arange(8, device=hidden.device)
        hidden = self.mix(hidden) + self.embeds[0](places).mean(0) + self.embeds[1](places).mean(0)
        for linear in self.linears:
            hidden = torch.relu(linear(hidden))
        return hidden[:, :3]


FAMILIES: dict[str, Callable[[], nn.Module]] = {"linear": mlp, "conv": cnn, "embedding": Embedder}


def write(task: Task, plan: Plan, path: Path, runtime: str) -> tuple[Path, nn.Module]:
    """A file for the runtime, and its twin."""
    made = quantize(task.model, exact(plan, runtime), table_of(task), task.calibration())
    path = path / f"model.{RUNTIMES[runtime].formats[0]}"
    export = export_program if path.suffix == ".pt2" else export_model
    export(made.model, made.codes, task, path, path.parent, "f", runtime)
    return path, simulate(made.model, codes_for(made.codes, runtime))


def arrays(task: Task) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in task.test.batch(range(3))[0].items()}


def of_kind(task: Task, kind: str, precision: str) -> list[str]:
    return [
        layer.name for layer in table_of(task).layers if layer.kind == kind and precision in legal_precisions(layer)
    ]


CLAIMS = [
    pytest.param(runtime, kind, precision, marks=needs[runtime])
    for runtime, made in RUNTIMES.items()
    if runtime != "torch-compile"
    for kind, precisions in made.kernels.items()
    for precision in precisions
]


@pytest.mark.parametrize(("runtime", "kind", "precision"), CLAIMS)
def test_each_claimed_precision_loads_runs_and_agrees(tmp_path: Path, runtime: str, kind: str, precision: str) -> None:
    task = task_of(FAMILIES[kind]())
    names = of_kind(task, kind, precision)
    plan = quantized(precision, *names) if precision != "fp32" else Plan()
    assert names
    path, twin = write(task, plan, tmp_path, runtime)
    found = open_session(path, runtime, 1).run(arrays(task))[0]
    expected = run(twin, task.test.batch(range(3))[0]).numpy()
    assert np.linalg.norm(found - expected) < 0.02 * np.linalg.norm(expected)


@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_torch_compile_runs_all_precisions_that_it_claims_in_one_program(tmp_path: Path) -> None:
    pixels = tensors("pixel_values", (1, 8, 8), 24, 0)
    task = Task("parts", Parts().eval(), pixels, pixels, pixels)
    given = {"conv": "int8", "embeds.0": "int8-weights", "embeds.1": "int4-weights", "linears.0": "int8"}
    given |= {"linears.1": "int8-dynamic", "linears.2": "int4-weights", "linears.3": "fp16"}
    assert set(given.values()) | {"fp32"} == set().union(*RUNTIMES["torch-compile"].kernels.values())
    layers = {}
    for name, precision in given.items():
        layers |= quantized(precision, name).layers
    path, twin = write(task, Plan(layers=layers), tmp_path, "torch-compile")
    session = open_session(path, "torch-compile", 1, "cpu", arrays(task))
    for rows in (3, 1):  # another batch than the one that it was compiled for
        inputs = {name: value[:rows] for name, value in task.test.batch(range(3))[0].items()}
        expected = run(twin, inputs).numpy()
        found = session.run({name: value.numpy() for name, value in inputs.items()})[0]
        assert np.linalg.norm(found - expected) < 0.02 * np.linalg.norm(expected)
    ran = Counter(kernel.precision for kernel in products(kernels(path, "torch-compile", 1, arrays(task))))
    assert ran["int8"] == 3
    assert ran["int4-weights"] == 1


@pytest.mark.parametrize(
    ("runtime", "precision", "operators"),
    [
        pytest.param("onnxruntime", "int8", {"MatMulIntegerToFloat", "QGemm"}, marks=needs["onnxruntime"]),
        pytest.param(
            "onnxruntime",
            "int8-dynamic",
            {"MatMulIntegerToFloat", "DynamicQuantizeMatMul"},
            marks=needs["onnxruntime"],
        ),
        pytest.param("torch", "int8", {"aten::_int_mm"}, marks=needs["torch"]),
        pytest.param("torch", "int8-dynamic", {"aten::_int_mm"}, marks=needs["torch"]),
    ],
)
def test_int8_linears_run_in_integer_kernels(tmp_path: Path, runtime: str, precision: str, operators: set[str]) -> None:
    task = task_of(bert(layers=1))
    names = of_kind(task, "linear", precision)
    path, _twin = write(task, quantized(precision, *names), tmp_path, runtime)
    found = products(kernels(path, runtime, 1, arrays(task)))
    integer = [kernel for kernel in found if kernel.precision == "int8"]
    assert len(integer) == len(names)
    assert {kernel.operator for kernel in integer} == operators
    rest = [kernel for kernel in found if kernel.precision != "int8"]
    assert rest  # attention's own products
    assert {kernel.precision for kernel in rest} == {"fp32"}
    assert 0 < integer_share(found) < 1


@needs["openvino"]
def test_int8_linears_run_in_integer_kernels_in_openvino(tmp_path: Path) -> None:
    task = task_of(bert(layers=1))
    names = of_kind(task, "linear", "int8")
    path, _twin = write(task, quantized("int8", *names), tmp_path, "openvino")
    found = products(kernels(path, "openvino", 1, arrays(task)))
    assert sum(kernel.precision == "int8" for kernel in found) == len(names)
    assert all(kernel.operator.startswith("FullyConnected") for kernel in found if kernel.precision == "int8")


@pytest.mark.parametrize("runtime", [pytest.param(name, marks=needs[name]) for name in RUNTIMES if "-" not in name])
def test_float_models_run_in_no_integer_kernel(tmp_path: Path, runtime: str) -> None:
    task = task_of(cnn())
    path, _twin = write(task, Plan(), tmp_path, runtime)
    found = kernels(path, runtime, 1, arrays(task))
    assert [kernel.precision for kernel in products(found)] == ["fp32"] * 3
    assert integer_share(found) == 0


@pytest.mark.parametrize("runtime", [pytest.param(name, marks=needs[name]) for name in RUNTIMES if "-" not in name])
def test_models_of_integers_only_run_in_integer_kernels_only(tmp_path: Path, runtime: str) -> None:
    task = task_of(cnn())
    path, _twin = write(task, quantized("int8", "first", "second", "head"), tmp_path, runtime)
    assert integer_share(kernels(path, runtime, 1, arrays(task))) == 1


@pytest.mark.parametrize(
    ("runtime", "operator"),
    [
        pytest.param("onnxruntime", "MatMulNBits", marks=needs["onnxruntime"]),
        pytest.param("openvino", "FullyConnected", marks=needs["openvino"]),
        pytest.param("torch", "aten::_weight_int4pack_mm_for_cpu", marks=needs["torch"]),
    ],
)
def test_four_bit_linears_run_in_kernels_of_their_own(tmp_path: Path, runtime: str, operator: str) -> None:
    task = task_of(mlp(width=64))
    path, _twin = write(task, quantized("int4-weights", "second"), tmp_path, runtime)
    found = {kernel.precision: kernel.operator for kernel in products(kernels(path, runtime, 1, arrays(task)))}
    assert found.keys() == {"fp32", "int4-weights"}
    assert found["int4-weights"].split(" ")[0] == operator


@pytest.mark.parametrize("runtime", [pytest.param(name, marks=needs[name]) for name in ("onnxruntime", "torch")])
def test_kernels_name_the_layers_that_they_compute(tmp_path: Path, runtime: str) -> None:
    task = task_of(bert(layers=1))
    attention = [f"bert.encoder.layer.0.attention.self.{name}" for name in ("query", "key", "value")]
    path, _twin = write(task, quantized("int8", *attention), tmp_path, runtime)
    found = [kernel for kernel in kernels(path, runtime, 1, arrays(task)) if kernel.precision == "int8"]
    assert {kernel.layer for kernel in found} == set(attention)
    assert all(kernel.seconds > 0 for kernel in found)


def test_the_share_is_of_the_seconds_of_products() -> None:
    made = Kernel("a", "QGemm", "int8", 1.0)
    others = (replace(made, precision="fp32", seconds=3.0), replace(made, precision=None, seconds=9.0))
    assert integer_share((made, *others)) == 0.25
    assert integer_share(others[1:]) == 0


@pytest.mark.parametrize(
    ("node", "layer"),
    [
        (
            "/model/bert/encoder/layer.0/attention/self/key/MatMul_output_0_node",
            "bert.encoder.layer.0.attention.self.key",
        ),
        ("/model/bert/encoder/layer.0/attention/self/MatMul/MatMulScaleFusion/", "bert.encoder.layer.0.attention.self"),
        ("fused /model/first/Gemm", "first"),
        ("/model/Relu", None),
        ("logits_node", None),
    ],
)
def test_layers_are_read_from_the_names_of_nodes(node: str, layer: str | None) -> None:
    assert layer_in(node) == layer
