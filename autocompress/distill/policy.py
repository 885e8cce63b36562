"""On-policy distillation: a language model learns on its own continuations (Agarwal et al. 2023)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.errors import ModelError
from autocompress.survey import evaluating
from autocompress.tasks.task import Inputs

#: Share of a batch's tokens that are given to continue.
PROMPT_SHARE = 0.25


@dataclass(frozen=True)
class Continuation:
    """Text that a student wrote.

    Attributes:
        inputs: of the models, prompts and what follows, ``(n, t)`` each.
        mask: positions ``(n, t)`` whose prediction the student acted on, or would have next.
    """

    inputs: Inputs
    mask: Tensor


def is_on_policy(step: int, share: float) -> bool:
    """Whether a step is one of the share, spread evenly: after k steps ⌊k·share⌋ of them were."""
    return int((step + 1) * share) > int(step * share)


def check_language_model(model: nn.Module, inputs: Inputs) -> None:
    """Raise `ModelError` where the model cannot continue a text."""
    generates = getattr(model, "can_generate", None)
    if generates is None or not generates() or "input_ids" not in inputs:
        raise ModelError(
            f"on_policy needs a language model that generates from input_ids, but {type(model).__name__} with the "
            f"inputs {', '.join(inputs)} is none; leave on_policy at 0"
        )


def prompt_length(inputs: Inputs) -> int:
    """Tokens that are given: a quarter of the batch's, but no padding, and at least one."""
    tokens = inputs["input_ids"].shape[1]
    real = int(inputs["attention_mask"].sum(dim=1).min()) if "attention_mask" in inputs else tokens
    return max(1, min(int(tokens * PROMPT_SHARE), real))


def continued(student: nn.Module, inputs: Inputs) -> Continuation:
    """What the student writes after the first quarter of each text, up to the batch's length.

    Drawn from its own distribution, untempered, by torch's global generator; without dropout.
    """
    given, tokens = prompt_length(inputs), inputs["input_ids"].shape[1]
    prompts = inputs["input_ids"][:, :given]
    if given == tokens:
        return _whole(prompts, given, inputs)
    model: Any = student
    with evaluating(student), torch.no_grad():
        written: Tensor = model.generate(
            input_ids=prompts,
            attention_mask=torch.ones_like(prompts),
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            max_new_tokens=tokens - given,
            min_new_tokens=tokens - given,
            pad_token_id=0,
        )
    return _whole(written, given, inputs)


def _whole(written: Tensor, given: int, inputs: Inputs) -> Continuation:
    made = {"input_ids": written}
    if "attention_mask" in inputs:
        made["attention_mask"] = torch.ones_like(written)
    mask = torch.zeros(written.shape, dtype=torch.bool)
    mask[:, given - 1 :] = True
    return Continuation(made, mask)
