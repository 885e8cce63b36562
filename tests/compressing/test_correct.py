"""Oracles: the mean error itself, before and after."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from autocompress.compressing.correct import corrected, mean_errors
from autocompress.compressing.quantize import quantize, simulate
from tests.tiny import bert, cnn, mlp, quantized, table_of, task_of


def outputs_of(model: nn.Module, name: str, inputs: dict[str, Tensor]) -> Tensor:
    """Outputs ``(…, channels)`` of one layer."""
    seen: list[Tensor] = []
    module = model.get_submodule(name)
    handle = module.register_forward_hook(lambda _m, _args, output: seen.append(output))
    with torch.no_grad():
        model(**inputs)
    handle.remove()
    return seen[0].transpose(1, -1) if isinstance(module, nn.Conv2d) else seen[0]


CASES: list[tuple[Callable[[], nn.Module], str, str]] = [
    (mlp, "first", "int8"),
    (mlp, "first", "int8-dynamic"),
    (mlp, "second", "int4-weights"),
    (cnn, "first", "int8"),
    (cnn, "second", "int8"),  # grouped, without bias
    (bert, "bert.encoder.layer.0.intermediate.dense", "int8"),
]


@pytest.mark.parametrize(("make", "name", "precision"), CASES)
def test_the_mean_output_error_becomes_zero(make: Callable[[], nn.Module], name: str, precision: str) -> None:
    """Only this layer is rounded, and its output is not."""
    lengths = (9,)  # of equal length, so that one batch is all batches
    task = task_of(make(), lengths)
    inputs = task.calibration().batch(range(24))[0]
    dense = outputs_of(task.model, name, inputs)
    errors = []
    for correction in (False, True):
        plan = quantized(precision, name, weight_bits=3, bias_correction=correction)
        made = quantize(task.model, plan, table_of(task), task.calibration())
        codes = {name: replace(made.codes[name], output=None)}
        off = outputs_of(simulate(made.model, codes), name, inputs) - dense
        errors.append(off.reshape(-1, off.shape[-1]).mean(dim=0).abs().max())
    assert errors[0] > 1e-3
    if isinstance(task.model.get_submodule(name), nn.Conv2d):  # whose bias lies on the accumulator's grid
        assert errors[1] < float(made.codes[name].scales.max()) * made.codes[name].input.scale
    else:
        assert errors[1] < (1e-5 if precision != "int8-dynamic" else 1e-2)  # dynamic ranges follow the batch


def test_a_missing_bias_is_made_and_the_model_is_left_alone() -> None:
    task = task_of(cnn())
    plan = quantized("int8", "second", weight_bits=2, bias_correction=True)
    made = quantize(task.model, plan, table_of(task), task.calibration())
    assert task.model.second.bias is None
    assert made.model.second.bias.shape == (12,)


def test_errors_are_those_of_each_layer_by_itself() -> None:
    """By hand: the second layer's inputs are the float model's."""
    task = task_of(mlp())
    made = quantize(task.model, quantized("int4-weights", "first", "second"), table_of(task), task.calibration())
    hidden = torch.relu(task.model.first(task.calibration().inputs["x"]))
    expected = (hidden @ (task.model.second.weight - made.codes["second"].weight()).T).mean(dim=0)
    found = mean_errors(task.model, made.codes, task.calibration(), batch_size=7)["second"]
    torch.testing.assert_close(found, expected.detach(), rtol=1e-4, atol=1e-6)


def test_nothing_to_correct_needs_no_copy() -> None:
    task = task_of(mlp())
    assert corrected(task.model, {}, task.calibration()) is task.model
