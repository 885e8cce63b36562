"""Optimal brain surgeon for single weights: which of a matrix go, and what the others become. Pure functions.

The error is that of the layer's output on inputs of second moment G, tr((W - W')·G·(W - W')ᵀ).
"""

from __future__ import annotations

import torch
from torch import Tensor

from autocompress.compressing.prune import damped

#: Most ``out·in³`` multiply-adds for which every row is worked off exactly: about a second on one core.
EXACT_LIMIT = 6e8

#: Most for which the survivors of larger layers are still re-solved row by row: about two seconds.
RESOLVE_LIMIT = 3e10

#: Columns that are worked off together in larger layers.
BLOCK = 32

#: Numbers of all rows' H⁻¹ that are held at once.
MOST_INVERSES = 1 << 23


def surgeon(weight: Tensor, gram: Tensor, sparsity: float | None = None, n_m: tuple[int, int] | None = None) -> Tensor:
    """The weight ``(out, in)`` with zeros, the rest re-solved so that the layer's output changes little.

    Layers of up to `EXACT_LIMIT` multiply-adds are worked off by `exact`, larger ones by `blocked`; up to
    `RESOLVE_LIMIT` the survivors are then the least-squares optimum for where `blocked` put the zeros.

    Args:
        weight: the matrix.
        gram: second moment of its inputs, ``(in, in)``.
        sparsity: share of all weights that become zero, in [0, 1); exactly ``round(share · out · in)`` do.
        n_m: or N and M: of every M neighbouring inputs, N stay.
    """
    cost = len(weight) * weight.shape[1] ** 3
    if cost <= EXACT_LIMIT:
        return exact(weight, gram, sparsity, n_m)
    result = blocked(weight, gram, sparsity, n_m)
    return resolved(weight, gram, result != 0) if cost <= RESOLVE_LIMIT else result


