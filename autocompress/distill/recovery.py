"""The verb `recover`: a shaped student trained against its teacher. The one place that knows the order of a step."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from autocompress.distill.learner import Learner, enrolled
from autocompress.distill.losses import Prediction, settled_soft_loss, soft_loss, token_mask
from autocompress.distill.online import mutual_loss
from autocompress.distill.policy import check_language_model, continued, is_on_policy
from autocompress.distill.states import States, watching
from autocompress.distill.teacher import TeacherCache
from autocompress.errors import PlanError
from autocompress.layers import LayerTable
from autocompress.plan import Plan
from autocompress.tasks.task import Examples, Task, logits_of

#: Steps after which what the teacher said is written to the disk.
SAVE_EVERY = 200

Terms = dict[str, Tensor]


def divergence(teacher: nn.Module, student: nn.Module, examples: Examples) -> float:
    """Mean KL(teacher ‖ student) over samples, or tokens that are no padding, in nats; inf where it is no number."""
    total, count = 0.0, 0
    with torch.inference_mode():
        for _rows, inputs, _targets in examples.batches(32):
            logits = logits_of(student(**inputs))
            mask = token_mask(inputs, logits)
            places = int(mask.sum()) if mask is not None else logits[..., 0].numel()
            total += float(soft_loss(logits, logits_of(teacher(**inputs)), 1.0, mask)) * places
            count += places
    return total / count if np.isfinite(total) else float("inf")


def recover(
    student: nn.Module, plan: Plan, task: Task, teacher: TeacherCache, table: LayerTable, *, steps: int | None = None
) -> nn.Module:
    """A copy of the student trained as `plan.distill` says, in evaluation mode.

    AdamW with linear warm-up and decay, gradients clipped to norm 1. Samples are drawn with the plan's seed, the same
    for every candidate of that seed, so that the teacher's cache is shared. Embeddings stay as they are unless the
    task has a student of its own. Zeros that the plan asks for stay zero. torch's generator is left as it was.

    With peers, each learns ``(1-λ)·L_hard + λ·mean over the others of T²·KL(p_other ‖ p_own)`` on the same batches; the
    teacher's logits are then used on policy only. The first peer is returned.

    Args:
        student: shaped by the plan; not changed.
        plan: its `distill` are the settings.
        task: training samples, the hard loss and, as its model, the teacher.
        teacher: the teacher's predictions; written to the disk every `SAVE_EVERY` steps and at the end, whatever ends.
        table: of the task's source.
        steps: in place of the settings' own, with the schedule drawn together.

    Raises:
        PlanError: the plan has no `distill`.
        ModelError: the loss became NaN or infinite, teacher and student have different classes, or the settings need
            what the model has not (blocks, heads, text that it can continue, linears).
    """
    plan = _settled(plan, steps)
    settings = plan.distill
    assert settings is not None
    if settings.on_policy:
        check_language_model(student, task.train.batch([0])[0])
    with torch.random.fork_rng(devices=[]), contextlib.ExitStack() as stack:
        torch.manual_seed(plan.seed)
        learners = [
            stack.enter_context(enrolled(student, number, plan, task, table)) for number in range(settings.peers)
        ]
        seen = None
        if learners[0].terms:
            seen = stack.enter_context(watching(task.model, learners[0].terms.listening.teacher))
        course = _Course(task, teacher, learners, seen)
        stack.callback(teacher.save)
        for step, rows in enumerate(task.train.random_batches(task.batch_size, settings.steps, plan.seed)):
            on_policy = is_on_policy(step, settings.on_policy)
            made = course.own_words(rows) if on_policy else course.lesson(rows)
            for learner, terms in zip(learners, made, strict=True):
                learner.learn(terms, step, on_policy=on_policy)
            if (step + 1) % SAVE_EVERY == 0:
                teacher.save()
    return learners[0].model.eval()


def _settled(plan: Plan, steps: int | None) -> Plan:
    if plan.distill is None:
        raise PlanError("recover needs a plan with distill, but this one has none")
    return plan if steps is None else replace(plan, distill=replace(plan.distill, steps=steps))


@dataclass(frozen=True)
class _Course:
    """What every step of a recovery shares; `seen` is what the teacher's forwards go through, where terms ask."""

    task: Task
    teacher: TeacherCache
    learners: Sequence[Learner]
    seen: States | None

    def lesson(self, rows: NDArray[np.int64]) -> list[Terms]:
        """Terms of each learner on a batch of training samples; a term without weight is not computed."""
        inputs, targets = self.task.train.batch(rows)
        answers = [learner.answer(inputs) for learner in self.learners]
        mask = token_mask(inputs, answers[0])
        prediction = Prediction(self.teacher.ask(inputs)) if self.seen else None
        lessons: list[Terms] = []
        for i, (learner, own) in enumerate(zip(self.learners, answers, strict=True)):
            settings, terms = learner.settings, {}
            if settings.soft_weight < 1:
                terms["hard"] = self.task.loss(own, targets)
            if settings.soft_weight > 0 and settings.peers > 1:
                terms["soft"] = mutual_loss(own, answers[:i] + answers[i + 1 :], settings, mask)
            elif settings.soft_weight > 0:
                its = prediction or self.teacher.prediction(rows, inputs)
                terms["soft"] = settled_soft_loss(own, its, settings, mask)
            if learner.terms and learner.states and self.seen:
                terms.update(learner.terms(learner.states, self.seen, inputs))
            lessons.append(terms)
        return lessons

    def own_words(self, rows: NDArray[np.int64]) -> list[Terms]:
        """The soft loss of each learner on what it writes itself after the beginnings of a batch of texts."""
        inputs, _targets = self.task.train.batch(rows)
        lessons: list[Terms] = []
        for learner in self.learners:
            text = continued(learner.model, inputs)
            its = Prediction(self.teacher.ask(text.inputs))
            soft = settled_soft_loss(learner.answer(text.inputs), its, learner.settings, text.mask)
            lessons.append({"soft": soft})
        return lessons
