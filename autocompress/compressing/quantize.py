"""The verb `quantize`: integers for weights and activations. They are, bit for bit, the ones in the exported file.

This is the one place that knows the order: BatchNorms fold into their convolutions, outliers move into weights,
ranges are calibrated, weights are rounded, biases corrected.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from autocompress.compressing.calibrate import gram_matrices, input_ranges, output_ranges
from autocompress.compressing.codes import Codes, Steps, quantize_weight, steps_of
from autocompress.compressing.correct import corrected
from autocompress.compressing.flow import Flow, flow_of, fold_norms
from autocompress.compressing.smooth import smoothed, smoothing
from autocompress.errors import ModelError
from autocompress.layers import LayerTable
from autocompress.plan import Plan, Precision, Quantize
from autocompress.tasks.task import Examples

#: Precisions of each kind of module. What a factor's kind does not have stays float.
LEGAL: dict[type[nn.Module], tuple[Precision, ...]] = {
    nn.Linear: ("fp16", "fp8", "int8-dynamic", "int8", "int4-weights"),
    nn.Conv2d: ("fp16", "int8"),
    nn.Embedding: ("fp16", "int8-weights", "int4-weights"),
}

#: Weight scales are large enough for every bias to fit this many steps of the accumulator's 32 bits.
ACCUMULATOR = 2**30

ActivationSteps = tuple[Steps | None, Steps | None]


@dataclass(frozen=True)
class Quantized:
    """A model with the integers of its layers.

    Attributes:
        model: in float; a copy where folding, smoothing or bias correction changed its weights.
        codes: by module name.
    """

    model: nn.Module
    codes: dict[str, Codes]


@dataclass(frozen=True)
class Prepared:
    """A model whose float weights are as they will be rounded, and the quantizers of its activations.

    Attributes:
        model: in float; folded and smoothed.
        flow: what read the outputs of its convolutions.
        scales: of the smoothed layers, ``(in,)``.
        inputs, outputs: quantizers of static layers.
    """

    model: nn.Module
    flow: Flow
    scales: dict[str, Tensor]
    inputs: dict[str, Steps]
    outputs: dict[str, Steps]

    def steps(self, name: str) -> ActivationSteps:
        """Quantizers of a layer's input and output, None where it has none."""
        return self.inputs.get(name), self.outputs.get(name)


def quantize(model: nn.Module, plan: Plan, table: LayerTable, calibration: Examples) -> Quantized:
    """Codes of every layer that the plan quantizes, by module name in the (shaped) model, which is not edited.

    The factors ``x.0`` and ``x.1`` of a factorized layer x both take its precision, where their kind has it.

    Args:
        model: shaped and recovered, in float.
        plan: whose layers say what to do.
        table: of the dense model; knows which norms feed nothing but smoothed layers.
        calibration: samples for ranges, second moments and mean errors.

    Raises:
        ModelError: a weight holds NaN or infinity, or cannot take what the plan asks for.
        DataError: a calibration activation holds NaN or infinity.
    """
    wanted = targets(model, plan)
    ready = prepare(model, wanted, table.norms, calibration)
    grams = _grams(ready.model, wanted, calibration)
    codes = {}
    for name, settings in wanted.items():
        module = ready.model.get_submodule(name)
        bias: Tensor | None = getattr(module, "bias", None)
        weight: Tensor = module.weight.detach()  # type: ignore[operator]
        codes[name] = code_layer(
            weight, None if bias is None else bias.detach(), settings, ready.steps(name), grams.get(name)
        )
    biased = {name: codes[name] for name, settings in wanted.items() if settings.bias_correction}
    return Quantized(corrected(ready.model, biased, calibration), codes)


def targets(model: nn.Module, plan: Plan) -> dict[str, Quantize]:
    """Modules that take fewer bits, with their settings; raises `ModelError` where one cannot."""
    modules, wanted = dict(model.named_modules()), {}
    for name, layer_plan in plan.layers.items():
        if not layer_plan.quantize or name not in modules:
            continue
        settings = layer_plan.quantize
        parts = [f"{name}.0", f"{name}.1"] if isinstance(modules[name], nn.Sequential) else [name]
        fitting = [part for part in parts if settings.precision in LEGAL.get(type(modules[part]), ())]
        if not fitting:
            kind = type(modules[parts[0]]).__name__
            raise ModelError(f"layer {name}: {settings.precision} does not exist for {kind}")
        wanted.update(dict.fromkeys(fitting, settings))
    for name, settings in wanted.items():
        _refuse(name, modules[name], settings)
    return wanted


