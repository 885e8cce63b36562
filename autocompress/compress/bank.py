"""The bank: what is computed once per layer of the dense model and shared by every candidate.

Holds each linear layer's second moment of inputs, and for each group the order in which its structures
go. A candidate's weights at any level follow from these by one small solve. Entries are files named by what
they depend on: weights, calibration samples, settings.
"""

from __future__ import annotations

from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from autocompress.compress.calibrate import gram_matrices
from autocompress.compress.prune import magnitude_order, obs_order
from autocompress.layers import Group, LayerTable
from autocompress.plan import Prune
from autocompress.records import write_atomic
from autocompress.tasks.task import Examples


class Bank:
    """Second moments and removal orders of one dense model, kept in `folder`.

    Args:
        folder: where entries lie; made when the first is written.
        model: the dense model; never edited.
        table: its layers and groups.
        calibration: samples whose activations decide.
        identity: fingerprint of model and data; part of every entry's name.
    """

    def __init__(self, folder: Path, model: nn.Module, table: LayerTable, calibration: Examples, identity: str) -> None:
        self.folder = folder
        self.model = model
        self.table = table
        self.calibration = calibration
        self.key = f"{identity}-n{len(calibration)}"
        self._moments: dict[str, Tensor] | None = None
        self._orders: dict[str, Tensor] = {}

    def gram(self, layer: str) -> Tensor:
        """Second moment of a linear layer's inputs, float32 ``(in, in)``."""
        return self._all_moments()[layer]

    def kept(self, group: Group, prune: Prune) -> Tensor:
        """Numbers of the structures that stay, ascending; ``(prune.keep,)``."""
        order = self._order(group, prune.score)
        return order[len(order) - prune.keep :].sort().values

    def _all_moments(self) -> dict[str, Tensor]:
        if self._moments is None:
            path = self.folder / f"moments-{self.key}.safetensors"
            if not path.is_file():
                names = [la.name for la in self.table.layers if la.kind == "linear" and la.macs]
                moments = gram_matrices(self.model, names, self.calibration)
                _save(path, {name: moment.to(torch.float32) for name, moment in moments.items()})
            self._moments = safetensors.torch.load_file(path)
        return self._moments

    def _order(self, group: Group, score: str) -> Tensor:
        name = f"{group.name.replace('/', '-')}-{score}-{self.key}"
        if name not in self._orders:
            path = self.folder / f"order-{name}.safetensors"
            if not path.is_file():
                _save(path, {"order": self._compute_order(group, score)})
            self._orders[name] = safetensors.torch.load_file(path)["order"]
        return self._orders[name]

    def _compute_order(self, group: Group, score: str) -> Tensor:
        consumer = group.consumers[0]
        weight = self.model.get_parameter(f"{consumer}.weight").detach()
        if score == "magnitude":
            return magnitude_order(weight, group.width)
        return obs_order(weight, self.gram(consumer), group.width)


def _save(path: Path, tensors: dict[str, Tensor]) -> None:
    write_atomic(path, safetensors.torch.save({name: t.contiguous() for name, t in tensors.items()}))
