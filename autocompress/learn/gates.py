"""Hard-concrete gates on the groups of a model, and what they leave of it in expectation (Louizos et al. 2018).

A gate lies in [0, 1], is exactly 0 or 1 with some probability, and has a gradient. Knows groups and sizes, no training.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn

from autocompress.errors import ModelError
from autocompress.layers import Group, LayerTable, Slice
from autocompress.plan import Plan

#: Temperature β of the concrete distribution, and the interval (γ, ζ) that it is stretched to.
BETA = 2 / 3
GAMMA, ZETA = -0.1, 1.1

#: Least log α at the start: all gates open (z = 1 without noise, kept with probability 0.98), as the model is trained.
OPEN = 2.5

#: How far the starts of a group's gates lie apart: so far that at any time few of them are undecided, since a gate
#: between open and closed is noise to the training (MiniLM, 195 steps to 60 %: 4 ended at 79.5 %, 14 at 87.4 %).
SPREAD = 14.0

#: Kinds whose gates start in the order in which their structures are missed; the others start with the last of them.
ORDERED = ("heads", "neurons")

#: Kinds that get gates.
GATED = ("heads", "neurons", "attention", "feed_forward", "hidden")


def keep_probability(log_alpha: Tensor) -> Tensor:
    """P(z > 0) of each gate (eq. 12 of the paper)."""
    return torch.sigmoid(log_alpha - BETA * math.log(-GAMMA / ZETA))


def draw(log_alpha: Tensor, generator: torch.Generator) -> Tensor:
    """One sample of the gates, with a gradient to log α (eq. 10 and 11)."""
    noise = torch.rand(log_alpha.shape, generator=generator).clamp(1e-6, 1 - 1e-6)
    return _stretched(torch.sigmoid((noise.log() - (1 - noise).log() + log_alpha) / BETA))


def settled(log_alpha: Tensor) -> Tensor:
    """The gates without noise."""
    return _stretched(torch.sigmoid(log_alpha / BETA))


def _stretched(value: Tensor) -> Tensor:
    return (value * (ZETA - GAMMA) + GAMMA).clamp(0, 1)


class Gates(nn.Module):
    """One log α per structure of each gated group.

    Args:
        table: of the model.
        hidden: whether the residual stream gets gates.
        order: of a group of heads or neurons, its structures, the one that is missed least first ``(size,)``: it starts
            nearest to closing. None: all alike.
    """

    def __init__(self, table: LayerTable, hidden: bool, order: Callable[[Group], Tensor] | None = None) -> None:
        super().__init__()
        kinds = GATED if hidden else GATED[:-1]
        self.groups = tuple(g for g in table.groups if g.kind in kinds)
        self.log_alpha = nn.ParameterList([nn.Parameter(_start(group, order)) for group in self.groups])

    def by_group(self) -> Iterator[tuple[Group, Tensor]]:
        """Each group with its log α ``(size,)``."""
        yield from zip(self.groups, self.log_alpha, strict=True)

    def drawn(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Group name to a sample of its gates."""
        return {group.name: draw(value, generator) for group, value in self.by_group()}

    def probabilities(self) -> dict[str, Tensor]:
        """Group name to the probability that each structure stays."""
        return {group.name: keep_probability(value) for group, value in self.by_group()}


def _start(group: Group, order: Callable[[Group], Tensor] | None) -> Tensor:
    """Start of log α, ``(size,)``."""
    if group.kind not in ORDERED:
        return torch.full((group.size,), OPEN + SPREAD)
    if order is None:
        return torch.full((group.size,), OPEN)
    return torch.empty(group.size).index_put((order(group),), torch.linspace(OPEN, OPEN + SPREAD, group.size))


def owners(item: Slice, size: int) -> Tensor:
    """Structure of each position of a slice, in the order of `Slice.positions`: ``(size·width,)``."""
    return torch.arange(size).repeat_interleave(item.width)


