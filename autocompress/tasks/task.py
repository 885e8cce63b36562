"""The Task record: a trained model with its data, metric and loss. A user can write one in 20 lines."""

from __future__ import annotations

import functools
import hashlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from autocompress.errors import DataError

Inputs = dict[str, Tensor]
Batch = tuple[Inputs, Tensor]

# torch's own encoder layers would compute a whole layer in one kernel, past the modules that stand in a layer's place,
# and neither hooks nor the exporter see into it
torch.backends.mha.set_fastpath_enabled(False)


#: Batches whose samples are sorted by length together.
LENGTH_CHUNK = 16


#: Samples that calibrate.
CALIBRATION = 256


#: Validation samples under which there are too few to divide: both parts are then all of them.
MIN_DIVIDED = 100


class Column(Protocol):
    """One named input of all samples: a tensor ``(n, …)``, a list of tensors, or anything lazy like it."""

    def __len__(self) -> int:
        """Number of samples."""
        ...

    def __getitem__(self, index: int, /) -> Any:
        """The input of one sample, without batch dimension."""
        ...


@dataclass(frozen=True)
class Examples:
    """One split.

    Attributes:
        inputs: the model's keyword arguments, each a column of n samples.
        targets: ``(n,)`` class numbers, or whatever the task's loss and metric take.
        padding: value that fills a ragged column up to the longest sample of its batch.
    """

    inputs: Mapping[str, Column]
    targets: Tensor
    padding: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse empty data and columns of other lengths than the targets."""
        if not len(self.targets):
            raise DataError("a split has no samples")
        for name, column in self.inputs.items():
            if len(column) != len(self.targets):
                raise DataError(f"input {name!r} has {len(column)} samples, but there are {len(self.targets)} targets")

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.targets)

    def batch(self, indices: Sequence[int] | NDArray[np.int64]) -> Batch:
        """Inputs ``{name: (len(indices), …)}`` and targets ``(len(indices),)`` of some samples."""
        rows = [int(i) for i in indices]
        return {name: self._column(name, rows) for name in self.inputs}, self.targets[rows]

    def _column(self, name: str, rows: list[int]) -> Tensor:
        column = self.inputs[name]
        if isinstance(column, Tensor):
            return column[rows]
        samples = [torch.as_tensor(column[i]) for i in rows]
        if name in self.padding:
            return nn.utils.rnn.pad_sequence(samples, batch_first=True, padding_value=self.padding[name])
        return torch.stack(samples)

    @cached_property
    def by_length(self) -> NDArray[np.int64]:
        """Sample numbers, shortest first (by the first ragged column), so that batches waste little padding."""
        for name in self.padding:
            lengths = [len(self.inputs[name][i]) for i in range(len(self))]
            return np.argsort(lengths, kind="stable")
        return np.arange(len(self))

    def batches(self, size: int) -> Iterator[tuple[NDArray[np.int64], Inputs, Tensor]]:
        """All samples once, in batches of up to `size`: sample numbers, inputs, targets."""
        order = self.by_length
        for start in range(0, len(order), size):
            rows = order[start : start + size]
            inputs, targets = self.batch(rows)
            yield rows, inputs, targets

    def random_batches(self, size: int, count: int, seed: int) -> Iterator[NDArray[np.int64]]:
        """`count` batches of `size` sample numbers, drawn with replacement.

        Where lengths vary, samples of like length share a batch (sorted within chunks of `LENGTH_CHUNK` batches,
        whose order is shuffled again), so that little of a step goes into padding.
        """
        draw = np.random.default_rng(seed)
        rank = np.empty(len(self), dtype=np.int64)
        rank[self.by_length] = np.arange(len(self))
        for start in range(0, count, LENGTH_CHUNK):
            rows = draw.integers(0, len(self), (min(LENGTH_CHUNK, count - start), size))
            if self.padding:
                flat = rows.reshape(-1)
                rows = draw.permutation(flat[np.argsort(rank[flat], kind="stable")].reshape(rows.shape))
            yield from rows

    def subset(self, count: int, seed: int = 0) -> Examples:
        """`count` samples drawn without replacement (all of them when there are no more)."""
        if count >= len(self):
            return self
        rows = np.sort(np.random.default_rng(seed).permutation(len(self))[:count])
        return self.take(rows)

    def take(self, rows: Sequence[int] | NDArray[np.int64]) -> Examples:
        """The given samples, in the given order."""
        index = [int(i) for i in rows]
        columns: dict[str, Column] = {
            name: column[index] if isinstance(column, Tensor) else [column[i] for i in index]
            for name, column in self.inputs.items()
        }
        return Examples(columns, self.targets[index], self.padding)


@dataclass(frozen=True)
class Parts:
    """Sample numbers of the two parts of a validation split, ascending.

    Attributes:
        select: what the search chooses by.
        confirm: what the front is chosen by at the end.
    """

    select: NDArray[np.int64]
    confirm: NDArray[np.int64]

    @property
    def divided(self) -> bool:
        """Whether they are two; the parts of a small split are both the whole of it."""
        return len(np.intersect1d(self.select, self.confirm)) == 0


def divide(targets: Tensor, ordered: bool = False, seed: int = 0) -> Parts:
    """Halve a validation split.

    Drawn by chance, where there is one target per sample within each class (or among those of like value), so that no
    class has more than one sample more in either part; at the middle where neighbours depend on each other.

    Args:
        targets: ``(n,)`` or ``(n, …)``; fewer than `MIN_DIVIDED` are not divided.
        ordered: neighbouring samples depend on each other.
        seed: of the draw.
    """
    order = np.arange(len(targets))
    if len(targets) < MIN_DIVIDED:
        return Parts(order, order)
    if ordered:
        middle = (len(targets) + 1) // 2
        return Parts(order[:middle], order[middle:])
    order = np.random.default_rng(seed).permutation(order)
    if targets.ndim == 1:
        order = order[np.argsort(targets.numpy()[order], kind="stable")]
    return Parts(np.sort(order[::2]), np.sort(order[1::2]))


@dataclass(frozen=True)
class Metric:
    """How good a model's outputs are.

    Attributes:
        name: shown in reports.
        maximize: whether more is better.
        score: outputs ``(n, …)`` and targets ``(n, …)`` to one number.
        per_sample: the same to ``(n,)`` numbers whose mean is the score, where there is such a form;
            gives the standard error.
        fraction: whether values lie in [0, 1]; a point is then a hundredth, else one unit of the metric.
        reduce: a batch's outputs and targets to statistics ``(batch, …)``, which `score` and `per_sample` then take
            in the outputs' place; for outputs that are too large to keep.
    """

    name: str
    maximize: bool
    score: Callable[[NDArray[Any], NDArray[Any]], float]
    per_sample: Callable[[NDArray[Any], NDArray[Any]], NDArray[Any]] | None = None
    fraction: bool = True
    reduce: Callable[[NDArray[Any], NDArray[Any]], NDArray[Any]] | None = None

    def kept(self, outputs: NDArray[Any], targets: NDArray[Any]) -> NDArray[Any]:
        """What scoring keeps of a batch: its statistics ``(batch, …)``, or the outputs themselves."""
        return outputs if self.reduce is None else self.reduce(outputs, targets)

    @property
    def points(self) -> float:
        """Points per unit: a fraction's points are hundredths of it, another metric's are its own unit."""
        return 100.0 if self.fraction else 1.0


def _hits(logits: NDArray[Any], targets: NDArray[Any]) -> NDArray[Any]:
    hits: NDArray[Any] = (logits.argmax(axis=-1) == targets).astype(float)
    return hits


#: Share of samples whose largest logit is their class.
ACCURACY = Metric("accuracy", True, lambda logits, targets: float(_hits(logits, targets).mean()), _hits)


@dataclass(frozen=True)
class Snippet:
    """Python that makes inputs of a model whose folder is in the variable `folder`.

    Attributes:
        imports: modules, as after ``import``.
        inputs: an expression for a mapping of input names to arrays.
    """

    imports: str
    inputs: str


@dataclass(frozen=True)
class Task:
    """Everything the search has to know about a model's job.

    Attributes:
        name: shown in reports.
        model: the trained dense model, fp32, called with the inputs as keyword arguments; returns logits,
            or an object that has `logits`.
        train: for recovery and calibration; never scored.
        validation: what is chosen by; see `parts`.
        test: shown for the front, never used to choose.
        metric: of the logits.
        loss: ``(logits, targets) -> scalar``; the hard part of the recovery.
        dynamic_axes: input name to ``{axis: name}`` that may change beside the batch (axis 0).
        query: ``(batch, sequence_length or None) -> inputs`` of one workload query; by default the first
            training samples.
        classes: names, where there are any.
        batch_size: of recovery.
        score_batch: samples that are run at once where the model is scored.
        save_processor: writes tokenizer or image processor into a folder.
        snippet: makes inputs for a picked model; goes into its card.
        notes: what a user should know of how the data was made, such as splits that were missing.
        student: another network for the same inputs and classes that is compressed and recovered in `model`'s place,
            with `model` as its teacher and reference.
        ordered: neighbouring samples depend on each other, as consecutive blocks of one text do.
    """

    name: str
    model: nn.Module
    train: Examples
    validation: Examples
    test: Examples
    metric: Metric = ACCURACY
    loss: Callable[[Tensor, Tensor], Tensor] = nn.functional.cross_entropy
    dynamic_axes: Mapping[str, Mapping[int, str]] = field(default_factory=dict)
    query: Callable[[int, int | None], Inputs] | None = None
    classes: tuple[str, ...] = ()
    batch_size: int = 32
    score_batch: int = 32
    save_processor: Callable[[Path], None] | None = None
    snippet: Snippet | None = None
    notes: tuple[str, ...] = ()
    student: nn.Module | None = None
    ordered: bool = False

    def __post_init__(self) -> None:
        """Refuse splits whose inputs differ, and put the model into evaluation mode."""
        for name, split in (("validation", self.validation), ("test", self.test)):
            if set(split.inputs) != set(self.train.inputs):
                raise DataError(f"{name} has inputs {sorted(split.inputs)}, but train has {sorted(self.train.inputs)}")
        self.model.eval()
        self.source.eval()

    @property
    def source(self) -> nn.Module:
        """What is compressed: the student where one is given, else the model."""
        return self.model if self.student is None else self.student

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of the model's inputs, in order."""
        return tuple(self.train.inputs)

    def calibration(self, count: int = CALIBRATION) -> Examples:
        """Training samples that calibrate ranges and Gram matrices; seeded, never validation."""
        return self._calibration if count == CALIBRATION else self.train.subset(count, seed=1)

    @cached_property
    def _calibration(self) -> Examples:
        return self.train.subset(CALIBRATION, seed=1)

    @cached_property
    def parts(self) -> Parts:
        """The two parts of validation; the same in every process."""
        return divide(self.validation.targets, self.ordered)

    def selection(self, count: int) -> Examples:
        """Up to `count` samples of validation's select part, drawn with a seed."""
        rows = np.random.default_rng(0).permutation(self.parts.select)[:count]
        return self.validation.take(np.sort(rows))

    @cached_property
    def loss_key(self) -> str:
        """What tells the loss from another in keys: its name, and what it was given beforehand."""
        return _loss_key(self.loss)

    @property
    def training_key(self) -> str:
        """What a training depends on beside its settings: model, data, loss, batch size."""
        return f"{self.identity}-{self.loss_key}-{self.batch_size}"

    def workload_inputs(self, batch: int, sequence_length: int | None) -> Inputs:
        """Inputs of one query of the profile's workload, batch first.

        Of a task without a query of its own, training samples: as they are, but for inputs whose first axis after the
        batch is free. These are laid end to end up to the workload's length, or that of the longest training sample
        where it is shorter: nobody said that the model takes more.
        """
        if self.query is not None:
            return self.query(batch, sequence_length)
        rows = list(itertools.islice(itertools.cycle(range(len(self.train))), batch))
        inputs = self.train.batch(rows)[0]
        if sequence_length is not None:
            length = min(sequence_length, self.longest)
            inputs |= {name: end_to_end(self.train.inputs[name], batch, length) for name in self._free_inputs}
        return inputs

    @cached_property
    def longest(self) -> int:
        """Positions of the longest training sample in inputs whose first axis after the batch is free; 0 for none."""
        columns = [self.train.inputs[name] for name in self._free_inputs]
        return max((len(column[row]) for column in columns for row in range(len(self.train))), default=0)

    @property
    def _free_inputs(self) -> tuple[str, ...]:
        return tuple(name for name in self.train.inputs if 1 in self.dynamic_axes.get(name, {}))

    def trace_inputs(self) -> Inputs:
        """Two real samples, of unequal length where lengths vary, so that masks are traced and not dropped."""
        order = self.train.by_length
        return self.train.batch([int(order[len(order) // 2]), int(order[-1])])[0]

    @cached_property
    def identity(self) -> str:
        """Fingerprint of the weights and of the data (all targets, and 256 inputs spread over each split)."""
        digest = hashlib.sha256(self.name.encode())
        weights = itertools.chain(
            *(m.state_dict().items() for m in {id(m): m for m in (self.model, self.source)}.values())
        )
        for name, value in weights:
            digest.update(name.encode())
            digest.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
        for split in (self.train, self.validation, self.test):
            rows = np.unique(np.linspace(0, len(split) - 1, 256).astype(int))
            digest.update(str(len(split)).encode())
            inputs, _targets = split.batch(rows)
            for column in (*inputs.values(), split.targets):
                digest.update(column.contiguous().view(-1).numpy().tobytes())
        return digest.hexdigest()[:16]


def _loss_key(loss: Any) -> str:
    if isinstance(loss, functools.partial):
        return f"{_loss_key(loss.func)}{loss.args!r}{sorted(loss.keywords.items())!r}"
    name = getattr(loss, "__qualname__", None)
    if name is None:
        return repr(loss)
    code = getattr(loss, "__code__", None)
    return f"{loss.__module__}.{name}" + (f":{code.co_firstlineno}" if code else "")


def logits_of(output: Any) -> Tensor:
    """The logits in whatever a model returns: a tensor, an object with `logits`, or a tuple."""
    if isinstance(output, Tensor):
        return output
    if hasattr(output, "logits"):
        return output.logits  # type: ignore[no-any-return]
    if isinstance(output, tuple | list) and output and isinstance(output[0], Tensor):
        return output[0]
    raise DataError(f"the model must return a tensor or an object with .logits, but returned {type(output).__name__}")


def end_to_end(column: Column, batch: int, length: int) -> Tensor:
    """Samples ``(positions, …)`` laid end to end, in turn as often as it takes: ``(batch, length, …)``."""
    pieces: list[Tensor] = []
    total, row = 0, 0
    while total < batch * length:
        pieces.append(torch.as_tensor(column[row % len(column)]))
        total, row = total + len(pieces[-1]), row + 1
        if row == len(column) and not total:
            raise DataError("every training sample is empty: there is nothing to make a query of")
    whole = torch.cat(pieces)[: batch * length]
    return whole.reshape(batch, length, *whole.shape[1:])
