"""The measuring process, spoken to as the bench does. Oracles: the protocol, and what the process has imported."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from autocompress.errors import MeasureError
from autocompress.export import export_model
from autocompress.measure.latency import Setting, Worker
from tests.tiny import mlp, task_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("worker")
    task = task_of(mlp())
    export_model(task.model, {}, task, path / "m.onnx", path, "f", "onnxruntime")
    np.savez(path / "inputs.npz", x=np.zeros((1, 16), dtype=np.float32))
    np.savez(path / "wrong.npz", x=np.zeros((1, 5), dtype=np.float32))
    return path


@pytest.fixture(scope="module")
def worker(folder: Path) -> Iterator[Worker]:
    made = Worker(Setting("onnxruntime", 1))
    made.ask(do="open", key="a", path=str(folder / "m.onnx"), inputs=str(folder / "inputs.npz"), warmup_seconds=0.01)
    yield made
    made.close()


@pytest.mark.parametrize("queries", [1, 7])
def test_a_block_has_a_time_for_each_query(worker: Worker, queries: int) -> None:
    times = worker.ask(do="block", key="a", queries=queries)["times"]
    assert len(times) == queries
    assert all(time > 0 for time in times)


def test_opening_says_how_long_loading_and_a_query_took(worker: Worker, folder: Path) -> None:
    paths = {"path": str(folder / "m.onnx"), "inputs": str(folder / "inputs.npz")}
    answer = worker.ask(do="open", key="b", warmup_seconds=0.01, **paths)
    assert set(answer) == {"load_s", "query_s"}
    assert worker.ask(do="close", key="b") == {}


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        ({"do": "block", "key": "unknown", "queries": 1}, "KeyError: 'unknown'"),
        (
            {"do": "open", "key": "c", "path": "none.onnx", "inputs": "", "warmup_seconds": 0.1},
            r"none\.onnx: ONNX Runt",
        ),
    ],
    ids=["block-of-what-is-not-open", "open-of-no-file"],
)
def test_a_fault_is_an_answer_and_the_process_goes_on(worker: Worker, request_: dict, reason: str) -> None:
    with pytest.raises(MeasureError, match=reason):
        worker.ask(**request_)
    assert worker.ask(do="block", key="a", queries=2)["times"]


def test_inputs_that_do_not_fit_are_the_runtimes_error(worker: Worker, folder: Path) -> None:
    with pytest.raises(MeasureError, match="InvalidArgument"):
        worker.ask(
            do="open", key="d", path=str(folder / "m.onnx"), inputs=str(folder / "wrong.npz"), warmup_seconds=0.01
        )


def test_a_closed_worker_is_gone() -> None:
    made = Worker(Setting("onnxruntime", 1))
    assert made.alive
    made.close()
    assert not made.alive


def test_what_a_runtime_prints_is_no_answer(folder: Path) -> None:
    """A process whose runtime prints to stdout; answers must still be the only lines there."""
    code = (
        "import sys, os, autocompress.measure.worker as w\n"
        "real = w._answer\n"
        "def noisy(*args):\n"
        "    os.write(1, b'debug\\n'); print('more', flush=True)\n"
        "    return real(*args)\n"
        "w._answer = noisy\n"
        "sys.argv = ['worker', 'onnxruntime', '1']\n"
        "w.main()\n"
    )
    request = json.dumps({"do": "close", "key": "a"}) + "\n"
    done = subprocess.run([sys.executable, "-c", code], input=request, capture_output=True, text=True, check=True)
    assert done.stdout == "{}\n"
    assert "debug" in done.stderr


def test_the_process_imports_no_torch() -> None:
    code = "import sys, autocompress.measure.worker; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "transformers", "optuna"} & set(done.stdout.split())
