"""What the integer program chooses among: units with their options, and a table of what each loses and costs."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from autocompress.compressing.sensitivity import Sensitivity
from autocompress.layers import LayerTable
from autocompress.plan import Plan, Precision
from autocompress.searching.costs import Predict, weight_bytes
from autocompress.searching.solve import Table, monotone
from autocompress.space import SearchSpace


@dataclass(frozen=True)
class Unit:
    """Layers that choose together.

    Attributes:
        name: of the layer, or of what they share.
        layers: their names.
        options: each a plan of these layers alone; the empty plan leaves them as they are.
    """

    name: str
    layers: tuple[str, ...]
    options: tuple[Plan, ...]

    def option_of(self, plan: Plan) -> int | None:
        """Number of the option that a plan takes here; None where it is not on offer."""
        held = Plan(layers={name: plan.layers[name] for name in self.layers if name in plan.layers})
        return self.options.index(held) if held in self.options else None

    def said(self, option: int) -> tuple[Precision, int | None]:
        """Precision of an option, the lightest where its layers differ, and the weight bits where they are fewer."""
        settings = [lp.quantize for lp in self.options[option].layers.values() if lp.quantize]
        lightest = min(settings, key=lambda quantize: quantize.bits, default=None)
        return (lightest.precision, lightest.weight_bits) if lightest else ("fp32", None)


def units_of(space: SearchSpace) -> tuple[Unit, ...]:
    """The units of a space with all that each can take; layers that nothing can be done to are left out."""
    scopes: dict[str, list[str]] = {}
    for name, choice in space.choices.items():
        scopes.setdefault(choice.scope, []).append(name)
    units = []
    for scope, layers in scopes.items():
        variables = [
            space.by_name[f"{kind}:{scope}"] for kind in ("precision", "bits") if f"{kind}:{scope}" in space.by_name
        ]
        plans: dict[Plan, None] = {}
        for levels in itertools.product(*(range(len(variable.levels)) for variable in variables)):
            values = {variable.name: level for variable, level in zip(variables, levels, strict=True)}
            decoded = space.decode(values).layers
            plans[Plan(layers={name: decoded[name] for name in layers if name in decoded})] = None
        if set(plans) != {Plan()}:
            units.append(Unit(scope, tuple(layers), tuple(plans)))
    return tuple(units)


def corners_of(space: SearchSpace) -> tuple[Plan, ...]:
    """Every precision that the space has, at every number of bits, on all layers that have it."""
    precisions = dict.fromkeys(precision for choice in space.choices.values() for precision in choice.precisions)
    bits = [variable for variable in space.variables if variable.name.startswith("bits:")]
    plans: dict[Plan, None] = {}
    for precision in precisions:
        for level in range(max((len(variable.levels) for variable in bits), default=1)):
            chosen = {variable.name: min(level, len(variable.levels) - 1) for variable in bits}
            plans[space.decode({**space.uniform(precision=precision), **chosen})] = None
    return tuple(plans)


def joined(options: Sequence[Plan]) -> Plan:
    """One plan of what several units chose."""
    return Plan(layers={name: lp for option in options for name, lp in option.layers.items()})


def _with(rest: Plan, unit: Unit, option: Plan) -> Plan:
    """The plan with another option of one unit."""
    others = {name: lp for name, lp in rest.layers.items() if name not in unit.layers}
    return Plan(layers={**others, **option.layers})


@dataclass(frozen=True)
class Tables:
    """What the program is about, a row per unit and a value per option. The rows of a cost add up to a whole model's.

    Attributes:
        errors: KL to the dense model, in nats.
        seconds: of a query.
        bytes: of the weights at their bits.
        dense_s: seconds of the dense model.
        stored: bytes of the weights as they stand in a file; None where nobody asks.
    """

    errors: Table
    seconds: Table
    bytes: Table
    dense_s: float
    stored: Table | None = None

    @property
    def costs(self) -> dict[str, Table]:
        """The costs by the names that limits use."""
        found = {"latency": self.seconds, "size": self.bytes}
        return found if self.stored is None else {**found, "file": self.stored}


def tables_of(
    units: Sequence[Unit],
    errors: Mapping[Plan, Sensitivity],
    predict: Predict,
    table: LayerTable,
    around: Plan | None = None,
) -> Tables:
    """The tables of the program; each unit carries its part of what the dense model takes anyway.

    Args:
        units: what chooses.
        errors: of their options.
        predict: seconds of a plan.
        table: of the model.
        around: what the other units are while the options of one are priced; dense by default. Seconds that do not
            quite add up, since neighbours that compute alike save each other something, are exact near it.
    """
    rest = around or Plan()

    def rows(cost: Predict) -> list[list[float]]:
        dense, whole = cost(Plan()), cost(rest)
        more = [[cost(_with(rest, unit, option)) - whole for option in unit.options] for unit in units]
        plain = [cost(_with(rest, unit, Plan())) - whole for unit in units]
        total = sum(plain)
        shares = [found / total if total else 1 / len(units) for found in plain]
        bases = [dense / len(units) + (whole - dense) * share for share in shares]
        return [[base + found for found in row] for base, row in zip(bases, more, strict=True)]

    size = rows(lambda plan: weight_bytes(plan, table))
    losses = [[errors[option].kl for option in unit.options] for unit in units]
    if not all(found.measured for found in errors.values()):  # what is predicted may say that fewer bytes err less
        losses = [monotone(row, own) for row, own in zip(losses, size, strict=True)]
    stored = rows(lambda plan: weight_bytes(plan, table, stored=True))
    return Tables(losses, rows(predict), size, predict(Plan()), stored)
