"""The verb `search`: make a run folder or resume one, and search in it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from autocompress.budgets import parse_seconds
from autocompress.devices import open_bench
from autocompress.folder import claimed, has_results, settle
from autocompress.front import Front, front_entries
from autocompress.pipeline import build
from autocompress.plan import Plan
from autocompress.processors import cores
from autocompress.records import read_trials, write_json
from autocompress.rules import Strategy
from autocompress.run import Run, final_front
from autocompress.runtimes import model_file
from autocompress.searching.alone import check_stage, check_stage_name
from autocompress.searching.controller import Sampler
from autocompress.searching.loop import Loop
from autocompress.searching.mixed import dropped_precisions
from autocompress.searching.order import Order, check_positive, part_notes, query_notes, read_order
from autocompress.searching.probe import Probe, check_reachable, check_size_reachable, run_probe
from autocompress.searching.runner import Runner
from autocompress.searching.runners import check_runner, open_runner
from autocompress.searching.seeds import references
from autocompress.searching.shapes import SHARE, ShapeFact, dropped_there, probe_shapes, read_shapes
from autocompress.searching.stages import Stages, check_patience
from autocompress.searching.status import Silent, Watcher
from autocompress.searching.warm import prepared
from autocompress.space import SearchSpace, build_space
from autocompress.tasks.task import Task
from autocompress.workshop import Workshop, artifact_folder, open_workshop, write_workload


def search(
    task: Task,
    *,
    out: str | Path | None = None,
    space: str | Path | None = None,
    hardware: str | Path = "cpu",
    budget: str | float = "30m",
    max_latency: str | float | None = None,
    min_speedup: str | float | None = None,
    max_drop: str | None = None,
    max_size: str | int | None = None,
    max_memory: str | int | None = None,
    objectives: str | Sequence[str] | None = None,
    strategy: Strategy | None = None,
    sampler: Sampler = "auto",
    seed: int = 0,
    max_trials: int | None = None,
    patience: int | None = None,
    warm_start: str | Path | None = None,
    bank_limit: str | int | None = None,
    workers: int | None = None,
    ray: str | None = None,
    stage: str | None = None,
    watcher: Watcher | None = None,
    source: Mapping[str, Any] | None = None,
) -> Run:
    """Search for compressed models and return the run; the same call resumes it.

    Args:
        task: model, data and metric.
        out: the run folder, ``runs/TASK`` by default; made, or resumed when it holds the same experiment.
        space: a shipped search space or a .yaml path; by default the one that fits the model.
        hardware: a shipped profile or a .yaml path.
        budget: wall-clock, such as "30m", or seconds; a larger one continues a finished run.
        max_latency: such as "5ms": candidates over it are kept apart as infeasible.
        min_speedup: such as "2x", against the fastest dense fp32 setting.
        max_drop: such as "1pt" (absolute) or "1%" (relative).
        max_size: of the file, such as "5MB", or bytes.
        max_memory: of a process that loads the file and runs one query, such as "200MB", or bytes.
        objectives: by which candidates are compared, such as "latency,quality,size": latency and quality (the default),
            and size (of the file) or memory (peak) or both beside them.
        strategy: "staged" (solve, refine, then recover), "joint" (one Optuna study over everything), or "solve" (bits
            alone); by default what the space says.
        sampler: "auto" (multivariate TPE), "tpe", "nsga2", "nsga3", "gp" or "random".
        seed: of the sampler and of the recoveries.
        max_trials: candidates to evaluate at most.
        patience: stop once so many candidates (5 or more) of a stage made the front's hypervolume grow by less than
            0.1 %; a stage of "staged" that stagnates makes room for the next one. May differ when resuming.
        warm_start: folder of an earlier run on the same model, whose front is evaluated first; its profile, space and
            budgets may be other ones. May differ when resuming.
        bank_limit: disk that intermediate results may take, such as "2GB", or bytes; may differ when resuming.
        workers: processes that build, recover and score candidates, each with its share of the cores; they rest while
            one is timed. 1 by default: all in this process. May differ when resuming.
        ray: a Ray cluster that does so in their place: "host:port", "auto" (the one that runs here) or "local" (one is
            started); `workers` are then tasks at a time, by default one per node. Latencies are still taken here.
        stage: of a staged search, run this one alone in its folder, with what is there: "losses", "solve", "refine",
            "recover" or "finalists", which grades the front anew. `budget` is then the seconds for this stage, whatever
            was spent before.
        watcher: is told what happens.
        source: how the task was made, for `experiment.yaml`.

    Raises:
        ConfigError, SpaceError, ProfileError, ModelError: before any work, naming the setting.
        BudgetError: after the probe, when no candidate can meet the budgets.
        RunMismatchError: `out` holds another experiment; says what differs.
    """
    watcher = watcher or Silent()
    check_runner(workers, ray)
    seconds = budget if isinstance(budget, int | float) else parse_seconds(budget, "--budget")
    check_positive({"--budget": seconds, "--max-trials": max_trials})
    check_patience(patience)
    check_stage_name(stage)
    limits = Limits(seconds, max_trials, patience)
    order = read_order(
        task, out=out, space=space, hardware=hardware, max_latency=max_latency, min_speedup=min_speedup,
        max_drop=max_drop, max_size=max_size, max_memory=max_memory, objectives=objectives, strategy=strategy,
        sampler=sampler, seed=seed, warm_start=warm_start, bank_limit=bank_limit, source=source,
        more={
            "budget": str(budget) if isinstance(budget, str) else f"{budget:g}s",
            "max_trials": max_trials, "patience": patience, "workers": workers, "ray": ray,
        },
    )  # fmt: skip
    if stage is not None:
        check_stage(stage, order.root, order.space)
    for note in (*part_notes(task), *query_notes(task, order.profile)):
        watcher.say(note)
    with claimed(order.root):
        settle_folder(order)
        run = Run(order.root)
        state = run.state
        if stage is not None:
            limits = replace(limits, seconds=state.get("spent_s", 0.0) + seconds)
        elif state.get("finished") and _enough(state, limits):
            watcher.say(f"nothing left to do: {run.status()}")
            if not (order.root / "report.html").is_file():
                run.report()
            return run
        torch.set_num_threads(cores())
        with opened_shop(order) as shop, closing(open_runner(shop, workers, ray)) as runner:
            _search(order, shop, runner, limits, watcher, stage)
    run = Run(order.root)
    run.report()
    return run


@dataclass(frozen=True)
class Limits:
    """When a search stops: seconds in all sessions together, candidates at most, and candidates that add nothing."""

    seconds: float
    max_trials: int | None = None
    patience: int | None = None


@contextlib.contextmanager
def opened_shop(order: Order) -> Iterator[Workshop]:
    """The workshop of a run whose folder is settled, with the processes that measure for it."""
    dense_file = artifact_folder(order.root, Plan()) / model_file(order.profile.runtime)
    inputs, memory = order.root / "inputs.npz", order.needs_memory
    with closing(open_bench(order.profile, inputs, dense_file, order.table, memory=memory)) as bench:
        yield open_workshop(order.root, order.task, order.table, order.profile, bench, bank_limit=order.bank_limit)


def open_loop(order: Order, shop: Workshop, runner: Runner, limits: Limits, watcher: Watcher) -> Loop:
    """The loop of a new or resumed run, after the probe.

    Raises:
        BudgetError: no candidate can meet the budgets.
    """
    state, root = Run(order.root).state, order.root
    overhead = {key: state.get(key, 0.0) for key in ("search_s", "controller_s")}
    loop: Loop

    def save(front: Front) -> None:
        write_json(root / "front.json", front_entries(front))
        stages = loop.stages.to_json(loop.elapsed_s, front.hypervolume())
        write_json(root / "state.json", {"spent_s": loop.elapsed_s, **overhead, "stages": stages})

    loop = Loop(
        shop=shop,
        space=order.space,
        budgets=order.budgets,
        trials=read_trials(root / "trials.jsonl"),
        budget_s=limits.seconds,
        spent_s=float(state.get("spent_s", 0.0)),
        watcher=watcher,
        saved=save,
        sampler=order.asked["sampler"],
        seed=order.asked["seed"],
        max_trials=limits.max_trials,
        runner=runner,
        objectives=order.objectives,
        stages=Stages(state.get("stages", ()), limits.patience),
    )
    loop.announce("probe")
    # as the run began: a study's space must not move
    by_size = bool(Run(root).experiment["resolved"].get("by_size", order.objectives.more))
    loop.probe = _probe(shop, order.space, watcher, by_size)
    check_reachable(loop.probe, order.budgets, shop.profile.source)
    if not loop.trials:
        check_size_reachable(loop.probe, shop, order.space, order.budgets)
    loop.references = references(order.space, loop.probe)
    dropped = dropped_precisions(loop.probe, order.space.rules, by_size)
    shapes = _shapes(order, shop, loop.probe, SHARE * limits.seconds, watcher, not loop.trials and not by_size)
    there = dropped_there(shapes, shop.table)
    loop.space = build_space(order.space.rules, shop.table, shop.profile, dropped, loop.probe.learning_rate, there)
    broken = frozenset(fact.precision for fact in loop.probe.precisions if fact.ratio is None)
    loop.warm = prepared(order.warm, shop.table, shop.profile, broken, watcher.say)
    return loop


def _shapes(
    order: Order, shop: Workshop, probe: Probe, limit_s: float, watcher: Watcher, fresh: bool
) -> tuple[ShapeFact, ...]:
    """What each precision does on each layer shape; taken (`fresh`) before the first candidate or never.

    A study's space must not move. The integer program of `strategy: solve` times them itself; where bytes count, they
    are not asked for, since nothing would be dropped.
    """
    path = order.root / "kernels.json"
    if fresh and not path.is_file() and order.space.rules.strategy != "solve":
        return probe_shapes(shop, order.space, probe, path, limit_s, watcher.say)
    return read_shapes(path)


def _search(order: Order, shop: Workshop, runner: Runner, limits: Limits, watcher: Watcher, stage: str | None) -> None:
    before = Run(order.root).state
    loop = open_loop(order, shop, runner, limits, watcher)
    loop.only, count = stage, len(loop.trials)
    reason = loop.run()
    ends = {"finished": reason, "budget_s": limits.seconds, "max_trials": limits.max_trials,
            "patience": limits.patience}  # fmt: skip
    if stage not in (None, "finalists"):  # what it found is not graded: the run is no longer finished
        watcher.say(f"{stage}: {reason}")
        known = len(loop.trials) == count and "finished" in before
        ends = {key: before.get(key) for key in ends} if known else {}
    loop.saved(final_front(loop.front, order.root) if ends else loop.front)
    state = {
        "spent_s": loop.elapsed_s,
        "search_s": before.get("search_s", 0.0) + loop.search_s,
        "controller_s": before.get("controller_s", 0.0) + loop.search_s - loop.worked_s,
        "stages": loop.stages.to_json(loop.elapsed_s, loop.front.hypervolume()),
        **ends,
    }
    write_json(order.root / "state.json", state)


def _probe(shop: Workshop, space: SearchSpace, watcher: Watcher, by_size: bool = False) -> Probe:
    """The probe of this run, from its file or measured now; the dense artefact is made first."""
    if not shop.bench.dense.path.is_file():
        build(Plan(), shop)
    path = shop.root / "probe.json"
    if path.is_file():
        probe = Probe.from_json(json.loads(path.read_text()))
        shop.bench.best_dense = replace(probe.best_dense, device=shop.profile.device)
        return probe
    return run_probe(shop, space, path, watcher.say, by_size)


def _enough(state: Mapping[str, Any], limits: Limits) -> bool:
    """Whether a finished run has nothing more to do within these limits."""
    counts = ((state.get("max_trials"), limits.max_trials), (state.get("patience"), limits.patience))
    more = any(before is not None and (now is None or now > before) for before, now in counts)
    return limits.seconds <= state["budget_s"] and not more


def settle_folder(order: Order) -> None:
    """Write down a new experiment, or make sure that the folder holds this one; and its workload."""
    settle(order.root, order.asked, order.resolved, order.task, order.table)
    path = order.root / "inputs.npz"
    if not (path.is_file() and has_results(order.root)):  # what is timed later stands beside what was timed before
        write_workload(path, order.task, order.profile.workload)
