"""Oracle: the graded file's answer to the run's own query, got again in fresh processes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autocompress.errors import ConfigError, ExportError
from autocompress.export import formats
from autocompress.export.folder import from_pretrained
from autocompress.export.formats import write_format
from autocompress.export.fresh import GPU_TOLERANCE, TOLERANCE, Graded
from autocompress.plan import Plan
from autocompress.runtimes import RUNTIMES, installed_runtimes, open_session
from tests.export.conftest import keep_candidate
from tests.tiny import any_task, cnn, quantized, run, task_of

EXPERIMENT = {"task": "digits", "resolved": {"hardware": {"workload": {"batch": 1, "sequence_length": None}}}}
LAYER = "bert.encoder.layer.0.intermediate.dense"


def kept(folder: Path, precision: str = "int8") -> tuple[Any, Graded]:
    task = any_task("bert")
    return task, keep_candidate(task, quantized(precision, LAYER), folder / "run")[0]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def test_the_widest_deviation_is_that_of_the_plans_precisions(tmp_path: Path) -> None:
    half = kept(tmp_path, "fp16")[1]
    assert half.most == TOLERANCE["fp16"]
    assert replace(half, device="cuda").most == GPU_TOLERANCE["fp16"]
    assert kept(tmp_path, "int8")[1].most == TOLERANCE["int8"]


def test_a_transformers_folder(tmp_path: Path, out: Path) -> None:
    task, graded = kept(tmp_path)
    deviation = write_format("transformers", graded, out, EXPERIMENT)
    assert 0 <= deviation < 0.01
    found = run(from_pretrained(out), task.test.batch(range(2))[0]).numpy()  # finds it in the picked model's folder
    assert np.allclose(found, graded.expected, atol=0.01)


@pytest.mark.skipif("openvino" not in installed_runtimes(), reason="OpenVINO is an extra")
def test_openvinos_own_format(tmp_path: Path, out: Path) -> None:
    _task, graded = kept(tmp_path)
    assert write_format("openvino", graded, out, EXPERIMENT) < 0.01
    assert {path.name for path in out.iterdir()} == {"model.xml", "model.bin"}


@pytest.mark.skipif(
    not any(made.formats[0] == "pt2" for made in RUNTIMES.values()),
    reason="no runtime loads .pt2 files",
)
def test_a_torch_program_is_traced_anew(tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task, graded = kept(tmp_path)
    monkeypatch.setattr(formats, "load_task", lambda *_given: task)
    assert write_format("pt2", graded, out, EXPERIMENT) < 0.01
    with np.load(graded.inputs) as query:
        found = open_session(out / "model.pt2", "torch", 1).run(dict(query))[0]
    assert np.allclose(found, graded.expected, atol=0.01)


def test_a_task_that_the_run_does_not_know_is_told_of(tmp_path: Path, out: Path) -> None:
    _task, graded = kept(tmp_path)
    with pytest.raises(ConfigError, match=r"--format onnx: traces the model anew.* knows only the name 'mine'"):
        write_format("onnx", graded, out, {**EXPERIMENT, "task": "mine"})


def test_a_model_that_is_not_of_transformers_has_no_such_folder(tmp_path: Path, out: Path) -> None:
    graded, _exported = keep_candidate(task_of(cnn()), Plan(), tmp_path / "run")
    with pytest.raises(ExportError, match="format transformers needs a model of transformers"):
        write_format("transformers", graded, out, EXPERIMENT)
