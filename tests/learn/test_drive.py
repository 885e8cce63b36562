"""Oracles: the target is met exactly; equal prices leave the order; what costs more stays; the shift by bisection."""

from __future__ import annotations

import pytest
import torch

from autocompress.learn.drive import BOUND, Drive
from autocompress.learn.gates import OPEN, SPREAD, Expected, Gates
from tests.tiny import any_task, table_of


def driven(order=None):
    table = table_of(any_task("bert"))
    gates = Gates(table, True, order)
    return gates, Drive(gates, Expected(table).sparsity, 0.1)


def flat(gates: Gates) -> torch.Tensor:
    return torch.cat([value.detach() for value in gates.log_alpha])


@pytest.mark.parametrize("goal", [0.1, 0.5, 0.9])
def test_the_goal_is_met_at_every_step(goal: float) -> None:
    gates, drive = driven()
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        for value in gates.log_alpha:
            value.grad = torch.randn(value.shape, generator=generator)
        assert drive.step(goal) == pytest.approx(goal, abs=1e-3)


def test_without_gradients_all_gates_move_alike() -> None:
    gates, drive = driven(lambda group: torch.arange(group.size))
    before = flat(gates)
    drive.step(0.6)
    moved = flat(gates) - before
    assert torch.allclose(moved, moved[0].expand_as(moved), atol=1e-4)
    assert moved[0] < 0


def test_of_equal_gates_the_one_whose_closing_costs_more_stays_more_open() -> None:
    gates, drive = driven()
    heads = next(number for number, group in enumerate(gates.groups) if group.kind == "heads")
    for value in gates.log_alpha:
        value.grad = torch.zeros_like(value)
    gates.log_alpha[heads].grad[0] = -1.0  # opening it lowers the loss
    drive.step(0.5)
    value = gates.log_alpha[heads].detach()
    assert (value[0] > value[1:]).all()


def test_what_takes_more_away_must_be_worth_more() -> None:
    """The same gradient on a neuron and on a whole part: the part takes away more, so it is cheaper to close."""
    gates, drive = driven()
    kinds = [group.kind for group in gates.groups]
    part, neurons = kinds.index("feed_forward"), kinds.index("neurons")
    with torch.no_grad():
        for value in gates.log_alpha:
            value.fill_(0.0)
            value.grad = torch.zeros_like(value)
    gates.log_alpha[part].grad[0] = gates.log_alpha[neurons].grad[0] = -1.0
    drive.step(0.5)
    assert gates.log_alpha[neurons].detach()[0] > gates.log_alpha[part].detach()[0]


def test_gates_stay_within_bounds() -> None:
    gates, drive = driven()
    for _ in range(5):
        for value in gates.log_alpha:
            value.grad = 1e6 * torch.ones_like(value)
        drive.step(0.99)
    assert flat(gates).abs().max() <= BOUND


def test_ordered_groups_start_in_their_order() -> None:
    order = {}

    def reverse(group) -> torch.Tensor:
        order[group.name] = torch.arange(group.size).flip(0)
        return order[group.name]

    gates, _drive = driven(reverse)
    for group, value in gates.by_group():
        found = value.detach()
        if group.name in order:
            assert torch.equal(found.argsort(), order[group.name])
            assert float(found.min()) == OPEN
        assert float(found.max()) == OPEN + SPREAD
