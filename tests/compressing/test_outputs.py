"""Oracles: closed forms on outputs that are known, and samples run one by one, which have no padding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from autocompress.compressing.outputs import output_statistics
from autocompress.errors import DataError, ModelError
from autocompress.tasks.task import Examples
from tests.tiny import bert, task_of


class Part(nn.Module):
    """Adds to its input, and answers as attention modules do."""

    def __init__(self, step: float = 1.0) -> None:
        super().__init__()
        self.step = step

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, None]:
        return hidden_states + self.step, None


class Model(nn.Module):
    """One part that is called with a keyword, one that is never called, and one that gives no tensor."""

    def __init__(self, step: float = 1.0) -> None:
        super().__init__()
        self.part, self.idle = Part(step), Part()
        self.words = nn.Identity()

    def forward(self, x: Tensor) -> Any:
        self.words("no tensor")
        return self.part(hidden_states=x)[0]


def examples(count: int = 5) -> Examples:
    values = torch.randn(count, 3, 4, generator=torch.Generator().manual_seed(0))
    return Examples({"x": values}, torch.zeros(count))


@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_statistics_are_those_of_all_positions(batch_size: int) -> None:
    samples = examples()
    found = output_statistics(Model(), ["part"], samples, batch_size)["part"]
    outputs = samples.inputs["x"].double().reshape(-1, 4) + 1.0
    torch.testing.assert_close(found.mean, outputs.mean(dim=0), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.square, outputs.pow(2).sum(dim=1).mean(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.change, torch.tensor(4.0).double(), rtol=1e-5, atol=1e-6)


def test_padding_changes_nothing() -> None:
    task = task_of(bert())
    name = "bert.encoder.layer.0"
    found = output_statistics(task.model, [name], task.train, batch_size=8)[name]
    alone = output_statistics(task.model, [name], task.train, batch_size=1)[name]
    for field in ("mean", "square", "change"):
        torch.testing.assert_close(getattr(found, field), getattr(alone, field), rtol=1e-4, atol=1e-5)


def test_hooks_are_gone_and_modes_are_as_before() -> None:
    model = Model().train()
    output_statistics(model, ["part"], examples())
    assert all(module.training and not module._forward_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("name", "told"),
    [
        pytest.param("idle", r"^idle: was not called on the calibration samples", id="idle"),
        pytest.param("words", r"^words: must give a tensor or a tuple that begins with one, but gave <class 'str'>"),
    ],
)
def test_a_module_without_an_output_is_an_error(name: str, told: str) -> None:
    with pytest.raises(ModelError, match=told):
        output_statistics(Model(), [name], examples())


def test_an_output_that_is_not_a_number_is_an_error() -> None:
    with pytest.raises(DataError, match=r"^part: its outputs on the calibration samples hold NaN or infinity$"):
        output_statistics(Model(torch.nan), ["part"], examples())
