"""The probe: what this device does with the dense model and with each precision, before anything is spent."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from autocompress.budgets import Budgets
from autocompress.compressing.shape import shape
from autocompress.distill import divergence, recover
from autocompress.errors import AutocompressError, BudgetError, ModelError, StorageError
from autocompress.export.products import BYTES, exact_bits
from autocompress.measure.dense import DenseSetting, find_best_dense
from autocompress.measure.latency import Setting
from autocompress.pipeline import build
from autocompress.plan import PRECISIONS, Cofi, Distill, Plan, Precision, Prune
from autocompress.plan.check import removed_layers
from autocompress.records import Latency, Source, aside, write_json
from autocompress.runtimes import model_file
from autocompress.space import SearchSpace
from autocompress.workshop import Workshop

#: Learning rates that the probe tries, and validation samples that it judges them by.
RATES = 4
RATE_SAMPLES = 256

#: The least of everything is not quite the fastest there is: a budget is refused when it is further below.
REACH = 0.8


@dataclass(frozen=True)
class PrecisionFact:
    """What one precision, on every layer that has it, does to the dense model's latency here."""

    precision: Precision
    ratio: float | None
    low: float | None
    high: float | None
    kept: bool
    why: str


@dataclass(frozen=True)
class RateFact:
    """Where a short recovery of the middle candidate ends at one learning rate.

    Attributes:
        learning_rate: 0.0 stands for no recovery at all.
        divergence: mean KL(dense ‖ candidate) over validation samples, in nats; lower is better.
    """

    learning_rate: float
    divergence: float


@dataclass(frozen=True)
class Probe:
    """What was found; all measured.

    Attributes:
        dense: the dense fp32 model in every installed runtime and number of threads, fastest first.
        precisions: uniform precisions against dense, in the profile's setting.
        smallest_latency_s: the smallest candidate of the space, unrecovered.
        dense_latency_s: dense in the profile's setting.
        rates: learning rates tried on the middle candidate; empty where the space has no recovery.
        smallest_memory_bytes: the least peak memory of the smallest candidates; None where it was not asked for.
    """

    dense: tuple[DenseSetting, ...]
    precisions: tuple[PrecisionFact, ...]
    smallest_latency_s: float
    smallest_ratio_best_dense: float
    dense_latency_s: float
    rates: tuple[RateFact, ...] = ()
    smallest_memory_bytes: int | None = None

    @property
    def learning_rate(self) -> float | None:
        """The rate above 0 that ends nearest to the dense model; None where none was tried."""
        tried = [fact for fact in self.rates if fact.learning_rate > 0]
        return min(tried, key=lambda fact: fact.divergence).learning_rate if tried else None

    @property
    def best_dense(self) -> Setting:
        """The fastest dense setting."""
        return Setting(self.dense[0].runtime, self.dense[0].threads)

    @property
    def dropped(self) -> frozenset[Precision]:
        """Precisions that the space goes without."""
        return frozenset(fact.precision for fact in self.precisions if not fact.kept)

    @property
    def fastest_precision(self) -> Precision:
        """The kept precision below fp32 with the least latency, which may be slow where bytes count; fp32 for none."""
        kept = [f for f in self.precisions if f.kept and f.ratio is not None]
        return min(kept, key=lambda f: f.ratio or 1.0).precision if kept else "fp32"

    def to_json(self) -> dict[str, Any]:
        """Plain data, as the report reads it."""
        data = asdict(self)
        data["best_dense"] = asdict(self.dense[0])
        data["reachable"] = {
            "smallest_latency_s": self.smallest_latency_s,
            "dense_latency_s": self.dense_latency_s,
        }
        return data

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Probe:
        """Inverse of `to_json`."""
        return Probe(
            tuple(DenseSetting(**item) for item in data["dense"]),
            tuple(PrecisionFact(**item) for item in data["precisions"]),
            data["smallest_latency_s"],
            data["smallest_ratio_best_dense"],
            data["dense_latency_s"],
            tuple(RateFact(**item) for item in data["rates"]),
            data.get("smallest_memory_bytes"),
        )


