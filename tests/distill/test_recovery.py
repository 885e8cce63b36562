"""Oracles: falling losses, equal weights under a seed, a loop written out, and models that are left alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import autocompress.distill.recovery as room
from autocompress.compressing.choices import FirstOnes
from autocompress.compressing.shape import shape
from autocompress.distill import (
    TeacherCache,
    by_depth,
    by_width,
    distillation_loss,
    divergence,
    learning_rate_share,
    recover,
    soft_loss,
)
from autocompress.errors import ModelError, PlanError
from autocompress.layers import LayerTable
from autocompress.plan import Distill, LayerPlan, Lora, Mask, Plan, Quantize, Terms
from autocompress.tasks.task import Task
from tests.tiny import any_task, bert, cnn, mlp, stirred, table_of, task_of

ALL = Terms(hidden=0.5, cosine=0.5, relations=0.5, normalised=0.5)


def recovered(
    student: nn.Module, settings: Distill, task: Task, seed: int = 0, plan: Plan | None = None, **more: Any
) -> nn.Module:
    plan = replace(plan or Plan(), distill=settings, seed=seed)
    return recover(student, plan, task, TeacherCache(None, task), table_of(task), **more)


def shaped(task: Task, plan: Plan, table: LayerTable) -> nn.Module:
    return shape(task.source, plan, table, FirstOnes(task.source))


def flat(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def loss_of(model: nn.Module, task: Task, settings: Distill) -> float:
    inputs, targets = task.train.batch(range(len(task.train)))
    with torch.no_grad():
        return float(distillation_loss(model(**inputs), task.model(**inputs), targets, settings, task.loss))


def test_recovery_lowers_the_loss_and_leaves_the_student_alone() -> None:
    task, settings = task_of(mlp()), Distill(learning_rate=1e-2, steps=40, soft_weight=0.9)
    student = stirred(mlp(), seed=5, amount=0.5)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    trained = recovered(student, settings, task)
    assert loss_of(trained, task, settings) < 0.7 * loss_of(student, task, settings)
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
    assert not trained.training


def test_recovery_is_the_loop_written_out() -> None:
    task, settings = task_of(mlp()), Distill(learning_rate=1e-2, steps=12, soft_weight=0.7, temperature=3.0)
    student, twin = stirred(mlp(), seed=5), stirred(mlp(), seed=5)
    optimizer = torch.optim.AdamW(twin.parameters(), 1e-2, weight_decay=0.01)
    for step, rows in enumerate(task.train.random_batches(task.batch_size, 12, 4)):
        optimizer.param_groups[0]["lr"] = 1e-2 * learning_rate_share(step, 12)
        inputs, targets = task.train.batch(rows)
        logits = twin(**inputs)
        loss = 0.3 * task.loss(logits, targets) + 0.7 * soft_loss(logits, task.model(**inputs).detach(), 3.0)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(twin.parameters(), 1.0)
        optimizer.step()
    torch.testing.assert_close(flat(recovered(student, settings, task, seed=4)), flat(twin))


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(Distill(steps=3), id="plain"),
        pytest.param(Distill(steps=3, peers=2), id="peers"),
        pytest.param(Distill(steps=3, lora=Lora(2)), id="lora"),
        pytest.param(Distill(steps=3, terms=ALL, normalise=True), id="terms"),
    ],
)
def test_recovery_is_the_same_under_a_seed_and_not_under_another(settings: Distill) -> None:
    """BERT has dropout, so samples, masks, additions and peers must all follow from the seed."""
    task = task_of(bert())
    student = stirred(bert(), seed=5)

    def weights(seed: int, noise: int) -> Tensor:
        torch.manual_seed(noise)
        return flat(recovered(student, settings, task, seed))

    assert torch.equal(weights(0, noise=1), weights(0, noise=2))
    assert not torch.equal(weights(0, noise=1), weights(1, noise=1))


def test_torchs_generator_is_left_as_it_was() -> None:
    task, student = task_of(bert()), bert()
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    recovered(student, Distill(steps=2), task, seed=9)
    assert torch.equal(torch.rand(4), expected)


def test_steps_can_be_given_with_the_call() -> None:
    task, student = task_of(mlp()), stirred(mlp(), seed=5)
    long = flat(recovered(student, Distill(steps=7), task))
    assert torch.equal(flat(recovered(student, Distill(steps=500), task, steps=7)), long)
    with pytest.raises(PlanError, match="steps must be an integer of 1 or more, but got 0"):
        recovered(student, Distill(steps=5), task, steps=0)


@pytest.mark.parametrize("settings", [Distill(steps=2), Distill(steps=2, terms=ALL), Distill(steps=2, peers=2)])
def test_the_teacher_stays_in_evaluation_mode_and_unchanged(settings: Distill) -> None:
    task = any_task("bert")
    before = {name: value.clone() for name, value in task.model.state_dict().items()}
    recovered(stirred(bert(), seed=5), settings, task)
    assert not any(module.training or module._forward_hooks for module in task.model.modules())
    assert all(torch.equal(value, before[name]) for name, value in task.model.state_dict().items())
    assert all(weight.requires_grad and weight.grad is None for weight in task.model.parameters())


def test_embeddings_stay_and_the_result_is_trainable_and_free_of_hooks() -> None:
    task, student = any_task("bert"), stirred(bert(), seed=5)
    trained = recovered(student, Distill(steps=3, terms=ALL), task)
    assert torch.equal(trained.bert.embeddings.word_embeddings.weight, student.bert.embeddings.word_embeddings.weight)
    assert all(weight.requires_grad for weight in trained.parameters())
    assert not any(module._forward_hooks for module in trained.modules())


def test_without_lambda_the_teacher_is_not_asked() -> None:
    task = task_of(mlp())
    cache = TeacherCache(None, task)
    cache.prediction = cache.ask = None  # type: ignore[assignment]
    recover(mlp(), Plan(distill=Distill(soft_weight=0.0, steps=2)), task, cache, table_of(task))
    recover(mlp(), Plan(distill=Distill(peers=2, steps=2)), task, cache, table_of(task))


def test_recovery_keeps_the_teachers_logits_on_disk(tmp_path: Path) -> None:
    task = task_of(mlp())
    recover(mlp(), Plan(distill=Distill(steps=2)), task, TeacherCache(tmp_path / "t.npy", task), table_of(task))
    assert np.isfinite(np.load(tmp_path / "t.npy")).any()


def test_the_teachers_logits_are_kept_on_the_way_and_after_a_crash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "SAVE_EVERY", 2)
    calls, known = [0], []

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        calls[0] += 1
        known.append(int(np.isfinite(np.load(tmp_path / "t.npy")[:, 0]).sum()) if calls[0] > 2 else 0)
        if calls[0] == 4:
            raise KeyboardInterrupt
        return nn.functional.cross_entropy(logits, targets)

    task = replace(task_of(mlp()), loss=loss, batch_size=2)
    cache = TeacherCache(tmp_path / "t.npy", task)
    with pytest.raises(KeyboardInterrupt):
        recover(mlp(), Plan(distill=Distill(steps=9)), task, cache, table_of(task))
    assert 0 < known[2] == known[3] < np.isfinite(np.load(tmp_path / "t.npy")[:, 0]).sum()


def diverge() -> None:
    task = replace(task_of(mlp()), loss=lambda logits, _targets: logits.sum() * float("nan"))
    recovered(mlp(), Distill(steps=4), task)


def test_a_loss_of_nan_names_step_settings_and_terms() -> None:
    with pytest.raises(
        ModelError, match=r"recovery diverged: the loss is nan at step 0 of Distill\(.*\): hard nan, so"
    ):
        diverge()


def test_a_loss_of_nan_is_told_without_a_warning() -> None:
    torch.set_warn_always(True)  # it warns once per process otherwise
    try:
        with pytest.raises(ModelError, match="recovery diverged"):
            diverge()
    finally:
        torch.set_warn_always(False)


def test_other_classes_than_the_teachers_are_told() -> None:
    student = mlp()
    student.second = nn.Linear(48, 5)
    with pytest.raises(ModelError, match="student has 5 classes, but its teacher has 3"):
        recovered(student, Distill(steps=2, soft_weight=1.0), task_of(mlp()))


def test_what_a_plan_cannot_ask_is_told() -> None:
    task = task_of(mlp())
    with pytest.raises(PlanError, match="recover needs a plan with distill"):
        recover(mlp(), Plan(), task, TeacherCache(None, task), table_of(task))
    with pytest.raises(ModelError, match="on_policy needs a language model"):
        recovered(mlp(), Distill(on_policy=0.5), task)
    for make in (mlp, cnn):
        with pytest.raises(ModelError, match="no adapter finds any"):
            recovered(make(), Distill(terms=Terms(cosine=1.0)), task_of(make()))


def test_zeros_that_the_plan_asks_for_stay_zero() -> None:
    task = task_of(mlp())
    rounded = LayerPlan(mask=Mask(0.6), quantize=Quantize("int8-dynamic"))
    table, plan = table_of(task), Plan(layers={"first": rounded})
    student = shaped(task, plan, table)
    zeros = student.first.weight == 0
    assert int(zeros.sum()) == round(0.6 * zeros.numel())
    ways = (Distill(peers=2), Distill(lora=Lora(2)), Distill(fake_quantize=True))
    for settings in (Distill(), *ways):
        settings = replace(settings, learning_rate=0.05, steps=5)
        trained = recovered(student, settings, task, plan=plan)
        assert torch.equal(trained.first.weight == 0, zeros)
        assert not torch.equal(trained.second.weight, student.second.weight)


def test_fake_quantization_trains_what_will_be_rounded() -> None:
    """At 2 bits: the rounded student's loss falls further when it trains rounded. Both end as plain float models."""
    from autocompress.compressing.quantize import quantize, simulate

    task = task_of(mlp())
    bits = LayerPlan(quantize=Quantize("int8-dynamic", weight_bits=2))
    plan = Plan(layers={"first": bits, "second": bits})
    losses = {}
    for aware in (False, True):
        settings = Distill(learning_rate=5e-3, steps=60, soft_weight=1.0, fake_quantize=aware)
        trained = recovered(mlp(), settings, task, plan=plan)
        assert [name for name, _ in trained.named_parameters()] == [name for name, _ in mlp().named_parameters()]
        made = quantize(trained, plan, table_of(task), task.calibration())
        losses[aware] = loss_of(simulate(made.model, made.codes), task, settings)
    assert losses[True] < 0.8 * losses[False]


