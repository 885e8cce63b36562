"""Oracles: the textbook loop that inverts afresh at each step, `torch.linalg.lstsq`, and hand values."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from autocompress.compressing import prune
from autocompress.compressing.prune import (
    Consumer,
    columns_of,
    damped,
    repair,
    structure_columns,
    structure_order,
)
from autocompress.errors import ModelError
from autocompress.layers import Slice
from tests.tiny import spread


def beside(weight: Tensor, gram: Tensor, width: int) -> Consumer:
    """One consumer whose structures lie side by side."""
    return Consumer(weight, gram, torch.arange(weight.shape[1]).reshape(-1, width))


def obs_order(weight: Tensor, gram: Tensor, width: int) -> Tensor:
    return structure_order("obs", [beside(weight, gram, width)])


def magnitude_order(weight: Tensor, width: int) -> Tensor:
    return structure_order("magnitude", [beside(weight, torch.eye(weight.shape[1]), width)])


def textbook_order(weight: Tensor, gram: Tensor, width: int) -> list[int]:
    """Try every structure, solve the least squares of the rest from scratch, remove the one that costs least."""
    hessian = damped(gram)
    dense = weight.to(torch.float64)
    alive, removed = list(range(weight.shape[1] // width)), []
    while len(alive) > 1:
        costs = []
        for structure in alive:
            rest = columns_of(torch.tensor([s for s in alive if s != structure]), width)
            change = torch.zeros_like(dense)
            change[:, rest] = torch.linalg.solve(hessian[rest][:, rest], hessian[rest] @ dense.T).T
            change -= dense
            costs.append(float(torch.trace(change @ hessian @ change.T)))
        removed.append(alive.pop(costs.index(min(costs))))
    return removed + alive


def output_error(weight: Tensor, inputs: Tensor, kept: Tensor, new: Tensor) -> float:
    return float(torch.linalg.norm(inputs @ weight.T.double() - inputs[:, kept] @ new.T.double()))


@pytest.mark.parametrize(
    ("structures", "width"), [(8, 1), (24, 1), (6, 4), (20, 4)], ids=["8x1", "24x1", "6x4", "20x4"]
)
@pytest.mark.parametrize("seed", [0, 1])
def test_obs_order_is_the_textbooks(structures: int, width: int, seed: int) -> None:
    _inputs, gram = spread(200, structures * width, seed)
    weight = torch.randn(5, structures * width, generator=torch.Generator().manual_seed(seed))
    assert obs_order(weight, gram, width).tolist() == textbook_order(weight, gram, width)


@pytest.mark.parametrize("width", [1, 4])
def test_obs_order_names_each_structure_once(width: int) -> None:
    _inputs, gram = spread(300, 40 * width)
    weight = torch.randn(6, 40 * width, generator=torch.Generator().manual_seed(0))
    assert sorted(obs_order(weight, gram, width).tolist()) == list(range(40))


def test_obs_removes_a_dead_input_first_and_a_zero_column_next() -> None:
    inputs, _gram = spread(100, 6)
    inputs[:, 4] = 0
    weight = torch.ones(3, 6)
    weight[:, 2] = 0
    order = obs_order(weight, inputs.T @ inputs / 100, 1).tolist()
    assert order[0] == 2  # costs nothing, for its weights are zero
    assert set(order) == set(range(6))


def test_obs_sees_correlation_that_magnitude_does_not() -> None:
    """Inputs 0 and 1 are twins with the largest weights: one of them costs nothing once the other takes over."""
    inputs = torch.randn(500, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    inputs[:, 1] = inputs[:, 0]
    weight = torch.tensor([[5.0, 4.0, 1.0]])
    gram = inputs.T @ inputs / 500
    assert obs_order(weight, gram, 1)[0] in (0, 1)
    assert magnitude_order(weight, 1)[0] == 2


def test_obs_edits_neither_argument() -> None:
    _inputs, gram = spread(100, 8)
    weight = torch.randn(3, 8)
    before = weight.clone(), gram.clone()
    obs_order(weight, gram, 2)
    assert torch.equal(weight, before[0])
    assert torch.equal(gram, before[1])


def test_magnitude_order_by_hand() -> None:
    weight = torch.tensor([[3.0, 0, 1, 1, 0, 2], [4.0, 0, 1, 1, 0, 2]])  # norms of pairs: 5, 2, 2·√2
    assert magnitude_order(weight, 2).tolist() == [1, 2, 0]


def test_columns_of_by_hand() -> None:
    assert columns_of(torch.tensor([0, 2]), 3).tolist() == [0, 1, 2, 6, 7, 8]


def test_repair_is_the_least_squares_optimum(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prune, "DAMPING", 1e-12)
    inputs, gram = spread(200, 10)
    weight = torch.randn(4, 10, dtype=torch.float64)
    kept = torch.tensor([0, 3, 4, 7])
    best = torch.linalg.lstsq(inputs[:, kept], inputs @ weight.T).solution.T
    torch.testing.assert_close(repair(weight, gram, kept), best, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("seed", range(5))
def test_repair_beats_zeroing(seed: int) -> None:
    inputs, gram = spread(200, 12, seed)
    weight = torch.randn(4, 12, generator=torch.Generator().manual_seed(seed))
    kept = torch.tensor([1, 2, 5, 6, 9, 11])
    repaired = output_error(weight, inputs, kept, repair(weight, gram, kept))
    assert repaired < output_error(weight, inputs, kept, weight[:, kept])


def test_repair_of_everything_kept_is_the_weight() -> None:
    _inputs, gram = spread(200, 12)
    weight = torch.randn(4, 12)
    torch.testing.assert_close(repair(weight, gram, torch.arange(12)), weight, rtol=0, atol=1e-5)


def test_damped_by_hand() -> None:
    gram = torch.tensor([[4.0, 1.0, 0.0], [1.0, 2.0, 0.0], [0.0, 0.0, 0.0]])
    expected = torch.tensor([[4.02, 1.0, 0.0], [1.0, 2.02, 0.0], [0.0, 0.0, 2.0]], dtype=torch.float64)
    torch.testing.assert_close(damped(gram), expected)  # mean diagonal 2; a dead input gets that mean


def test_damped_of_only_dead_inputs_is_the_identity() -> None:
    torch.testing.assert_close(damped(torch.zeros(3, 3)), torch.eye(3, dtype=torch.float64))


def test_damped_leaves_its_argument_alone() -> None:
    gram = torch.eye(3, dtype=torch.float64)
    damped(gram)
    assert torch.equal(gram, torch.eye(3, dtype=torch.float64))


def test_dead_inputs_are_repaired_without_nan() -> None:
    inputs, _gram = spread(100, 6)
    inputs[:, [1, 4]] = 0
    repaired = repair(torch.randn(3, 6), inputs.T @ inputs / 100, torch.tensor([0, 1, 2]))
    assert torch.isfinite(repaired).all()


def joint_textbook(consumers: list[Consumer]) -> list[int]:
    """Try every structure in all consumers, solve what is left of each from scratch, remove the cheapest."""
    alive, removed = list(range(consumers[0].size)), []
    while len(alive) > 1:
        costs = []
        for structure in alive:
            lost = [s for s in range(consumers[0].size) if s not in alive or s == structure]
            costs.append(sum(_least_error(consumer, lost) for consumer in consumers))
        removed.append(alive.pop(costs.index(min(costs))))
    return removed + alive


def _least_error(consumer: Consumer, lost: list[int]) -> float:
    hessian, dense = damped(consumer.gram), consumer.weight.to(torch.float64)
    gone = set(consumer.columns[lost].reshape(-1).tolist())
    rest = torch.tensor([i for i in range(dense.shape[1]) if i not in gone])
    change = -dense
    change[:, rest] += torch.linalg.solve(hessian[rest][:, rest], hessian[rest] @ dense.T).T
    return float(torch.trace(change @ hessian @ change.T))


def readers(size: int, widths: tuple[int, ...], spare: int = 0, seed: int = 0) -> list[Consumer]:
    """Consumers of one group, their columns shuffled, with `spare` columns that belong to no structure."""
    made = []
    for number, width in enumerate(widths):
        count = size * width + spare
        draw = torch.Generator().manual_seed(100 * seed + number)
        _inputs, gram = spread(300, count, 100 * seed + number)
        columns = torch.randperm(count, generator=draw)[: size * width].reshape(size, width)
        made.append(Consumer(torch.randn(4 + number, count, generator=draw), gram, columns))
    return made


@pytest.mark.parametrize(
    ("size", "widths", "spare"),
    [(8, (1, 1), 0), (20, (1, 1, 1), 0), (6, (4, 2), 0), (18, (1, 3), 5), (7, (2,), 3)],
    ids=["two", "three", "unequal widths", "with other columns", "one with other columns"],
)
@pytest.mark.parametrize("seed", [0, 1])
def test_joint_obs_order_is_the_textbooks(size: int, widths: tuple[int, ...], spare: int, seed: int) -> None:
    consumers = readers(size, widths, spare, seed)
    assert structure_order("obs", consumers).tolist() == joint_textbook(consumers)


def test_a_consumer_given_twice_changes_no_order() -> None:
    [consumer] = readers(12, (2,))
    for score in ("obs", "magnitude", "wanda"):
        assert torch.equal(structure_order(score, [consumer, consumer]), structure_order(score, [consumer]))


def test_magnitude_sums_squares_over_consumers_by_hand() -> None:
    one = Consumer(torch.tensor([[3.0, 1.0, 0.0]]), torch.eye(3), torch.tensor([[0], [1], [2]]))
    other = Consumer(torch.tensor([[2.0, 0.0, 3.0]]), torch.eye(3), torch.tensor([[2], [0], [1]]))
    assert structure_order("magnitude", [one, other]).tolist() == [2, 1, 0]  # 9 + 9, 1 + 4, 0 + 0


def test_wanda_is_the_norm_of_what_each_structure_adds_to_the_outputs() -> None:
    """Oracle: ‖W_j·x_j‖ over real inputs, column by column."""
    inputs, _gram = spread(200, 12)
    weight = torch.randn(5, 12, dtype=torch.float64)
    columns = torch.arange(12).reshape(4, 3)
    added = [sum(float((inputs[:, j, None] * weight[:, j]).pow(2).sum()) for j in s.tolist()) for s in columns]
    order = structure_order("wanda", [Consumer(weight, inputs.T @ inputs / 200, columns)])
    assert order.tolist() == sorted(range(4), key=lambda s: added[s])


def test_fisher_order_is_ascending() -> None:
    assert structure_order("fisher", readers(4, (1,)), fisher=torch.tensor([3.0, 0.5, 9.0, 1.0])).tolist() == [
        1,
        3,
        0,
        2,
    ]


def test_random_order_is_a_permutation_that_its_seed_decides() -> None:
    consumers = readers(30, (1,))
    first = structure_order("random", consumers, seed=5)
    assert sorted(first.tolist()) == list(range(30))
    assert torch.equal(first, structure_order("random", consumers, seed=5))
    assert not torch.equal(first, structure_order("random", consumers, seed=6))


def test_random_order_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(0)
    wanted = torch.rand(3)
    torch.manual_seed(0)
    structure_order("random", readers(5, (1,)), seed=1)
    assert torch.equal(torch.rand(3), wanted)


@pytest.mark.parametrize("score", ["obs", "magnitude"])
def test_nan_in_a_consumer_is_refused(score: str) -> None:
    consumers = readers(4, (1, 1))
    consumers[1].weight[0, 2] = torch.nan
    with pytest.raises(ModelError, match=r"consumer 1: .* NaN"):
        structure_order(score, consumers)


def test_structure_columns_by_hand() -> None:
    assert structure_columns(Slice("x", 2, offset=4), 2).tolist() == [[4, 5], [6, 7]]
    assert structure_columns(Slice("x", index=(5, 0, 2)), 3).tolist() == [[5], [0], [2]]
    assert structure_columns(Slice("x", offset=1), 2, window=4).tolist() == [[4, 5, 6, 7], [8, 9, 10, 11]]
