"""What `shape` has to be told about the dense model, and what it notes on the way."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from autocompress.compressing.factorize import zero_factors
from autocompress.layers import Group
from autocompress.plan import Factorize, Mask, Plan, Prune
from autocompress.weights import matrix_of


class Choices(Protocol):
    """What `shape` has to be told about the dense model; the bank is one, `FirstOnes` another."""

    def gram(self, layer: str) -> Tensor:
        """Second moment of a layer's inputs, ``(in·kh·kw, in·kh·kw)``; the identity for an embedding."""
        ...

    def kept(self, group: Group, prune: Prune, seed: int) -> Tensor:
        """Numbers of the structures that stay, ascending."""
        ...

    def repaired(self, layer: str, columns: Tensor) -> Tensor:
        """The dense layer's matrix re-solved for the inputs that stay: ``(out, len(columns))``."""
        ...

    def mean_output(self, module: str, width: int) -> Tensor:
        """Mean output of a module over samples and positions, ``(width,)``."""
        ...

    def factors(self, weight: Tensor, gram: Tensor, settings: Factorize) -> tuple[Tensor, Tensor]:
        """Two factors of a weight; see `factorize.factors`."""
        ...

    def operated(self, weight: Tensor, gram: Tensor, mask: Mask) -> Tensor:
        """A matrix with the zeros of a mask of score "obs"; see `mask.masked`."""
        ...

    def fisher(self, layer: str) -> Tensor:
        """Mean squared gradient of each weight, shaped like the layer's matrix."""
        ...

    def repair_again(self, small: nn.Module, plan: Plan, kept: Kept) -> None:
        """Re-solve what reads pruned groups for the inputs that its predecessors now give; edits `small`."""
        ...


class FirstOnes:
    """Keeps the first structures and repairs nothing: right shapes for weights that are loaded afterwards."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def gram(self, layer: str) -> Tensor:
        """Nothing: no choice is made by it."""
        return torch.zeros(0)

    def kept(self, _group: Group, prune: Prune, _seed: int) -> Tensor:
        """Structures 0 to keep - 1."""
        return torch.arange(prune.keep)

    def repaired(self, layer: str, columns: Tensor) -> Tensor:
        """The dense columns."""
        return matrix_of(self.model.get_submodule(layer))[:, columns]

    def mean_output(self, _module: str, width: int) -> Tensor:
        """Zeros."""
        return torch.zeros(width)

    def factors(self, weight: Tensor, _gram: Tensor, settings: Factorize) -> tuple[Tensor, Tensor]:
        """Zeros of the factors' shapes."""
        return zero_factors(weight, settings)

    def operated(self, weight: Tensor, _gram: Tensor, _mask: Mask) -> Tensor:
        """The weight as it is."""
        return weight

    def fisher(self, layer: str) -> Tensor:
        """Zeros."""
        return torch.zeros_like(matrix_of(self.model.get_submodule(layer)))

    def repair_again(self, _small: nn.Module, _plan: Plan, _kept: Kept) -> None:
        """Nothing."""


@dataclass
class Kept:
    """Which rows and columns of the dense matrices are left; what is not named is whole."""

    rows: dict[str, list[int]] = field(default_factory=dict)
    columns: dict[str, list[int]] = field(default_factory=dict)

    def gram(self, gram: Tensor, layer: str) -> Tensor:
        """The second moment of the inputs that are left."""
        if layer not in self.columns or not gram.numel():
            return gram
        index = torch.tensor(self.columns[layer], dtype=torch.long)
        return gram[index][:, index]

    def part(self, matrix: Tensor, layer: str) -> Tensor:
        """The rows and columns that are left of something shaped like the dense matrix."""
        if layer in self.rows:
            matrix = matrix[torch.tensor(self.rows[layer], dtype=torch.long)]
        if layer in self.columns:
            matrix = matrix[:, torch.tensor(self.columns[layer], dtype=torch.long)]
        return matrix