def run_probe(
    shop: Workshop, space: SearchSpace, path: Path, say: Callable[[str], None], by_size: bool = False
) -> Probe:
    """Measure dense, the uniform precisions and the smallest candidate; writes `path`.

    `space` is the space before anything is dropped; where bytes count (`by_size`), nothing is that runs here. Sets the
    bench's fastest dense setting.
    """
    dense = find_best_dense(shop.bench)
    shop.bench.best_dense = Setting(dense[0].runtime, dense[0].threads, shop.profile.device)
    how = aside(shop.profile.source)
    for item in dense:
        say(f"dense fp32, {Setting(item.runtime, item.threads)}: {item.latency_s * 1e3:.3g} ms{how}")
    precisions = probe_precisions(shop, space, say, by_size)
    smallest = list(_smallest(shop, space, precisions))
    latency = min(smallest, key=lambda found: found.ratio_best_dense)
    memory = min((found.peak_memory_bytes for found in smallest if found.peak_memory_bytes is not None), default=None)
    profile_dense = next(
        d for d in dense if Setting(d.runtime, d.threads) == Setting(shop.profile.runtime, shop.profile.threads)
    )
    rates = probe_rates(shop, space) if space.rules.strategy == "joint" else ()  # a staged search tunes them itself
    probe = Probe(
        dense, precisions, latency.latency_s, latency.ratio_best_dense, profile_dense.latency_s, rates, memory
    )
    write_json(path, probe.to_json())
    if rates:
        said = ", ".join(f"{fact.learning_rate:.2g}: {fact.divergence:.3f}" for fact in rates)
        say(f"KL to dense after a short recovery, by learning rate: {said}; {probe.learning_rate:.2g} leads")
    say(
        f"reachable: {latency.latency_s * 1e3:.3g} ms (the smallest candidate, "
        f"{1 / latency.ratio_best_dense:.3g}x) to {profile_dense.latency_s * 1e3:.3g} ms (dense){how}"
    )
    return probe


def _smallest(shop: Workshop, space: SearchSpace, precisions: tuple[PrecisionFact, ...]) -> Iterator[Latency]:
    """Latencies of the least of everything, in fp32 and in the fastest precision, with full and with least rank.

    Narrow layers may be slower in integers, or as two factors.
    """
    kept = [fact for fact in precisions if fact.kept and fact.ratio is not None]
    fastest: list[Precision] = [min(kept, key=lambda fact: fact.ratio or 1.0).precision] if kept else []
    for plan in _least(space, ("fp32", *fastest)):
        built = build(Plan(plan.groups, plan.layers), shop, keep_weights=False)
        yield shop.bench.measure(shop.root / built.path)


def _least(space: SearchSpace, precisions: Sequence[Precision]) -> Iterator[Plan]:
    """The least of everything that a space holds, in each precision, with full and with least rank."""
    gone = tuple(group.name for group in space.table.groups if group.removable)
    plans = dict.fromkeys(
        space.decode(space.uniform(0.0, precision, rank, removed=gone), learn=False)
        for precision in precisions
        for rank in (0.0, 1.0)
    )
    plans.update(dict.fromkeys(plan for precision in precisions for plan in _most_learned(space, precision)))
    yield from plans


def _most_learned(space: SearchSpace, precision: Precision) -> Iterator[Plan]:
    """What the strongest recipe for structure may leave: as whole blocks, its share of weights saves the most time."""
    recipes = [recipe for recipe in space.rules.recipes if isinstance(recipe, Cofi)]
    if not recipes:
        return
    share = max(r.sparsity if r.sparsity is not None else 1 - (r.latency_ratio or 0.0) for r in recipes)
    blocks = space.table.blocks
    groups = {name: Prune(0) for name in blocks[len(blocks) - math.ceil(share * len(blocks)) :]}
    gone = removed_layers(Plan(groups), space.table)
    bits = space.decode(space.uniform(precision=precision), learn=False).layers
    yield Plan(groups, {name: lp for name, lp in bits.items() if name not in gone})


def check_size_reachable(probe: Probe, shop: Workshop, space: SearchSpace, budgets: Budgets) -> None:
    """Refuse a size that not even the least of everything takes, in any precision, with full and with least rank.

    Raises:
        BudgetError: names the reachable range.
        StorageError: a disk is full.
    """
    most = budgets.max_size_bytes
    if most is None:
        return
    dense = shop.bench.dense.path.stat().st_size
    if most >= dense:
        return
    broken = [fact.precision for fact in probe.precisions if fact.ratio is None]
    running = [precision for precision in PRECISIONS if precision not in broken]
    plans = dict.fromkeys(Plan(plan.groups, plan.layers) for plan in _least(space, running))
    sizes = [dense]
    for plan in plans:
        try:
            sizes.append(_file_bytes(plan, shop))
        except StorageError:
            raise
        except AutocompressError:  # what cannot be made here is no candidate
            continue
    least = min(sizes)
    if most < REACH * least:
        raise BudgetError(
            f"--max-size {most / 1e6:.3g} MB is under what any candidate reaches; reachable here: {least / 1e6:.3g} MB "
            f"(the smallest candidate of the space, untrained) to {dense / 1e6:.3g} MB (dense)"
        )


def _file_bytes(plan: Plan, shop: Workshop) -> int:
    """Of a plan's file, which the probe may have made already."""
    path = shop.artifact_folder(plan) / model_file(shop.profile.runtime)
    return path.stat().st_size if path.is_file() else build(plan, shop, keep_weights=False).size_bytes


