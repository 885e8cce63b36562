"""Oracles: closed forms on hand values, limits of λ and T, and counted teacher calls."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from autocompress.distill import TeacherCache, distillation_loss, learning_rate_share, recover, soft_loss
from autocompress.errors import ModelError
from autocompress.plan import Distill
from autocompress.tasks.task import Task
from tests.tiny import bert, mlp, stirred, task_of


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def softmax(logits: list[float], temperature: float) -> list[float]:
    powers = [math.exp(value / temperature) for value in logits]
    return [power / sum(powers) for power in powers]


def hand_loss(student: list[float], teacher: list[float], temperature: float) -> float:
    pairs = zip(softmax(teacher, temperature), softmax(student, temperature), strict=True)
    return temperature**2 * sum(t * math.log(t / s) for t, s in pairs)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 8.0])
def test_soft_loss_is_the_closed_form(temperature: float) -> None:
    found = soft_loss(torch.tensor([[1.0, 0.0, -1.0]]), torch.tensor([[0.5, 2.0, 0.0]]), temperature)
    assert float(found) == pytest.approx(hand_loss([1, 0, -1], [0.5, 2, 0], temperature), rel=1e-5)


def test_soft_loss_is_the_mean_over_samples_and_not_over_classes() -> None:
    student, teacher = torch.tensor([[1.0, 0.0], [0.0, 3.0]]), torch.tensor([[0.0, 1.0], [2.0, 0.0]])
    each = [hand_loss(s, t, 2.0) for s, t in zip(student.tolist(), teacher.tolist(), strict=True)]
    assert float(soft_loss(student, teacher, 2.0)) == pytest.approx(sum(each) / 2, rel=1e-5)


def test_soft_loss_of_equal_logits_is_zero_whatever_is_added() -> None:
    logits = torch.randn(4, 3)
    assert float(soft_loss(logits + 5, logits, 3.0)) == pytest.approx(0.0, abs=1e-5)


def gradient(temperature: float) -> float:
    student = torch.tensor([[0.02, -0.01, 0.0, 0.01]], requires_grad=True)
    soft_loss(student, torch.tensor([[-0.01, 0.03, 0.0, -0.02]]), temperature).backward()
    return float(student.grad.norm())


@pytest.mark.parametrize("temperature", [2.0, 5.0, 20.0])
def test_the_gradients_size_does_not_depend_on_temperature(temperature: float) -> None:
    """For small logits it is (s - t)/classes, at every T (Hinton et al. 2015, §2.1): T² is there."""
    assert gradient(temperature) == pytest.approx(gradient(1.0), rel=0.02)


@pytest.mark.parametrize("weight", [0.0, 0.25, 1.0])
def test_the_two_terms_are_mixed_by_lambda(weight: float) -> None:
    student, teacher, targets = torch.randn(4, 3), torch.randn(4, 3), torch.tensor([0, 2, 1, 1])
    settings = Distill(soft_weight=weight, temperature=3.0)
    hard = nn.functional.cross_entropy(student, targets)
    expected = (1 - weight) * hard + weight * soft_loss(student, teacher, 3.0)
    found = distillation_loss(student, teacher, targets, settings, nn.functional.cross_entropy)
    torch.testing.assert_close(found, expected)


def test_an_unweighted_term_is_not_computed() -> None:
    def never(_student: Tensor, _targets: Tensor) -> Tensor:
        raise AssertionError("the hard loss was called")

    logits, nan = torch.randn(2, 3), torch.full((2, 3), float("nan"))
    distillation_loss(logits, logits, torch.tensor([0, 1]), Distill(soft_weight=1.0), never)
    loss = distillation_loss(logits, nan, torch.tensor([0, 1]), Distill(soft_weight=0.0), nn.functional.cross_entropy)
    assert torch.isfinite(loss)


class Counting(nn.Module):
    """A teacher that counts the samples it sees."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.seen = 0

    def forward(self, x: Tensor) -> Tensor:
        self.seen += len(x)
        return self.inner(x)


@pytest.fixture
def counted() -> Task:
    return replace(task_of(mlp()), model=Counting(mlp()))


