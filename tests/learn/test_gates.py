"""Hard-concrete gates and expected sizes, against sampling and against the plan's own arithmetic."""

from __future__ import annotations

import math

import pytest
import torch

from autocompress.learn.gates import BETA, GAMMA, ZETA, Expected, Gates, draw, keep_probability, plan_widths, settled
from autocompress.plan import Plan, Prune, effective_layers
from tests.tiny import any_task, table_of

FAMILIES = ("bert", "vit", "gpt2", "llama")


@pytest.mark.parametrize("value", [-3.0, -1.0, 0.0, 2.0])
def test_the_share_of_open_samples_is_the_keep_probability(value: float) -> None:
    log_alpha = torch.full((20_000,), value)
    share = float((draw(log_alpha, torch.Generator().manual_seed(0)) > 0).float().mean())
    assert share == pytest.approx(float(keep_probability(torch.tensor(value))), abs=0.012)


def test_settled_gates_are_the_samples_at_even_odds() -> None:
    log_alpha = torch.tensor([-9.0, -0.5, 0.0, 0.7, 9.0])
    expected = [min(1.0, max(0.0, (ZETA - GAMMA) / (1 + math.exp(-float(v) / BETA)) + GAMMA)) for v in log_alpha]
    assert settled(log_alpha).tolist() == pytest.approx(expected, abs=1e-6)


def test_samples_have_a_gradient_where_they_are_neither_0_nor_1() -> None:
    log_alpha = torch.zeros(1000, requires_grad=True)
    sample = draw(log_alpha, torch.Generator().manual_seed(1))
    sample.sum().backward()
    assert log_alpha.grad is not None
    inner = (sample > 0) & (sample < 1)
    assert bool((log_alpha.grad[inner] > 0).all())
    assert not log_alpha.grad[~inner].any()


def test_samples_repeat_for_a_seed() -> None:
    table = table_of(any_task("vit"))
    first, second = (Gates(table, True).drawn(torch.Generator().manual_seed(3)) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("family", FAMILIES)
def test_expected_sparsity_of_settled_choices_is_that_of_the_plan(family: str) -> None:
    table = table_of(any_task(family))
    groups = {}
    for group in table.groups:
        if group.kind in ("heads", "neurons", "hidden") and group.size > 1:
            groups[group.name] = Prune(group.size // 2, repair=False)
    first = next(g for g in table.groups if g.kind == "attention")
    groups = {n: p for n, p in groups.items() if table.group(n).kind != "heads" or table.group(n).block != first.block}
    plan = Plan({**groups, first.name: Prune(0, repair=False)})
    expected = Expected(table)
    left = {}
    for group in table.groups:
        if group.kind != "block":
            keep = plan.groups[group.name].keep if group.name in plan.groups else group.size
            left[group.name] = (torch.arange(group.size) < keep).float()
    kept = sum(e.weights for e in effective_layers(plan, table) if e.layer.block and e.layer.kind == "linear")
    total = sum(math.prod(la.weight_shape) for la in table.layers if la.block and la.kind == "linear")
    assert float(expected.sparsity(left)) == pytest.approx(1 - kept / total, abs=1e-6)


def test_widths_of_the_dense_plan_are_whole_and_of_a_removed_part_less() -> None:
    table = table_of(any_task("bert"))
    assert plan_widths(Plan(), table) == [1.0, 1.0, 1.0, 1.0]
    part = next(g for g in table.groups if g.kind == "attention")
    blocks = len(table.blocks)
    share = 1 - 1 / blocks
    assert plan_widths(Plan({part.name: Prune(0)}), table) == pytest.approx([share, share, 1.0, 1.0])