def exact(weight: Tensor, gram: Tensor, sparsity: float | None = None, n_m: tuple[int, int] | None = None) -> Tensor:
    """Greedy and row by row: the weight with the least ``w²/H⁻¹_jj`` goes, then w and the row's H⁻¹ are updated.

    The rows' traces decide how many zeros each row gets (Frantar & Alistarh 2022, Optimal Brain Compression, alg. 1
    and 2); the survivors are the least-squares optimum for where the zeros are.
    """
    hessian = damped(gram)
    dense = weight.to(torch.float64)
    chunk = max(1, MOST_INVERSES // hessian.numel())
    if n_m is None:
        traces = [_trace(part, hessian) for part in dense.split(chunk)]  # type: ignore[no-untyped-call]
        order, costs = (torch.cat(tensors) for tensors in zip(*traces, strict=True))
        survives = _cheapest(order, costs, round((sparsity or 0.0) * weight.numel()))
    else:
        parts = [_trace(part, hessian, n_m)[0] for part in dense.split(chunk)]  # type: ignore[no-untyped-call]
        survives = torch.ones_like(dense, dtype=torch.bool).scatter_(1, torch.cat(parts), False)
    return resolved(weight, gram, survives)


def resolved(weight: Tensor, gram: Tensor, survives: Tensor) -> Tensor:
    """Each row's survivors by least squares, zeros elsewhere.

    Args:
        weight: the dense matrix, ``(out, in)``.
        gram: second moment of its inputs, ``(in, in)``.
        survives: mask of the weights that may differ from zero, ``(out, in)``.
    """
    if survives.all():
        return weight.clone()
    hessian, dense = damped(gram), weight.to(torch.float64)
    chunk = max(1, MOST_INVERSES // hessian.numel())
    parts = zip(dense.split(chunk), survives.split(chunk), strict=True)  # type: ignore[no-untyped-call]
    return torch.cat([_resolved(part, hessian, stays) for part, stays in parts]).to(weight.dtype)


def _trace(weight: Tensor, hessian: Tensor, n_m: tuple[int, int] | None = None) -> tuple[Tensor, Tensor]:
    """Columns in the order in which each row loses them, and what each costs; both ``(rows, steps)``.

    With `n_m`, a row loses no more of M neighbours than it may; otherwise it loses all.
    """
    count, columns = weight.shape
    rows = torch.arange(count)
    weight = weight.clone()
    inverse = torch.linalg.inv(hessian).expand(count, -1, -1).clone()
    gone = torch.zeros_like(weight, dtype=torch.bool)
    n, m = n_m or (0, columns)
    order, costs = [], []
    for _ in range(columns // m * (m - n)):
        full = gone.reshape(count, -1, m).sum(dim=2) == m - n
        scores = weight.pow(2) / inverse.diagonal(dim1=1, dim2=2)
        least = scores.masked_fill(gone | full.repeat_interleave(m, dim=1), torch.inf).min(dim=1)
        worst = least.indices
        row, pivot = inverse[rows, worst], inverse[rows, worst, worst][:, None]
        weight -= weight[rows, worst][:, None] / pivot * row
        inverse.baddbmm_(row[:, :, None], (row / pivot)[:, None], alpha=-1)
        inverse[rows, worst, worst] = 1.0  # keeps the scores of removed weights finite
        gone[rows, worst] = True
        order.append(worst)
        costs.append(least.values)
    return torch.stack(order, dim=1), torch.stack(costs, dim=1)


def _cheapest(order: Tensor, costs: Tensor, count: int) -> Tensor:
    """Survivors ``(rows, columns)`` when the next weight always goes in the row where it costs least."""
    heads = costs.cummax(dim=1).values  # a weight goes only after those before it in its row
    first = torch.argsort(heads.reshape(-1), stable=True)[:count]
    taken = torch.zeros(costs.numel(), dtype=torch.bool)
    taken[first] = True
    return torch.ones_like(costs, dtype=torch.bool).scatter(1, order, ~taken.reshape(costs.shape))


def _resolved(weight: Tensor, hessian: Tensor, stays: Tensor) -> Tensor:
    """`resolved` of some rows at once."""
    pairs = stays[:, :, None] & stays[:, None, :]
    systems = torch.where(pairs, hessian, torch.zeros(()).to(hessian)) + torch.diag_embed((~stays).to(hessian))
    targets = (weight @ hessian).masked_fill(~stays, 0.0)
    factor = torch.linalg.cholesky(systems)
    return torch.cholesky_solve(targets[..., None], factor).squeeze(-1).masked_fill(~stays, 0.0)


def blocked(weight: Tensor, gram: Tensor, sparsity: float | None = None, n_m: tuple[int, int] | None = None) -> Tensor:
    """Column by column with one H⁻¹ for all rows; masks are chosen per block (Frantar & Alistarh 2023, SparseGPT).

    What a column loses is made good by the columns after it. Every block of `BLOCK` columns gets the same share of
    zeros; with `n_m`, each M neighbours get theirs when their turn comes.
    """
    root = torch.linalg.cholesky(torch.linalg.inv(damped(gram)), upper=True).to(torch.float32)
    result = weight.to(torch.float32).clone()
    rows, columns = weight.shape
    size = BLOCK if n_m is None else max(1, BLOCK // n_m[1]) * n_m[1]
    for start in range(0, columns, size):
        end = min(start + size, columns)
        count = round((sparsity or 0.0) * rows * end) - round((sparsity or 0.0) * rows * start)
        errors = _work_off(result[:, start:end], root[start:end, start:end], count, n_m)
        result[:, end:] -= errors @ root[start:end, end:]
    return result.to(weight.dtype)


def _work_off(block: Tensor, root: Tensor, count: int, n_m: tuple[int, int] | None) -> Tensor:
    """Set a block's zeros, in place; returns what each column passes on, ``(out, columns)``."""
    pivots = root.diagonal()
    errors = torch.zeros_like(block)
    goes = torch.zeros_like(block, dtype=torch.bool)
    if n_m is None and count:
        chosen = (block / pivots).pow(2).reshape(-1).topk(count, largest=False, sorted=False).indices
        goes.view(-1)[chosen] = True
    for j in range(block.shape[1]):
        if n_m is not None and j % n_m[1] == 0:
            span = slice(j, j + n_m[1])
            chosen = (block[:, span] / pivots[span]).pow(2).topk(n_m[1] - n_m[0], largest=False).indices
            goes[:, span] = torch.zeros_like(goes[:, span]).scatter(1, chosen, True)
        lost = block[:, j].where(goes[:, j], torch.zeros(()))
        errors[:, j] = lost / pivots[j]
        block[:, j:] -= errors[:, j, None] * root[j, j:]
        block[:, j] = block[:, j].masked_fill(goes[:, j], 0.0)
    return errors
