"""Real measuring processes on a tiny file. Oracles: counts, orders, a clock set by hand; never real time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from autocompress.errors import MeasureError
from autocompress.export import export_model
from autocompress.measure.latency import Bench, Contestant, Setting, Worker
from autocompress.runtimes import installed_runtimes
from tests.tiny import mlp, profile_of, task_of

ONE = Setting("onnxruntime", 1)


def save(folder: Path, name: str, width: int) -> Path:
    torch.set_num_threads(1)
    task = task_of(mlp(width))
    export_model(task.model, {}, task, folder / name, folder, "f", "onnxruntime")
    return folder / name


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dense file, a smaller one, a file that is none, and the inputs of one query."""
    path = tmp_path_factory.mktemp("measure")
    save(path, "dense.onnx", 48)
    save(path, "small.onnx", 8)
    (path / "bad.onnx").write_bytes(b"no model")
    np.savez(path / "inputs.npz", x=np.zeros((1, 16), dtype=np.float32))
    return path


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """``clock(dense=0.004, small=0.002)``: real blocks in real processes, told in seconds written by hand."""

    def set_clock(**seconds: float) -> None:
        real = Worker.ask

        def ask(worker: Worker, **request: Any) -> dict[str, Any]:
            answer = real(worker, **request)
            if request["do"] == "block":
                answer["times"] = [seconds[Path(request["key"]).stem]] * len(answer["times"])
            return answer

        monkeypatch.setattr(Worker, "ask", ask)

    return set_clock


@pytest.fixture
def bench(folder: Path) -> Iterator[Bench]:
    with Bench(profile_of(), folder / "inputs.npz", folder / "dense.onnx") as made:
        yield made


def test_a_latency_says_what_was_timed(bench: Bench, folder: Path) -> None:
    latency = bench.measure(folder / "small.onnx")
    assert (latency.source, latency.tier, latency.runtime, latency.threads) == ("measured", "search", "onnxruntime", 1)
    assert 1 <= latency.blocks <= 8
    assert latency.blocks + latency.rejected_blocks <= 8
    assert len(latency.block_ratios) == latency.blocks
    assert latency.queries >= 4 * latency.blocks  # twice at least two in each round
    assert 0 < latency.latency_s <= latency.p90_s
    assert latency.iqr_s >= 0
    assert latency.ratio_low <= latency.ratio <= latency.ratio_high
    assert latency.ratio == pytest.approx(float(np.median(latency.block_ratios)), abs=1e-4)


def test_without_another_setting_both_ratios_are_one_measurement(bench: Bench, folder: Path) -> None:
    latency = bench.measure(folder / "small.onnx")
    assert latency.ratio_best_dense == latency.ratio
    assert latency.ratio_best_dense_low == latency.ratio_low


@pytest.mark.skipif("openvino" not in installed_runtimes(), reason="openvino is not installed")
def test_the_best_dense_setting_runs_in_a_process_of_its_own(folder: Path, clock: Callable[..., None]) -> None:
    clock(**{"dense": 0.004, "best-dense": 0.001, "small": 0.002})
    best = Setting("openvino", 1)
    with Bench(profile_of(), folder / "inputs.npz", folder / "dense.onnx", best) as bench:
        latency = bench.measure(folder / "small.onnx")
        assert set(bench._workers) == {ONE, best}
    assert (latency.ratio, latency.ratio_low, latency.ratio_high) == (0.5, 0.5, 0.5)
    assert latency.ratio_best_dense == latency.ratio_best_dense_low == latency.ratio_best_dense_high == 2.0


@pytest.mark.parametrize(("seconds", "ratio"), [(0.008, 2.0), (0.001, 0.25)], ids=["slower", "faster"])
def test_a_ratio_is_the_candidates_time_over_that_of_dense(
    bench: Bench, folder: Path, clock: Callable[..., None], seconds: float, ratio: float
) -> None:
    clock(dense=0.004, small=seconds)
    latency = bench.measure(folder / "small.onnx")
    assert (latency.latency_s, latency.p90_s, latency.iqr_s) == (seconds, seconds, 0.0)
    assert (latency.ratio_low, latency.ratio, latency.ratio_high) == (ratio, ratio, ratio)
    assert latency.warnings == ()


def test_the_report_tier_is_marked(bench: Bench, folder: Path) -> None:
    latency = bench.measure(folder / "small.onnx", tier="report")
    assert latency.tier == "report"
    assert latency.blocks + latency.rejected_blocks <= 24


def test_processes_are_kept_between_measurements_and_end_with_the_bench(folder: Path) -> None:
    with Bench(profile_of(), folder / "inputs.npz", folder / "dense.onnx") as bench:
        bench.measure(folder / "small.onnx")
        worker = bench._workers[ONE]
        bench.measure(folder / "small.onnx")
        assert bench._workers[ONE] is worker
        assert worker.alive
    assert not worker.alive


def test_a_candidates_session_is_closed_after_it(bench: Bench, folder: Path) -> None:
    bench.measure(folder / "small.onnx")
    assert {name for _setting, name in bench._open} == {"dense"}


def test_a_refused_file_is_an_error_and_the_next_measurement_works(bench: Bench, folder: Path) -> None:
    with pytest.raises(MeasureError, match=r"bad\.onnx: ONNX Runtime refuses it"):
        bench.measure(folder / "bad.onnx")
    assert bench.measure(folder / "small.onnx").blocks


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_dead_process_is_an_error_and_the_next_measurement_works(
    bench: Bench, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process is killed in the middle of a measurement, as the kernel does when memory runs out."""
    real = Worker.ask
    asked = []

    def ask(worker: Worker, **request: object) -> dict:
        asked.append(request["do"])
        if asked.count("block") == 3:
            worker._process.kill()
            worker._process.wait()
        return real(worker, **request)

    monkeypatch.setattr(Worker, "ask", ask)
    with pytest.raises(MeasureError, match=r"measuring process \(onnxruntime, 1 thread\) died with exit code -9"):
        bench.measure(folder / "small.onnx")
    monkeypatch.undo()
    assert bench.measure(folder / "small.onnx").blocks


def test_a_dead_process_leaves_no_open_pipes(bench: Bench, folder: Path) -> None:
    bench.measure(folder / "small.onnx")
    dead = bench._workers[ONE]
    dead._process.kill()
    dead._process.wait()
    bench.measure(folder / "small.onnx")
    closed = [stream.closed for stream in (dead._process.stdin, dead._process.stdout)]
    dead.close()
    assert closed == [True, True]


def test_a_contestants_times_are_those_of_its_own_blocks(
    bench: Bench, folder: Path, clock: Callable[..., None]
) -> None:
    clock(dense=0.004, small=0.001)
    names = [Contestant("dense", folder / "dense.onnx", ONE), Contestant("small", folder / "small.onnx", ONE)]
    rounds = bench.race(names, bench.profile.timing)
    assert list(rounds.times) == ["dense", "small"]
    assert len(rounds.blocks["dense"]) == len(rounds.blocks["small"]) == len(rounds)
    assert (set(rounds.times["dense"]), set(rounds.times["small"])) == ({0.004}, {0.001})


def test_a_setting_reads_well() -> None:
    assert [str(Setting("onnxruntime", count)) for count in (1, 2)] == [
        "onnxruntime, 1 thread",
        "onnxruntime, 2 threads",
    ]
