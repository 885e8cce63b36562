"""Where students come from: plans that take out blocks or width alike everywhere. A user's own is `Task.student`."""

from __future__ import annotations

from autocompress.errors import ModelError
from autocompress.layers import LayerTable
from autocompress.plan import Distill, Plan, Prune


def by_depth(table: LayerTable, keep_every: int = 2, distill: Distill | None = None) -> Plan:
    """Keep every `keep_every`-th block, the first included, as DistilBERT does with every second (Sanh et al. 2019).

    Args:
        table: of the dense model.
        keep_every: 2 or more.
        distill: the recovery.

    Raises:
        ModelError: the model has fewer than two removable blocks.
        ValueError: `keep_every` is below 2.
    """
    if keep_every < 2:
        raise ValueError(f"keep_every must be 2 or more, but got {keep_every}")
    if len(table.blocks) < 2:
        raise ModelError(f"a student by depth needs a model of 2 or more removable blocks, but it has {table.blocks}")
    gone = [name for i, name in enumerate(table.blocks) if i % keep_every]
    return Plan({name: Prune(0) for name in gone}, distill=distill)


def by_width(table: LayerTable, share: float, distill: Distill | None = None) -> Plan:
    """Keep the same share of the structures of every group that is counted: heads, neurons, channels, hidden.

    Args:
        table: of the dense model.
        share: in (0, 1]; at least one structure of each group stays.
        distill: the recovery.

    Raises:
        ModelError: the model has no such group.
        ValueError: `share` is outside (0, 1].
    """
    if not 0 < share <= 1:
        raise ValueError(f"share must be in (0, 1], but got {share}")
    groups = [group for group in table.groups if not group.removable]
    if not groups:
        raise ModelError(
            "a student by width needs groups of heads, neurons, channels or hidden dimensions, it has none"
        )
    keeps = {group.name: max(1, round(share * group.size)) for group in groups}
    return Plan({g.name: Prune(keeps[g.name]) for g in groups if keeps[g.name] < g.size}, distill=distill)
