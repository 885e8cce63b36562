"""CoFi: masks of whole parts, heads, neurons and hidden dimensions learned with the weights (Xia, Zhong & Chen 2022).

Gates are multiplied into the running model by hooks, and driven to the target (see `drive`); then they are settled,
folded into the weights, and what is closed is removed for good.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from autocompress.compressing.choices import FirstOnes
from autocompress.compressing.shape import shape
from autocompress.distill.hidden import hidden_terms
from autocompress.distill.learner import MAX_GRADIENT_NORM, WEIGHT_DECAY, freeze_embeddings, learning_rate_share
from autocompress.distill.losses import Prediction, distillation_loss, token_mask
from autocompress.distill.recovery import recover
from autocompress.distill.states import States, watching
from autocompress.distill.teacher import TeacherCache
from autocompress.errors import ModelError
from autocompress.layers import Group, LayerTable
from autocompress.learn.drive import Drive, Gone
from autocompress.learn.gated import fold, gated
from autocompress.learn.gates import Expected, Gates
from autocompress.learn.latency import LatencyFit
from autocompress.plan import Cofi, Distill, Plan, Prune, Terms
from autocompress.tasks.task import Task, logits_of
from autocompress.weights import linearized

#: Widths of the residual stream are rounded to this, as kernels like them.
HIDDEN_STEP = 8

#: Steps between two records of the history.
EVERY = 25


def learn_cofi(
    task: Task,
    plan: Plan,
    table: LayerTable,
    teacher: TeacherCache,
    *,
    predict: LatencyFit | None = None,
    order: Callable[[Group], Tensor] | None = None,
) -> tuple[dict[str, Prune], nn.Module, list[dict[str, Any]]]:
    """Learn which structures go, remove them, and train what is left.

    Args:
        task: gives model, teacher and training samples.
        plan: `plan.learn` is the recipe.
        table: with groups; see `gates.GATED`.
        teacher: the dense model's predictions.
        predict: latency from widths, for a recipe with `latency_ratio`.
        order: in which a group's structures are missed, see `gates.Gates`.

    Returns:
        Groups whose score is "given", the model that they leave, and the history: step, loss, and what share the gates
        take away, with the target it is driven to.

    Raises:
        ModelError: the model has no groups to gate, or the loss is no number.
    """
    recipe = plan.learn
    assert isinstance(recipe, Cofi)
    gates = Gates(table, recipe.hidden, order)
    if not any(group.kind in ("heads", "neurons") for group in gates.groups):
        raise ModelError(
            f"cofi needs heads or neurons, and {type(task.source).__name__} has none that an adapter knows"
        )
    if recipe.latency_ratio is not None and predict is None:
        raise ModelError("cofi with latency_ratio needs a measured latency fit")
    expected = Expected(table)

    def gone(probabilities: Mapping[str, Tensor]) -> Tensor:
        """What the target is told in: share of the weights, or of the predicted latency, that goes."""
        if recipe.latency_ratio is None:
            return expected.sparsity(probabilities)
        assert predict is not None
        return 1 - predict.predict(expected.widths(probabilities))

    least = {group.name: torch.zeros(group.size) for group in gates.groups}
    if float(gone(least)) < _target(recipe):
        raise ModelError(
            f"cofi cannot reach {_words(recipe, _target(recipe))}: with every gate closed it is predicted to be "
            f"{_words(recipe, float(gone(least)))}"
        )
    course = _Course(task, plan, table, gates, teacher)
    model, history = course.run(gone, _target(recipe))
    groups, chosen = closed(gates, table, gone, _target(recipe))
    fold(model, gates, chosen)
    given = {name: replace(prune, score="magnitude") for name, prune in groups.items()}
    small = shape(model, Plan(given), table, _Chosen(model, chosen)).eval()
    if recipe.finetune_steps:
        settings = _settings(recipe, recipe.finetune_steps)
        small = recover(small, Plan(given, distill=settings, seed=plan.seed), task, teacher, table)
    left = as_float(chosen, gates)
    history.append({"step": recipe.steps, "gone": float(gone(left)), "sparsity": float(expected.sparsity(left))})
    return groups, small, history


def _target(recipe: Cofi) -> float:
    return recipe.sparsity if recipe.sparsity is not None else 1 - (recipe.latency_ratio or 0.0)


def _words(recipe: Cofi, gone: float) -> str:
    return f"sparsity {gone:.3g}" if recipe.latency_ratio is None else f"latency_ratio {1 - gone:.3g}"


def _settings(recipe: Cofi, steps: int) -> Distill:
    terms = Terms(hidden=recipe.hidden_weight, hidden_map="dynamic") if recipe.hidden_weight else None
    return Distill(recipe.soft_weight, recipe.temperature, recipe.learning_rate, steps, terms=terms)


class _Course:
    """The training with gates.

    Args:
        task, plan, table: see `learn_cofi`.
        gates: trained with the weights.
        teacher: the dense model's predictions.
    """

    def __init__(self, task: Task, plan: Plan, table: LayerTable, gates: Gates, teacher: TeacherCache) -> None:
        assert isinstance(plan.learn, Cofi)
        self.task, self.plan, self.recipe, self.gates, self.teacher = task, plan, plan.learn, gates, teacher
        self.model = linearized(copy.deepcopy(task.source)).train()
        freeze_embeddings(self.model)
        self.settings = _settings(self.recipe, self.recipe.steps)
        terms = self.settings.terms
        self.terms = hidden_terms(self.model, task, table, terms) if terms else None
        weights = [w for w in self.model.parameters() if w.requires_grad] + list(
            self.terms.parameters() if self.terms else ()
        )
        self.weights = weights
        self.optimizer = torch.optim.AdamW(weights, self.recipe.learning_rate, weight_decay=WEIGHT_DECAY)

    def run(self, gone: Gone, target: float) -> tuple[nn.Module, list[dict[str, Any]]]:
        """Train weights and gates; returns the model, still whole, and the history."""
        recipe, history = self.recipe, []
        drive = Drive(self.gates, gone, recipe.gate_learning_rate)
        generator = torch.Generator().manual_seed(self.plan.seed)
        values = self.gates.drawn(generator)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: learning_rate_share(step, recipe.steps)
        )
        with torch.random.fork_rng(devices=[]), ExitStack() as stack:
            torch.manual_seed(self.plan.seed)
            stack.enter_context(gated(self.model, self.gates.groups, values))
            own, its = self._watched(stack)
            batches = self.task.train.random_batches(self.task.batch_size, recipe.steps, self.plan.seed)
            for step, rows in enumerate(batches):
                values.update(self.gates.drawn(generator))
                goal = target * min(1.0, (step + 1) / max(1, recipe.warmup_steps))
                taught = self._taught(rows, own, its)
                self._step(taught, step)
                schedule.step()
                share = drive.step(goal)
                if step % EVERY == 0 or step == recipe.steps - 1:
                    history.append({"step": step, "loss": float(taught.detach()), "gone": share, "target": goal})
        self.teacher.save()
        return self.model.eval(), history

    def _watched(self, stack: ExitStack) -> tuple[States | None, States | None]:
        if self.terms is None:
            return None, None
        own = stack.enter_context(watching(self.model, self.terms.listening.student))
        return own, stack.enter_context(watching(self.task.model, self.terms.listening.teacher))

    def _taught(self, rows: NDArray[np.int64], own: States | None, its: States | None) -> Tensor:
        """The distillation loss of one batch."""
        inputs, targets = self.task.train.batch(rows)
        logits = logits_of(self.model(**inputs))
        prediction = Prediction(self.teacher.ask(inputs)) if its else self.teacher.prediction(rows, inputs)
        mask = token_mask(inputs, logits)
        loss = distillation_loss(logits, prediction, targets, self.settings, self.task.loss, mask=mask)
        if self.terms is None or own is None or its is None:
            return loss
        hidden: Tensor = self.terms(own, its, inputs)["hidden"]
        return loss + self.recipe.hidden_weight * hidden

    def _step(self, loss: Tensor, step: int) -> None:
        if not torch.isfinite(loss):
            raise ModelError(f"cofi diverged: the loss is {float(loss.detach())} at step {step} of {self.recipe}")
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.weights, MAX_GRADIENT_NORM)
        self.optimizer.step()


def closed(gates: Gates, table: LayerTable, gone: Gone, target: float) -> tuple[dict[str, Prune], dict[str, Tensor]]:
    """Which structures stay: those whose log α lies above the one threshold that just meets the target.

    Returns:
        The groups of the plan, and group name to the numbers of the structures that stay.
    """
    every = torch.cat([value.detach() for value in gates.log_alpha]).sort().values
    low, high = 0, len(every) - 1
    while low < high:  # the fewest closed gates that meet the target
        middle = (low + high) // 2
        kept = _kept(gates, float(every[middle]), table)
        if float(gone(as_float(kept, gates))) >= target:
            high = middle
        else:
            low = middle + 1
    kept = _kept(gates, float(every[low]), table)
    groups: dict[str, Prune] = {}
    for group in gates.groups:
        count = len(kept[group.name])
        if group.removable:
            if not count:
                groups[group.name] = Prune(0, "given", repair=False)
        elif 0 < count < group.size:
            groups[group.name] = Prune(count, "given", repair=False)
    return groups, kept


def _kept(gates: Gates, threshold: float, table: LayerTable) -> dict[str, Tensor]:
    """Structures above the threshold; a part without structures is closed, a closed part needs none.

    The residual stream keeps a multiple of `HIDDEN_STEP` dimensions, at least one step, or all.
    """
    kept: dict[str, Tensor] = {}
    for group, value in gates.by_group():
        order = value.detach().argsort(descending=True, stable=True)
        count = int((value > threshold).sum())
        if group.kind == "hidden":
            count = min(group.size, max(1, math.ceil(count / HIDDEN_STEP)) * HIDDEN_STEP)
        kept[group.name] = order[:count].sort().values
    for part, structures in (("attention", "heads"), ("feed_forward", "neurons")):
        for group in table.groups:
            if group.kind != structures or group.name not in kept:
                continue
            owner = next((g for g in table.groups if g.kind == part and g.block == group.block), None)
            if owner is None:
                kept[group.name] = kept[group.name] if len(kept[group.name]) else torch.zeros(1, dtype=torch.long)
            elif not len(kept[group.name]) or not len(kept[owner.name]):
                kept[owner.name] = kept[owner.name][:0]
                kept[group.name] = torch.arange(group.size)
    return kept


def as_float(kept: Mapping[str, Tensor], gates: Gates) -> dict[str, Tensor]:
    """0 or 1 for each structure."""
    return {g.name: torch.zeros(g.size).index_fill(0, kept[g.name], 1.0) for g in gates.groups}


class _Chosen(FirstOnes):
    """The structures whose gates stayed open."""

    def __init__(self, model: nn.Module, chosen: Mapping[str, Tensor]) -> None:
        super().__init__(model)
        self.chosen = chosen

    def kept(self, group: Group, prune: Prune, _seed: int) -> Tensor:
        """Their numbers."""
        return self.chosen[group.name]
