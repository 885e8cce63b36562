"""What the integer program chooses among in a joint space: parts with their options, under settings that all share.

A *part* is what one block, or one layer outside the blocks, decides by itself: its heads, neurons, bits and rank
together. Where these are too many to be combined, those that reach no common layer are parts of their own; and within a
part its structure is chosen first, and under it each layer's bits and rank by themselves. A variable that reaches into
several parts (one precision for all layers, the hidden width, channels along a residual stream) is *shared*: the
program is solved once for each combination of the shared ones.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from autocompress.layers import Group, LayerTable
from autocompress.space import SearchSpace, Values, Variable
from autocompress.tables.units import units_of

#: Options up to which a part's choices are combined.
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
        inner: what is chosen besides, each by itself once an option is taken: the settings of single layers.
    """

    name: str
    options: tuple[Values, ...]
    inner: tuple[Part, ...] = ()

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Its variables, inner ones included."""
        own = dict.fromkeys(name for option in self.options for name in option)
        return (*own, *(name for part in self.inner for name in part.names))


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
        return frozenset(itertools.chain(*self.shared, *(part.names for part in self.parts)))


def drawn_from(space: SearchSpace) -> SearchSpace:
    """A space without training as refinements draw from it: nothing that the program leaves alone.

    Where there is nothing else to choose, the space as it is.
    """
    held = [v for v in space.structure if v.name.partition(":")[0] in LEFT_ALONE]
    left = tuple(v for v in space.variables if v not in held)
    return (
        replace(space, variables=left, fixed={**space.fixed, **{v.name: v.levels[0] for v in held}}) if left else space
    )


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
    parts = itertools.chain.from_iterable(_parts(name, variables, base, space) for name, variables in inner.items())
    return Parts(base, tuple(parts) or (Part("model", ({},)),), tuple(_combinations(_spans(shared, base), MOST_SHARED)))


def touched_layers(name: str, space: SearchSpace) -> frozenset[str]:
    """Layers whose cost a variable decides on."""
    kind, _, scope = name.partition(":")
    if kind in ("keep", "remove"):
        group, layers = space.table.group(scope), {layer.name for layer in space.table.layers}
        carriers = (item.name for item in group.carriers if item.name in layers)
        return frozenset([*(s.name for s in (*group.producers, *group.consumers)), *carriers, *group.removes])
    return frozenset(layer for layer, choice in space.choices.items() if choice.scope == scope)


def reached_layers(part: Part, space: SearchSpace) -> frozenset[str]:
    """Layers whose cost a part decides on, with what is chosen within it."""
    return frozenset().union(*(touched_layers(name, space) for name in part.names))


def likeness(part: Part, rest: Values, space: SearchSpace, by_place: bool) -> object:
    """Equal for parts whose options add the same to a plan: blocks at different depths.

    Args:
        part: of the space.
        rest: values of everything else.
        space: without recovery.
        by_place: whether what a block adds depends on what stands before and after it.
    """
    table, choices, order, touched = space.table, space.choices, part.names, reached_layers(part, space)
    layers = [layer for layer in table.layers if layer.name in touched]
    scopes = {scope: i for i, scope in enumerate(dict.fromkeys(name.partition(":")[2] for name in order))}
    offered = {la.name: choices[la.name] for la in layers if la.name in choices}
    return (
        _beside(touched, table) if by_place else (),
        tuple((name.partition(":")[0], scopes[name.partition(":")[2]], rest[name]) for name in order),
        tuple(tuple(option.get(name) for name in order) for one in (part, *part.inner) for option in one.options),
        tuple((la.kind, la.weight_shape, la.macs, la.params, la.groups, tuple(la.why_not)) for la in layers),
        tuple((id(c.rule), c.precisions, scopes.get(c.scope)) for c in offered.values()),
        tuple((group.kind, group.size, rest.get(f"keep:{group.name}")) for group in _counted(touched, table)),
    )


def _beside(touched: frozenset[str], table: LayerTable) -> tuple[object, ...]:
    """What stands before and after some layers; nothing at the model's ends."""
    layers = table.layers
    places = [place for place, layer in enumerate(layers) if layer.name in touched]
    if not places:
        return ()
    beside = [layers[place] for place in (min(places) - 1, max(places) + 1) if 0 <= place < len(layers)]
    return (min(places) > 0, *((layer.kind, layer.weight_shape, layer.macs) for layer in beside))


def _counted(touched: frozenset[str], table: LayerTable) -> list[Group]:
    """Counted groups that make or read structures of some layers."""
    return [
        group
        for group in table.groups
        if not touched.isdisjoint(item.name for item in (*group.producers, *group.consumers))
    ]


