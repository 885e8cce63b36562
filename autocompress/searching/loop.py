"""The loop of a search: references, then what the strategy proposes until time or trials run out; then the finalists.

Who proposes is the strategy's affair: `staged`, `joint` (seeds, then what the sampler says) or `solve`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from autocompress.budgets import Budgets, Drop
from autocompress.errors import AutocompressError, StorageError
from autocompress.export.folder import INTEGERS
from autocompress.front import Front, fits
from autocompress.pipeline import measure_again, score_artifact
from autocompress.plan import Plan, Precision
from autocompress.records import Origin, Part, Trial, append_line
from autocompress.searching.controller import Controller, Proposal, Sampler, typical_seconds
from autocompress.searching.findings import found_by, keep_found
from autocompress.searching.mixed import make_solver
from autocompress.searching.prepare import make_staged
from autocompress.searching.probe import Probe
from autocompress.searching.runner import InProcess, Runner
from autocompress.searching.seen import Clock, Teller
from autocompress.searching.status import Status, Watcher
from autocompress.space import SearchSpace, Values
from autocompress.workshop import Workshop

#: Precisions of a uniform int8 reference.
INT8: tuple[Precision, ...] = ("int8", "int8-dynamic")

#: Stands where a trial answers no proposal of the controller.
NO_PROPOSAL = -1

#: Uniform levels that are also tried without recovery: light ones may need none.
UNRECOVERED = 2

#: Share of the time budget that the finalists may take at most.
FINAL_SHARE = 0.25

#: Why a search ends whose strategy has nothing more to propose.
EXHAUSTED = {
    "staged": "every candidate that promised something is evaluated",
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
        probe, references: set before `run`; see `references` below.
        runner: evaluates; one after another in this process by default.
        saved: called when the trials changed, to write the front to disk.
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
    runner: Runner | None = None
    started: float = field(default_factory=time.perf_counter)
    search_s: float = 0.0
    worked_s: float = 0.0
    stage: str = "probe"

    @property
    def front(self) -> Front:
        """The front so far, by the select part of validation."""
        metric = self.shop.task.metric
        return Front(tuple(self.trials), metric.maximize, metric.points)

    @property
    def elapsed_s(self) -> float:
        """Wall-clock of this and earlier sessions."""
        return self.spent_s + time.perf_counter() - self.started

    @property
    def trials_file(self) -> Path:
        """Where results are kept."""
        return self.shop.root / "trials.jsonl"

    def run(self) -> str:
        """Search, then grade the finalists; returns why it stopped."""
        begun = time.perf_counter()
        self.announce("search")
        self.evaluate_references()
        proposer = self.proposer()
        reason = self._search(proposer)
        values = proposer.values if isinstance(proposer, Controller) else None
        found = found_by(self.space, self.trials, self.shop.task.metric.maximize, values)
        keep_found(found, self.shop.root, self.watcher.say)
        self.announce("finalists")
        self._grade_finalists()
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
            return made
        staged = self.space.rules.strategy == "staged"
        controller = Controller(
            self.shop.root / "study.journal",
            self.space.untrained() if staged else self.space,
            self.shop.task.metric.maximize,
            self._violations,
            self.sampler,
            self.seed,
            [trial for trial in self.trials if trial.rung == 0],
            self._runner.workers,
        )
        if staged:
            begun, clock = time.perf_counter(), Clock(lambda: self.elapsed_s, self.elapsed_s, self.budget_s)
            found = make_staged(
                self.shop, self.space, self.probe, self.budgets, self.trials, controller, clock,
                seed=self.seed, teller=Teller(self.watcher.say, self.announce, self.detail),
            )  # fmt: skip
            self.worked_s += time.perf_counter() - begun
            return found
        for origin, values in seeds(self.space, self.probe):
            controller.enqueue(values, origin)
        return controller

    def _search(self, proposer: Proposer) -> str:
        """Keep as many candidates under way as the runner takes, until there is no more to propose, or no time."""
        under_way = 0
        while True:
            reason = ""
            while not reason and under_way < self._runner.workers:
                proposal, reason = self._next(proposer, under_way)
                if proposal is not None:
                    self._runner.submit(proposal)
                    under_way += 1
            if not under_way:
                return reason
            trial = self._finished()
            under_way -= 1
            proposer.tell(trial.proposal, trial)

    def _next(self, proposer: Proposer, under_way: int) -> tuple[Proposal | None, str]:
        """What to begin next, or why nothing is begun now."""
        if self.max_trials is not None and len(self.trials) + under_way >= self.max_trials:
            return None, f"{self.max_trials} candidates were allowed"
        left_s = self.budget_s - self.elapsed_s - self._final_seconds() - under_way * self._mean_seconds("measure")
        proposal = proposer.ask(left_s) if left_s > 0 else None
        if proposal is None:
            late = left_s < 2 * typical_seconds(self.trials)
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
        self.watcher.candidate(trial, self.front)
        self.announce(self.stage)
        return trial

    def _record(self, trial: Trial) -> None:
        """Keep a trial: on disk first; a later version of the same trial takes the earlier one's place."""
        append_line(self.trials_file, trial.to_json())
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
        """Float weights go when another candidate is clearly better in both: the plan can make them again."""
        keep = {t.fingerprint for t in self.front.references}
        for trial in self.front.measured:
            folder = self.shop.artifact_folder(trial.plan, trial.rung)
            weights = folder / "weights.safetensors"
            if trial.fingerprint not in keep and weights.is_file() and self.front.clearly_dominated(trial):
                weights.unlink()
                (folder / INTEGERS).unlink(missing_ok=True)

    def _final_seconds(self) -> float:
        """Seconds that the finalists will take, judged by the candidates so far."""
        done = [t for t in self.trials if t.measured]
        if not done:
            return 0.0
        measure, score = self._mean_seconds("measure"), self._mean_seconds("score")
        share = len(self.shop.task.test) / len(self.shop.task.validation)
        finals = (len(self.front.points) + 2) * (2 * measure + share * score + 1.0)
        return min(finals, FINAL_SHARE * self.budget_s)

    def _mean_seconds(self, stage: str) -> float:
        """Mean seconds that a stage took in the candidates so far; 0 for none."""
        done = [t for t in self.trials if t.measured]
        return sum(t.seconds.get(stage, 0.0) for t in done) / max(len(done), 1)

    def _grade_finalists(self) -> None:
        """Report-tier latency in fresh processes, and the test split once, for the front and the references.

        From then on a finalist is held against the budgets by the confirm part of validation.
        """
        graded: set[str] = set()
        while True:
            waiting = [t for t in (*self.front.references, *self.front.points) if t.fingerprint not in graded]
            if not waiting:
                return
            trial = waiting[0]
            graded.add(trial.fingerprint)
            if trial.graded:
                continue
            assert trial.artifact is not None
            begun = time.perf_counter()
            try:
                latency = measure_again(trial, self.shop)
                test = score_artifact(trial.artifact, self.shop, self.shop.task.test)
            except StorageError:
                raise
            except Exception as fault:  # what the search measured stays; the next run tries again
                self.watcher.say(f"final grading of {trial.fingerprint} failed: {type(fault).__name__}: {fault}")
                continue
            self.worked_s += time.perf_counter() - begun
            self._record(self._judge(trial.replace(latency=latency, quality_test=test.value), "confirm"))
            self.announce("finalists")

    def detail(self, text: str) -> None:
        """Tell the watcher what is being done within the stage."""
        self.announce(self.stage, text)

    def announce(self, stage: str, detail: str = "") -> None:
        """Tell the watcher where the search stands."""
        self.stage = stage
        failed = sum(t.state == "FAILED" for t in self.trials)
        self.watcher.update(
            Status(
                stage,
                len(self.trials),
                failed,
                self.elapsed_s,
                self.budget_s,
                self.front.hypervolume(),
                self._best_words(),
                detail,
            )
        )

    def _best_words(self) -> str:
        points = [t for t in self.front.points if t.latency]
        if not points:
            return "nothing within the budgets yet"
        by_speed = not self.budgets or self.budgets.max_drop is not None
        within = [t for t in points if by_speed is False or (self.front.drop(t) or 0.0) <= self._drop_limit()]
        best = within[0] if by_speed and within else max(points, key=self._goodness)
        assert best.latency is not None
        return f"{1 / best.latency.ratio_best_dense:.2f}x at {self.shop.task.metric.name} {best.quality:.4g}"

    def _goodness(self, trial: Trial) -> float:
        quality = trial.quality or 0.0
        return quality if self.shop.task.metric.maximize else -quality

    def _drop_limit(self) -> float:
        """Drop in the metric's unit up to which speed decides: what is asked, else a point, or 1 % of a raw metric."""
        dense = self.front.dense
        if dense is None or dense.quality is None:
            return 0.01
        drop = self.budgets.max_drop or Drop(0.01, relative=not self.shop.task.metric.fraction)
        return drop.amount * abs(dense.quality) if drop.relative else drop.amount


