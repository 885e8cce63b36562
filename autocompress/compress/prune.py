"""Structured removal: which structures go, and how the survivors are re-solved. Pure matrix functions.

Everything works on the layer that *consumes* the structures: its weight W ``(out, in)`` and the second
moment of its inputs G = XᵀX/N ``(in, in)``. A structure owns `width` neighbouring columns.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: Share of the mean diagonal that is added to the second moment before it is inverted.
DAMPING = 1e-2


def damped(gram: Tensor) -> Tensor:
    """G with `DAMPING` of its mean diagonal added, the mean itself where an input is always zero; ``(in, in)``."""
    matrix = gram.to(torch.float64).clone()
    diagonal = matrix.diagonal()
    mean = diagonal.mean()
    dead = diagonal == 0
    diagonal += DAMPING * mean if mean > 0 else 1.0
    diagonal[dead] = mean if mean > 0 else 1.0
    return matrix


def columns_of(structures: Tensor, width: int) -> Tensor:
    """Column numbers ``(k·width,)`` of structure numbers ``(k,)``, in their order."""
    return (structures[:, None] * width + torch.arange(width)).reshape(-1)


def magnitude_order(weight: Tensor, width: int) -> Tensor:
    """Structures by the L2 norm of their columns, least first; ``(in // width,)``."""
    norms = weight.to(torch.float64).reshape(weight.shape[0], -1, width).pow(2).sum(dim=(0, 2))
    return torch.argsort(norms, stable=True)


def obs_order(weight: Tensor, gram: Tensor, width: int) -> Tensor:
    """Structures in the order in which the optimal brain surgeon removes them; ``(in // width,)``.

    At each step the structure S with the least ``Σ_rows W[:,S] (H⁻¹[S,S])⁻¹ W[:,S]ᵀ`` goes, then W and H⁻¹
    are updated (Hassibi & Stork 1993; in the blockwise form of Kurtic et al., ZipLM, 2023). Matrices shrink as
    structures leave, and H⁻¹ is inverted afresh at each shrinking.
    """
    hessian = damped(gram)
    count = weight.shape[1] // width
    alive = torch.arange(count)
    removed: list[int] = []
    while len(alive) > 1:
        kept = columns_of(alive, width)
        inverse = torch.linalg.inv(hessian[kept][:, kept])
        solved = weight.to(torch.float64) @ hessian[:, kept] @ inverse
        batch = max(1, len(alive) // 8) if len(alive) > 16 else len(alive) - 1
        gone = _remove(solved.to(torch.float32), inverse.to(torch.float32), width, batch)
        removed += alive[gone].tolist()
        stays = torch.ones(len(alive), dtype=torch.bool)
        stays[gone] = False
        alive = alive[stays]
    return torch.tensor(removed + alive.tolist())


def _remove(weight: Tensor, inverse: Tensor, width: int, count: int) -> Tensor:
    """Remove `count` structures one at a time; returns their numbers in order. Edits its arguments."""
    size = weight.shape[1] // width
    alive = torch.ones(size, dtype=torch.bool)
    gone = []
    for _ in range(count):
        scores = _scores(weight, inverse, width)
        scores[~alive] = torch.inf
        worst = int(scores.argmin())
        span = slice(worst * width, (worst + 1) * width)
        pivot = torch.linalg.inv(inverse[span, span])
        row = inverse[span].clone()
        weight -= weight[:, span] @ (pivot @ row)
        inverse -= row.T @ (pivot @ row)
        inverse[span, span] += torch.eye(width)  # keeps later pivots of removed structures finite
        alive[worst] = False
        gone.append(worst)
    return torch.tensor(gone)


def _scores(weight: Tensor, inverse: Tensor, width: int) -> Tensor:
    if width == 1:
        single: Tensor = weight.pow(2).sum(dim=0) / inverse.diagonal()
        return single
    size = weight.shape[1] // width
    blocks = inverse.reshape(size, width, size, width)[torch.arange(size), :, torch.arange(size), :]
    columns = weight.reshape(weight.shape[0], size, width).permute(1, 2, 0)
    scores: Tensor = (columns * torch.linalg.solve(blocks, columns)).sum(dim=(1, 2))
    return scores


def repair(weight: Tensor, gram: Tensor, kept: Tensor) -> Tensor:
    """The surviving columns re-solved so that the layer's output changes least: ``(out, len(kept))``.

    W' = W·H[:,kept]·(H[kept,kept])⁻¹, the least-squares optimum for these columns.
    """
    hessian = damped(gram)
    solved: Tensor = torch.linalg.solve(hessian[kept][:, kept], hessian[kept] @ weight.to(torch.float64).T).T
    return solved.to(weight.dtype)
