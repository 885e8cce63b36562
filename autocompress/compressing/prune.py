"""Structured removal: in which order structures go, and how the survivors are re-solved. Pure matrix functions.

Everything works on the layers that *consume* the structures: a weight W ``(out, in)`` and the second moment of its
inputs G = XᵀX/N ``(in, in)``. A structure owns some columns in each of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from autocompress.errors import ModelError
from autocompress.layers import Slice

#: Share of the mean diagonal that is added to the second moment before it is inverted.
DAMPING = 1e-2

#: Structures up to which H⁻¹ is updated to the end; above, an eighth goes before it is inverted afresh.
LAST_BATCH = 16


@dataclass(frozen=True, eq=False)
class Consumer:
    """A layer that reads the structures of a group.

    Attributes:
        weight: its matrix, ``(out, in)``.
        gram: second moment of its inputs, ``(in, in)``.
        columns: the columns that each structure owns, ``(size, width)``; columns of no structure always stay.
    """

    weight: Tensor
    gram: Tensor
    columns: Tensor

    @property
    def size(self) -> int:
        """Number of structures."""
        return len(self.columns)


def damped(gram: Tensor) -> Tensor:
    """G with `DAMPING` of its mean diagonal added, the mean itself where an input is always zero; ``(in, in)``."""
    matrix = gram.to(torch.float64).clone()
    diagonal = matrix.diagonal()
    mean = diagonal.mean()
    dead = diagonal == 0
    diagonal += DAMPING * mean if mean > 0 else 1.0
    diagonal[dead] = mean if mean > 0 else 1.0
    return matrix


def columns_of(structures: Tensor, width: int) -> Tensor:
    """Column numbers ``(k·width,)`` of structure numbers ``(k,)``, in their order."""
    return (structures[:, None] * width + torch.arange(width)).reshape(-1)


def structure_columns(item: Slice, size: int, window: int = 1) -> Tensor:
    """Matrix columns ``(size, width·window)`` of a group's structures in one consumer.

    Args:
        item: where they lie among the consumer's inputs.
        size: number of structures.
        window: matrix columns per input: 1, or a convolution's kh·kw.
    """
    inputs = torch.tensor(item.positions(range(size)), dtype=torch.long)
    return columns_of(inputs, window).reshape(size, -1)


def structure_order(score: str, consumers: Sequence[Consumer], fisher: Tensor | None = None, seed: int = 0) -> Tensor:
    """Structures of a group, the one that is missed least first; ``(size,)``.

    Args:
        score: as in `plan.Prune`. "obs": joint greedy optimal brain surgeon; "magnitude": squared norm of the
            columns, summed over the consumers; "wanda": the same with each column times its input's root mean square;
            "fisher": by `fisher`; "random": a permutation drawn with `seed`.
        consumers: all layers that read the structures.
        fisher: squared gradient of each structure's mask ``(size,)``; for "fisher" only.
        seed: for "random" only.

    Raises:
        ModelError: a weight or second moment holds NaN or infinity.
    """
    for number, consumer in enumerate(consumers):
        if not (torch.isfinite(consumer.weight).all() and torch.isfinite(consumer.gram).all()):
            raise ModelError(f"consumer {number}: its weight or second moment of inputs holds NaN or infinity")
    if score == "obs":
        return _surgeon(consumers)
    if score == "random":
        return torch.randperm(consumers[0].size, generator=torch.Generator().manual_seed(seed))
    if score == "fisher":
        assert fisher is not None
        return torch.argsort(fisher, stable=True)
    sizes = sum(_size(consumer, by_input=score == "wanda") for consumer in consumers)
    assert isinstance(sizes, Tensor)
    return torch.argsort(sizes, stable=True)


def _size(consumer: Consumer, by_input: bool) -> Tensor:
    """Squared norm of each structure's columns, ``(size,)``; with `by_input`, of what they add to the output."""
    squares = consumer.weight.to(torch.float64).pow(2).sum(dim=0)
    if by_input:
        squares = squares * consumer.gram.diagonal()
    return squares[consumer.columns].sum(dim=1)


