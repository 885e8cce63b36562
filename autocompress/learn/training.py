"""The training loop of the recipes that learn zeros: plain steps, after each of which zeros are zero again."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from autocompress.compressing.mask import hold
from autocompress.distill.learner import MAX_GRADIENT_NORM, WEIGHT_DECAY, learning_rate_share
from autocompress.errors import ModelError
from autocompress.tasks.task import Inputs, Task, logits_of

#: Share of a training's last steps over which its loss is averaged.
LAST_SHARE = 0.1

#: Logits, inputs and targets of a batch to the loss that is minimised.
Loss = Callable[[Tensor, Inputs, Tensor], Tensor]


@dataclass(frozen=True)
class Course:
    """How long and how fast a model is trained.

    Attributes:
        steps: optimizer steps of the whole schedule.
        learning_rate: peak of AdamW's linear warm-up and decay.
        seed: of the samples' order and of dropout.
        start: steps that are left out, for a model that has taken them already.
    """

    steps: int
    learning_rate: float
    seed: int
    start: int = 0


def train(
    model: nn.Module,
    task: Task,
    course: Course,
    loss_of: Loss,
    *,
    masks: Mapping[str, Tensor],
    before: Callable[[int], None] = lambda step: None,
) -> list[float]:
    """Train a model in place; returns the loss of each step.

    Args:
        model: all parameters that require a gradient are trained.
        task: gives training samples and the batch size.
        course: steps, learning rate, seed.
        loss_of: what is minimised.
        masks: parameter name to survivors; read after every step, so `before` may renew them.
        before: is told each step's number before the step is taken.

    Raises:
        ModelError: the loss became NaN or infinite; names step and settings.
    """
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, course.learning_rate, weight_decay=WEIGHT_DECAY)
    rows_of = task.train.random_batches(task.batch_size, course.steps, course.seed)
    losses = []
    model.train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(course.seed)  # dropout
        for step, rows in itertools.islice(enumerate(rows_of), course.start, None):
            before(step)
            for group in optimizer.param_groups:
                group["lr"] = course.learning_rate * learning_rate_share(step, course.steps)
            inputs, targets = task.train.batch(rows)
            loss = loss_of(logits_of(model(**inputs)), inputs, targets)
            if not torch.isfinite(loss):
                raise ModelError(f"training diverged: the loss is {loss.detach().item()} at step {step} of {course}")
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(weights, MAX_GRADIENT_NORM)
            optimizer.step()
            hold(model, masks)
            losses.append(loss.detach().item())
    model.eval()
    return losses


def last_loss(losses: list[float]) -> float:
    """Mean loss of the last steps, `LAST_SHARE` of them and at least one."""
    last = losses[-max(1, round(LAST_SHARE * len(losses))) :]
    return sum(last) / len(last)
