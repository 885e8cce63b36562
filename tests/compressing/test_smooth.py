"""Oracles: the formula by hand, the unchanged float model, and planted outliers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from autocompress.compressing.quantize import quantize, simulate
from autocompress.compressing.smooth import smoothed, smoothing, smoothing_scales, weight_peaks
from autocompress.plan import Plan, Quantize
from autocompress.tasks.task import Examples, Task
from tests.tiny import Cnn, bert, cnn, mlp, quantized, run, stirred, table_of, task_of, tensors, vit

VIT_NORM = "vit.layers.0.layernorm_before"


def test_scales_by_hand() -> None:
    inputs, weights = torch.tensor([4.0, 9.0, 0.0, 1.0]), torch.tensor([1.0, 4.0, 1.0, 0.0])
    assert smoothing_scales(inputs, weights, 0.5).tolist() == [2.0, 1.5, 1.0, 1.0]
    assert smoothing_scales(inputs, weights, 1.0).tolist() == [4.0, 9.0, 1.0, 1.0]
    assert smoothing_scales(inputs, weights, 0.0).tolist() == [1.0, 0.25, 1.0, 1.0]


def test_weight_peaks_of_a_grouped_convolution() -> None:
    module = nn.Conv2d(4, 6, 3, groups=2)
    weight = module.weight.detach()
    expected = [float(weight[3 * (c // 2) : 3 * (c // 2) + 3, c % 2].abs().max()) for c in range(4)]
    assert weight_peaks(module).tolist() == pytest.approx(expected)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("make", [mlp, cnn, bert, vit], ids=["mlp", "cnn", "bert", "vit"])
def test_the_float_model_computes_the_same(make: object, alpha: float) -> None:
    task = task_of(make())
    table = table_of(task)
    wanted = {la.name: Quantize("int8", smooth=alpha) for la in table.layers if la.kind != "embedding"}
    scales = smoothing(task.model, wanted, task.calibration())
    made = smoothed(task.model, scales, table.norms)
    inputs = task.test.batch(range(10))[0]
    assert not all(torch.equal(a, b) for a, b in zip(made.parameters(), task.model.parameters(), strict=True))
    torch.testing.assert_close(run(made, inputs), run(task.model, inputs), rtol=1e-5, atol=1e-5)


def attention(task: Task) -> list[str]:
    return [
        name for name in (la.name for la in table_of(task).layers) if ".0.attention." in name and "o_proj" not in name
    ]


def test_layers_that_read_one_tensor_share_their_scales() -> None:
    task = task_of(bert())
    names = [f"bert.encoder.layer.0.attention.self.{part}" for part in ("query", "key", "value")]
    scales = smoothing(task.model, dict.fromkeys(names, Quantize("int8", smooth=0.5)), task.calibration())
    assert torch.equal(scales[names[0]], scales[names[1]])
    assert torch.equal(scales[names[0]], scales[names[2]])


def test_scales_go_into_the_norm_that_only_smoothed_layers_read() -> None:
    task = task_of(vit())
    names = attention(task)
    assert len(names) == 3
    norms = dict.fromkeys(names, VIT_NORM)
    scales = smoothing(task.model, dict.fromkeys(names, Quantize("int8", smooth=0.5)), task.calibration())
    made = smoothed(task.model, scales, norms)
    norm, before = made.get_submodule(VIT_NORM), task.model.get_submodule(VIT_NORM)
    torch.testing.assert_close(norm.weight * scales[names[0]], before.weight)
    torch.testing.assert_close(norm.bias * scales[names[0]], before.bias)
    assert not any(made.get_submodule(name)._forward_pre_hooks for name in names)
    inputs = task.test.batch(range(10))[0]
    torch.testing.assert_close(run(made, inputs), run(task.model, inputs), rtol=1e-5, atol=1e-5)


def test_a_norm_that_others_read_too_stays_as_it_is() -> None:
    task = task_of(vit())
    names = attention(task)
    wanted = {name: Quantize("int8", smooth=0.5 if name == names[0] else None) for name in names}
    made = smoothed(task.model, smoothing(task.model, wanted, task.calibration()), dict.fromkeys(names, VIT_NORM))
    assert torch.equal(made.get_submodule(VIT_NORM).weight, task.model.get_submodule(VIT_NORM).weight)
    assert made.get_submodule(names[0])._forward_pre_hooks
    inputs = task.test.batch(range(10))[0]
    torch.testing.assert_close(run(made, inputs), run(task.model, inputs), rtol=1e-5, atol=1e-5)


class Gemma2RMSNorm(nn.Module):
    """Multiplies by 1 + weight, so that no scale can go into the weight alone."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(16))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True)) * (1 + self.weight)


@pytest.mark.parametrize(
    "norm", [Gemma2RMSNorm(), nn.LayerNorm(16, elementwise_affine=False)], ids=["plus-one", "bare"]
)
def test_norms_of_other_forms_are_not_folded_into(norm: nn.Module) -> None:
    model = nn.Sequential(norm, stirred(nn.Linear(16, 4)))
    made = smoothed(model, {"1": torch.rand(16) + 0.5}, {"1": "0"})
    assert made[1]._forward_pre_hooks
    value = torch.randn(6, 16)
    torch.testing.assert_close(made(value), model(value), rtol=1e-5, atol=1e-5)


def with_outliers(count: int = 64) -> Examples:
    examples = tensors("x", (16,), count, 0)
    examples.inputs["x"][:, 3] *= 100
    return examples


@pytest.mark.parametrize("precision", ["int8", "int8-dynamic"])
def test_planted_outliers_cost_less(precision: str) -> None:
    examples = with_outliers()
    model = mlp()
    model.first.weight.data[:, 3] /= 100
    task = replace(task_of(model), train=examples, validation=examples, test=examples)
    inputs = examples.batch(range(64))[0]
    dense, found = run(model, inputs), []
    for smooth in (None, 0.5):
        made = quantize(model, quantized(precision, "first", smooth=smooth), table_of(task), examples)
        found.append(float((run(simulate(made.model, made.codes), inputs) - dense).norm()))
    assert found[1] < found[0] / 4


def test_nothing_to_smooth_needs_no_copy() -> None:
    task = task_of(mlp())
    assert smoothing(task.model, {"first": Quantize("int8")}, task.calibration()) == {}
    assert smoothed(task.model, {}, {}) is task.model
    assert quantize(task.model, Plan(), table_of(task), task.calibration()).model is task.model


def test_convolutions_divide_each_input_channel() -> None:
    model = Cnn().eval()
    scale = torch.rand(8) + 0.5
    made = smoothed(model, {"second": scale}, {})
    (hook,) = made.second._forward_pre_hooks.values()
    value = torch.randn(2, 8, 4, 4)
    (divided,) = hook(made.second, (value,))
    torch.testing.assert_close(divided, value / scale[:, None, None])
    torch.testing.assert_close(made.second(value), model.second(value), rtol=1e-5, atol=1e-5)