@dataclass(eq=False)
class _Rest:
    """What is left of a consumer: W ``(out, n)`` and H⁻¹ ``(n, n)``, structures first; edited by each removal."""

    weight: Tensor
    inverse: Tensor
    width: int
    size: int

    def scores(self) -> Tensor:
        """``Σ_rows W[:,S] (H⁻¹[S,S])⁻¹ W[:,S]ᵀ`` of each structure, ``(size,)``."""
        size, width = self.size, self.width
        count = size * width
        if width == 1:
            single: Tensor = self.weight[:, :count].pow(2).sum(dim=0) / self.inverse.diagonal()[:count]
            return single
        blocks = self.inverse[:count, :count].reshape(size, width, size, width)
        blocks = blocks[torch.arange(size), :, torch.arange(size), :]
        columns = self.weight[:, :count].reshape(len(self.weight), size, width).permute(1, 2, 0)
        scores: Tensor = (columns * torch.linalg.solve(blocks, columns)).sum(dim=(1, 2))
        return scores

    def remove(self, structure: int) -> None:
        """Make the other columns take over from one structure's."""
        span = slice(structure * self.width, (structure + 1) * self.width)
        row = self.inverse[span].clone()
        taken = torch.linalg.inv(self.inverse[span, span]) @ row
        self.weight.addmm_(self.weight[:, span].clone(), taken, alpha=-1)  # in place: a third of the time
        self.inverse.addmm_(row.T, taken, alpha=-1)
        self.inverse[span, span] += torch.eye(self.width)  # keeps later pivots of removed structures finite


def _surgeon(consumers: Sequence[Consumer]) -> Tensor:
    """Structures in the order in which the optimal brain surgeon removes them; ``(size,)``.

    At each step the structure S with the least ``Σ_rows W[:,S] (H⁻¹[S,S])⁻¹ W[:,S]ᵀ``, summed over the consumers,
    goes, then W and H⁻¹ of each are updated (Hassibi & Stork 1993; in the blockwise form of Kurtic et al., ZipLM,
    2023). Matrices shrink as structures leave, and H⁻¹ is inverted afresh at each shrinking. Structures leave one at a
    time however many consumers there are: the cost is that of the consumers one by one.
    """
    hessians = [damped(consumer.gram) for consumer in consumers]
    alive = torch.arange(consumers[0].size)
    removed: list[int] = []
    while len(alive) > 1:
        rests = [_rest(consumer, hessian, alive) for consumer, hessian in zip(consumers, hessians, strict=True)]
        batch = len(alive) // 8 if len(alive) > LAST_BATCH else len(alive) - 1
        gone = _remove(rests, batch)
        removed += alive[gone].tolist()
        stays = torch.ones(len(alive), dtype=torch.bool)
        stays[gone] = False
        alive = alive[stays]
    return torch.tensor(removed + alive.tolist())


def _rest(consumer: Consumer, hessian: Tensor, alive: Tensor) -> _Rest:
    """A consumer re-solved for the structures that are left, and the columns of none."""
    fixed = torch.ones(len(hessian), dtype=torch.bool)
    fixed[consumer.columns] = False
    kept = torch.cat([consumer.columns[alive].reshape(-1), fixed.nonzero()[:, 0]])
    inverse = torch.linalg.inv(hessian[kept][:, kept])
    solved = consumer.weight.to(torch.float64) @ hessian[:, kept] @ inverse
    return _Rest(solved.to(torch.float32), inverse.to(torch.float32), consumer.columns.shape[1], len(alive))


def _remove(rests: Sequence[_Rest], count: int) -> Tensor:
    """Remove `count` structures one at a time; returns their numbers in order."""
    alive = torch.ones(rests[0].size, dtype=torch.bool)
    gone = []
    for _ in range(count):
        scores = torch.stack([rest.scores() for rest in rests]).sum(dim=0)
        scores[~alive] = torch.inf
        worst = int(scores.argmin())
        for rest in rests:
            rest.remove(worst)
        alive[worst] = False
        gone.append(worst)
    return torch.tensor(gone)


def repair(weight: Tensor, gram: Tensor, kept: Tensor) -> Tensor:
    """The surviving columns re-solved so that the layer's output changes least: ``(out, len(kept))``.

    W' = W·H[:,kept]·(H[kept,kept])⁻¹, the least-squares optimum for these columns.
    """
    hessian = damped(gram)
    solved: Tensor = torch.linalg.solve(hessian[kept][:, kept], hessian[kept] @ weight.to(torch.float64).T).T
    return solved.to(weight.dtype)
