"""Rows, columns and entries of modules as elements in disjoint sets: what is in one set can only go together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
Role = Literal["producer", "consumer", "carrier"]

#: Stands for a channel that no module makes, such as padding.
FIXED = -1


@dataclass(frozen=True)
class Place:
    """Where elements lie: in what role, in which module (or bare parameter, along which axis)."""

    role: Role
    name: str
    axis: int = 0


class Elements:
    """Elements in disjoint sets; a set that holds one pinned element is pinned as a whole."""

    def __init__(self) -> None:
        self._parent: list[int] = []
        self._pinned: set[int] = set()
        self._ids: dict[Place, Ids] = {}

    def of(self, place: Place, count: int) -> Ids:
        """The elements of one place, the same at every call; ``(count,)``."""
        if place not in self._ids:
            start = len(self._parent)
            self._parent.extend(range(start, start + count))
            self._ids[place] = np.arange(start, start + count)
        return self._ids[place]

    def join(self, ones: Ids, others: Ids) -> None:
        """Make each of `ones` the same as its neighbour in `others`, both ``(n,)``; `FIXED` pins."""
        for one, other in zip(ones.tolist(), others.tolist(), strict=True):
            if FIXED in (one, other):
                self.pin([one, other])
            else:
                self._parent[self._root(one)] = self._root(other)

    def pin(self, ids: Iterable[int]) -> None:
        """Let these elements, and all that are or will be joined with them, stay."""
        self._pinned.update(int(i) for i in ids if i != FIXED)

    def classes(self) -> list[dict[Place, list[int]]]:
        """Positions in each place, for every set that is not pinned; sets by their first element."""
        pinned = {self._root(i) for i in self._pinned}
        found: dict[int, dict[Place, list[int]]] = defaultdict(lambda: defaultdict(list))
        for place, ids in self._ids.items():
            for position, element in enumerate(ids.tolist()):
                root = self._root(element)
                if root not in pinned:
                    found[root][place].append(position)
        return list(found.values())

    def _root(self, element: int) -> int:
        parent = self._parent
        while parent[element] != element:
            parent[element] = parent[parent[element]]
            element = parent[element]
        return element
