"""What a report needs to know of a run, as plain data. Knows no file and no page."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from autocompress.elsewhere import Elsewhere
from autocompress.found import Found, Loss
from autocompress.layers import LayerTable
from autocompress.objectives import USUAL, Objectives
from autocompress.records import Part, Trial


@dataclass(frozen=True)
class RunView:
    """One run, ready to be shown.

    Attributes:
        name: of the run.
        trials: every evaluation, in any order.
        front: fingerprints of the front's plans, fast to slow.
        table: what of the model can be compressed.
        experiment: resolved settings, flat or nested.
        environment: machine and versions, nested.
        probe: ``dense`` (list of ``{runtime, threads, latency_s}``), ``best_dense`` (one of them),
            ``precisions`` (list of ``{precision, ratio, low, high, kept, why}``) and
            ``reachable`` (``{smallest_latency_s, dense_latency_s}``); every key may be missing.
        metric: its name; `maximize` tells its direction.
        maximize: whether more is better.
        quality_dense: of the dense model, on `part` of validation.
        quality_dense_test: the same on the test split, where known.
        budgets: sentences such as "at least 2x faster than the fastest dense fp32".
        status: one sentence such as "finished: 31 candidates in 182 s".
        folder: of the run, for the ``autocompress pick`` command line; `name` where empty.
        nearest_miss: fingerprint and what it lacks, when nothing is feasible; guessed where None.
        elsewhere: the front as other devices time it.
        sensitivities: what fewer bits of each layer alone cost, as ``sensitivity.json`` has it: ``layer``, ``layers``,
            ``precision``, ``weight_bits``, ``kl``, ``measured``, ``cost_s``, ``size_bytes``.
        part: of validation, by which the trials are judged.
        divided: whether validation has two parts to tell apart; in old runs, and of few samples, it has not.
        stages: of the search, as ``state.json`` has them: ``stage``, ``seconds``, ``candidates``,
            ``hypervolume_before``, ``hypervolume_after``.
        found: what the search found out beside its candidates.
        losses: what single choices lose.
        ties: fingerprint of a point of the front to those whose quality it is not shown to exceed.
        ungraded: fingerprints of what may stand on the front, but was not graded.
        objectives: by which the trials are compared.
        answer: fingerprint of what answers the budgets, as ``autocompress pick`` chooses it; None where nothing was
            asked, or nothing fits.
    """

    name: str
    trials: tuple[Trial, ...]
    front: tuple[str, ...]
    table: LayerTable
    experiment: Mapping[str, Any]
    environment: Mapping[str, Any]
    probe: Mapping[str, Any]
    metric: str
    maximize: bool
    quality_dense: float
    quality_dense_test: float | None
    budgets: tuple[str, ...]
    status: str
    folder: str = ""
    nearest_miss: tuple[str, str] | None = None
    elsewhere: tuple[Elsewhere, ...] = ()
    sensitivities: tuple[Mapping[str, Any], ...] = ()
    part: Part = "select"
    divided: bool = False
    ties: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    ungraded: tuple[str, ...] = ()
    objectives: Objectives = USUAL
    answer: str | None = None
    stages: tuple[Mapping[str, Any], ...] = ()
    found: Found = field(default_factory=Found)
    losses: tuple[Loss, ...] = ()

    def quality_of(self, trial: Trial) -> float | None:
        """What a trial is judged by."""
        return trial.quality_on(self.part)

    @property
    def dense(self) -> Trial | None:
        """The measured dense trial."""
        return next((t for t in self.trials if t.origin == "dense" and t.measured), None)

    @property
    def strategy(self) -> str:
        """Of the search."""
        resolved = self.experiment.get("resolved") or {}
        return str((resolved.get("space") or {}).get("strategy", "staged"))

    @cached_property
    def percent(self) -> bool:
        """Whether the metric is a share; where nobody said, one that is maximized, with every known value in [0, 1]."""
        if self.objectives.fraction is not None:
            return self.objectives.fraction
        values = [self.quality_dense, self.quality_dense_test]
        values += [q for t in self.trials for q in (t.quality, t.quality_confirm, t.quality_test)]
        return self.maximize and all(0.0 <= v <= 1.0 for v in values if v is not None and math.isfinite(v))
