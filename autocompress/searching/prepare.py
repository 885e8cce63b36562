"""What a staged search knows before its first proposal: losses of single choices, seconds of plans, the program."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from autocompress.budgets import Budgets
from autocompress.found import LOSSES
from autocompress.front import fits
from autocompress.layers import LayerTable
from autocompress.objectives import USUAL, Objective, Objectives, amount
from autocompress.plan import Plan, Precision
from autocompress.records import Origin, Trial, write_json
from autocompress.searching.amounts import Resource
from autocompress.searching.atoms import Atoms, SingleLosses
from autocompress.searching.controller import Controller
from autocompress.searching.costs import recorded_seconds, weight_bytes
from autocompress.searching.findings import losses_of
from autocompress.searching.knapsack import Knapsack
from autocompress.searching.mixed import MARGIN, limits_of
from autocompress.searching.parts import parts_of
from autocompress.searching.probe import Probe
from autocompress.searching.seen import Clock, Judge, Teller
from autocompress.searching.staged import Staged
from autocompress.searching.work import table_model, work_model
from autocompress.space import SearchSpace, Values
from autocompress.workshop import Workshop

#: Share of the time that is left which measuring losses may take.
LOSS_SHARE = 0.12

#: Training samples that predictions are compared on.
SAMPLES = 128


def make_staged(
    shop: Workshop,
    space: SearchSpace,
    probe: Probe,
    budgets: Budgets,
    trials: Sequence[Trial],
    controller: Controller,
    clock: Clock,
    *,
    seed: int,
    teller: Teller,
    objectives: Objectives = USUAL,
) -> Staged:
    """Measure what single choices lose, and return who proposes.

    Args:
        shop: of the run.
        space: with its recovery.
        probe: of the run.
        budgets: asked by the user; what they say of latency, size and memory limits the program, and all of them say
            which trials are looked at.
        trials: finished evaluations.
        controller: of what refinements draw from `space.untrained()`.
        clock: of the search.
        seed: of all that is drawn.
        teller: is told how far it is, and what was found.
        objectives: by which candidates are compared.
    """
    untrained = space.untrained()
    knapsack, look = None, None
    if untrained.structure:
        teller.stage("losses")
        parts = parts_of(untrained)
        single = SingleLosses(shop.bank, untrained, parts, SAMPLES, teller.detail)

        def kept(measure: Callable[[], Atoms]) -> Atoms:
            begun = time.perf_counter()
            atoms = measure()
            write_json(shop.root / LOSSES, [loss.to_json() for loss in losses_of(untrained, parts, atoms)])
            teller.worked(time.perf_counter() - begun)
            return atoms

        atoms = kept(lambda: single.measure(LOSS_SHARE * clock.left_s))
        look = lambda wanted, limit_s: kept(lambda: single.look(wanted, limit_s))  # noqa: E731
        teller.say(f"losses of single choices: {atoms.measured} of {atoms.count} measured, the others estimated")
        ratios = {fact.precision: fact.ratio for fact in probe.precisions if fact.ratio is not None}
        recorded = recorded_seconds(shop.bench)
        work = table_model(recorded) if recorded else work_model(shop.table, probe.dense_latency_s, ratios)
        limits = limits_of(budgets, probe, space.rules.solve, shop.table)
        resources, more = resources_of(budgets, objectives, trials, shop.table)
        knapsack = Knapsack(
            untrained, parts, atoms, work, {**limits, **more}, probe.dense_latency_s, resources,
            along=[name for name in objectives.more if name in resources],
        )  # fmt: skip

    judge = judge_of(budgets, objectives, shop.task.metric.maximize, bool(space.steps))
    return Staged(
        space, knapsack, controller, judge, clock,
        corners=list(corners(untrained, probe)), seed=seed, trials=trials, teller=teller, look=look,
    )  # fmt: skip


def judge_of(budgets: Budgets, objectives: Objectives, maximize: bool, recovers: bool) -> Judge:
    """Who says which trials are fast and small enough; what they lose is told by the objectives' own allowance."""
    speed = replace(budgets, max_drop=None)
    return Judge(
        maximize, lambda trial: fits(trial, speed, trial.quality or 0.0, maximize), objectives, recovers,
        fastest=not (recovers or objectives.more) and budgets.asks_fastest,
    )  # fmt: skip


