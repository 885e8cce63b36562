"""Recipes of the methods that learn what to remove. `learn` turns one into a plan and the weights it starts from."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from autocompress.plan.choices import BELOW_ONE, TINY, is_count, one_of, refuse, within


def _counts(record: Any, least: int, *names: str) -> Iterator[str]:
    for name in names:
        value = getattr(record, name)
        if not is_count(value, least):
            yield f"{name} must be an integer of {least} or more, but got {value!r}"


@dataclass(frozen=True)
class Gradual:
    """Zeros that grow while training goes on, s(t) = s·(1 - (1 - t)³) (Zhu & Gupta 2017).

    Attributes:
        sparsity: share s of all weights of linears and convolutions that end as zero, in [0, 1).
        steps: optimizer steps in all; the last quarter trains at full sparsity.
        updates: how often the masks are renewed.
        learning_rate: peak.
        soft_weight, temperature: of the distillation against the dense model.
    """

    sparsity: float
    steps: int = 200
    updates: int = 10
    learning_rate: float = 3e-4
    soft_weight: float = 0.5
    temperature: float = 2.0

    def __post_init__(self) -> None:
        """Refuse values outside their ranges."""
        faults = [
            *within(self, "in [0, 1)", 0.0, BELOW_ONE, "sparsity"),
            *within(self, "in [0, 1]", 0.0, 1.0, "soft_weight"),
            *within(self, "above 0", TINY, math.inf, "learning_rate", "temperature"),
            *_counts(self, 1, "steps", "updates"),
        ]
        refuse("Gradual", faults)


@dataclass(frozen=True)
class LotteryTicket:
    """Iterative magnitude pruning with rewinding (Frankle & Carbin 2019; Frankle et al. 2020).

    Train an untrained copy, remove the least weights of the whole model, take the rest back to where they were after
    `rewind_steps`, and again: `rounds` times.

    Attributes:
        sparsity: share of all weights of linears and convolutions that are zero after the last round, in (0, 1).
        rounds: the same share of what is left goes in each.
        steps: optimizer steps of one training.
        rewind_steps: steps of the first training after which weights are kept to go back to; 0: the initial ones.
        learning_rate: peak.
        reinitialise: give the found mask fresh random weights instead: the control experiment.
    """

    sparsity: float
    rounds: int = 3
    steps: int = 300
    rewind_steps: int = 20
    learning_rate: float = 5e-4
    reinitialise: bool = False

    def __post_init__(self) -> None:
        """Refuse values outside their ranges."""
        faults = [
            *within(self, "in (0, 1)", TINY, BELOW_ONE, "sparsity"),
            *within(self, "above 0", TINY, math.inf, "learning_rate"),
            *_counts(self, 1, "rounds", "steps"),
            *_counts(self, 0, "rewind_steps"),
            *one_of(self, reinitialise=(True, False)),
        ]
        if not faults and self.rewind_steps >= self.steps:
            faults.append(f"rewind_steps must be under steps ({self.steps}), but got {self.rewind_steps}")
        refuse("LotteryTicket", faults)


@dataclass(frozen=True)
class Cofi:
    """Coarse- and fine-grained masks learned together with the weights (Xia, Zhong & Chen 2022).

    Hard-concrete gates (Louizos et al. 2018) on whole attention and feed-forward parts, heads, neurons and hidden
    dimensions, held to a growing target by a Lagrange multiplier, with layer-wise distillation.

    Attributes:
        sparsity: share of the weights of all blocks that goes, in (0, 1); or None.
        latency_ratio: predicted latency over dense instead, in (0, 1); or None. Exactly one of the two is given.
        steps: optimizer steps with gates.
        warmup_steps: of these, over which the target grows from 0.
        finetune_steps: after the gates are settled and the structures removed.
        learning_rate, gate_learning_rate: of the weights; of the gates, in log α per step at a usual price.
        soft_weight, temperature, hidden_weight: of the distillation.
        hidden: whether hidden dimensions may go.
    """

    sparsity: float | None = None
    latency_ratio: float | None = None
    steps: int = 300
    warmup_steps: int = 100
    finetune_steps: int = 100
    learning_rate: float = 1e-4
    gate_learning_rate: float = 0.1
    soft_weight: float = 0.5
    temperature: float = 2.0
    hidden_weight: float = 0.9
    hidden: bool = True

    def __post_init__(self) -> None:
        """Refuse values outside their ranges, and no target or two."""
        faults = [
            *within(self, "above 0", TINY, math.inf, "learning_rate", "gate_learning_rate", "temperature"),
            *within(self, "in [0, 1]", 0.0, 1.0, "soft_weight"),
            *within(self, "0 or more", 0.0, math.inf, "hidden_weight"),
            *_counts(self, 1, "steps"),
            *_counts(self, 0, "warmup_steps", "finetune_steps"),
            *one_of(self, hidden=(True, False)),
        ]
        for name in ("sparsity", "latency_ratio"):
            if getattr(self, name) is not None:
                faults += within(self, "in (0, 1)", TINY, BELOW_ONE, name)
        if (self.sparsity is None) == (self.latency_ratio is None):
            faults.append("give exactly one of sparsity and latency_ratio")
        refuse("Cofi", faults)


Recipe = Gradual | LotteryTicket | Cofi

#: Name in JSON to the recipe.
RECIPES: dict[str, type[Recipe]] = {"gradual": Gradual, "lottery-ticket": LotteryTicket, "cofi": Cofi}
