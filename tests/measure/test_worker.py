"""The measuring process, spoken to as the bench does. Oracles: the protocol, and what the process has imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from autocompress.errors import MeasureError
from autocompress.export import export_model
from autocompress.measure.process import Setting, Worker
from autocompress.measure.queries import write_queries
from tests.tiny import mlp, task_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("worker")
    task = task_of(mlp())
    export_model(task.model, {}, task, path / "m.onnx", path, "f", "onnxruntime")
    np.savez(path / "inputs.npz", x=np.zeros((1, 16), dtype=np.float32))
    np.savez(path / "wrong.npz", x=np.zeros((1, 5), dtype=np.float32))
    write_queries(path / "three.npz", [{"x": np.zeros((n, 16), dtype=np.float32)} for n in (1, 2, 3)])
    return path


@pytest.fixture(scope="module")
def worker(folder: Path) -> Iterator[Worker]:
    made = Worker(Setting("onnxruntime", 1))
    made.ask(do="open", key="a", path=str(folder / "m.onnx"), inputs=str(folder / "inputs.npz"), warmup_seconds=0.01)
    yield made
    made.close()


@pytest.mark.parametrize("queries", [1, 7])
def test_a_block_has_a_time_for_each_query(worker: Worker, queries: int) -> None:
    answer = worker.ask(do="block", key="a", queries=queries)
    assert set(answer) == {"times", "waited"}
    assert len(answer["times"]) == queries
    assert all(time > 0 for time in answer["times"])


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts how long a thread stands in line")
def test_a_block_tells_of_each_query_how_long_it_stood_in_line(worker: Worker) -> None:
    waited = worker.ask(do="block", key="a", queries=7)["waited"]
    assert len(waited) == 7
    assert all(seconds >= 0 for seconds in waited)


def test_a_stream_is_queries_back_to_back(worker: Worker) -> None:
    answer = worker.ask(do="stream", key="a", queries=9)
    assert len(answer["times"]) == 9
    assert answer["seconds"] == pytest.approx(sum(answer["times"]))
    assert answer["waited"] >= 0
    assert (answer["joules"] is None) == (answer["energy_source"] is None)


def test_memory_is_that_of_a_process_that_loads_and_runs_once(folder: Path) -> None:
    fresh = Worker(Setting("onnxruntime", 1))
    answer = fresh.ask(do="memory", path=str(folder / "m.onnx"), inputs=str(folder / "inputs.npz"))
    fresh.close()
    assert 10_000_000 < answer["peak_memory_bytes"] < 10_000_000_000


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this platform lets no process choose its cores")
def test_a_process_stays_on_its_cores_and_moves_when_asked(folder: Path) -> None:
    cores = sorted(os.sched_getaffinity(0))
    made = Worker(Setting("onnxruntime", 1), cores[:1])
    made.ask(do="open", key="a", path=str(folder / "m.onnx"), inputs=str(folder / "inputs.npz"), warmup_seconds=0.01)
    assert os.sched_getaffinity(made._process.pid) == set(cores[:1])
    made.move(cores[::-1])
    assert os.sched_getaffinity(made._process.pid) == set(cores[-1:])
    made.close()


@pytest.mark.skipif(sys.platform != "linux", reason="tells threads apart by /proc")
def test_threads_that_compute_get_a_core_each(folder: Path) -> None:
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        pytest.skip("one core")
    made = Worker(Setting("onnxruntime", 2), cores)
    made.ask(do="open", key="a", path=str(folder / "m.onnx"), inputs=str(folder / "inputs.npz"), warmup_seconds=0.01)
    assert os.sched_getaffinity(made._process.pid) == {cores[0]}
    tasks = [int(path.name) for path in Path(f"/proc/{made._process.pid}/task").iterdir()]
    assert [os.sched_getaffinity(task) for task in tasks].count({cores[1]}) == 1
    made.close()


def test_opening_says_how_long_loading_and_a_query_took(worker: Worker, folder: Path) -> None:
    paths = {"path": str(folder / "m.onnx"), "inputs": str(folder / "inputs.npz")}
    answer = worker.ask(do="open", key="b", warmup_seconds=0.01, **paths)
    assert set(answer) == {"load_s", "query_s", "inputs"}
    assert answer["inputs"] == 1
    assert worker.ask(do="close", key="b") == {}


def test_a_list_of_queries_is_answered_in_turn(worker: Worker, folder: Path) -> None:
    paths = {"path": str(folder / "m.onnx"), "inputs": str(folder / "three.npz")}
    assert worker.ask(do="open", key="three", warmup_seconds=0.01, **paths)["inputs"] == 3
    assert len(worker.ask(do="block", key="three", queries=6)["times"]) == 6
    worker.ask(do="close", key="three")


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
def test_a_fault_is_an_answer_and_the_process_goes_on(
    worker: Worker, folder: Path, request_: dict, reason: str
) -> None:
    with pytest.raises(MeasureError, match=reason):
        worker.ask(**{**request_, "inputs": str(folder / "inputs.npz")})
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
        "sys.argv = ['worker', 'onnxruntime', '1', 'cpu', '']\n"
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
