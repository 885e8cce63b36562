"""What the integer program chooses among in a joint space: parts with their options, under settings that all share.

A *part* is what one block, or one layer outside the blocks, decides by itself: its heads, neurons, bits and rank
together. A variable that reaches into several parts (one precision for all layers, the hidden width, channels along a
residual stream) is *shared*: the program is solved once for each combination of the shared ones.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from autocompress.layers import LayerTable
from autocompress.space import SearchSpace, Values, Variable
from autocompress.tables.units import units_of

#: Options up to which a part's choices are combined; beyond, every scope is a part by itself.
MOST_OPTIONS = 600

#: Combinations of shared variables that the program is solved for at most.
MOST_SHARED = 24

#: Variables that the program leaves alone: recipes are learned, and zeros save no seconds.
LEFT_ALONE = ("learn", "sparsity")


@dataclass(frozen=True)
class Part:
    """Variables that are chosen together.

    Attributes:
        name: of the block or layer.
        options: levels of its variables; the first leaves all as it is.
    """

    name: str
    options: tuple[Values, ...]


@dataclass(frozen=True)
class Parts:
    """A joint space as the program sees it.

    Attributes:
        base: values that leave everything as heavy as the space allows.
        parts: that choose independently of each other; one without a choice where all is shared.
        shared: combinations of the shared variables.
    """

    base: Values
    parts: tuple[Part, ...]
    shared: tuple[Values, ...]

    @cached_property
    def chosen(self) -> frozenset[str]:
        """Variables that the program decides on."""
        options = itertools.chain(self.shared, *(part.options for part in self.parts))
        return frozenset(name for option in options for name in option)


def parts_of(space: SearchSpace) -> Parts:
    """Divide the structural variables of a space into parts and shared ones."""
    base = {name: value for name, value in space.uniform().items() if name in {v.name for v in space.structure}}
    chosen = [v for v in space.structure if v.name.partition(":")[0] not in LEFT_ALONE]
    homes = _homes(space.table)
    inner: dict[str, list[Variable]] = {}
    shared: list[Variable] = []
    for variable in chosen:
        units = {homes.get(layer, layer) for layer in touched_layers(variable.name, space)}
        if len(units) == 1:
            inner.setdefault(units.pop(), []).append(variable)
        else:
            shared.append(variable)
    blocks = space.table.blocks
    parts = itertools.chain.from_iterable(_parts(name, variables, base, blocks) for name, variables in inner.items())
    return Parts(base, tuple(parts) or (Part("model", ({},)),), tuple(_combinations(shared, base)))


def touched_layers(name: str, space: SearchSpace) -> frozenset[str]:
    """Layers whose cost a variable decides on."""
    kind, _, scope = name.partition(":")
    if kind in ("keep", "remove"):
        group = space.table.group(scope)
        return frozenset([*(item.name for item in (*group.producers, *group.consumers)), *group.removes])
    return frozenset(layer for layer, choice in space.choices.items() if choice.scope == scope)


def _homes(table: LayerTable) -> dict[str, str]:
    """The part of each layer that is no part by itself; a head decides with the embedding whose weight it shares."""
    homes = {layer: unit.name for unit in units_of(table) for layer in unit.layers}
    parted = [layer for layer in table.layers if layer.shares and layer.allows("quantize")]
    return homes | {layer.shares: homes.get(layer.name, layer.name) for layer in parted}


def _parts(name: str, variables: Sequence[Variable], base: Values, blocks: Collection[str]) -> Iterator[Part]:
    """One part of all variables; where they are too many to combine, one of each scope: a layer, or a group."""
    whole = [variable.name for variable in variables if variable.name.removeprefix("remove:") in blocks]
    others = [variable for variable in variables if variable.name not in whole]
    if math.prod(len(variable.levels) for variable in others) > MOST_OPTIONS:
        scopes: dict[str, list[Variable]] = {}
        for variable in variables:
            scopes.setdefault(variable.name.partition(":")[2], []).append(variable)
        for scope, alike in scopes.items():
            yield Part(scope, tuple(_levels(alike, base)))
        return
    gone: list[Values] = [{removal: 1} for removal in whole]
    rest: Values = dict.fromkeys(whole, 0)
    yield Part(name, tuple({**rest, **option} for option in [*_levels(others, base), *gone]))


def _levels(variables: Sequence[Variable], base: Values) -> Iterator[Values]:
    """All combinations of the levels, the heaviest first."""
    names = [variable.name for variable in variables]
    spans = [
        [base[variable.name], *(level for level in range(len(variable.levels)) if level != base[variable.name])]
        for variable in variables
    ]
    for levels in itertools.product(*spans):
        yield dict(zip(names, levels, strict=True))


def _combinations(shared: Sequence[Variable], base: Values) -> Iterator[Values]:
    """All combinations of shared variables; where they are too many, those of one kind move together."""
    if math.prod(len(variable.levels) for variable in shared) <= MOST_SHARED:
        yield from _levels(shared, base)
        return
    kinds: dict[tuple[str, int], list[Variable]] = {}
    for variable in shared:
        kinds.setdefault((variable.name.partition(":")[0], len(variable.levels)), []).append(variable)
    steps = [range(length) for _kind, length in kinds]
    combinations = sorted(itertools.product(*steps), key=lambda levels: (sum(levels), levels))
    spread = max(1, math.ceil(len(combinations) / MOST_SHARED))
    for levels in combinations[::spread]:
        yield {variable.name: level for level, alike in zip(levels, kinds.values(), strict=True) for variable in alike}


def merged(*choices: Mapping[str, int | float]) -> Values:
    """Values of several choices, later ones over earlier ones."""
    return {name: value for choice in choices for name, value in choice.items()}
