"""Which plans a table is measured at, and which mixtures it is calibrated and checked on. No torch."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from autocompress.hardware import Rounding
from autocompress.layers import Group, Layer, LayerTable
from autocompress.plan import INT4_GROUP, Factorize, LayerPlan, Plan, Prune, Quantize, effective_layers
from autocompress.plan.check import factor_size, largest_rank, legal_precisions, removed_layers
from autocompress.space import SearchSpace
from autocompress.tables.units import Unit, units_of

Option = Quantize | None


@dataclass(frozen=True)
class Menu:
    """What a search may choose from, beside leaving all as it is.

    Attributes:
        shares: kind of group to the shares, below 1, that may stay.
        options: layer kind to its ways to compute, beside fp32.
        ranks: shares, below 1, of the full rank.
        parts: kinds of groups that may go as a whole.
        rounding: multiples of widths and ranks.
    """

    shares: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    options: Mapping[str, tuple[Quantize, ...]] = field(default_factory=dict)
    ranks: tuple[float, ...] = ()
    parts: tuple[str, ...] = ()
    rounding: Rounding = field(default_factory=Rounding)

    @property
    def choices(self) -> tuple[Option, ...]:
        """All ways to compute, fp32 first."""
        found = dict.fromkeys(option for options in self.options.values() for option in options)
        return (None, *found)


def menu_of(space: SearchSpace) -> Menu:
    """What a search space chooses from, as far as latencies depend on it."""
    rules, table = space.rules, space.table
    kinds = dict.fromkeys(group.kind for group in table.groups if not group.removable)
    shares = {kind: tuple(share for share in rules.groups.shares(kind) if share < 1) for kind in kinds}
    options: dict[str, dict[Quantize, None]] = {}
    ranks: set[float] = set()
    for name, choice in space.choices.items():
        layer = table.layer(name)
        ranks |= set(choice.rule.rank) if layer.allows("factorize") else set()
        for precision in choice.precisions:
            for bits in choice.rule.weight_bits:
                made = choice.rule.quantized(precision, bits)
                if made:
                    options.setdefault(layer.kind, {})[_timed_alike(made)] = None
    parts = {
        "block": rules.blocks.remove,
        "attention": rules.groups.remove_attention,
        "feed_forward": rules.groups.remove_feed_forward,
    }
    return Menu(
        {kind: levels for kind, levels in shares.items() if levels},
        {kind: tuple(found) for kind, found in options.items()},
        tuple(sorted((share for share in ranks if share < 1), reverse=True)),
        tuple(kind for kind, may_go in parts.items() if may_go),
        space.profile.rounding,
    )


def _timed_alike(quantize: Quantize) -> Quantize:
    """The plainest settings that take the same time."""
    return Quantize(
        quantize.precision,
        activation_bits=quantize.activation_bits,
        symmetric=quantize.symmetric,
        smooth=quantize.smooth,
    )


class _Maker:
    """Makes plans of one model from a menu.

    Args:
        table: of the model.
        menu: what there is to choose.
        units: of the model.
    """

    def __init__(self, table: LayerTable, menu: Menu, units: Sequence[Unit] | None = None) -> None:
        self.table = table
        self.menu = menu
        self.units = units_of(table) if units is None else tuple(units)
        self.homes = {layer: unit for unit in self.units for layer in unit.layers}
        counted = [group for group in table.groups if not group.removable]
        self.inner = [group for group in counted if self._is_inner(group)]
        self.streams = [group for group in counted if not self._is_inner(group)]

    def _is_inner(self, group: Group) -> bool:
        return len({self.homes[n].name if n in self.homes else n for n in _members(group)}) == 1

    def pruned(self, share_of: Mapping[str, float]) -> dict[str, Prune]:
        """Prunings by group name and share, full ones left out."""
        found = {}
        for group in (*self.inner, *self.streams):
            step: int = getattr(self.menu.rounding, group.kind)
            keep = max(1, round(group.size * share_of.get(group.name, 1.0) / step)) * step
            if keep < group.size:
                found[group.name] = Prune(keep, "magnitude", repair=False)
        return found

    def plan(
        self,
        groups: Mapping[str, Prune],
        options: Mapping[str, Option] | None = None,
        ranks: Mapping[str, float] | None = None,
    ) -> Plan:
        """A plan of prunings, ways to compute and ranks by layer; what a layer cannot have is left out."""
        left = effective_layers(Plan(groups), self.table)
        layers = {}
        for effective in left:
            name = effective.layer.name
            if effective.removed:
                continue
            factorize = self._factorize(effective.layer, effective.shape, (ranks or {}).get(name, 1.0))
            option = (options or {}).get(name)
            width = factorize.rank if factorize else effective.shape[1]
            fits = option is not None and self._fits(effective.layer, option, width)
            layers[name] = LayerPlan(factorize, option if fits else None)
        return Plan(groups, layers)

    def _factorize(self, layer: Layer, shape: tuple[int, ...], share: float) -> Factorize | None:
        if share >= 1 or not layer.allows("factorize"):
            return None
        full, step = largest_rank(shape), self.menu.rounding.rank
        rank = min(max(1, round(full * share / step)) * step, full)
        return Factorize(rank, "plain") if rank * factor_size(shape) < math.prod(shape) else None

    def _fits(self, layer: Layer, option: Quantize, width: int) -> bool:
        if option not in self.menu.options.get(layer.kind, ()) or option.precision not in legal_precisions(layer):
            return False
        whole = width % INT4_GROUP == 0
        return whole or layer.kind != "embedding" or option.precision != "int4-weights"

    def at_rest(self, layers: Collection[str]) -> dict[str, float]:
        """Least shares of the inner groups that touch none of some layers."""
        resting = (group for group in self.inner if not _members(group) & set(layers))
        return {group.name: min(self.menu.shares.get(group.kind, (1.0,))) for group in resting}

    def cell_layers(self, groups: Collection[Group]) -> tuple[str, ...]:
        """Layers of the cells that hold some groups."""
        touched = {name for group in groups for name in _members(group)}
        found = []
        for unit in self.units:
            names = dict(zip(unit.roles, unit.layers, strict=True))
            for cell in unit.cells:
                layers = [names[role] for role in cell]
                if touched & set(layers):
                    found += layers
        return tuple(found)


def _members(group: Group) -> set[str]:
    return {item.name for item in (*group.producers, *group.consumers)}


def menu_plans(table: LayerTable, menu: Menu, units: Sequence[Unit] | None = None) -> tuple[Plan, ...]:
    """Plans that change one thing, in all units alike: dense first, no plan twice.

    At every width of the stream: each way to compute; each width of each kind of inner structure with each way to
    compute of the layers that share it. At full and least widths: each rank with each way to compute. At full widths:
    each way to compute, and each rank, of each layer alone; each kind of part that may go, removed. Where one part of
    a block changes, the others are as narrow as they get, so that their noise adds little.
    """
    maker = _Maker(table, menu, units)
    return tuple(dict.fromkeys(_single_changes(maker)))


def _single_changes(maker: _Maker) -> Iterator[Plan]:
    menu = maker.menu
    everything = tuple(layer.name for layer in maker.table.layers)
    stream_shares = sorted({s for g in maker.streams for s in menu.shares.get(g.kind, ())}, reverse=True)
    for stream in (1.0, *stream_shares):
        widths = {group.name: stream for group in maker.streams}
        for option in menu.choices:
            yield maker.plan(maker.pruned(widths), dict.fromkeys(everything, option))
            for rank in menu.ranks if stream == 1.0 else ():
                yield maker.plan({}, dict.fromkeys(everything, option), dict.fromkeys(everything, rank))
        for kind, alike in _by_kind(maker.inner).items():
            layers = maker.cell_layers(alike)
            levels = (1.0, *menu.shares.get(kind, ()))
            for share in levels:
                own = {group.name: share for group in alike}
                groups = maker.pruned({**maker.at_rest(layers), **widths, **own})
                for option in menu.choices:
                    yield maker.plan(groups, dict.fromkeys(layers, option))
                    for rank in menu.ranks if stream == 1.0 and share in (1.0, min(levels)) else ():
                        yield maker.plan(groups, dict.fromkeys(layers, option), dict.fromkeys(layers, rank))
    yield from _alone(maker)
    yield from _removals(maker)


def _by_kind(groups: Sequence[Group]) -> dict[str, list[Group]]:
    found: dict[str, list[Group]] = {}
    for group in groups:
        found.setdefault(group.kind, []).append(group)
    return found


def _alone(maker: _Maker) -> Iterator[Plan]:
    """Each way to compute, and each rank, of the first, second, … layer of every unit."""
    most = max((len(unit.layers) for unit in maker.units), default=0)
    for place in range(most):
        layers = [unit.layers[place] for unit in maker.units if len(unit.layers) > place]
        groups = maker.pruned(maker.at_rest(layers))
        for option in maker.menu.choices:
            yield maker.plan(groups, dict.fromkeys(layers, option))
        for rank in maker.menu.ranks:
            yield maker.plan(groups, {}, dict.fromkeys(layers, rank))


def _removals(maker: _Maker) -> Iterator[Plan]:
    """Each kind of part that may go, removed, with the other parts whole and at rest."""
    for kind in maker.menu.parts:
        parts = [group for group in maker.table.groups if group.kind == kind and kind != "block"]
        removed = {part.name: Prune(0, repair=False) for part in parts}
        layers = {name for part in parts for name in part.removes}
        if parts:
            yield maker.plan(removed)
            yield maker.plan({**removed, **maker.pruned(maker.at_rest(layers))})


def calibration_plans(table: LayerTable, menu: Menu, count: int, seed: int = 0) -> tuple[Plan, ...]:
    """`count` different mixtures of structure and ways to compute, seeded; the first of seed 0 is dense.

    Each draws how light it is on the whole, and every group and layer near that; a third computes alike throughout,
    a third alike within each unit, a third layer by layer.
    """
    maker = _Maker(table, menu)
    draw = np.random.default_rng(seed)
    found: dict[Plan, None] = {Plan(): None} if seed == 0 else {}
    for _ in range(20 * count):
        if len(found) >= count:
            break
        made = _mixture(maker, draw, len(found) % 3)
        if made != Plan():
            found[made] = None
    return tuple(found)[:count]


def _mixture(maker: _Maker, draw: np.random.Generator, grain: int) -> Plan:
    menu = maker.menu
    light = draw.uniform()

    def near(levels: Sequence[float]) -> float:
        """One of the levels from full to least, near the mixture's lightness."""
        ordered = [1.0, *sorted(levels, reverse=True)]
        place = light * (len(ordered) - 1) + draw.normal(0, 0.8)
        return ordered[int(np.clip(round(place), 0, len(ordered) - 1))]

    shares = {g.name: near(menu.shares.get(g.kind, ())) for g in (*maker.inner, *maker.streams)}
    gone = _removed(maker, draw, light)
    lost = removed_layers(Plan(gone), maker.table)
    pruned = {n: p for n, p in maker.pruned(shares).items() if not _members(maker.table.group(n)) <= lost}
    return maker.plan({**pruned, **gone}, _drawn_options(maker, draw, grain), _drawn_ranks(maker, draw))


