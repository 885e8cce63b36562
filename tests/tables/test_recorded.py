"""A table taken along. Oracles: the table's own seconds, JSON, and another model's layers."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from autocompress.errors import ConfigError, MeasureError, ProfileError
from autocompress.hardware import HardwareProfile, load_profile
from autocompress.layers import LayerTable
from autocompress.measure import lock
from autocompress.measure.dense import DenseSetting, find_best_dense
from autocompress.measure.latency import Contestant, Setting
from autocompress.plan import LayerPlan, Plan, Quantize
from autocompress.records import write_json
from autocompress.tables import (
    LatencyTable,
    Menu,
    Recorded,
    RecordedBench,
    load_recorded,
    menu_plans,
    record,
    recording,
)
from autocompress.tables.table import Check, Line
from autocompress.tables.units import signatures, units_of
from tests.tiny import mlp, profile_of, task_of

INT8 = Plan(layers={"net.0.up": LayerPlan(quantize=Quantize("int8"))})


def work(signature: object) -> float:
    return sum(math.prod(f.shape) * (0.5 if f.option == "int8" else 1.0) for f in signature.forms) * 1e-6  # type: ignore[attr-defined]


@pytest.fixture
def recorded(table: LayerTable) -> Recorded:
    units = units_of(table)
    menu = Menu(options={"linear": (Quantize("int8"),)})
    entries = {s.text: work(s) for p in menu_plans(table, menu) for s in signatures(units, p, table).values()}
    shapes = {layer.name: layer.weight_shape for layer in table.layers}
    checked = (Check("a", 1.0, 1.04), Check("b", 2.0, 1.92), Check("c", 3.0, 3.12))
    latencies = LatencyTable(units, shapes, entries, Line(1e-4), checked=checked)
    dense = (DenseSetting("openvino", 1, 0.0008, 0.8), DenseSetting("onnxruntime", 1, 0.001, 1.0))
    return Recorded(profile_of(), {"machine": {"cpu": "a far CPU"}}, table, latencies, dense)


@pytest.fixture
def profile(recorded: Recorded, tmp_path: Path) -> HardwareProfile:
    recorded.save(tmp_path / "far.json")
    return load_profile(tmp_path / "far.json")


def artifact(folder: Path, plan: Plan) -> Path:
    folder.mkdir(exist_ok=True)
    write_json(folder / "plan.json", plan.to_json())
    return folder / "model.onnx"


@pytest.fixture
def bench(profile: HardwareProfile, table: LayerTable, tmp_path: Path) -> RecordedBench:
    return RecordedBench(profile, tmp_path / "inputs.npz", artifact(tmp_path / "dense", Plan()), table)


def test_a_file_comes_back_whole(recorded: Recorded, tmp_path: Path) -> None:
    recorded.save(tmp_path / "far.json")
    assert load_recorded(tmp_path / "far.json") == recorded


def test_the_file_is_a_profile(profile: HardwareProfile, tmp_path: Path) -> None:
    assert profile.latencies == "recorded"
    assert profile.table == tmp_path / "far.json"
    assert profile.runtime == "onnxruntime"


def test_a_latency_is_the_tables_and_says_so(
    bench: RecordedBench, recorded: Recorded, table: LayerTable, tmp_path: Path
) -> None:
    latency = bench.measure(artifact(tmp_path / "int8", INT8))
    seconds, dense = (recorded.table.seconds(plan, table) for plan in (INT8, Plan()))
    assert latency.latency_s == pytest.approx(seconds)
    assert latency.ratio == pytest.approx(seconds / dense)
    assert latency.ratio_best_dense == pytest.approx(seconds / dense / 0.8)
    assert latency.source == "recorded"
    assert latency.queries == 0
    assert "recorded on a far CPU, not measured" in latency.warnings[0]
    assert "mean error 4.0%" in latency.warnings[0]


def test_its_interval_is_the_tables_error(bench: RecordedBench, tmp_path: Path) -> None:
    latency = bench.measure(artifact(tmp_path / "int8", INT8))
    assert latency.ratio_low == pytest.approx(0.96 * latency.ratio)
    assert latency.ratio_high == pytest.approx(1.04 * latency.ratio)


def test_dense_against_itself_is_beyond_doubt(bench: RecordedBench) -> None:
    latency = bench.measure(bench.dense.path)
    assert latency.ratio == latency.ratio_low == latency.ratio_high == 1.0


def test_it_races_and_loads_as_a_bench_does(bench: RecordedBench, recorded: Recorded, table: LayerTable) -> None:
    with bench:
        assert bench.load(bench.dense) == pytest.approx(recorded.table.seconds(Plan(), table))
        assert bench.best_dense == Setting("openvino", 1)
        found = find_best_dense(bench)
    assert [(item.runtime, item.threads, item.ratio) for item in found] == [("onnxruntime", 1, 1.0)]


def test_another_setting_is_refused(bench: RecordedBench) -> None:
    with pytest.raises(MeasureError, match="recorded for onnxruntime, 1 thread alone"):
        bench.load(Contestant("dense", bench.dense.path, Setting("openvino", 2)))


def test_nothing_is_timed_on_it(bench: RecordedBench, tmp_path: Path) -> None:
    with pytest.raises(MeasureError, match="is recorded: nothing can be timed"):
        bench.table_ratio(tmp_path / "a.onnx", tmp_path / "a.npz")


def test_a_file_without_its_plan_is_refused(bench: RecordedBench, tmp_path: Path) -> None:
    (tmp_path / "bare").mkdir()
    with pytest.raises(MeasureError, match=r"needs the plan that made the file, and .*bare/plan\.json"):
        bench.measure(tmp_path / "bare" / "model.onnx")


def test_another_models_table_is_refused(profile: HardwareProfile, make_table: object, tmp_path: Path) -> None:
    with pytest.raises(MeasureError, match=r"far\.json: the latency table was measured on another model:\n  net\.2\.q"):
        RecordedBench(profile, tmp_path / "i.npz", tmp_path / "d.onnx", make_table(3))  # type: ignore[operator]


def test_a_measured_profile_has_no_table(table: LayerTable, tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match="table must name a file of autocompress record"):
        RecordedBench(profile_of(), tmp_path / "i.npz", tmp_path / "d.onnx", table)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        ("{", "not written by autocompress record"),
        ("{}", "KeyError: 'profile'"),
        ('{"profile": {"threads": 0}}', "not written by autocompress record"),
    ],
)
def test_a_broken_file_is_refused(content: str | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "far.json").write_text(content)
    with pytest.raises(ProfileError, match=message):
        load_recorded(tmp_path / "far.json")


def test_it_answers_without_torch() -> None:
    code = "import sys; from autocompress.tables.recorded import RecordedBench; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_model_is_recorded_and_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real bench, on a network of two layers: what was written gives the seconds that it predicts."""
    monkeypatch.setattr(lock, "lock_folder", lambda: tmp_path / "locks")  # others may be measuring, and no time counts
    dense = (DenseSetting("onnxruntime", 1, 0.001, 1.0),)
    monkeypatch.setattr(recording, "find_best_dense", lambda _bench: dense)  # starts every runtime there is
    task, out, profile = task_of(mlp()), tmp_path / "here.json", profile_of()
    hasty = profile.model_copy(update={"timing": profile.timing.model_copy(update={"half_width": 1.0})})
    found = record(task, hasty, out, space="bits", models=(2, 1), say=lambda _text: None)
    assert load_recorded(out).table == found.table
    assert found.dense == dense
    assert [path.name for path in Path(f"{out}.parts").iterdir()] == [f"{task.identity[:16]}-onnxruntime"]
    bench = RecordedBench(load_profile(out), tmp_path / "i.npz", artifact(tmp_path / "dense", Plan()), found.layers)
    assert bench.measure(bench.dense.path).latency_s == pytest.approx(found.table.seconds(Plan(), found.layers))


