"""Oracles: the tail of singular values (Eckart–Young), plain SVD, and the weight itself at full rank."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from autocompress.compress.factorize import break_even_rank, factorize
from autocompress.compress.prune import damped
from tests.tiny import spread


def root_error(weight: Tensor, product: Tensor, gram: Tensor) -> float:
    """Root mean square output error for inputs of the damped second moment."""
    change = weight - product
    return float(torch.trace(change @ damped(gram) @ change.T).sqrt())


@pytest.mark.parametrize("rank", [1, 3, 6])
def test_output_error_is_the_tail_of_singular_values(rank: int) -> None:
    _inputs, gram = spread(300, 10)
    weight = torch.randn(8, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    out_factor, in_factor = factorize(weight, gram, rank)
    values = torch.linalg.svdvals(weight @ torch.linalg.cholesky(damped(gram)))
    tail = float(values[rank:].pow(2).sum().sqrt())
    assert root_error(weight, out_factor @ in_factor, gram) == pytest.approx(tail, rel=1e-8)


@pytest.mark.parametrize("shape", [(8, 12), (12, 8), (9, 9)], ids=["wide", "tall", "square"])
def test_full_rank_is_the_weight(shape: tuple[int, int]) -> None:
    _inputs, gram = spread(300, shape[1])
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    out_factor, in_factor = factorize(weight, gram, min(shape))
    assert out_factor.shape == (shape[0], min(shape))
    assert in_factor.shape == (min(shape), shape[1])
    torch.testing.assert_close(out_factor @ in_factor, weight, rtol=0, atol=1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_it_beats_plain_svd_on_the_inputs_it_was_made_for(seed: int) -> None:
    inputs, gram = spread(300, 16, seed)
    weight = torch.randn(12, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    out_factor, in_factor = factorize(weight, gram, 4)
    left, values, right = torch.linalg.svd(weight, full_matrices=False)
    plain = (left[:, :4] * values[:4]) @ right[:4]
    ours = torch.linalg.norm(inputs @ (weight - out_factor @ in_factor).T)
    assert ours < torch.linalg.norm(inputs @ (weight - plain).T)


def test_a_weight_of_low_rank_survives_its_own_rank() -> None:
    _inputs, gram = spread(300, 10)
    weight = torch.randn(8, 3) @ torch.randn(3, 10)
    out_factor, in_factor = factorize(weight, gram, 3)
    torch.testing.assert_close(out_factor @ in_factor, weight, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rank", [0, 9])
def test_a_rank_that_the_weight_does_not_have_is_refused(rank: int) -> None:
    with pytest.raises(ValueError, match=f"rank must be 1 to 8, but got {rank}"):
        factorize(torch.randn(8, 10), torch.eye(10), rank)


@pytest.mark.parametrize(("out_features", "in_features"), [(32, 32), (64, 32), (33, 47)])
def test_break_even_rank_is_the_last_that_saves(out_features: int, in_features: int) -> None:
    rank = break_even_rank(out_features, in_features)
    cost = out_features + in_features
    assert rank * cost < out_features * in_features <= (rank + 1) * cost
