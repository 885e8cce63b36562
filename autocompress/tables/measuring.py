"""The verb `measure_table`: units and whole models timed on this device; what is timed once is on disk."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from autocompress.environment import environment
from autocompress.errors import AutocompressError, ExportError, MeasureError
from autocompress.pipeline import build_into
from autocompress.plan import Plan
from autocompress.records import append_line, read_lines
from autocompress.runtimes import RUNTIMES
from autocompress.tables.blocks import (
    Built,
    Call,
    Free,
    build_for_timing,
    export_neighbours,
    export_unit,
    export_whole,
    free_axes,
    sides_of,
    timed_alike,
    watch_calls,
)
from autocompress.tables.compose import families
from autocompress.tables.neighbours import Side
from autocompress.tables.table import Check, LatencyTable, Sums, fit_line
from autocompress.tables.units import Unit, signatures, units_of
from autocompress.tasks.task import Inputs
from autocompress.workshop import Workshop

Say = Callable[[str], None]

#: Of the files that are timed; times of another make are not taken.
MAKE = 3

#: File of a cache folder with all that was timed, one JSON line each.
TIMED = "timed.jsonl"


class Notes:
    """What was timed in one setting, from a file that is only added to.

    Args:
        path: the JSON-lines file; may hold the notes of other settings.
        setting: all that a time depends on beside what is timed.
    """

    def __init__(self, path: Path, setting: Mapping[str, Any]) -> None:
        self.path = path
        self.setting = hashlib.sha256(json.dumps(setting, sort_keys=True).encode()).hexdigest()[:16]
        ours = (line for line in read_lines(path) if line["setting"] == self.setting)
        self._found: dict[str, dict[str, Any]] = {line["what"]: line for line in ours}

    def get(self, what: str) -> dict[str, Any] | None:
        """The note on something, or None."""
        return self._found.get(what)

    def put(self, what: str, **facts: Any) -> dict[str, Any]:
        """Write a note; it is on the disk before this returns."""
        line = {"setting": self.setting, "what": what, **facts}
        append_line(self.path, line)
        self._found[what] = line
        return line


def setting_of(shop: Workshop) -> dict[str, Any]:
    """What a time depends on beside what is timed: model without its weights, device, runtime, workload, versions."""
    profile, facts = shop.profile, environment()
    architecture = f"{shop.task.source!r}{json.dumps(shop.table.to_json(), sort_keys=True)}"
    query = {name: list(value.shape) for name, value in _query(shop).items()}
    return {
        "make": MAKE,
        "architecture": hashlib.sha256(architecture.encode()).hexdigest()[:16],
        "runtime": profile.runtime,
        "threads": profile.threads,
        "device": profile.device,
        "query": query,
        "cpu": facts["machine"]["cpu"],
        "instructions": facts["machine"]["instructions"],
        "versions": {name: v for name, v in facts["versions"].items() if name in ("torch", "onnx", profile.runtime)},
    }


def _query(shop: Workshop, more: int = 0) -> Inputs:
    """Inputs of one query of the workload; or of a larger and shorter one, to see which axes are free."""
    workload = shop.profile.workload
    length = workload.sequence_length
    if more and length:
        length = max(2, length // 2)
    return shop.task.workload_inputs(workload.batch + more, length)


@dataclass(frozen=True)
class _Bench:
    """What timing units and models needs."""

    shop: Workshop
    notes: Notes
    folder: Path
    say: Say

    def ratio(self, path: Path, inputs: Path) -> float:
        """Seconds per query of a part of a model, as a share of the dense model's."""
        return self.shop.bench.table_ratio(path, inputs)