def references(space: SearchSpace, probe: Probe) -> tuple[tuple[Origin, Plan], ...]:
    """Dense, and every layer in int8: in the kinds that the search goes on with, else in the fastest one measured.

    `space` is the one before the probe dropped anything.
    """
    measured = [f for f in probe.precisions if f.precision in INT8 and f.ratio is not None]
    facts = [f for f in measured if f.kept] or sorted(measured, key=lambda f: f.ratio or 0.0)[:1]
    uniform = [space.decode(space.uniform(precision=fact.precision)) for fact in facts]
    return (("dense", Plan()), *(("uniform-int8", Plan(layers=plan.layers)) for plan in uniform))


def seeds(space: SearchSpace, probe: Probe) -> Iterator[tuple[Origin, Values]]:
    """What the controller proposes first: dense, uniform int8, uniform levels, and halves of the blocks removed.

    A space that chooses nothing but how to teach starts with no recovery, its default one, and one with the least λ.
    """
    best: Precision = probe.fastest_precision
    if space.decode(space.uniform()) == Plan():
        yield "dense", space.uniform()
    for precision in INT8:
        if precision not in probe.dropped and space.uniform(precision=precision) != space.uniform():
            yield "uniform-int8", space.uniform(precision=precision)
    rules = space.rules
    shares = _shares(space)
    blocks = space.table.blocks
    for place, share in enumerate(shares):
        if place < UNRECOVERED:
            yield "uniform", space.uniform(keep=share, precision=best)
        yield "uniform", space.uniform(keep=share, precision=best, recover=True)
    if rules.blocks.remove and len(blocks) > 1:
        for removed in (blocks[(len(blocks) + 1) // 2 :], blocks[1::2]):
            yield "seed", space.uniform(precision=best, removed=removed, recover=True)
            for share in shares[1::2]:
                yield "seed", space.uniform(keep=share, precision=best, removed=removed, recover=True)
    if not shares:
        yield from _other_seeds(space, best)


def _shares(space: SearchSpace) -> list[float]:
    """Levels of all structures but the hidden width, full ones left out, the largest first."""
    names = {f"keep:{group.name}" for group in space.table.groups if not group.removable and group.kind != "hidden"}
    levels = {float(level) for v in space.variables if v.name in names for level in v.levels}
    return sorted(levels - {1.0}, reverse=True)


def _other_seeds(space: SearchSpace, best: Precision) -> Iterator[tuple[Origin, Values]]:
    """Uniform ranks, recipes, and ways to teach, of a space without structures to choose."""
    rules = space.rules
    for rank in sorted({r for rule in rules.layers for r in rule.rank} - {1.0}, reverse=True):
        yield "uniform", space.uniform(rank=rank, precision=best, recover=True)
    for number in range(1, len(rules.learn)):
        yield "uniform", {**space.uniform(precision=best, recover=True), "learn": number}
    if not space.structure:
        taught = space.uniform(recover=True)
        least = {v.name: v.low for v in space.variables if v.name == "soft_weight"}
        yield from (("uniform", space.uniform()), ("uniform", taught), ("seed", {**taught, **least}))
