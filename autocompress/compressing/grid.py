"""Where the integers of a weight may lie: scales and zero points that err least. Pure functions on blocks of weights.

A block is a row of neighbouring weights that share one scale. Formulas are ONNX's: ``w = (q - zero) · scale``,
``q = clip(round_half_even(w / scale) + zero)``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

#: Scales between this share of the plain one and all of it are tried: the fewer the bits, the more is clipped.
LEAST_SHARE = {2: 0.3, 3: 0.5, 4: 0.7, 5: 0.8, 6: 0.85, 7: 0.9, 8: 1.0}
CANDIDATES = 16


@dataclass(frozen=True)
class Grid:
    """The integers of some blocks.

    Attributes:
        scales: ``(…)``, one per block, float32, above 0.
        zeros: integers shaped like the scales; 0 for symmetric grids.
        low, high: least and greatest integer.
    """

    scales: Tensor
    zeros: Tensor
    low: int
    high: int

    def codes(self, weight: Tensor) -> Tensor:
        """The nearest integers of weights that broadcast with the scales."""
        return torch.clamp(torch.round(weight / self.scales) + self.zeros, self.low, self.high)

    def values(self, codes: Tensor) -> Tensor:
        """The weights that integers stand for."""
        return (codes - self.zeros) * self.scales


def fit_grid(blocks: Tensor, bits: int, symmetric: bool, narrow: bool, least: Tensor | None = None) -> Grid:
    """The grid of each block that errs least, in squared error, of `CANDIDATES`; at 8 bits the one that clips nothing.

    Args:
        blocks: ``(rows, groups, width)`` float32.
        bits: 2 to 8.
        symmetric: zero points are 0.
        narrow: leave out the least integer of a symmetric grid, so that it is the greatest with a minus.
        least: lower bound of the scales ``(rows, groups)``.

    Returns:
        scales and zeros ``(rows, groups, 1)``.
    """
    low, high = blocks.amin(dim=2, keepdim=True).clamp(max=0), blocks.amax(dim=2, keepdim=True).clamp(min=0)
    bound = torch.zeros_like(low) if least is None else least[..., None]
    best = _grid(low, high, bits, symmetric, narrow, bound)
    if LEAST_SHARE[bits] == 1:
        return best
    errors = _error(best, blocks)
    for share in torch.linspace(LEAST_SHARE[bits], 1, CANDIDATES)[:-1]:
        grid = _grid(low * share, high * share, bits, symmetric, narrow, bound)
        error = _error(grid, blocks)
        better = error < errors
        errors = torch.where(better, error, errors)
        scales = torch.where(better, grid.scales, best.scales)
        best = Grid(scales, torch.where(better, grid.zeros, best.zeros), grid.low, grid.high)
    return best


def _error(grid: Grid, blocks: Tensor) -> Tensor:
    return (grid.values(grid.codes(blocks)) - blocks).pow(2).sum(dim=2, keepdim=True)


def _grid(low: Tensor, high: Tensor, bits: int, symmetric: bool, narrow: bool, bound: Tensor) -> Grid:
    most = 2 ** (bits - 1) - 1
    least = -most if symmetric and narrow else -most - 1
    span = torch.maximum(high, -low) / most if symmetric else (high - low) / (most - least)
    scales = torch.maximum(torch.where(span > 0, span, torch.ones_like(span)), bound).to(torch.float32)
    zeros = torch.zeros_like(scales) if symmetric else torch.clamp(torch.round(least - low / scales), least, most)
    return Grid(scales, zeros, least, most)
