"""Oracles: the run's own artefacts, what was written before, and what a profile says of itself."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import autocompress
from autocompress.devices import measure_front, open_bench, to_time
from autocompress.elsewhere import MEASURED, read_elsewhere
from autocompress.errors import ConfigError, MeasureError
from autocompress.hardware import load_profile
from autocompress.run import Run
from tests.test_launch import example_task

#: The quickest protocol that is allowed.
TIMING = "timing: {warmup_seconds: 0.01, block_seconds: 0.002, max_blocks: 7, report_queries: 14}\n"


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("searched")
    (folder / "short.yaml").write_text(
        "layers: [{match: '*', precision: [fp32, int8-dynamic], rank: [1.0, 0.25]}]\ndistill: {steps: [0]}\n"
    )
    (folder / "here.yaml").write_text("runtime: onnxruntime\nthreads: 1\n" + TIMING)
    return autocompress.search(
        example_task(), out=folder / "run", space=folder / "short.yaml", hardware=folder / "here.yaml", max_trials=3
    )


@pytest.fixture
def run(searched: Run, tmp_path: Path) -> Run:
    """A copy, as it would be taken to another device."""
    shutil.copytree(searched.folder, tmp_path / "run")
    return Run.open(tmp_path / "run")


def profile_file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "there.yaml"
    path.write_text(text + TIMING)
    return path


def test_every_model_of_the_front_is_timed_on_its_own_file(run: Run, tmp_path: Path) -> None:
    said: list[str] = []
    found = measure_front(run, profile_file(tmp_path, "runtime: onnxruntime\nthreads: 1\n"), say=said.append)
    assert set(found.latencies) == {t.fingerprint for t in to_time(run.front)}
    assert {latency.source for latency in found.latencies.values()} == {"measured"}
    assert {latency.tier for latency in found.latencies.values()} == {"report"}
    assert found.name.startswith("there (")
    assert read_elsewhere(run.folder / MEASURED) == (found,)
    assert len(said) == 1 + len(found.latencies)


def test_what_is_there_is_not_timed_again_and_other_devices_stay(run: Run, tmp_path: Path) -> None:
    there = profile_file(tmp_path, "runtime: onnxruntime\nthreads: 1\n")
    measure_front(run, there)
    data = json.loads((run.folder / MEASURED).read_text())
    first = next(iter(data["devices"][0]["latencies"].values()))
    first["latency_s"] = 123.0
    data["devices"].append({**data["devices"][0], "name": "another device"})
    (run.folder / MEASURED).write_text(json.dumps(data))
    again = measure_front(run, there)
    assert 123.0 in [latency.latency_s for latency in again.latencies.values()]
    assert "another device" in [device.name for device in read_elsewhere(run.folder / MEASURED)]


def test_another_workload_is_refused(run: Run, tmp_path: Path) -> None:
    there = profile_file(tmp_path, "runtime: onnxruntime\nthreads: 1\nworkload: {batch: 4}\n")
    with pytest.raises(ConfigError, match=r"'there' has another workload than .*batch: 1 in the run, 4 now"):
        measure_front(run, there)


def test_a_runtime_for_other_files_is_refused(run: Run, tmp_path: Path) -> None:
    with pytest.raises(MeasureError, match=r"holds \.onnx files, and runtime torch loads pt2"):
        measure_front(run, profile_file(tmp_path, "runtime: torch\nthreads: 1\n"))


def test_a_run_without_its_dense_file_is_refused(run: Run, tmp_path: Path) -> None:
    assert run.front.dense is not None
    assert run.front.dense.artifact is not None
    (run.folder / run.front.dense.artifact.path).unlink()
    with pytest.raises(ConfigError, match="dense artefact is gone"):
        measure_front(run, profile_file(tmp_path, "runtime: onnxruntime\nthreads: 1\n"))


def test_a_chip_that_is_not_here_is_predicted_and_says_so(run: Run) -> None:
    chip = load_profile("t4")
    workload = run.experiment["resolved"]["hardware"]["workload"]
    path = run.folder / "chip.yaml"
    data = chip.model_dump(mode="json", exclude_none=True)
    path.write_text(json.dumps({**data, "workload": {k: v for k, v in workload.items() if v is not None}}))
    said: list[str] = []
    found = measure_front(run, path, say=said.append)
    assert found.latencies
    assert {latency.source for latency in found.latencies.values()} == {"predicted"}
    assert next(line for line in said if line.startswith("fastest dense fp32")).endswith(" ms, predicted")
    run.report()
    assert "On other devices" in (run.folder / "report.html").read_text()


def test_a_device_needs_no_torch(run: Run, tmp_path: Path) -> None:
    there = profile_file(tmp_path, "runtime: onnxruntime\nthreads: 1\n")
    code = (
        "import sys\nfrom autocompress.devices import measure_front\nfrom autocompress.run import Run\n"
        f"measure_front(Run.open({str(run.folder)!r}), {str(there)!r})\nassert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)
    assert read_elsewhere(run.folder / MEASURED)


def test_benches_by_kind_of_profile(run: Run) -> None:
    for name, kind in (("cpu-1-thread", "Bench"), ("t4", "RooflineBench")):
        bench = open_bench(load_profile(name), run.folder / "inputs.npz", run.folder / "none.onnx", run.table)
        assert type(bench).__name__ == kind
        bench.close()


def test_a_file_that_answers_otherwise_here_is_told_of(run: Run, tmp_path: Path) -> None:
    """As 8-bit products do on processors that cut them off: the quality beside the latency would be another's."""
    import numpy as np

    from autocompress.records import read_answer, write_answer

    first, second = (run.folder / t.artifact.path for t in list(to_time(run.front))[:2])
    graded = read_answer(first)
    assert graded is not None
    write_answer(first, graded * np.float32(1.2))
    said: list[str] = []
    found = measure_front(run, profile_file(tmp_path, "runtime: onnxruntime\nthreads: 1\n"), say=said.append)
    doubted = [latency for latency in found.latencies.values() if any("not this one's" in w for w in latency.warnings)]
    assert len(doubted) == 1
    assert sum("its answer here lies 0.17 (relative L2)" in line for line in said) == 1
    assert read_answer(second) is not None