def measure_table(
    shop: Workshop,
    plans: Sequence[Plan],
    fitted_on: Sequence[Plan],
    checked_on: Sequence[Plan],
    *,
    cache: Path | None = None,
    say: Say = print,
) -> LatencyTable:
    """Time the units of a model in all forms of some plans, and fit whole models to them.

    What was timed before, in the same setting, is taken from the cache: a kill loses one entry at most. Units and whole
    models are timed in turn with dense; their seconds are that ratio times the dense model's, so that a machine that
    slowed down meanwhile does not bend the fit.

    Args:
        shop: task, profile and measuring processes.
        plans: whose units are timed, such as `menu_plans`; dense among them.
        fitted_on: whole models that calibrate, such as `calibration_plans`.
        checked_on: others, which tell how good the table is.
        cache: folder of what was timed; ``table`` in the run's folder by default.
        say: is told how far it is.

    Raises:
        MeasureError: the runtime loads no ONNX files, or a unit of the dense model cannot be timed alone.
    """
    _check_runtime(shop.profile.runtime)
    folder = cache or shop.root / "table"
    folder.mkdir(parents=True, exist_ok=True)
    notes = Notes(folder / TIMED, setting_of(shop))
    with _working_folder(folder) as work:
        bench = _Bench(shop, notes, work, say)
        make_dense(shop)
        units, shapes = units_alone(shop), {layer.name: layer.weight_shape for layer in shop.table.layers}
        entries = _time_units(bench, units, dict.fromkeys([Plan(), *map(timed_alike, plans)]))
        table = LatencyTable(units, shapes, entries)
        _refuse_untimed(table)
        return _calibrated(bench, table, fitted_on, checked_on)


def _check_runtime(runtime: str) -> None:
    formats = RUNTIMES[runtime].formats
    if "onnx" not in formats:
        raise MeasureError(f"latency tables time ONNX files, and runtime {runtime} loads {', '.join(formats)}")


@contextlib.contextmanager
def _working_folder(folder: Path) -> Iterator[Path]:
    work = folder / "working"
    work.mkdir(exist_ok=True)
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _refuse_untimed(table: LatencyTable) -> None:
    timed = {line.unit.dense.family for line in families(table.units, table.entries)}
    lost = [unit.name for unit in table.units if unit.dense.family not in timed]
    if lost:
        raise MeasureError(f"no latency table: {', '.join(lost[:3])} cannot be timed alone")


def units_alone(shop: Workshop) -> tuple[Unit, ...]:
    """The model's units; where a module is never called as a whole, its layers instead, as far as they are called."""
    units = units_of(shop.table)
    called = watch_calls(shop.task.source, [unit.name for unit in units], _query(shop))
    lost = frozenset(unit.name for unit in units if unit.name not in called)
    if not lost:
        return units
    units = units_of(shop.table, lost)
    called = watch_calls(shop.task.source, [unit.name for unit in units], _query(shop))
    return tuple(unit for unit in units if unit.name in called)


def _time_units(
    bench: _Bench, units: tuple[Unit, ...], plans: Sequence[Plan] | Mapping[Plan, None]
) -> dict[str, float]:
    """Seconds of every form of every unit under some plans, without what it stood between; refused forms left out."""
    shop, timed, dense_s = bench.shop, {}, _dense_seconds(bench)
    for number, plan in enumerate(plans, start=1):
        forms = {s.text: name for name, s in reversed(signatures(units, plan, shop.table).items())}
        missing = {text: name for text, name in forms.items() if bench.notes.get(text) is None}
        if missing:
            bench.say(f"latency table: plan {number} of {len(plans)}, {len(missing)} new units")
            _time_missing(bench, plan, missing)
        timed.update({text: bench.notes.get(text) for text in forms})
    return {t: max(note["ratio"] * dense_s, 0.0) + 1e-9 for t, note in timed.items() if note and "ratio" in note}


def _ratio_around(bench: _Bench, side: Side | None) -> float:
    """What a file takes in which nothing stands between two neighbours of a side; where it has none, a call."""
    what = side.text if side else "call"
    note = bench.notes.get(what)
    if note is None:
        path = bench.folder / "around.onnx"
        note = bench.notes.put(what, ratio=bench.ratio(path, export_neighbours(side, path)))
    return float(note["ratio"])