def test_the_teacher_is_asked_once_for_each_row(counted: Task, tmp_path: Path) -> None:
    cache = TeacherCache(tmp_path / "teacher.npy", counted)
    for rows in ([0, 3, 5], [3, 5], [5, 7]):
        found = cache.logits(np.array(rows))
        expected = counted.model.inner(counted.train.batch(rows)[0]["x"])
        torch.testing.assert_close(found, expected.detach())
    assert counted.model.seen == 4


def test_the_cache_survives_a_reload(counted: Task, tmp_path: Path) -> None:
    first = TeacherCache(tmp_path / "teacher.npy", counted)
    expected = first.logits(np.arange(6))
    first.save()
    again = TeacherCache(tmp_path / "teacher.npy", counted)
    assert torch.equal(again.logits(np.arange(6)), expected)
    assert counted.model.seen == 6
    again.logits(np.array([6]))
    assert counted.model.seen == 7


def test_a_cache_of_other_data_is_not_taken(counted: Task, tmp_path: Path) -> None:
    np.save(tmp_path / "teacher.npy", np.zeros((3, 3), dtype=np.float32))
    found = TeacherCache(tmp_path / "teacher.npy", counted).logits(np.array([1]))
    assert counted.model.seen == 1
    assert found.any()


def test_nothing_new_writes_no_file(counted: Task, tmp_path: Path) -> None:
    TeacherCache(tmp_path / "teacher.npy", counted).save()
    assert not (tmp_path / "teacher.npy").exists()


def loss_of(model: nn.Module, task: Task, settings: Distill) -> float:
    inputs, targets = task.train.batch(range(len(task.train)))
    teacher = task.model(**inputs)
    return float(distillation_loss(model(**inputs), teacher, targets, settings, task.loss).detach())


def test_recovery_lowers_the_loss_and_leaves_the_student_alone(tmp_path: Path) -> None:
    task, settings = task_of(mlp()), Distill(learning_rate=1e-2, steps=40, soft_weight=0.9)
    student = stirred(mlp(), seed=5, amount=0.5)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    trained = recover(student, settings, task, TeacherCache(tmp_path / "t.npy", task))
    assert loss_of(trained, task, settings) < 0.7 * loss_of(student, task, settings)
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
    assert not trained.training


def test_recovery_is_the_same_under_a_seed_and_not_under_another(tmp_path: Path) -> None:
    """BERT has dropout, so samples and masks must both follow from the seed."""
    task, settings = task_of(bert()), Distill(steps=3)
    student = stirred(bert(), seed=5)

    def weights(seed: int, noise: int) -> Tensor:
        torch.manual_seed(noise)
        trained = recover(student, settings, task, TeacherCache(tmp_path / "t.npy", task), seed)
        return torch.cat([p.detach().reshape(-1) for p in trained.parameters()])

    assert torch.equal(weights(0, noise=1), weights(0, noise=2))
    assert not torch.equal(weights(0, noise=1), weights(1, noise=1))


def test_recovery_keeps_the_teachers_logits_on_disk(tmp_path: Path) -> None:
    task = task_of(mlp())
    recover(mlp(), Distill(steps=2), task, TeacherCache(tmp_path / "t.npy", task))
    assert np.isfinite(np.load(tmp_path / "t.npy")).any()


def diverge(folder: Path) -> None:
    task = replace(task_of(mlp()), loss=lambda logits, _targets: logits.sum() * float("nan"))
    recover(mlp(), Distill(steps=4), task, TeacherCache(folder / "t.npy", task))


def test_a_loss_of_nan_names_step_and_settings(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"recovery diverged: the loss is nan at step 0 of Distill\(.*steps=4\)"):
        diverge(tmp_path)


def test_a_loss_of_nan_is_told_without_a_warning(tmp_path: Path) -> None:
    torch.set_warn_always(True)  # it warns once per process otherwise
    try:
        with pytest.raises(ModelError, match="recovery diverged"):
            diverge(tmp_path)
    finally:
        torch.set_warn_always(False)


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
