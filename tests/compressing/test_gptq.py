"""Oracles: round to nearest where inputs are independent, a slow twin of the recursion, and the output error."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from autocompress.compressing.codes import quantize_weight
from autocompress.compressing.gptq import gptq
from autocompress.compressing.grid import Grid, fit_grid
from autocompress.compressing.prune import damped
from autocompress.plan import Quantize
from tests.tiny import spread


def draw(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def grid_of(weight: Tensor, bits: int) -> Grid:
    made = fit_grid(weight[:, None, :], bits, True, False)
    return Grid(made.scales[:, 0], made.zeros[:, 0], made.low, made.high)


def output_error(weight: Tensor, rounded: Tensor, gram: Tensor) -> float:
    off = (weight - rounded).double()
    return float(((off @ gram) * off).sum())


@pytest.mark.parametrize("settings", [Quantize("int8", 4), Quantize("int8"), Quantize("int4-weights", 3)], ids=str)
@pytest.mark.parametrize("columns", [20, 150])
def test_independent_inputs_are_rounded_to_nearest(settings: Quantize, columns: int) -> None:
    weight = draw(6, columns)
    other = Quantize(settings.precision, settings.weight_bits, rounding="gptq")
    found = quantize_weight(weight, other, gram=3 * torch.eye(columns, dtype=torch.float64))
    nearest = quantize_weight(weight, settings)
    assert torch.equal(found.values, nearest.values)
    assert torch.equal(found.scales, nearest.scales)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("precision", ["int8", "int4-weights"])
def test_the_output_errs_less_than_with_nearest(precision: str, bits: int, symmetric: bool) -> None:
    weight, (_inputs, gram) = draw(24, 96), spread(500, 96)
    found = []
    for rounding in ("nearest", "gptq"):
        settings = Quantize(precision, bits, rounding=rounding, symmetric=symmetric)
        made = quantize_weight(weight, settings, gram=gram if rounding == "gptq" else None)
        found.append(output_error(weight, made.weight(), gram))
    assert found[1] < 0.8 * found[0]


@pytest.mark.parametrize("bits", [2, 4])
def test_the_grid_is_that_of_nearest_and_codes_stay_in_range(bits: int) -> None:
    weight, (_inputs, gram) = draw(8, 70), spread(300, 70)
    made = quantize_weight(weight, Quantize("int4-weights", bits, rounding="gptq"), gram=gram)
    nearest = quantize_weight(weight, Quantize("int4-weights", bits))
    assert torch.equal(made.scales, nearest.scales)
    assert int(made.values.min()) >= -(2 ** (bits - 1))
    assert int(made.values.max()) <= 2 ** (bits - 1) - 1
    assert not torch.equal(made.values, nearest.values)


def slow_twin(weight: Tensor, gram: Tensor, grid: Grid) -> Tensor:
    """Columns in order; after each, what is left is re-solved from the inverse of the remaining second moment."""
    hessian, left = damped(gram), weight.double()
    codes = torch.empty_like(weight)
    for j in range(weight.shape[1]):
        codes[:, j] = Grid(grid.scales[:, 0], grid.zeros[:, 0], grid.low, grid.high).codes(left[:, j].float())
        inverse = torch.linalg.inv(hessian[j:, j:])
        error = (left[:, j] - codes[:, j] * grid.scales[:, 0]) / inverse[0, 0]
        left[:, j:] -= error[:, None] * inverse[0]
    return codes


def test_blocks_and_cholesky_equal_the_plain_recursion() -> None:
    """150 columns: more than one block."""
    weight, (_inputs, gram) = draw(4, 150), spread(600, 150)
    grid = grid_of(weight, 4)
    differ = gptq(weight, gram, grid, ordered=False) != slow_twin(weight, gram, grid)
    assert differ.float().mean() < 0.01  # ties of rounding


def test_an_order_of_the_columns_is_undone() -> None:
    weight, (_inputs, gram) = draw(5, 40), spread(200, 40)
    grid = grid_of(weight, 4)
    order = torch.argsort(damped(gram).diagonal(), descending=True)
    sorted_codes = gptq(weight[:, order], gram[order][:, order], grid, ordered=False)
    assert torch.equal(gptq(weight, gram, grid), sorted_codes[:, torch.argsort(order)])


def test_inputs_that_are_always_zero_are_harmless() -> None:
    weight, (_inputs, gram) = draw(5, 40), spread(200, 40)
    gram[:, 7] = gram[7, :] = 0
    assert torch.isfinite(gptq(weight, gram, grid_of(weight, 3))).all()


def test_a_second_moment_of_another_size_is_refused() -> None:
    weight = draw(5, 40)
    with pytest.raises(ValueError, match=r"gram must be \(40, 40\), but got \(3, 3\)"):
        gptq(weight, torch.eye(3), grid_of(weight, 3))


@pytest.mark.parametrize("symmetric", [True, False])
def test_zeros_stay_zeros(symmetric: bool) -> None:
    weight, (_inputs, gram) = draw(16, 64), spread(300, 64)
    weight[draw(16, 64, seed=1) > 0] = 0
    made = quantize_weight(weight, Quantize("int4-weights", rounding="gptq", symmetric=symmetric), gram=gram)
    assert not made.weight()[weight == 0].any()
    nearest = quantize_weight(weight, Quantize("int4-weights", symmetric=symmetric))
    assert output_error(weight, made.weight(), gram) < output_error(weight, nearest.weight(), gram)
