"""Oracle: the same file in every runtime, and torch."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from autocompress import runtimes
from autocompress.errors import MeasureError
from autocompress.export import export_model
from autocompress.export.program import export_program
from autocompress.runtimes import installed_runtimes, open_session
from tests.tiny import mlp, run, task_of

#: torch-compile, whose first run takes long, has a test of its own.
RUNTIMES = [
    pytest.param(
        name,
        marks=pytest.mark.skipif(importlib.util.find_spec(made.package) is None, reason=f"{name} is not installed"),
    )
    for name, made in runtimes.RUNTIMES.items()
    if name != "torch-compile"
]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    task = task_of(mlp())
    export_model(task.model, {}, task, tmp_path / "m.onnx", tmp_path, "f", "onnxruntime")
    return tmp_path / "m.onnx"


@pytest.fixture
def file_of(tmp_path: Path) -> Callable[[str], Path]:
    """A file of the format that a runtime takes."""

    def make(runtime: str) -> Path:
        task, form = task_of(mlp()), runtimes.RUNTIMES[runtime].formats[0]
        write = export_program if form == "pt2" else export_model
        write(task.model, {}, task, tmp_path / f"m.{form}", tmp_path, "f", runtime)
        return tmp_path / f"m.{form}"

    return make


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_outputs_are_torchs(file_of: Callable[[str], Path], runtime: str) -> None:
    inputs = {"x": task_of(mlp()).test.inputs["x"]}
    found = open_session(file_of(runtime), runtime, 1).run({"x": inputs["x"].numpy()})
    assert len(found) == 1
    np.testing.assert_allclose(found[0], run(mlp(), inputs).numpy(), atol=1e-5)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_inputs_that_the_file_does_not_take_are_left_out(file_of: Callable[[str], Path], runtime: str) -> None:
    x = np.zeros((1, 16), dtype=np.float32)
    session = open_session(file_of(runtime), runtime, 1)
    np.testing.assert_array_equal(session.run({"x": x, "other": x})[0], session.run({"x": x})[0])


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_outputs_of_a_run_outlive_the_next(file_of: Callable[[str], Path], runtime: str) -> None:
    session = open_session(file_of(runtime), runtime, 1)
    first = session.run({"x": np.zeros((1, 16), dtype=np.float32)})[0]
    before = first.copy()
    session.run({"x": np.ones((1, 16), dtype=np.float32)})
    np.testing.assert_array_equal(first, before)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_inputs_that_must_not_be_written_to_are_taken(file_of: Callable[[str], Path], runtime: str) -> None:
    x = np.ones((1, 16), dtype=np.float32)
    x.flags.writeable = False
    assert open_session(file_of(runtime), runtime, 1).run({"x": x})[0].shape == (1, 3)


@pytest.mark.parametrize("runtime", [*RUNTIMES, "torch-compile"])
@pytest.mark.parametrize("content", [b"", b"no model"], ids=["empty", "text"])
def test_a_file_that_is_no_model_is_refused_by_path(tmp_path: Path, runtime: str, content: bytes) -> None:
    path = tmp_path / "bad.onnx"
    path.write_bytes(content)
    with pytest.raises(MeasureError, match=r"bad\.onnx: .* refuses it"):
        open_session(path, runtime, 1)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_missing_file_is_refused_by_path(tmp_path: Path, runtime: str) -> None:
    with pytest.raises(MeasureError, match=r"none\.onnx: .* refuses it"):
        open_session(tmp_path / "none.onnx", runtime, 1)


def test_inputs_given_beforehand_are_run_while_loading(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that compiling counts as loading."""
    runs: list[str] = []

    class Counting:
        def run(self, inputs: runtimes.Arrays) -> list[np.ndarray]:
            runs.extend(inputs)
            return []

    monkeypatch.setattr("autocompress.runtimes.onnxruntime.open_file", lambda *_given: Counting())
    open_session(file, "onnxruntime", 1)
    assert runs == []
    open_session(file, "onnxruntime", 1, "cpu", {"x": np.zeros((1, 16), dtype=np.float32)})
    assert runs == ["x"]


def test_a_runtime_that_knows_no_gpu_says_where_it_runs(file: Path) -> None:
    with pytest.raises(MeasureError, match="runtime openvino runs on cpu, not on cuda"):
        open_session(file, "openvino", 1, "cuda")


@pytest.mark.skipif("CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="onnxruntime-gpu is here")
def test_a_build_without_cuda_says_what_to_install(file: Path) -> None:
    assert "onnxruntime" not in installed_runtimes("cuda")
    with pytest.raises(MeasureError, match=r"m\.onnx: .* no CUDAExecutionProvider; .* install onnxruntime-gpu"):
        open_session(file, "onnxruntime", 1, "cuda")


def test_runtimes_are_listed_by_the_files_that_they_load() -> None:
    assert "torch" not in installed_runtimes()
    assert installed_runtimes(form="pt2") == ["torch", "torch-compile"]


def test_an_unknown_runtime_shows_near_names(file: Path) -> None:
    with pytest.raises(MeasureError, match="unknown runtime 'onnxruntim'; did you mean 'onnxruntime'"):
        open_session(file, "onnxruntim", 1)


def test_a_runtime_that_is_not_installed_says_how(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = runtimes.RUNTIMES["openvino"]
    monkeypatch.setitem(runtimes.RUNTIMES, "openvino", replace(known, package="no_such_package_here"))  # type: ignore[arg-type]
    assert "openvino" not in installed_runtimes()
    with pytest.raises(MeasureError, match=r"not installed; pip install autocompress\[openvino\]"):
        open_session(file, "openvino", 1)


def test_asking_what_is_installed_imports_nothing() -> None:
    import subprocess

    code = "import sys, autocompress.runtimes as r; r.installed_runtimes(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"onnxruntime", "openvino", "torch"} & set(done.stdout.split())


def test_a_sum_before_a_norm_is_not_fused_on_a_processor(tmp_path: Path) -> None:
    """Oracles: ONNX Runtime's own choice of kernels, and the outputs of its fused graph."""
    path, width = tmp_path / "sum.onnx", [1, 4, 8]
    values = {"bias": np.arange(8), "scale": np.ones(8), "shift": np.zeros(8)}
    nodes = [
        helper.make_node("Add", ["x", "bias"], ["moved"]),
        helper.make_node("Add", ["moved", "x"], ["sum"]),
        helper.make_node("LayerNormalization", ["sum", "scale", "shift"], ["y"], axis=-1),
    ]
    ports = [[helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, width)] for name in "xy"]
    constants = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in values.items()]
    graph = helper.make_graph(nodes, "sum", *ports, constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    inputs = {"x": np.random.default_rng(0).normal(size=width).astype(np.float32)}
    ran = [kernel.operator for kernel in runtimes.kernels(path, "onnxruntime", 1, inputs)]
    assert "LayerNormalization" in ran
    assert "SkipLayerNormalization" not in ran
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "fused.onnx")
    options.log_severity_level = 3
    fused = onnxruntime.InferenceSession(path, options)
    assert "SkipLayerNormalization" in {node.op_type for node in onnx.load(tmp_path / "fused.onnx").graph.node}
    found = open_session(path, "onnxruntime", 1).run(inputs)[0]
    np.testing.assert_allclose(found, fused.run(None, inputs)[0], rtol=1e-5, atol=1e-6)
