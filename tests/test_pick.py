"""Oracles: the files given, the row of the front, and a tiny ONNX model whose answer is known, run by the snippet."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from autocompress.errors import ConfigError, ExportError, MeasureError
from autocompress.front import Front, front_entry
from autocompress.pick import check_formats, load, snippet, write_pick
from autocompress.plan import Plan
from autocompress.runtimes import installed_runtimes

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


DIGEST = hashlib.sha256(doubling_model()).hexdigest()


@pytest.fixture
def trials(make_trial):
    dense = make_trial(0, 1.0, 0.90, plan=Plan(), origin="dense", quality_test=0.88)
    made = dense, make_trial(1, 0.5, 0.89, 0.02, quality_test=0.87), make_trial(2, 0.25, 0.80)
    return tuple(t.replace(artifact=replace(t.artifact, sha256=DIGEST)) for t in made)


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
    np.savez(folder / "inputs.npz", x=np.array([[1, 5, 2]], "float32"))
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


needs_openvino = pytest.mark.skipif("openvino" not in installed_runtimes(), reason="OpenVINO is an extra")


def test_the_card_lists_the_files(run, front, trials, tmp_path):
    picked = write_pick(trials[1], front, run, tmp_path / "p", EXPERIMENT, [])
    card = json.loads((tmp_path / "p" / "card.json").read_text())
    assert card["files"] == [
        {
            "path": "model.onnx",
            "format": "onnx",
            "size_bytes": len(doubling_model()),
            "sha256": DIGEST,
            "deviation": trials[1].artifact.deviation,
            "deviation_from": "torch",
        }
    ]
    assert [item.path for item in picked.files] == ["model.onnx"]


@needs_openvino
def test_other_formats_are_written_on_request(run, front, trials, tmp_path):
    picked = write_pick(trials[1], front, run, tmp_path / "p", EXPERIMENT, [], ("onnx", "openvino"))
    assert {"model.onnx", "model.xml", "model.bin"} <= files(tmp_path / "p")
    listed = {item.path: item for item in picked.files}
    assert set(listed) == {"model.onnx", "model.xml", "model.bin"}
    for name, item in listed.items():
        content = (tmp_path / "p" / name).read_bytes()
        assert (item.size_bytes, item.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    assert (listed["model.xml"].deviation, listed["model.xml"].deviation_from) == (0.0, "model.onnx")
    text = (tmp_path / "p" / "README.md").read_text()
    assert "`model.xml` with `model.bin`" in text
    write_pick(trials[1], front, run, tmp_path / "p", EXPERIMENT, [])
    assert not {"model.xml", "model.bin"} & files(tmp_path / "p")  # of the earlier pick


@needs_openvino
def test_load_opens_what_the_runtime_takes(run, front, trials, tmp_path):
    write_pick(trials[1], front, run, tmp_path / "p", EXPERIMENT, [], ("openvino",))
    assert "model.onnx" not in files(tmp_path / "p")
    x = np.array([[1, 5, 2]], "float32")
    np.testing.assert_array_equal(load(tmp_path / "p", "openvino").run({"x": x})[0], 2 * x)
    with pytest.raises(ConfigError, match="holds openvino, but onnxruntime loads onnx; pick again with --format onnx"):
        load(tmp_path / "p")
    with pytest.raises(MeasureError, match="unknown runtime 'onnxrunime'"):
        write_pick(trials[1], front, run, tmp_path / "p", EXPERIMENT, []).load("onnxrunime")


@needs_openvino
def test_the_snippet_of_openvino_runs_without_autocompress(run, front, trials, tmp_path):
    write_pick(trials[1], front, run, tmp_path / "p", EXPERIMENT, [], ("openvino",))
    code = (tmp_path / "p" / "README.md").read_text().split("```python\n")[1].split("```")[0]
    assert "autocompress" not in code
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path / "p", capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[1]"


def test_a_file_that_was_changed_since_is_refused(run, front, trials, tmp_path):
    with (run / trials[1].artifact.path).open("ab") as file:
        file.write(b"\0")
    with pytest.raises(ExportError, match=r"model\.onnx: was changed since it was graded"):
        write_pick(trials[1], front, run, tmp_path / "p", EXPERIMENT, [])


def test_unknown_formats_are_refused_before_anything_is_written(run, front, trials, tmp_path):
    with pytest.raises(ConfigError, match=r"--format 'openvin' is unknown; did you mean 'openvino'"):
        write_pick(trials[1], front, run, tmp_path / "p", EXPERIMENT, [], ("onnx", "openvin"))
    assert not (tmp_path / "p").exists()
    picked = write_pick(trials[1], front, run, tmp_path / "p", EXPERIMENT, [], ("onnx", "onnx"))
    assert len(picked.files) == 1


def test_a_pick_that_fails_leaves_the_earlier_one_as_it_was(run, front, trials, tmp_path):
    """And no folder where there was none: the corrected command must not find somebody's files there."""
    (run / "processor").mkdir()
    (run / "processor" / "tokenizer.json").write_text("{}")
    write_pick(trials[1], front, run, tmp_path / "p", EXPERIMENT, [])
    (tmp_path / "p" / "notes.txt").write_text("my own")
    before = {name: (tmp_path / "p" / name).read_bytes() for name in files(tmp_path / "p")}
    for out in ("p", "q"):
        with pytest.raises(ConfigError, match="float weights"):
            write_pick(trials[2], front, run, tmp_path / out, EXPERIMENT, [], ("transformers",))
    assert {name: (tmp_path / "p" / name).read_bytes() for name in files(tmp_path / "p")} == before
    assert {path.name for path in tmp_path.iterdir()} == {"run", "p"}
    assert {path.name for path in (tmp_path / "p").iterdir()} == before.keys(), "nothing half made is left"
    write_pick(trials[2], front, run, tmp_path / "p", EXPERIMENT, [])
    assert (tmp_path / "p" / "notes.txt").read_text() == "my own"


def test_a_format_whose_runtime_is_not_installed_is_refused(monkeypatch):
    monkeypatch.setattr("autocompress.pick.installed_runtimes", lambda: ("onnxruntime",))
    with pytest.raises(ConfigError, match=r"not installed here; pip install autocompress\[openvino\]"):
        check_formats(("openvino",))


def test_a_plain_pick_needs_no_torch():
    code = "import sys, autocompress.run, autocompress.pick; print(sorted({'torch', 'onnx'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
