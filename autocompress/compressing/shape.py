"""The verb `shape`: a really smaller copy of a model, as a plan's groups, ranks and zeros say.

This is the one place that knows the order: whole parts, structures, then rank or zeros.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import Tensor, nn

from autocompress.adapters import settle
from autocompress.adapters.cut import carried_left, columns_left, keep_carriers, narrow, rows_left
from autocompress.compressing.choices import Choices, FirstOnes, Kept
from autocompress.compressing.factorize import replace_by_factors
from autocompress.compressing.mask import apply_masks
from autocompress.layers import LayerTable
from autocompress.plan import Factorize, Plan, check_plan, removed_groups
from autocompress.weights import Stand, keep_columns, keep_rows, linearized, retie, tied_weights, untie, weight_of


def shape(model: nn.Module, plan: Plan, table: LayerTable, choices: Choices) -> nn.Module:
    """A copy of the model without what the plan removes, with factors where it asks for a rank, and with its zeros.

    The input model is not edited; an empty plan gives an exact copy (but for transformers' Conv1D, which becomes the
    Linear that computes the same). A layer that takes bits or a rank gets a weight of its own, where others share it;
    what is cut is cut in all of them. Names of the layers that stay do not change; a factorized layer ``x`` becomes
    ``x.0`` and ``x.1``; a removed part becomes a `Stand`.

    Raises:
        PlanError: the plan does not fit the model.
    """
    check_plan(plan, table)
    small = linearized(copy.deepcopy(model))
    _remove_parts(small, plan, table, choices)
    kept = _remove_structures(small, plan, table, choices)
    settle(small)
    if plan.repair == "sequential":
        choices.repair_again(small, plan, kept)
    untie(small, [name for name, lp in plan.layers.items() if lp.quantize or lp.factorize])
    for name, layer_plan in plan.layers.items():
        if layer_plan.factorize:
            _factorize(small, name, layer_plan.factorize, choices, kept)
    apply_masks(small, plan, table, choices, kept)
    return small


def _remove_parts(small: nn.Module, plan: Plan, table: LayerTable, choices: Choices) -> None:
    """Put a `Stand` in the place of every attention, feed-forward part and block that the plan removes."""
    for name in sorted(removed_groups(plan, table)):
        group = table.group(name)
        width = table.layer(group.removes[-1]).weight_shape[0]
        for stub in group.stubs:
            value = None
            if stub.gives.startswith("constant"):
                value = choices.mean_output(stub.name, width) if plan.groups[name].repair else torch.zeros(width)
            small.set_submodule(stub.name, Stand(stub.gives, value))


def _remove_structures(small: nn.Module, plan: Plan, table: LayerTable, choices: Choices) -> Kept:
    """Cut every counted group to the structures that are chosen; what reads them is re-solved where asked for."""
    kept, ties = Kept(), tied_weights(small)
    carried: dict[tuple[str, int], list[int]] = {}
    repaired: set[str] = set()
    for group in table.groups:
        prune = plan.groups.get(group.name)
        if prune is None or group.removable or prune.keep == group.size:
            continue
        structures = choices.kept(group, prune, plan.seed).tolist()
        narrow(kept.columns, columns_left(small, group, structures))
        narrow(kept.rows, rows_left(small, group, structures))
        narrow(carried, carried_left(small, group, structures))
        repaired |= {item.name for item in group.consumers if prune.repair}
    repaired -= {name for names in ties for name in names}  # one weight cannot be solved for two uses
    for name, columns in kept.columns.items():
        solved = choices.repaired(name, torch.tensor(columns)) if name in repaired else None
        keep_columns(small.get_submodule(name), columns, solved)
    for name, rows in kept.rows.items():
        keep_rows(small.get_submodule(name), rows)
    keep_carriers(small, carried)
    retie(small, ties)
    return kept


def _factorize(small: nn.Module, name: str, settings: Factorize, choices: Choices, kept: Kept) -> None:
    module = small.get_submodule(name)
    gram = kept.gram(choices.gram(name), name)
    small.set_submodule(name, replace_by_factors(module, choices.factors(weight_of(module), gram, settings), settings))


def _skeleton(plan: Plan) -> Plan:
    """What of a plan changes shapes; zeros and repairs come with the weights."""
    layers = {name: replace(lp, mask=None) for name, lp in plan.layers.items()}
    return replace(plan, layers=layers, mask=None, repair="dense", learn=None)


def restore(model: nn.Module, plan: Plan, table: LayerTable, weights: dict[str, Tensor]) -> nn.Module:
    """The compressed torch model again, from the dense architecture, its plan and its saved weights."""
    small = shape(model, _skeleton(plan), table, FirstOnes(model))
    state, stored = small.state_dict(), dict(weights)
    owners = {state[name].data_ptr(): name for name in weights if name in state}
    for name, value in state.items():
        if name not in stored and value.data_ptr() in owners:  # shared weights are stored once
            stored[name] = weights[owners[value.data_ptr()]]
    for tie in tied_weights(model):  # also those that were stored before a plan of bits parted them
        names = [f"{name}.weight" for name in tie]
        first = next((weights[name] for name in names if name in weights), None)
        stored.update({name: first for name in names if name in state and name not in stored and first is not None})
    small.load_state_dict(stored, strict=True)
    return small.eval()