def _homes(table: LayerTable) -> dict[str, str]:
    """The part of each layer that is no part by itself; a head decides with the embedding whose weight it shares."""
    homes = {layer: unit.name for unit in units_of(table) for layer in unit.layers}
    parted = [layer for layer in table.layers if layer.shares and layer.allows("quantize")]
    return homes | {layer.shares: homes.get(layer.name, layer.name) for layer in parted}


def _parts(name: str, variables: Sequence[Variable], base: Values, space: SearchSpace) -> Iterator[Part]:
    """One part of all variables; where they are too many to combine, one of each set that reaches common layers."""
    if math.prod(len(variable.levels) for variable in variables) <= MOST_OPTIONS:
        yield _part(name, variables, base, space)
        return
    sets = _joined(variables, space)
    for joined in sets:
        yield _part(joined[0].name.partition(":")[2] if len(sets) > 1 else name, joined, base, space)


def _part(name: str, variables: Sequence[Variable], base: Values, space: SearchSpace) -> Part:
    """All combinations; where they are too many, those of the structure, and under them each layer's by itself."""
    whole = [variable.name for variable in variables if variable.name.removeprefix("remove:") in space.table.blocks]
    outer = [variable for variable in variables if variable.name not in whole]
    inner: dict[str, list[Variable]] = {}
    if math.prod(len(variable.levels) for variable in outer) > MOST_OPTIONS:
        for variable in outer:
            kind, _, scope = variable.name.partition(":")
            if kind not in ("keep", "remove"):
                inner.setdefault(scope, []).append(variable)
        outer = [variable for variable in outer if variable.name.partition(":")[2] not in inner]
    gone: list[Values] = [{removal: 1} for removal in whole]
    rest: Values = dict.fromkeys(whole, 0)
    options = ({**rest, **option} for option in [*_combinations(_thinned(outer, base), MOST_OPTIONS), *gone])
    alone = (Part(scope, tuple(_combinations(_thinned(v, base), MOST_OPTIONS))) for scope, v in inner.items())
    return Part(name, tuple(options), tuple(alone))


def _joined(variables: Sequence[Variable], space: SearchSpace) -> list[list[Variable]]:
    """The variables in sets of which no two reach a common layer."""
    found: list[tuple[frozenset[str], list[Variable]]] = []
    for variable in variables:
        reached, alike = touched_layers(variable.name, space), [variable]
        for layers, others in [item for item in found if not item[0].isdisjoint(reached)]:
            found.remove((layers, others))
            reached, alike = reached | layers, [*others, *alike]
        found.append((reached, alike))
    return [alike for _layers, alike in found]


def _spans(variables: Sequence[Variable], base: Values) -> list[tuple[str, list[int]]]:
    """Names and levels, the base's first."""
    return [
        (v.name, [int(base[v.name]), *(level for level in range(len(v.levels)) if level != base[v.name])])
        for v in variables
    ]


def _thinned(variables: Sequence[Variable], base: Values) -> list[tuple[str, list[int]]]:
    """The same; where combinations are too many, levels between the base and the lightest go."""
    spans = _spans(variables, base)
    while math.prod(len(levels) for _name, levels in spans) > MOST_OPTIONS:
        _name, longest = max(spans, key=lambda span: len(span[1]))
        if len(longest) == 2:
            break
        del longest[len(longest) // 2]
    return spans


def _combinations(spans: Sequence[tuple[str, list[int]]], most: int) -> Iterator[Values]:
    """All combinations of some variables' levels, the heaviest first; too many ones of one kind move together."""
    names, levels = [name for name, _levels in spans], [levels for _name, levels in spans]
    if math.prod(map(len, levels)) <= most:
        for chosen in itertools.product(*levels):
            values: Values = dict(zip(names, chosen, strict=True))
            yield values
        return
    kinds: dict[tuple[str, int], list[int]] = {}
    for place, name in enumerate(names):
        kinds.setdefault((name.partition(":")[0], len(levels[place])), []).append(place)
    steps = [range(length) for _kind, length in kinds]
    combinations = sorted(itertools.product(*steps), key=lambda places: (sum(places), places))
    spread = max(1, math.ceil(len(combinations) / most))
    for places in combinations[::spread]:
        yield {
            names[which]: levels[which][place]
            for place, alike in zip(places, kinds.values(), strict=True)
            for which in alike
        }


def merged(*choices: Mapping[str, int | float]) -> Values:
    """Values of several choices, later ones over earlier ones."""
    return {name: value for choice in choices for name, value in choice.items()}
