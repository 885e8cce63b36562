"""GPTQ: rounding column by column, where each column's error is made good by those after it. Pure functions."""

from __future__ import annotations

import torch
from torch import Tensor

from autocompress.compressing.grid import Grid
from autocompress.compressing.prune import damped

#: Columns whose errors reach the rest of the matrix in one product.
BLOCK = 128


def gptq(weight: Tensor, gram: Tensor, grid: Grid, ordered: bool = True) -> Tensor:
    """Codes ``(out, in)`` on a given grid with little output error (Frantar et al. 2022).

    With H = XᵀX/N damped and H⁻¹ = UᵀU, the error of column j over U_jj, times row j of U, goes into the columns not
    yet rounded. Scales and zero points stay those of the grid, so any order of the columns keeps the groups. Weights
    of 0 stay 0, so that a mask survives.

    Args:
        weight: ``(out, in)``.
        gram: second moment of the inputs, ``(in, in)``; the identity makes it round to nearest.
        grid: scales and zeros that broadcast to ``(out, in)``.
        ordered: inputs of the greatest second moment first, while there are columns left to make errors good.

    Raises:
        ValueError: the second moment does not fit the weight.
    """
    if gram.shape != (weight.shape[1], weight.shape[1]):
        raise ValueError(f"gram must be {(weight.shape[1],) * 2}, but got {tuple(gram.shape)}")
    hessian = damped(gram)
    order = torch.argsort(hessian.diagonal(), descending=True, stable=True) if ordered else torch.arange(len(gram))
    scales, zeros = (part.expand_as(weight)[:, order] for part in (grid.scales, grid.zeros))
    upper = _upper_root_of_inverse(hessian[order][:, order])
    codes = _round_columns(weight[:, order], upper, Grid(scales, zeros, grid.low, grid.high))
    return codes[:, torch.argsort(order)]


def _upper_root_of_inverse(hessian: Tensor) -> Tensor:
    """U, upper triangular, with UᵀU = H⁻¹; float64."""
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
    root: Tensor = torch.linalg.cholesky(inverse, upper=True)
    return root


def _round_columns(weight: Tensor, upper: Tensor, grid: Grid) -> Tensor:
    left, codes = weight.to(torch.float64), torch.empty_like(weight)
    columns = weight.shape[1]
    for start in range(0, columns, BLOCK):
        stop = min(start + BLOCK, columns)
        errors = torch.zeros(weight.shape[0], stop - start, dtype=torch.float64)
        for j in range(start, stop):
            column = Grid(grid.scales[:, j], grid.zeros[:, j], grid.low, grid.high)
            nearest = column.codes(left[:, j].to(weight.dtype))
            codes[:, j] = torch.where(weight[:, j] == 0, column.zeros, nearest)
            error = (left[:, j] - column.values(codes[:, j])) / upper[j, j]
            left[:, j + 1 : stop] -= error[:, None] * upper[j, j + 1 : stop]
            errors[:, j - start] = error
        left[:, stop:] -= errors @ upper[start:stop, stop:]
    return codes
