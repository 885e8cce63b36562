"""The loop of a search: references, then what the strategy proposes until time or trials run out; then the finalists.

Who proposes is the strategy's affair: `staged`, `joint` (seeds, then what the sampler says) or `solve`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from autocompress.budgets import Budgets
from autocompress.errors import AutocompressError
from autocompress.export.folder import INTEGERS
from autocompress.front import Front, fits
from autocompress.objectives import USUAL, Objectives
from autocompress.plan import Plan
from autocompress.records import Origin, Part, Trial, append_line
from autocompress.searching.controller import Controller, Proposal, Sampler, typical_seconds
from autocompress.searching.findings import found_by, keep_found
from autocompress.searching.grading import Grading, mean_seconds
from autocompress.searching.mixed import make_solver
from autocompress.searching.parts import drawn_from
from autocompress.searching.prepare import LOSS_SHARE, make_staged
from autocompress.searching.probe import Probe
from autocompress.searching.runner import InProcess, Runner
from autocompress.searching.seeds import REFERENCES, seeds
from autocompress.searching.seen import Clock, Teller
from autocompress.searching.staged import Staged
from autocompress.searching.stages import Stage, Stages
from autocompress.searching.status import Status, Watcher, best_words
from autocompress.searching.warm import offered
from autocompress.space import SearchSpace
from autocompress.workshop import Workshop

#: Stands where a trial answers no proposal of the controller.
NO_PROPOSAL = -1

#: Why a search ends whose strategy has nothing more to propose.
EXHAUSTED = {
    "staged": "no stage has a candidate left that was not evaluated",
    "joint": "the space holds no candidate that was not evaluated",
    "solve": "every plan that the integer program asked for is evaluated",
}


class Proposer(Protocol):
    """Who says what is evaluated next, and learns from it."""

    def ask(self, left_s: float) -> Proposal | None:
        """The next plan; None when there is none (yet), or none that the seconds that are left suffice for."""
        ...

    def tell(self, number: int, trial: Trial) -> None:
        """The outcome of a proposal."""
        ...


@dataclass
class Loop:
    """A search under way.

    Attributes:
        shop, space, budgets: what it searches, and for what.
        trials: finished evaluations, from earlier sessions too; grows.
        budget_s, spent_s: wall-clock allowed, and spent before this session.
        sampler, seed, max_trials: as given by the user.
        probe, references: set before `run`; see `searching.seeds`.
        only: the one stage of a staged search that is run, within the whole time; None for all.
        warm: what an earlier run found, to be evaluated first; see `searching.warm`.
        runner: evaluates; one after another in this process by default.
        objectives: by which candidates are compared.
        saved: called when the trials changed, to write the front to disk.
        stages: what each stage took and found, of earlier sessions too.
        search_s, worked_s: wall-clock of `run`, and the part of it spent in, or waiting for, the stages of candidates.
    """

    shop: Workshop
    space: SearchSpace
    budgets: Budgets
    trials: list[Trial]
    budget_s: float
    spent_s: float
    watcher: Watcher
    saved: Callable[[Front], None]
    sampler: Sampler = "auto"
    seed: int = 0
    max_trials: int | None = None
    probe: Probe | None = None
    references: Sequence[tuple[Origin, Plan]] = ()
    warm: Sequence[Plan] = ()
    only: str | None = None
    runner: Runner | None = None
    objectives: Objectives = USUAL
    started: float = field(default_factory=time.perf_counter)
    search_s: float = 0.0
    worked_s: float = 0.0
    stage: str = ""
    under_way: int = 0
    stages: Stages = field(default_factory=Stages)
    _front: Front | None = field(default=None, init=False, repr=False)
    _bare: set[str] = field(default_factory=set, init=False, repr=False)

    def __post_init__(self) -> None:
        """What grades the finalists, and foretells how long that takes."""
        self.grading = Grading(
            self.shop, self.budget_s, lambda: self.elapsed_s, lambda: self.front, self._keep_graded,
            lambda text: self.watcher.say(text),
        )  # fmt: skip

    @property
    def front(self) -> Front:
        """The front so far, by the select part of validation."""
        metric, trials = self.shop.task.metric, tuple(self.trials)
        if self._front is None or self._front.trials != trials:
            self._front = Front(trials, metric.maximize, metric.points, objectives=self.objectives)
        return self._front

    @property
    def elapsed_s(self) -> float:
        """Wall-clock of this and earlier sessions."""
        return self.spent_s + time.perf_counter() - self.started

    @property
    def trials_file(self) -> Path:
        """Where results are kept."""
        return self.shop.root / "trials.jsonl"

    def run(self) -> str:
        """Search, then grade the finalists, or one stage alone; returns why it stopped."""
        begun, reason = time.perf_counter(), "what there is to grade is graded"
        if self.only is None:
            self.announce("search")
            self.evaluate_references()
        if self.only != "finalists":
            proposer = self.proposer()
            self._begin()
            reason = self._search(proposer) if self.only != "losses" else "the losses are measured"
            values = proposer.values if isinstance(proposer, Controller) else None
            found = found_by(self.space, self.trials, self.shop.task.metric.maximize, values)
            keep_found(found, self.shop.root, self.watcher.say)
        if self.only in (None, "finalists"):
            self.announce("finalists")
            self.grading.run(alone=self.only is not None)
        self._tell(self.stages.end(self.elapsed_s, self.front.hypervolume()))
        self.search_s += time.perf_counter() - begun
        return reason

    def proposer(self) -> Proposer:
        """Who says what is evaluated, by the space's strategy."""
        assert self.probe is not None
        if self.space.rules.strategy == "solve":
            begun, left_s = time.perf_counter(), self.budget_s - self.elapsed_s
            made = make_solver(
                self.shop, self.space, self.probe, self.budgets, self.trials, left_s=left_s, say=self.watcher.say,
                detail=self.detail,
            )  # fmt: skip
            self.worked_s += time.perf_counter() - begun
            made.warm = [plan for plan in self.warm if plan.distill is None and plan.learn is None]
            if len(made.warm) < len(self.warm):
                self.watcher.say(f"warm start: {len(self.warm) - len(made.warm)} left out, which were trained")
            return made
        staged = self.space.rules.strategy == "staged"
        controller = Controller(
            self.shop.root / "study.journal",
            drawn_from(self.space.untrained()) if staged else self.space,
            self.shop.task.metric.maximize,
            self._violations,
            self.sampler,
            self.seed,
            [trial for trial in self.trials if trial.rung == 0],
            self._runner.workers,
            self.objectives,
        )
        if staged:
            found = make_staged(
                self.shop, self.space, self.probe, self.budgets, self.trials, controller, self._clock(),
                seed=self.seed, teller=Teller(self.watcher.say, self.announce, self.detail, self._begin, self._worked),
                objectives=self.objectives,
            )  # fmt: skip
            found.warm, found.only = self.warm, self.only
            return found
        for values in offered(self.warm, self.space, self.watcher.say):
            controller.enqueue(values, "warm-start")
        for origin, values in seeds(self.space, self.probe):
            controller.enqueue(values, origin)
        return controller

    def _clock(self) -> Clock:
        """Where the search stands; it began after the references, be it in an earlier session."""
        first = next((place for place, trial in enumerate(self.trials) if trial.origin not in REFERENCES), None)
        begun_s = self.elapsed_s if first is None else self.trials[first - 1].finished_s if first else 0.0
        begun_count = len(self.trials) if first is None else first
        clock = Clock(
            lambda: self.elapsed_s, begun_s, self.budget_s,
            lambda: len(self.trials) + self.under_way, begun_count, self.max_trials,
            lambda: self.stages.stagnates,
        )  # fmt: skip
        if self.only is None:
            return clock
        # Losses take their share of the clock's time: alone they have all of it.
        return clock.anew(clock.left_s / (LOSS_SHARE if self.only == "losses" else 1.0))

    def _search(self, proposer: Proposer) -> str:
        """Keep as many candidates under way as the runner takes, until there is no more to propose, or no time."""
        while True:
            reason = ""
            while not reason and self.under_way < self._runner.workers:
                proposal, reason = self._next(proposer)
                if proposal is not None:
                    self._runner.submit(proposal)
                    self.under_way += 1
            if not self.under_way:
                return reason
            trial = self._finished()
            self.under_way -= 1
            proposer.tell(trial.proposal, trial)

    def _next(self, proposer: Proposer) -> tuple[Proposal | None, str]:
        """What to begin next, or why nothing is begun now."""
        if self.max_trials is not None and len(self.trials) + self.under_way >= self.max_trials:
            return None, f"{self.max_trials} candidates were allowed"
        if self.stages.stagnates and self.space.rules.strategy != "staged":
            return None, self.stages.stagnation
        finals_s = 0.0 if self.only else self.grading.needed_s()
        ends_s = self.budget_s - finals_s - self.under_way * mean_seconds(self.front.measured, "measure")
        left_s = ends_s - self.elapsed_s
        proposal = proposer.ask(left_s) if left_s > 0 else None
        if proposal is None:
            if isinstance(proposer, Staged) and proposer.stagnated:
                return None, self.stages.stagnation
            late = ends_s - self.elapsed_s < 2 * typical_seconds(self.trials)
            return None, "the time budget is spent" if late else EXHAUSTED[self.space.rules.strategy]
        return proposal, ""

    @property
    def _runner(self) -> Runner:
        if self.runner is None:
            self.runner = InProcess(self.shop)
        return self.runner

    def evaluate_references(self) -> None:
        """What every figure is read against is evaluated first, whatever the space may propose; dense before all."""
        done = {trial.fingerprint for trial in self.front.measured}  # one that failed is tried again
        for origin, plan in self.references:
            if plan.fingerprint in done:
                continue
            self._runner.submit(Proposal(NO_PROPOSAL, plan, origin))
            trial = self._finished()
            if origin == "dense" and trial.state == "FAILED":
                raise AutocompressError(f"the dense model itself cannot be evaluated: {trial.error}")

    def _finished(self) -> Trial:
        """Wait for the next candidate, and keep what became of it."""
        begun = time.perf_counter()
        proposal, trial = self._runner.wait()
        self.worked_s += time.perf_counter() - begun
        return self.conclude(proposal, trial)

    def conclude(self, proposal: Proposal, trial: Trial) -> Trial:
        """Judge and keep the evaluation of a proposal; returns the trial as it is kept."""
        number = max((known.number for known in self.trials), default=-1) + 1
        trial = trial.replace(
            number=number, origin=proposal.origin, proposal=proposal.number, finished_s=self.elapsed_s
        )
        trial = self._judge(trial)
        self._record(trial)
        self.stages.candidate(self.front.hypervolume())
        self.watcher.candidate(trial, self.front)
        self.announce(self.stage)
        return trial

    def _record(self, trial: Trial) -> None:
        """Keep a trial: on disk first; a later version of the same trial takes the earlier one's place."""
        append_line(self.trials_file, trial.to_json())
        self._bare.discard(trial.fingerprint)
        for place, known in enumerate(self.trials):
            if known.number == trial.number:
                self.trials[place] = trial
                break
        else:
            self.trials.append(trial)
        self._drop_dominated_weights()
        self.saved(self.front)

    def _violations(self, trial: Trial) -> dict[str, float]:
        return self.budgets.violations(trial, self._quality_dense(trial), self.shop.task.metric.maximize)

    def _quality_dense(self, trial: Trial, part: Part = "select") -> float:
        """What a measured trial is held against: dense, or itself as long as it is the first."""
        quality = (self.front.dense or trial).quality_on(part)
        assert quality is not None
        return quality

    def _judge(self, trial: Trial, part: Part = "select") -> Trial:
        """The trial as within or over the budgets, by a part of validation; over says what it lacks."""
        if not trial.measured or not self.budgets:
            return trial
        dense, maximize = self._quality_dense(trial, part), self.shop.task.metric.maximize
        if fits(trial, self.budgets, dense, maximize, part):
            return trial.replace(state="DONE", error="")
        return trial.replace(state="INFEASIBLE", error="; ".join(self.budgets.lacks(trial, dense, maximize, part)))

    def _drop_dominated_weights(self) -> None:
        """Float weights go when another candidate is clearly better in both: the plan can make them again.

        Those of what may yet be graded stay: the best by quality were lucky, and others may come before them.
        """
        keep = {t.fingerprint for t in (*self.front.references, *self.front.promising)}
        for trial in self.front.measured:
            if trial.fingerprint in keep or trial.fingerprint in self._bare:
                continue
            folder = self.shop.artifact_folder(trial.plan, trial.rung)
            weights = folder / "weights.safetensors"
            if not weights.is_file():
                self._bare.add(trial.fingerprint)
            elif self.front.clearly_dominated(trial):
                weights.unlink()
                (folder / INTEGERS).unlink(missing_ok=True)

    def _keep_graded(self, trial: Trial, seconds: float) -> None:
        self.worked_s += seconds
        self._record(self._judge(trial, "confirm"))
        self.stages.candidate(self.front.hypervolume())
        self.announce("finalists")

    def detail(self, text: str) -> None:
        """Tell the watcher what is being done within the stage."""
        self.announce(self.stage, text)

    def announce(self, stage: str, detail: str = "") -> None:
        """Tell the watcher where the search stands."""
        if stage != self.stage:
            self.stage = stage
            self._tell(self.stages.enter(stage, self.elapsed_s, self.front.hypervolume()))
        failed = sum(t.state == "FAILED" for t in self.trials)
        self.watcher.update(
            Status(
                stage,
                len(self.trials),
                failed,
                self.elapsed_s,
                self.budget_s,
                self.front.hypervolume(),
                best_words(self.front, self.budgets, self.shop.task.metric),
                detail,
            )
        )

    def _worked(self, seconds: float) -> None:
        self.worked_s += seconds

    def _begin(self) -> None:
        """Something new is tried: whether the search stagnates shows anew."""
        self.stages.begin(self.front.hypervolume())

    def _tell(self, ended: Stage | None) -> None:
        """What a stage took and found."""
        if ended is not None:
            self.watcher.say(str(ended))
