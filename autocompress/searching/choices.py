"""What can be chosen in parts of a space: numbers, and the values behind them. Drops what others beat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autocompress.searching.solve import undominated
from autocompress.space import Values

Array = NDArray[np.float64]

#: Choices of one part that the program considers at most, where they are put together of inner ones.
MOST_KEPT = 150


@dataclass(frozen=True)
class Choices:
    """What can be chosen in one part: numbers that the program is about, and the values behind them.

    Attributes:
        lost: ``(choices,)``.
        takes: each resource, in one order, ``(choices, resources)``.
        values: of each choice.
    """

    lost: Array
    takes: Array
    values: Sequence[Values]

    def kept(self) -> Choices:
        """Those that no other beats."""
        good = undominated(self.lost, self.takes.T)
        return Choices(self.lost[good], self.takes[good], [self.values[choice] for choice in good])

    def times(self, other: Choices) -> Choices:
        """Every choice with every one of another part: those that none beats, `MOST_KEPT` of them at most."""
        lost = (self.lost[:, None] + other.lost).ravel()
        takes = (self.takes[:, None] + other.takes).reshape(len(lost), -1)
        good = _spread(undominated(lost, takes.T), takes[:, 0])
        pairs = [divmod(choice, len(other.lost)) for choice in good]
        return Choices(lost[good], takes[good], [{**self.values[a], **other.values[b]} for a, b in pairs])


def _spread(choices: Sequence[int], along: Array) -> list[int]:
    """Of more than `MOST_KEPT` choices so many, evenly from the least to the most of what they take."""
    if len(choices) <= MOST_KEPT:
        return list(choices)
    ordered = sorted(choices, key=lambda choice: float(along[choice]))
    return sorted({ordered[place] for place in np.linspace(0, len(ordered) - 1, MOST_KEPT).round().astype(int)})
