"""What the benchmarks share: the models and data, a results file that is added to and never repeated, a table."""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import importlib.util
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from autocompress.compressing.bank import Bank
from autocompress.environment import environment
from autocompress.records import append_line, read_lines
from autocompress.survey import survey
from autocompress.tasks import TaskSource, load_task
from autocompress.tasks.task import Examples, Task, logits_of

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
DATA = ROOT.parent / "shared" / "data"

#: Characters of a value up to which a line of a sheet is also printed with it.
MOST_SHOWN = 2000


def load(name: str) -> Task:
    """MiniLM-L6 on SST-2, ResNet-20 on CIFAR-10, the digits demo, or a small GPT-2 on Shakespeare."""
    if name == "minilm":
        source = TaskSource("text-classification", str(DATA / "models" / "minilm-sst2"), str(DATA / "sst2"))
        return load_task(source, 128)
    if name == "gpt2":
        model = ROOT / "benchmarks" / "models" / "gpt2-shakespeare"
        return load_task(TaskSource("causal-lm", str(model), str(DATA / "tinyshakespeare")), 128)
    if name == "resnet20":
        spec = importlib.util.spec_from_file_location("resnet20_cifar10", ROOT / "examples" / "resnet20_cifar10.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        return module.make_task()
    return load_task(TaskSource("digits"))


def reseeded(task: Task, seed: int, count: int = 256) -> Task:
    """The task with other calibration samples."""
    return replace(task, train=task.train.subset(count, seed=100 + seed))


def table_of(task: Task):
    return survey(task.source, task.workload_inputs(1, 128))


def bank_of(task: Task, folder: str | Path | None = None) -> Bank:
    return Bank(Path(folder or tempfile.mkdtemp(prefix="bank-")), task, table_of(task))


def outputs(
    model: nn.Module, examples: Examples, keep=lambda logits, _targets: logits, batches: Iterable | None = None
) -> np.ndarray:
    """What a model answers to a split, in the split's order; `batches` where they are at hand already."""
    found = None
    with torch.inference_mode():
        for rows, inputs, targets in batches or examples.batches(64):
            values = keep(logits_of(model(**inputs)).numpy(), targets.numpy())
            if found is None:
                found = np.zeros((len(examples), *values.shape[1:]), dtype=values.dtype)
            found[rows] = values
    return found


def quality(model: nn.Module, task: Task, examples: Examples) -> float:
    """The task's metric of a torch model on a split."""
    kept = outputs(model.eval(), examples, task.metric.kept)
    return float(task.metric.score(kept, examples.targets.numpy()))


def hits(model: nn.Module, examples: Examples) -> np.ndarray:
    """Which samples of a split a classifier gets right: for paired comparisons."""
    return (outputs(model.eval(), examples).argmax(-1) == examples.targets.numpy()).astype(float)


class Sheet:
    """A file of results, one JSON line per case; a case that is there, or that another process is at, is not run."""

    def __init__(self, name: str, folder: Path = RESULTS) -> None:
        self.path = folder / f"{name}.jsonl"
        self.read()
        self._environment = environment()

    def read(self) -> None:
        """Take in what is there by now."""
        self.lines = list(read_lines(self.path))

    def has(self, **case) -> bool:
        return any(line["case"] == case for line in self.lines)

    @contextlib.contextmanager
    def claimed(self, wait: bool = False, **case) -> Iterator[bool]:
        """Whether no other process is at a case; a claim ends with its process at the latest.

        Args:
            wait: until no other is.
        """
        said = json.dumps([str(self.path.resolve()), case], sort_keys=True)
        name = f"autocompress-bench-{os.getuid()}-{hashlib.sha256(said.encode()).hexdigest()[:16]}.lock"
        with (Path(tempfile.gettempdir()) / name).open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            yield True

    def run(self, work, **case) -> None:
        """Run ``work() -> dict`` for a case that is not there yet, and write down what it gives."""
        with self.claimed(**case) as free:
            self.read()
            if free and not self.has(**case):
                self._run(work, case)

    def _run(self, work, case: dict) -> None:
        start = time.perf_counter()
        values = work()
        line = {
            "case": case,
            "values": values,
            "seconds": round(time.perf_counter() - start, 1),
            "command": " ".join(["python", *sys.argv]),
            "threads": torch.get_num_threads(),
            "environment": self._environment,
        }
        with self.claimed(wait=True):  # the end of a line that another process is writing is no torn line
            append_line(self.path, line)
        self.lines.append(line)
        shown = {name: value for name, value in values.items() if len(str(value)) < MOST_SHOWN}
        print(json.dumps({"case": case, "values": shown, "seconds": line["seconds"]}), flush=True)

    def values(self, key: str, **case) -> list[float]:
        """One figure of all cases that agree with `case`."""
        fitting = (line for line in self.lines if case.items() <= line["case"].items())
        return [line["values"][key] for line in fitting]


def spread(values: list[float], factor: float = 100.0) -> str:
    """Mean and standard deviation over seeds."""
    if not values:
        return "–"
    mean = f"{factor * statistics.mean(values):.2f}"
    return f"{mean} ± {factor * statistics.stdev(values):.2f}" if len(values) > 1 else mean


def show(title: str, heads: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
    """A table on the terminal."""
    table = Table(title=title, box=None, title_justify="left")
    for head in heads:
        table.add_column(head)
    for row in rows:
        table.add_row(*row)
    Console(width=150, highlight=False).print(table)


def options(description: str, **defaults) -> argparse.Namespace:
    """Command line: ``--threads``, and what a benchmark adds, as ``name=default``."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--show", action="store_true", help="print the tables of what is there; run nothing")
    for name, value in defaults.items():
        parser.add_argument(f"--{name}", type=type(value), default=value)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    return chosen
