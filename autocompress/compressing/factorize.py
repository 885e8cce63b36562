"""Low rank: a weight as a product of two, chosen so that the layer's output changes least. Pure functions.

A convolution ``(out, in, kh, kw)`` is split by channels, ``(out, rank) @ (rank, in·kh·kw)``, or in space: rank filters
of kh×1, then filters of 1×kw, ``(out·kw, rank) @ (rank, in·kh)`` (Jaderberg et al. 2014).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from autocompress.compressing.prune import damped
from autocompress.plan import Factorize
from autocompress.plan.check import factor_size, largest_rank
from autocompress.weights import set_weight, weight_of


@dataclass(frozen=True)
class Decomposition:
    """A weight's matrix ``(m, n)`` as a sum of r = min(m, n) terms, weightiest first; float64.

    Attributes:
        left: ``(m, r)``; `left` · diag(`values`) · `right` is the matrix.
        values: ``(r,)``, descending.
        right: ``(r, n)``.
        errors: ``(r + 1,)``; entry k is the relative output error √(tr(D·G·Dᵀ) / tr(W·G·Wᵀ)) of the first k terms, D
            being what they leave of W; zeros where the inputs or the weight are zero.
    """

    left: Tensor
    values: Tensor
    right: Tensor
    errors: Tensor


def decompose(weight: Tensor, gram: Tensor, settings: Factorize) -> Decomposition:
    """One decomposition that gives the factors of every rank.

    "activation-aware": with S·Sᵀ = G (Cholesky) and the SVD U·Σ·Vᵀ of W·S, the terms are U·Σ·(Vᵀ·S⁻¹); the first r
    have the least output error that any matrix of rank r can have. In space, G is taken as the product of two second
    moments, of columns of the patch ``(in·kh, in·kh)`` and between its columns ``(kw, kw)``: exact where kw is 1, else
    near the best. "plain": the SVD of the matrix.

    Args:
        weight: ``(out, in)``, ``(rows, features)`` or ``(out, in, kh, kw)``.
        gram: G, second moment of the inputs ``(in·kh·kw, in·kh·kw)``; empty for the identity.
        settings: its method and split; the rank is not read.
    """
    exact = weight.detach().to(torch.float64)
    spatial = settings.split == "spatial" and weight.dim() == 4
    matrix = _columns_apart(exact) if spatial else exact.reshape(len(exact), -1)
    window = weight.shape[3] if spatial else 1
    blocks = _blocks(gram, matrix.shape[1], window)
    aware = settings.method == "activation-aware" and gram.numel()
    inner = torch.linalg.cholesky(damped(_mean_block(blocks))) if aware else None
    outer = torch.linalg.cholesky(damped(_traces(blocks))) if aware and window > 1 else None
    left, values, right = torch.linalg.svd(_weighted(matrix, inner, outer), full_matrices=False)
    if inner is not None:
        right = torch.linalg.solve_triangular(inner.T, right.T, upper=True).T
    if outer is not None:
        shaped = left.reshape(-1, window, left.shape[1])
        left = torch.linalg.solve(outer.T, shaped).reshape(left.shape)
    return Decomposition(left, values, right, _errors(left * values, right, blocks))


def factors_at(made: Decomposition, rank: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Factors ``(m, rank)`` and ``(rank, n)`` of one rank, each with the root of the values.

    Raises:
        ValueError: the decomposition does not have that rank.
    """
    if not 1 <= rank <= len(made.values):
        raise ValueError(f"rank must be 1 to {len(made.values)}, but got {rank}")
    half = made.values[:rank].sqrt()
    left, right = made.left[:, :rank] * half, half[:, None] * made.right[:rank]
    return left.to(dtype), right.to(dtype)


def factors(weight: Tensor, gram: Tensor, settings: Factorize) -> tuple[Tensor, Tensor]:
    """The two factors of a linear's, embedding's or convolution's weight, as matrices; see `decompose`."""
    return factors_at(decompose(weight, gram, settings), settings.rank, weight.dtype)


