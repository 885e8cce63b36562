"""Oracles: statistics of the very inputs of each norm, seen by hooks, and a model that is otherwise untouched."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from autocompress.compressing.batchnorm import refresh_batchnorm
from autocompress.errors import DataError
from autocompress.tasks.task import Examples
from tests.tiny import mlp, tensors


class Normed(nn.Module):
    """Two convolutions with norms and dropout, and a norm of vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 4, 3, bias=False), nn.Conv2d(4, 3, 3, bias=False)
        self.first, self.second = nn.BatchNorm2d(4), nn.BatchNorm2d(3, momentum=0.3, affine=False)
        self.drop, self.last = nn.Dropout(0.5), nn.BatchNorm1d(3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(self.a(x)))
        return self.last(self.drop(self.second(self.b(x)).mean((2, 3))))


@pytest.fixture
def model() -> Normed:
    torch.manual_seed(0)
    return Normed().eval()


def norms(model: Normed) -> dict[str, nn.Module]:
    return {"first": model.first, "second": model.second, "last": model.last}


def seen(model: Normed, batches: list[Tensor]) -> dict[str, list[Tensor]]:
    """Inputs of each norm, ``(positions, channels)`` per batch, where norms (and nothing else) are in training mode."""
    twin = copy.deepcopy(model)
    found: dict[str, list[Tensor]] = {}
    for name, norm in norms(twin).items():
        norm.train()

        def hook(_module: nn.Module, args: tuple[Tensor, ...], name: str = name) -> None:
            found.setdefault(name, []).append(args[0].transpose(0, 1).reshape(args[0].shape[1], -1).T.clone())

        norm.register_forward_pre_hook(hook)
    with torch.no_grad():
        for batch in batches:
            twin(batch)
    return found


def test_one_batch_gives_the_statistics_of_its_own_inputs(model: Normed) -> None:
    examples = tensors("x", (2, 8, 8), 24, 0)
    expected = seen(model, [examples.inputs["x"]])
    refresh_batchnorm(model, examples, batch_size=24)
    for name, norm in norms(model).items():
        (values,) = expected[name]
        torch.testing.assert_close(norm.running_mean, values.mean(0), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(norm.running_var, values.var(0), rtol=1e-5, atol=1e-6)


def test_batches_weigh_alike_and_a_last_one_that_is_not_full_is_left_out(model: Normed) -> None:
    examples = tensors("x", (2, 8, 8), 28, 0)
    expected = seen(model, [examples.inputs["x"][start : start + 8] for start in (0, 8, 16)])
    refresh_batchnorm(model, examples, batch_size=8)
    for name, norm in norms(model).items():
        means, variances = ([f(v) for v in expected[name]] for f in (lambda v: v.mean(0), lambda v: v.var(0)))
        torch.testing.assert_close(norm.running_mean, torch.stack(means).mean(0), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(norm.running_var, torch.stack(variances).mean(0), rtol=1e-5, atol=1e-6)


def test_no_more_batches_are_run_than_asked_for(model: Normed) -> None:
    calls = []
    model.register_forward_pre_hook(lambda _module, _args, kwargs: calls.append(len(kwargs["x"])), with_kwargs=True)
    refresh_batchnorm(model, tensors("x", (2, 8, 8), 40, 0), batches=3, batch_size=4)
    assert calls == [4, 4, 4]


def test_nothing_else_changes(model: Normed) -> None:
    model.drop.train()
    modes = {name: module.training for name, module in model.named_modules()}
    before = {name: value.clone() for name, value in model.named_parameters()}
    refresh_batchnorm(model, tensors("x", (2, 8, 8), 24, 0))
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())
    assert [norm.momentum for norm in norms(model).values()] == [0.1, 0.3, 0.1]
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_model_without_batch_norm_is_not_even_run() -> None:
    model = mlp()
    model.register_forward_pre_hook(lambda *_: pytest.fail("it ran"))
    refresh_batchnorm(model, tensors("x", (16,), 1, 0))


def test_inputs_that_are_no_numbers_leave_the_old_statistics(model: Normed) -> None:
    examples = tensors("x", (2, 8, 8), 24, 0)
    examples.inputs["x"][3] = float("nan")
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(DataError, match="layer first: its batch statistics hold NaN or infinity"):
        refresh_batchnorm(model, examples)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.first.momentum == 0.1
    assert not model.first.training


def test_one_sample_is_too_few(model: Normed) -> None:
    examples = Examples({"x": torch.randn(1, 2, 8, 8)}, torch.zeros(1, dtype=torch.int64))
    with pytest.raises(DataError, match="at least 2 samples, but there is 1"):
        refresh_batchnorm(model, examples)
