"""Oracles: the scale formulas, grids that survive exactly, and ONNX's own operators on the same floats."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import helper
from torch import Tensor, nn

from autocompress.compress.calibrate import Range, input_ranges
from autocompress.compress.quantize import (
    INT4_GROUP,
    Codes,
    _RoundInput,
    activation_quantizer,
    quantize,
    quantize_weight,
    simulate,
)
from autocompress.compress.shape import shape
from autocompress.errors import ModelError
from autocompress.plan import Factorize, LayerPlan, Plan, Prune, Quantize
from tests.tiny import bank_of, bert, cnn, mlp, quantized, run, task_of

EIGHT_BITS = ["int8", "int8-dynamic", "int8-weights"]


def onnx_run(operator: str, inputs: dict[str, NDArray], outputs: list[str]) -> list[NDArray]:
    """The outputs of a model that is one ONNX operator."""
    kinds = {np.dtype("float32"): onnx.TensorProto.FLOAT, np.dtype("uint8"): onnx.TensorProto.UINT8}
    graph = helper.make_graph(
        [helper.make_node(operator, list(inputs), outputs)],
        "one",
        [helper.make_tensor_value_info(k, kinds[v.dtype], v.shape) for k, v in inputs.items()],
        [helper.make_empty_tensor_value_info(name) for name in outputs],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return onnxruntime.InferenceSession(model.SerializeToString()).run(None, inputs)


def values(seed: int, *size: int) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("precision", EIGHT_BITS)
def test_a_grid_of_eight_bits_survives_exactly(precision: str) -> None:
    codes = torch.randint(-127, 128, (6, 20), generator=torch.Generator().manual_seed(0))
    codes[:, 0] = 127
    weight = codes * 2.0 ** torch.arange(-8, -2)[:, None]
    made = quantize_weight(weight, precision)
    assert torch.equal(made.values, codes.to(torch.int8))
    assert torch.equal(made.weight(), weight)


@pytest.mark.parametrize("columns", [32, 64, 40, 7])
def test_a_grid_of_four_bits_survives_exactly(columns: int) -> None:
    codes = torch.randint(-7, 8, (6, columns), generator=torch.Generator().manual_seed(0))
    codes[:, ::INT4_GROUP] = 7
    weight = codes * 2.0 ** torch.arange(-8, -2)[:, None]
    made = quantize_weight(weight, "int4-weights")
    assert made.scales.shape == (6, -(-columns // INT4_GROUP))
    assert torch.equal(made.weight(), weight)


def test_scales_are_the_largest_of_each_channel_over_127() -> None:
    weight = values(0, 5, 3, 2, 2)  # a convolution
    made = quantize_weight(weight, "int8")
    assert torch.equal(made.scales, weight.abs().amax(dim=(1, 2, 3)) / 127)
    assert made.values.shape == weight.shape
    assert ((made.weight() - weight).abs() <= made.scales[:, None, None, None] / 2 * 1.0001).all()


def test_codes_are_symmetric_and_never_minus_128() -> None:
    made = quantize_weight(-values(0, 4, 50).abs(), "int8")
    assert int(made.values.min()) == -127


@pytest.mark.parametrize("precision", [*EIGHT_BITS, "int4-weights"])
def test_a_row_of_zeros_gives_zeros(precision: str) -> None:
    weight = values(0, 3, 32)
    weight[1] = 0
    made = quantize_weight(weight, precision)
    assert torch.isfinite(made.weight()).all()
    assert not made.weight()[1].any()


@pytest.mark.parametrize("seed", range(3))
def test_four_bits_err_no_more_than_plain_rounding(seed: int) -> None:
    weight = values(seed, 8, 64)
    blocks = weight.reshape(8, 2, INT4_GROUP)
    scales = blocks.abs().amax(dim=2, keepdim=True) / 7
    plain = (torch.round(blocks / scales) * scales - blocks).pow(2).sum(dim=2)
    ours = (quantize_weight(weight, "int4-weights").weight() - weight).reshape(8, 2, INT4_GROUP).pow(2).sum(dim=2)
    assert (ours <= plain * (1 + 1e-6)).all()
    assert (ours < plain).any()


def test_four_bit_codes_lie_in_their_range() -> None:
    made = quantize_weight(values(0, 8, 64), "int4-weights").values
    assert made.dtype == torch.int8
    assert int(made.min()) >= -8
    assert int(made.max()) <= 7


def test_activation_quantizer_by_hand() -> None:
    assert activation_quantizer(Range(-1.0, 1.55)) == (pytest.approx(0.01), 100)
    assert activation_quantizer(Range(0.0, 255.0)) == (1.0, 0)
    assert activation_quantizer(Range(-2.55, 0.0)) == (pytest.approx(0.01), 255)
    assert activation_quantizer(Range(0.0, 0.0)) == (1.0, 0)


@pytest.mark.parametrize("span", [Range(-1.7, 3.1), Range(0.0, 0.9), Range(-4.0, 0.0)], ids=["both", "up", "down"])
def test_the_static_input_rounding_is_onnx_quantizelinear(span: Range) -> None:
    value = values(0, 40, 30) * 2  # some of it clipped
    scale, zero = activation_quantizer(span)
    value[0] = (torch.arange(30) - 15.5) * scale  # halves, where rounding modes differ
    arrays = {"x": value.numpy(), "scale": np.float32(scale), "zero": np.uint8(zero)}
    arrays = {name: np.asarray(array) for name, array in arrays.items()}
    (codes,) = onnx_run("QuantizeLinear", arrays, ["q"])
    (expected,) = onnx_run("DequantizeLinear", {"q": codes, "scale": arrays["scale"], "zero": arrays["zero"]}, ["y"])
    (found,) = _RoundInput(scale, zero)(nn.Identity(), (value,))
    np.testing.assert_array_equal(found.numpy(), expected)


@pytest.mark.parametrize("offset", [0.0, 5.0, -5.0])
def test_the_dynamic_input_rounding_is_onnx_dynamicquantizelinear(offset: float) -> None:
    value = values(1, 20, 30) + offset
    codes, scale, zero = onnx_run("DynamicQuantizeLinear", {"x": value.numpy()}, ["q", "scale", "zero"])
    (found,) = _RoundInput(None, None)(nn.Identity(), (value,))
    expected = (codes.astype(np.float32) - float(zero)) * scale
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-6)


def test_static_codes_carry_the_calibrated_range() -> None:
    task = task_of(mlp())
    made = quantize(task.model, quantized("int8", "first", "second"), task.calibration())
    ranges = input_ranges(task.model, ["first", "second"], task.calibration())
    for name, codes in made.items():
        assert (codes.input_scale, codes.input_zero) == activation_quantizer(ranges[name])


@pytest.mark.parametrize("precision", ["int8-dynamic", "int4-weights"])
def test_only_static_codes_carry_a_range(precision: str) -> None:
    task = task_of(mlp())
    codes = quantize(task.model, quantized(precision, "first"), task.calibration())["first"]
    assert (codes.input_scale, codes.input_zero) == (None, None)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("precision", ["int8", "int8-dynamic", "int4-weights"])
def test_a_weight_without_integers_is_refused_by_name(precision: str, value: float) -> None:
    model = mlp()
    model.second.weight.data[1, 2] = value
    task = task_of(model)
    with pytest.raises(ModelError, match="layer second: its weight holds NaN or infinity"):
        quantize(model, quantized(precision, "first", "second"), task.calibration())


def test_factors_take_the_precision_of_their_layer_and_removed_layers_none(tmp_path: object) -> None:
    task = task_of(bert())
    bank = bank_of(task, tmp_path)
    block = "bert.encoder.layer.1"
    pooler = LayerPlan(Factorize(8), Quantize("int8"))
    plan = Plan({block: Prune(0)}, {"bert.pooler.dense": pooler})
    small = shape(task.model, plan, bank.table, bank)
    codes = quantize(small, plan, task.calibration())
    assert {name: made.precision for name, made in codes.items()} == {
        "bert.pooler.dense.0": "int8",
        "bert.pooler.dense.1": "int8",
    }


def test_an_empty_plan_needs_no_integers() -> None:
    task = task_of(mlp())
    assert quantize(task.model, Plan(), task.calibration()) == {}


def test_simulate_copies_and_puts_the_codes_weights_in() -> None:
    task = task_of(mlp())
    codes = quantize(task.model, quantized("int4-weights", "first"), task.calibration())
    before = task.model.first.weight.clone()
    twin = simulate(task.model, codes)
    assert torch.equal(task.model.first.weight, before)
    assert torch.equal(twin.first.weight, codes["first"].weight())
    assert torch.equal(twin.second.weight, task.model.second.weight)


def test_simulate_by_hand() -> None:
    """One linear of static int8: dequantized weight times the input on its grid."""
    codes = Codes("int8", torch.tensor([[10, -20]], dtype=torch.int8), torch.tensor([0.5]), 0.25, 8)
    twin = simulate(nn.Sequential(nn.Linear(2, 1, bias=False)), {"0": codes})
    inputs = torch.tensor([[0.3, 1000.0]])  # on the grid: 0.25, and clipped to (255 - 8) / 4
    assert float(twin(inputs)) == 0.25 * 5.0 - 61.75 * 10.0


def test_integers_stay_near_the_float_model() -> None:
    """Sanity of the whole verb: eight bits of a small network change little."""
    task = task_of(cnn())
    inputs = task.validation.batch(range(12))[0]
    dense = run(task.model, inputs)
    int8 = quantize(task.model, quantized("int8", "first", "second", "head"), task.calibration())
    assert float((run(simulate(task.model, int8), inputs) - dense).norm() / dense.norm()) < 0.05
