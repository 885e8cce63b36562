"""Oracles: which blocks and how many structures are left of real models, counted by hand."""

from __future__ import annotations

import pytest
import torch

from autocompress.compressing.choices import FirstOnes
from autocompress.compressing.shape import shape
from autocompress.distill import by_depth, by_width
from autocompress.errors import ModelError
from autocompress.plan import Distill, Plan, Prune
from tests.tiny import any_task, mlp, table_of, task_of
from tests.tiny import run as forward


def test_by_depth_keeps_every_second_block_from_the_first() -> None:
    task = any_task("bert", 5)
    plan = by_depth(table_of(task), distill=Distill(steps=3))
    assert sorted(plan.groups) == ["bert.encoder.layer.1", "bert.encoder.layer.3"]
    assert all(prune == Prune(0) for prune in plan.groups.values())
    assert plan.distill == Distill(steps=3)
    assert sorted(by_depth(table_of(task), 3).groups) == [f"bert.encoder.layer.{i}" for i in (1, 2, 4)]


@pytest.mark.parametrize("family", ["bert", "vit", "gpt2"])
def test_by_width_halves_every_counted_group(family: str) -> None:
    task = any_task(family)
    table = table_of(task)
    plan = by_width(table, 0.5)
    counted = [group for group in table.groups if not group.removable]
    assert {name: prune.keep for name, prune in plan.groups.items()} == {g.name: g.size // 2 for g in counted}
    small = shape(task.source, plan, table, FirstOnes(task.source))
    assert sum(p.numel() for p in small.parameters()) < 0.6 * table.total_params
    assert torch.isfinite(forward(small, task.train.batch([0, 1])[0])).all()


def test_by_width_leaves_one_structure_and_does_not_name_what_stays_whole() -> None:
    table = table_of(any_task("bert"))
    assert {prune.keep for prune in by_width(table, 1e-6).groups.values()} == {1}
    assert by_width(table, 1.0) == Plan()


def test_what_cannot_be_done_is_told() -> None:
    with pytest.raises(ModelError, match="needs a model of 2 or more removable blocks"):
        by_depth(table_of(task_of(mlp())))
    with pytest.raises(ModelError, match="needs groups of heads, neurons"):
        by_width(table_of(task_of(mlp())), 0.5)
    with pytest.raises(ValueError, match="keep_every must be 2 or more, but got 1"):
        by_depth(table_of(any_task("bert")), 1)
    with pytest.raises(ValueError, match=r"share must be in \(0, 1\], but got 0"):
        by_width(table_of(any_task("bert")), 0)
