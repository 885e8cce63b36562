"""Oracles: the cubic schedule and the shares of rounds in closed form, counting, and what must not move."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from autocompress.compressing.choices import FirstOnes
from autocompress.compressing.mask import zero_masks
from autocompress.compressing.shape import shape
from autocompress.errors import ModelError, PlanError
from autocompress.learn import learn, zeros
from autocompress.learn.untrained import untrained
from autocompress.learn.zeros import renewals
from autocompress.plan import Distill, Factorize, Gradual, LayerPlan, LotteryTicket, Mask, Plan, Quantize, Recipe
from autocompress.plan.choices import BELOW_ONE
from autocompress.tasks.task import Task, logits_of
from tests import tiny

Weights = dict[str, Tensor]


class Store:
    """Keeps whole-model weights as the bank does."""

    def __init__(self) -> None:
        self.kept: Weights = {}

    def __call__(self, state: Weights) -> str:
        self.kept = {name: value.clone() for name, value in state.items()}
        return "a" * 64


def carried_out(task: Task, recipe: Recipe, **rest: Any) -> tuple[Plan, tuple[dict[str, Any], ...], Weights]:
    store = Store()
    learned = learn(task, Plan(learn=recipe, **rest), tiny.table_of(task), store)
    return learned.plan, learned.history, store.kept


def matrices(task: Task) -> list[str]:
    """Weights that may be zero."""
    return [f"{la.name}.weight" for la in tiny.table_of(task).layers if la.kind != "embedding" and la.allows("mask")]


def zero_count(task: Task, state: Weights) -> tuple[int, int]:
    """Zeros, and weights that may be zero."""
    values = [state[name] for name in matrices(task)]
    return sum(int((v == 0).sum()) for v in values), sum(v.numel() for v in values)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Weights]:
    """What the model's weights were after each step of training."""
    states: list[Weights] = []
    plain_hold = zeros.train.__globals__["hold"]

    def hold(model: nn.Module, masks: Weights) -> None:
        plain_hold(model, masks)
        states.append({name: value.detach().clone() for name, value in model.state_dict().items()})

    monkeypatch.setattr("autocompress.learn.training.hold", hold)
    return states


GRADUAL = Gradual(0.6, steps=20, updates=5)
TICKET = LotteryTicket(0.7, rounds=2, steps=8, rewind_steps=3)
MAKERS: dict[str, Callable[[], nn.Module]] = {"mlp": tiny.mlp, "cnn": tiny.cnn, "bert": tiny.bert}


