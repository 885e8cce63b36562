"""Distillation terms on hidden states, and which layer learns from which. Pure; knows tensors, not models.

Hidden states are ``(n, t, width)``, masks boolean ``(n, t)``, true where a token is no padding; None: every token.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from autocompress.distill.losses import kl, masked_mean

#: Relations are compared in at most so many heads (MiniLM has 12).
RELATION_HEADS = 12


def hidden_error(student: Tensor, teacher: Tensor, mask: Tensor | None) -> Tensor:
    """Mean squared error over tokens and features."""
    return masked_mean((student - teacher).square(), mask)


def normalised_error(student: Tensor, teacher: Tensor, mask: Tensor | None) -> Tensor:
    """``MSE(student, teacher) / MSE(teacher, 0)``: 1 where the student says nothing (Kurtic et al. 2023, ZipLM)."""
    return hidden_error(student, teacher, mask) / masked_mean(teacher.square(), mask)


def cosine_distance(student: Tensor, teacher: Tensor, mask: Tensor | None) -> Tensor:
    """Mean of 1 - cos over tokens (Sanh et al. 2019, DistilBERT)."""
    return masked_mean(1 - nn.functional.cosine_similarity(student, teacher, dim=-1), mask)


def relation_heads(student: int, teacher: int) -> int:
    """The most heads, up to `RELATION_HEADS`, into which both widths can be cut evenly."""
    shared = math.gcd(student, teacher)
    return max(heads for heads in range(1, RELATION_HEADS + 1) if shared % heads == 0)


def self_relations(vectors: Tensor, heads: int, visible: Tensor) -> Tensor:
    """``log softmax(V·Vᵀ / √width_of_a_head)`` of queries, keys or values ``(n, t, width)``: ``(n, heads, t, t)``.

    `visible` ``(n, t, t)`` is true where the token of the row may see that of the column.
    """
    n, t, width = vectors.shape
    split = vectors.reshape(n, t, heads, width // heads).transpose(1, 2)
    scores = split @ split.transpose(-1, -2) / math.sqrt(width // heads)
    least = torch.finfo(scores.dtype).min  # no infinity: the rows of padding must stay numbers
    return nn.functional.log_softmax(scores.masked_fill(~visible[:, None], least), dim=-1)


def visible_tokens(vectors: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """Which token ``(n, t, t)`` may see which: no padding, and in a causal model none that comes later."""
    n, t, _width = vectors.shape
    seen = torch.ones(n, t, t, dtype=torch.bool)
    if mask is not None:
        seen &= mask[:, None, :]
    return seen.tril() if causal else seen


def relation_loss(
    student: Sequence[Tensor], teacher: Sequence[Tensor], mask: Tensor | None, causal: bool = False
) -> Tensor:
    """KL(teacher ‖ student) of self-relations, the mean over queries, keys and values, heads and tokens.

    Widths and numbers of heads may differ: all heads are laid side by side and cut into `relation_heads` anew (Wang et
    al. 2021, MiniLMv2, §3).
    """
    losses = []
    for mine, its in zip(student, teacher, strict=True):
        heads = relation_heads(mine.shape[-1], its.shape[-1])
        visible = visible_tokens(mine, mask, causal)
        apart = kl(self_relations(its, heads, visible), self_relations(mine, heads, visible))
        losses.append(masked_mean(apart.mean(dim=1), mask))
    return torch.stack(losses).mean()


def static_map(places: Sequence[int], own: int, teachers: int) -> tuple[int, ...]:
    """For each student block that is left the teacher block it learns from: evenly by depth, the last from the last.

    Of k blocks, block i (from 0) learns from block ⌈(i + 1)·L / k⌉ - 1 of L: where the student was cut out of the
    teacher, that is its own.

    Args:
        places: of the blocks that are left, among the student's `own` blocks before any was removed.
        own: k.
        teachers: L.
    """
    return tuple(math.ceil((place + 1) * teachers / own) - 1 for place in places)


def taught_layers(count: int) -> tuple[int, ...]:
    """Teacher blocks of the dynamic map: every second one, and the last."""
    return tuple(sorted({*range(1, count, 2), count - 1}))


def dynamic_map(costs: NDArray[np.float64]) -> tuple[int, ...]:
    """For each row of costs ``(teacher blocks, student blocks)`` its column: the least sum in which none goes back.

    Found by dynamic programming over rows; a column may serve several rows (Xia et al. 2022, CoFi, §3.2).
    """
    best, origins = costs[0], []
    for row in costs[1:]:
        origin = _cheapest_so_far(best)
        origins.append(origin)
        best = best[origin] + row
    column = int(best.argmin())
    path = [column]
    for origin in reversed(origins):
        column = int(origin[column])
        path.append(column)
    return tuple(reversed(path))


def _cheapest_so_far(costs: NDArray[np.float64]) -> NDArray[np.int64]:
    """For each place the cheapest one up to it, the first of equals."""
    before = np.concatenate([[np.inf], np.minimum.accumulate(costs)[:-1]])
    return np.maximum.accumulate(np.where(costs < before, np.arange(len(costs)), 0))
