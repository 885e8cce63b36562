"""Moves gates so that what they take away meets a target at every step, at the least rise of the loss.

The Lagrangian of CoFi is min L(p) + μ·(goal - gone(p)) over the probabilities p that gates stay open. Divided by what
each gate takes away, b = -∂gone/∂p, its gradient is ∂L/∂p / b + μ: the *price* of a gate, in loss per unit gone, and
the same μ for all. So gates move by their prices, and μ is a common shift that is solved for at each step. The paper
ascends it instead, with Adam, and trains for thousands of steps; in some hundred, that overshoots (MiniLM: 60 % asked,
77 % gone) and closes whole parts first, since Adam moves every gate alike however much it takes away.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from autocompress.learn.gates import Gates, keep_probability

#: |log α| stays below it: gates farther out learn nothing any more.
BOUND = 20.0

#: Least p·(1 - p) that a price is divided by: where a gate is sure, one sample tells little about ∂L/∂p.
LEAST_SLOPE = 0.02

#: Prices farther out than so many root mean squares count as that many.
CLIP = 3.0

MOMENTUM = 0.9
HALVINGS = 40

Gone = Callable[[Mapping[str, Tensor]], Tensor]


class Drive:
    """Gates on their way to a target.

    Args:
        gates: moved in place.
        gone: probabilities of each group's structures to the share that is gone, with a gradient.
        rate: step of log α per root mean square price.
    """

    def __init__(self, gates: Gates, gone: Gone, rate: float) -> None:
        self.gates, self.gone, self.rate = gates, gone, rate
        self._momenta = [torch.zeros_like(value) for value in gates.log_alpha]

    def step(self, goal: float) -> float:
        """Move by the gradients that the loss left in log α, then shift all gates to the goal; returns what is gone."""
        prices = self._prices()
        scale = torch.cat(prices).square().mean().sqrt() + 1e-12
        with torch.no_grad():
            for value, momentum, price in zip(self.gates.log_alpha, self._momenta, prices, strict=True):
                momentum.mul_(MOMENTUM).add_((price / scale).clamp(-CLIP, CLIP), alpha=1 - MOMENTUM)
                value.sub_(self.rate * momentum)
            shift = self._shift(goal)
            for value in self.gates.log_alpha:
                value.sub_(shift).clamp_(-BOUND, BOUND)
            return float(self.gone(self.gates.probabilities()))

    def _prices(self) -> list[Tensor]:
        """Loss per unit gone of each gate; negative where closing it costs."""
        open_ = {name: p.detach().requires_grad_() for name, p in self.gates.probabilities().items()}
        takes = torch.autograd.grad(self.gone(open_), list(open_.values()), allow_unused=True)
        prices = []
        for value, p, take in zip(self.gates.log_alpha, open_.values(), takes, strict=True):
            if value.grad is None or take is None:
                prices.append(torch.zeros_like(value))
                continue
            p = p.detach()
            prices.append(value.grad / (p * (1 - p)).clamp(min=LEAST_SLOPE) / (-take).clamp(min=1e-12))
            value.grad = None
        return prices

    def _shift(self, goal: float) -> float:
        """The common shift of log α after which the goal is gone, by halving."""
        low, high = -BOUND, BOUND
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            shifted = {group.name: keep_probability(value - middle) for group, value in self.gates.by_group()}
            low, high = (middle, high) if float(self.gone(shifted)) < goal else (low, middle)
        return high
