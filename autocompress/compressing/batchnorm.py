"""Statistics of batch norms, taken again after what feeds them has changed. Nothing else of a model is touched."""

from __future__ import annotations

import itertools

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from autocompress.errors import DataError
from autocompress.survey import evaluating
from autocompress.tasks.task import Examples


def refresh_batchnorm(model: nn.Module, examples: Examples, batches: int = 100, batch_size: int = 32) -> None:
    """Take the running mean and variance of every batch norm again; edits the model. No-op without batch norms.

    Both become plain averages over the batches (of the batch means and of the unbiased batch variances), each batch
    being normalised by its own statistics on its way, as in training; dropout stays off. Removed channels shift what
    the later norms see, and a model that is judged by stale statistics looks far worse than it is.

    Args:
        model: called with the inputs as keyword arguments.
        examples: training samples; drawn from with a fixed seed.
        batches: at most so many; a last one that is not full is left out.
        batch_size: samples in each.

    Raises:
        DataError: there are fewer than two samples, or a layer's statistics are NaN or infinite; the model then keeps
            the ones it had.
    """
    norms = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None
    }
    if not norms:
        return
    if len(examples) < 2:
        raise DataError("batch norm statistics need at least 2 samples, but there is 1")
    before = {name: {key: value.clone() for key, value in norm.named_buffers()} for name, norm in norms.items()}
    try:
        _average(model, norms, examples.subset(batches * batch_size), min(batch_size, len(examples)))
    except BaseException:
        for name, norm in norms.items():
            norm.load_state_dict(before[name], strict=False)
        raise


def _average(model: nn.Module, norms: dict[str, _BatchNorm], examples: Examples, batch_size: int) -> None:
    """Average over all full batches, the norms alone in training mode."""
    momenta = {name: norm.momentum for name, norm in norms.items()}
    try:
        with evaluating(model), torch.no_grad():
            for norm in norms.values():
                norm.reset_running_stats()
                norm.momentum = None  # torch then weighs every batch alike
                norm.training = True
            for _rows, inputs, _targets in itertools.islice(examples.batches(batch_size), len(examples) // batch_size):
                model(**inputs)
    finally:
        for name, norm in norms.items():
            norm.momentum = momenta[name]
    for name, norm in norms.items():
        if not all(torch.isfinite(value).all() for value in norm.buffers()):
            raise DataError(f"layer {name}: its batch statistics hold NaN or infinity")
