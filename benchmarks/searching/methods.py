"""The searches: each runs an evaluator until the time is over, and gives its seconds of preparation."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import numpy as np
from searching.evaluator import LOSS_SAMPLES, Evaluator, Spent

from autocompress.plan import Plan
from autocompress.searching.atoms import measure_atoms
from autocompress.searching.controller import Controller
from autocompress.searching.knapsack import Knapsack
from autocompress.searching.parts import parts_of
from autocompress.searching.prepare import LOSS_SHARE
from autocompress.searching.seen import Clock, Judge
from autocompress.searching.staged import Staged
from autocompress.searching.work import work_model
from autocompress.space import Values

#: What the probe finds of each precision, on all layers; every method may know it.
PRECISIONS = ("int8-dynamic", "int8", "int4-weights")

#: Candidates of one stage of the sequential pipeline that the next one starts from.
CARRIED = 6

#: Largest seconds beyond which the first plans are asked: nothing is limited here.
BUDGETS = 40


def controller(evaluator: Evaluator, sampler: str, seed: int, space=None, name: str = "study") -> Controller:
    return Controller(
        evaluator.folder / f"{name}.journal",
        space or evaluator.space,
        evaluator.task.metric.maximize,
        lambda _trial: {},
        sampler,
        seed,
    )


def follow(evaluator: Evaluator, proposer, until_s: float = float("inf")) -> None:
    """Evaluate what is proposed until the time is over."""
    with contextlib.suppress(Spent):
        while evaluator.clock < until_s:
            proposal = proposer.ask()
            if proposal is None:
                return
            proposer.tell(proposal.number, evaluator(proposal.plan, proposal.origin, proposal.number))


def dense_first(evaluator: Evaluator) -> None:
    evaluator(Plan(), "dense")


def ratios(evaluator: Evaluator) -> dict[str, float]:
    """Each precision on all layers, as the probe of a search times it."""
    space, found = evaluator.space, {}
    for precision in PRECISIONS:
        plan = space.decode(space.uniform(precision=precision))
        if plan != Plan():
            found[precision] = evaluator.latencies.seconds(plan, evaluator.table) / evaluator.dense_s
    return found


def fastest(evaluator: Evaluator) -> str:
    found = ratios(evaluator)
    return min(found, key=found.__getitem__)


def knapsack_of(evaluator: Evaluator) -> Knapsack:
    space = evaluator.space
    parts = parts_of(space)
    limit_s = LOSS_SHARE * evaluator.limit_s
    atoms = measure_atoms(evaluator.bank, space, parts, LOSS_SAMPLES, limit_s, lambda _text: None)
    work = work_model(evaluator.table, evaluator.dense_s, ratios(evaluator))
    return Knapsack(space, parts, atoms, work, {}, evaluator.dense_s)


def uniform_levels(evaluator: Evaluator) -> list[Values]:
    """Everything alike: structure, precision, rank, and blocks dropped from the end or every second one."""
    space, rules, blocks = evaluator.space, evaluator.space.rules, evaluator.table.blocks
    shares = sorted({*rules.groups.heads, *rules.groups.neurons}, reverse=True)
    ranks = sorted({rank for rule in rules.layers for rank in rule.rank}, reverse=True)
    drops = [(), *(blocks[len(blocks) - count :] for count in range(1, len(blocks) // 2 + 1)), blocks[1::2]]
    grid = itertools.product(shares, ("fp32", *PRECISIONS), ranks, drops)
    found = [space.uniform(keep=k, precision=p, rank=r, removed=tuple(d)) for k, p, r, d in grid]
    return [dict(values) for values in {tuple(sorted(values.items())): None for values in found}]


def staged(evaluator: Evaluator, seed: int) -> float:
    dense_first(evaluator)
    knapsack = knapsack_of(evaluator)
    prepared_s = evaluator.clock
    judge = Judge(evaluator.task.metric.maximize, lambda _trial: True)
    best, space, blocks = fastest(evaluator), evaluator.space, evaluator.table.blocks
    corners = [("uniform", space.uniform(keep=share, precision=best)) for share in (0.5, 0.25, 0.75)]
    corners.append(("seed", space.uniform(precision=best, removed=blocks[(len(blocks) + 1) // 2 :])))
    proposer = Staged(
        space, knapsack, controller(evaluator, "tpe", seed), judge,
        Clock(lambda: evaluator.clock, 0.0, evaluator.limit_s),
        corners=corners, seed=seed, trials=evaluator.trials,
    )  # fmt: skip
    follow(evaluator, proposer)
    return prepared_s


def knapsack(evaluator: Evaluator, seed: int) -> float:
    """The program alone, solved once and not corrected."""
    dense_first(evaluator)
    program = knapsack_of(evaluator)
    prepared_s = evaluator.clock
    evaluate_all(evaluator, (one.values for one in program.front(BUDGETS)))
    return prepared_s


def uniform(evaluator: Evaluator, seed: int) -> float:
    dense_first(evaluator)
    levels = uniform_levels(evaluator)
    order = np.random.default_rng(seed).permutation(len(levels))
    evaluate_all(evaluator, (levels[i] for i in order))
    return 0.0


def evaluate_all(evaluator: Evaluator, values: Iterable[Values]) -> None:
    seen = {trial.fingerprint for trial in evaluator.trials}
    with contextlib.suppress(Spent):
        for one in values:
            plan = evaluator.space.decode(one)
            if plan.fingerprint not in seen:
                evaluator(plan)
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
    best = fastest(evaluator)
    space, blocks = evaluator.space, evaluator.table.blocks
    shares = sorted({*space.rules.groups.heads, *space.rules.groups.neurons}, reverse=True)
    drops = ((), blocks[(len(blocks) + 1) // 2 :], blocks[1::2])
    return [space.uniform(keep=k, precision=best, removed=tuple(d)) for d in drops for k in shares], 0.0


def _knapsack_seeds(evaluator: Evaluator) -> tuple[Iterable[Values], float]:
    front = knapsack_of(evaluator).front(BUDGETS)
    return [one.values for one in front], evaluator.clock


def sequential(evaluator: Evaluator, seed: int) -> float:
    """Prune, then factorize, then quantize: each by NSGA-II from its uniform levels, for a third of the time."""
    dense_first(evaluator)
    space = evaluator.space
    parents: list[Values] = [space.uniform()]
    known: dict[str, Values] = {Plan().fingerprint: parents[0]}
    for stage, kinds in enumerate((("keep", "remove"), ("rank",), ("precision", "bits"))):
        until_s = evaluator.limit_s * (stage + 1) / 3
        for place, parent in enumerate(parents):
            left_s = until_s - evaluator.clock
            _search_some(evaluator, parent, kinds, evaluator.clock + left_s / (len(parents) - place), seed, known)
        parents = _spread(evaluator, known)
    return 0.0


def _search_some(
    evaluator: Evaluator, parent: Values, kinds, until_s: float, seed: int, known: dict[str, Values]
) -> None:
    space = evaluator.space
    own = tuple(v for v in space.variables if v.name.partition(":")[0] in kinds)
    held = {v.name: v.levels[int(parent[v.name])] for v in space.variables if v not in own}
    part = replace(space, variables=own, fixed={**space.fixed, **held})
    proposer = controller(evaluator, "nsga2", seed, part, f"part-{len(known)}")
    for values in _alike(own):
        proposer.enqueue(values, "uniform")
    with contextlib.suppress(Spent):
        while evaluator.clock < until_s:
            proposal = proposer.ask()
            if proposal is None:
                return
            trial = evaluator(proposal.plan, proposal.origin, proposal.number)
            known[trial.fingerprint] = {**parent, **proposer.asked(proposal.number)}
            proposer.tell(proposal.number, trial)


def _alike(variables) -> Iterator[Values]:
    """Every level on all variables that have it."""
    for level in range(max((len(v.levels) for v in variables if not v.name.startswith("remove:")), default=0)):
        yield {v.name: 0 if v.name.startswith("remove:") else min(level, len(v.levels) - 1) for v in variables}


def _spread(evaluator: Evaluator, known: dict[str, Values]) -> list[Values]:
    """The front so far, thinned to `CARRIED` candidates evenly along it."""
    front, best = [], -np.inf
    sign = 1 if evaluator.task.metric.maximize else -1
    for trial in sorted(evaluator.trials, key=lambda t: (t.latency.ratio, -sign * t.quality)):
        if sign * trial.quality > best and trial.fingerprint in known:
            front.append(known[trial.fingerprint])
            best = sign * trial.quality
    places = np.unique(np.linspace(0, len(front) - 1, min(CARRIED, len(front))).round().astype(int))
    return [front[i] for i in places]


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
