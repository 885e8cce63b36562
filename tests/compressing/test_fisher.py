"""Oracles: one backward pass per sample, and autograd through a mask that is written into the model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from autocompress.compressing import fisher
from autocompress.compressing.fisher import structure_fisher, weight_fisher
from autocompress.errors import ModelError
from autocompress.layers import Group, Slice
from autocompress.tasks.task import Examples, Task, logits_of
from autocompress.weights import weight_of
from tests import tiny


def sample_losses(task: Task, examples: Examples) -> Iterator[Tensor]:
    for row in range(len(examples)):
        inputs, targets = examples.batch([row])
        yield task.loss(logits_of(task.model(**inputs)), targets)


def slow_weight_fisher(task: Task, name: str, examples: Examples) -> Tensor:
    module = task.model.get_submodule(name)
    total = torch.zeros_like(weight_of(module))
    for loss in sample_losses(task, examples):
        [gradient] = torch.autograd.grad(loss, [module.weight], allow_unused=True)
        if gradient is not None:
            total += (gradient if gradient.shape == total.shape else gradient.T) ** 2
    return total.reshape(len(total), -1) / len(examples)


@contextmanager
def masked_inputs(model: nn.Module, group: Group, mask: Tensor) -> Iterator[None]:
    """Multiply each structure, wherever a consumer reads it, by its entry in the mask."""
    handles = []
    for item in group.consumers:
        module = model.get_submodule(item.name)
        structure_of = {place: s for s in range(group.size) for place in item.positions([s])}

        def hook(owner: nn.Module, args: tuple[Tensor], structure_of: dict[int, int] = structure_of) -> tuple[Tensor]:
            axis = 1 if isinstance(owner, nn.Conv2d) else args[0].dim() - 1
            factors = [
                mask[structure_of[i]] if i in structure_of else mask.new_ones(()) for i in range(args[0].shape[axis])
            ]
            shape = [-1 if i == axis else 1 for i in range(args[0].dim())]
            return (args[0] * torch.stack(factors).reshape(shape),)

        handles.append(module.register_forward_pre_hook(hook))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def slow_structure_fisher(task: Task, group: Group, examples: Examples) -> Tensor:
    mask = torch.ones(group.size, requires_grad=True)
    total = torch.zeros(group.size)
    with masked_inputs(task.model, group, mask):
        for loss in sample_losses(task, examples):
            total += torch.autograd.grad(loss, mask)[0] ** 2
    return total / len(examples)


class Odd(nn.Module):
    """A linear that is called twice, a padded, dilated, strided and grouped convolution, and ReLUs in place."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, stride=2, padding=(2, 1), dilation=(2, 1), groups=2)
        self.same = nn.Conv2d(4, 4, 3, padding="same", padding_mode="circular")
        self.twice = nn.Linear(4, 4)
        self.head = nn.Linear(4, tiny.CLASSES)
        self.unused = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = nn.functional.relu(self.conv(x), inplace=True)
        hidden = nn.functional.relu(self.same(hidden), inplace=True).flatten(2).transpose(1, 2)
        hidden = self.twice(torch.tanh(self.twice(hidden)))
        return self.head(hidden.mean(dim=1))


def odd_task() -> Task:
    torch.manual_seed(0)
    splits = {name: tiny.tensors("x", (2, 8, 8), 6, seed) for seed, name in enumerate(("train", "validation", "test"))}
    return Task("odd", tiny.stirred(Odd()), **splits)


TASKS = {
    "mlp": (lambda: tiny.task_of(tiny.mlp()), ("first", "second")),
    "cnn": (lambda: tiny.task_of(tiny.cnn()), ("first", "second", "head")),
    "odd": (odd_task, ("conv", "same", "twice", "head", "unused")),
    "bert": (
        lambda: tiny.task_of(tiny.bert()),
        ("bert.encoder.layer.0.attention.self.query", "bert.encoder.layer.1.output.dense", "classifier"),
    ),
    "gpt2": (
        lambda: replace(tiny.any_task("gpt2"), train=tiny.texts(8, 0, (6,))),
        ("transformer.h.0.attn.c_attn", "transformer.h.1.mlp.c_proj"),
    ),
}


