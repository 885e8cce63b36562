"""Students that teach each other (Zhang et al. 2018, Deep Mutual Learning): how they differ, and what they learn."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from autocompress.distill.losses import settled_soft_loss
from autocompress.plan import Distill

#: Noise that sets a peer apart, as a share of each weight's standard deviation.
NOISE = 0.01


def mutual_loss(own: Tensor, others: Sequence[Tensor], settings: Distill, mask: Tensor | None) -> Tensor:
    """Mean over the other peers of ``T²·D(p_other ‖ p_own)``; their predictions are taken as given."""
    losses = [settled_soft_loss(own, other.detach(), settings, mask) for other in others]
    return torch.stack(losses).mean()


def set_apart(model: nn.Module, seed: int) -> None:
    """Add seeded noise to every trainable weight of a peer; edits the model.

    Peers of equal weights would differ by dropout alone, and in a model without it not at all.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad and weight.numel() > 1:
                weight.add_(torch.randn(weight.shape, generator=generator), alpha=NOISE * float(weight.std()))
