"""What every evaluation of a run shares, and where its files lie."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from autocompress.compressing.bank import Bank
from autocompress.distill import TeacherCache
from autocompress.export.export import to_arrays
from autocompress.hardware import HardwareProfile, Workload
from autocompress.layers import LayerTable
from autocompress.measure.dense import AnyBench
from autocompress.measure.queries import write_queries
from autocompress.plan import Plan
from autocompress.tasks.causal_lm import query_tokens
from autocompress.tasks.task import Task

#: Queries of a workload of the data's own lengths.
LENGTHS = 16


@dataclass(frozen=True)
class Workshop:
    """What every evaluation of a run shares.

    Attributes:
        root: the run folder.
        task, table, profile: what is compressed, and for what.
        bank, teacher: computed once, on disk.
        bench: where latencies come from.
    """

    root: Path
    task: Task
    table: LayerTable
    profile: HardwareProfile
    bank: Bank
    teacher: TeacherCache
    bench: AnyBench

    def artifact_folder(self, plan: Plan, rung: int = 0) -> Path:
        """Where the files of a plan lie."""
        return artifact_folder(self.root, plan, rung)


def open_workshop(
    root: Path,
    task: Task,
    table: LayerTable,
    profile: HardwareProfile,
    bench: AnyBench,
    *,
    bank_limit: int | None = None,
) -> Workshop:
    """A workshop whose bank and teacher are kept below `root`."""
    teacher = TeacherCache(root / "teacher" / f"logits-{task.identity}.npy", task)
    return Workshop(root, task, table, profile, Bank(root / "bank", task, table, bank_limit), teacher, bench)


def write_workload(path: Path, task: Task, workload: Workload) -> None:
    """Write the queries that a profile times: one at the padded length, or `LENGTHS` at the data's own, seeded."""
    if workload.lengths == "padded":
        queries = [task.workload_inputs(workload.batch, query_tokens(workload))]
    else:
        draw = np.random.default_rng(0)
        rows = draw.integers(0, len(task.train), (LENGTHS, workload.batch))
        queries = [task.train.batch(each)[0] for each in rows]
    write_queries(path, [to_arrays(query) for query in queries])


def artifact_folder(root: Path, plan: Plan, rung: int = 0) -> Path:
    """Where the files of a plan lie in a run folder."""
    return root / "artifacts" / f"{plan.fingerprint}-r{rung}"
