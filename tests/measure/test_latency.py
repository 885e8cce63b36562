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
from autocompress.measure import latency as latency_module
from autocompress.measure.latency import PROCESSES, Bench
from autocompress.measure.lock import DeviceLock
from autocompress.measure.process import Contestant, Setting, Worker
from autocompress.measure.queries import write_queries
from autocompress.measure.rounds import Rounds, Turn
from autocompress.measure.timing import PATIENCE
from autocompress.records import Tier
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
    write_queries(path / "three.npz", [{"x": np.zeros((n, 16), dtype=np.float32)} for n in (1, 2, 3)])
    return path


@pytest.fixture(autouse=True)
def _own_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Measuring elsewhere on this machine keeps no test waiting."""
    monkeypatch.setattr("autocompress.measure.lock.lock_folder", lambda: tmp_path / "locks")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """``clock(dense=0.004, small=0.002)``: real blocks in real processes, told in seconds written by hand."""

    def set_clock(**seconds: float) -> None:
        real = Worker.ask

        def ask(worker: Worker, **request: Any) -> dict[str, Any]:
            answer = real(worker, **request)
            if request["do"] in ("block", "stream"):
                answer["times"] = [seconds[Path(request["key"]).stem]] * len(answer["times"])
                answer["waited"] = [] if request["do"] == "block" else 0.0
            if request["do"] == "stream":
                answer["seconds"] = sum(answer["times"])
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
    assert 1 <= latency.blocks <= 8 * PATIENCE
    assert latency.blocks + latency.rejected_blocks <= 8 * PATIENCE
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


@pytest.mark.parametrize("tier", ["search", "report"])
def test_a_round_counts_where_dense_was_undisturbed_in_both_settings(
    folder: Path, clock: Callable[..., None], monkeypatch: pytest.MonkeyPatch, tier: Tier
) -> None:
    clock(**{"dense": 0.004, "best-dense": 0.001, "small": 0.002})
    given: list[Rounds] = []
    real = latency_module.time_in_turn

    def in_turn(*args: Any, **more: Any) -> Rounds:
        given.append(real(*args, **more))
        return given[-1]

    monkeypatch.setattr(latency_module, "time_in_turn", in_turn)
    with Bench(profile_of(), folder / "inputs.npz", folder / "dense.onnx", Setting("onnxruntime", 2)) as bench:
        bench.measure(folder / "small.onnx", tier)
        bench.race([bench.dense], bench.profile.timing)
    *races, alone = given
    assert {tuple(rounds.references) for rounds in races} == {("dense", "best-dense")}
    assert alone.references == ("dense",)


@pytest.mark.parametrize(("seconds", "ratio"), [(0.008, 2.0), (0.001, 0.25)], ids=["slower", "faster"])
def test_a_ratio_is_the_candidates_time_over_that_of_dense(
    bench: Bench, folder: Path, clock: Callable[..., None], seconds: float, ratio: float
) -> None:
    clock(dense=0.004, small=seconds)
    latency = bench.measure(folder / "small.onnx")
    assert (latency.latency_s, latency.p90_s, latency.iqr_s) == (seconds, seconds, 0.0)
    assert (latency.ratio_low, latency.ratio, latency.ratio_high) == (ratio, ratio, ratio)
    assert latency.warnings == ()


def test_the_report_tier_pools_fresh_processes(
    bench: Bench, folder: Path, clock: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock(dense=0.004, small=0.002)
    begun: list[Setting] = []
    real = Worker.__init__

    def begin(worker: Worker, setting: Setting, cores: Any = ()) -> None:
        begun.append(setting)
        real(worker, setting, cores)

    monkeypatch.setattr(Worker, "__init__", begin)
    latency = bench.measure(folder / "small.onnx", tier="report")
    assert (latency.tier, latency.processes, latency.blocks) == ("report", PROCESSES, 7 * PROCESSES)
    assert begun == [ONE] * (PROCESSES + 1)  # one more for the memory
    assert (latency.ratio_low, latency.ratio_high) == (0.5, 0.5)
    assert latency.throughput == pytest.approx(500.0)
    assert latency.peak_memory_bytes is not None
    assert latency.load_s is not None
    assert latency.load_s > 0


@pytest.mark.parametrize("memory", [False, True])
def test_the_search_tier_measures_memory_where_it_is_asked_for(
    bench: Bench, folder: Path, clock: Callable[..., None], monkeypatch: pytest.MonkeyPatch, memory: bool
) -> None:
    """Oracle: the peak of a process that holds an interpreter, NumPy and a runtime."""
    clock(dense=0.004, small=0.002)
    monkeypatch.setattr(bench, "memory", memory)
    peak = bench.measure(folder / "small.onnx").peak_memory_bytes
    assert (peak is None) == (not memory)
    assert peak is None or 10_000_000 < peak < 10_000_000_000


def test_processes_that_differ_widen_the_interval(
    bench: Bench, folder: Path, clock: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    ratios = iter([0.5, 0.6, 0.9])
    real = Bench._fresh

    def fresh(self: Bench, *args: Any) -> Any:
        clock(dense=0.004, small=0.004 * next(ratios))
        made = real(self, *args)
        monkeypatch.undo()
        monkeypatch.setattr(Bench, "_fresh", fresh)
        return made

    monkeypatch.setattr(Bench, "_fresh", fresh)
    latency = bench.measure(folder / "small.onnx", tier="report")
    assert (latency.ratio, latency.ratio_low, latency.ratio_high) == pytest.approx((0.6, 0.5, 0.9))
    assert any(warning.startswith("fresh processes disagree: 0.500 to 0.900") for warning in latency.warnings)


def test_the_full_tier_has_enough_queries_for_a_99th_percentile(
    bench: Bench, folder: Path, clock: Callable[..., None]
) -> None:
    clock(dense=0.004, small=0.002)
    latency = bench.measure(folder / "small.onnx", tier="full")
    assert (latency.tier, latency.processes) == ("full", PROCESSES)
    assert (latency.p99_low_s, latency.p99_s, latency.p99_high_s) == (0.002, 0.002, 0.002)


def test_the_table_tier_is_no_candidates(bench: Bench, folder: Path) -> None:
    with pytest.raises(ValueError, match="a candidate has no table tier"):
        bench.measure(folder / "small.onnx", tier="table")


def test_a_part_is_timed_in_turn_with_inputs_of_its_own(bench: Bench, folder: Path, clock: Callable[..., None]) -> None:
    clock(small=0.003, dense=0.01)
    assert bench.table_ratio(folder / "small.onnx", folder / "three.npz") == pytest.approx(0.3)
    assert [name for _setting, name in bench._open] == ["dense"]


def test_a_part_that_is_refused_is_an_error(bench: Bench, folder: Path) -> None:
    with pytest.raises(MeasureError, match=r"bad\.onnx: ONNX Runtime refuses it"):
        bench.table_ratio(folder / "bad.onnx", folder / "inputs.npz")


def test_every_contestant_answers_the_same_list(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []
    real = Worker.ask

    def ask(worker: Worker, **request: Any) -> dict[str, Any]:
        asked.append(request)
        return real(worker, **request)

    monkeypatch.setattr(Worker, "ask", ask)
    with Bench(profile_of(), folder / "three.npz", folder / "dense.onnx") as made:
        made.measure(folder / "small.onnx")
    assert {request["inputs"] for request in asked if request["do"] == "open"} == {str(folder / "three.npz")}
    assert all(request["queries"] % 3 == 0 for request in asked if request["do"] == "block")


def test_known_rivals_may_end_a_search(bench: Bench, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []
    real = latency_module.time_in_turn

    def in_turn(*args: Any, **more: Any) -> Any:
        given.append(args[4])
        return real(*args, **more)

    monkeypatch.setattr(latency_module, "time_in_turn", in_turn)
    bench.measure(folder / "small.onnx")
    assert given.pop() is None
    bench.measure(folder / "small.onnx", rivals=(0.5,))
    name = f"candidate:{folder / 'small.onnx'}"
    for ratio, decided in ((0.4, True), (0.5, False)):
        assert given[0](Rounds({"dense": [Turn(1.0)] * 7, name: [Turn(ratio)] * 7})) == decided


def test_the_device_is_held_while_timing_and_only_then(
    bench: Bench, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[int] = []
    real = Worker.ask

    def ask(worker: Worker, **request: Any) -> dict[str, Any]:
        held.append(bench._lock._depth)
        return real(worker, **request)

    monkeypatch.setattr(Worker, "ask", ask)
    bench.measure(folder / "small.onnx")
    bench.table_ratio(folder / "small.onnx", folder / "inputs.npz")
    bench.load(bench.dense)
    assert held
    assert min(held) > 0
    assert bench._lock._depth == 0


def test_two_benches_take_turns(bench: Bench, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autocompress.measure.lock.NOTICE_SECONDS", 0.0)
    said: list[str] = []
    holder = DeviceLock("cpu")
    holder.__enter__()

    def say(message: str) -> None:
        said.append(message)
        holder.__exit__(None, None, None)

    with Bench(profile_of(), folder / "inputs.npz", folder / "dense.onnx", say=say) as other:
        assert other.measure(folder / "small.onnx").blocks
    assert len(said) == 1
    assert "is measuring there" in said[0]


def test_a_bench_looks_for_idler_cores_when_others_take_its_own(
    bench: Bench, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[int] = []
    real = Worker.ask

    def ask(worker: Worker, **request: Any) -> dict[str, Any]:
        answer = real(worker, **request)
        if request["do"] == "block":
            answer["waited"] = answer["times"]
        return answer

    monkeypatch.setattr(Worker, "ask", ask)
    monkeypatch.setattr(latency_module, "idlest", lambda count: looked.append(count) or [])
    latency = bench.measure(folder / "small.onnx")
    assert len(looked) == 1 + latency_module.LOOKS
    assert any(warning.startswith("other programs took the processor") for warning in latency.warnings)


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
    assert list(rounds.turns) == ["dense", "small"]
    assert len(rounds.turns["dense"]) == len(rounds.turns["small"]) == len(rounds)
    assert (set(rounds.times("dense")), set(rounds.times("small"))) == ({0.004}, {0.001})


def test_a_setting_reads_well() -> None:
    assert [str(Setting("onnxruntime", count)) for count in (1, 2)] == [
        "onnxruntime, 1 thread",
        "onnxruntime, 2 threads",
    ]