@pytest.mark.parametrize(
    ("changes", "out", "message"),
    [
        ({}, "here.txt", r"here\.txt: must end in \.json"),
        ({"workload": {"prompt_length": 4, "new_tokens": 2}}, "here.json", "prompt_length and new_tokens generate"),
        ({"workload": {"lengths": "data"}}, "here.json", "lengths: data times queries of many lengths"),
    ],
    ids=["suffix", "generates", "lengths"],
)
def test_what_cannot_be_recorded_is_refused(changes: dict[str, object], out: str, message: str, tmp_path: Path) -> None:
    profile = HardwareProfile.model_validate({**profile_of().model_dump(), **changes})
    with pytest.raises(ConfigError, match=message):
        record(task_of(mlp()), profile, tmp_path / out)


def test_a_recorded_device_cannot_be_recorded_again(profile: HardwareProfile, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="latencies must be measured to record, not recorded"):
        record(task_of(mlp()), profile, tmp_path / "again.json")


def test_a_table_that_was_never_checked_doubts_everything(
    recorded: Recorded, table: LayerTable, tmp_path: Path
) -> None:
    replace(recorded, table=replace(recorded.table, checked=())).save(tmp_path / "far.json")
    bench = RecordedBench(
        load_profile(tmp_path / "far.json"), tmp_path / "i.npz", artifact(tmp_path / "dense", Plan()), table
    )
    latency = bench.measure(artifact(tmp_path / "int8", INT8))
    assert (latency.ratio_low, latency.ratio_high) == (0.0, pytest.approx(2 * latency.ratio))
