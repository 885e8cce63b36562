"""The verb `search`: make a run folder or resume one, and search in it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from autocompress.budgets import Budgets, parse_bytes, parse_seconds
from autocompress.devices import open_bench
from autocompress.errors import ConfigError
from autocompress.folder import claimed, settle
from autocompress.front import Front, front_entries
from autocompress.hardware import HardwareProfile, cores, load_profile
from autocompress.layers import LayerTable
from autocompress.objectives import Objectives, read_objectives
from autocompress.pipeline import build
from autocompress.plan import Plan
from autocompress.records import read_trials, write_json
from autocompress.rules import SpaceRules, Strategy, load_space
from autocompress.run import Run, final_front, make_budgets
from autocompress.runtimes import model_file
from autocompress.searching.alone import check_stage, check_stage_name
from autocompress.searching.controller import Sampler, check_sampler
from autocompress.searching.loop import Loop
from autocompress.searching.mixed import check_size, dropped_precisions
from autocompress.searching.probe import Probe, check_reachable, run_probe
from autocompress.searching.runner import Runner
from autocompress.searching.runners import check_runner, open_runner
from autocompress.searching.seeds import references
from autocompress.searching.shapes import SHARE, ShapeFact, dropped_there, probe_shapes, read_shapes
from autocompress.searching.stages import Stages, check_patience
from autocompress.searching.status import Silent, Watcher
from autocompress.searching.warm import prepared, read_warm_start
from autocompress.space import SearchSpace, build_space, default_space
from autocompress.survey import survey
from autocompress.tasks.causal_lm import query_tokens
from autocompress.tasks.task import MIN_DIVIDED, Task
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
    _check_positive({"--budget": seconds, "--max-trials": max_trials})
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
    for note in _part_notes(task):
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


@dataclass(frozen=True)
class Order:
    """A search as it was asked for: everything is resolved and fits together, and nothing is done yet.

    Attributes:
        task, profile, table, space, budgets: what is searched, where, and for what.
        root: the run folder.
        asked, resolved: as `experiment.yaml` tells them.
        objectives: by which candidates are compared.
        bank_limit: bytes.
        warm: the front of the earlier run that was named.
    """

    task: Task
    root: Path
    profile: HardwareProfile
    table: LayerTable
    space: SearchSpace
    budgets: Budgets
    asked: Mapping[str, Any]
    resolved: Mapping[str, Any]
    bank_limit: int | None
    objectives: Objectives
    warm: tuple[Plan, ...] = ()

    @property
    def needs_memory(self) -> bool:
        """Whether every candidate's peak memory has to be known."""
        return "memory" in self.objectives.names or self.budgets.max_memory_bytes is not None

    @property
    def by_size(self) -> bool:
        """Whether bytes are an objective, so that a precision may be worth having where it is slow."""
        return bool(self.objectives.more)


def read_order(
    task: Task,
    *,
    out: str | Path | None,
    space: str | Path | None,
    hardware: str | Path,
    max_latency: str | float | None,
    min_speedup: str | float | None,
    max_drop: str | None,
    max_size: str | int | None,
    max_memory: str | int | None,
    objectives: str | Sequence[str] | None,
    strategy: Strategy | None,
    sampler: Sampler,
    seed: int,
    warm_start: str | Path | None,
    bank_limit: str | int | None,
    source: Mapping[str, Any] | None,
    more: Mapping[str, Any],
) -> Order:
    """Check and resolve what `search` is asked for; see there. `more` goes into `experiment.yaml` as it is."""
    check_sampler(sampler, seed)
    limit = parse_bytes(bank_limit) if isinstance(bank_limit, str) else bank_limit
    _check_positive({"--bank-limit": limit})
    budgets = make_budgets(max_latency, min_speedup, max_drop, task.metric.points, max_size, max_memory)
    wanted = read_objectives(objectives)
    _check_direction(task)
    if task.student is not None:
        raise ConfigError("search compresses the task's model; a student of its own is for autocompress.compress")
    profile = load_profile(hardware)
    _check_memory(profile, wanted, budgets, max_memory)
    workload = task.workload_inputs(profile.workload.batch, query_tokens(profile.workload))
    table = survey(task.source, workload)
    rules = load_space(space or default_space(table), strategy)
    full_space = build_space(rules, table, profile)
    check_size(full_space)
    root = Path(out or f"runs/{task.name}")
    asked = {
        **(source or {"task": task.name}),
        "space": str(space or rules.name),
        "hardware": str(hardware),
        "max_latency": max_latency,
        "min_speedup": min_speedup,
        "max_drop": max_drop,
        "max_size": max_size,
        "max_memory": max_memory,
        "objectives": objectives if objectives is None or isinstance(objectives, str) else list(objectives),
        "strategy": strategy,
        "sampler": sampler,
        "seed": seed,
        "warm_start": None if warm_start is None else str(warm_start),
        "bank_limit": bank_limit,
        **more,
        "out": str(root),
    }
    resolved = {**_resolved(task, rules, profile, table, budgets), "objectives": list(wanted.names)}
    warm = () if warm_start is None else read_warm_start(warm_start, root, table, asked, resolved)
    return Order(task, root, profile, table, full_space, budgets, asked, resolved, limit, wanted, warm)


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
    first = not (root / "probe.json").is_file()
    loop.probe = _probe(shop, order.space, watcher)
    check_reachable(loop.probe, order.budgets)
    loop.references = references(order.space, loop.probe)
    dropped = dropped_precisions(loop.probe, order.space.rules, order.by_size)
    there = dropped_there(_shapes(order, shop, loop.probe, SHARE * limits.seconds, watcher, first), shop.table)
    loop.space = build_space(order.space.rules, shop.table, shop.profile, dropped, loop.probe.learning_rate, there)
    broken = frozenset(fact.precision for fact in loop.probe.precisions if fact.ratio is None)
    loop.warm = prepared(order.warm, shop.table, shop.profile, broken, watcher.say)
    return loop


