"""Recovery by distillation: the loss, the teacher's cached logits, and the training loop."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from autocompress.errors import ModelError
from autocompress.plan import Distill
from autocompress.records import write_atomic
from autocompress.tasks.task import Examples, Task, logits_of

WARMUP_SHARE = 0.1
MAX_GRADIENT_NORM = 1.0


def soft_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """``T²·KL(softmax(teacher/T) ‖ softmax(student/T))``, the mean over samples of logits ``(n, classes)``.

    T² keeps the gradient's size independent of T (Hinton, Vinyals & Dean 2015, §2.1).
    """
    log_student = nn.functional.log_softmax(student / temperature, dim=-1)
    log_teacher = nn.functional.log_softmax(teacher / temperature, dim=-1)
    divergence = nn.functional.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)
    return divergence * temperature**2


def divergence(teacher: nn.Module, student: nn.Module, examples: Examples) -> float:
    """Mean KL(teacher ‖ student) of the predicted distributions over samples, in nats; inf where it is no number."""
    total = 0.0
    with torch.inference_mode():
        for _rows, inputs, targets in examples.batches(32):
            loss = soft_loss(logits_of(student(**inputs)), logits_of(teacher(**inputs)), 1.0)
            total += float(loss) * len(targets)
    return total / len(examples) if np.isfinite(total) else float("inf")


def distillation_loss(student: Tensor, teacher: Tensor, targets: Tensor, settings: Distill, hard: HardLoss) -> Tensor:
    """``(1-λ)·L_hard + λ·T²·KL(teacher_T ‖ student_T)``."""
    loss = torch.zeros(())
    if settings.soft_weight < 1:
        loss = loss + (1 - settings.soft_weight) * hard(student, targets)
    if settings.soft_weight > 0:
        loss = loss + settings.soft_weight * soft_loss(student, teacher, settings.temperature)
    return loss


HardLoss = Callable[[Tensor, Tensor], Tensor]


class TeacherCache:
    """The dense model's logits on training samples, computed when first asked for and kept on disk.

    Args:
        path: an .npy file ``(n_train, classes)``; NaN rows are not computed yet.
        task: gives teacher and samples.
    """

    def __init__(self, path: Path, task: Task) -> None:
        self.path = path
        self.task = task
        self._logits: NDArray[np.float32] | None = None
        self._fresh = 0
        if path.is_file():
            stored = np.load(path, allow_pickle=False)
            if len(stored) == len(task.train):
                self._logits = stored

    def logits(self, rows: NDArray[np.int64]) -> Tensor:
        """Teacher logits ``(len(rows), classes)`` of some training samples."""
        known = self._logits
        missing = rows if known is None else rows[np.isnan(known[rows]).any(axis=1)]
        if len(missing):
            inputs, _targets = self.task.train.batch(missing)
            with torch.inference_mode():
                values = logits_of(self.task.model(**inputs)).numpy()
            if known is None:
                known = np.full((len(self.task.train), *values.shape[1:]), np.nan, dtype=np.float32)
                self._logits = known
            known[missing] = values
            self._fresh += len(missing)
        assert known is not None
        return torch.from_numpy(known[rows])

    def save(self) -> None:
        """Write what is new to the disk."""
        if self._fresh and self._logits is not None:
            buffer = io.BytesIO()
            np.save(buffer, self._logits)
            write_atomic(self.path, buffer.getvalue())
            self._fresh = 0


def recover(student: nn.Module, settings: Distill, task: Task, teacher: TeacherCache, seed: int = 0) -> nn.Module:
    """A copy of the student trained for `settings.steps` steps against the teacher.

    AdamW with linear warm-up and decay, gradients clipped to norm 1, embeddings frozen; samples are drawn with `seed`,
    the same for every candidate, so that the teacher's cache is shared.

    Raises:
        ModelError: the loss became NaN or infinite; names step and settings.
    """
    trained = copy.deepcopy(student).train()
    weights = _trainable(trained)
    optimizer = torch.optim.AdamW(weights, settings.learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_share(step, settings.steps))
    torch.manual_seed(seed)  # dropout
    for step, rows in enumerate(task.train.random_batches(task.batch_size, settings.steps, seed)):
        inputs, targets = task.train.batch(rows)
        loss = distillation_loss(logits_of(trained(**inputs)), teacher.logits(rows), targets, settings, task.loss)
        if not torch.isfinite(loss):
            raise ModelError(f"recovery diverged: the loss is {loss.detach().item()} at step {step} of {settings}")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(weights, MAX_GRADIENT_NORM)
        optimizer.step()
        schedule.step()
    teacher.save()
    return trained.eval()


def _trainable(model: nn.Module) -> list[nn.Parameter]:
    """All weights but those of embeddings, which structure removal leaves alone and which cost the most to train."""
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            module.weight.requires_grad_(False)
    return [weight for weight in model.parameters() if weight.requires_grad]


def learning_rate_share(step: int, steps: int) -> float:
    """Share of the peak learning rate at a step: linear up over the first tenth, then linear down to 0."""
    warmup = max(1, round(steps * WARMUP_SHARE))
    if step < warmup:
        return (step + 1) / warmup
    return max(0.0, (steps - step) / max(1, steps - warmup))