@pytest.mark.parametrize("base", ["fp32", "int4"])
def test_additions_recover_and_leave_plain_linears(base: str) -> None:
    task = any_task("bert")
    settings = Distill(learning_rate=5e-3, steps=30, soft_weight=1.0, lora=Lora(4, base=base))
    student = stirred(bert(), seed=5)
    trained = recovered(student, settings, task)
    assert divergence(task.model, trained, task.train) < 0.7 * divergence(task.model, student, task.train)
    assert [n for n, _ in trained.named_parameters()] == [n for n, _ in student.named_parameters()]
    norm = "bert.encoder.layer.0.output.LayerNorm.weight"
    assert torch.equal(trained.get_parameter(norm), student.get_parameter(norm))


def test_peers_learn_the_first_is_returned_and_each_other_matters() -> None:
    task, student = task_of(mlp()), stirred(mlp(), seed=5, amount=0.5)
    settings = Distill(learning_rate=1e-2, steps=40, soft_weight=0.5)
    found = {peers: recovered(student, replace(settings, peers=peers), task) for peers in (1, 2, 3)}
    hard = Distill(soft_weight=0.0)
    assert all(loss_of(model, task, hard) < loss_of(student, task, hard) for model in found.values())
    assert not torch.equal(flat(found[2]), flat(found[3]))


