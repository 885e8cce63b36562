"""SmoothQuant: outliers move from a layer's inputs into its weights; the float model computes the same."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from autocompress.compressing.calibrate import input_peaks
from autocompress.plan import Quantize
from autocompress.tasks.task import Examples


def smoothing_scales(inputs: Tensor, weights: Tensor, alpha: float) -> Tensor:
    """``s_j = max|X_j|^α / max|W_j|^(1-α)`` of each input channel, ``(in,)`` (Xiao et al. 2022, eq. 4).

    Inputs are to be divided by it and the weights' columns multiplied; 1 where either peak is 0.

    Args:
        inputs: largest size of each input channel, ``(in,)``.
        weights: largest size of the weights that read it, ``(in,)``.
        alpha: in [0, 1]; 0 evens out the weights, 1 the inputs.
    """
    scales = inputs.to(torch.float32) ** alpha / weights.to(torch.float32) ** (1 - alpha)
    return torch.where((inputs > 0) & (weights > 0) & torch.isfinite(scales), scales, torch.ones_like(scales))


def weight_peaks(module: nn.Module) -> Tensor:
    """Largest size of the weights of each input channel, ``(in,)``."""
    weight: Tensor = module.weight.detach()  # type: ignore[operator]
    groups = module.groups if isinstance(module, nn.Conv2d) else 1
    parts = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
    return parts.abs().amax(dim=(1, 3)).reshape(-1)


def scaled_columns(module: nn.Module, weight: Tensor, scales: Tensor) -> Tensor:
    """A weight of the module's shape, each input channel multiplied by its scale ``(in,)``."""
    groups = module.groups if isinstance(module, nn.Conv2d) else 1
    parts = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
    return (parts * scales.reshape(groups, 1, -1, 1)).reshape(weight.shape)


def along_channels(module: nn.Module, scales: Tensor) -> Tensor:
    """Scales ``(in,)`` in a form that broadcasts over the module's inputs."""
    return scales.reshape(-1, 1, 1) if isinstance(module, nn.Conv2d) else scales


def smoothing(model: nn.Module, wanted: Mapping[str, Quantize], calibration: Examples) -> dict[str, Tensor]:
    """Scales ``(in,)`` of every layer that asks for them; layers that read the same tensor share theirs.

    Raises:
        DataError: a calibration input holds NaN or infinity.
    """
    alphas = {name: settings.smooth for name, settings in wanted.items() if settings.smooth is not None}
    if not alphas:
        return {}
    peaks = input_peaks(model, alphas, calibration)
    together: defaultdict[tuple[bytes, float], list[str]] = defaultdict(list)
    for name, alpha in alphas.items():  # equal peaks of all channels: the same tensor
        together[peaks[name].numpy().tobytes(), alpha].append(name)
    scales = {}
    for (_peaks, alpha), names in together.items():
        weights = torch.stack([weight_peaks(model.get_submodule(name)) for name in names]).amax(dim=0)
        scales.update(dict.fromkeys(names, smoothing_scales(peaks[names[0]], weights, alpha)))
    return scales


def smoothed(model: nn.Module, scales: Mapping[str, Tensor], norms: Mapping[str, str]) -> nn.Module:
    """A copy of the model with the scales inside: its float outputs are the same.

    Where one norm feeds nothing but layers that share their scales, its weight and bias are divided by them; else
    a layer's input is divided on its way in.

    Args:
        model: in float.
        scales: from `smoothing`, by module name.
        norms: of the model's LayerTable.
    """
    if not scales:
        return model
    copied = copy.deepcopy(model)
    foldable = _foldable(copied, scales, norms)
    for norm in sorted(set(foldable.values())):
        reader = next(name for name in foldable if foldable[name] == norm)
        _divide_norm(copied.get_submodule(norm), scales[reader])
    for name, scale in scales.items():
        module = copied.get_submodule(name)
        module.weight = nn.Parameter(scaled_columns(module, module.weight.detach(), scale))  # type: ignore[operator]
        if name not in foldable:
            module.register_forward_pre_hook(_Divide(along_channels(module, scale)))
    return copied


def _foldable(model: nn.Module, scales: Mapping[str, Tensor], norms: Mapping[str, str]) -> dict[str, str]:
    """Layers whose scales can go into the norm before them, and that norm."""
    modules = dict(model.named_modules())
    readers: defaultdict[str, list[str]] = defaultdict(list)
    for name, norm in norms.items():
        if name in modules and norm in modules:
            entry = f"{name}.0" if isinstance(modules[name], nn.Sequential) else name
            readers[norm].append(entry)
    folded = {}
    for norm, names in readers.items():
        shared = {scales[name].numpy().tobytes() for name in names if name in scales}
        if len(shared) == 1 and all(name in scales for name in names) and _is_affine(modules[norm]):
            folded.update(dict.fromkeys(names, norm))
    return folded


def _is_affine(norm: nn.Module) -> bool:
    """Whether the norm's last step is to multiply by its weight (Gemma's multiplies by 1 + weight)."""
    kind = type(norm).__name__
    known = isinstance(norm, nn.LayerNorm) or (kind.endswith("RMSNorm") and not kind.startswith("Gemma"))
    return known and getattr(norm, "weight", None) is not None


def _divide_norm(norm: nn.Module, scale: Tensor) -> None:
    for name in ("weight", "bias"):
        value = getattr(norm, name, None)
        if value is not None:
            setattr(norm, name, nn.Parameter(value.detach() / scale))


class _Divide:
    """A forward pre-hook that divides a layer's input; it is traced as one multiplication."""

    def __init__(self, scale: Tensor) -> None:
        self.inverse = 1 / scale

    def __call__(self, _module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (args[0] * self.inverse, *args[1:])
