"""Oracle: the same file in every runtime, and torch."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from autocompress import runtimes
from autocompress.errors import MeasureError
from autocompress.export import export_model
from autocompress.runtimes import installed_runtimes, open_session
from tests.tiny import mlp, run, task_of

RUNTIMES = [
    pytest.param(name, marks=pytest.mark.skipif(name not in installed_runtimes(), reason=f"{name} is not installed"))
    for name in runtimes.PACKAGES
]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    task = task_of(mlp())
    export_model(task.model, {}, task, tmp_path / "m.onnx", tmp_path, "f", "onnxruntime")
    return tmp_path / "m.onnx"


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_outputs_are_torchs(file: Path, runtime: str) -> None:
    inputs = {"x": task_of(mlp()).test.inputs["x"]}
    found = open_session(file, runtime, 1).run({"x": inputs["x"].numpy()})
    assert len(found) == 1
    np.testing.assert_allclose(found[0], run(mlp(), inputs).numpy(), atol=1e-5)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_inputs_that_the_file_does_not_take_are_left_out(file: Path, runtime: str) -> None:
    x = np.zeros((1, 16), dtype=np.float32)
    session = open_session(file, runtime, 1)
    np.testing.assert_array_equal(session.run({"x": x, "other": x})[0], session.run({"x": x})[0])


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_outputs_of_a_run_outlive_the_next(file: Path, runtime: str) -> None:
    session = open_session(file, runtime, 1)
    first = session.run({"x": np.zeros((1, 16), dtype=np.float32)})[0]
    before = first.copy()
    session.run({"x": np.ones((1, 16), dtype=np.float32)})
    np.testing.assert_array_equal(first, before)


@pytest.mark.parametrize("runtime", RUNTIMES)
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


def test_an_unknown_runtime_shows_near_names(file: Path) -> None:
    with pytest.raises(MeasureError, match="unknown runtime 'onnxruntim'; did you mean 'onnxruntime'"):
        open_session(file, "onnxruntim", 1)


def test_a_runtime_that_is_not_installed_says_how(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(runtimes.PACKAGES, "openvino", "no_such_package_here")
    assert "openvino" not in installed_runtimes()
    with pytest.raises(MeasureError, match=r"not installed; pip install autocompress\[openvino\]"):
        open_session(file, "openvino", 1)


def test_asking_what_is_installed_imports_nothing() -> None:
    import subprocess

    code = "import sys, autocompress.runtimes as r; r.installed_runtimes(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"onnxruntime", "openvino", "torch"} & set(done.stdout.split())