def test_two_peers_are_the_loop_written_out() -> None:
    task, settings = task_of(mlp()), Distill(learning_rate=1e-2, steps=6, soft_weight=0.4, peers=2)
    twins = [mlp(), mlp()]
    from autocompress.distill.online import set_apart

    set_apart(twins[1], 1)
    optimizers = [torch.optim.AdamW(twin.parameters(), 1e-2, weight_decay=0.01) for twin in twins]
    for step, rows in enumerate(task.train.random_batches(task.batch_size, 6, 0)):
        inputs, targets = task.train.batch(rows)
        answers = [twin(**inputs) for twin in twins]
        losses = [
            0.6 * task.loss(own, targets) + 0.4 * soft_loss(own, other.detach(), 2.0)
            for own, other in (answers, answers[::-1])
        ]
        for twin, optimizer, loss in zip(twins, optimizers, losses, strict=True):
            optimizer.param_groups[0]["lr"] = 1e-2 * learning_rate_share(step, 6)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(twin.parameters(), 1.0)
            optimizer.step()
    torch.testing.assert_close(flat(recovered(mlp(), settings, task)), flat(twins[0]))


@pytest.mark.parametrize("family", ["bert", "vit", "gpt2", "llama"])
@pytest.mark.parametrize("hidden_map", ["static", "dynamic"])
def test_all_terms_bring_a_narrow_student_nearer(family: str, hidden_map: str) -> None:
    """Half of every width, hidden dimensions too, so that W is used and numbers of heads differ."""
    task = any_task(family)
    table = table_of(task)
    plan = by_width(table, 0.5)
    student = shaped(task, plan, table)
    settings = Distill(1.0, 2.0, 5e-3, 25, terms=replace(ALL, hidden_map=hidden_map), normalise=True)
    trained = recovered(student, settings, task, plan=plan)
    assert divergence(task.model, trained, task.train) < divergence(task.model, student, task.train)


