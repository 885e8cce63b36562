"""The dense model's predictions on training samples: computed when first asked for, kept on disk where they fit."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autocompress.distill.losses import Prediction, outcomes
from autocompress.records import write_atomic
from autocompress.survey import evaluating
from autocompress.tasks.task import Examples, Inputs, Task, logits_of

#: Predictions per token are kept up to this many bytes, else computed anew each time.
CACHE_BYTES = 256 * 2**20
#: With more classes than this, predictions per token are cut down to the likeliest ones and the mass of the rest.
MANY_CLASSES = 1000
LIKELIEST = 64
#: Stored logits that err by more than this are another model's.
TOLERANCE = 1e-2

Array = NDArray[np.float32]


class TeacherCache:
    """The dense model's predictions on training samples.

    Predictions ``(n, classes)`` are always kept. Predictions per token are kept where all of them fit into
    `CACHE_BYTES` and padding is told by an `attention_mask`; above `MANY_CLASSES` classes, cut down to the `LIKELIEST`
    logits and the log-sum-exp of the rest.

    Args:
        path: an .npy file ``(n_train, classes)`` or ``(n_train, longest, values)``; NaN is not computed yet. Values are
            the logits, or the likeliest ones, their rest, and (exact in float32 below 2²⁴) their class numbers. A file
            of another shape or of another model's logits is ignored. None: they are kept in memory only.
        task: gives teacher and samples.
    """

    def __init__(self, path: Path | None, task: Task) -> None:
        self.path = path
        self.task = task
        self._values: Array | None = None
        self._stored = _read(path, len(task.train)) if path else None
        self._cut = False
        self._fresh = 0

    def prediction(self, rows: NDArray[np.int64], inputs: Inputs | None = None) -> Prediction:
        """What the teacher answers to some training samples, batched as `Examples.batch` does; `inputs` if at hand."""
        if inputs is None:
            inputs = self.task.train.batch(rows)[0]
        if self._stored is not None:
            stored, self._stored = self._stored, None
            self._values = stored if self._is_ours(stored) else None
        missing = rows if self._values is None else np.unique(rows[self._missing(rows, inputs)])
        if len(missing):
            asked = inputs if self._values is None else self.task.train.batch(missing)[0]
            logits = self.ask(asked)
            if self._values is None:
                self._values = self._empty(logits, asked)
            if self._values is None:
                return Prediction(logits)
            self._keep(missing, asked, logits)
        return self._recall(rows, inputs)

    def ask(self, inputs: Inputs) -> Tensor:
        """The teacher's logits for any inputs, computed now."""
        # no_grad, not inference_mode: what hooks see on the way enters a student's graph, and so may the logits
        with evaluating(self.task.model), torch.no_grad():
            return logits_of(self.task.model(**inputs)).detach()

    def save(self) -> None:
        """Write what is new to the disk."""
        if self.path and self._fresh and self._values is not None:
            buffer = io.BytesIO()
            np.save(buffer, self._values)
            write_atomic(self.path, buffer.getvalue())
            self._fresh = 0

    def _missing(self, rows: NDArray[np.int64], inputs: Inputs) -> NDArray[np.bool_]:
        assert self._values is not None
        if self._values.ndim == 2:
            missing: NDArray[np.bool_] = np.isnan(self._values[rows, 0])
        else:
            real = _real_tokens(inputs, self._values.shape[1])
            missing = np.asarray((np.isnan(self._values[rows, : real.shape[1], 0]) & real).any(axis=1))
        return missing

    def _keep(self, rows: NDArray[np.int64], inputs: Inputs, logits: Tensor) -> None:
        assert self._values is not None
        values = self._encode(logits)
        if values.ndim == 3:
            real = _real_tokens(inputs, values.shape[1])
            values[~real] = np.nan
            self._values[rows, : real.shape[1]] = values
        else:
            self._values[rows] = values
        self._fresh += len(rows)

    def _recall(self, rows: NDArray[np.int64], inputs: Inputs) -> Prediction:
        assert self._values is not None
        values = self._values[rows]
        if values.ndim == 3:  # what pads a batch has no prediction: zeros, which every mask leaves out
            values = np.nan_to_num(values[:, : _real_tokens(inputs, values.shape[1]).shape[1]], nan=0.0)
        found = torch.from_numpy(values)
        if not self._cut:
            return Prediction(found)
        return Prediction(found[..., : LIKELIEST + 1], found[..., LIKELIEST + 1 :].to(torch.int64))

    def _is_ours(self, stored: Array) -> bool:
        """Whether the teacher answers one stored sample as the file says."""
        known = np.flatnonzero(~np.isnan(stored.reshape(len(stored), -1)[:, 0]))
        if not len(known):
            return False
        inputs, _targets = self.task.train.batch(known[:1])
        logits = self.ask(inputs)
        fresh = self._empty(logits, inputs)
        if fresh is None or fresh.shape != stored.shape:
            return False
        values = self._encode(logits)[0]
        width = LIKELIEST + 1 if self._cut else None  # class numbers of equal logits may change places
        kept = stored[known[0]][: len(values)]
        return bool(np.allclose(values[..., :width], kept[..., :width], rtol=TOLERANCE, atol=TOLERANCE))

    def _empty(self, logits: Tensor, inputs: Inputs) -> Array | None:
        """An array for the predictions on all samples, nothing known yet; None where they are not kept."""
        classes = logits.shape[-1]
        if logits.dim() == 2:
            return np.full((len(self.task.train), classes), np.nan, dtype=np.float32)
        longest = _longest(self.task.train, logits, inputs)
        self._cut = classes > MANY_CLASSES
        shape = (len(self.task.train), longest, 2 * LIKELIEST + 1 if self._cut else classes)
        if logits.dim() != 3 or not longest or math.prod(shape) * 4 > CACHE_BYTES:
            return None
        return np.full(shape, np.nan, dtype=np.float32)

    def _encode(self, logits: Tensor) -> Array:
        """Logits as the cache keeps them."""
        if self._cut:
            classes = logits.topk(LIKELIEST, dim=-1).indices
            logits = torch.cat([outcomes(logits, classes), classes.to(torch.float32)], dim=-1)
        values: Array = logits.to(torch.float32).numpy().copy()
        return values


def _read(path: Path, samples: int) -> Array | None:
    """What the file holds, or None where it holds no predictions for so many samples."""
    try:
        stored = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):  # absent, torn, or no array at all
        return None
    fits = isinstance(stored, np.ndarray) and stored.dtype == np.float32 and stored.ndim in (2, 3)
    return stored if fits and len(stored) == samples else None


def _longest(train: Examples, logits: Tensor, inputs: Inputs) -> int:
    """Tokens of the longest sample; 0 where nothing tells padding from tokens though lengths vary."""
    mask = inputs.get("attention_mask")
    if mask is None:
        return 0 if train.padding else logits.shape[1]
    if mask.shape != logits.shape[:2]:
        return 0
    return len(train.inputs["attention_mask"][int(train.by_length[-1])])


def _real_tokens(inputs: Inputs, longest: int) -> NDArray[np.bool_]:
    """Which tokens ``(n, t)`` of a batch are no padding; t is `longest` where nothing pads."""
    mask = inputs.get("attention_mask")
    if mask is None:
        return np.ones((len(next(iter(inputs.values()))), longest), dtype=bool)
    real: NDArray[np.bool_] = mask.bool().numpy()
    return real
