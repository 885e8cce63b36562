"""What the parts that a plan may remove give on calibration samples: their mean output, and how much they change."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.compressing.calibrate import real_positions
from autocompress.errors import DataError, ModelError
from autocompress.survey import evaluating, hooked
from autocompress.tasks.task import Examples, Inputs


@dataclass(frozen=True, eq=False)
class OutputStatistics:
    """Of one module's outputs y ``(…, width)``, over samples and positions; float64.

    Attributes:
        mean: E y, ``(width,)``.
        square: E |y|², ``()``.
        change: E |y - x|², ``()``, where its first argument x is shaped like y; else `square`.
    """

    mean: Tensor
    square: Tensor
    change: Tensor


def output_statistics(
    model: nn.Module, names: Iterable[str], examples: Examples, batch_size: int = 32
) -> dict[str, OutputStatistics]:
    """Statistics of several modules' outputs in one pass; padding (attention_mask 0) is left out.

    Args:
        model: is run in evaluation mode.
        names: of modules that give a tensor, or a tuple whose first element is one.
        examples: calibration samples.
        batch_size: of the pass.

    Raises:
        ModelError: a module gives no tensor, or is not called.
        DataError: an output holds NaN or infinity.
    """
    sums = {name: _Sums() for name in names}
    inputs: Inputs = {}

    def hook_for(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            value = output[0] if isinstance(output, tuple | list) and output else output
            if not isinstance(value, Tensor):
                raise ModelError(f"{name}: must give a tensor or a tuple that begins with one, but gave {type(value)}")
            first = args[0] if args else next(iter(kwargs.values()), None)
            sums[name].add(value, first, inputs)

        return hook

    handles = (model.get_submodule(name).register_forward_hook(hook_for(name), with_kwargs=True) for name in sums)
    with hooked(handles), evaluating(model), torch.inference_mode():
        for _rows, batch, _targets in examples.batches(batch_size):
            inputs = batch
            model(**batch)
    return {name: total.statistics(name) for name, total in sums.items()}


class _Sums:
    """Sums over the positions that were seen."""

    def __init__(self) -> None:
        self.count = 0
        self.total = torch.zeros(0, dtype=torch.float64)
        self.square = torch.zeros((), dtype=torch.float64)
        self.change = torch.zeros((), dtype=torch.float64)

    def add(self, output: Tensor, first: Any, inputs: Inputs) -> None:
        before = first if isinstance(first, Tensor) and first.shape == output.shape else torch.zeros_like(output)
        values = (real_positions(value, inputs) for value in (output, output - before))
        rows, change = (value.to(torch.float64) for value in values)
        rows = rows.reshape(-1, output.shape[-1])
        self.total = rows.sum(dim=0) + (self.total if self.count else 0.0)
        self.square = self.square + rows.pow(2).sum()
        self.change = self.change + change.pow(2).sum()
        self.count += len(rows)

    def statistics(self, name: str) -> OutputStatistics:
        if not self.count:
            raise ModelError(f"{name}: was not called on the calibration samples, so it has no mean output")
        if not torch.isfinite(self.total).all():
            raise DataError(f"{name}: its outputs on the calibration samples hold NaN or infinity")
        return OutputStatistics(self.total / self.count, self.square / self.count, self.change / self.count)
