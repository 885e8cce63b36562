"""Can a latency be believed? The same file ten times, a planted slow-down, and two equal files; quiet and disturbed.

    python benchmarks/repeatability.py [--models digits,minilm] [--modes quiet,busy] [--threads 2] [--runs 10]
        [--runtime onnxruntime] [--show]

Every run is a measurement of the report tier, as a search ends with: fresh processes, timed in turn with dense. Three
files are measured: uniform int8, for how much its ratio varies; dense with more feed-forward neurons, whose added
weights are zero (the same answers for about 8 % more time; how much more is measured at length, quiet), which must be
called slower; and a copy of dense, which must be called equal. "busy" runs a process beside it that never rests, held
on one core. Nothing else may run. Adds lines to benchmarks/results/repeatability.jsonl.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import common
import torch
from torch import nn

from autocompress.compressing.quantize import quantize
from autocompress.export import export_model
from autocompress.export.export import to_arrays
from autocompress.export.products import exact
from autocompress.hardware import HardwareProfile, load_profile
from autocompress.layers import LayerTable
from autocompress.measure.cores import STAT, idle_ticks
from autocompress.measure.latency import Bench
from autocompress.measure.queries import write_queries
from autocompress.measure.timing import Interval, verdict
from autocompress.plan import Plan, plan_from_json
from autocompress.records import Latency

FILES = ("int8", "slower", "twin")
PLANTED = 0.08
#: Neurons are added in such steps, and first by this share.
STEP = 16
FIRST = 0.16
#: How often another number of neurons is tried, and which ratio is close enough.
TRIES, CLOSE = 4, 0.01

#: Timing at length, for what the planted slow-down truly is.
LONG = {"block_seconds": 0.05, "min_blocks": 40, "max_blocks": 150, "half_width": 0.002, "report_queries": 6000}

#: Ends with the process that began it, however that ends.
SPIN = """\
import os, sys
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {int(sys.argv[1])})
parent = os.getppid()
while os.getppid() == parent:
    for _ in range(100_000):
        pass