def _time_missing(bench: _Bench, plan: Plan, missing: Mapping[str, str]) -> None:
    """Time the units of one plan; what cannot be made or run is noted with its reason."""
    shop = bench.shop
    try:
        built = build_for_timing(plan, shop.task, shop.table, shop.profile.runtime)
    except AutocompressError as fault:
        for text in missing:
            bench.notes.put(text, error=str(fault))
        return
    names = list(missing.values())
    calls = watch_calls(built.model, names, _query(shop))
    others = watch_calls(built.model, names, _query(shop, more=1))
    for text, name in missing.items():
        if name not in calls:
            bench.notes.put(text, error="it is not called with a tensor")
            continue
        free = free_axes(calls[name], others[name])
        try:
            bench.notes.put(text, **_time_unit(bench, built, name, calls[name], free))
        except (MeasureError, ExportError) as fault:
            bench.notes.put(text, error=str(fault))


def _time_unit(bench: _Bench, built: Built, name: str, call: Call, free: Free) -> dict[str, Any]:
    path = bench.folder / "unit.onnx"
    sides = sides_of(built, name, call, _query(bench.shop))
    around = sum(_ratio_around(bench, side) for side in sides) / 2
    ratio = bench.ratio(path, export_unit(built, name, call, free, path, sides)) - around
    shapes = [list(value.shape) for value in call.tensors]
    return {"ratio": ratio * call.times, "around": around, "unit": name, "inputs": shapes}


def _calibrated(
    bench: _Bench, table: LatencyTable, fitted_on: Sequence[Plan], checked_on: Sequence[Plan]
) -> LatencyTable:
    """The table with its line, and its errors on models in and outside the fit."""
    fitted = _time_models(bench, table, list(dict.fromkeys([Plan(), *map(timed_alike, fitted_on)])), "fit")
    sums = [sum(table.alone(plan, bench.shop.table).values(), Sums()) for plan in fitted]
    table = replace(table, line=fit_line(sums, list(fitted.values())))
    apart = [plan for plan in dict.fromkeys(map(timed_alike, checked_on)) if plan not in fitted]
    checked = _time_models(bench, table, apart, "check")
    return replace(table, fitted=_checks(table, bench, fitted), checked=_checks(table, bench, checked))


def _checks(table: LatencyTable, bench: _Bench, measured: Mapping[Plan, float]) -> tuple[Check, ...]:
    layers = bench.shop.table
    return tuple(Check(plan.fingerprint, seconds, table.seconds(plan, layers)) for plan, seconds in measured.items())


def _time_models(bench: _Bench, table: LatencyTable, plans: Sequence[Plan], purpose: str) -> dict[Plan, float]:
    """Seconds of whole models by plan; those that cannot be made, run or predicted are left out."""
    dense_s, found = _dense_seconds(bench), {}
    for number, plan in enumerate(plans, start=1):
        note = bench.notes.get(f"model {plan.fingerprint}")
        if note is None:
            bench.say(f"latency table: whole model {number} of {len(plans)} to {purpose}")
            note = _time_model(bench, plan)
        if "ratio" in note:
            with contextlib.suppress(MeasureError):  # a form of it that the runtime refuses has no entry
                table.alone(plan, bench.shop.table)
                found[plan] = note["ratio"] * dense_s
    return found


def _dense_seconds(bench: _Bench) -> float:
    note = bench.notes.get("dense")
    if note is None:
        note = bench.notes.put("dense", seconds=bench.shop.bench.measure(bench.shop.bench.dense.path).latency_s)
    return float(note["seconds"])


def make_dense(shop: Workshop) -> None:
    """The dense artefact, where the bench looks for it."""
    if not shop.bench.dense.path.is_file():
        build_into(shop.bench.dense.path.parent, Plan(), shop, keep_weights=False)


def _time_model(bench: _Bench, plan: Plan) -> dict[str, Any]:
    shop, path = bench.shop, bench.folder / "model.onnx"
    try:
        built = build_for_timing(plan, shop.task, shop.table, shop.profile.runtime)
        export_whole(built, shop.task, path)
        latency = shop.bench.measure(path)
    except AutocompressError as fault:
        return bench.notes.put(f"model {plan.fingerprint}", error=str(fault))
    finally:
        path.unlink(missing_ok=True)
    facts = {"ratio": latency.ratio, "seconds": latency.latency_s, "low": latency.ratio_low, "high": latency.ratio_high}
    return bench.notes.put(f"model {plan.fingerprint}", plan=plan.to_json(), **facts)
