"""What a unit of feature maps stands between while it is timed.

Alone, such a unit takes plain floats, channel after channel, and runtimes spend up to half of its time on another
layout and on rounding. In a whole file its neighbours hand on the values as it computes. So 1 × 1 convolutions stand
in for them, of one channel on the far side, in integers where the unit's own layer is; their time is taken off again.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from autocompress.compressing.codes import Codes, Steps
from autocompress.compressing.quantize import code_layer
from autocompress.export.products import NARROW
from autocompress.plan import Quantize

#: Where the unit stands in the module that is traced.
PLACE = "unit"

#: The quantizer of values that no layer of the unit rounds; which one costs no time.
STEPS = Steps(1 / 32, 128)


@dataclass(frozen=True)
class Side:
    """Feature maps that a unit takes from a neighbour, or gives to one.

    Attributes:
        shape: (batch, channels, height, width).
        codes: of the unit's layer there, if it is static int8.
    """

    shape: tuple[int, ...]
    codes: Codes | None = None

    @property
    def text(self) -> str:
        """All that the time of a neighbour depends on."""
        return f"neighbours {list(self.shape)} {'int8' if self.codes else 'fp32'}"


#: Before a unit and behind it; None where it has no neighbour.
Sides = tuple[Side | None, Side | None]

NO_SIDES: Sides = (None, None)


class Between(nn.Module):
    """A unit between its neighbours. Takes and gives ``(batch, 1, height, width)`` on a side where it has one."""

    def __init__(self, unit: nn.Module, sides: Sides) -> None:
        super().__init__()
        before, behind = sides
        self.before = nn.Sequential(nn.Conv2d(1, before.shape[1], 1), nn.ReLU()) if before else nn.Identity()
        setattr(self, PLACE, unit)
        self.behind = nn.Conv2d(behind.shape[1], 1, 1) if behind else nn.Identity()
        self.sides = sides

    def forward(self, value: Tensor) -> Tensor:
        """Through all three."""
        result: Tensor = self.behind(getattr(self, PLACE)(self.before(value)))
        return result

    def codes(self) -> dict[str, Codes]:
        """Integers of the neighbours by module name: they give and take what the unit's layers take and give."""
        found = {}
        before, behind = (side.codes if side else None for side in self.sides)
        if before:
            found["before.0"] = _coded(self.before.get_submodule("0"), STEPS, before.input if before.output else None)
        if behind:
            found["behind"] = _coded(self.behind, behind.output or STEPS, STEPS if behind.output else None)
        return found


def _coded(layer: nn.Module, taken: Steps, given: Steps | None) -> Codes:
    weight, bias = (values.detach() for values in layer.parameters())
    # in as few bits as every processor multiplies exactly: they take no less time
    return code_layer(weight, bias, Quantize("int8", weight_bits=NARROW), (taken, given))
