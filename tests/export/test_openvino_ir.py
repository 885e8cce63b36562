"""Oracles: the graded ONNX file, the element types that OpenVINO itself reads back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("openvino", reason="OpenVINO is an extra")

from autocompress.errors import ExportError
from autocompress.export.openvino_ir import KEPT, STORED, widened, write_openvino
from autocompress.plan import Plan
from autocompress.runtimes import open_session
from tests.export.conftest import Exported
from tests.tiny import bert, cnn, quantized, task_of

ROWS = 2


def written(made: Exported, folder: Path) -> tuple[Path, np.ndarray, Path]:
    """The graded file's answer to a query, and where to write."""
    query = {name: value.numpy() for name, value in made.task.test.batch(range(ROWS))[0].items()}
    np.savez(folder / "inputs.npz", **query)
    return folder / "inputs.npz", open_session(made.path, "openvino", 1).run(query)[0], folder / "model.xml"


LAYERS = {
    "fp16": "bert.encoder.layer.0.intermediate.dense",
    "int8": "bert.encoder.layer.0.intermediate.dense",
    "int8-dynamic": "bert.encoder.layer.0.intermediate.dense",
    "int8-weights": "bert.embeddings.word_embeddings",
    "int4-weights": "bert.encoder.layer.0.intermediate.dense",
}


@pytest.mark.parametrize("precision", STORED)
def test_it_keeps_the_precisions_that_it_says(export: Callable[..., Exported], precision: str, tmp_path: Path) -> None:
    name = LAYERS.get(precision)
    made = export(task_of(bert()), quantized(precision, name) if name else Plan(), "openvino")
    inputs, expected, path = written(made, tmp_path)
    files = write_openvino(made.path, path, inputs, expected, 1e-4)
    elements = made.codes[name].values.numel() if name else 0
    size = {"f32": 4, "i32": 4, "i8": 1, "u4": 0.5}[STORED[precision]]
    assert files.weight_bytes[STORED[precision]] >= elements * size > 0 or not name
    assert widened([precision]) == (() if precision in KEPT else (precision,))
    assert files.deviation <= 1e-4
    assert {item.name for item in tmp_path.glob("model.*")} == {"model.xml", "model.bin"}
    assert not list(tmp_path.glob("unverified*"))


def test_the_pair_runs_as_the_graded_file_does(export: Callable[..., Exported], tmp_path: Path) -> None:
    task = task_of(cnn())
    made = export(task, quantized("int8", "first", "second", "head"), "openvino")
    inputs, expected, path = written(made, tmp_path)
    write_openvino(made.path, path, inputs, expected, 1e-4)
    unseen = {name: value.numpy() for name, value in task.test.batch(range(10))[0].items()}
    np.testing.assert_allclose(
        open_session(path, "openvino", 1).run(unseen)[0], made.run(task.test.batch(range(10))[0], "openvino"), rtol=1e-5
    )


def test_a_pair_that_disagrees_is_not_left(export: Callable[..., Exported], tmp_path: Path) -> None:
    made = export(task_of(cnn()), Plan(), "openvino")
    inputs, expected, path = written(made, tmp_path)
    with pytest.raises(ExportError, match=r"model\.xml: in a fresh process its outputs lie 0\.\d+ .* than the 0\.0001"):
        write_openvino(made.path, path, inputs, expected * 1.5, 1e-4)
    assert sorted(item.name for item in tmp_path.iterdir()) == ["artifacts", "inputs.npz"]


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"no graph")
    with pytest.raises(ExportError, match=r"broken\.onnx: OpenVINO cannot convert it"):
        write_openvino(tmp_path / "broken.onnx", tmp_path / "m.xml", tmp_path / "i.npz", np.zeros(1), 1e-4)
