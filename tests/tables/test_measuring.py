"""`measure_table` with a bench that weighs files in the place of timing them. Oracles: what it was asked, and sums."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from autocompress.errors import MeasureError
from autocompress.export.export import to_arrays
from autocompress.measure.latency import Contestant, Setting
from autocompress.plan import Plan, Quantize
from autocompress.records import Latency, read_lines
from autocompress.runtimes import RUNTIMES
from autocompress.tables import LatencyTable, Menu, calibration_plans, measure_table, menu_plans
from autocompress.tables.units import signatures
from autocompress.tasks.task import Task
from autocompress.workshop import Workshop, open_workshop
from tests.tiny import any_task, cnn, profile_of, table_of, task_of

MENU = Menu(shares={"neurons": (0.5,)}, options={"linear": (Quantize("int8"),), "conv": (Quantize("int8"),)})


def weight(path: Path, values: int = 0) -> float:
    """A nanosecond per byte of a file's constants, and per value that comes in from without."""
    return 1e-9 * (values + sum(len(item.SerializeToString()) for item in onnx.load(path).graph.initializer))


class Scales:
    """A bench that weighs files instead of timing them; notes what it was given. Ends with Ctrl-C after `strength`."""

    def __init__(self, root: Path, strength: int = 10**9, refuses: str = "", per_value: int = 0) -> None:
        self.profile = profile_of()
        self.inputs = root / "inputs.npz"
        self.setting = self.best_dense = Setting("onnxruntime", 1)
        self.dense = Contestant("dense", root / "dense" / "model.onnx", self.setting)
        self.strength, self.refuses, self.per_value = strength, refuses, per_value
        self.parts: list[str] = []
        self.models = 0

    def table_ratio(self, path: Path, inputs: Path) -> float:
        if len(self.parts) >= self.strength:
            raise KeyboardInterrupt
        if self.refuses and self.refuses.encode() in path.read_bytes():
            raise MeasureError("refused")
        with np.load(inputs) as stored:
            self.parts.append(",".join(map(str, stored["input_0"].shape)))
            values = self.per_value * stored["input_0"].size
        return weight(path, values) / weight(self.dense.path)

    def measure(self, path: Path, tier: str = "search", *, rivals: Sequence[float] = ()) -> Latency:
        self.models += 1
        seconds, dense = weight(path), weight(self.dense.path)
        ratio = seconds / dense
        return Latency(
            seconds, 0.0, seconds, ratio, ratio, ratio, ratio, ratio, ratio, "measured", "search", "onnxruntime", 1,
            8, 0, 64,
        )  # fmt: skip


@contextmanager
def shop_of(task: Task, root: Path, scales: Scales) -> Iterator[Workshop]:
    root.mkdir(exist_ok=True)
    np.savez(scales.inputs, **to_arrays(task.workload_inputs(1, None)))
    yield open_workshop(root, task, table_of(task), scales.profile, scales)  # type: ignore[arg-type]


def measured(task: Task, root: Path, scales: Scales | None = None, models: tuple[int, int] = (6, 4)) -> LatencyTable:
    scales = scales or Scales(root)
    with shop_of(task, root, scales) as shop:
        fitted, checked = (calibration_plans(shop.table, MENU, n, seed) for seed, n in enumerate(models))
        return measure_table(shop, menu_plans(shop.table, MENU), fitted, checked, say=lambda _text: None)


@pytest.fixture(scope="module")
def encoder() -> Task:
    return any_task("bert")


@pytest.fixture(scope="module")
def weighed(encoder: Task, tmp_path_factory: pytest.TempPathFactory) -> tuple[LatencyTable, Scales, Path]:
    root = tmp_path_factory.mktemp("run")
    scales = Scales(root)
    return measured(encoder, root, scales), scales, root


def test_whole_models_are_predicted_from_their_units(weighed: tuple[LatencyTable, Scales, Path]) -> None:
    """Bytes of a model are nearly those of its units, and the line finds what is left over."""
    table = weighed[0]
    assert len(table.checked) == 4
    assert table.mape < 0.03
    assert table.spearman > 0.95


def test_equal_blocks_are_timed_once(weighed: tuple[LatencyTable, Scales, Path]) -> None:
    table, scales, _root = weighed
    assert len(scales.parts) == len(table.entries) + 1  # the empty call
    assert len({unit.dense.family for unit in table.units}) == len(table.units) - 1


