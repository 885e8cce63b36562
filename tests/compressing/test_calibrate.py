"""Oracles: all inputs at once by hand, the plain minimum and maximum, and every candidate range tried."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from autocompress.compressing.calibrate import (
    SHARES,
    Range,
    gram_matrices,
    input_peaks,
    input_ranges,
    least_error_range,
    output_ranges,
)
from autocompress.compressing.codes import steps_of
from autocompress.compressing.correct import mean_errors
from autocompress.compressing.quantize import quantize
from autocompress.errors import DataError
from autocompress.plan import LayerPlan, Plan, Quantize
from autocompress.tasks.task import Examples
from tests.tiny import Mlp, bert, cnn, mlp, table_of, task_of, tensors, texts


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


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"stride": 2, "padding": (0, 2)},
        {"dilation": (2, 1), "kernel_size": (2, 3)},
        {"padding": "same"},
        {"padding_mode": "reflect"},
        {"kernel_size": 1, "padding": 0},
    ],
    ids=str,
)
def test_gram_matrices_of_convolutions_give_the_squared_output(changes: dict[str, object]) -> None:
    """tr(W·G·Wᵀ) is the mean squared norm of the outputs, whatever stride, padding and dilation."""
    torch.manual_seed(0)
    settings = {"in_channels": 3, "out_channels": 5, "kernel_size": 3, "padding": 1, "bias": False, **changes}
    conv = nn.Conv2d(**settings)
    examples = tensors("input", (3, 9, 8), 20, 0)
    found = gram_matrices(nn.Sequential(conv), ["0"], examples, batch_size=8)["0"]
    columns = conv.weight[0].numel()
    assert (found.shape, found.dtype) == ((columns, columns), torch.float64)
    with torch.inference_mode():
        outputs = conv(examples.inputs["input"])
    matrix = conv.weight.detach().double().reshape(5, -1)
    expected = outputs.double().pow(2).sum(dim=1).mean()
    torch.testing.assert_close((matrix @ found @ matrix.T).trace(), expected, rtol=1e-5, atol=1e-8)


def test_gram_matrices_of_large_maps_are_a_sample_of_their_patches() -> None:
    conv = nn.Conv2d(1, 2, 3, padding=1)
    examples = tensors("input", (1, 40, 40), 32, 0)
    first, second = (gram_matrices(nn.Sequential(conv), ["0"], examples, batch_size=16)["0"] for _ in range(2))
    assert torch.equal(first, second)
    whole = nn.functional.unfold(examples.inputs["input"], 3, padding=1).permute(0, 2, 1).reshape(-1, 9).double()
    torch.testing.assert_close(first, whole.T @ whole / len(whole), rtol=0, atol=0.06)


def test_grouped_convolutions_and_embeddings_have_no_gram_matrix() -> None:
    model, examples = cnn(), tensors("pixel_values", (1, 8, 8), 4, 0)
    assert set(gram_matrices(model, ["first", "second", "head"], examples)) == {"first", "head"}
    numbers = Examples({"input": torch.zeros(3, 2, dtype=torch.int64)}, torch.zeros(3, dtype=torch.int64))
    assert gram_matrices(nn.Sequential(nn.Embedding(4, 4)), ["0"], numbers) == {}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_images_that_are_no_numbers_are_refused(value: float) -> None:
    examples = tensors("pixel_values", (1, 8, 8), 4, 0)
    examples.inputs["pixel_values"][1, 0, 4, 4] = value
    with pytest.raises(DataError, match="layer first: its calibration inputs hold NaN or infinity"):
        gram_matrices(cnn(), ["first"], examples)


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


def test_ranges_of_outputs_are_of_the_part_that_is_read(model: Mlp) -> None:
    examples = tensors("x", (16,), 30, 0)
    outputs = model.first(examples.inputs["x"]).detach()
    found = output_ranges(model, {"first": False}, examples, "min-max", batch_size=7)["first"]
    assert found.low == pytest.approx(float(outputs.min()))
    assert found.high == pytest.approx(float(outputs.max()))
    assert output_ranges(model, {"first": True}, examples, "min-max", batch_size=7)["first"] == Range(0.0, found.high)


def test_outputs_that_are_no_numbers_are_refused(model: Mlp) -> None:
    model.first.weight.data[0, 0] = float("nan")
    with pytest.raises(DataError, match="layer first: its calibration outputs hold NaN or infinity"):
        output_ranges(model, {"first": True}, tensors("x", (16,), 4, 0))


def test_min_max_is_percentile_without_tail(model: Mlp) -> None:
    examples = tensors("x", (16,), 30, 0)
    assert input_ranges(model, ["second"], examples, "min-max") == input_ranges(model, ["second"], examples, tail=0)


def rounding_error(values: torch.Tensor, span: Range, levels: int) -> float:
    return float((steps_of(span, levels).round(values) - values).pow(2).mean())


@pytest.mark.parametrize("levels", [256, 16])
@pytest.mark.parametrize("outlier", [3.0, 40.0])
def test_mse_ranges_err_least_on_the_values_themselves(outlier: float, levels: int) -> None:
    """Oracle: every candidate tried on all values."""
    model, values = mlp(), torch.randn(400, 16, generator=torch.Generator().manual_seed(0))
    values[7, 7] = outlier
    examples = Examples({"x": values}, torch.zeros(400, dtype=torch.int64))
    found = rounding_error(values, input_ranges(model, ["first"], examples, "mse", levels=levels)["first"], levels)
    low, high = float(values.min()), float(values.max())
    tried = [rounding_error(values, Range(low * i / SHARES, high * i / SHARES), levels) for i in range(1, SHARES + 1)]
    assert found <= min(tried) * 1.02  # the histogram's bins are coarse
    assert found < tried[-1] or outlier == 3.0


def test_mse_of_a_histogram_by_hand() -> None:
    """Two values on two levels: the range that holds the many, not the one far away."""
    counts = torch.zeros(100)
    counts[9], counts[99] = 1000.0, 1.0  # 0.095 and 0.995 of [0, 1]
    found = least_error_range(counts, Range(0.0, 1.0), 2)
    assert found.high == pytest.approx(0.095, abs=0.011)
    assert least_error_range(counts, Range(0.0, 0.0), 2) == Range(0.0, 0.0)


def test_one_wrong_value_is_seen_behind_the_tail(model: Mlp) -> None:
    values = torch.zeros(40, 16)
    values[2, 2] = float("inf")
    examples = Examples({"x": values}, torch.zeros(40, dtype=torch.int64))
    with pytest.raises(DataError, match="layer first"):
        input_ranges(model, ["first"], examples, tail=0.01)


def test_peaks_are_the_largest_sizes_of_each_channel() -> None:
    examples = tensors("pixel_values", (1, 8, 8), 12, 0)
    model = cnn()
    hidden = torch.relu(model.first(examples.inputs["pixel_values"])).detach()
    found = input_peaks(model, ["second", "head"], examples, batch_size=5)
    torch.testing.assert_close(found["second"], hidden.abs().amax(dim=(0, 2, 3)))
    assert found["head"].shape == (12,)


def padded(examples: Examples, length: int) -> Examples:
    """The same texts as tensors of one length, as tokenizers with ``padding="max_length"`` give them."""
    columns = {
        name: torch.stack(
            [nn.functional.pad(row, (0, length - len(row)), value=value) for row in examples.inputs[name]]
        )
        for name, value in (("input_ids", 1), ("attention_mask", 0))
    }
    return Examples(columns, examples.targets)


@pytest.mark.parametrize("calibrator", ["min-max", "mse"])
def test_padding_tells_nothing(calibrator: str) -> None:
    """Oracle: the same texts one by one, of which none is padded."""
    model, short = bert(), texts(12, 0)
    long, names = padded(short, 30), [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    names = [name for name in names if "encoder" in name]
    ours, theirs = gram_matrices(model, names, long, 4), gram_matrices(model, names, short, 1)
    for name in names:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-5)
    ranges = (input_ranges(model, names, given, calibrator, batch_size=size) for given, size in ((long, 4), (short, 1)))
    for one, other in zip(*(found.values() for found in ranges), strict=True):
        assert (one.low, one.high) == pytest.approx((other.low, other.high), rel=1e-3)
    peaks = input_peaks(model, names, long, 4), input_peaks(model, names, short, 1)
    for name in names:
        torch.testing.assert_close(peaks[0][name], peaks[1][name], rtol=1e-4, atol=1e-5)


def test_padding_is_in_no_bias_correction() -> None:
    model, short = bert(), texts(12, 0)
    name = "bert.encoder.layer.0.output.dense"
    made = quantize(model, Plan(layers={name: LayerPlan(quantize=Quantize("int8"))}), table_of(task_of(model)), short)
    ours, theirs = (
        mean_errors(model, made.codes, given, size)[name] for given, size in ((padded(short, 30), 4), (short, 1))
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-6)
