"""`strategy: solve`: bits per layer by an integer program over what each layer costs and loses. No training."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from autocompress.budgets import Budgets
from autocompress.compressing.sensitivity import Sensitivity, sensitivities
from autocompress.errors import SpaceError
from autocompress.layers import LayerTable
from autocompress.plan import Plan, Precision
from autocompress.records import Trial, write_json
from autocompress.rules import SolveRule, SpaceRules
from autocompress.searching.costs import Predict, measure_costs, recorded_seconds, weight_bytes
from autocompress.searching.probe import Probe
from autocompress.searching.solver import Solver
from autocompress.searching.units import Unit, corners_of, tables_of, units_of
from autocompress.space import SearchSpace
from autocompress.workshop import Workshop

#: Shares of the time that is left which errors, and then costs, may take.
ERROR_SHARE = 0.25
COST_SHARE = 0.25

#: Share of a budget that is left free, since latencies are expected and not yet measured.
MARGIN = 0.02

#: Layers that are named as the most sensitive ones.
NAMED = 5

Say = Callable[[str], None]


def make_solver(
    shop: Workshop,
    space: SearchSpace,
    probe: Probe,
    budgets: Budgets,
    trials: Sequence[Trial],
    *,
    left_s: float,
    say: Say,
    detail: Say = lambda _text: None,
    predict: Predict | None = None,
) -> Solver:
    """Take errors and costs of all layers, write ``sensitivity.json``, and return who proposes.

    Args:
        shop: of the run.
        space: whose rules say `strategy: solve`.
        probe: of the run.
        budgets: asked by the user; what they say of latency and size limits the program.
        trials: finished evaluations.
        left_s: wall-clock that is left of the search.
        say: is told which layers are the most sensitive.
        detail: is told how far it is.
        predict: seconds of a plan; by default a recorded device's table, else layer classes timed in the dense model.
    """
    rule, units = space.rules.solve, units_of(space)
    options = [option for unit in units for option in unit.options]
    errors = sensitivities(shop.bank, options, samples=rule.samples, limit_s=ERROR_SHARE * left_s, say=detail)
    predict = predict or recorded_seconds(shop.bench)
    if predict is None:
        predict = measure_costs(shop, options, probe, COST_SHARE * left_s, detail).seconds
    write_sensitivities(shop.root / "sensitivity.json", units, errors, predict, shop.table)
    say(f"most sensitive layers: {', '.join(most_sensitive(units, errors))}")

    def lost(plans: Sequence[Plan]) -> dict[Plan, float]:
        return {plan: found.kl for plan, found in sensitivities(shop.bank, plans, samples=rule.samples).items()}

    corners = corners_of(space)
    tables = tables_of(units, errors, predict, shop.table, around=min(corners, key=predict))
    limits = limits_of(budgets, probe, rule, shop.table, shop.bench.dense.path.stat().st_size)
    return Solver(units, tables, rule, limits, corners=corners, lost=lost, trials=trials)


def dropped_precisions(probe: Probe, rules: SpaceRules, by_size: bool = False) -> frozenset[Precision]:
    """Precisions that a space goes without: the slow ones, or where bytes count too, those that do not run at all.

    Args:
        probe: timed them.
        rules: of the space.
        by_size: whether bytes count, whatever the rules say.
    """
    if by_size or rules.solve.by_size:
        return frozenset(fact.precision for fact in probe.precisions if fact.ratio is None)
    return probe.dropped


def check_size(space: SearchSpace) -> None:
    """Refuse a `max_size` that no choice of bits keeps.

    Raises:
        SpaceError: names the least share that can be kept.
    """
    rules, table = space.rules, space.table
    if rules.solve.max_size == 1:
        return
    dense = weight_bytes(Plan(), table)
    saved = sum(max(dense - weight_bytes(option, table) for option in unit.options) for unit in units_of(space))
    least = 1 - saved / dense
    if least > rules.solve.max_size:
        raise SpaceError(
            f"{rules.source}: solve.max_size: {rules.solve.max_size:g} is under what any choice of bits leaves: every "
            f"layer at its lightest is {least:.3g} of the dense bytes on profile {space.profile.name!r}; "
            f"give {math.ceil(100 * least) / 100:g} or more, or lighter precisions"
        )


def limits_of(
    budgets: Budgets, probe: Probe, rule: SolveRule, table: LayerTable, dense_bytes: int | None = None
) -> dict[str, float]:
    """What the program must keep, a little less than what is asked; a drop of quality is judged by measuring only.

    Args:
        budgets: asked by the user.
        probe: of the run.
        rule: of the space.
        table: of the model.
        dense_bytes: of the dense file, by which a budget of size is one of the weights' bytes; None where the program
            is told of sizes in another way.
    """
    seconds = [] if budgets.max_latency_s is None else [budgets.max_latency_s]
    if budgets.min_speedup is not None:
        seconds.append(probe.dense_latency_s * probe.dense[0].ratio / budgets.min_speedup)
    limits = {"latency": min(seconds) * (1 - MARGIN)} if seconds else {}
    dense = weight_bytes(Plan(), table)
    if rule.max_size != 1:
        limits["size"] = rule.max_size * dense
    if budgets.max_size_bytes is not None and dense_bytes is not None:
        limits["file"] = budgets.max_size_bytes * (1 - MARGIN) - (dense_bytes - dense)
    return limits


def write_sensitivities(
    path: Path, units: Sequence[Unit], errors: Mapping[Plan, Sensitivity], predict: Predict, table: LayerTable
) -> None:
    """One line per unit and option beside fp32: what it loses, and what the whole model takes with it alone."""
    rows = []
    for unit in units:
        for number, option in enumerate(unit.options):
            if option == Plan():
                continue
            precision, bits = unit.said(number)
            rows.append(
                {
                    "layer": unit.name,
                    "layers": list(unit.layers),
                    "precision": precision,
                    "weight_bits": bits,
                    "kl": errors[option].kl,
                    "measured": errors[option].measured,
                    "cost_s": predict(option) - predict(Plan()),
                    "size_bytes": weight_bytes(option, table) - weight_bytes(Plan(), table),
                }
            )
    write_json(path, rows)


def most_sensitive(units: Sequence[Unit], errors: Mapping[Plan, Sensitivity], count: int = NAMED) -> list[str]:
    """The units whose worst option changes the predictions most, in words."""
    worst = []
    for unit in units:
        kls = [errors[option].kl for option in unit.options]
        worst.append((max(kls), kls.index(max(kls)), unit))
    worst.sort(key=lambda item: -item[0])
    words = []
    for kl, number, unit in worst[:count]:
        precision, bits = unit.said(number)
        how = precision + (f", {bits} bits" if bits else "")
        how += "" if errors[unit.options[number]].measured else ", predicted"
        words.append(f"{unit.name} ({kl:.2g} nats in {how})")
    return words