def factorize(weight: Tensor, gram: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Activation-aware factors ``(out, rank)`` and ``(rank, in)`` of a weight ``(out, in)``; raises as `factors_at`."""
    return factors_at(decompose(weight, gram, Factorize(1)), rank, weight.dtype)


def rank_errors(weight: Tensor, gram: Tensor, settings: Factorize) -> Tensor:
    """Relative output error of every rank from 0 to the largest, ``(max_rank + 1,)``, float64."""
    return decompose(weight, gram, settings).errors


def break_even_rank(shape: tuple[int, ...], split: str = "channel") -> int:
    """Largest rank at which two factors take fewer weights (and multiply-adds per position) than one weight."""
    return min((math.prod(shape) - 1) // factor_size(shape, split), largest_rank(shape, split))


def zero_factors(weight: Tensor, settings: Factorize) -> tuple[Tensor, Tensor]:
    """Zeros shaped like the factors."""
    spatial = settings.split == "spatial" and weight.dim() == 4
    matrix = _columns_apart(weight) if spatial else weight.reshape(len(weight), -1)
    return torch.zeros(len(matrix), settings.rank), torch.zeros(settings.rank, matrix.shape[1])


class Factors(nn.Sequential):
    """Two modules in the place of one."""

    @property
    def weight(self) -> Tensor:
        """The first factor, for models that ask a layer's weight for its type (ViT's patches do)."""
        first: Tensor = self[0].weight.detach()  # type: ignore[operator]
        return first


def replace_by_factors(module: nn.Module, made: tuple[Tensor, Tensor], settings: Factorize) -> nn.Sequential:
    """Two modules in a row that compute with the factors what `module` did with its weight.

    Args:
        module: a Linear, an Embedding or an ungrouped Conv2d; not edited.
        made: from `factors`, for the weight of `module`.
        settings: the split that the factors were made for.
    """
    with torch.device("meta"):  # nothing is drawn for weights that are set at once
        first, second = _pair(module, len(made[1]), settings)
    left, right = made
    if isinstance(module, nn.Embedding):
        set_weight(first, left)
        set_weight(second, right.T)
    else:
        if isinstance(second, nn.Conv2d):
            left = left.reshape(second.out_channels, second.kernel_size[1], -1).permute(0, 2, 1).unsqueeze(2)
        set_weight(first, right.reshape(weight_of(first).shape))
        set_weight(second, left)
    bias = getattr(module, "bias", None)
    if bias is not None:
        second.bias = nn.Parameter(bias.detach().clone())
    return Factors(first, second).train(module.training)


def _pair(module: nn.Module, rank: int, settings: Factorize) -> tuple[nn.Module, nn.Module]:
    """The two modules, without weights."""
    if isinstance(module, nn.Embedding):
        first = nn.Embedding(module.num_embeddings, rank, padding_idx=module.padding_idx)
        return first, nn.Linear(rank, module.embedding_dim, bias=False)
    if isinstance(module, nn.Conv2d):
        return (_spatial_pair if settings.split == "spatial" else _channel_pair)(module, rank)
    assert isinstance(module, nn.Linear)
    with_bias = module.bias is not None
    return nn.Linear(module.in_features, rank, bias=False), nn.Linear(rank, module.out_features, bias=with_bias)


def _channel_pair(module: nn.Conv2d, rank: int) -> tuple[nn.Module, nn.Module]:
    """The window to `rank` channels, then a mix of them at each position."""
    first = nn.Conv2d(
        module.in_channels,
        rank,
        module.kernel_size,  # type: ignore[arg-type]  # two numbers, whatever its annotation says
        module.stride,  # type: ignore[arg-type]
        module.padding,  # type: ignore[arg-type]
        module.dilation,  # type: ignore[arg-type]
        bias=False,
        padding_mode=module.padding_mode,
    )
    return first, nn.Conv2d(rank, module.out_channels, 1, bias=module.bias is not None)


def _spatial_pair(module: nn.Conv2d, rank: int) -> tuple[nn.Module, nn.Module]:
    """The window's columns to `rank` channels, then its rows."""

    def part(axis: int, into: int, out: int, bias: bool) -> nn.Conv2d:
        def along(sizes: tuple[int, ...], elsewhere: int) -> tuple[int, int]:
            return (sizes[0], elsewhere) if axis == 0 else (elsewhere, sizes[1])

        padding = module.padding if isinstance(module.padding, str) else along(module.padding, 0)
        window, stride, dilation = (along(s, 1) for s in (module.kernel_size, module.stride, module.dilation))
        return nn.Conv2d(into, out, window, stride, padding, dilation, 1, bias, module.padding_mode)

    return part(0, module.in_channels, rank, False), part(1, rank, module.out_channels, module.bias is not None)


def _columns_apart(weight: Tensor) -> Tensor:
    """A convolution's weight ``(out, in, kh, kw)`` as the matrix ``(out·kw, in·kh)``."""
    out, into, height, width = weight.shape
    return weight.permute(0, 3, 1, 2).reshape(out * width, into * height)


def _blocks(gram: Tensor, count: int, window: int) -> Tensor:
    """G by the two columns of the patch that meet: ``(window, window, count, count)``; a matrix has one column."""
    whole = gram.to(torch.float64) if gram.numel() else torch.eye(count * window, dtype=torch.float64)
    return whole.reshape(count, window, count, window).permute(1, 3, 0, 2)


def _mean_block(blocks: Tensor) -> Tensor:
    """Second moment of one column of the patch, ``(n, n)``."""
    return blocks.diagonal(dim1=0, dim2=1).mean(dim=2)


def _traces(blocks: Tensor) -> Tensor:
    """How the columns of the patch move together, ``(kw, kw)``."""
    return blocks.diagonal(dim1=2, dim2=3).sum(dim=2)


def _weighted(matrix: Tensor, inner: Tensor | None, outer: Tensor | None) -> Tensor:
    """The matrix times the roots of the second moments of what it reads: the output error is its Frobenius norm."""
    if outer is not None:
        matrix = (outer.T @ matrix.reshape(-1, len(outer), matrix.shape[1])).reshape(matrix.shape)
    return matrix if inner is None else matrix @ inner


def _errors(left: Tensor, right: Tensor, blocks: Tensor) -> Tensor:
    """Relative output error of the first k terms for k = 0 … r; summed from the smallest terms, so that it is exact."""
    window, rank = len(blocks), len(right)
    outputs = left.reshape(-1, window, rank)
    products = torch.zeros(rank, rank, dtype=torch.float64)
    for i in range(window):
        for j in range(window):
            products += (outputs[:, i].T @ outputs[:, j]) * (right @ blocks[i, j] @ right.T)
    # entry k of the tails is the sum of the square of products from (k, k) on
    tails = products.flip(0, 1).cumsum(0).cumsum(1).diagonal().flip(0)
    tails = torch.cat([tails, torch.zeros(1, dtype=torch.float64)]).clamp_min(0)
    return (tails / tails[0]).sqrt() if tails[0] > 0 else torch.zeros_like(tails)
