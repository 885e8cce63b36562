"""Quantization-aware training: layers that compute with rounded weights and inputs while their floats learn.

The rounding is `quantize`'s own; its gradient is the identity (straight-through, Bengio et al. 2013), and 0 where a
static range clips (Jacob et al. 2018).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from autocompress.compressing.codes import Codes, Steps, round_fp8, steps_of_values
from autocompress.compressing.flow import folded_bias, norm_gain
from autocompress.compressing.quantize import ActivationSteps, code_layer, prepare, targets
from autocompress.compressing.smooth import along_channels, scaled_columns
from autocompress.errors import PlanError
from autocompress.layers import LayerTable
from autocompress.plan import Plan, Quantize
from autocompress.tasks.task import Examples


@contextlib.contextmanager
def fake_quantization(model: nn.Module, plan: Plan, table: LayerTable, calibration: Examples) -> Iterator[None]:
    """Inside, the layers that the plan quantizes compute as their integers will; embeddings are left alone.

    In evaluation mode the model then gives what `simulate` gives. Scales of weights follow the weights at each forward;
    static ranges and smoothing scales are those of the model at entry. Parameters stay the same objects under the same
    names throughout, so that an optimizer made before or inside goes on working.

    Args:
        model: shaped, in float; edited while inside, afterwards itself again with the weights that it learned.
        plan: whose layers say what is rounded.
        table: of the dense model.
        calibration: samples that the ranges come from.

    Raises:
        PlanError: a layer's integers would not be those that it trained with: gptq moves weights to other steps, and
            bias_correction goes back to outputs that were never trained for.
        ModelError: as `quantize`.
        DataError: as `quantize`.
    """
    _refuse(plan)
    handles: list[RemovableHandle] = []
    layers = _layers(model, plan, table, calibration)
    try:
        for layer in layers:
            handles += layer.attach()
        yield
    finally:
        for handle in handles:
            handle.remove()
        for layer in layers:
            layer.restore()


def _refuse(plan: Plan) -> None:
    for name, layer_plan in plan.layers.items():
        settings = layer_plan.quantize
        if settings and (settings.rounding != "nearest" or settings.bias_correction):
            said = "bias_correction" if settings.rounding == "nearest" else f"rounding {settings.rounding!r}"
            raise PlanError(
                f"layers: {name}: {said} would undo what fake_quantize trains; use rounding 'nearest' without "
                "bias_correction, or leave fake_quantize out"
            )


def _layers(model: nn.Module, plan: Plan, table: LayerTable, calibration: Examples) -> list[_FakeLayer]:
    wanted = {
        name: settings
        for name, settings in targets(model, plan).items()
        if not isinstance(model.get_submodule(name), nn.Embedding)
    }
    ready = prepare(model, wanted, table.norms, calibration)
    return [
        _FakeLayer(
            model.get_submodule(name),
            settings,
            ready.steps(name),
            ready.scales.get(name),
            model.get_submodule(ready.flow.norms[name]) if name in ready.flow.norms else None,
        )
        for name, settings in wanted.items()
    ]


def straight_through(value: Tensor, rounded: Tensor) -> Tensor:
    """Exactly `rounded`, with the gradient of `value`."""
    return rounded.detach() + (value - value.detach())


@dataclass(frozen=True)
class _FakeLayer:
    """A layer that rounds, with the norm that will fold into it.

    During a forward the rounded weight and bias stand before the parameters as attributes of the instance.
    """

    module: nn.Module
    settings: Quantize
    steps: ActivationSteps
    scales: Tensor | None
    norm: nn.Module | None

    def attach(self) -> list[RemovableHandle]:
        """Put the rounding into place."""
        handles = [
            self.module.register_forward_pre_hook(self._before),
            self.module.register_forward_hook(self._after, always_call=True),
        ]
        if self.steps[1]:
            handles.append((self.norm or self.module).register_forward_hook(self._round_output))
        return handles

    def restore(self) -> None:
        """Take what stands before the parameters away."""
        for name in ("weight", "bias"):
            self.module.__dict__.pop(name, None)

    def _before(self, _module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        self.restore()
        self.module.__dict__.update(self._rounded())
        if self.settings.precision == "fp8":
            return (straight_through(args[0], round_fp8(args[0].detach())), *args[1:])
        if self.settings.precision not in ("int8", "int8-dynamic"):
            return args
        return (self._rounded_input(args[0]), *args[1:])

    def _after(self, *_given: Any) -> None:
        self.restore()

    def _round_output(self, _module: nn.Module, _args: Any, output: Tensor) -> Tensor:
        assert self.steps[1]
        return _clipped(output, self.steps[1])

    @torch.no_grad()
    def _codes(self, gain: Tensor) -> tuple[Codes, Tensor | None]:
        """Codes and bias of the layer as it will be: behind the norm's gain and the smoothing scales."""
        weight: Tensor = self.module.weight.detach()  # type: ignore[operator]
        bias: Tensor | None = getattr(self.module, "bias", None)
        if self.norm is not None:
            bias = folded_bias(self.module, self.norm)
        if self.scales is not None:
            weight = scaled_columns(self.module, weight, self.scales)
        return code_layer(weight * gain, bias, self.settings, self.steps), bias

    def _rounded(self) -> dict[str, Tensor]:
        """Weight, and of a convolution the bias, that compute here what the codes will."""
        weight: Tensor = self.module.weight  # type: ignore[assignment]
        gain = torch.ones(weight.shape[0], *[1] * (weight.dim() - 1))
        if self.norm is not None:
            gain = norm_gain(self.norm).reshape_as(gain)
            gain = torch.where(gain == 0, torch.ones_like(gain), gain)  # such a channel's weight has no effect
        codes, bias = self._codes(gain)
        rounded = codes.weight() / gain
        if self.scales is not None:
            rounded = scaled_columns(self.module, rounded, 1 / self.scales)
        result = {"weight": straight_through(weight, rounded)}
        if isinstance(self.module, nn.Conv2d) and bias is not None and codes.input:
            moved = (codes.accumulated(bias.detach()) - bias.detach()) / gain.reshape(-1)
            result["bias"] = moved if self.module.bias is None else self.module.bias + moved
        return result

    def _rounded_input(self, value: Tensor) -> Tensor:
        if self.scales is None:
            return _clipped(value, self.steps[0])
        scale = along_channels(self.module, self.scales)
        return _clipped(value / scale, self.steps[0]) * scale


def _clipped(value: Tensor, steps: Steps | None) -> Tensor:
    """Rounded values; no gradient where a static range clips."""
    if steps is None:
        return straight_through(value, steps_of_values(value.detach()).round(value.detach()))
    return straight_through(value.clamp(steps.low, steps.high), steps.round(value.detach()))