def _removed(maker: _Maker, draw: np.random.Generator, light: float) -> dict[str, Prune]:
    """Parts that go: light mixtures lose more of them, never more than half of the blocks."""
    gone: dict[str, Prune] = {}
    blocks = maker.table.blocks
    if "block" in maker.menu.parts:
        most = len(blocks) // 2
        chosen = draw.permutation(len(blocks))[: draw.binomial(most, 0.5 * light)]
        gone = {blocks[i]: Prune(0) for i in sorted(chosen)}
    for group in maker.table.groups:
        may_go = group.kind in maker.menu.parts and group.kind != "block" and group.block not in gone
        if may_go and f"{group.block}/attention" not in gone and draw.uniform() < 0.15 * light:
            gone[group.name] = Prune(0, repair=False)
    return gone


def _drawn_options(maker: _Maker, draw: np.random.Generator, grain: int) -> dict[str, Option]:
    """Ways to compute: alike throughout (grain 0), within each unit (1), or layer by layer (2)."""
    choices = maker.menu.choices
    common = choices[draw.integers(len(choices))]
    found: dict[str, Option] = {}
    for unit in maker.units:
        own = common if grain == 0 else choices[draw.integers(len(choices))]
        for layer in unit.layers:
            kind = maker.table.layer(layer).kind
            offered = (None, *maker.menu.options.get(kind, ()))
            alike = own if own in offered else offered[draw.integers(len(offered))]
            found[layer] = offered[draw.integers(len(offered))] if grain == 2 else alike
    return found


def _drawn_ranks(maker: _Maker, draw: np.random.Generator) -> dict[str, float]:
    """Ranks of the layers of a few units."""
    ranks = maker.menu.ranks
    chosen = {unit.name: ranks[draw.integers(len(ranks))] for unit in maker.units if ranks and draw.uniform() < 0.15}
    return {layer: chosen[unit.name] for unit in maker.units if unit.name in chosen for layer in unit.layers}
