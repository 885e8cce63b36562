"""Channels of convolutional networks: which can only be removed together, read off the traced graph.

Needs no description of the network. A group is offered only where a trial shows that taking its channels out gives
the outputs of the network whose readers of these channels are zero.
"""

from __future__ import annotations

import copy
import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from autocompress.adapters.cut import columns_left, keep_structures
from autocompress.adapters.elements import Place
from autocompress.adapters.flow import Flow
from autocompress.adapters.operations import RULES
from autocompress.layers import Group, Slice
from autocompress.weights import matrix_of, set_weight, weight_of

#: Largest difference between the cut and the zeroed network in the trial, as a share of the largest output.
TRIAL_TOLERANCE = 1e-4

Choice = Sequence[tuple[Group, Sequence[int]]]


def groups(model: nn.Module, example_inputs: Mapping[str, Tensor]) -> list[Group]:
    """Groups of kind "channels", in forward order of what makes them; none where the model cannot be traced.

    Channels that add up, are concatenated, or pass through a depthwise convolution or a norm are followed to all that
    read them. Those that reach an operation which mixes channels or is not known, or the outputs, are not offered.

    Args:
        model: any module; not changed. Without a Conv2d it has no channels.
        example_inputs: keyword arguments of one query.
    """
    if not any(isinstance(module, nn.Conv2d) for module in model.modules()):
        return []
    network = copy.deepcopy(model).eval()
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.export.export(network, (), dict(example_inputs))
    except Exception:  # the model is the user's, and tracing has its limits: whatever it raises
        return []
    return _proven(network, _grouped(Flow(program, network, RULES).elements.classes()), example_inputs)


def _grouped(classes: Sequence[Mapping[Place, list[int]]]) -> list[Group]:
    """Classes that lie in the same places, equally often, are the structures of one group."""
    alike: dict[frozenset[tuple[Place, int]], list[Mapping[Place, list[int]]]] = defaultdict(list)
    for found in classes:
        if {"producer", "consumer"} <= {place.role for place in found}:
            alike[frozenset((place, len(positions)) for place, positions in found.items())].append(found)
    made: list[Group] = []
    for members in alike.values():
        if len(members) < 2:
            continue
        slices = {place: _slice(place, [m[place] for m in members]) for place in members[0]}
        producers, consumers, carriers = (
            tuple(item for place, item in slices.items() if place.role == role)
            for role in ("producer", "consumer", "carrier")
        )
        name = f"{producers[0].name}/channels"
        again = sum(group.name.partition("#")[0] == name for group in made)
        name = f"{name}#{again + 1}" if again else name
        made.append(Group(name, "channels", len(members), producers, consumers, carriers))
    return made


def _slice(place: Place, positions: Sequence[list[int]]) -> Slice:
    """The positions of each structure, written out only where they do not lie side by side."""
    flat, width = [p for own in positions for p in own], len(positions[0])
    if flat == list(range(flat[0], flat[0] + len(flat))):
        return Slice(place.name, width, flat[0], axis=place.axis)
    return Slice(place.name, width, index=tuple(flat), axis=place.axis)


def _proven(network: nn.Module, found: list[Group], example_inputs: Mapping[str, Tensor]) -> list[Group]:
    """The groups that hold in a trial: all at once, or else those that hold alone and then together."""
    draw = np.random.default_rng(0)
    kept = {g.name: sorted(draw.permutation(g.size)[: g.size // 2].tolist()) for g in found}

    def holds(some: Sequence[Group]) -> bool:
        return _is_masked_twin(network, [(group, kept[group.name]) for group in some], example_inputs)

    if holds(found):
        return found
    alone = [group for group in found if holds([group])]
    return alone if holds(alone) else []


def _is_masked_twin(network: nn.Module, choice: Choice, example_inputs: Mapping[str, Tensor]) -> bool:
    """Whether taking structures out gives the outputs that zeros in their readers give."""
    masked, small = copy.deepcopy(network), copy.deepcopy(network)
    for group, structures in choice:
        for item in group.consumers:
            module = masked.get_submodule(item.name)
            zeroed = torch.zeros_like(matrix_of(module))
            left = columns_left(masked, group, structures)[item.name]
            zeroed[:, left] = matrix_of(module)[:, left]
            set_weight(module, zeroed.reshape(weight_of(module).shape))
    try:
        keep_structures(small, choice)
        with torch.inference_mode():
            wanted, got = _tensors(masked(**example_inputs)), _tensors(small(**example_inputs))
    except Exception:  # sizes written into the forward do not follow the channels: whatever it raises
        return False
    return len(wanted) == len(got) and all(map(_close, wanted, got))


def _tensors(output: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]


def _close(wanted: Tensor, got: Tensor) -> bool:
    if wanted.shape != got.shape:
        return False
    largest = float((wanted.double() - got.double()).abs().max())
    return largest <= TRIAL_TOLERANCE * float(wanted.double().abs().max())
