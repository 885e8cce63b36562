"""Torch modules that compute one layer from its integers, with the kernels that torch has for them.

What follows from the integers alone (sums of columns, packed or padded weights) is computed in `forward` all the same:
a file holds the integers once, and the runtime folds the rest when it loads the file, in the form of its processor.

- static and dynamic int8: inputs as signed 8 bits (the unsigned code less 128), `torch._int_mm`, one scaling.
- static int8 convolutions: oneDNN's, on processors only.
- 4-bit weights: `_weight_int4pack_mm_for_cpu`, which computes in bfloat16 and rounds the groups' scales to it.
- 8-bit floats: `torch._scaled_mm`, a range of its own for each call's inputs; a processor computes it, but slowly.
- fp16: a processor computes in float32 from weights stored in half; a GPU computes in half.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autocompress.compressing.codes import FP8, Codes, fp8_scale
from autocompress.errors import ExportError
from autocompress.plan import INT4_GROUP
from autocompress.runtimes import Device

#: What an unsigned 8-bit code loses to become a signed one.
SIGNED = 128

#: `_int_mm` on a GPU takes more than 16 rows, and multiples of 8 otherwise.
GPU_ROWS, GPU_MULTIPLE = 16, 8

#: `_scaled_mm` on a GPU takes multiples of 16 features.
SCALED_MULTIPLE = 16

#: Output features of the packed 4-bit kernel come in multiples of so many.
PACKED_MULTIPLE = 16


def _packed_alike(weight: Tensor, *_settings: Any) -> Tensor:
    """What tracing must know of a packed weight; torch itself does not say."""
    return torch.empty_like(weight)


torch.library.register_fake("onednn::qconv_prepack", _packed_alike)


def _keep(module: nn.Module, codes: Codes, bias: Tensor | None) -> None:
    """The integers, and what makes floats of them, as buffers."""
    module.register_buffer("values", codes.values.contiguous())
    module.register_buffer("scales", codes.scales)
    module.register_buffer("zeros", codes.zeros)
    module.register_buffer("bias", None if bias is None else bias.detach().clone())


def _over(size: int, multiple: int) -> int:
    """What is missing to the next multiple."""
    return -size % multiple


class Int8Linear(nn.Module):
    """A linear in 8-bit integers; without `Codes.input` each call's inputs have a range of their own."""

    values: Tensor
    scales: Tensor
    zeros: Tensor | None
    bias: Tensor | None

    def __init__(self, module: nn.Module, codes: Codes, device: Device) -> None:
        super().__init__()
        _keep(self, codes, module.bias)  # type: ignore[arg-type]
        self.precision = codes.precision
        self.steps = codes.input
        self.on_gpu = device == "cuda"

    @property
    def weight(self) -> Tensor:
        """In float; models ask for its type, or read it for another purpose."""
        return Codes(self.precision, self.values, self.scales, self.zeros).weight()

    def forward(self, inputs: Tensor) -> Tensor:
        """``(…, in)`` to ``(…, out)``."""
        scale, zero, levels = self._steps(inputs)
        codes = torch.clamp(torch.round(inputs / scale) + zero, -SIGNED, levels - 1 - SIGNED).to(torch.int8)
        rows = codes.reshape(-1, codes.shape[-1])
        total = self._product(rows)
        if self.zeros is not None:
            sums = rows.sum(1, keepdim=True, dtype=torch.int32) - zero * rows.shape[1]
            total = total - sums * self.zeros.to(torch.int32)
        step = self.scales * scale
        offset = -zero * self.values.sum(1, dtype=torch.int32) * step
        total = torch.addcmul(offset if self.bias is None else self.bias + offset, total.to(torch.float32), step)
        return total.reshape(*inputs.shape[:-1], self.values.shape[0])

    def _steps(self, inputs: Tensor) -> tuple[Any, Any, int]:
        """Scale, signed zero point and levels of the inputs; numbers, or tensors of one value (`steps_of_values`)."""
        if self.steps is not None:
            return self.steps.scale, self.steps.zero - SIGNED, self.steps.levels
        low, high = torch.aminmax(inputs)
        low, high = torch.clamp(low, max=0.0), torch.clamp(high, min=0.0)
        span = (high - low) / 255
        scale = torch.where(span == 0, torch.ones_like(span), span)
        return scale, torch.clamp(torch.round(-low / scale), 0, 255) - SIGNED, 256

    def _product(self, rows: Tensor) -> Tensor:
        """Integers ``(n, in)`` times the weight's ``(out, in)``: ``(n, out)``, int32."""
        if not self.on_gpu:
            return torch._int_mm(rows, self.values.t())
        out, columns = self.values.shape
        more = _over(columns, GPU_MULTIPLE)
        weight = F.pad(self.values, (0, more, 0, _over(out, GPU_MULTIPLE)))
        return torch._int_mm(F.pad(rows, (0, more, 0, GPU_ROWS)), weight.t())[: rows.shape[0], :out]


