"""Losses between two predictions: soft, hard, and mixed. Pure; knows logits, not models.

Logits are ``(n, classes)``, or ``(n, t, classes)`` where a model answers for every token. Means are over samples in
the first case, over the tokens that `mask` ``(n, t)`` names (all without it) in the second; never over classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from autocompress.errors import ModelError
from autocompress.plan import Distill

HardLoss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Prediction:
    """What a model answers, whole or cut down to its likeliest classes.

    Attributes:
        logits: ``(…, classes)``; cut down ``(…, k + 1)``, the last one being the log-sum-exp of all other logits.
        classes: of a prediction that is cut down: which k classes come first, int64 ``(…, k)``.
    """

    logits: Tensor
    classes: Tensor | None = None


def outcomes(logits: Tensor, classes: Tensor | None) -> Tensor:
    """Logits ``(…, V)`` as the k + 1 outcomes of a `Prediction` that names k of the V classes; whole without names.

    A softmax over the outcomes gives the k classes their own probabilities and the last outcome that of all others.
    """
    if classes is None:
        return logits
    others = logits.scatter(-1, classes, -math.inf).logsumexp(-1, keepdim=True)
    return torch.cat([logits.gather(-1, classes), others], dim=-1)


def masked_mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Mean of ``(n, t, …)`` over the places where the boolean mask ``(n, t)`` is true, and over all that follows."""
    return values.mean() if mask is None else values[mask].mean()


def token_mask(inputs: Mapping[str, Tensor], tokens: Tensor) -> Tensor | None:
    """Which of the tokens ``(n, t, …)`` are no padding, ``(n, t)``, by `attention_mask`; None where nothing says."""
    mask = inputs.get("attention_mask")
    if mask is None or tokens.dim() < 3 or mask.shape != tokens.shape[:2]:
        return None
    return mask.bool()


def kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p ‖ q) in nats, ``(…, classes)`` to ``(…)``, from log-probabilities."""
    return nn.functional.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)


def generalised_jsd(log_p: Tensor, log_q: Tensor, beta: float) -> Tensor:
    """``β·KL(p ‖ m) + (1-β)·KL(q ‖ m)`` with ``m = β·p + (1-β)·q``, ``(…, classes)`` to ``(…)``.

    At β = 0 and 1, where this is 0 whatever p and q are, it stands for its limits over β and over 1-β: KL(p ‖ q) and
    KL(q ‖ p) (Agarwal et al. 2023, "On-Policy Distillation of Language Models", §2).
    """
    if beta == 0:
        return kl(log_p, log_q)
    if beta == 1:
        return kl(log_q, log_p)
    log_m = torch.logaddexp(log_p + math.log(beta), log_q + math.log1p(-beta))
    return beta * kl(log_p, log_m) + (1 - beta) * kl(log_q, log_m)


def soft_loss(
    student: Tensor,
    teacher: Tensor | Prediction,
    temperature: float,
    mask: Tensor | None = None,
    beta: float = 0.0,
) -> Tensor:
    """``T²·D(softmax(teacher/T) ‖ softmax(student/T))``, the mean over samples or tokens.

    T² keeps the gradient's size independent of T (Hinton, Vinyals & Dean 2015, §2.1). D is the generalised
    Jensen-Shannon divergence with `beta`, by default KL(teacher ‖ student). Against a prediction that is cut down, both
    sides are taken as distributions over its outcomes.

    Raises:
        ModelError: teacher and student have different classes.
    """
    given = Prediction(teacher) if isinstance(teacher, Tensor) else teacher
    if given.classes is None and given.logits.shape[-1] != student.shape[-1]:
        raise ModelError(
            f"the student has {student.shape[-1]} classes, but its teacher has {given.logits.shape[-1]}: "
            "a soft loss needs the same classes in both"
        )
    log_student = nn.functional.log_softmax(outcomes(student, given.classes) / temperature, dim=-1)
    log_teacher = nn.functional.log_softmax(given.logits / temperature, dim=-1)
    return masked_mean(generalised_jsd(log_teacher, log_student, beta), mask) * temperature**2


def settled_soft_loss(
    student: Tensor, teacher: Tensor | Prediction, settings: Distill, mask: Tensor | None = None
) -> Tensor:
    """`soft_loss` with the temperature and the divergence that the settings name."""
    beta = settings.beta if settings.divergence == "jsd" else 0.0
    return soft_loss(student, teacher, settings.temperature, mask, beta)


def distillation_loss(
    student: Tensor,
    teacher: Tensor | Prediction,
    targets: Tensor,
    settings: Distill,
    hard: HardLoss,
    *,
    mask: Tensor | None = None,
) -> Tensor:
    """``(1-λ)·L_hard + λ·L_soft``; a term without weight is not computed.

    Args:
        student: logits.
        teacher: what the student is to predict.
        targets: whatever `hard` takes.
        settings: λ, T and the divergence.
        hard: the task's own loss.
        mask: tokens of the soft loss.
    """
    loss = torch.zeros(())
    if settings.soft_weight < 1:
        loss = loss + (1 - settings.soft_weight) * hard(student, targets)
    if settings.soft_weight > 0:
        loss = loss + settings.soft_weight * settled_soft_loss(student, teacher, settings, mask)
    return loss
