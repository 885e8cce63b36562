"""Oracles: NumPy by hand, and the file in this process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from autocompress.errors import ExportError
from autocompress.export.fresh import TOLERANCE, Graded, allowed, check_copy, fresh_outputs, relative_distance
from autocompress.plan import PRECISIONS
from autocompress.runtimes import installed_runtimes
from tests.export.conftest import Exported
from tests.tiny import mlp, quantized, task_of


def test_the_distance_by_hand() -> None:
    expected = np.array([3.0, 4.0])
    assert relative_distance(np.array([3.0, 3.0]), expected) == pytest.approx(0.2)
    assert relative_distance(np.zeros(2), np.zeros(2)) == 0
    assert relative_distance(np.array([np.nan, 4.0]), expected) == float("inf")
    assert relative_distance(np.zeros(3), expected) == float("inf")


def test_every_precision_has_a_tolerance_and_the_widest_counts() -> None:
    assert set(TOLERANCE) == set(PRECISIONS)
    assert allowed([]) == TOLERANCE["fp32"]
    assert allowed(["fp16", "int8"]) == TOLERANCE["int8"]


@pytest.mark.parametrize("runtime", [name for name in installed_runtimes() if name in ("onnxruntime", "openvino")])
def test_a_fresh_process_gives_what_this_one_gives(
    export: Callable[..., Exported], runtime: str, tmp_path: Path
) -> None:
    made = export(task_of(mlp()), quantized("int8", "first"), runtime)
    inputs = made.task.test.batch(range(4))[0]
    np.savez(tmp_path / "inputs.npz", **{name: value.numpy() for name, value in inputs.items()})
    found = fresh_outputs(made.path, runtime, tmp_path / "inputs.npz")
    assert relative_distance(found, made.run(inputs, runtime)) < 1e-6


def test_a_broken_copy_is_told_by_its_checksum_and_a_broken_file_by_its_process(
    export: Callable[..., Exported], tmp_path: Path
) -> None:
    made = export(task_of(mlp()))
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(made.path.read_bytes()[:-50])
    with pytest.raises(ExportError, match="was changed since it was graded"):
        check_copy(broken, Graded(tmp_path, made.path, made.artifact.sha256, "onnxruntime", 1))
    np.savez(tmp_path / "inputs.npz", x=np.zeros((1, 16), np.float32))
    with pytest.raises(ExportError, match=r"broken\.onnx: a fresh process cannot load and run it: .*ONNX Runtime"):
        fresh_outputs(broken, "onnxruntime", tmp_path / "inputs.npz")
