"""What calibration samples tell about each layer's input: its Gram matrix, and the range of its values."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from autocompress.errors import DataError
from autocompress.survey import evaluating, hooked
from autocompress.tasks.task import Examples, Inputs

#: Share of the values that percentile calibration leaves out at either end.
TAIL = 1e-5
#: Bins of the histogram, and candidate ranges, of the search for the least squared error.
BINS = 2048
SHARES = 100


def watch_inputs(
    model: nn.Module, names: Iterable[str], examples: Examples, batch_size: int, see: Callable[[str, Tensor], None]
) -> None:
    """Run the model over the examples and show `see` each input of each named module, without its padding."""
    batch: Inputs = {}

    def hook_for(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(_module: nn.Module, args: tuple[Any, ...]) -> None:
            see(name, real_positions(args[0].detach(), batch))

        return hook

    handles = (model.get_submodule(name).register_forward_pre_hook(hook_for(name)) for name in names)
    _run(model, handles, examples, batch_size, batch)


def watch_outputs(
    model: nn.Module, names: Iterable[str], examples: Examples, batch_size: int, see: Callable[[str, Tensor], None]
) -> None:
    """Run the model over the examples and show `see` each output of each named module, without its padding."""
    batch: Inputs = {}

    def hook_for(name: str) -> Callable[[nn.Module, tuple[Any, ...], Tensor], None]:
        def hook(_module: nn.Module, _args: tuple[Any, ...], output: Tensor) -> None:
            see(name, real_positions(output.detach(), batch))

        return hook

    handles = (model.get_submodule(name).register_forward_hook(hook_for(name)) for name in names)
    _run(model, handles, examples, batch_size, batch)


def _run(
    model: nn.Module, handles: Iterable[RemovableHandle], examples: Examples, batch_size: int, batch: Inputs
) -> None:
    """All examples once, in evaluation mode, each batch's inputs in `batch`; the hooks are gone afterwards."""
    with hooked(handles), evaluating(model), torch.inference_mode():
        for _rows, inputs, _targets in examples.batches(batch_size):
            batch.update(inputs)
            model(**inputs)


def real_positions(value: Tensor, inputs: Inputs) -> Tensor:
    """What of a layer's values ``(n, t, width)`` is no padding (attention_mask 0): ``(positions, width)``.

    Values of another shape, and those of a batch without padding, as they are. What nobody reads must not decide what
    is kept of a layer: of short texts padded to one length, most positions are such.
    """
    mask = inputs.get("attention_mask")
    if mask is None or value.dim() != 3 or mask.shape != value.shape[:2] or bool(mask.all()):
        return value
    return value[mask != 0]


#: Patches of a convolution's input that are taken of one batch.
MOST_PATCHES = 4096


def gram_matrices(
    model: nn.Module, names: Iterable[str], examples: Examples, batch_size: int = 32
) -> dict[str, Tensor]:
    """``Xᵀ·X / N`` of each layer's inputs X, float64: what of its output error the inputs decide.

    X is ``(N, in_features)`` of a linear and ``(N, in·kh·kw)`` of a convolution: the patches that its window sees, of
    each batch at most about `MOST_PATCHES`, at positions drawn with a fixed seed. Grouped convolutions and embeddings
    have no such matrix and are left out.

    Raises:
        DataError: an input holds NaN or infinity.
    """
    modules = {name: model.get_submodule(name) for name in names}
    modules = {name: module for name, module in modules.items() if _has_gram(module)}
    draws = {name: torch.Generator().manual_seed(0) for name in modules}
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def see(name: str, value: Tensor) -> None:
        module = modules[name]
        if isinstance(module, nn.Conv2d):
            value = patches_of(module, value, draws[name])
        rows = value.reshape(-1, value.shape[-1]).to(torch.float32)
        if name not in sums:
            sums[name] = torch.zeros(rows.shape[1], rows.shape[1], dtype=torch.float64)
            counts[name] = 0
        sums[name] += (rows.T @ rows).to(torch.float64)
        counts[name] += rows.shape[0]

    watch_inputs(model, modules, examples, batch_size, see)
    for name, total in sums.items():
        if not torch.isfinite(total).all():
            raise DataError(f"layer {name}: its calibration inputs hold NaN or infinity")
    return {name: total / counts[name] for name, total in sums.items()}


def _has_gram(module: nn.Module) -> bool:
    return not isinstance(module, nn.Embedding) and not (isinstance(module, nn.Conv2d) and module.groups > 1)


def unfolded(module: nn.Conv2d, images: Tensor) -> Tensor:
    """What each output position of a convolution reads, all groups side by side: ``(n, positions, channels·kh·kw)``."""
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    padded = nn.functional.pad(images, module._reversed_padding_repeated_twice, mode)
    columns: Tensor = nn.functional.unfold(padded, module.kernel_size, module.dilation, stride=module.stride)
    return columns.transpose(1, 2)


