"""Gates multiplied into a running model: against the really smaller model, and against folded weights."""

from __future__ import annotations

import copy

import pytest
import torch

from autocompress.compressing.shape import shape
from autocompress.learn.cofi import _Chosen
from autocompress.learn.gated import fold, gated
from autocompress.learn.gates import Gates, settled
from autocompress.plan import Plan, Prune
from autocompress.tasks.task import logits_of
from autocompress.weights import linearized
from tests.tiny import ALL_FAMILIES, any_task, run, table_of


def _gates(table, seed: int = 0) -> Gates:
    gates = Gates(table, True)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in gates.log_alpha:
            value.copy_(torch.rand(value.shape, generator=generator) * 0.4 + 0.1)  # open, but not wide open
    return gates


@pytest.mark.parametrize("family", ALL_FAMILIES)
@pytest.mark.parametrize("kind", ["heads", "neurons", "hidden", "attention", "feed_forward"])
def test_closed_gates_compute_what_the_smaller_model_computes(family: str, kind: str) -> None:
    task = any_task(family)
    table = table_of(task)
    found = [g for g in table.groups if g.kind == kind]
    assert found
    group = found[0]
    keep = torch.arange(0 if group.removable else max(1, group.size // 2))
    values = {group.name: torch.zeros(group.size).index_fill(0, keep, 1.0)}
    model = linearized(copy.deepcopy(task.model))
    inputs, _targets = task.validation.batch(range(4))
    with torch.inference_mode(), gated(model, (group,), values):
        found_logits = logits_of(model(**inputs))
    plan = Plan({group.name: Prune(len(keep), "magnitude", repair=False)})
    small = shape(task.model, plan, table, _Chosen(task.model, {group.name: keep}))
    assert torch.allclose(found_logits, run(small, inputs), atol=2e-5)


@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_folded_weights_compute_what_soft_gates_compute(family: str) -> None:
    task = any_task(family)
    table = table_of(task)
    gates = _gates(table)
    values = {group.name: settled(value.detach()) for group, value in gates.by_group()}
    assert all(bool((value > 0).all()) for value in values.values())
    model = linearized(copy.deepcopy(task.model))
    inputs, _targets = task.validation.batch(range(4))
    with torch.inference_mode(), gated(model, gates.groups, values):
        expected = logits_of(model(**inputs))
    fold(model, gates, {g.name: torch.arange(g.size) for g in gates.groups})
    assert torch.allclose(run(model, inputs), expected, atol=2e-5)


def test_nothing_of_the_gates_is_left_afterwards() -> None:
    task = any_task("vit")
    table = table_of(task)
    gates = _gates(table)
    model = copy.deepcopy(task.model)
    before = {name: id(value) for name, value in model.named_parameters()}
    with gated(model, gates.groups, {g.name: torch.ones(g.size) for g in gates.groups}):
        pass
    assert {name: id(value) for name, value in model.named_parameters()} == before
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
