"""What plans are believed to take of something beside seconds, corrected by what whole candidates took."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

import numpy as np

from autocompress.plan import Plan

#: What a plan takes of something beside seconds.
Resource = Callable[[Plan], float]

#: Savings that are believed to be what the layers' bytes say, against measured ones; bounds of what is saved for each.
SLOPE_DOUBT, SLOPES = 0.3, (0.2, 5.0)


class Amounts:
    """Beliefs of some resources.

    Attributes:
        takes: what a plan takes of each, by name, as it is believed at first.
        slopes: what a plan really saves of each for what it is believed to save at first.
    """

    def __init__(self, takes: Mapping[str, Resource]) -> None:
        self.takes = takes
        self.slopes = dict.fromkeys(takes, 1.0)

    def of(self, name: str, plan: Plan) -> float:
        """What a plan is believed to take of a resource."""
        dense = self._dense[name]
        return dense + self.slopes[name] * (self.takes[name](plan) - dense)

    def learn(self, name: str, measured: Sequence[tuple[Plan, float]]) -> None:
        """Correct what plans save of a resource by what whole candidates were measured to take of it.

        A file keeps more than its layers' bytes, and a process more than its file; what is saved is taken to grow in
        proportion. ``min Σ (s·x - y)² + SLOPE_DOUBT·max x²·(s - 1)²`` for believed and measured savings x and y.
        """
        take, dense = self.takes[name], self._dense[name]
        believed = np.array([dense - take(plan) for plan, _amount in measured])
        saved = np.array([dense - amount for _plan, amount in measured])
        if not believed.any():
            return
        doubt = SLOPE_DOUBT * (believed**2).max()
        slope = (believed @ saved + doubt) / (believed @ believed + doubt)
        self.slopes[name] = float(np.clip(slope, *SLOPES))

    @cached_property
    def _dense(self) -> dict[str, float]:
        return {name: take(Plan()) for name, take in self.takes.items()}
