"""The search as Ray Tune sees it: a trainable that evaluates one candidate, and a searcher over the same controller.

One actor per run owns the device and measures. With `ray_runner` the only place that knows Ray.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.search import Searcher
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from autocompress.budgets import Budgets
from autocompress.devices import open_bench
from autocompress.errors import AutocompressError, ConfigError
from autocompress.measure.latency import Setting
from autocompress.pipeline import measured, settle
from autocompress.plan import Plan, describe, plan_from_json
from autocompress.records import Trial, write_json
from autocompress.searching.controller import Controller, Proposal
from autocompress.searching.kit import INPUTS, Brought, Job, Kit, job_of, work, write_files
from autocompress.searching.loop import Loop
from autocompress.searching.rest import all_at_rest

Trainable = Callable[[dict[str, Any]], Any]


class CandidateError(AutocompressError):
    """A candidate came to nothing; Tune shows why."""


class Clerk:
    """Owns the device of a run: measures one candidate at a time, with the run's work on its machine at rest.

    Args:
        kit: of the run.
        dense: the dense file.
        best_dense: as the probe found it.
        memory: whether peak memory is measured too.
    """

    def __init__(self, kit: Kit, dense: Path, best_dense: Setting, memory: bool) -> None:
        self._root, self._resting = Path(kit.root), Path(kit.resting)
        self._bench = open_bench(kit.profile, self._root / INPUTS, dense, kit.table, best_dense, memory=memory)
        self._trials: dict[str, Trial] = {}

    def job(self, plan: Plan, rung: int) -> Job:
        """A candidate, with what a machine without the run folder cannot make itself."""
        return job_of(plan, rung, self._root)

    def measure(self, brought: Brought) -> Trial:
        """Keep what was brought, and time it."""
        write_files(self._root, brought.files)
        with all_at_rest(self._resting):
            trial = measured(brought.made, self._root, self._bench)
        self._trials[trial.fingerprint] = trial
        return trial

    def trial(self, fingerprint: str) -> Trial | None:
        """What was measured of a plan, or why it was not."""
        return self._trials.pop(fingerprint, None)


@dataclass(frozen=True)
class Judge:
    """What turns a trial into Tune's metrics.

    Attributes:
        budgets: that were asked for.
        quality_dense: of the dense model.
        maximize: whether more quality is better.
    """

    budgets: Budgets
    quality_dense: float
    maximize: bool

    def metrics(self, trial: Trial) -> dict[str, float]:
        """Figures of a measured trial; `over_NAME` is how far it is over a budget, 0 or less within."""
        assert trial.latency is not None
        assert trial.quality is not None
        assert trial.artifact is not None
        over = self.budgets.violations(trial, self.quality_dense, self.maximize)
        peak = trial.latency.peak_memory_bytes
        return {
            "quality": trial.quality,
            "latency_s": trial.latency.latency_s,
            "latency_ratio": trial.latency.ratio,
            "latency_ratio_best_dense": trial.latency.ratio_best_dense,
            "size_bytes": trial.artifact.size_bytes,
            **({} if peak is None else {"peak_memory_bytes": peak}),
            **{f"over_{name}": value for name, value in over.items()},
            "feasible": float(all(value <= 0 for value in over.values())),
        }


def hire(kit: Kit, dense: Path, best_dense: Setting, memory: bool = False) -> Any:
    """The clerk of a run, as an actor on this node; made before Tune makes placement groups that would capture it."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    remote: Any = ray.remote(Clerk)
    return remote.options(num_cpus=0, scheduling_strategy=here).remote(kit, dense, best_dense, memory)


def make_trainable(kit: Kit, clerk: Any, judge: Judge) -> Trainable:
    """Tune's trainable: evaluates the plan of its config, on `kit.threads` cores."""
    found: Trainable = tune.with_resources(
        tune.with_parameters(_train, kit=kit, clerk=clerk, judge=judge), {"cpu": kit.threads}
    )
    return found


def _train(config: Mapping[str, Any], kit: Kit, clerk: Any, judge: Judge) -> dict[str, float]:
    plan = plan_from_json(json.loads(config["plan"]))
    brought = work(kit, ray.get(clerk.job.remote(plan, config["rung"])))
    trial: Trial = ray.get(clerk.measure.remote(brought))
    if trial.state == "FAILED":
        raise CandidateError(trial.error)
    return judge.metrics(trial)