def _refuse(name: str, module: nn.Module, settings: Quantize) -> None:
    weight: Tensor = module.weight.detach()  # type: ignore[operator]
    if not torch.isfinite(weight).all():
        raise ModelError(f"layer {name}: its weight holds NaN or infinity, which has no integer")
    if settings.precision == "fp16" and not torch.isfinite(weight.to(torch.float16)).all():
        raise ModelError(f"layer {name}: its weight holds {float(weight.abs().max()):g}, and fp16 ends at 65504")
    if settings.rounding == "gptq" and isinstance(module, nn.Conv2d) and module.groups > 1:
        raise ModelError(f"layer {name}: gptq does not exist for grouped convolutions; use rounding 'nearest'")


def prepare(
    model: nn.Module, wanted: Mapping[str, Quantize], norms: Mapping[str, str], calibration: Examples
) -> Prepared:
    """Fold, smooth and calibrate; `norms` is the LayerTable's."""
    convolutions = [name for name in wanted if isinstance(model.get_submodule(name), nn.Conv2d)]
    static = [name for name, settings in wanted.items() if settings.precision == "int8"]
    flow = flow_of(model, convolutions, static, calibration) if convolutions else Flow()
    folded = fold_norms(model, flow.norms)
    scales = smoothing(folded, wanted, calibration)
    ready = smoothed(folded, scales, norms)

    outputs = _outputs(ready, {name: wanted[name] for name in convolutions if name in static}, flow, calibration)
    inputs = _inputs(ready, {name: wanted[name] for name in static}, calibration)
    for name, source in flow.feeds.items():  # one quantizer between two integer layers
        if source in outputs and name not in scales and inputs[name].levels == outputs[source].levels:
            inputs[name] = outputs[source]
    return Prepared(ready, flow, scales, inputs, outputs)


def _alike(
    wanted: Mapping[str, Quantize], key: Callable[[Quantize], tuple[str, int]]
) -> dict[tuple[str, int], list[str]]:
    groups: defaultdict[tuple[str, int], list[str]] = defaultdict(list)
    for name, settings in wanted.items():
        groups[key(settings)].append(name)
    return groups


def _inputs(model: nn.Module, wanted: Mapping[str, Quantize], calibration: Examples) -> dict[str, Steps]:
    made = {}
    for (calibrator, bits), names in _alike(wanted, lambda s: (s.calibrator, s.activation_bits)).items():
        spans = input_ranges(model, names, calibration, calibrator, levels=2**bits)
        made.update({name: steps_of(span, 2**bits) for name, span in spans.items()})
    return made


def _outputs(model: nn.Module, wanted: Mapping[str, Quantize], flow: Flow, calibration: Examples) -> dict[str, Steps]:
    made = {}
    for (calibrator, _bits), names in _alike(wanted, lambda s: (s.calibrator, 8)).items():
        spans = output_ranges(model, {name: name in flow.rectified for name in names}, calibration, calibrator)
        made.update({name: steps_of(span) for name, span in spans.items()})
    return made


def _grams(model: nn.Module, wanted: Mapping[str, Quantize], calibration: Examples) -> dict[str, Tensor]:
    names = [name for name, settings in wanted.items() if settings.rounding == "gptq"]
    return gram_matrices(model, names, calibration) if names else {}


def code_layer(
    weight: Tensor, bias: Tensor | None, settings: Quantize, steps: ActivationSteps, gram: Tensor | None = None
) -> Codes:
    """Codes of one layer, with the quantizers of its input and output; see `quantize_weight`."""
    least = None
    if steps[0] and bias is not None:
        least = bias.abs() / (steps[0].scale * ACCUMULATOR)
    return replace(quantize_weight(weight, settings, least, gram), input=steps[0], output=steps[1])


def simulate(model: nn.Module, codes: Mapping[str, Codes]) -> nn.Module:
    """A copy of the model that computes in float what the integers compute; the twin of the exported file."""
    twin = copy.deepcopy(model)
    for name, made in codes.items():
        module = twin.get_submodule(name)
        module.weight = nn.Parameter(made.weight(), requires_grad=False)
        if isinstance(module, nn.Conv2d) and module.bias is not None:
            module.bias = nn.Parameter(made.accumulated(module.bias.detach()), requires_grad=False)
        if made.rounds_input:
            module.register_forward_pre_hook(_RoundInput(made))
        if made.output:
            module.register_forward_hook(_RoundOutput(made.output))
    return twin.eval()


class _RoundInput:
    """A forward pre-hook that rounds a layer's input as the layer's kernel does."""

    def __init__(self, codes: Codes) -> None:
        self.codes = codes

    def __call__(self, _module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (self.codes.round_input(args[0]), *args[1:])


class _RoundOutput:
    """A forward hook that sends a layer's output through unsigned integers."""

    def __init__(self, steps: Steps) -> None:
        self.steps = steps

    def __call__(self, _module: nn.Module, _args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return self.steps.round(output)
