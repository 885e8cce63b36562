"""The integers of one layer, and the quantizer of one activation, as records. No model, no calibration."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from autocompress.compressing.calibrate import Range
from autocompress.compressing.gptq import gptq
from autocompress.compressing.grid import Grid, fit_grid
from autocompress.plan import INT4_GROUP, Precision, Quantize


@dataclass(frozen=True)
class Steps:
    """An unsigned activation quantizer: ``q = clip(round_half_even(x / scale) + zero, 0, levels - 1)``.

    Attributes:
        scale: float32 value of one step, above 0.
        zero: the integer that stands for 0.
        levels: 256, or fewer in the same 8 bits.
    """

    scale: float
    zero: int
    levels: int = 256

    @property
    def low(self) -> float:
        """Least value that is not clipped."""
        return -self.zero * self.scale

    @property
    def high(self) -> float:
        """Greatest value that is not clipped."""
        return (self.levels - 1 - self.zero) * self.scale

    def round(self, value: Tensor) -> Tensor:
        """Values of any shape sent through the integers and back."""
        codes = torch.clamp(torch.round(value / self.scale) + self.zero, 0, self.levels - 1)
        return (codes - self.zero) * self.scale


def steps_of(span: Range, levels: int = 256) -> Steps:
    """The quantizer of a range that holds 0."""
    scale = float(torch.tensor((span.high - span.low) / (levels - 1), dtype=torch.float32)) or 1.0
    return Steps(scale, max(0, min(levels - 1, round(-span.low / scale))), levels)


def steps_of_values(value: Tensor) -> Steps:
    """The quantizer that ONNX DynamicQuantizeLinear makes of a tensor."""
    return steps_of(Range(min(0.0, float(value.min())), max(0.0, float(value.max()))))


#: 8-bit floats with 4 bits of exponent and 3 of mantissa (Micikevicius et al. 2022), and the greatest of them.
FP8 = torch.float8_e4m3fn
FP8_MOST = 448.0


def fp8_scale(value: Tensor) -> Tensor:
    """What one 8-bit float of 1 stands for, so that the greatest magnitude becomes the greatest of them; no axes."""
    most = value.abs().amax() / FP8_MOST
    return torch.where(most == 0, torch.ones_like(most), most)


def round_fp8(value: Tensor) -> Tensor:
    """Values of any shape sent through 8-bit floats and back, in the range that they have."""
    scale = fp8_scale(value)
    return (value / scale).to(FP8).to(torch.float32) * scale


@dataclass(frozen=True)
class Codes:
    """The integers of one layer.

    Attributes:
        precision: what they are.
        values: int8, shaped like the weight; of "int4-weights" in [-8, 7]. Of "fp16" the float16 weight itself, of
            "fp8" 8-bit floats (`FP8`).
        scales: float32; per output channel or embedding row ``(out,)``, for the whole tensor ``(1,)`` (always of
            "fp8"), or per `INT4_GROUP` inputs ``(out, groups)``. Empty for "fp16".
        zeros: zero points, int8, shaped like the scales; None where all are 0.
        input: the input's quantizer, of static "int8" only.
        output: the output's, of static "int8" convolutions only.
    """

    precision: Precision
    values: Tensor
    scales: Tensor
    zeros: Tensor | None = None
    input: Steps | None = None
    output: Steps | None = None

    @property
    def rounds_input(self) -> bool:
        """Whether the layer computes with rounded inputs."""
        return self.precision in ("int8", "int8-dynamic", "fp8")

    def round_input(self, value: Tensor) -> Tensor:
        """An input sent through the kernel's numbers and back; without steps, by its own range."""
        if self.precision == "fp8":
            return round_fp8(value)
        return (self.input or steps_of_values(value)).round(value)

    def weight(self) -> Tensor:
        """The float32 weight that the integers stand for, in their shape."""
        if self.precision == "fp16":
            return self.values.to(torch.float32)
        matrix = self.values.reshape(self.values.shape[0], -1).to(torch.float32)
        if self.zeros is not None:
            matrix = matrix - _wide(self.zeros, matrix.shape[1])
        return (matrix * _wide(self.scales, matrix.shape[1])).reshape(self.values.shape)

    def accumulated(self, bias: Tensor) -> Tensor:
        """A bias ``(out,)`` as integer convolutions add it: on the grid of the accumulator, coarse for few levels."""
        if self.input is None:
            return bias
        scales = self.scales * self.input.scale
        return torch.round(bias / scales) * scales


def _wide(scales: Tensor, columns: int) -> Tensor:
    """What each weight has, from one per channel, tensor or group; broadcasts to ``(out, columns)``."""
    if scales.dim() == 1:
        return scales[:, None]
    return scales.repeat_interleave(INT4_GROUP, dim=1)[:, :columns]


def quantize_weight(
    weight: Tensor, settings: Quantize, least_scales: Tensor | None = None, gram: Tensor | None = None
) -> Codes:
    """Codes of a weight ``(out, in, …)``, without its activations.

    Symmetric 8-bit codes leave out the least integer; at fewer than 8 bits the scale is the one of several candidates
    that errs least.

    Args:
        weight: finite, float32.
        settings: bits, granularity, symmetry and rounding.
        least_scales: lower bounds ``(out,)`` of 8-bit scales.
        gram: second moment of the layer's inputs ``(in·kh·kw, in·kh·kw)``, for rounding "gptq".

    Raises:
        ValueError: rounding "gptq" has no second moment.
    """
    if settings.rounding == "gptq" and gram is None:
        raise ValueError("rounding 'gptq' needs the second moment of the layer's inputs")
    if settings.precision == "fp16":
        return Codes("fp16", weight.to(torch.float16), torch.zeros(0))
    if settings.precision == "fp8":
        scale = fp8_scale(weight)
        return Codes("fp8", (weight / scale).to(FP8), scale[None])
    matrix = weight.reshape(weight.shape[0], -1)
    blocks = _blocks(matrix, settings)
    least = _bound(least_scales, settings)
    fitted = fit_grid(blocks, settings.bits, settings.symmetric, settings.precision != "int4-weights", least)
    scales, zeros = fitted.scales[..., 0], fitted.zeros[..., 0]
    if settings.precision != "int4-weights":
        scales, zeros = scales[:, 0], zeros[:, 0]
    grid = Grid(_wide(scales, matrix.shape[1]), _wide(zeros, matrix.shape[1]), fitted.low, fitted.high)
    codes = grid.codes(matrix) if gram is None else gptq(matrix, gram, grid)
    kept_zeros = None if settings.symmetric else zeros.to(torch.int8)
    values = codes.to(torch.int8).reshape(weight.shape).contiguous()
    return Codes(settings.precision, values, scales.contiguous(), kept_zeros)


def _blocks(matrix: Tensor, settings: Quantize) -> Tensor:
    """The weights ``(rows, groups, width)`` by what shares a scale; the last group filled up with zeros."""
    if settings.precision == "int4-weights":
        groups = math.ceil(matrix.shape[1] / INT4_GROUP)
        padded = torch.nn.functional.pad(matrix, (0, groups * INT4_GROUP - matrix.shape[1]))
        return padded.reshape(len(matrix), groups, INT4_GROUP)
    return matrix.reshape(1, 1, -1) if settings.granularity == "tensor" else matrix[:, None, :]


def _bound(least_scales: Tensor | None, settings: Quantize) -> Tensor | None:
    if least_scales is None:
        return None
    return (least_scales.max()[None] if settings.granularity == "tensor" else least_scales)[:, None]