class Int8Conv(nn.Module):
    """A convolution in 8-bit integers, on a processor."""

    values: Tensor
    scales: Tensor
    bias: Tensor | None

    def __init__(self, module: nn.Module, codes: Codes, _device: Device) -> None:
        assert isinstance(module, nn.Conv2d)
        assert codes.input is not None
        super().__init__()
        bias = None if module.bias is None else codes.accumulated(module.bias.detach())
        _keep(self, codes, bias)
        self.steps, self.output = codes.input, codes.output
        self.mode = module.padding_mode
        at_once = self.mode == "zeros" and not isinstance(module.padding, str)
        self.around = [] if at_once else list(module._reversed_padding_repeated_twice)
        padding = [int(size) for size in module.padding] if at_once else [0, 0]
        self.window = (list(module.stride), padding, list(module.dilation), module.groups)

    @property
    def weight(self) -> Tensor:
        """In float; models ask for its type."""
        return Codes("int8", self.values, self.scales).weight()

    def forward(self, inputs: Tensor) -> Tensor:
        """``(n, in, height, width)`` to ``(n, out, …)``."""
        if self.around:
            inputs = F.pad(inputs, self.around, "constant" if self.mode == "zeros" else self.mode)
        scale, zero = self.steps.scale, self.steps.zero
        codes = torch.clamp(torch.round(inputs / scale) + zero, 0, self.steps.levels - 1).to(torch.uint8)
        scales = self.scales.expand(self.values.shape[0]).contiguous()
        zeros = torch.zeros_like(scales, dtype=torch.int64)
        packed = torch.ops.onednn.qconv_prepack(self.values, scales, scale, zero, *self.window)
        made = torch.ops.onednn.qconv_pointwise(
            codes, scale, zero, packed, scales, zeros, self.bias, *self.window, 1.0, 0, torch.float32, "none", [0.0], ""
        )  # an empty list of the (unused) numbers cannot be written to a file
        result: Tensor = made if self.output is None else self.output.round(made)
        return result


