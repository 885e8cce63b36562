"""Methods that learn what to remove. `learn` turns a plan's recipe into a plan and the weights that it starts from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from autocompress.distill import TeacherCache
from autocompress.layers import Group, LayerTable
from autocompress.learn.cofi import learn_cofi
from autocompress.learn.latency import LatencyFit
from autocompress.learn.zeros import find_ticket, grow_zeros
from autocompress.plan import Cofi, Gradual, Plan
from autocompress.tasks.task import Task

__all__ = ["Learned", "learn"]


@dataclass(frozen=True)
class Learned:
    """What a recipe came to.

    Attributes:
        plan: without `learn`: what was found, `init` with the learned weights, and all else that was asked for.
        history: what went on, one record per update or round: steps, sparsity, loss and the like.
    """

    plan: Plan
    history: tuple[dict[str, Any], ...] = ()


def learn(
    task: Task,
    plan: Plan,
    table: LayerTable,
    store: Callable[[dict[str, Tensor]], str],
    *,
    teacher: TeacherCache | None = None,
    predict: LatencyFit | None = None,
    order: Callable[[Group], Tensor] | None = None,
) -> Learned:
    """Carry out the recipe of a plan; a plan without one comes back as it is.

    Args:
        task: gives model, teacher and training samples. Its models are not edited.
        plan: what is asked; its bits, recovery and seed are kept.
        table: of the task's model.
        store: keeps whole-model weights, named as in what `shape` makes, and returns their sha256.
        teacher: the dense model's predictions, where they are kept.
        predict: latency from widths, for a recipe that aims at a latency.
        order: of a group's structures, the one that is missed least first; where CoFi's gates start from.

    Raises:
        ModelError: the model does not fit the recipe, or the loss became NaN or infinite.
        PlanError: the rest of the plan contradicts the recipe.
    """
    if plan.learn is None:
        return Learned(plan)
    groups, layers = dict(plan.groups), dict(plan.layers)
    if isinstance(plan.learn, Cofi):
        teacher = teacher or TeacherCache(None, task)
        groups, model, history = learn_cofi(task, plan, table, teacher, predict=predict, order=order)
    else:
        method = grow_zeros if isinstance(plan.learn, Gradual) else find_ticket
        layers, model, history = method(task, plan, table)
    init = store(model.state_dict())
    return Learned(replace(plan, learn=None, groups=groups, layers=layers, init=init), tuple(history))