def probe_precisions(
    shop: Workshop, space: SearchSpace, say: Callable[[str], None], by_size: bool = False
) -> tuple[PrecisionFact, ...]:
    """Each precision below fp32 of the space on every layer that has it; one slower than the next heavier is dropped.

    Where bytes count, it is kept all the same.
    """
    offered = {
        level
        for variable in space.variables
        if variable.name.startswith("precision:")
        for level in variable.levels
        if level not in ("fp32", "int8-weights")
    }
    facts: list[PrecisionFact] = []
    heavier, heavier_ratio = "fp32", 1.0
    bits = exact_bits(shop.profile.runtime, shop.profile.host_device)
    if bits < 8 and offered & {*BYTES}:
        say(f"weights in 8-bit kernels hold {bits} bits here: this processor cuts off products of 8 by 8 bits")
    for precision in (p for p in PRECISIONS if p in offered):
        plan = only_in(space, precision)
        try:
            latency = shop.bench.measure(shop.root / build(plan, shop, keep_weights=False).path)
        except AutocompressError as fault:
            facts.append(PrecisionFact(precision, None, None, None, False, f"does not run here: {fault}"))
            continue
        pays = latency.ratio_low <= heavier_ratio
        why = "" if pays else f"slower than {heavier} ({latency.ratio:.2f} against {heavier_ratio:.2f} of dense)"
        why += ", kept since bytes count" if why and by_size else ""
        said = "" if pays else f", {why}" if by_size else f", dropped: {why}"
        say(f"{precision}: {latency.ratio:.2f} of dense{aside(shop.profile.source)}{said}")
        kept = pays or by_size
        facts.append(PrecisionFact(precision, latency.ratio, latency.ratio_low, latency.ratio_high, kept, why))
        if pays:
            heavier, heavier_ratio = precision, latency.ratio
    return tuple(facts)


def only_in(space: SearchSpace, precision: Precision) -> Plan:
    """The precision on every layer that has it, and nothing else."""
    plan = space.decode(space.uniform(precision=precision))
    layers = {name: lp for name, lp in plan.layers.items() if lp.precision == precision}
    return Plan(layers=layers)


def probe_rates(shop: Workshop, space: SearchSpace) -> tuple[RateFact, ...]:
    """Recover the middle candidate for half the steps at four learning rates, and without any.

    The right rate differs by orders of magnitude between models, and a wrong one spoils every seed.
    """
    rule = space.rules.distill
    steps, bounds = rule.steps[-1] // 2, rule.learning_rate
    if not steps or bounds.low == bounds.high:
        return ()
    task, table = shop.task, shop.table
    plan = space.decode(space.uniform(keep=0.5, rank=0.5), learn=False)
    model = shape(task.source, plan, table, shop.bank)
    sample = task.selection(RATE_SAMPLES)
    facts = [RateFact(0.0, divergence(task.model, model, sample))]
    for rate in np.geomspace(bounds.low, bounds.high, RATES):
        settings = Distill(rule.default.soft_weight, rule.default.temperature, float(rate), steps)
        try:
            recovered = recover(model, Plan(distill=settings), task, shop.teacher, table)
        except ModelError:  # diverged: that is an answer too
            facts.append(RateFact(float(rate), float("inf")))
            continue
        facts.append(RateFact(float(rate), divergence(task.model, recovered, sample)))
    return tuple(facts)


def check_reachable(probe: Probe, budgets: Budgets, source: Source) -> None:
    """Refuse a budget that not even the smallest candidate reaches.

    Args:
        probe: of the run.
        budgets: asked by the user.
        source: of the probe's latencies.

    Raises:
        BudgetError: names the reachable range.
    """
    low, high = (f"{seconds * 1e3:.3g} ms" for seconds in (probe.smallest_latency_s, probe.dense_latency_s))
    reach = (
        f"reachable here{aside(source)}: {low} to {high}, a speed-up of up to "
        f"{1 / probe.smallest_ratio_best_dense:.3g}x over the fastest dense fp32 ({probe.best_dense}); the lower end "
        "is the smallest candidate of the space, untrained"
    )
    if budgets.max_latency_s is not None and budgets.max_latency_s < REACH * probe.smallest_latency_s:
        raise BudgetError(
            f"--max-latency {budgets.max_latency_s * 1e3:.3g} ms is under what any candidate reaches; {reach}"
        )
    if budgets.min_speedup is not None and budgets.min_speedup > 1 / (REACH * probe.smallest_ratio_best_dense):
        raise BudgetError(f"--min-speedup {budgets.min_speedup:g}x is over what any candidate reaches; {reach}")
    most, least = budgets.max_memory_bytes, probe.smallest_memory_bytes
    if most is not None and least is not None and most < REACH * least:
        raise BudgetError(
            f"--max-memory {most / 1e6:.3g} MB is under what any candidate reaches; the smallest one of the space "
            f"needs {least / 1e6:.3g} MB, the runtime's own included"
        )
