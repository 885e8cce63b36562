"""Oracles: the soft loss against each peer apart, and the size of the noise."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from autocompress.distill import soft_loss
from autocompress.distill.online import NOISE, mutual_loss, set_apart
from autocompress.plan import Distill
from tests.tiny import mlp


def drawn(seed: int) -> Tensor:
    return torch.randn(4, 3, generator=torch.Generator().manual_seed(seed))


def test_mutual_loss_is_the_mean_soft_loss_against_the_others() -> None:
    own, others = drawn(0), [drawn(1), drawn(2), drawn(3)]
    expected = sum(float(soft_loss(own, other, 3.0)) for other in others) / 3
    assert float(mutual_loss(own, others, Distill(temperature=3.0), None)) == pytest.approx(expected, rel=1e-5)


def test_peers_are_taken_as_given() -> None:
    own, other = drawn(0).requires_grad_(), drawn(1).requires_grad_()
    mutual_loss(own, [other], Distill(), None).backward()
    assert own.grad.abs().sum() > 0
    assert other.grad is None


def test_noise_is_small_seeded_and_spares_what_is_frozen() -> None:
    dense, peers = mlp(), [mlp(), mlp(), mlp()]
    for peer, seed in zip(peers, (1, 1, 2), strict=True):
        peer.second.weight.requires_grad_(False)
        set_apart(peer, seed)
    shift = (peers[0].first.weight - dense.first.weight).detach()
    assert float(shift.std()) == pytest.approx(NOISE * float(dense.first.weight.detach().std()), rel=0.1)
    assert torch.equal(peers[0].first.weight, peers[1].first.weight)
    assert not torch.equal(peers[0].first.weight, peers[2].first.weight)
    assert torch.equal(peers[0].second.weight, dense.second.weight)