"""


def widened(model: nn.Module, table: LayerTable, extra: int) -> nn.Module:
    """The model with `extra` more neurons in every feed-forward part, all of their weights zero."""
    model = copy.deepcopy(model)
    for group in table.groups:
        if group.kind == "neurons":
            for part in group.producers:
                _widen(model, part.name, extra, 0)
            for part in group.consumers:
                _widen(model, part.name, 0, extra)
    return model


def _widen(model: nn.Module, name: str, rows: int, columns: int) -> None:
    old = model.get_submodule(name)
    new = nn.Linear(old.in_features + columns, old.out_features + rows, old.bias is not None)
    with torch.no_grad():
        for parameter in new.parameters():
            parameter.zero_()
        new.weight[: old.out_features, : old.in_features] = old.weight
        if old.bias is not None:
            new.bias[: old.out_features] = old.bias
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, new)


class Files:
    """The files of one model, exported once into runs/repeatability-MODEL."""

    def __init__(self, name: str, runtime: str) -> None:
        self.name, self.runtime = name, runtime
        self.folder = common.ROOT / "runs" / f"repeatability-{name}-{runtime}"
        self.inputs = self.folder / "inputs.npz"

    @functools.cached_property
    def task(self):
        return common.load(self.name)

    @functools.cached_property
    def table(self) -> LayerTable:
        return common.table_of(self.task)

    @property
    def neurons(self) -> int:
        return next(group.size for group in self.table.groups if group.kind == "neurons")

    def make(self) -> None:
        """Dense, its copy, int8 and the inputs, where they are not there yet."""
        if not self.inputs.is_file():
            self._export("dense", self.task.model, Plan())
            linears = {layer.name: {"quantize": {"precision": "int8"}} for layer in self.table.layers if _int8(layer)}
            self._export("int8", self.task.model, plan_from_json({"layers": linears}, "benchmark", self.table))
            write_queries(self.inputs, [to_arrays(self.task.workload_inputs(1, 128))])
        shutil.copyfile(self.path("dense"), self.path("twin"))

    def make_slower(self, extra: int) -> Path:
        """Dense with so many more neurons, as "slower"; it must answer as dense does."""
        model = widened(self.task.model, self.table, extra)
        inputs = self.task.workload_inputs(1, 128)
        with torch.inference_mode():
            wanted, found = (common.logits_of(m(**inputs)) for m in (self.task.model, model))
        assert torch.allclose(wanted, found, atol=1e-4)
        return self._export("slower", model, Plan())

    def path(self, what: str) -> Path:
        return self.folder / f"{what}.onnx"

    def _export(self, what: str, model: nn.Module, plan: Plan) -> Path:
        made = quantize(model, exact(plan, self.runtime), self.table, self.task.calibration())
        export_model(made.model, made.codes, self.task, self.path(what), self.folder, plan.fingerprint, self.runtime)
        return self.path(what)


def _int8(layer) -> bool:
    return layer.kind == "linear" and layer.allows("quantize")


@contextlib.contextmanager
def competitor(mode: str) -> Iterator[None]:
    """In busy mode, a process that never rests, on the first core that this one may use."""
    if mode != "busy":
        yield
        return
    core = min(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
    other = subprocess.Popen([sys.executable, "-c", SPIN, str(core)])
    time.sleep(0.5)
    try:
        yield
    finally:
        other.kill()
        other.wait()


def busy_cores(seconds: float = 0.5) -> float | None:
    """How many cores something ran on, over a while in which this process did nothing."""
    if not STAT.is_file():
        return None
    before = idle_ticks(STAT.read_text())
    time.sleep(seconds)
    after = idle_ticks(STAT.read_text())
    ticks = seconds * os.sysconf("SC_CLK_TCK")
    return round(sum(max(0.0, 1 - (after[core] - before[core]) / ticks) for core in after), 2)


def measure(files: Files, what: str, profile: HardwareProfile, mode: str) -> dict:
    """One run: what a search's report would say of a file."""
    with competitor(mode):
        busy = busy_cores()
        with Bench(profile, files.inputs, files.path("dense")) as bench:
            latency = bench.measure(files.path(what), tier="report")
    return {**figures(latency), "busy_cores": busy}


def figures(latency: Latency) -> dict:
    ratio = Interval(latency.ratio, latency.ratio_low, latency.ratio_high)
    return {
        "ratio": latency.ratio,
        "low": latency.ratio_low,
        "high": latency.ratio_high,
        "verdict": verdict(ratio),
        "latency_s": latency.latency_s,
        "rounds": latency.blocks,
        "rejected": latency.rejected_blocks,
        "contended": latency.contended_blocks,
        "warnings": list(latency.warnings),
    }


def plant(files: Files, profile: HardwareProfile) -> dict:
    """Make the slower file, by trying neurons until it takes `PLANTED` more; returns them and its ratio at length."""
    extra = _steps(FIRST * files.neurons)
    for _ in range(TRIES):
        files.make_slower(extra)
        found = measure(files, "slower", profile, "quiet")["ratio"] - 1
        if abs(found - PLANTED) < CLOSE:
            break
        extra = _steps(extra * min(2.0, PLANTED / max(found, PLANTED / 2)))
    else:
        files.make_slower(extra)
    timing = profile.timing.model_copy(update=LONG)
    return {"extra": extra, **measure(files, "slower", profile.model_copy(update={"timing": timing}), "quiet")}


def _steps(neurons: float) -> int:
    return max(STEP, STEP * round(neurons / STEP))


def one_model(sheet: common.Sheet, name: str, chosen) -> None:
    files = Files(name, chosen.runtime)
    files.make()
    profile = load_profile("cpu").model_copy(update={"runtime": chosen.runtime, "threads": chosen.threads})
    setting = {"model": name, "runtime": chosen.runtime, "threads": chosen.threads}
    sheet.run(functools.partial(plant, files, profile), **setting, mode="truth", file="slower", run=0)
    extra = sheet.values("extra", **setting, mode="truth")[0]
    files.make_slower(extra)  # other settings may have made another
    for run in range(chosen.runs):
        for mode in chosen.modes.split(","):
            for what in FILES:
                work = functools.partial(measure, files, what, profile, mode)
                sheet.run(work, **setting, mode=mode, file=what, run=run)


