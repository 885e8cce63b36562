"""Oracles: grids that survive exactly, the scale formulas, and every candidate tried one by one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from autocompress.compressing.grid import CANDIDATES, LEAST_SHARE, Grid, fit_grid

BITS = [2, 3, 4, 5, 6, 7, 8]


def draw(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def error(grid: Grid, blocks: Tensor) -> Tensor:
    return (grid.values(grid.codes(blocks)) - blocks).pow(2).sum(dim=2)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("narrow", [True, False])
def test_a_symmetric_grid_survives_exactly(bits: int, narrow: bool) -> None:
    most = 2 ** (bits - 1) - 1
    codes = torch.randint(-most, most + 1, (4, 3, 40), generator=torch.Generator().manual_seed(0)).float()
    codes[..., 0] = most
    blocks = codes * 2.0 ** torch.arange(-8, -4)[:, None, None]
    made = fit_grid(blocks, bits, symmetric=True, narrow=narrow)
    assert torch.equal(made.codes(blocks), codes)
    assert torch.equal(made.values(codes), blocks)
    assert not made.zeros.any()


@pytest.mark.parametrize("bits", BITS)
def test_an_asymmetric_grid_survives_exactly(bits: int) -> None:
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    codes = torch.randint(low, high + 1, (4, 3, 40), generator=torch.Generator().manual_seed(0)).float()
    codes[..., 0], codes[..., 1] = low, high
    zero = low + 1
    blocks = (codes - zero) * 2.0 ** torch.arange(-8, -4)[:, None, None]
    made = fit_grid(blocks, bits, symmetric=False, narrow=True)
    assert torch.equal(made.zeros, torch.full((4, 3, 1), float(zero)))
    assert torch.equal(made.codes(blocks), codes)
    assert torch.equal(made.values(codes), blocks)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", BITS)
def test_no_candidate_errs_less(bits: int, symmetric: bool) -> None:
    """Slow twin: each share by itself."""
    blocks = draw(5, 2, 64)
    found = error(fit_grid(blocks, bits, symmetric, narrow=False), blocks)
    most = 2 ** (bits - 1) - 1
    for share in torch.linspace(LEAST_SHARE[bits], 1, CANDIDATES):
        low, high = blocks.amin(2, keepdim=True) * share, blocks.amax(2, keepdim=True) * share
        scales = torch.maximum(high, -low) / most if symmetric else (high - low) / (2 * most + 1)
        zeros = torch.zeros_like(scales) if symmetric else torch.round(-most - 1 - low / scales)
        assert (found <= error(Grid(scales, zeros, -most - 1, most), blocks) * (1 + 1e-5)).all()


def test_eight_bits_clip_nothing() -> None:
    blocks = draw(6, 1, 50)
    made = fit_grid(blocks, 8, symmetric=True, narrow=True)
    assert torch.equal(made.scales[..., 0], blocks.abs().amax(dim=2) / 127)
    assert (made.low, made.high) == (-127, 127)


def test_fewer_bits_err_more() -> None:
    blocks = draw(6, 4, 32)
    errors = [float(error(fit_grid(blocks, bits, True, False), blocks).sum()) for bits in BITS]
    assert errors == sorted(errors, reverse=True)


def test_an_asymmetric_grid_errs_less_on_weights_to_one_side() -> None:
    blocks = draw(6, 1, 64).abs()
    found = [float(error(fit_grid(blocks, 4, symmetric, False), blocks).sum()) for symmetric in (True, False)]
    assert found[1] < found[0] / 2


@pytest.mark.parametrize("symmetric", [True, False])
def test_zeros_give_zeros(symmetric: bool) -> None:
    blocks = torch.zeros(2, 2, 8)
    made = fit_grid(blocks, 4, symmetric, narrow=False)
    assert torch.equal(made.values(made.codes(blocks)), blocks)
    assert torch.equal(made.scales, torch.ones(2, 2, 1))


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [3, 8])
def test_scales_stay_above_their_bound(bits: int, symmetric: bool) -> None:
    least = torch.tensor([[0.0], [9.0]])
    made = fit_grid(draw(2, 1, 20), bits, symmetric, narrow=True, least=least)
    assert float(made.scales[1]) == 9.0
    assert float(made.scales[0]) < 9.0