def test_a_student_by_depth_recovers() -> None:
    task = any_task("bert", 4)
    table = table_of(task)
    plan = by_depth(table)
    student = shaped(task, plan, table)
    trained = recovered(student, Distill(1.0, 2.0, 5e-3, 30, terms=Terms(hidden=0.5, cosine=0.5)), task, plan=plan)
    assert divergence(task.model, trained, task.train) < 0.9 * divergence(task.model, student, task.train)


def test_a_student_of_another_architecture_learns_from_the_model() -> None:
    task = replace(any_task("bert"), student=bert(hidden=16, layers=1, heads=2, neurons=24, seed=8))
    student = shaped(task, Plan(), table_of(task))
    trained = recovered(student, Distill(1.0, 2.0, 1e-2, 40, terms=ALL, normalise=True), task)
    assert divergence(task.model, trained, task.train) < 0.8 * divergence(task.model, student, task.train)
    assert not torch.equal(
        trained.bert.embeddings.word_embeddings.weight, student.bert.embeddings.word_embeddings.weight
    )


@pytest.mark.parametrize("peers", [1, 2])
def test_a_language_model_learns_on_its_own_words(peers: int) -> None:
    task = any_task("gpt2")
    student = stirred(shaped(task, Plan(), table_of(task)), seed=5, amount=0.05)
    settings = Distill(1.0, 1.0, 3e-3, 16, divergence="jsd", beta=0.9, on_policy=1.0, peers=peers)
    trained = recovered(student, settings, task)
    assert divergence(task.model, trained, task.train) < 0.9 * divergence(task.model, student, task.train)


def test_on_policy_steps_have_the_soft_loss_only(monkeypatch: pytest.MonkeyPatch) -> None:
    task, seen = any_task("gpt2"), []
    learn = room.Learner.learn

    def note(self: Any, terms: dict[str, Tensor], step: int, *, on_policy: bool = False) -> None:
        seen.append((sorted(terms), on_policy))
        learn(self, terms, step, on_policy=on_policy)

    monkeypatch.setattr(room.Learner, "learn", note)
    recovered(shaped(task, Plan(), table_of(task)), Distill(steps=4, on_policy=0.5, terms=Terms(cosine=1.0)), task)
    assert seen == [(["cosine", "hard", "soft"], False), (["soft"], True)] * 2


def test_cached_predictions_of_a_language_model_train_as_fresh_ones_do(monkeypatch: pytest.MonkeyPatch) -> None:
    import autocompress.distill.teacher as teacher_room

    task = any_task("gpt2")
    student = stirred(shaped(task, Plan(), table_of(task)), seed=5, amount=0.05)
    cached = recovered(student, Distill(steps=6), task)
    monkeypatch.setattr(teacher_room, "CACHE_BYTES", 0)
    torch.testing.assert_close(flat(cached), flat(recovered(student, Distill(steps=6), task)), rtol=1e-3, atol=1e-5)


def test_divergence_is_the_mean_over_real_tokens() -> None:
    task = any_task("gpt2")
    student = stirred(shaped(task, Plan(), table_of(task)), seed=5, amount=0.05)
    each = []
    for i in range(len(task.validation)):
        inputs = task.validation.batch([i])[0]
        with torch.no_grad():
            p, q = (model(**inputs).logits[0].log_softmax(-1) for model in (task.model, student))
        each += (p.exp() * (p - q)).sum(-1).tolist()
    assert divergence(task.model, student, task.validation) == pytest.approx(float(np.mean(each)), rel=1e-3)
    nothing = stirred(mlp(), amount=float("nan"))
    assert divergence(mlp(), nothing, task_of(mlp()).validation) == float("inf")
