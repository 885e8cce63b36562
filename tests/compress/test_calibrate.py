"""Oracles: all inputs at once by hand, and the plain minimum and maximum."""

from __future__ import annotations

import pytest
import torch

from autocompress.compress.calibrate import Range, gram_matrices, input_ranges
from autocompress.errors import DataError
from autocompress.tasks.task import Examples
from tests.tiny import Mlp, mlp, tensors


@pytest.fixture
def model() -> Mlp:
    return mlp()


def test_gram_matrices_are_the_second_moments(model: Mlp) -> None:
    examples = tensors("x", (16,), 30, 0)
    found = gram_matrices(model, ["first", "second"], examples, batch_size=7)
    values = examples.inputs["x"].double()
    hidden = torch.relu(model.first(examples.inputs["x"])).detach().double()
    torch.testing.assert_close(found["first"], values.T @ values / 30, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found["second"], hidden.T @ hidden / 30, rtol=1e-5, atol=1e-6)


def test_ranges_without_tail_are_minimum_and_maximum_with_zero(model: Mlp) -> None:
    examples = tensors("x", (16,), 30, 0)
    found = input_ranges(model, ["first", "second"], examples, batch_size=7, tail=0)
    values = examples.inputs["x"]
    assert found["first"] == Range(float(values.min()), float(values.max()))
    assert found["second"].low == 0.0  # behind a relu


def test_a_range_above_zero_is_stretched_to_hold_it() -> None:
    model = mlp()
    examples = Examples({"x": torch.rand(10, 16) + 5}, torch.zeros(10, dtype=torch.int64))
    assert input_ranges(model, ["first"], examples)["first"].low == 0.0


def test_the_tail_leaves_out_an_outlier(model: Mlp) -> None:
    values = torch.linspace(-1, 1, 160).reshape(10, 16)
    values[3, 3] = 1000.0
    examples = Examples({"x": values}, torch.zeros(10, dtype=torch.int64))
    assert input_ranges(model, ["first"], examples, tail=0.01)["first"].high < 2
    assert input_ranges(model, ["first"], examples, tail=0)["first"].high == 1000.0


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("see", [gram_matrices, input_ranges], ids=lambda f: f.__name__)
def test_inputs_that_are_no_numbers_are_refused(model: Mlp, see: object, value: float) -> None:
    values = torch.zeros(4, 16)
    values[2, 2] = value
    examples = Examples({"x": values}, torch.zeros(4, dtype=torch.int64))
    with pytest.raises(DataError, match="layer first: its calibration inputs hold NaN or infinity"):
        see(model, ["first"], examples)


def test_hooks_and_mode_are_put_back(model: Mlp) -> None:
    model.train()
    gram_matrices(model, ["first"], tensors("x", (16,), 4, 0))
    assert model.training
    assert not model.first._forward_pre_hooks