def spread(item: Slice, gates: Tensor, length: int) -> Tensor:
    """Gates ``(size,)`` laid out along an axis of `length` positions; 1 where the slice owns nothing."""
    positions = torch.tensor(item.positions(range(len(gates))))
    return torch.ones(length).index_put((positions,), gates[owners(item, len(gates))])


class Expected:
    """Expected weights and widths of the blocks, for probabilities (or 0 and 1) of each structure.

    Args:
        table: of the model; only layers inside blocks count.
    """

    def __init__(self, table: LayerTable) -> None:
        self.table = table
        self.layers = [layer for layer in table.layers if layer.block and layer.kind == "linear"]
        self.total = float(sum(math.prod(layer.weight_shape) for layer in self.layers))
        if not self.layers:
            raise ModelError("cofi counts the weights of blocks, and no adapter knows a removable block of this model")
        self._rows: dict[str, list[tuple[Group, Slice]]] = {layer.name: [] for layer in self.layers}
        self._columns: dict[str, list[tuple[Group, Slice]]] = {layer.name: [] for layer in self.layers}
        self._parts: dict[str, list[str]] = {layer.name: [] for layer in self.layers}
        for group in table.groups:
            for slices, sides in ((group.producers, self._rows), (group.consumers, self._columns)):
                for item in slices:
                    if item.name in sides:
                        sides[item.name].append((group, item))
            if group.kind in ("attention", "feed_forward"):
                for name in group.removes:
                    self._parts[name].append(group.name)

    def sparsity(self, probabilities: Mapping[str, Tensor]) -> Tensor:
        """Expected share of the blocks' weights that goes."""
        kept = torch.zeros(())
        for layer in self.layers:
            out, into = layer.weight_shape
            weights = self._side(self._rows[layer.name], out, probabilities)
            weights = weights * self._side(self._columns[layer.name], into, probabilities)
            kept = kept + weights * self._present(layer.name, probabilities)
        return 1 - kept / self.total

    def _side(self, slices: list[tuple[Group, Slice]], length: int, probabilities: Mapping[str, Tensor]) -> Tensor:
        count = torch.tensor(float(length))
        for group, item in slices:
            if group.name in probabilities:
                count = count - item.width * (group.size - probabilities[group.name].sum())
        return count

    def _present(self, layer: str, probabilities: Mapping[str, Tensor]) -> Tensor:
        present = torch.ones(())
        for part in self._parts[layer]:
            if part in probabilities:
                present = present * probabilities[part].squeeze()
        return present

    def widths(self, probabilities: Mapping[str, Tensor]) -> Tensor:
        """Expected counts that latency follows, ``(4,)``, each as a share of dense.

        Attention parts; heads times hidden width; feed-forward parts; neurons times hidden width.
        """
        stream = [
            probabilities[g.name].mean() for g in self.table.groups if g.kind == "hidden" and g.name in probabilities
        ]
        hidden = stream[0] if stream else torch.ones(())
        shares = []
        for part, structures in (("attention", "heads"), ("feed_forward", "neurons")):
            groups = [g for g in self.table.groups if g.kind == structures]
            here = [self._part_of(group, part, probabilities) for group in groups]
            kept = [
                present * (probabilities[g.name].mean() if g.name in probabilities else torch.ones(()))
                for g, present in zip(groups, here, strict=True)
            ]
            shares += [torch.stack(here).mean(), torch.stack(kept).mean() * hidden]
        return torch.stack(shares)

    def _part_of(self, group: Group, kind: str, probabilities: Mapping[str, Tensor]) -> Tensor:
        for part in self.table.groups:
            if part.kind == kind and part.block == group.block and part.name in probabilities:
                return probabilities[part.name].squeeze()
        return torch.ones(())


def plan_widths(plan: Plan, table: LayerTable) -> list[float]:
    """`Expected.widths` of what a plan leaves."""
    left = {}
    for group in table.groups:
        if group.kind in GATED:
            keep = plan.groups[group.name].keep if group.name in plan.groups else group.size
            left[group.name] = (torch.arange(group.size) < keep).to(torch.float32)
    return [float(value) for value in Expected(table).widths(left)]