@pytest.mark.parametrize(("steps", "updates"), [(20, 5), (200, 10), (7, 3), (1, 1), (3, 10)])
def test_renewals_follow_the_cubic_schedule_over_three_quarters(steps: int, updates: int) -> None:
    due = renewals(Gradual(0.8, steps=steps, updates=updates))
    assert list(due.values())[-1] == pytest.approx(0.8)
    assert max(due) == 3 * steps // 4 < steps
    for step, share in due.items():
        k = max(k for k in range(1, updates + 1) if 3 * steps * k // (4 * updates) == step)
        assert share == pytest.approx(0.8 * (1 - (1 - k / updates) ** 3))
    assert list(due) == sorted(due)


@pytest.mark.parametrize("kind", MAKERS)
def test_gradual_zeros_are_exactly_those_of_the_schedule(kind: str, seen: list[Weights]) -> None:
    task = tiny.task_of(MAKERS[kind]())
    _plan, history, state = carried_out(task, GRADUAL)
    assert len(seen) == 20
    share = 0.0
    for step, weights in enumerate(seen):
        share = renewals(GRADUAL).get(step, share)
        count, total = zero_count(task, weights)
        assert count == round(share * total)
    assert zero_count(task, state)[0] == round(0.6 * zero_count(task, state)[1])
    assert [h["step"] for h in history] == [3, 6, 9, 12, 15]
    assert sum(h["steps"] for h in history) == 17  # three steps are dense
    assert history[-1]["sparsity"] == pytest.approx(0.6, abs=1e-3)
    assert all(h["loss"] > 0 for h in history)


def test_gradual_zeros_never_come_back_and_do_not_move_after_the_last_renewal(seen: list[Weights]) -> None:
    task = tiny.task_of(tiny.mlp())
    carried_out(task, GRADUAL)
    where = [torch.cat([state[name].reshape(-1) == 0 for name in matrices(task)]) for state in seen]
    for before, after in itertools.pairwise(where):
        assert (after >= before).all()
    assert all(torch.equal(zeros_then, where[-1]) for zeros_then in where[15:])
    assert not torch.equal(seen[15]["first.weight"], seen[19]["first.weight"])  # the others are trained on


def test_gradual_keeps_embeddings_and_the_dense_model() -> None:
    task = tiny.task_of(tiny.bert())
    dense = {name: value.clone() for name, value in task.model.state_dict().items()}
    _plan, _history, state = carried_out(task, GRADUAL)
    assert all(torch.equal(dense[name], value) for name, value in task.model.state_dict().items())
    for name, value in state.items():
        if "embeddings.weight" in name or "_embeddings.weight" in name:
            assert torch.equal(value, dense[name])
    assert not any(parameter.grad is not None for parameter in task.model.parameters())


def test_gradual_starts_from_dense_weights() -> None:
    task = tiny.task_of(tiny.mlp())
    _plan, _history, state = carried_out(task, Gradual(0.0, steps=1, updates=1, learning_rate=1e-30))
    assert all(torch.equal(task.model.state_dict()[name], value) for name, value in state.items())


def test_gradual_learns_from_the_teacher() -> None:
    """With λ = 1 the loss against the model itself is 0 while nothing is zero yet."""
    task = tiny.task_of(tiny.mlp())
    _plan, history, _state = carried_out(task, Gradual(0.0, steps=1, updates=1, soft_weight=1.0))
    assert history[0]["loss"] == pytest.approx(0, abs=1e-6)
    student = replace(task, student=tiny.mlp(24))
    _plan, history, _state = carried_out(student, Gradual(0.0, steps=1, updates=1, soft_weight=1.0))
    assert history[0]["loss"] > 1e-3


@pytest.mark.parametrize("recipe", [GRADUAL, TICKET], ids=["gradual", "lottery ticket"])
@pytest.mark.parametrize("kind", ["mlp", "cnn", "bert", "gpt2"])
def test_the_plan_names_the_zeros_that_its_init_has(kind: str, recipe: Recipe) -> None:
    task = tiny.any_task("gpt2") if kind == "gpt2" else tiny.task_of(MAKERS[kind]())
    plan, _history, state = carried_out(task, recipe)
    assert plan.learn is None
    assert plan.init == "a" * 64
    small = shape(task.source, plan, tiny.table_of(task), FirstOnes(task.source))
    small.load_state_dict(state, strict=True)
    masks = zero_masks(small, plan)
    for name in matrices(task):
        share = int((state[name] == 0).sum()) / state[name].numel()
        if share:
            assert plan.layers[name.removesuffix(".weight")].mask == Mask(min(share, BELOW_ONE), score="given")
            assert torch.equal(masks[name], state[name] != 0)
    count, total = zero_count(task, state)
    assert count == round(recipe.sparsity * total)  # type: ignore[union-attr, operator]


@pytest.mark.parametrize("recipe", [GRADUAL, TICKET], ids=["gradual", "lottery ticket"])
def test_the_rest_of_the_plan_is_kept(recipe: Recipe) -> None:
    task = tiny.task_of(tiny.mlp())
    asked = {"layers": {"first": LayerPlan(quantize=Quantize("int8"))}, "distill": Distill(steps=3), "seed": 4}
    plan, _history, _state = carried_out(task, recipe, **asked)
    assert plan.layers["first"].quantize == Quantize("int8")
    assert plan.layers["first"].mask is not None
    assert (plan.distill, plan.seed) == (Distill(steps=3), 4)


@pytest.mark.parametrize("recipe", [GRADUAL, TICKET], ids=["gradual", "lottery ticket"])
def test_the_same_seed_gives_the_same_weights(recipe: Recipe) -> None:
    task = tiny.task_of(tiny.bert(layers=1))
    first, again, other = (carried_out(task, recipe, seed=seed)[2] for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_learning_leaves_the_global_generator_alone() -> None:
    task = tiny.task_of(tiny.bert(layers=1))
    torch.manual_seed(0)
    wanted = torch.rand(3)
    torch.manual_seed(0)
    carried_out(task, TICKET)
    carried_out(task, GRADUAL)
    assert torch.equal(torch.rand(3), wanted)


def test_a_ticket_ends_each_round_with_its_share() -> None:
    task = tiny.task_of(tiny.mlp())
    _plan, history, state = carried_out(task, TICKET)
    _count, total = zero_count(task, state)
    wanted = [0, round((1 - 0.3**0.5) * total), round(0.7 * total)]
    assert [round(h["sparsity"] * total) for h in history] == wanted
    assert [h["steps"] for h in history] == [8, 5, 5]  # rewound to step 3
    assert [h["round"] for h in history] == [0, 1, 2]


def test_a_ticket_goes_back_to_its_early_weights(seen: list[Weights]) -> None:
    """With a learning rate of nothing all weights are the early ones, but for the zeros: the least of them."""
    task = tiny.task_of(tiny.mlp())
    _plan, _history, state = carried_out(task, replace(TICKET, learning_rate=1e-30))
    early = untrained(task.model, 0).state_dict()
    for name in state:
        assert torch.equal(state[name], early[name] * (state[name] != 0))
    sizes = torch.cat([early[name].abs().reshape(-1) for name in matrices(task)])
    gone = torch.cat([state[name].reshape(-1) == 0 for name in matrices(task)])
    assert sizes[gone].max() <= sizes[~gone].min()


def test_a_ticket_rewinds_to_the_weights_after_the_rewind_steps(seen: list[Weights]) -> None:
    task = tiny.task_of(tiny.mlp())
    recipe = LotteryTicket(0.5, rounds=1, steps=6, rewind_steps=4)
    carried_out(task, recipe)
    dense, sparse = seen[:6], seen[6:]
    assert len(sparse) == 2
    survives = sparse[0]["first.weight"] != 0
    early = dense[3]["first.weight"]  # after four steps
    first_step = (sparse[0]["first.weight"] - early)[survives].abs().max()
    assert 0 < first_step < 2 * recipe.learning_rate
    assert (dense[5]["first.weight"] - early).abs().max() > 0


def test_the_control_trains_the_same_mask_from_other_weights(seen: list[Weights]) -> None:
    task = tiny.task_of(tiny.mlp())
    _plan, _history, ticket = carried_out(task, TICKET)
    _plan, history, control = carried_out(task, replace(TICKET, reinitialise=True))
    assert history[-1]["steps"] == 8
    for name in matrices(task):
        assert torch.equal(ticket[name] == 0, control[name] == 0)
    fresh = untrained(task.model, 1).state_dict()["first.weight"]
    survives = control["first.weight"] != 0
    assert (control["first.weight"] - fresh)[survives].abs().max() < 8 * 2 * TICKET.learning_rate
    assert (ticket["first.weight"] - fresh)[survives].abs().max() > 0.05


def test_a_ticket_knows_nothing_of_the_trained_weights() -> None:
    model = tiny.mlp()
    first = carried_out(tiny.task_of(model), TICKET)[2]
    second = carried_out(tiny.task_of(tiny.stirred(tiny.mlp(), amount=5.0)), TICKET)[2]
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_training_does_lower_the_loss() -> None:
    """Labels that a linear map of the inputs decides can be learned by a tenth of the weights."""
    task = tiny.task_of(tiny.mlp())
    targets = task.train.inputs["x"][:, :3].argmax(dim=1)  # type: ignore[index, call-overload]
    task = replace(task, train=replace(task.train, targets=targets))
    plan, history, state = carried_out(
        task, LotteryTicket(0.5, rounds=1, steps=120, rewind_steps=5, learning_rate=1e-2)
    )
    assert history[-1]["loss"] < 0.1
    small = shape(task.source, plan, tiny.table_of(task), FirstOnes(task.source))
    small.load_state_dict(state)
    inputs, wanted = task.train.batch(range(24))
    assert (logits_of(small(**inputs)).argmax(dim=1) == wanted).all()


@pytest.mark.parametrize("recipe", [GRADUAL, TICKET], ids=["gradual", "lottery ticket"])
def test_a_rank_contradicts_learned_zeros(recipe: Recipe) -> None:
    task = tiny.task_of(tiny.mlp())
    with pytest.raises(PlanError, match="learn: finds whole weights, so layer first cannot be factorized"):
        carried_out(task, recipe, layers={"first": LayerPlan(Factorize(2))})


@pytest.mark.parametrize("recipe", [GRADUAL, TICKET], ids=["gradual", "lottery ticket"])
def test_a_loss_that_is_no_number_is_told_with_its_step(recipe: Recipe) -> None:
    task = replace(tiny.task_of(tiny.mlp()), loss=lambda logits, _targets: logits.sum() * torch.nan)
    with pytest.raises(ModelError, match="training diverged: the loss is nan at step 0"):
        carried_out(task, recipe)


def test_a_model_without_weights_that_may_be_zero_is_refused() -> None:
    task = tiny.task_of(tiny.mlp())
    table = tiny.table_of(task)
    shared = tuple(replace(la, why_not={"mask": "shared"}) for la in table.layers)
    with pytest.raises(ModelError, match="no layer of this model may have zeros"):
        learn(task, Plan(learn=GRADUAL), replace(table, layers=shared), Store())


def test_a_plan_without_recipe_comes_back() -> None:
    task = tiny.task_of(tiny.mlp())
    plan = Plan(seed=3)
    learned = learn(task, plan, tiny.table_of(task), Store())
    assert learned.plan is plan
    assert learned.history == ()
