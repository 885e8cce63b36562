"""Bias correction: the mean error that rounding leaves in a layer's output goes into its bias."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from autocompress.compressing.calibrate import watch_inputs
from autocompress.compressing.codes import Codes, steps_of_values
from autocompress.tasks.task import Examples


def layer_output(module: nn.Module, value: Tensor, weight: Tensor) -> Tensor:
    """What a linear or convolution makes of a value with another weight and no bias."""
    if isinstance(module, nn.Conv2d):
        output: Tensor = module._conv_forward(value, weight, None)
        return output
    return nn.functional.linear(value, weight)


def mean_errors(
    model: nn.Module, codes: Mapping[str, Codes], examples: Examples, batch_size: int = 32
) -> dict[str, Tensor]:
    """Mean over samples and positions of the float output minus the quantized one, ``(out,)`` per layer.

    Each layer by itself: it reads the float model's own activations, which its quantizer rounds where it has one.
    """
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}
    weights = {name: made.weight() for name, made in codes.items()}

    def see(name: str, value: Tensor) -> None:
        module, made = model.get_submodule(name), codes[name]
        rounded = value
        if made.rounds_input:
            rounded = (made.input or steps_of_values(value)).round(value)
        weight: Tensor = module.weight  # type: ignore[assignment]
        if isinstance(module, nn.Conv2d):
            error = layer_output(module, value, weight) - layer_output(module, rounded, weights[name])
            rows = error.transpose(1, -1).reshape(-1, weight.shape[0])
            found = rows.sum(dim=0, dtype=torch.float64)
        else:  # of a linear, the mean of the outputs is the output of the mean: two sums in place of two products
            rows, others = (x.reshape(-1, x.shape[-1]) for x in (value, rounded))
            found = weight.detach().double() @ rows.sum(dim=0, dtype=torch.float64)
            found -= weights[name].double() @ others.sum(dim=0, dtype=torch.float64)
        sums[name] = sums.get(name, torch.zeros(())) + found
        counts[name] = counts.get(name, 0) + len(rows)

    watch_inputs(model, codes, examples, batch_size, see)
    return {name: (total / counts[name]).to(torch.float32) for name, total in sums.items()}


def corrected(model: nn.Module, codes: Mapping[str, Codes], calibration: Examples) -> nn.Module:
    """A copy of the model with the mean errors of these layers in their biases; a missing bias is made.

    All layers at once, from the float model's activations (Nagel et al. 2019, §4.2, with calibration samples in place
    of norm statistics): one pass instead of one per layer, and no correction depends on another.
    """
    if not codes:
        return model
    copied = copy.deepcopy(model)
    for name, error in mean_errors(model, codes, calibration).items():
        module = copied.get_submodule(name)
        bias = error if module.bias is None else module.bias.detach() + error  # type: ignore[operator]
        module.bias = nn.Parameter(bias.clone())
    return copied
