"""The matrix work whose results a bank stores, as data: what is computed, with which settings, from which entries.

A job is small enough to be sent to another process; its tensors are files of the store. Jobs run on one thread, so that
the same inputs give the same bits however many cores there are.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from autocompress.compressing.factorize import Decomposition, decompose
from autocompress.compressing.prune import Consumer, repair, structure_columns, structure_order
from autocompress.compressing.store import Store, Tensors, digest
from autocompress.layers import Slice
from autocompress.plan import Factorize

#: Name of the only tensor of most entries.
VALUE = "value"


@dataclass(frozen=True)
class Job:
    """One entry to compute.

    Attributes:
        kind: a key of `COMPUTE`.
        settings: plain data.
        inputs: name to the key of the entry that holds the tensor.
        cost_s: about how long it takes.
    """

    kind: str
    settings: Mapping[str, Any]
    inputs: Mapping[str, str]
    cost_s: float = field(default=0.0, compare=False)

    @property
    def key(self) -> str:
        """Of the entry that it computes."""
        return Store.key(self.kind, self.settings, self.inputs)


def run_job(job: Job, store: Store, resolve: Callable[[str], Tensor]) -> Tensors:
    """The entry of a job: read, or computed on one thread and stored.

    Args:
        job: what to compute.
        store: that holds the results.
        resolve: key of an input to its tensor.
    """

    def compute() -> Mapping[str, Tensor]:
        inputs = {name: resolve(key) for name, key in job.inputs.items()}
        with one_thread():
            return COMPUTE[job.kind](job.settings, inputs)

    return store.of(job.kind, job.settings, job.inputs, compute)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """One torch thread; afterwards as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def decomposition_job(weight: Tensor, gram: Tensor, settings: Factorize) -> Job:
    """The job of all ranks of a weight."""
    inputs = {"weight": input_key(weight), "gram": input_key(gram)}
    cost = 5e-10 * weight.numel() * min(len(weight), weight[0].numel())
    return Job("decomposition", {"method": settings.method, "split": settings.split}, inputs, cost)


def input_key(value: Tensor) -> str:
    """Key of a tensor by its content."""
    return f"input-{digest(value)}"


def output_errors(weight: Tensor, gram: Tensor, columns: Tensor, solved: Tensor) -> Tensor:
    """What a layer's output loses, and what it is: ``tr(D·G·Dᵀ), tr(W·G·Wᵀ)`` with D = W - W'; float64 ``(2,)``.

    Args:
        weight: W, ``(out, in)``.
        gram: second moment of its inputs, ``(in, in)``.
        columns: those that W' has; the others are zero.
        solved: W', ``(out, len(columns))``.
    """
    dense, moment = weight.to(torch.float64), gram.to(torch.float64)
    lost = dense.clone()
    lost[:, columns] -= solved.to(torch.float64)
    traces = [((matrix @ moment) * matrix).sum().clamp(min=0.0) for matrix in (lost, dense)]
    return torch.stack(traces)


def _order(settings: Mapping[str, Any], inputs: Tensors) -> Tensors:
    """Structures of a group, the one that is missed least first."""
    consumers = []
    for number, (where, window) in enumerate(zip(settings["slices"], settings["windows"], strict=True)):
        item = Slice(**{**where, "index": tuple(where["index"])})
        columns = structure_columns(item, settings["size"], window)
        gram = inputs.get(f"gram{number}", torch.zeros(0))
        consumers.append(Consumer(inputs[f"weight{number}"], gram, columns))
    return {VALUE: structure_order(settings["score"], consumers, inputs.get("fisher"), settings["seed"])}


def _repair(settings: Mapping[str, Any], inputs: Tensors) -> Tensors:
    """A layer's matrix re-solved for some columns."""
    return {VALUE: repair(inputs["weight"], inputs["gram"], torch.tensor(settings["columns"]))}


def _error(settings: Mapping[str, Any], inputs: Tensors) -> Tensors:
    """`output_errors` of a layer that keeps some columns, re-solved where there is a solved matrix."""
    columns, weight = torch.tensor(settings["columns"]), inputs["weight"]
    return {VALUE: output_errors(weight, inputs["gram"], columns, inputs.get("solved", weight[:, columns]))}


def _decomposition(settings: Mapping[str, Any], inputs: Tensors) -> Tensors:
    """A decomposition that holds every rank; its fields by name."""
    asked = Factorize(1, settings["method"], settings["split"])
    made = decompose(inputs["weight"], inputs.get("gram", torch.zeros(0)), asked)
    return {item.name: getattr(made, item.name) for item in fields(Decomposition)}


#: Kind of an entry to the function that computes it.
COMPUTE: dict[str, Callable[[Mapping[str, Any], Tensors], Tensors]] = {
    "order": _order,
    "repair": _repair,
    "error": _error,
    "decomposition": _decomposition,
}
