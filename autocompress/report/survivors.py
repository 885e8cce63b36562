"""What of each block survives a plan: heads, neurons, and the residual stream; as a record and as a figure."""

from __future__ import annotations

from dataclasses import dataclass

import plotly.graph_objects as go

from autocompress.layers import Group, LayerTable
from autocompress.plan import Plan, removed_groups
from autocompress.plan.check import lies_in, removed_layers
from autocompress.report.figures import base_layout, short_blocks

#: What a block has, in the order of rows, with its words.
ROWS: tuple[tuple[str, str], ...] = (("heads", "attention heads"), ("neurons", "feed-forward neurons"))


@dataclass(frozen=True)
class Survivors:
    """What is left of one block.

    Attributes:
        block: short name.
        heads, neurons: how many stay; 0 where the part or the block is removed.
        heads_before, neurons_before: how many there were.
    """

    block: str
    heads: int
    heads_before: int
    neurons: int
    neurons_before: int


@dataclass(frozen=True)
class SurvivorsInfo:
    """What is left of a whole model.

    Attributes:
        blocks: in order.
        hidden, hidden_before: width of the residual stream; 0 where no adapter knows it.
    """

    blocks: tuple[Survivors, ...]
    hidden: int
    hidden_before: int


def survivors_info(plan: Plan, table: LayerTable) -> SurvivorsInfo:
    """What a plan leaves of each block that the table knows."""
    gone = removed_layers(plan, table)
    removed = removed_groups(plan, table)

    def left(group: Group) -> int:
        if group.block in removed or lies_in(group, gone):
            return 0
        return plan.groups[group.name].keep if group.name in plan.groups else group.size

    rows = []
    for block, label in zip(table.blocks, short_blocks(table), strict=True):
        counts = []
        for kind, _words in ROWS:
            found = [g for g in table.groups if g.kind == kind and g.block == block]
            counts += [sum(left(g) for g in found), sum(g.size for g in found)]
        rows.append(Survivors(label, *counts))
    stream = [g for g in table.groups if g.kind == "hidden"]
    return SurvivorsInfo(tuple(rows), sum(left(g) for g in stream), sum(g.size for g in stream))


def draw_survivors(info: SurvivorsInfo) -> go.Figure:
    """One column per block, one row per kind: the share that stays as colour, the numbers as text."""
    figure = go.Figure(layout=base_layout(height=260))
    shares, texts = [], []
    for kind, _words in ROWS:
        pairs = [(getattr(b, kind), getattr(b, f"{kind}_before")) for b in info.blocks]
        shares.append([100.0 * kept / before if before else None for kept, before in pairs])
        texts.append([f"{kept} / {before}" if kept else "removed" for kept, before in pairs])
    figure.add_trace(
        go.Heatmap(
            x=[b.block for b in info.blocks],
            y=[words for _kind, words in ROWS],
            z=shares,
            text=texts,
            texttemplate="%{text}",
            hovertemplate="%{y} of block %{x}: %{text}<extra></extra>",
            zmin=0,
            zmax=100,
            xgap=2,
            ygap=4,
            colorscale=[[0, "#1e3a8a"], [0.5, "#5b93f5"], [1, "#dfe9f8"]],
            colorbar={"title": "kept %", "thickness": 10},
        )
    )
    width = f"; residual stream {info.hidden} of {info.hidden_before}" if info.hidden_before else ""
    figure.update_layout(title=f"What survives per block{width}", margin={"l": 150, "r": 20, "t": 50, "b": 40})
    figure.update_xaxes(title="block", type="category")
    figure.update_yaxes(autorange="reversed")
    return figure