#: Searchers of this process by run folder: what Tune restores finds its run here.
_live: dict[str, PlanSearcher] = {}


def retire(root: Path) -> None:
    """Let go of a run folder that this process made a searcher for."""
    if str(root) in _live:
        _live.pop(str(root)).claim.close()


def _find(root: str) -> PlanSearcher:
    if root not in _live:
        raise ConfigError(
            f"to go on with the Tune experiment of {root}, call autocompress.ray_tune with that `out` first"
        )
    return _live[root]


class PlanSearcher(Searcher):
    """Tune's searcher over a run's controller; every outcome is kept in the run folder, failures with their reason.

    What Tune is asked to optimize is its own affair: this one looks for the front of the run's objectives, within the
    budgets.

    Args:
        loop: judges and keeps trials.
        controller: proposes.
        clerk: who measures.
        resting: folder of this machine by which its work rests.
        claim: holds the run folder.
    """

    def __init__(self, loop: Loop, controller: Controller, clerk: Any, resting: Path, claim: ExitStack) -> None:
        super().__init__()
        self.claim = claim
        self._loop, self._controller, self._clerk, self._resting = loop, controller, clerk, resting
        self._under_way: dict[str, Proposal] = {}
        self._asked: set[int] = set()
        _live[str(loop.shop.root)] = self

    def __reduce__(self) -> tuple[Callable[[str], PlanSearcher], tuple[str]]:
        """Tune pickles searchers into its experiment's folder; the run's own folder holds all there is to keep."""
        return _find, (str(self._loop.shop.root),)

    def __deepcopy__(self, _memo: object) -> PlanSearcher:
        """There is one per run."""
        return self

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any) -> bool:
        """Take note of nothing: the space and what is looked for are the run's."""
        if config:
            raise ConfigError("tune.Tuner: the search space is autocompress's; leave param_space out")
        return True

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]
        """The next plan; None when it depends on those under way, "FINISHED" when there is none."""
        proposal = self._controller.ask()
        if proposal is None:
            return None if self._under_way else str(Searcher.FINISHED)
        if proposal.plan.learn:
            with all_at_rest(self._resting):
                settle(proposal.plan, self._loop.shop)
        self._under_way[trial_id] = proposal
        self._asked.add(proposal.number)
        plan = json.dumps(proposal.plan.to_json())
        return {"plan": plan, "rung": proposal.rung, "what": describe(proposal.plan, self._loop.shop.table)}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Keep the outcome, and tell the controller: figures and constraints, or that it failed."""
        proposal = self._under_way.pop(trial_id, None)
        if proposal is None:
            return
        found: Trial | None = ray.get(self._clerk.trial.remote(proposal.plan.fingerprint))
        if found is None:
            why = "its process died" if error else "Tune ended it before it was measured"
            what = describe(proposal.plan, self._loop.shop.table)
            found = Trial(0, proposal.plan, "FAILED", proposal.origin, rung=proposal.rung, error=why, what=what)
        trial = self._loop.conclude(proposal, found)
        if proposal.number in self._asked:
            self._controller.tell(proposal.number, trial)
        else:
            values = self._controller.asked(proposal.number)
            if values is not None:
                self._controller.add(values, trial)

    def save(self, checkpoint_path: str) -> None:
        """Write which proposals are under way; all else is in the run folder."""
        under_way = {
            trial: {"number": one.number, "plan": one.plan.to_json(), "origin": one.origin, "rung": one.rung}
            for trial, one in self._under_way.items()
        }
        write_json(Path(checkpoint_path), under_way)

    def restore(self, checkpoint_path: str) -> None:
        """Inverse of `save`, in this process or, after `autocompress.ray_tune` with the same folder, in another."""
        known = json.loads(Path(checkpoint_path).read_text())
        self._under_way = {
            trial: Proposal(**{**data, "plan": plan_from_json(data["plan"])}) for trial, data in known.items()
        }
        for proposal in self._under_way.values():  # which Tune evaluates again, whatever the journal would propose
            self._controller.expect(proposal.plan)
