"""What was timed in rounds, and which of them count when contestants are compared. Pure.

Faults are told per contestant: to compare C with A takes the blocks of A and C, whatever befell B.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

#: Of rounds that are all faulty, the best quarter is kept.
KEPT_SHARE = 0.25

#: Other programs took the processor, or the machine was slowed or drifted.
Fault = Literal["contended", "unsteady"]


@dataclass(frozen=True)
class Turn:
    """Both blocks of a contestant in one round.

    Attributes:
        seconds: mean of the two block figures.
        times: seconds of each query that nobody disturbed.
        slowed: by which share the slower block takes longer than the contestant's undisturbed ones.
        fault: "contended" when other programs took the processor; "unsteady" when slowed by more than is allowed or,
            of the first contestant, drifting.
    """

    seconds: float
    times: tuple[float, ...] = ()
    slowed: float = 0.0
    fault: Fault | None = None


@dataclass(frozen=True)
class Kept:
    """The rounds that count in a comparison.

    Attributes:
        numbers: which they are, from 0.
        rejected: how many others there are.
        contended: of these, the ones in which other programs took the processor; the others were unsteady.
        crowded, unsteady: rounds kept although contended, or although unsteady, for want of better ones.
    """

    numbers: tuple[int, ...]
    rejected: int
    contended: int
    crowded: int
    unsteady: int

    @property
    def faultless(self) -> int:
        """How many have no fault."""
        return len(self) - self.crowded - self.unsteady

    def __len__(self) -> int:
        """Number of kept rounds."""
        return len(self.numbers)


@dataclass(frozen=True)
class Rounds:
    """What was timed.

    Attributes:
        turns: contestant to its turns, one per round.
        references: contestants that the others are compared with: their faults spoil a round for all.
        least: the fewest rounds of a comparison, if need be with faulty ones among them.
    """

    turns: Mapping[str, Sequence[Turn]] = field(default_factory=dict)
    references: Sequence[str] = ()
    least: int = 0

    def kept(self, *names: str) -> Kept:
        """The rounds that count for some contestants: those in which neither they nor the references have a fault.

        Where these are fewer than `least`, the least slowed of the others stand in, `KEPT_SHARE` of all rounds.
        """
        rounds = list(zip(*(self.turns[name] for name in {*self.references, *names}), strict=True))
        faulty = [n for n, turns in enumerate(rounds) if any(turn.fault for turn in turns)]
        faulty.sort(key=lambda n: max(turn.slowed for turn in rounds[n]))
        good = len(rounds) - len(faulty)
        enough = good if good >= self.least else max(self.least, math.ceil(KEPT_SHARE * len(rounds)))
        left = faulty[enough - good :]
        contended = [n for n in faulty if any(turn.fault == "contended" for turn in rounds[n])]
        crowded = len(set(contended) - set(left))
        return Kept(
            numbers=tuple(n for n in range(len(rounds)) if n not in left),
            rejected=len(left),
            contended=len(contended) - crowded,
            crowded=crowded,
            unsteady=len(faulty) - len(left) - crowded,
        )

    def ratios(self, contestant: str, reference: str) -> NDArray[np.float64]:
        """Contestant / reference of each round that counts for both."""
        ours, theirs = self.turns[contestant], self.turns[reference]
        return np.array([ours[n].seconds / theirs[n].seconds for n in self.kept(contestant, reference).numbers])

    def times(self, contestant: str) -> list[float]:
        """Seconds of each undisturbed query in the rounds that count for a contestant."""
        return [seconds for n in self.kept(contestant).numbers for seconds in self.turns[contestant][n].times]

    def __len__(self) -> int:
        """Number of rounds that were run."""
        return len(next(iter(self.turns.values()), ()))