def test_a_second_table_times_nothing(weighed: tuple[LatencyTable, Scales, Path], encoder: Task) -> None:
    table, _scales, root = weighed
    again = Scales(root)
    assert measured(encoder, root, again) == table
    assert (again.parts, again.models) == ([], 0)


def test_working_files_do_not_stay(weighed: tuple[LatencyTable, Scales, Path]) -> None:
    assert sorted(path.name for path in (weighed[2] / "table").iterdir()) == ["timed.jsonl"]


def test_a_kill_loses_nothing(weighed: tuple[LatencyTable, Scales, Path], encoder: Task, tmp_path: Path) -> None:
    whole, all_parts, _root = weighed
    with pytest.raises(KeyboardInterrupt):
        measured(encoder, tmp_path, Scales(tmp_path, strength=7))
    assert len(list(read_lines(tmp_path / "table" / "timed.jsonl"))) == 7 + 1  # and the dense model
    rest = Scales(tmp_path)
    assert measured(encoder, tmp_path, rest).entries == whole.entries
    assert len(rest.parts) == len(all_parts.parts) - 7


def test_other_threads_share_no_times(
    weighed: tuple[LatencyTable, Scales, Path], encoder: Task, tmp_path: Path
) -> None:
    other = Scales(weighed[2], strength=0)
    other.profile = other.profile.model_copy(update={"threads": 2})
    with pytest.raises(KeyboardInterrupt):
        measured(encoder, weighed[2], other)


def test_convolutions_are_units_of_their_own(tmp_path: Path) -> None:
    table = measured(task_of(cnn()), tmp_path)
    assert [unit.name for unit in table.units] == ["first", "second", "head"]
    assert table.mape < 0.3  # of layers of a few hundred weights, the neighbours beside them are most


def test_neighbours_are_taken_off_again_and_bear_the_border(tmp_path: Path) -> None:
    """`second` alone would take 8 channels of 4 × 4 values from without, between neighbours none of its own."""
    task = task_of(cnn())
    plain, dear = (measured(task, tmp_path / str(n), Scales(tmp_path / str(n), per_value=n)) for n in (0, 100))
    second = signatures(plain.units, Plan(), table_of(task))["second"].text
    weights = 4 * task.model.second.weight.numel()  # type: ignore[operator,union-attr]
    assert plain.entries[second] == pytest.approx(1e-9 * weights, rel=0.1)
    assert dear.entries[second] == pytest.approx(plain.entries[second], abs=1e-10)


def test_what_the_runtime_refuses_is_left_out_and_said(tmp_path: Path) -> None:
    task = task_of(cnn())
    table = measured(task, tmp_path, Scales(tmp_path, refuses="QuantizeLinear"))
    assert not any("int8" in text for text in table.entries)
    layers = table_of(task)
    assert table.seconds(Plan(), layers) > 0
    with pytest.raises(MeasureError, match="no time of first in int8"):
        table.seconds(calibration_int8(task), layers)


def calibration_int8(task: Task) -> Plan:
    plans = calibration_plans(table_of(task), MENU, 8)
    return next(plan for plan in plans if "first" in plan.layers and plan.layers["first"].quantize)


def test_a_model_that_cannot_be_timed_at_all_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MeasureError, match="first, second, head cannot be timed alone"):
        measured(task_of(cnn()), tmp_path, Scales(tmp_path, refuses="unit"))


def test_other_weights_of_one_architecture_share_times(tmp_path: Path) -> None:
    first = task_of(cnn())
    measured(first, tmp_path)
    other = cnn()
    other.head.weight.data += 1.0
    again = Scales(tmp_path)
    measured(replace(first, model=other), tmp_path, again)
    assert again.parts == []


def test_a_runtime_without_onnx_is_refused(tmp_path: Path) -> None:
    scales = Scales(tmp_path)
    without = next(name for name, made in RUNTIMES.items() if "onnx" not in made.formats)
    scales.profile = scales.profile.model_copy(update={"runtime": without})
    with pytest.raises(MeasureError, match=f"time ONNX files, and runtime {without} loads"):
        measured(task_of(cnn()), tmp_path, scales)