class Int4Linear(nn.Module):
    """A linear with 4-bit weights in groups, on a processor; two codes a byte, the first in the low half."""

    values: Tensor
    scales: Tensor
    zeros: Tensor | None
    bias: Tensor | None

    def __init__(self, module: nn.Module, codes: Codes, _device: Device) -> None:
        super().__init__()
        _keep(self, codes, module.bias)  # type: ignore[arg-type]
        self.columns = codes.values.shape[1]
        self.values = packed_pairs(codes.values, codes.scales.shape[1] * INT4_GROUP)

    @property
    def weight(self) -> Tensor:
        """In float; models ask for its type, or read it for another purpose."""
        return unpacked_weight(self.values, self.scales, self.zeros)[:, : self.columns]

    def forward(self, inputs: Tensor) -> Tensor:
        """``(…, in)`` to ``(…, out)``."""
        out, groups = self.scales.shape
        more = _over(out, PACKED_MULTIPLE)
        codes = F.pad(unpacked_pairs(self.values).to(torch.int32) + 8, (0, 0, 0, more))
        packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1)
        offsets = torch.zeros_like(self.scales) if self.zeros is None else -self.zeros * self.scales
        pairs = F.pad(torch.stack([self.scales, offsets], dim=-1).transpose(0, 1), (0, 0, 0, more))
        rows = F.pad(inputs.reshape(-1, self.columns), (0, groups * INT4_GROUP - self.columns)).to(torch.bfloat16)
        product = torch.ops.aten._weight_int4pack_mm_for_cpu(
            rows, packed, INT4_GROUP, pairs.contiguous().to(torch.bfloat16)
        )
        total: Tensor = product[:, :out].to(torch.float32)
        if self.bias is not None:
            total = total + self.bias
        return total.reshape(*inputs.shape[:-1], out)


class Fp8Linear(nn.Module):
    """A linear in 8-bit floats."""

    values: Tensor
    scales: Tensor
    bias: Tensor | None

    def __init__(self, module: nn.Module, codes: Codes, _device: Device) -> None:
        super().__init__()
        _keep(self, codes, module.bias)  # type: ignore[arg-type]

    @property
    def weight(self) -> Tensor:
        """In float; models ask for its type, or read it for another purpose."""
        return Codes("fp8", self.values, self.scales).weight()

    def forward(self, inputs: Tensor) -> Tensor:
        """``(…, in)`` to ``(…, out)``."""
        out, columns = self.values.shape
        more = _over(columns, SCALED_MULTIPLE)
        scale = fp8_scale(inputs)
        rows = F.pad((inputs / scale).reshape(-1, columns), (0, more)).to(FP8)
        weight = F.pad(self.values.view(torch.uint8), (0, more, 0, _over(out, SCALED_MULTIPLE))).view(FP8)
        product = torch._scaled_mm(
            rows, weight.t(), scale_a=scale, scale_b=self.scales.reshape(()), out_dtype=torch.float32
        )
        total: Tensor = product[:, :out]
        if self.bias is not None:
            total = total + self.bias
        return total.reshape(*inputs.shape[:-1], out)


class HalfLayer(nn.Module):
    """A linear or convolution whose weight is kept in half precision."""

    def __init__(self, module: nn.Module, codes: Codes, device: Device) -> None:
        super().__init__()
        self.layer = module
        module.weight = nn.Parameter(codes.values, requires_grad=False)
        self.computes = torch.float16 if device == "cuda" else torch.float32

    @property
    def weight(self) -> Tensor:
        """In float; models ask for its type, or read it for another purpose."""
        weight: Tensor = self.layer.weight  # type: ignore[assignment]
        return weight.to(torch.float32)

    def forward(self, inputs: Tensor) -> Tensor:
        """As the layer that it stands for, float32 to float32."""
        weight: Tensor = self.layer.weight.to(self.computes)  # type: ignore[assignment]
        bias: Tensor | None = self.layer.bias  # type: ignore[assignment]
        taken = {"weight": weight} if bias is None else {"weight": weight, "bias": bias.to(self.computes)}
        made: Tensor = torch.func.functional_call(self.layer, taken, (inputs.to(self.computes),))
        return made.to(torch.float32)