@pytest.mark.parametrize("kind", TASKS)
def test_weight_fisher_is_the_mean_of_squared_gradients_of_single_samples(kind: str) -> None:
    make, names = TASKS[kind]
    task = make()
    examples = task.train.subset(6, seed=0)
    found = weight_fisher(task.model, names, task, examples)
    assert list(found) == list(names)
    for name in names:
        torch.testing.assert_close(found[name], slow_weight_fisher(task, name, examples), rtol=1e-3, atol=1e-8)


def test_weight_fisher_in_small_parts_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    task = tiny.task_of(tiny.mlp())
    whole = weight_fisher(task.model, ["first"], task, task.train)
    monkeypatch.setattr(fisher, "MOST_GRADIENTS", 1)
    monkeypatch.setattr(fisher, "BATCH", 5)
    torch.testing.assert_close(weight_fisher(task.model, ["first"], task, task.train), whole)


def test_a_layer_without_part_in_the_loss_has_no_fisher() -> None:
    task = odd_task()
    assert not weight_fisher(task.model, ["unused"], task, task.train)["unused"].any()


@pytest.mark.parametrize("kind", ["heads", "neurons"])
def test_structure_fisher_is_autograds_through_a_mask(kind: str) -> None:
    task = tiny.task_of(tiny.bert())
    groups = [g for g in tiny.table_of(task).groups if g.kind == kind]
    examples = task.train.subset(6, seed=0)
    found = structure_fisher(task.model, groups, task, examples)
    assert set(found) == {g.name for g in groups}
    for group in groups:
        wanted = slow_structure_fisher(task, group, examples)
        torch.testing.assert_close(found[group.name], wanted, rtol=1e-3, atol=1e-9)


SEVERAL = Group("g", "channels", 4, (), (Slice("same", index=(2, 0, 3, 1)), Slice("twice"), Slice("head")))
WIDE = Group("w", "channels", 2, (), (Slice("twice", 2),))


@pytest.mark.parametrize("group", [SEVERAL, WIDE], ids=["several consumers", "two columns each"])
def test_structure_fisher_sums_a_masks_gradient_over_consumers_and_calls(group: Group) -> None:
    task = odd_task()
    found = structure_fisher(task.model, [group], task, task.train)[group.name]
    torch.testing.assert_close(found, slow_structure_fisher(task, group, task.train), rtol=1e-3, atol=1e-9)


def test_both_leave_the_model_as_it_was() -> None:
    task = odd_task()
    model = task.model
    model.train()
    model.head.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    weight_fisher(model, ["conv", "head"], task, task.train)
    structure_fisher(model, [WIDE], task, task.train)
    assert all(module.training for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_frozen_weights_have_the_same_fisher() -> None:
    task = odd_task()
    names = ("conv", "twice")
    free = weight_fisher(task.model, names, task, task.train), structure_fisher(task.model, [WIDE], task, task.train)
    task.model.requires_grad_(False)
    frozen = weight_fisher(task.model, names, task, task.train), structure_fisher(task.model, [WIDE], task, task.train)
    torch.testing.assert_close(frozen, free)


def test_an_infinite_loss_is_refused_by_layer() -> None:
    task = replace(tiny.task_of(tiny.mlp()), loss=lambda logits, _targets: logits.sum() * torch.inf)
    with pytest.raises(ModelError, match="first: the gradient of the loss holds NaN or infinity"):
        weight_fisher(task.model, ["first"], task, task.train)


def test_hooks_are_gone_after_a_fault() -> None:
    task = tiny.task_of(tiny.mlp())
    with pytest.raises(AttributeError, match="nowhere"):
        weight_fisher(task.model, ["first", "nowhere"], task, task.train)
    broken = replace(task, loss=lambda _logits, _targets: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        weight_fisher(task.model, ["first"], broken, task.train)
    assert not any(m._forward_hooks for m in task.model.modules())


def test_a_layer_whose_input_does_not_begin_with_the_samples_is_named() -> None:
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(16, tiny.CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            return x[:, :3] + self.first(x.mean(dim=0, keepdim=True))

    task = replace(tiny.task_of(tiny.mlp()), model=Pooled())
    with pytest.raises(ModelError, match=r"layer first: its input .* does not begin with the 24 samples"):
        weight_fisher(task.model, ["first"], task, task.train)