def _shapes(
    order: Order, shop: Workshop, probe: Probe, limit_s: float, watcher: Watcher, first: bool
) -> tuple[ShapeFact, ...]:
    """What each precision does on each layer shape; taken with the probe or never, since a study's space must not move.

    The integer program of `strategy: solve` times them itself; where bytes are an objective, nothing would be dropped.
    """
    path = order.root / "kernels.json"
    if first and order.space.rules.strategy != "solve" and not order.by_size:
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


def _probe(shop: Workshop, space: SearchSpace, watcher: Watcher) -> Probe:
    """The probe of this run, from its file or measured now; the dense artefact is made first."""
    if not shop.bench.dense.path.is_file():
        build(Plan(), shop)
    path = shop.root / "probe.json"
    if path.is_file():
        probe = Probe.from_json(json.loads(path.read_text()))
        shop.bench.best_dense = probe.best_dense
        return probe
    return run_probe(shop, space, path, watcher.say)


def _enough(state: Mapping[str, Any], limits: Limits) -> bool:
    """Whether a finished run has nothing more to do within these limits."""
    counts = ((state.get("max_trials"), limits.max_trials), (state.get("patience"), limits.patience))
    more = any(before is not None and (now is None or now > before) for before, now in counts)
    return limits.seconds <= state["budget_s"] and not more


def _resolved(
    task: Task, rules: SpaceRules, profile: HardwareProfile, table: LayerTable, budgets: Budgets
) -> dict[str, Any]:
    return {
        "task": task.name,
        "identity": task.identity,
        "metric": task.metric.name,
        "maximize": task.metric.maximize,
        "points": task.metric.points,
        "samples": {"train": len(task.train), "validation": len(task.validation), "test": len(task.test)},
        "parts": {"select": len(task.parts.select), "confirm": len(task.parts.confirm)},
        "notes": [*task.notes, *_part_notes(task)],
        "inputs": list(task.input_names),
        "classes": list(task.classes),
        "snippet": asdict(task.snippet) if task.snippet else None,
        "params": table.total_params,
        "layers": len(table.layers),
        "hardware": profile.model_dump(mode="json"),
        "space": rules.model_dump(mode="json"),
        "budgets": list(budgets.sentences()),
    }


def _check_positive(numbers: Mapping[str, float | None]) -> None:
    for flag, number in numbers.items():
        if number is not None and number <= 0:
            raise ConfigError(f"{flag} must be above 0, but got {number:g}")


def _check_direction(task: Task) -> None:
    """Refuse a quality of which nobody knows whether more of it is better."""
    metric = task.metric
    if not isinstance(metric.maximize, bool):
        raise ConfigError(
            f"task {task.name!r}: its metric {metric.name!r} gives quality no direction: maximize is "
            f"{metric.maximize!r}, but must be True (more is better) or False (less is better)"
        )


def _check_memory(
    profile: HardwareProfile, objectives: Objectives, budgets: Budgets, max_memory: str | int | None
) -> None:
    """Refuse to look at memory where no candidate's is measured."""
    asked = []
    if "memory" in objectives.names:
        asked.append(f"--objectives {','.join(objectives.names)}")
    if budgets.max_memory_bytes is not None:
        asked.append(f"--max-memory {max_memory}")
    if not asked:
        return
    why = ""
    if profile.latencies != "measured":
        why = f"its latencies are {profile.latencies}, and no file is run on the device"
    elif profile.device != "cpu":
        why = f"what is measured is the processor's memory, not that of {profile.device}"
    if why:
        raise ConfigError(
            f"{' and '.join(asked)}: peak memory is not known on hardware profile {profile.name!r} ({why}); "
            "size stands for it there: --objectives latency,quality,size or --max-size"
        )


def _part_notes(task: Task) -> Iterator[str]:
    """What a user should know of how validation is divided."""
    if not task.parts.divided:
        yield (
            f"validation has {len(task.validation)} samples, which are too few to divide (under {MIN_DIVIDED}): the "
            "search and the front are both judged by all of them, so that the front's figures flatter"
        )


def settle_folder(order: Order) -> None:
    """Write down a new experiment, or make sure that the folder holds this one; and its workload."""
    settle(order.root, order.asked, order.resolved, order.task, order.table)
    write_workload(order.root / "inputs.npz", order.task, order.profile.workload)
