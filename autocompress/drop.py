"""A loss of quality that a user accepts: in points, or as a share."""

from __future__ import annotations

import re
from dataclasses import dataclass

from autocompress.errors import ConfigError

#: A number as users write it.
NUMBER = r"([0-9]*\.?[0-9]+)"


@dataclass(frozen=True)
class Drop:
    """A loss of quality that is still accepted.

    Attributes:
        amount: in the metric's own unit (1 point of accuracy = 0.01), or a share of the dense quality.
        relative: which of the two.
        points: points per unit of the metric.
    """

    amount: float
    relative: bool
    points: float = 100.0

    def lost(self, quality: float, dense: float, maximize: bool) -> float:
        """Quality lost against dense, in the unit of `amount`."""
        lost = dense - quality if maximize else quality - dense
        return lost / (abs(dense) or 1.0) if self.relative else lost

    def of(self, dense: float) -> float:
        """The loss that is accepted of a dense quality, in the metric's unit."""
        return self.amount * abs(dense) if self.relative else self.amount

    def __str__(self) -> str:
        """As a user would say it."""
        if self.relative:
            return f"{self.amount * 100:.3g} % of the dense quality"
        shown = f"{self.amount * self.points:.3g}"
        return "1 point" if shown == "1" else f"{shown} points"


def parse_drop(text: str, flag: str = "--max-drop", points: float = 100.0) -> Drop:
    """The loss in a text such as ``1pt`` (absolute; `points` per unit of the metric) or ``1%`` (relative)."""
    match = re.fullmatch(NUMBER + r"\s*(pt|pts|point|points|%)", str(text).strip().lower())
    if not match:
        raise ConfigError(f"{flag} must be points such as 1pt or a share such as 1%, but got {text!r}")
    relative = match.group(2) == "%"
    return Drop(float(match.group(1)) / (100.0 if relative else points), relative, points)