def settings(sheet: common.Sheet, mode: str) -> list[dict]:
    """The cases measured in a mode, without file and run."""
    found = [
        {key: line["case"][key] for key in ("model", "runtime", "threads", "mode")}
        for line in sheet.lines
        if line["case"]["mode"] == mode
    ]
    return [case for number, case in enumerate(found) if case not in found[:number]]


def deviation(sheet: common.Sheet, **case) -> float | None:
    """Largest |ratio / median ratio − 1| over the runs of a case."""
    ratios = sheet.values("ratio", **case)
    return max(abs(ratio / statistics.median(ratios) - 1) for ratio in ratios) if ratios else None


def share(sheet: common.Sheet, wanted: str, **case) -> float | None:
    """Share of the runs of a case that were called so."""
    said = sheet.values("verdict", **case)
    return sum(verdict == wanted for verdict in said) / len(said) if said else None


def summary(sheet: common.Sheet) -> dict[str, float | None]:
    """The four figures of the hardware summary, each the worst over models, settings, files and modes; None: not run.

    Returns:
        ``repeatability_quiet``, ``repeatability_busy``: largest relative deviation of a file's ratio from the median
        of its runs. ``planted_slowdown_found``, ``equal_called_equal``: least share of runs.
    """
    cases = {mode: settings(sheet, mode) for mode in ("quiet", "busy")}
    both = cases["quiet"] + cases["busy"]
    varied = {
        mode: [
            found
            for case in cases[mode]
            for what in FILES
            if (found := deviation(sheet, **case, file=what)) is not None
        ]
        for mode in cases
    }
    found = [value for case in both if (value := share(sheet, "slower", **case, file="slower")) is not None]
    equal = [value for case in both if (value := share(sheet, "equal", **case, file="twin")) is not None]
    return {
        "repeatability_quiet": max(varied["quiet"], default=None),
        "repeatability_busy": max(varied["busy"], default=None),
        "planted_slowdown_found": min(found, default=None),
        "equal_called_equal": min(equal, default=None),
    }


def tables(sheet: common.Sheet) -> None:
    rows = []
    for case in settings(sheet, "quiet") + settings(sheet, "busy"):
        setting = {key: case[key] for key in ("model", "runtime", "threads")}
        truth = sheet.values("ratio", **setting, mode="truth")
        contended, rounds = (sum(sheet.values(key, **case)) for key in ("contended", "rounds"))
        rows.append(
            [
                f"{case['model']}, {case['runtime']}, {case['threads']}",
                case["mode"],
                str(len(sheet.values("ratio", **case, file="int8"))),
                *(_varied(sheet, case, what) for what in FILES),
                f"{truth[0]:.3f}" if truth else "–",
                _share(share(sheet, "slower", **case, file="slower")),
                _share(share(sheet, "equal", **case, file="twin")),
                f"{contended} / {rounds}",
            ]
        )
    heads = ("model, runtime, threads", "mode", "runs", "int8", "slower", "twin")
    common.show(
        "ratio to dense: median of the runs (largest deviation)",
        (*heads, "true slower", "found", "called equal", "contended / kept"),
        rows,
    )
    print(summary(sheet))


def _varied(sheet: common.Sheet, case: dict, what: str) -> str:
    ratios = sheet.values("ratio", **case, file=what)
    if not ratios:
        return "–"
    return f"{statistics.median(ratios):.3f} ({deviation(sheet, **case, file=what):.1%})"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.0%}"


def main() -> None:
    chosen = common.options(__doc__, models="digits,minilm", modes="quiet,busy", runs=10, runtime="onnxruntime")
    sheet = common.Sheet("repeatability")
    for name in () if chosen.show else chosen.models.split(","):
        one_model(sheet, name, chosen)
    tables(sheet)


if __name__ == "__main__":
    main()
