"""The bank: how long does it take to build, in one process and in several, and then to assemble a candidate?

    python benchmarks/bank.py [--task sst2 | digits] [--levels 0.75,0.5,0.25] [--fresh]

Builds the orders, repairs and second moments of all heads and neurons in two folders of its own, compares the folders
bit by bit, and assembles a candidate with 75 % of both. Each timed part is written down when it ends, so that the same
command goes on where it was stopped. Adds one JSON line to benchmarks/results/bank.jsonl and prints it as a table.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from autocompress.compressing.bank import Bank
from autocompress.compressing.shape import shape
from autocompress.compressing.store import Store
from autocompress.environment import environment
from autocompress.layers import LayerTable
from autocompress.plan import Plan, Prune
from autocompress.processors import cores
from autocompress.records import append_line, write_json
from autocompress.survey import survey
from autocompress.tasks import TaskSource, load_task
from autocompress.tasks.task import Task

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "bank.jsonl"
DATA = ROOT.parent / "shared" / "data"
SOURCES = {
    "digits": TaskSource("digits"),
    "sst2": TaskSource("text-classification", str(DATA / "models" / "minilm-sst2"), str(DATA / "sst2")),
}

#: Candidates that are assembled for the median.
ASSEMBLIES = 9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", choices=SOURCES, default="sst2")
    parser.add_argument("--levels", default="0.75,0.5,0.25", help="shares of heads and neurons that are built")
    parser.add_argument("--fresh", action="store_true", help="measure again what was measured")
    options = parser.parse_args()
    folder = ROOT / "runs" / f"bench-bank-{options.task}"
    if options.fresh and folder.exists():
        shutil.rmtree(folder)
    torch.set_num_threads(cores())
    task = load_task(SOURCES[options.task], 128, print)
    table = survey(task.source, task.workload_inputs(1, 128))
    levels = [float(level) for level in options.levels.split(",")]
    figures, news = measured(folder, task, table, levels)
    result = {
        "command": " ".join(["python", "benchmarks/bank.py", *sys.argv[1:]]),
        "task": options.task,
        "levels": levels,
        "cores": cores(),
        **figures,
        "environment": environment(),
    }
    if news:
        append_line(RESULTS, result)
    show(result)


def measured(folder: Path, task: Task, table: LayerTable, levels: list[float]) -> tuple[dict, bool]:
    """All parts, from the file of earlier ones or timed now, and whether any was."""
    path = folder / f"parts-{'-'.join(map(str, levels))}.json"
    done = json.loads(path.read_text()) if path.is_file() else {}
    plans = [kept(table, level) for level in levels]
    parts: dict[str, Callable[[], object]] = {
        "order_s": lambda: order(folder / "order", task, table),
        "serial_s": lambda: build(folder / "serial", task, table, plans, workers=1),
        "parallel_s": lambda: build(folder / "parallel", task, table, plans, workers=cores()),
        "equal": lambda: same(folder / "serial", folder / "parallel"),
        "size_bytes": lambda: Store(folder / "parallel").size_bytes(),
        "assembly": lambda: assembly(folder / "parallel", task, table),
    }
    left = [name for name in parts if name not in done]
    for name in left:
        done[name] = parts[name]()
        write_json(path, done)
    return done, bool(left)


def kept(table: LayerTable, share: float) -> Plan:
    """A share of all heads and neurons."""
    groups = (group for group in table.groups if group.kind in ("heads", "neurons"))
    return Plan({group.name: Prune(max(1, round(group.size * share))) for group in groups})


def order(folder: Path, task: Task, table: LayerTable) -> dict:
    """Seconds that the optimal brain surgeon takes for one feed-forward part; second moments not counted."""
    shutil.rmtree(folder, ignore_errors=True)
    bank = Bank(folder, task, table)
    group = next(group for group in table.groups if group.kind == "neurons")
    start = time.perf_counter()
    bank.gram(group.consumers[0].name)
    middle = time.perf_counter()
    bank.kept(group, Prune(1), 0)
    return {"columns": group.size, "moments_s": middle - start, "order_s": time.perf_counter() - middle}


def build(folder: Path, task: Task, table: LayerTable, plans: list[Plan], workers: int) -> float:
    """Seconds from an empty folder to all levels, second moments included."""
    shutil.rmtree(folder, ignore_errors=True)
    start = time.perf_counter()
    Bank(folder, task, table).build(plans, workers)
    return time.perf_counter() - start


def same(left: Path, right: Path) -> bool:
    """Whether two folders hold the same entries with the same bits, but for what was handed to other processes."""
    stores = Store(left), Store(right)
    keys = [
        {path.name.removesuffix(".safetensors") for path in folder.glob("*.safetensors")} for folder in (left, right)
    ]
    shared = {key for key in keys[0] if not key.startswith("input-")}
    if shared != {key for key in keys[1] if not key.startswith("input-")}:
        return False
    found = ([store.get(key) for store in stores] for key in shared)
    return all(torch.equal(a[name], b[name]) for a, b in found for name in a)


def assembly(folder: Path, task: Task, table: LayerTable) -> dict:
    """Seconds to assemble a candidate: the first of a process, and the median of those after it."""
    bank, plan = Bank(folder, task, table), kept(table, 0.75)
    seconds = []
    for _ in range(ASSEMBLIES):
        start = time.perf_counter()
        shape(task.source, plan, table, bank)
        seconds.append(time.perf_counter() - start)
    return {"first_s": seconds[0], "median_s": statistics.median(seconds[1:]), "all_s": seconds}


def show(result: dict) -> None:
    table = Table(title=f"bank of {result['task']}, levels {result['levels']}", box=None, show_header=False)
    first = result["order_s"]
    for words, value in (
        ("second moments of all layers", f"{first['moments_s']:.1f} s"),
        (f"order of {first['columns']} neurons", f"{first['order_s']:.1f} s"),
        ("built in one process", f"{result['serial_s']:.1f} s"),
        (f"built in {result['cores']} processes", f"{result['parallel_s']:.1f} s"),
        ("equal bit by bit", str(result["equal"])),
        ("size", f"{result['size_bytes'] / 1e6:.0f} MB"),
        ("assembly of the first candidate", f"{result['assembly']['first_s']:.2f} s"),
        ("assembly of a later one, median", f"{result['assembly']['median_s']:.2f} s"),
    ):
        table.add_row(words, value)
    Console(width=100, highlight=False).print(table)


if __name__ == "__main__":
    main()
