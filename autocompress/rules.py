"""The schema of a search space's YAML: what may be chosen, before any model is known."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from autocompress.errors import SpaceError
from autocompress.plan import PRECISIONS, Precision
from autocompress.settings import find_yaml, read_yaml, validate

FOLDER = "search_spaces"

Share = Annotated[float, Field(gt=0, le=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


Level = TypeVar("Level", float, int, Precision)


def _some(levels: tuple[Level, ...]) -> tuple[Level, ...]:
    """The levels, if there are any."""
    if not levels:
        raise ValueError("must hold at least one level")
    return levels


def _from_full(levels: tuple[float, ...]) -> tuple[float, ...]:
    """Levels from all to least, each once."""
    return tuple(sorted(set(_some(levels)), reverse=True))


class GroupRules(_Strict):
    """Shares of structures that may stay, such as ``heads: [1.0, 0.5]``; what is left out is not pruned."""

    heads: tuple[Share, ...] = (1.0,)
    neurons: tuple[Share, ...] = (1.0,)

    _order = field_validator("heads", "neurons")(_from_full)


class BlockRule(_Strict):
    """Whether whole blocks may go, and the share of them that always stays."""

    remove: bool = False
    keep_at_least: Share = 0.5


class LayerRule(_Strict):
    """Precisions and ranks of the layers whose name fits `match`; of several rules the last that fits counts."""

    match: str = "*"
    kind: Literal["linear", "conv", "embedding"] | None = None
    precision: tuple[Precision, ...] = ("fp32",)
    rank: tuple[Share, ...] = (1.0,)
    share: Literal["layer", "block", "all"] = "layer"

    _order = field_validator("rank")(_from_full)

    @field_validator("precision")
    @classmethod
    def _heavy_first(cls, levels: tuple[Precision, ...]) -> tuple[Precision, ...]:
        return tuple(p for p in PRECISIONS if p in _some(levels))


class Bounds(_Strict):
    """An interval of real values."""

    low: float
    high: float
    log: bool = False

    @model_validator(mode="after")
    def _check(self) -> Bounds:
        if self.low > self.high or (self.log and self.low <= 0):
            raise ValueError("low must not be above high, and above 0 where log is true")
        return self


class DistillDefault(_Strict):
    """Where seeds start; the learning rate is replaced by the probe's."""

    soft_weight: Annotated[float, Field(ge=0, le=1)] = 0.5
    temperature: Annotated[float, Field(gt=0)] = 2.0
    learning_rate: Annotated[float, Field(gt=0)] = 3e-4


class DistillRule(_Strict):
    """Ranges of the recovery; ``steps: [0]`` turns it off."""

    soft_weight: Bounds = Bounds(low=0.0, high=1.0)
    temperature: Bounds = Bounds(low=1.0, high=8.0, log=True)
    learning_rate: Bounds = Bounds(low=1e-4, high=1e-3, log=True)
    steps: tuple[Annotated[int, Field(ge=0)], ...] = (0,)
    default: DistillDefault = DistillDefault()

    @model_validator(mode="after")
    def _check(self) -> DistillRule:
        if self.soft_weight.low < 0 or self.soft_weight.high > 1:
            raise ValueError("soft_weight must lie in [0, 1]")
        for name in ("temperature", "learning_rate"):
            if getattr(self, name).low <= 0:
                raise ValueError(f"{name} must be above 0")
        return self

    @field_validator("steps")
    @classmethod
    def _ascending(cls, steps: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(sorted(set(_some(steps))))


class SpaceRules(_Strict):
    """The schema of ``search_spaces/*.yaml``."""

    name: str
    description: str = ""
    groups: GroupRules = GroupRules()
    blocks: BlockRule = BlockRule()
    layers: tuple[LayerRule, ...] = ()
    distill: DistillRule = DistillRule()


def load_space(name_or_path: str | Path) -> SpaceRules:
    """A shipped space by name, or one's own by path; raises `SpaceError` with all mistakes at once."""
    path = find_yaml(name_or_path, FOLDER, SpaceError)
    data = read_yaml(path, SpaceError)
    data.setdefault("name", path.stem)
    return validate(SpaceRules, data, str(path), SpaceError)
