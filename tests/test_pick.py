"""Oracles: the files given, the row of the front, and a tiny ONNX model whose answer is known, run by the snippet."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from autocompress.errors import ConfigError
from autocompress.front import Front, front_entry
from autocompress.pick import load, snippet, write_pick
from autocompress.plan import Plan

RESOLVED = {
    "task": "digits",
    "metric": "accuracy",
    "inputs": ["x"],
    "classes": ["a", "b"],
    "snippet": {"imports": "numpy", "inputs": '{"x": numpy.array([[1, 5, 2]], "float32")}'},
    "hardware": {"workload": {"batch": 1, "sequence_length": None}},
}
EXPERIMENT = {"task": "digits", "resolved": RESOLVED}


def doubling_model() -> bytes:
    """y = 2·x for x of shape (1, 3)."""
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3]) for name in "xy"]
    two = helper.make_tensor("two", TensorProto.FLOAT, [1], [2.0])
    graph = helper.make_graph([helper.make_node("Mul", ["x", "two"], ["y"])], "g", tensors[:1], tensors[1:], [two])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model.SerializeToString()


@pytest.fixture
def trials(make_trial):
    dense = make_trial(0, 1.0, 0.90, plan=Plan(), origin="dense", quality_test=0.88)
    return dense, make_trial(1, 0.5, 0.89, 0.02, quality_test=0.87), make_trial(2, 0.25, 0.80)


@pytest.fixture
def front(trials):
    return Front(trials, True)


@pytest.fixture
def run(tmp_path, trials):
    """A run folder with the files of every trial; the last one's float weights were dropped."""
    folder = tmp_path / "run"
    for trial in trials:
        place = (folder / trial.artifact.path).parent
        place.mkdir(parents=True)
        (place / "model.onnx").write_bytes(doubling_model())
        (place / "weights.safetensors").write_text(f"weights of {trial.number}")
        (place / "plan.json").write_text(json.dumps(trial.plan.to_json()))
    (place / "weights.safetensors").unlink()
    (folder / "experiment.yaml").write_text("task: digits\n")
    return folder


def files(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


def test_a_pick_is_a_folder_of_the_trials_files_and_figures(run, front, trials, tmp_path):
    out = tmp_path / "deep" / "picked"
    picked = write_pick(trials[1], front, run, out, EXPERIMENT, ["at least 2x faster"])
    assert files(out) == {"model.onnx", "weights.safetensors", "plan.json", "card.json", "README.md"}
    assert (out / "model.onnx").read_bytes() == doubling_model()
    assert (out / "weights.safetensors").read_text() == "weights of 1"
    assert json.loads((out / "plan.json").read_text()) == trials[1].plan.to_json()
    assert picked.folder == out
    assert picked.figures == front_entry(trials[1], front, True)
    card = json.loads((out / "card.json").read_text())
    assert card["figures"] == picked.figures
    assert card["asked"] == ["at least 2x faster"]
    assert (card["runtime"], card["threads"], card["classes"]) == ("onnxruntime", 1, ["a", "b"])


def test_the_readme_shows_the_figures_of_this_model_and_of_dense(run, front, trials, tmp_path):
    write_pick(trials[1], front, run, tmp_path / "p", EXPERIMENT, ["at least 2x faster"])
    text = (tmp_path / "p" / "README.md").read_text()
    assert text.startswith("# p: compressed by autocompress\n\ncandidate 1\n")
    for line in (
        "| latency, onnxruntime, 1 thread(s) | 5 ms | 10 ms |",
        "| latency ratio to the fastest dense fp32 | 0.500 (0.490 to 0.510) | 1 |",
        "| accuracy, validation | 0.89 | 0.9 |",
        "| accuracy, test (shown, not used to choose) | 0.87 | 0.88 |",
        "| ONNX file | 0.00 MB | 0.00 MB |",
        "Latency source: measured, 64 queries in 8 blocks, workload batch 1.",
        "Asked for: at least 2x faster.",
    ):
        assert line in text.splitlines()


def test_what_is_not_known_is_a_dash_and_nothing_asked_is_not_told(run, front, trials, tmp_path):
    write_pick(trials[2], front, run, tmp_path / "p", EXPERIMENT, [])
    text = (tmp_path / "p" / "README.md").read_text()
    assert "| accuracy, test (shown, not used to choose) | – | 0.88 |" in text
    assert "Asked for" not in text


def test_float_weights_that_were_not_kept_are_left_out(run, front, trials, tmp_path):
    write_pick(trials[2], front, run, tmp_path / "p", EXPERIMENT, [])
    assert files(tmp_path / "p") == {"model.onnx", "plan.json", "card.json", "README.md"}


def test_an_earlier_pick_in_the_folder_is_replaced_whole(run, front, trials, tmp_path):
    write_pick(trials[1], front, run, tmp_path / "p", EXPERIMENT, [])
    write_pick(trials[2], front, run, tmp_path / "p", EXPERIMENT, [])
    assert json.loads((tmp_path / "p" / "plan.json").read_text()) == trials[2].plan.to_json()
    assert not (tmp_path / "p" / "weights.safetensors").exists()


def test_the_processor_of_the_run_goes_along(run, front, trials, tmp_path):
    (run / "processor").mkdir()
    (run / "processor" / "tokenizer.json").write_text("{}")
    write_pick(trials[1], front, run, tmp_path / "p", EXPERIMENT, [])
    assert (tmp_path / "p" / "tokenizer.json").read_text() == "{}"


def test_a_run_folder_is_never_written_over(run, front, trials):
    before = files(run)
    with pytest.raises(ConfigError, match=r"--out .*run: holds other files; choose an empty folder"):
        write_pick(trials[1], front, run, run, EXPERIMENT, [])
    assert files(run) == before


def test_load_refuses_what_is_no_pick(tmp_path):
    with pytest.raises(ConfigError, match=r"not a picked model \(it holds no card\.json\)"):
        load(tmp_path)


def test_a_picked_model_loads_and_runs(run, front, trials, tmp_path):
    picked = write_pick(trials[1], front, run, tmp_path / "p", EXPERIMENT, [])
    x = np.array([[1, 5, 2]], "float32")
    for session in (picked.load(), load(str(tmp_path / "p"))):
        (y,) = session.run({"x": x})
        np.testing.assert_array_equal(y, 2 * x)


def test_the_snippet_of_the_readme_runs_without_autocompress(run, front, trials, tmp_path):
    write_pick(trials[1], front, run, tmp_path / "p", EXPERIMENT, [])
    text = (tmp_path / "p" / "README.md").read_text()
    code = text.split("```python\n")[1].split("```")[0]
    assert "autocompress" not in code
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path / "p", capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[1]"


def test_a_task_without_a_snippet_leaves_the_inputs_to_the_reader():
    assert "inputs = ...  # input name to array" in snippet({**RESOLVED, "snippet": None})
