"""The evaluator that all searches share, with its clock."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import common
import numpy as np
import threadpoolctl
import torch
from torch import nn

from autocompress.compressing.bank import Bank
from autocompress.compressing.batchnorm import refresh_batchnorm
from autocompress.compressing.quantize import quantize, simulate
from autocompress.compressing.shape import shape
from autocompress.distill import recover
from autocompress.distill.teacher import TeacherCache
from autocompress.errors import AutocompressError
from autocompress.front import Front
from autocompress.pareto import reference_point
from autocompress.pipeline import divergence
from autocompress.plan import Plan, describe
from autocompress.records import Latency, Origin, Trial
from autocompress.rules import load_space
from autocompress.space import build_space
from autocompress.survey import survey
from autocompress.tables.recorded import load_recorded

SPACE = "transformer"
SAMPLES = 512
LOSS_SAMPLES = 128


class Spent(Exception):
    """The time of a search is over."""


def processor_seconds() -> float:
    """Of this process, all threads, and of processes that it began and that ended."""
    times = os.times()
    return time.process_time() + times.children_user + times.children_system


class Evaluator:
    """Grades plans, and keeps what it found with the second at which it was known.

    Args:
        task: model and data.
        recorded: file of the latency table.
        folder: for the bank and journals; empty.
        limit_s: seconds of processor time.
        trained: whether plans may ask for recovery.
    """

    def __init__(self, task, recorded: Path, folder: Path, limit_s: float, trained: bool = False) -> None:
        torch.set_num_threads(1)
        self.task, self.folder, self.limit_s, self.trained = task, folder, limit_s, trained
        found = load_recorded(recorded)
        self.profile, self.latencies = found.profile, found.table
        self.recorded = hashlib.sha256(recorded.read_bytes()).hexdigest()[:16]
        workload = self.profile.workload
        self.table = survey(task.source, task.workload_inputs(workload.batch, workload.sequence_length))
        whole = build_space(load_space(SPACE), self.table, self.profile)
        self.untrained = whole.untrained()
        self.space = whole if trained else self.untrained
        self.bank = Bank(folder / "bank", task, self.table)
        self.teacher = TeacherCache(None, task)
        rows = np.random.default_rng(0).permutation(len(task.validation))
        self.examples = task.validation.take(np.sort(rows[:SAMPLES]))
        self.batches = list(self.examples.batches(64))
        self.fresh = [task.test, *([task.validation.take(np.sort(rows[SAMPLES:]))] if len(rows) > SAMPLES else [])]
        self.dense_s = self.latencies.seconds(Plan(), self.table)
        self.found: list[tuple[float, float, float]] = []
        self.trials: list[Trial] = []
        self.dense_logits = self._logits(task.source)
        self.targets = self.examples.targets.numpy()
        self.dense_quality = float(task.metric.score(self.dense_logits, self.targets))
        self.reference = reference_point(self.dense_quality, task.metric.maximize)
        self.begun = processor_seconds()

    @property
    def clock(self) -> float:
        """Seconds of processor time since the search began."""
        return processor_seconds() - self.begun

    @property
    def left_s(self) -> float:
        """Seconds that are left, below 0 where a candidate ended late."""
        return self.limit_s - self.clock

    def __call__(self, plan: Plan, origin: Origin = "sampled", proposal: int = -1, rung: int = 0) -> Trial:
        """The trial of a plan, failed where it cannot be made; raises `Spent` instead of beginning late."""
        start = self.clock
        if start > self.limit_s:
            raise Spent
        trial = Trial(len(self.trials), plan, "FAILED", origin, proposal, rung)
        try:
            ratio = self.latencies.seconds(plan, self.table) / self.dense_s
            logits = self._logits(self._assembled(plan))
            quality = float(self.task.metric.score(logits, self.targets))
            latency = Latency(
                latency_s=ratio * self.dense_s, iqr_s=0.0, p90_s=0.0, ratio=ratio, ratio_low=ratio, ratio_high=ratio,
                ratio_best_dense=ratio, ratio_best_dense_low=ratio, ratio_best_dense_high=ratio, source="recorded",
                tier="search", runtime=self.profile.runtime, threads=1, blocks=0, rejected_blocks=0, queries=0,
            )  # fmt: skip
            trial = trial.replace(
                state="DONE", quality=quality, latency=latency, divergence=divergence(self.dense_logits, logits)
            )
        except AutocompressError as fault:
            trial = trial.replace(error=f"{type(fault).__name__}: {fault}")
        now = self.clock
        trial = trial.replace(seconds={"evaluate": now - start}, finished_s=now)
        self.trials.append(trial)
        if trial.measured:
            self.found.append((round(now, 2), round(ratio, 5), round(quality, 5)))
        return trial

    def facts(self) -> dict:
        """What a line of the results holds; the front is graded on fresh samples, after all seconds are counted."""
        done = [trial for trial in self.trials if trial.measured]
        told = {
            "evaluator": {
                "space": SPACE,
                "trained": self.trained,
                "samples": len(self.examples),
                "task": self.task.identity,
                "table": self.recorded,
            },
            "dense_quality": self.dense_quality,
            "reference": list(self.reference),
            "maximize": self.task.metric.maximize,
            "spent_s": round(self.clock, 1),
            "evaluated_s": round(sum(trial.seconds["evaluate"] for trial in self.trials), 1),
            "origins": dict(Counter(trial.origin for trial in self.trials)),
            "failed": sorted({trial.error for trial in self.trials if trial.error}),
            "found": self.found,
        }
        return told | {
            "front": self._front(done),
            "fresh": {
                "samples": sum(len(examples) for examples in self.fresh),
                "dense_quality": self.fresh_quality(Plan()),
            },
        }

    def fresh_quality(self, plan: Plan) -> float:
        """The metric on samples that no search has seen: the test split, and what else of validation there is."""
        model = self._assembled(plan)
        logits = np.concatenate([common.outputs(model, examples) for examples in self.fresh])
        targets = np.concatenate([examples.targets.numpy() for examples in self.fresh])
        return float(self.task.metric.score(logits, targets))

    def _front(self, done: list[Trial]) -> list[dict]:
        """What a search would grade, had it the time for all: as plans and in words, fast to slow."""
        front = Front(tuple(done), self.task.metric.maximize)
        points = {trial.fingerprint for trial in front.points}
        members = {trial.fingerprint: trial for trial in (*front.promising, *front.references)}
        return [
            {
                "second": round(trial.finished_s, 2),
                "ratio": round(trial.latency.ratio, 5),
                "quality": round(trial.quality, 5),
                "divergence": round(trial.divergence, 5),
                "fresh_quality": round(self.fresh_quality(trial.plan), 5),
                "by_quality": trial.fingerprint in points,
                "origin": trial.origin,
                "rung": trial.rung,
                "fingerprint": trial.fingerprint,
                "what": describe(trial.plan, self.table),
                "plan": trial.plan.to_json(),
            }
            for trial in sorted(members.values(), key=lambda trial: trial.latency.ratio)
        ]

    def _logits(self, model: nn.Module) -> np.ndarray:
        return common.outputs(model, self.examples, batches=self.batches)

    def _assembled(self, plan: Plan) -> nn.Module:
        model = shape(self.task.source, plan, self.table, self.bank)
        if plan.groups or any(lp.factorize for lp in plan.layers.values()):
            refresh_batchnorm(model, self.task.calibration())
        if plan.distill:
            model = recover(model, plan, self.task, self.teacher, self.table)
        if any(lp.quantize for lp in plan.layers.values()):
            made = quantize(model, plan, self.table, self.task.calibration())
            model = simulate(made.model, made.codes)
        return model.eval()


@contextlib.contextmanager
def opened(name: str, limit_s: float, trained: bool = False) -> Iterator[Evaluator]:
    """An evaluator of a model of `common.load` on one thread, with an empty bank that is gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix=f"search-{name}-"))
    try:
        recorded = common.ROOT / "benchmarks" / "searching" / f"{name}.json"
        with threadpoolctl.threadpool_limits(1):
            yield Evaluator(common.load(name), recorded, folder, limit_s, trained)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
