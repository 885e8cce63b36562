"""The evaluator that all searches share, with its clock."""

from __future__ import annotations

import time
from pathlib import Path

import common
import torch

from autocompress.compressing.bank import Bank
from autocompress.compressing.batchnorm import refresh_batchnorm
from autocompress.compressing.quantize import quantize, simulate
from autocompress.compressing.shape import shape
from autocompress.pareto import reference_point
from autocompress.pipeline import divergence
from autocompress.plan import Plan
from autocompress.records import Latency, Trial
from autocompress.rules import load_space
from autocompress.space import build_space
from autocompress.survey import survey
from autocompress.tables.recorded import load_recorded

SAMPLES = 512
LOSS_SAMPLES = 128


class Spent(Exception):
    """The time of a search is over."""


class Evaluator:
    """Grades plans without training, and keeps what it found with the second of finding.

    Args:
        task: model and data.
        recorded: file of the latency table.
        folder: for the bank and journals; empty.
        limit_s: seconds of processor time.
    """

    def __init__(self, task, recorded: Path, folder: Path, limit_s: float) -> None:
        torch.set_num_threads(1)
        self.task, self.folder, self.limit_s = task, folder, limit_s
        found = load_recorded(recorded)
        self.profile, self.latencies = found.profile, found.table
        workload = self.profile.workload
        self.table = survey(task.source, task.workload_inputs(workload.batch, workload.sequence_length))
        self.space = build_space(load_space("transformer"), self.table, self.profile).untrained()
        self.bank = Bank(folder / "bank", task, self.table)
        self.examples = task.validation.subset(SAMPLES)
        self.dense_s = self.latencies.seconds(Plan(), self.table)
        self.found: list[tuple[float, float, float]] = []
        self.trials: list[Trial] = []
        self.dense_logits = common.outputs(task.source, self.examples)
        self.targets = self.examples.targets.numpy()
        self.dense_quality = float(task.metric.score(self.dense_logits, self.targets))
        self.reference = reference_point(self.dense_quality, task.metric.maximize)
        self.begun = time.process_time()

    @property
    def clock(self) -> float:
        """Seconds of processor time since the search began."""
        return time.process_time() - self.begun

    def __call__(self, plan: Plan, origin="sampled", proposal=-1) -> Trial:
        """The trial of a plan; raises `Spent` instead of beginning late."""
        if self.clock > self.limit_s:
            raise Spent
        start = self.clock
        ratio = self.latencies.seconds(plan, self.table) / self.dense_s
        logits = common.outputs(self._assembled(plan), self.examples)
        quality = float(self.task.metric.score(logits, self.targets))
        latency = Latency(
            latency_s=ratio * self.dense_s, iqr_s=0.0, p90_s=0.0, ratio=ratio, ratio_low=ratio, ratio_high=ratio,
            ratio_best_dense=ratio, ratio_best_dense_low=ratio, ratio_best_dense_high=ratio, source="recorded",
            tier="search", runtime=self.profile.runtime, threads=1, blocks=0, rejected_blocks=0, queries=0,
        )  # fmt: skip
        trial = Trial(
            len(self.trials), plan, "DONE", origin, proposal, quality=quality, latency=latency,
            divergence=divergence(self.dense_logits, logits), seconds={"evaluate": self.clock - start},
        )  # fmt: skip
        self.trials.append(trial)
        self.found.append((round(self.clock, 2), round(ratio, 5), round(quality, 5)))
        return trial

    def facts(self) -> dict:
        """What a line of the results holds."""
        return {
            "dense_quality": self.dense_quality,
            "reference": list(self.reference),
            "maximize": self.task.metric.maximize,
            "spent_s": round(self.clock, 1),
            "found": self.found,
        }

    def _assembled(self, plan: Plan):
        model = shape(self.task.source, plan, self.table, self.bank)
        if plan.groups or any(lp.factorize for lp in plan.layers.values()):
            refresh_batchnorm(model, self.task.calibration())
        if any(lp.quantize for lp in plan.layers.values()):
            made = quantize(model, plan, self.table, self.task.calibration())
            model = simulate(made.model, made.codes)
        return model.eval()
