"""Oracles: sums by hand, one step of AdamW done apart, and models that come back as they went in."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from autocompress.distill import learning_rate_share
from autocompress.distill.learner import Balance, Learner, balance_of, enrolled
from autocompress.errors import ModelError
from autocompress.plan import Distill, LayerPlan, Lora, Mask, Plan, Terms
from tests.tiny import any_task, bert, mlp, stirred, table_of, task_of


def test_learning_rate_goes_up_for_a_tenth_and_down_to_zero() -> None:
    shares = [learning_rate_share(step, 100) for step in range(101)]
    assert shares[0] == pytest.approx(0.1)
    assert shares[9] == shares[10] == 1.0
    assert shares[55] == pytest.approx(0.5)
    assert shares[99] == pytest.approx(1 / 90)
    assert shares[100] == 0.0


@pytest.mark.parametrize("steps", [1, 2, 5, 9])
def test_every_step_of_a_short_recovery_learns(steps: int) -> None:
    assert all(0 < learning_rate_share(step, steps) <= 1 for step in range(steps))


def test_terms_are_weighed() -> None:
    balance = balance_of(Distill(soft_weight=0.75, terms=Terms(hidden=2.0, cosine=0.5)))
    terms = {"hard": torch.tensor(4.0), "soft": torch.tensor(8.0), "hidden": torch.tensor(3.0)}
    assert float(balance.total(terms)) == pytest.approx(0.25 * 4 + 0.75 * 8 + 2 * 3)


def test_normalised_terms_begin_at_their_weights() -> None:
    balance = Balance({"hard": 0.25, "soft": 0.75}, normalise=True)
    start = {"hard": torch.tensor(4.0), "soft": torch.tensor(0.0)}
    assert float(balance.total(start)) == pytest.approx(0.25), "what begins at 0 is not divided"
    later = {"hard": torch.tensor(2.0), "soft": torch.tensor(0.5)}
    assert float(balance.total(later)) == pytest.approx(0.25 * 2 / 4 + 0.75 * 0.5)


def test_the_first_value_is_a_constant_to_the_gradient() -> None:
    value = torch.tensor(4.0, requires_grad=True)
    Balance({"hard": 1.0}, normalise=True).total({"hard": value}).backward()
    assert float(value.grad) == pytest.approx(1 / 4)


def test_a_step_is_adamw_at_the_scheduled_rate_with_a_clipped_gradient() -> None:
    twin, model = mlp(), mlp()
    settings = Distill(learning_rate=0.01, steps=20)
    inputs = {"x": 30 * torch.randn(4, 16, generator=torch.Generator().manual_seed(0))}
    Learner(model, settings, {}).learn({"hard": 9 * model(**inputs).square().mean()}, 0)
    optimizer = torch.optim.AdamW(twin.parameters(), 0.01 * 0.5, weight_decay=0.01)
    (0.5 * 9 * twin(**inputs).square().mean()).backward()
    norm = torch.cat([p.grad.reshape(-1) for p in twin.parameters()]).norm()
    assert norm > 1
    for weight in twin.parameters():
        weight.grad /= norm
    optimizer.step()
    for mine, its in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-4, atol=1e-6)


def test_zeros_are_held_after_a_step() -> None:
    model = mlp()
    survives = torch.rand(48, 16, generator=torch.Generator().manual_seed(0)) > 0.5
    with torch.no_grad():
        model.first.weight *= survives
    learner = Learner(model, Distill(learning_rate=0.1, steps=2), {"first.weight": survives})
    learner.learn({"hard": model(torch.ones(2, 16)).square().mean()}, 0)
    assert torch.equal(model.first.weight != 0, survives)


def test_a_loss_that_is_no_number_names_step_settings_and_terms() -> None:
    learner = Learner(mlp(), Distill(steps=4), {})
    terms = {"hard": torch.tensor(1.5), "soft": torch.tensor(float("nan"))}
    with pytest.raises(ModelError, match=r"the loss is nan at step 3 of Distill\(.*steps=4.*\): hard 1.5, soft nan"):
        learner.learn(terms, 3)


def test_embeddings_stay_as_they_are_while_a_shaped_student_trains() -> None:
    task = any_task("bert")
    with enrolled(bert(), 0, Plan(distill=Distill()), task, table_of(task)) as learner:
        frozen = {name for name, weight in learner.model.named_parameters() if not weight.requires_grad}
    assert frozen == {f"bert.embeddings.{kind}_embeddings.weight" for kind in ("word", "position", "token_type")}
    assert all(weight.requires_grad for weight in learner.model.parameters())


def test_a_student_of_its_own_trains_its_embeddings() -> None:
    task = task_of(bert(), student=bert(hidden=16, layers=1, heads=2, neurons=24))
    with enrolled(task.source, 0, Plan(distill=Distill()), task, table_of(task)) as learner:
        assert all(weight.requires_grad for weight in learner.model.parameters())


def test_a_model_with_nothing_to_train_is_told() -> None:
    model = nn.Embedding(3, 4).requires_grad_(False)
    with pytest.raises(ModelError, match="Embedding has no weight to train but embeddings"):
        Learner(model, Distill(), {})


def test_a_peer_is_set_apart_and_its_zeros_stay() -> None:
    task = task_of(mlp())
    student = stirred(mlp())
    with torch.no_grad():
        student.first.weight[:, ::2] = 0
    plan = Plan(layers={"first": LayerPlan(mask=Mask(0.5))}, distill=Distill())
    found = []
    for number in (0, 1, 2):
        with enrolled(student, number, plan, task, table_of(task)) as learner:
            assert torch.equal(learner.model.first.weight != 0, student.first.weight != 0)
            found.append(learner.model.second.weight.detach().clone())
    assert torch.equal(found[0], student.second.weight)
    assert not torch.equal(found[1], found[0])
    assert not torch.equal(found[2], found[1])
    assert (found[1] - found[0]).std() < 0.02 * found[0].std()


def test_additions_take_the_place_of_weights() -> None:
    task = task_of(mlp())
    with enrolled(mlp(), 0, Plan(distill=Distill(lora=Lora(2))), task, table_of(task)) as learner:
        assert sum(weight.numel() for weight in learner.weights) == 2 * (16 + 48) + 2 * (48 + 3)
    assert type(learner.model.first) is nn.Linear
    assert all(weight.requires_grad for weight in learner.model.parameters())