def patches_of(module: nn.Conv2d, value: Tensor, draw: torch.Generator) -> Tensor:
    """Patches of a batch ``(n, in, height, width)`` in the order of the weight's columns, ``(patches, in·kh·kw)``."""
    share = max(1, MOST_PATCHES // len(value))
    found = []
    for image in value:  # one by one, so that only one image is unfolded at a time
        patches = unfolded(module, image[None])[0]
        if len(patches) > share:
            patches = patches[torch.randperm(len(patches), generator=draw)[:share]]
        found.append(patches)
    return torch.cat(found)


@dataclass(frozen=True)
class Range:
    """Lowest and highest value that an activation is calibrated to; always holds 0."""

    low: float
    high: float


Watch = Callable[[Callable[[str, Tensor], None]], None]


def input_ranges(
    model: nn.Module,
    names: Iterable[str],
    examples: Examples,
    calibrator: str = "percentile",
    *,
    levels: int = 256,
    tail: float = TAIL,
    batch_size: int = 32,
) -> dict[str, Range]:
    """Range of each layer's input.

    Args:
        model: in float.
        names: of its layers.
        examples: calibration samples.
        calibrator: "min-max" over all values; "percentile": leaves out a share `tail` of the values at either end,
            by quantiles taken per batch and averaged; "mse": the share of minimum and maximum whose rounding to
            `levels` steps errs least, values outside clipped.
        levels: of the quantizer.
        tail: share in [0, 1).
        batch_size: samples that run together.

    Raises:
        DataError: an input holds NaN or infinity.
    """
    listed = list(names)

    def watch(see: Callable[[str, Tensor], None]) -> None:
        watch_inputs(model, listed, examples, batch_size, lambda name, value: see(name, _finite(name, value, "inputs")))

    return _ranges(watch, calibrator, levels, tail)


def output_ranges(
    model: nn.Module,
    rectified: Mapping[str, bool],
    examples: Examples,
    calibrator: str = "percentile",
    *,
    tail: float = TAIL,
    batch_size: int = 32,
) -> dict[str, Range]:
    """Range of each named layer's output, of its positive part where `rectified`; otherwise as `input_ranges`."""

    def watch(see: Callable[[str, Tensor], None]) -> None:
        def see_used(name: str, value: Tensor) -> None:
            _finite(name, value, "outputs")
            see(name, value.relu() if rectified[name] else value)

        watch_outputs(model, rectified, examples, batch_size, see_used)

    return _ranges(watch, calibrator, 256, tail)


def _finite(name: str, value: Tensor, what: str) -> Tensor:
    if not torch.isfinite(value).all():
        raise DataError(f"layer {name}: its calibration {what} hold NaN or infinity")
    return value


def _ranges(watch: Watch, calibrator: str, levels: int, tail: float) -> dict[str, Range]:
    ends = _ends(watch, tail if calibrator == "percentile" else 0.0)
    if calibrator != "mse":
        return ends
    counts = _histograms(watch, ends)
    return {name: least_error_range(counts[name], span, levels) for name, span in ends.items()}


def _ends(watch: Watch, tail: float) -> dict[str, Range]:
    """Mean over batches of the quantiles `tail` and 1 - `tail`; for 0 the plain minimum and maximum over all."""
    lows: dict[str, list[float]] = {}
    highs: dict[str, list[float]] = {}

    def see(name: str, value: Tensor) -> None:
        flat = value.reshape(-1).to(torch.float32)
        cut = int(flat.numel() * tail)
        # so few of so many: several times quicker than kthvalue, which reorders them all
        low = flat.topk(cut + 1, largest=False).values[-1] if cut else flat.min()
        high = flat.topk(cut + 1).values[-1] if cut else flat.max()
        lows.setdefault(name, []).append(float(low))
        highs.setdefault(name, []).append(float(high))

    watch(see)
    ranges = {}
    for name in lows:
        low = min(lows[name]) if not tail else sum(lows[name]) / len(lows[name])
        high = max(highs[name]) if not tail else sum(highs[name]) / len(highs[name])
        ranges[name] = Range(min(0.0, low), max(0.0, high))
    return ranges


def _histograms(watch: Watch, ends: Mapping[str, Range]) -> dict[str, Tensor]:
    """How many values lie in each of `BINS` equal bins between the ends."""
    counts = {name: torch.zeros(BINS, dtype=torch.float64) for name in ends}

    def see(name: str, value: Tensor) -> None:
        low, high = ends[name].low, ends[name].high
        if low < high:
            counts[name] += torch.histc(value.to(torch.float32), BINS, low, high)

    watch(see)
    return counts


def least_error_range(counts: Tensor, ends: Range, levels: int) -> Range:
    """The share of a range whose rounding to `levels` steps has the least squared error on a histogram ``(bins,)``.

    Of `SHARES` shares up to 1; both ends shrink alike, so that the zero point stays.
    """
    if not ends.low < ends.high:
        return ends
    width = (ends.high - ends.low) / len(counts)
    centres = ends.low + width * (torch.arange(len(counts), dtype=torch.float64) + 0.5)
    best, least = ends, float("inf")
    for share in torch.linspace(1 / SHARES, 1, SHARES, dtype=torch.float64).tolist():
        span = Range(ends.low * share, ends.high * share)
        step = (span.high - span.low) / (levels - 1)
        zero = round(-span.low / step)
        rounded = (torch.clamp(torch.round(centres / step) + zero, 0, levels - 1) - zero) * step
        error = float((counts * (rounded - centres).pow(2)).sum())
        if error < least:
            best, least = span, error
    return best


def input_peaks(model: nn.Module, names: Iterable[str], examples: Examples, batch_size: int = 32) -> dict[str, Tensor]:
    """Largest size of each input channel of linears and convolutions, ``(in,)``.

    Raises `DataError` where an input holds NaN or infinity.
    """
    peaks: dict[str, Tensor] = {}
    listed = list(names)
    convolutions = {name for name in listed if isinstance(model.get_submodule(name), nn.Conv2d)}

    def see(name: str, value: Tensor) -> None:
        rows = value.transpose(1, -1) if name in convolutions else value
        peak = _finite(name, rows, "inputs").to(torch.float32).abs().reshape(-1, rows.shape[-1]).amax(dim=0)
        peaks[name] = torch.maximum(peaks[name], peak) if name in peaks else peak

    watch_inputs(model, listed, examples, batch_size, see)
    return peaks
