"""The searches: each runs an evaluator until the time is over, and gives its seconds of preparation.

Preparation is what staged, and whoever uses its program, does once before the first proposal: the bank's part in it and
the losses of single choices. Learning rates belong to the search: the probe of a staged one tries none.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
from searching.evaluator import LOSS_SAMPLES, Evaluator, Spent

from autocompress.budgets import Budgets
from autocompress.objectives import USUAL
from autocompress.pareto import nondominated
from autocompress.plan import Plan
from autocompress.records import Origin
from autocompress.searching.atoms import SingleLosses
from autocompress.searching.controller import Controller, typical_seconds
from autocompress.searching.knapsack import Knapsack
from autocompress.searching.mixed import MARGIN
from autocompress.searching.parts import parts_of
from autocompress.searching.prepare import LOSS_SHARE, corners, judge_of
from autocompress.searching.seen import Clock
from autocompress.searching.staged import Staged
from autocompress.searching.work import work_model
from autocompress.space import Values, Variable

#: What the probe finds of each precision, on all layers; every method may know it.
PRECISIONS = ("int8-dynamic", "int8", "int4-weights")

#: What the stages of the sequential pipeline choose, in its order.
STAGES = (("keep", "remove"), ("rank",), ("precision", "bits"))

#: Candidates that a stage of it starts from: as many as get so many evaluations each, within bounds.
EACH, CARRIED = 16, (4, 12)

#: Budgets of the program.
BUDGETS = 40

NOTHING_ASKED = Budgets()


def controller(
    evaluator: Evaluator, sampler: str, seed: int, space=None, name: str = "study", budgets: Budgets = NOTHING_ASKED
) -> Controller:
    maximize = evaluator.task.metric.maximize
    return Controller(
        evaluator.folder / f"{name}.journal",
        space or evaluator.space,
        maximize,
        lambda trial: budgets.violations(trial, evaluator.dense_quality, maximize),
        sampler,
        seed,
        tuple(evaluator.trials),
    )


def follow(evaluator: Evaluator, proposer, most: float = math.inf) -> None:
    """Evaluate what is proposed until the time is over, or does not suffice for one more, or there are so many."""
    with contextlib.suppress(Spent):
        while evaluator.left_s > 0 and len(evaluator.trials) < most:
            proposal = proposer.ask(evaluator.left_s)
            if proposal is None:
                return
            proposer.tell(proposal.number, evaluator(proposal.plan, proposal.origin, proposal.number, proposal.rung))


def dense_first(evaluator: Evaluator) -> None:
    evaluator(Plan(), "dense")


def ratios(evaluator: Evaluator) -> dict[str, float]:
    """Each precision on all layers, as the probe of a search times it."""
    space, found = evaluator.untrained, {}
    for precision in PRECISIONS:
        plan = space.decode(space.uniform(precision=precision))
        if plan != Plan():
            found[precision] = evaluator.latencies.seconds(plan, evaluator.table) / evaluator.dense_s
    return found


def fastest(evaluator: Evaluator) -> str:
    found = ratios(evaluator)
    return min(found, key=found.__getitem__)


def single_losses(evaluator: Evaluator) -> SingleLosses:
    space = evaluator.untrained
    return SingleLosses(
        evaluator.bank, space, parts_of(space), LOSS_SAMPLES, lambda _text: None, lambda: evaluator.clock
    )


def knapsack_of(evaluator: Evaluator, single: SingleLosses | None = None, budgets: Budgets = NOTHING_ASKED) -> Knapsack:
    space = evaluator.untrained
    atoms = (single or single_losses(evaluator)).measure(LOSS_SHARE * evaluator.left_s)
    work = work_model(evaluator.table, evaluator.dense_s, ratios(evaluator))
    speedup = budgets.min_speedup
    limits = {} if speedup is None else {"latency": evaluator.dense_s / speedup * (1 - MARGIN)}
    return Knapsack(space, parts_of(space), atoms, work, limits, evaluator.dense_s)


def depths(evaluator: Evaluator) -> list[tuple[str, ...]]:
    """Blocks that uniform levels remove: none, the last half, every second one."""
    blocks = evaluator.table.blocks
    return [(), blocks[(len(blocks) + 1) // 2 :], blocks[1::2]]


def shares(evaluator: Evaluator) -> list[float]:
    rules = evaluator.space.rules
    return sorted({*rules.groups.heads, *rules.groups.neurons}, reverse=True)


def uniform_levels(evaluator: Evaluator) -> list[Values]:
    """Everything alike: structure, precision, rank, and blocks dropped from the end or every second one."""
    space, rules, blocks = evaluator.untrained, evaluator.space.rules, evaluator.table.blocks
    ranks = sorted({rank for rule in rules.layers for rank in rule.rank}, reverse=True)
    drops = [(), *(blocks[len(blocks) - count :] for count in range(1, len(blocks) // 2 + 1)), blocks[1::2]]
    grid = itertools.product(shares(evaluator), ("fp32", *PRECISIONS), ranks, drops)
    found = [space.uniform(keep=k, precision=p, rank=r, removed=tuple(d)) for k, p, r, d in grid]
    return [dict(values) for values in {tuple(sorted(values.items())): None for values in found}]


def staged(evaluator: Evaluator, seed: int, budgets: Budgets = NOTHING_ASKED, most: int | None = None) -> float:
    """With what is asked, of speed-up and drop, and so many candidates with dense; the contests ask for nothing."""
    dense_first(evaluator)
    begun_s = evaluator.clock
    single = single_losses(evaluator)
    knapsack = knapsack_of(evaluator, single, budgets)
    prepared_s = evaluator.clock - begun_s
    objectives = replace(USUAL, allowed=budgets.max_drop)
    judge = judge_of(budgets, objectives, evaluator.task.metric.maximize, bool(evaluator.space.steps))
    best = SimpleNamespace(fastest_precision=fastest(evaluator))
    proposer = Staged(
        evaluator.space, knapsack, controller(evaluator, "tpe", seed, evaluator.untrained, budgets=budgets), judge,
        Clock(lambda: evaluator.clock, 0.0, evaluator.limit_s, lambda: len(evaluator.trials), 1, most),
        corners=list(corners(evaluator.untrained, best)), seed=seed, trials=tuple(evaluator.trials),
        look=single.look,
    )  # fmt: skip
    follow(evaluator, proposer, math.inf if most is None else most)
    return prepared_s


def knapsack(evaluator: Evaluator, seed: int) -> float:
    """The program alone, solved once and not corrected."""
    dense_first(evaluator)
    begun_s = evaluator.clock
    program = knapsack_of(evaluator)
    prepared_s = evaluator.clock - begun_s
    evaluate_all(evaluator, (one.values for one in program.front(BUDGETS)), "solved")
    return prepared_s


def uniform(evaluator: Evaluator, seed: int) -> float:
    dense_first(evaluator)
    levels = uniform_levels(evaluator)
    order = np.random.default_rng(seed).permutation(len(levels))
    evaluate_all(evaluator, (levels[i] for i in order), "uniform")
    return 0.0


def evaluate_all(evaluator: Evaluator, values: Iterable[Values], origin: Origin) -> None:
    seen = {trial.fingerprint for trial in evaluator.trials}
    with contextlib.suppress(Spent):
        for one in values:
            plan = evaluator.untrained.decode(one)
            if plan.fingerprint not in seen:
                evaluator(plan, origin)
                seen.add(plan.fingerprint)


def plain(sampler: str) -> Callable[[Evaluator, int], float]:
    """Optuna over everything, with dense known and nothing else."""

    def search(evaluator: Evaluator, seed: int) -> float:
        dense_first(evaluator)
        follow(evaluator, controller(evaluator, sampler, seed))
        return 0.0

    return search


def seeded(values_of: Callable[[Evaluator], tuple[Iterable[Values], float]]) -> Callable[[Evaluator, int], float]:
    """NSGA-II whose first generation is given."""

    def search(evaluator: Evaluator, seed: int) -> float:
        dense_first(evaluator)
        values, prepared_s = values_of(evaluator)
        proposer = controller(evaluator, "nsga2", seed)
        for one in values:
            proposer.enqueue(one, "seed")
        follow(evaluator, proposer)
        return prepared_s

    return search


def _uniform_seeds(evaluator: Evaluator) -> tuple[Iterable[Values], float]:
    best, space = fastest(evaluator), evaluator.space
    grid = itertools.product(depths(evaluator), shares(evaluator))
    return [space.uniform(keep=k, precision=best, removed=tuple(d)) for d, k in grid], 0.0


def _knapsack_seeds(evaluator: Evaluator) -> tuple[Iterable[Values], float]:
    begun_s = evaluator.clock
    program = knapsack_of(evaluator)
    prepared_s = evaluator.clock - begun_s
    return [one.values for one in program.front(BUDGETS)], prepared_s


def sequential(evaluator: Evaluator, seed: int) -> float:
    """Prune, then factorize, then quantize, a third of the time each.

    Each stage is searched alone by NSGA-II, from its own uniform levels on, for several candidates along the front that
    the stages before it left; it may leave them as they are.
    """
    dense_first(evaluator)
    dense = evaluator.space.uniform()
    known: dict[str, Values] = {Plan().fingerprint: dense}
    for stage, kinds in enumerate(STAGES):
        until_s = evaluator.limit_s * (stage + 1) / len(STAGES)
        parents = _spread(evaluator, known, _carried(evaluator, until_s))
        for place, parent in enumerate(parents):
            own_s = evaluator.clock + (until_s - evaluator.clock) / (len(parents) - place)
            _search_some(evaluator, parent, kinds, own_s, seed, known)
    return 0.0


def _carried(evaluator: Evaluator, until_s: float) -> int:
    """How many candidates a stage has the time to start from."""
    affordable = (until_s - evaluator.clock) / max(typical_seconds(evaluator.trials), 1e-9)
    return int(np.clip(affordable / EACH, *CARRIED))


def _search_some(
    evaluator: Evaluator, parent: Values, kinds: Sequence[str], until_s: float, seed: int, known: dict[str, Values]
) -> None:
    space = evaluator.space
    own = tuple(v for v in space.variables if v.name.partition(":")[0] in kinds)
    held = {v.name: v.levels[int(parent[v.name])] for v in space.variables if v not in own}
    part = replace(space, variables=own, fixed={**space.fixed, **held})
    proposer = controller(evaluator, "nsga2", seed, part, f"part-{len(evaluator.trials)}")
    for values in _alike(evaluator, own):
        proposer.enqueue(values, "uniform")
    with contextlib.suppress(Spent):
        while evaluator.clock < until_s:
            proposal = proposer.ask(until_s - evaluator.clock)
            if proposal is None:
                return
            trial = evaluator(proposal.plan, proposal.origin, proposal.number)
            known[trial.fingerprint] = {**parent, **proposer.asked(proposal.number)}
            proposer.tell(proposal.number, trial)


def _alike(evaluator: Evaluator, variables: Sequence[Variable]) -> Iterator[Values]:
    """Every level on all variables that have it; of structure, the uniform levels and depths."""
    if any(v.name.startswith("keep:") for v in variables):
        for removed, share in itertools.product(depths(evaluator), shares(evaluator)):
            values = evaluator.space.uniform(keep=share, removed=tuple(removed))
            yield {v.name: values[v.name] for v in variables}
        return
    for level in range(max((len(v.levels) for v in variables), default=0)):
        yield {v.name: min(level, len(v.levels) - 1) for v in variables}


def _spread(evaluator: Evaluator, known: dict[str, Values], count: int) -> list[Values]:
    """The front so far, thinned to some candidates evenly along it."""
    done = [trial for trial in evaluator.trials if trial.measured and trial.fingerprint in known]
    points = [(trial.latency.ratio, trial.quality) for trial in done]
    best = [done[i] for i in np.flatnonzero(nondominated(points, [False, evaluator.task.metric.maximize]))]
    best.sort(key=lambda trial: trial.latency.ratio)
    places = np.unique(np.linspace(0, len(best) - 1, min(count, len(best))).round().astype(int))
    return [known[best[i].fingerprint] for i in places]


METHODS: dict[str, Callable[[Evaluator, int], float]] = {
    "staged": staged,
    "random": plain("random"),
    "uniform": uniform,
    "nsga2-uniform": seeded(_uniform_seeds),
    "nsga2-knapsack": seeded(_knapsack_seeds),
    "knapsack": knapsack,
    "sequential": sequential,
    "nsga2": plain("nsga2"),
    "tpe": plain("tpe"),
}
