"""Low rank: a weight as a product of two, chosen so that the layer's output changes least. Pure functions."""

from __future__ import annotations

import torch
from torch import Tensor

from autocompress.compress.prune import damped


def factorize(weight: Tensor, gram: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Factors ``(out, rank)`` and ``(rank, in)`` of a weight ``(out, in)`` for inputs of second moment `gram`.

    With S·Sᵀ = G (Cholesky) and the SVD U·Σ·Vᵀ of W·S, the factors are U_r·Σ_r^½ and Σ_r^½·V_rᵀ·S⁻¹; their
    output error is √(Σ_{i>r} σᵢ²), the least that any rank-r matrix can have (activation-aware SVD).
    """
    if not 1 <= rank <= min(weight.shape):
        raise ValueError(f"rank must be 1 to {min(weight.shape)}, but got {rank}")
    root = torch.linalg.cholesky(damped(gram))
    left, values, right = torch.linalg.svd(weight.to(torch.float64) @ root, full_matrices=False)
    half = values[:rank].sqrt()
    out_factor = left[:, :rank] * half
    in_factor = torch.linalg.solve_triangular(root.T, (half[:, None] * right[:rank]).T, upper=True).T
    return out_factor.to(weight.dtype), in_factor.to(weight.dtype)


def break_even_rank(out_features: int, in_features: int) -> int:
    """Largest rank at which two factors take fewer multiply-adds than one weight."""
    product, total = out_features * in_features, out_features + in_features
    return (product - 1) // total
