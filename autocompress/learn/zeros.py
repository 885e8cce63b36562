"""Recipes whose result is zeros: gradual pruning while training, and lottery tickets."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.compressing.mask import hold, least_overall, maskable, zero_share
from autocompress.distill.learner import freeze_embeddings
from autocompress.distill.losses import distillation_loss, token_mask
from autocompress.errors import ModelError
from autocompress.layers import LayerTable
from autocompress.learn.training import Course, Loss, last_loss, train
from autocompress.learn.untrained import untrained
from autocompress.plan import Distill, Gradual, LayerPlan, LotteryTicket, Mask, Plan
from autocompress.plan.choices import BELOW_ONE
from autocompress.tasks.task import Inputs, Task, logits_of
from autocompress.weights import linearized

#: The plan's layers with their zeros, the trained model, and what went on.
Found = tuple[dict[str, LayerPlan], nn.Module, list[dict[str, Any]]]


def renewals(recipe: Gradual) -> dict[int, float]:
    """Step, before which the masks are renewed, to the share of zeros from then on.

    The k-th of n renewals lies at k/n of the first three quarters of the steps and asks for s·(1 - (1 - k/n)³)
    (Zhu & Gupta 2017, eq. 1); where several fall on one step, the last counts.
    """
    shares = {}
    for k in range(1, recipe.updates + 1):
        step = 3 * recipe.steps * k // (4 * recipe.updates)
        shares[step] = recipe.sparsity * (1 - (1 - k / recipe.updates) ** 3)
    return shares


def grow_zeros(task: Task, plan: Plan, table: LayerTable) -> Found:
    """Train the dense weights against the dense model while ever more of them become zero.

    The weights of least magnitude over all layers together go; embeddings are not trained, as in recovery.

    Args:
        task: gives model, teacher and training samples.
        plan: `plan.learn` is the recipe.
        table: of the model.

    Returns:
        The plan's layers with their zeros, the trained model, and per renewal: step, steps until the next, sparsity,
        loss.

    Raises:
        ModelError: the loss became NaN or infinite, or no layer may have zeros.
    """
    recipe = plan.learn
    assert isinstance(recipe, Gradual)
    names = _layers(plan, table)
    model = linearized(copy.deepcopy(task.source))
    freeze_embeddings(model)
    due, masks, reached = renewals(recipe), {}, {}

    def renew(step: int) -> None:
        if step in due:
            masks.update(_least(model, names, due[step]))
            hold(model, masks)
            reached[step] = _share(masks)

    course = Course(recipe.steps, recipe.learning_rate, plan.seed)
    losses = train(model, task, course, _distilling(task, recipe), masks=masks, before=renew)
    ends = [*list(reached)[1:], recipe.steps]
    history = [
        {"step": step, "steps": end - step, "sparsity": share, "loss": last_loss(losses[step:end])}
        for (step, share), end in zip(reached.items(), ends, strict=True)
    ]
    return _with_zeros(plan, model, names), model, history


def _distilling(task: Task, recipe: Gradual) -> Loss:
    settings = Distill(recipe.soft_weight, recipe.temperature, recipe.learning_rate, recipe.steps)

    def loss_of(logits: Tensor, inputs: Inputs, targets: Tensor) -> Tensor:
        with torch.inference_mode():
            teacher = logits_of(task.model(**inputs))
        mask = token_mask(inputs, logits)
        return distillation_loss(logits, teacher.clone(), targets, settings, task.loss, mask=mask)

    return loss_of


def _no_one(_model: nn.Module, _masks: Mapping[str, Tensor]) -> None:
    """Nobody looks."""


def find_ticket(
    task: Task, plan: Plan, table: LayerTable, each: Callable[[nn.Module, Mapping[str, Tensor]], None] = _no_one
) -> Found:
    """Train an untrained copy, remove its least weights, rewind the rest, and again; see `plan.LotteryTicket`.

    Round 0 is dense. Round k of n ends with a share 1 - (1 - s)^(k/n) of zeros. Rewound weights take the same steps
    again, on the same samples, with a fresh optimizer; with `reinitialise` those of the last round are drawn anew and
    take all steps. Embeddings, biases and norms are trained, but not pruned.

    Args:
        task: gives architecture, loss and training samples.
        plan: `plan.learn` is the recipe.
        table: of the model.
        each: is shown the trained model and its masks after every round.

    Returns:
        The plan's layers with their zeros, the last round's trained model, and per round: round, steps, sparsity,
        loss.

    Raises:
        ModelError: the model cannot be built untrained, no layer may have zeros, or the loss became NaN or infinite.
    """
    recipe = plan.learn
    assert isinstance(recipe, LotteryTicket)
    names = _layers(plan, table)
    model = linearized(untrained(task.source, plan.seed))
    early: dict[str, Tensor] = {}
    masks: dict[str, Tensor] = {}

    def remember(step: int) -> None:
        if step == recipe.rewind_steps and not early:
            early.update({name: value.clone() for name, value in model.state_dict().items()})

    history: list[dict[str, Any]] = []
    course = Course(recipe.steps, recipe.learning_rate, plan.seed)
    for number in range(recipe.rounds + 1):
        if number:
            masks = _least(model, names, 1 - (1 - recipe.sparsity) ** (number / recipe.rounds))
            fresh = recipe.reinitialise and number == recipe.rounds
            weights = linearized(untrained(task.source, plan.seed + 1)).state_dict() if fresh else early
            model.load_state_dict(weights)
            hold(model, masks)
            course = replace(course, start=0 if fresh else recipe.rewind_steps)
        losses = train(model, task, course, _plain(task), masks=masks, before=remember)
        share = _share(masks) if masks else 0.0
        history.append({"round": number, "steps": len(losses), "sparsity": share, "loss": last_loss(losses)})
        each(model, masks)
    return _with_zeros(plan, model, names), model, history


def _plain(task: Task) -> Loss:
    return lambda logits, _inputs, targets: task.loss(logits, targets)


def _layers(plan: Plan, table: LayerTable) -> list[str]:
    """Layers that get zeros."""
    names = maskable(plan, table)
    if not names:
        raise ModelError("no layer of this model may have zeros: it needs a Linear or Conv2d with a weight of its own")
    return names


def _least(model: nn.Module, names: Sequence[str], share: float) -> dict[str, Tensor]:
    """Parameter name to survivors when the share of least weights over all layers goes."""
    sizes = {f"{name}.weight": model.get_parameter(f"{name}.weight").detach().abs() for name in names}
    return least_overall(sizes, round(share * sum(size.numel() for size in sizes.values())))


def _share(masks: Mapping[str, Tensor]) -> float:
    """Share of zeros over all masks."""
    total = sum(survives.numel() for survives in masks.values())
    return (total - sum(int(survives.sum()) for survives in masks.values())) / total


def _with_zeros(plan: Plan, model: nn.Module, names: Sequence[str]) -> dict[str, LayerPlan]:
    """The plan's layers, with the zeros that the model has."""
    layers = dict(plan.layers)
    for name in names:
        share = zero_share(model.get_parameter(f"{name}.weight"))
        if share:
            mask = Mask(sparsity=min(share, BELOW_ONE), score="given")
            layers[name] = replace(layers.get(name, LayerPlan()), mask=mask)
    return layers
