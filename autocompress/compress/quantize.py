"""Integers for weights and activations. The codes made here are, bit for bit, the ones in the exported file.

Formulas are ONNX QuantizeLinear's: ``q = clip(round_half_even(x / scale) + zero_point)``.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from autocompress.compress.calibrate import Range, input_ranges
from autocompress.errors import ModelError
from autocompress.plan import INT4_GROUP, Plan, Precision
from autocompress.tasks.task import Examples


@dataclass(frozen=True)
class Codes:
    """The integers of one layer.

    Attributes:
        precision: what they are.
        values: int8, shaped like the weight; int4 values lie in [-8, 7].
        scales: float32; per output channel or embedding row ``(out,)``, or per group ``(out, groups)``.
        input_scale, input_zero: uint8 activation quantizer, for static "int8" only.
    """

    precision: Precision
    values: Tensor
    scales: Tensor
    input_scale: float | None = None
    input_zero: int | None = None

    def weight(self) -> Tensor:
        """The float weight that the integers stand for, in their shape."""
        if self.precision == "int4-weights":
            wide = self.scales.repeat_interleave(INT4_GROUP, dim=1)[:, : self.values.shape[1]]
            return self.values.to(torch.float32) * wide
        shape = (-1, *[1] * (self.values.dim() - 1))
        return self.values.to(torch.float32) * self.scales.reshape(shape)


def quantize_weight(weight: Tensor, precision: Precision, least_scales: Tensor | None = None) -> Codes:
    """Symmetric codes: 8 bits per output channel (or embedding row), 4 bits per `INT4_GROUP` inputs.

    The 4-bit scale of a group is the one of 16 candidates that errs least. `least_scales` ``(out,)`` bounds the 8-bit
    scales from below.
    """
    if precision == "int4-weights":
        return _four_bit(weight)
    flat = weight.reshape(weight.shape[0], -1)
    scales = _safe(flat.abs().amax(dim=1) / 127)
    if least_scales is not None:
        scales = torch.maximum(scales, least_scales.to(torch.float32))
    values = torch.clamp(torch.round(flat / scales[:, None]), -127, 127)
    return Codes(precision, values.to(torch.int8).reshape(weight.shape), scales)


def _safe(scales: Tensor) -> Tensor:
    return torch.where(scales > 0, scales, torch.ones_like(scales)).to(torch.float32)


def _four_bit(weight: Tensor) -> Codes:
    rows, columns = weight.shape
    groups = -(-columns // INT4_GROUP)
    padded = torch.zeros(rows, groups * INT4_GROUP)
    padded[:, :columns] = weight
    blocks = padded.reshape(rows, groups, INT4_GROUP)
    peak = blocks.abs().amax(dim=2)
    best_error = torch.full_like(peak, torch.inf)
    best_scale = torch.ones_like(peak)
    for share in torch.linspace(0.7, 1.0, 16):
        scales = _safe(peak * share / 7)
        values = torch.clamp(torch.round(blocks / scales[..., None]), -8, 7)
        error = (values * scales[..., None] - blocks).pow(2).sum(dim=2)
        better = error < best_error
        best_error = torch.where(better, error, best_error)
        best_scale = torch.where(better, scales, best_scale)
    values = torch.clamp(torch.round(blocks / best_scale[..., None]), -8, 7)
    return Codes("int4-weights", values.reshape(rows, -1)[:, :columns].to(torch.int8).contiguous(), best_scale)


def activation_quantizer(span: Range) -> tuple[float, int]:
    """Scale and zero point of unsigned 8 bits for a range that holds 0."""
    scale = float(torch.tensor((span.high - span.low) / 255, dtype=torch.float32)) or 1.0
    return scale, max(0, min(255, round(-span.low / scale)))


def quantize(model: nn.Module, plan: Plan, calibration: Examples) -> dict[str, Codes]:
    """Codes of every layer that the plan quantizes, by module name in the (shaped) model.

    The factors ``x.0`` and ``x.1`` of a factorized layer x both take its precision. Static ranges come from
    running the model over `calibration`.

    Raises:
        ModelError: a weight holds NaN or infinity.
    """
    wanted = dict(_targets(model, plan))
    static = [name for name, precision in wanted.items() if precision == "int8"]
    ranges = input_ranges(model, static, calibration) if static else {}
    codes = {}
    for name, precision in wanted.items():
        weight = model.get_parameter(f"{name}.weight").detach()
        if not torch.isfinite(weight).all():
            raise ModelError(f"layer {name}: its weight holds NaN or infinity, which has no integer")
        if precision != "int8":
            codes[name] = quantize_weight(weight, precision)
            continue
        scale, zero = activation_quantizer(ranges[name])
        made = quantize_weight(weight, precision, _least_scales(model.get_submodule(name), scale))
        codes[name] = Codes(precision, made.values, made.scales, scale, zero)
    return codes


def _least_scales(module: nn.Module, input_scale: float) -> Tensor | None:
    """Weight scales below which the bias would not fit the accumulator's 32 bits (of a channel near zero)."""
    bias = getattr(module, "bias", None)
    return bias.detach().abs() / (input_scale * 2**30) if isinstance(bias, Tensor) else None


def _targets(model: nn.Module, plan: Plan) -> Iterator[tuple[str, Precision]]:
    modules = dict(model.named_modules())
    for name, layer_plan in plan.layers.items():
        if not layer_plan.quantize or name not in modules:
            continue
        parts = [f"{name}.0", f"{name}.1"] if isinstance(modules[name], nn.Sequential) else [name]
        for part in parts:
            yield part, layer_plan.precision


def simulate(model: nn.Module, codes: dict[str, Codes]) -> nn.Module:
    """A copy of the model that computes in float what the integers compute; the twin of the exported file."""
    twin = copy.deepcopy(model)
    for name, made in codes.items():
        module = twin.get_submodule(name)
        module.weight = nn.Parameter(made.weight(), requires_grad=False)
        if made.precision in ("int8", "int8-dynamic"):
            module.register_forward_pre_hook(_RoundInput(made.input_scale, made.input_zero))
    return twin.eval()


class _RoundInput:
    """A forward pre-hook that sends a layer's input through unsigned 8 bits."""

    def __init__(self, scale: float | None, zero: int | None) -> None:
        self.scale = scale
        self.zero = zero

    def __call__(self, _module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        value = args[0]
        scale, zero = self.scale, self.zero
        if scale is None or zero is None:  # dynamic: from this very input, as ONNX DynamicQuantizeLinear
            scale, zero = activation_quantizer(Range(min(0.0, float(value.min())), max(0.0, float(value.max()))))
        rounded = torch.clamp(torch.round(value / scale) + zero, 0, 255)
        return ((rounded - zero) * scale, *args[1:])