def resources_of(
    budgets: Budgets, objectives: Objectives, trials: Sequence[Trial], table: LayerTable
) -> tuple[dict[str, Resource], dict[str, float]]:
    """What the program is to know of beside seconds, and its limits, a little under what is asked.

    Estimates: of the dense model's measured bytes, in the file or in memory, a plan saves what its layers' weights
    save. The knapsack corrects that by whole candidates; nothing of it is ever shown as measured.
    """
    dense = next((trial for trial in trials if trial.plan == Plan() and trial.measured), None)
    asked: dict[Objective, int | None] = {"size": budgets.max_size_bytes, "memory": budgets.max_memory_bytes}
    resources: dict[str, Resource] = {}
    limits: dict[str, float] = {}
    for name, most in asked.items():
        whole = amount(dense, name) if dense else None
        if whole is not None and (most is not None or name in objectives.names):
            resources[name] = _less_than_dense(whole, table)
            limits.update({} if most is None else {name: most * (1 - MARGIN)})
    return resources, limits


def _less_than_dense(whole: float, table: LayerTable) -> Resource:
    beside = whole - weight_bytes(Plan(), table)
    return lambda plan: beside + weight_bytes(plan, table)


def corners(space: SearchSpace, probe: Probe) -> Iterator[tuple[Origin, Values]]:
    """Uniform levels of everything in the fastest precision, middle ones first, and blocks dropped by depth.

    Beside the middle of structure its low ranks, in fp32 and in the fastest precision: where layers are narrow, the one
    may pay and the other not. Last the recipes, and each level of zeros: the program leaves both alone.
    """
    best = probe.fastest_precision
    rules, blocks = space.rules, space.table.blocks
    shares = sorted({*rules.groups.heads, *rules.groups.neurons, *rules.groups.channels} - {1.0}, reverse=True)
    prunable = any(variable.name.startswith("keep:") for variable in space.structure)
    found: list[tuple[Origin, Values]] = []
    for share in shares if prunable else ():
        found.append(("uniform", space.uniform(keep=share, precision=best)))
    ranks = sorted({r for rule in rules.layers for r in rule.rank} - {1.0}, reverse=True)
    if not prunable:
        found += [("uniform", space.uniform(rank=rank, precision=best)) for rank in ranks]
    if rules.blocks.remove and len(blocks) > 1:
        found += [
            ("seed", space.uniform(precision=best, removed=removed))
            for removed in (blocks[(len(blocks) + 1) // 2 :], blocks[1::2])
        ]
    middle = len(found) // 2
    ordered = sorted(found, key=lambda item: abs(found.index(item) - middle))
    yield from ordered[:1]
    if shares and prunable and ranks:
        share, rank = shares[len(shares) // 2], ranks[len(ranks) // 2]
        for precision in dict.fromkeys(("fp32", best)):
            yield "uniform", space.uniform(keep=share, precision=precision, rank=rank)
    yield from ordered[1:]
    for recipe in range(1, len(rules.learn)):
        yield "seed", {**space.uniform(precision=best), "learn": recipe}
    yield from (("seed", values) for values in _zeros(space, best))


def _zeros(space: SearchSpace, best: Precision) -> Iterator[Values]:
    """Every level of zeros: over all layers together, and in each layer by itself.

    In the fastest precision; on a GPU in half as well, whose kernels skip two zeros of four.
    """
    spread = [variable for variable in space.structure if variable.name.partition(":")[0] == "sparsity"]
    offered = {level for variable in space.structure for level in variable.levels}
    halves: tuple[Precision, ...] = ("fp16",) if space.profile.device == "cuda" and "fp16" in offered else ()
    together = [variable for variable in spread if variable.name == "sparsity:all layers"]
    for variables in (together, [variable for variable in spread if variable not in together]):
        for level in range(1, max((len(variable.levels) for variable in variables), default=0)):
            for precision in dict.fromkeys((best, *halves)):
                chosen = {v.name: min(level, len(v.levels) - 1) for v in variables}
                yield {**space.uniform(precision=precision), **chosen}