class CodedEmbedding(nn.Module):
    """An embedding whose rows are looked up as they are kept and then become floats."""

    values: Tensor
    scales: Tensor
    zeros: Tensor | None

    def __init__(self, _module: nn.Module, codes: Codes, _device: Device) -> None:
        super().__init__()
        _keep(self, codes, None)
        self.precision = codes.precision
        if codes.precision == "int4-weights":
            self.values = packed_pairs(codes.values, codes.values.shape[1])

    @property
    def weight(self) -> Tensor:
        """In float; models ask for its type, or read it for another purpose."""
        return self._floats(self.values, self.scales, self.zeros)

    def forward(self, indices: Tensor) -> Tensor:
        """``(…)`` to ``(…, features)``."""
        flat = indices.reshape(-1)
        scales, zeros = self._of_rows(self.scales, flat), self._of_rows(self.zeros, flat)
        assert scales is not None
        return self._floats(self.values[flat], scales, zeros).reshape(*indices.shape, -1)

    def _of_rows(self, value: Tensor | None, rows: Tensor) -> Tensor | None:
        """Those of some rows, where each row has its own."""
        return value if value is None or len(value) != len(self.values) else value[rows]

    def _floats(self, values: Tensor, scales: Tensor, zeros: Tensor | None) -> Tensor:
        if self.precision == "fp16":
            return values.to(torch.float32)
        if self.precision == "int4-weights":
            return unpacked_weight(values, scales, zeros)
        centred = values.to(torch.float32) if zeros is None else values.to(torch.float32) - zeros[:, None]
        return centred * scales[:, None]


def packed_pairs(values: Tensor, columns: int) -> Tensor:
    """Codes ``(rows, n)`` in [-8, 7], filled up with zeros to `columns` (even), as bytes ``(rows, columns / 2)``."""
    offset = (F.pad(values, (0, columns - values.shape[1])) + 8).to(torch.uint8)
    return offset[:, 0::2] | (offset[:, 1::2] << 4)


def unpacked_pairs(packed: Tensor) -> Tensor:
    """Codes ``(rows, 2·n)``, int8, of bytes ``(rows, n)``."""
    pairs = torch.stack([packed & 15, packed >> 4], dim=-1)
    return pairs.reshape(packed.shape[0], 2 * packed.shape[1]).to(torch.int8) - 8


def unpacked_weight(packed: Tensor, scales: Tensor, zeros: Tensor | None) -> Tensor:
    """Floats ``(rows, groups·INT4_GROUP)`` of packed codes with scales and zeros ``(rows, groups)``."""
    blocks = unpacked_pairs(packed).reshape(*scales.shape, INT4_GROUP).to(torch.float32)
    centred = blocks if zeros is None else blocks - zeros[..., None]
    return (centred * scales[..., None]).reshape(scales.shape[0], -1)


Made = Callable[[nn.Module, Codes, Device], nn.Module]

#: What takes a module's place, by kind and precision.
MODULES: dict[tuple[type[nn.Module], str], Made] = {
    (nn.Linear, "fp16"): HalfLayer,
    (nn.Linear, "fp8"): Fp8Linear,
    (nn.Linear, "int8"): Int8Linear,
    (nn.Linear, "int8-dynamic"): Int8Linear,
    (nn.Linear, "int4-weights"): Int4Linear,
    (nn.Conv2d, "fp16"): HalfLayer,
    (nn.Conv2d, "int8"): Int8Conv,
    **{(nn.Embedding, precision): CodedEmbedding for precision in ("fp16", "int8-weights", "int4-weights")},
}

#: Those that a processor has kernels for and a GPU has not.
CPU_ONLY = {(nn.Conv2d, "int8"), (nn.Linear, "int4-weights")}


def coded_module(name: str, module: nn.Module, codes: Codes, device: Device) -> nn.Module:
    """The module that computes a layer from its integers; `module` may become part of it.

    Raises:
        ExportError: torch has no kernel for it on that device.
    """
    kind = next((kind for kind, _precision in MODULES if isinstance(module, kind)), type(module))
    key = (kind, codes.precision)
    if key not in MODULES or (device == "cuda" and key in CPU_ONLY):
        raise ExportError(f"layer {name!r}: torch has no {codes.precision} kernel for {kind.__name__} on {device}")
    if kind is nn.Conv2d and codes.zeros is not None:
        raise ExportError(f"layer {name!r}: torch's int8 convolution needs symmetric weights; set symmetric: true")
    return MODULES[key](module, codes, device)
