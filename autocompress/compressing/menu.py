"""What each option of a group or layer costs in accuracy of its own output, and saves in weights."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from autocompress.layers import Group, LayerTable
from autocompress.plan import Factorize, LayerPlan, Plan, Prune, effective_layers

#: Name of a group or layer, what is done to it, and a seed (0 where nothing is drawn).
Option = tuple[str, Prune | Factorize, int]


@dataclass(frozen=True)
class OptionError:
    """One option, by itself in the dense model.

    Attributes:
        name: of the group or layer.
        option: what would be done to it.
        error: relative output error on calibration inputs, ``√(tr(D·G·Dᵀ) / tr(W·G·Wᵀ))`` with D the change of the
            weight and G the second moment of its inputs; of a group, summed over the layers that read it (of a part
            that is removed as a whole, of its own output).
        weights: that the option leaves in the layers concerned.
        weights_dense: that they hold now.
    """

    name: str
    option: Prune | Factorize
    error: float
    weights: int
    weights_dense: int

    @property
    def saved(self) -> float:
        """Share of the weights concerned that the option saves."""
        return 1.0 - self.weights / self.weights_dense if self.weights_dense else 0.0


def option_error(table: LayerTable, name: str, option: Prune | Factorize, lost: float, whole: float) -> OptionError:
    """The record of an option from the squared norms of what an output loses and of what it is."""
    error = math.sqrt(lost / whole) if whole > 0 else 0.0
    if isinstance(option, Prune):
        plan, layers = Plan({name: option}), layers_of(table.group(name))
    else:
        plan, layers = Plan(layers={name: LayerPlan(factorize=option)}), frozenset([name])
    left = sum(eff.weights for eff in effective_layers(plan, table) if eff.layer.name in layers)
    dense = sum(eff.weights for eff in effective_layers(Plan(), table) if eff.layer.name in layers)
    return OptionError(name, option, error, left, dense)


def layers_of(group: Group) -> frozenset[str]:
    """Layers that lose weights when a group does."""
    return frozenset([*(item.name for item in (*group.producers, *group.consumers)), *group.removes])


def options_of(plans: Iterable[Plan]) -> tuple[Option, ...]:
    """The options of all groups and layers in some plans, each once."""
    found: dict[Option, None] = {}
    for plan in plans:
        for name, prune in plan.groups.items():
            found[name, prune, plan.seed if prune.score == "random" else 0] = None
        for name, layer in plan.layers.items():
            if layer.factorize:
                found[name, layer.factorize, 0] = None
    return tuple(found)
