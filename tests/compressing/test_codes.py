"""Oracles: grids that survive exactly, the scale formulas, and ONNX's own operators on the same floats."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import helper
from torch import Tensor

from autocompress.compressing.calibrate import Range
from autocompress.compressing.codes import Codes, Steps, quantize_weight, steps_of, steps_of_values
from autocompress.plan import INT4_GROUP, Quantize

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
    made = quantize_weight(weight, Quantize(precision))
    assert torch.equal(made.values, codes.to(torch.int8))
    assert torch.equal(made.weight(), weight)


@pytest.mark.parametrize("columns", [32, 64, 40, 7])
def test_a_grid_of_four_bits_survives_exactly(columns: int) -> None:
    codes = torch.randint(-7, 8, (6, columns), generator=torch.Generator().manual_seed(0))
    codes[:, ::INT4_GROUP] = 7
    weight = codes * 2.0 ** torch.arange(-8, -2)[:, None]
    made = quantize_weight(weight, Quantize("int4-weights"))
    assert made.scales.shape == (6, -(-columns // INT4_GROUP))
    assert torch.equal(made.weight(), weight)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("granularity", ["channel", "tensor"])
@pytest.mark.parametrize("bits", [2, 5, 8])
def test_a_convolution_errs_at_most_half_a_step_where_nothing_is_clipped(
    bits: int, granularity: str, symmetric: bool
) -> None:
    weight = values(0, 5, 3, 2, 2)
    made = quantize_weight(weight, Quantize("int8", bits, granularity=granularity, symmetric=symmetric))
    assert made.values.shape == weight.shape
    assert made.scales.shape == ((5,) if granularity == "channel" else (1,))
    assert (made.zeros is None) == symmetric
    least = -(2 ** (bits - 1)) + symmetric  # symmetric codes leave out the least
    inside = (made.values > least) & (made.values < 2 ** (bits - 1) - 1)
    off = (made.weight() - weight).abs() / made.scales.reshape(-1, 1, 1, 1)
    assert (off[inside] <= 0.5 + 1e-4).all()
    assert int(made.values.min()) >= least
    assert int(made.values.max()) <= 2 ** (bits - 1) - 1


def test_scales_are_the_largest_of_each_channel_over_127() -> None:
    weight = values(0, 5, 3, 2, 2)
    made = quantize_weight(weight, Quantize("int8"))
    assert torch.equal(made.scales, weight.abs().amax(dim=(1, 2, 3)) / 127)
    one = quantize_weight(weight, Quantize("int8", granularity="tensor"))
    assert torch.equal(one.scales, weight.abs().max()[None] / 127)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("precision", [*EIGHT_BITS, "int4-weights"])
def test_a_row_of_zeros_gives_zeros(precision: str, symmetric: bool) -> None:
    weight = values(0, 3, 32)
    weight[1] = 0
    made = quantize_weight(weight, Quantize(precision, symmetric=symmetric))
    assert torch.isfinite(made.weight()).all()
    assert not made.weight()[1].any()


@pytest.mark.parametrize("seed", range(3))
def test_four_bits_err_no_more_than_plain_rounding(seed: int) -> None:
    weight = values(seed, 8, 64)
    blocks = weight.reshape(8, 2, INT4_GROUP)
    scales = blocks.abs().amax(dim=2, keepdim=True) / 7
    plain = (torch.round(blocks / scales) * scales - blocks).pow(2).sum(dim=2)
    made = quantize_weight(weight, Quantize("int4-weights"))
    ours = (made.weight() - weight).reshape(8, 2, INT4_GROUP).pow(2).sum(dim=2)
    assert (ours <= plain * (1 + 1e-6)).all()
    assert (ours < plain).any()


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_four_bit_codes_lie_in_their_range(bits: int) -> None:
    made = quantize_weight(values(0, 8, 64), Quantize("int4-weights", bits)).values
    assert made.dtype == torch.int8
    assert int(made.min()) >= -(2 ** (bits - 1))
    assert int(made.max()) <= 2 ** (bits - 1) - 1


def test_halves_are_the_weight_in_half_precision() -> None:
    weight = values(0, 4, 9)
    made = quantize_weight(weight, Quantize("fp16"))
    assert made.values.dtype == torch.float16
    assert torch.equal(made.weight(), weight.half().float())


def test_8_bit_floats_take_the_whole_range_and_keep_three_bits_after_the_first() -> None:
    weight = torch.cat([values(0, 4, 9).reshape(-1), torch.tensor([0.0])]).reshape(1, -1)
    made = quantize_weight(weight, Quantize("fp8"))
    assert made.values.dtype == torch.float8_e4m3fn
    assert float(made.values.float().abs().max()) == 448
    assert made.scales.tolist() == [pytest.approx(float(weight.abs().max()) / 448)]
    large = weight.abs() / made.scales >= 2.0**-6  # below, numbers are denormal
    off = (made.weight() - weight).abs()
    assert bool((off[large] <= weight.abs()[large] * 2.0**-4 * 1.001).all())
    assert bool((off[~large] <= made.scales * 2.0**-10 * 1.001).all())


def test_8_bit_floats_of_zeros_are_zeros() -> None:
    made = quantize_weight(torch.zeros(2, 3), Quantize("fp8"))
    assert made.weight().tolist() == [[0.0] * 3] * 2
    assert made.round_input(torch.zeros(1, 3)).tolist() == [[0.0] * 3]


def test_an_input_of_8_bit_floats_by_hand() -> None:
    """1.0 and 1.125 lie beside each other, so do 416 and 448."""
    made = Codes("fp8", torch.zeros(1, 1), torch.ones(1))
    found = made.round_input(torch.tensor([448.0, 1.06, 1.07, 431.0, 433.0, -0.3]))
    assert found.tolist() == [448.0, 1.0, 1.125, 416.0, 448.0, -0.3125]


def test_gptq_without_second_moment_is_refused() -> None:
    with pytest.raises(ValueError, match="rounding 'gptq' needs the second moment"):
        quantize_weight(values(0, 4, 9), Quantize("int8", rounding="gptq"))


def test_a_weight_from_codes_by_hand() -> None:
    made = Codes("int8", torch.tensor([[3, -1]], dtype=torch.int8), torch.tensor([0.5]), torch.tensor([1]))
    assert made.weight().tolist() == [[1.0, -1.0]]
    scales = torch.tensor([[0.5, 2.0]])
    wide = Codes("int4-weights", torch.full((1, INT4_GROUP + 1), 2, dtype=torch.int8), scales)
    assert wide.weight().tolist() == [[1.0] * INT4_GROUP + [4.0]]


def test_a_bias_on_the_accumulators_grid_by_hand() -> None:
    made = Codes("int8", torch.zeros(2, 1), torch.tensor([0.5, 2.0]), input=Steps(0.5, 0))
    assert made.accumulated(torch.tensor([0.3, 0.6])).tolist() == [0.25, 1.0]
    assert Codes("fp16", torch.zeros(2, 1), torch.zeros(0)).accumulated(torch.tensor([0.3])).tolist() == [
        pytest.approx(0.3)
    ]


def test_the_quantizer_of_a_range_by_hand() -> None:
    assert steps_of(Range(-1.0, 1.55)) == Steps(pytest.approx(0.01), 100)
    assert steps_of(Range(0.0, 255.0)) == Steps(1.0, 0)
    assert steps_of(Range(-2.55, 0.0)) == Steps(pytest.approx(0.01), 255)
    assert steps_of(Range(0.0, 0.0)) == Steps(1.0, 0)
    assert steps_of(Range(-5.0, 10.0), 16) == Steps(1.0, 5, 16)
    assert (steps_of(Range(-5.0, 10.0), 16).low, steps_of(Range(-5.0, 10.0), 16).high) == (-5.0, 10.0)


@pytest.mark.parametrize("levels", [256, 16])
@pytest.mark.parametrize("span", [Range(-1.7, 3.1), Range(0.0, 0.9), Range(-4.0, 0.0)], ids=["both", "up", "down"])
def test_static_rounding_is_onnx_quantizelinear(span: Range, levels: int) -> None:
    """Fewer levels: of the clipped input, as the file has it."""
    value = values(0, 40, 30) * 2  # some of it clipped
    steps = steps_of(span, levels)
    value[0] = (torch.arange(30) - 15.5) * steps.scale  # halves, where rounding modes differ
    given = value.numpy() if levels == 256 else np.clip(value.numpy(), np.float32(steps.low), np.float32(steps.high))
    scale, zero = np.asarray(np.float32(steps.scale)), np.asarray(np.uint8(steps.zero))
    (codes,) = onnx_run("QuantizeLinear", {"x": given, "scale": scale, "zero": zero}, ["q"])
    (expected,) = onnx_run("DequantizeLinear", {"q": codes, "scale": scale, "zero": zero}, ["y"])
    np.testing.assert_array_equal(steps.round(value).numpy(), expected)
    assert len(np.unique(codes)) <= levels


@pytest.mark.parametrize("offset", [0.0, 5.0, -5.0])
def test_dynamic_rounding_is_onnx_dynamicquantizelinear(offset: float) -> None:
    value = values(1, 20, 30) + offset
    codes, scale, zero = onnx_run("DynamicQuantizeLinear", {"x": value.numpy()}, ["q", "scale", "zero"])
    expected = (codes.astype(np.float32) - float(zero)) * scale
    np.testing.assert_allclose(steps_of_values(value).round(value).numpy(), expected, rtol=0, atol=1e-6)
