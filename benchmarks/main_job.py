"""The main job: does the demo's search find a model twice as fast at no more than a point of test accuracy lost?

    python benchmarks/main_job.py [--task digits | sst2] [--budget 190s] [--fresh]

Searches as `make demo` does (or takes the finished run), then times the front's models once more against the dense
model in its fastest setting, in fresh processes, and scores both on the test split: both sides in one run. Adds one
JSON line to benchmarks/results/main_job.jsonl and prints it as a table.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from autocompress.environment import environment
from autocompress.hardware import HardwareProfile
from autocompress.launch import search
from autocompress.measure.latency import Bench, Setting
from autocompress.records import append_line
from autocompress.runtimes import open_session
from autocompress.searching.probe import Probe
from autocompress.show import Progress
from autocompress.tasks import TaskSource, load_task

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "main_job.jsonl"
DATA = ROOT.parent / "shared" / "data"
SOURCES = {
    "digits": TaskSource("digits"),
    "sst2": TaskSource("text-classification", str(DATA / "models" / "minilm-sst2"), str(DATA / "sst2")),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", choices=SOURCES, default="digits")
    parser.add_argument("--budget", default="190s")
    parser.add_argument("--fresh", action="store_true", help="search again even if a run is there")
    options = parser.parse_args()
    folder = ROOT / "runs" / f"bench-{options.task}"
    if options.fresh and folder.exists():
        shutil.rmtree(folder)
    with Progress() as progress:
        task = load_task(SOURCES[options.task], 128, progress.say)
        run = search(task, out=folder, budget=options.budget, watcher=progress)
        probe = Probe.from_json(json.loads((folder / "probe.json").read_text()))
        rows = [again(run, task, entry, probe) for entry in run.entries()]
    result = {
        "command": " ".join(["python", "benchmarks/main_job.py", *sys.argv[1:]]),
        "task": options.task,
        "budget": options.budget,
        "dense_fastest": str(probe.best_dense),
        "controller_overhead": run.overhead(),
        "candidates": len(run.trials),
        "front": rows,
        "chosen_by_validation": chosen(rows),
        "environment": environment(),
    }
    append_line(RESULTS, result)
    show(result)


def quality(path: Path, task, profile: HardwareProfile) -> float:
    """The task's metric of a file on the test split, by ONNX Runtime itself."""
    session = open_session(path, profile.runtime, profile.threads)
    outputs = {}
    for rows, inputs, _targets in task.test.batches(32):
        values = session.run({name: value.numpy() for name, value in inputs.items()})[0]
        outputs.update(zip(rows.tolist(), values, strict=True))
    logits = np.stack([outputs[row] for row in range(len(task.test))])
    return task.metric.score(logits, task.test.targets.numpy())


def again(run, task, entry: dict, probe: Probe) -> dict:
    """One model of the front and the dense model, timed in turn and scored on the test split, afresh."""
    profile = HardwareProfile(**run.experiment["resolved"]["hardware"])
    dense = run.folder / entry["artifact_dense"]
    with Bench(profile, run.folder / "inputs.npz", dense, Setting(*_setting(probe))) as bench:
        latency = bench.measure(run.folder / entry["artifact"], tier="report")
    return {
        "fingerprint": entry["fingerprint"],
        "what": entry["what"],
        "speedup_search": 1 / entry["latency_ratio_best_dense"],
        "speedup": 1 / latency.ratio_best_dense,
        "speedup_low": 1 / latency.ratio_best_dense_high,
        "speedup_high": 1 / latency.ratio_best_dense_low,
        "drop_points_validation": entry["drop_points_validation"],
        "drop_points_test": 100
        * (quality(dense, task, profile) - quality(run.folder / entry["artifact"], task, profile)),
        "size_ratio": entry["size_bytes"] / entry["size_bytes_dense"],
    }


def _setting(probe: Probe) -> tuple[str, int]:
    return probe.best_dense.runtime, probe.best_dense.threads


def chosen(rows: list[dict]) -> dict | None:
    """What `pick --max-drop 1pt` chooses: the fastest within a point of validation."""
    fitting = [row for row in rows if row["drop_points_validation"] <= 1.0]
    return max(fitting, key=lambda row: row["speedup_search"], default=None)


def show(result: dict) -> None:
    table = Table(title=f"{result['task']}: against dense fp32 in {result['dense_fastest']}", box=None)
    for heading in ("fingerprint", "speed-up, timed again", "drop val", "drop test", "size", "what"):
        table.add_column(heading)
    for row in result["front"]:
        table.add_row(
            row["fingerprint"][:8],
            f"{row['speedup']:.2f}x ({row['speedup_low']:.2f}-{row['speedup_high']:.2f})",
            f"{row['drop_points_validation']:+.2f}",
            f"{row['drop_points_test']:+.2f}",
            f"{row['size_ratio']:.2f}",
            row["what"],
        )
    console = Console(width=150, highlight=False)
    console.print(table)
    winner = result["chosen_by_validation"]
    if winner:
        console.print(
            f"chosen by validation (at most 1 point): {winner['speedup']:.2f}x, {winner['drop_points_test']:+.2f} "
            "points on test"
        )
    console.print(f"controller overhead: {result['controller_overhead']:.2%} of the search's wall-clock")


if __name__ == "__main__":
    main()
