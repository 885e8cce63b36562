"""What passes over the calibration samples tell about a dense model: moments, squared gradients, outputs.

A pass costs the same for one layer as for all, so the first request computes all that are missing.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from functools import cached_property

import torch
from torch import Tensor

from autocompress.compressing.calibrate import gram_matrices
from autocompress.compressing.fisher import structure_fisher, weight_fisher
from autocompress.compressing.jobs import VALUE
from autocompress.compressing.outputs import output_statistics
from autocompress.compressing.store import Store, Tensors, digest
from autocompress.errors import ModelError
from autocompress.layers import Group, LayerTable
from autocompress.tasks.task import Task

#: Bytes of second moments, in float64, that one pass sums up beside the one asked for.
PASS_BYTES = 2_000_000_000


class Passes:
    """Results of passes over a task's calibration samples, each an entry of the store.

    Args:
        task: gives the dense model, which is never edited, the samples and the loss.
        table: the model's layers and groups.
        store: takes the entries.
    """

    def __init__(self, task: Task, table: LayerTable, store: Store) -> None:
        self.task = task
        self.model = task.source
        self.table = table
        self.store = store
        self.examples = task.calibration()

    @cached_property
    def origin(self) -> str:
        """The key of the model, its loss and its calibration samples."""
        samples = {
            f"{number} {name}": digest(value)
            for number, (_rows, inputs, targets) in enumerate(self.examples.batches(32))
            for name, value in {**inputs, "targets of the batch": targets}.items()
        }
        return Store.key(
            "origin", {"identity": self.task.identity, "model": repr(self.model), "loss": self.task.loss_key}, samples
        )

    def key(self, kind: str, name: str) -> str:
        """Of the entry of one layer, group or module: "moment", "fisher", "structure-fisher" or "output"."""
        return Store.key(kind, {"name": name}, {"model": self.origin})

    def moment(self, layer: str) -> Tensor:
        """Second moment of a layer's inputs, float32 ``(in·kh·kw, in·kh·kw)``.

        Raises:
            ModelError: there is none, since the layer is a grouped convolution or is not called.
            DataError: a calibration input holds NaN or infinity.
        """
        return self._entry("moment", layer, self._alongside(layer), self._moments)[VALUE]

    def fisher(self, layer: str) -> Tensor:
        """Mean squared gradient of each weight of a layer's matrix, ``(out, in·kh·kw)``."""
        others = [la.name for la in self.table.layers if la.allows("mask") and la.macs]
        return self._entry("fisher", layer, others, self._fishers)[VALUE]

    def structure_fisher(self, group: Group) -> Tensor:
        """Mean squared gradient of a mask on each structure, ``(size,)``."""
        others = [other.name for other in self.table.groups if other.consumers]
        return self._entry("structure-fisher", group.name, others, self._structure_fishers)[VALUE]

    def output(self, module: str) -> Tensors:
        """The fields of `outputs.OutputStatistics` of a module."""
        others = [stub.name for group in self.table.groups if group.removable for stub in group.stubs]
        return self._entry("output", module, list(dict.fromkeys(others)), self._outputs)

    def lost_outputs(self, group: Group, repair: bool) -> tuple[float, float]:
        """Squared norms of what the output of a removable part loses with it, and of the output."""
        constants = [stub.name for stub in group.stubs if stub.gives.startswith("constant")]
        found = [self.output(name) for name in constants or [stub.name for stub in group.stubs]]
        whole = sum(float(item["square"]) for item in found)
        if not constants:
            return sum(float(item["change"]) for item in found), whole
        held = sum(float(item["mean"].pow(2).sum()) for item in found) if repair else 0.0
        return max(0.0, whole - held), whole

    def _entry(
        self, kind: str, name: str, others: Sequence[str], compute: Callable[[list[str]], dict[str, Tensors]]
    ) -> Tensors:
        """The entry of `name`; where it is missing, those of all `others` that miss are computed along with it."""
        key = self.key(kind, name)
        with self.store.hold(key):
            found = self.store.get(key)
            if found is not None:
                return found
            left = [other for other in others if other != name and not self.store.has(self.key(kind, other))]
            start = time.perf_counter()
            made = compute([name, *left])
            seconds = time.perf_counter() - start  # of each: one of them alone would take as long
            for other in reversed(made):
                found = self.store.put(self.key(kind, other), made[other], seconds)
        assert found is not None
        return found

    def _alongside(self, layer: str) -> list[str]:
        """Layers whose second moments are worth having beside that of `layer`, as far as memory goes."""
        room, names = PASS_BYTES, []
        for other in self.table.layers:
            size = 8 * math.prod(other.weight_shape[1:]) ** 2
            if other.name != layer and other.kind != "embedding" and other.macs and size <= room:
                names.append(other.name)
                room -= size
        return names

    def _moments(self, names: list[str]) -> dict[str, Tensors]:
        made = gram_matrices(self.model, names, self.examples)
        if names[0] not in made:
            raise ModelError(
                f"layer {names[0]}: has no second moment of inputs: it is a grouped convolution, or was not called"
            )
        return {name: {VALUE: made[name].to(torch.float32)} for name in names if name in made}

    def _fishers(self, names: list[str]) -> dict[str, Tensors]:
        made = weight_fisher(self.model, names, self.task, self.examples)
        return {name: {VALUE: made[name]} for name in names}

    def _structure_fishers(self, names: list[str]) -> dict[str, Tensors]:
        made = structure_fisher(self.model, [self.table.group(name) for name in names], self.task, self.examples)
        return {name: {VALUE: made[name]} for name in names}

    def _outputs(self, names: list[str]) -> dict[str, Tensors]:
        made = output_statistics(self.model, names, self.examples)
        return {name: dict(vars(made[name])) for name in names}
