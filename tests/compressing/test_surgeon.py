"""Oracles: the textbook loop that solves every choice from scratch, `torch.linalg.lstsq`, and plain magnitude."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from autocompress.compressing import prune, surgeon
from autocompress.compressing.mask import masked
from autocompress.compressing.prune import damped
from autocompress.compressing.surgeon import blocked, exact, resolved
from autocompress.plan import Mask
from tests.tiny import spread


def weights(rows: int, columns: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def even(columns: int, seed: int = 0) -> Tensor:
    """Second moment of correlated inputs of like sizes."""
    draw = torch.Generator().manual_seed(seed)
    inputs = torch.randn(4 * columns, columns, generator=draw) @ torch.randn(columns, columns, generator=draw)
    return inputs.T @ inputs / len(inputs)


def error(weight: Tensor, new: Tensor, gram: Tensor) -> float:
    change = (weight - new).to(torch.float64)
    return float(torch.trace(change @ damped(gram) @ change.T))


def row_cost(row: Tensor, hessian: Tensor, alive: list[int]) -> float:
    """Least output error of a row that may use some inputs only."""
    change = -row.clone()
    if alive:
        rest = torch.tensor(alive)
        change[rest] += torch.linalg.solve(hessian[rest][:, rest], hessian[rest] @ row)
    return float(change @ hessian @ change)


def textbook_zeros(weight: Tensor, gram: Tensor, count: int, n_m: tuple[int, int] | None = None) -> Tensor:
    """Where the greedy surgeon puts zeros: row by row from scratch, then always in the row where it costs least."""
    hessian, columns = damped(gram), weight.shape[1]
    n, m = n_m or (0, columns)
    steps = []
    for number, row in enumerate(weight.to(torch.float64)):
        alive, spent, head = list(range(columns)), 0.0, 0.0
        for step in range(columns // m * (m - n)):
            free = [i for i in alive if sum(j // m == i // m for j in alive) > n]
            costs = {i: row_cost(row, hessian, [j for j in alive if j != i]) for i in free}
            gone = min(costs, key=lambda i: costs[i])
            head, spent = max(head, costs[gone] - spent), costs[gone]
            alive.remove(gone)
            steps.append((head, number, step, gone))
    zeros = torch.zeros_like(weight, dtype=torch.bool)
    for _head, number, _step, gone in sorted(steps)[:count]:
        zeros[number, gone] = True
    return zeros


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("share", [0.25, 0.5, 0.8])
def test_exact_zeros_are_the_textbooks(share: float, seed: int) -> None:
    weight, (_inputs, gram) = weights(4, 8, seed), spread(100, 8, seed)
    zeros = textbook_zeros(weight, gram, round(share * 32))
    assert torch.equal(exact(weight, gram, share) == 0, zeros)


@pytest.mark.parametrize("n_m", [(2, 4), (1, 4), (1, 2), (3, 8)])
def test_exact_n_m_zeros_are_the_textbooks(n_m: tuple[int, int]) -> None:
    weight, (_inputs, gram) = weights(3, 8), spread(100, 8)
    zeros = textbook_zeros(weight, gram, weight.numel(), n_m)
    assert torch.equal(exact(weight, gram, n_m=n_m) == 0, zeros)


@pytest.mark.parametrize("n_m", [None, (2, 4)])
def test_exact_survivors_are_the_least_squares_optimum(
    n_m: tuple[int, int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prune, "DAMPING", 1e-12)
    inputs, gram = spread(200, 12)
    weight = weights(5, 12).to(torch.float64)
    found = exact(weight, gram, None if n_m else 0.5, n_m)
    for row, new in zip(weight, found, strict=True):
        alive = new.nonzero()[:, 0]
        best = torch.linalg.lstsq(inputs[:, alive], inputs @ row).solution
        torch.testing.assert_close(new[alive], best, rtol=1e-6, atol=1e-8)


def test_exact_in_small_parts_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, (_inputs, gram) = weights(7, 16), spread(100, 16)
    whole = exact(weight, gram, 0.6)
    monkeypatch.setattr(surgeon, "MOST_INVERSES", 1)
    torch.testing.assert_close(exact(weight, gram, 0.6), whole)


@pytest.mark.parametrize("solve", [exact, blocked, surgeon.surgeon])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.37, 0.5, 0.93])
def test_there_are_exactly_as_many_zeros_as_asked(solve: object, share: float) -> None:
    weight, gram = weights(13, 70), even(70)
    assert int((solve(weight, gram, share) == 0).sum()) == round(share * 910)  # type: ignore[operator]


@pytest.mark.parametrize("solve", [exact, blocked, surgeon.surgeon])
@pytest.mark.parametrize("n_m", [(2, 4), (1, 5), (16, 48)])
def test_n_of_every_m_neighbours_stay(solve: object, n_m: tuple[int, int]) -> None:
    n, m = n_m
    weight, gram = weights(6, 5 * 48), even(5 * 48)
    found = solve(weight, gram, n_m=n_m)  # type: ignore[operator]
    assert ((found.reshape(6, -1, m) != 0).sum(dim=2) == n).all()


@pytest.mark.parametrize("solve", [exact, blocked, surgeon.surgeon])
def test_nothing_asked_changes_nothing(solve: object) -> None:
    weight = weights(6, 40)
    assert torch.equal(solve(weight, even(40), 0.0), weight)  # type: ignore[operator]


@pytest.mark.parametrize("solve", [exact, blocked])
def test_without_correlation_and_of_like_sizes_it_is_magnitude(solve: object) -> None:
    weight = weights(5, 24)
    survives = masked(weight, Mask(pattern="2:4"), None, None, 0)
    torch.testing.assert_close(solve(weight, torch.eye(24), n_m=(2, 4)), survives)  # type: ignore[operator]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("mask", [{"sparsity": 0.5}, {"sparsity": 0.8}, {"pattern": "2:4"}], ids=str)
def test_blocked_beats_magnitude_and_wanda_on_correlated_inputs(mask: dict[str, object], seed: int) -> None:
    weight, gram = weights(48, 160, seed), even(160, seed)
    settings = Mask(**mask)  # type: ignore[arg-type]
    ours = error(weight, blocked(weight, gram, settings.sparsity, settings.n_m), gram)
    for score in ("magnitude", "wanda"):
        other = masked(weight, Mask(**mask, score=score), gram, None, 0)  # type: ignore[arg-type]
        assert ours < error(weight, other, gram)


@pytest.mark.parametrize("n_m", [None, (2, 4)])
def test_exact_beats_resolved_beats_blocked(n_m: tuple[int, int] | None) -> None:
    weight, gram = weights(32, 64), even(64)
    share = None if n_m else 0.5
    rough = blocked(weight, gram, share, n_m)
    better = resolved(weight, gram, rough != 0)
    assert torch.equal(better == 0, rough == 0)
    assert error(weight, exact(weight, gram, share, n_m), gram) < error(weight, better, gram)
    assert error(weight, better, gram) < error(weight, rough, gram)


def test_the_size_of_a_layer_decides_how_it_is_worked_off(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, gram = weights(6, 40), even(40)
    assert torch.equal(surgeon.surgeon(weight, gram, 0.5), exact(weight, gram, 0.5))
    monkeypatch.setattr(surgeon, "EXACT_LIMIT", 0)
    rough = blocked(weight, gram, 0.5)
    assert torch.equal(surgeon.surgeon(weight, gram, 0.5), resolved(weight, gram, rough != 0))
    monkeypatch.setattr(surgeon, "RESOLVE_LIMIT", 0)
    assert torch.equal(surgeon.surgeon(weight, gram, 0.5), rough)


@pytest.mark.parametrize("solve", [exact, blocked])
def test_dead_inputs_go_first_and_leave_no_nan(solve: object) -> None:
    inputs, _gram = spread(100, 12)
    inputs[:, [2, 7]] = 0
    found = solve(1e-3 + weights(4, 12).abs(), inputs.T @ inputs / 100, 0.5)  # type: ignore[operator]
    assert torch.isfinite(found).all()
    assert int((found == 0).sum()) == 24


def test_arguments_stay_as_they_were() -> None:
    weight, gram = weights(6, 40), even(40)
    before = weight.clone(), gram.clone()
    exact(weight, gram, 0.5)
    blocked(weight, gram, 0.5)
    assert torch.equal(weight, before[0])
    assert torch.equal(gram, before[1])
