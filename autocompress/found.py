"""What a search found out beside its candidates: the records of `search.json` and `losses.json`. Plain data."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from autocompress.errors import ConfigError

#: Where a run folder keeps what is found out at the end, and the losses of single choices.
SEARCH, LOSSES = "search.json", "losses.json"

#: Below this rank correlation between two rungs, twice as many of a latency bin go on.
TRUSTED = 0.7


@dataclass(frozen=True)
class Audit:
    """How well a rung's ranking foretold the next one's, within one bin of latency.

    Attributes:
        lower, upper: numbers of the rungs.
        low, high: latency ratios that the bin spans.
        count: candidates on both rungs.
        correlation: Spearman's of their qualities; NaN where all are equal.
        below, above: qualities on the lower and on the upper rung, fast to slow, ``(count,)``.
    """

    lower: int
    upper: int
    low: float
    high: float
    count: int
    correlation: float
    below: tuple[float, ...] = ()
    above: tuple[float, ...] = ()

    @property
    def trusted(self) -> bool:
        """Whether the lower rung's ranking is good enough to promote by."""
        return not self.correlation < TRUSTED

    def words(self) -> str:
        """In a line: "rung 1 foretells rung 2 with rank correlation 0.91 (5 candidates, ratio 0.2 to 0.3)"."""
        known = not math.isnan(self.correlation)
        figure = f"rank correlation {self.correlation:.2f}" if known else "an unknown rank correlation"
        where = f"{self.count} candidates, ratio {self.low:.3f} to {self.high:.3f}"
        then = "so up to twice as many go on" if self.lower else "so what lost much may come back"
        return f"rung {self.lower} foretells rung {self.upper} with {figure} ({where})" + (
            "" if self.trusted else f": not trusted, {then}"
        )


@dataclass(frozen=True)
class Share:
    """How much one variable, or one group of them, decides.

    Attributes:
        name: of the variable or group.
        share: of the variance, in [0, 1], that it explains by itself.
        chance: the most that it got in `searching.controller.SHUFFLES` trials with the outcomes shuffled.
    """

    name: str
    share: float
    chance: float

    @property
    def shown(self) -> bool:
        """Whether it is more than chance gives, in 19 of 20 cases."""
        return self.share > self.chance


@dataclass(frozen=True)
class Importances:
    """What decides one outcome.

    Attributes:
        of: the outcome: "recovery", "latency" or "quality".
        count: evaluations that tell.
        least: how many of them are needed.
        shares: the largest first; empty below `least`. What they lack to 1 is due to variables that act together.
    """

    of: str
    count: int
    least: int
    shares: tuple[Share, ...] = ()


@dataclass(frozen=True)
class Found:
    """What a search found out.

    Attributes:
        importances: one for each outcome.
        audits: of neighbouring rungs, fast to slow within each pair.
    """

    importances: tuple[Importances, ...] = ()
    audits: tuple[Audit, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain data that `read_found` reads back; a correlation that is not known is None."""
        data = asdict(self)
        for audit in data["audits"]:
            audit["correlation"] = None if math.isnan(audit["correlation"]) else audit["correlation"]
        return data


@dataclass(frozen=True)
class Loss:
    """What one choice loses by itself.

    Attributes:
        scope: what it is made for: a block, a layer, or a rule's layers.
        kind: of the structures of which a share stays ("heads", "neurons", …), "precision", "bits", "rank" or "remove".
        level: what is chosen, such as "50 %" (kept, or of the full rank), "int8", "4 bits" or "block" (removed).
        kl: mean KL(dense ‖ dense with this choice alone), in nats, above the heaviest model of the space.
        measured: whether it was, or was estimated from its like.
    """

    scope: str
    kind: str
    level: str
    kl: float
    measured: bool

    def to_json(self) -> dict[str, Any]:
        """Plain data that `read_losses` reads back."""
        return asdict(self)


def read_found(path: Path) -> Found:
    """A `search.json`; nothing found where there is no file.

    Raises:
        ConfigError: the file is no such file.
    """
    data = _read(path, {"importances": [], "audits": []})
    try:
        return Found(tuple(map(_importances, data["importances"])), tuple(map(_audit, data["audits"])))
    except (KeyError, TypeError, AttributeError) as fault:
        raise _foreign(path, fault) from None


def read_losses(path: Path) -> tuple[Loss, ...]:
    """A `losses.json`; none where there is no file.

    Raises:
        ConfigError: the file is no such file.
    """
    try:
        return tuple(Loss(**one) for one in _read(path, []))
    except TypeError as fault:
        raise _foreign(path, fault) from None


def _importances(data: Mapping[str, Any]) -> Importances:
    return Importances(**{**data, "shares": tuple(Share(**share) for share in data["shares"])})


def _audit(data: Mapping[str, Any]) -> Audit:
    found = Audit(**{**data, "below": tuple(data["below"]), "above": tuple(data["above"])})
    return replace(found, correlation=math.nan) if data["correlation"] is None else found


def _read(path: Path, missing: Any) -> Any:
    if not path.is_file():
        return missing
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as fault:
        raise _foreign(path, fault) from None


def _foreign(path: Path, fault: Exception) -> ConfigError:
    problem = f"not written by autocompress search ({type(fault).__name__}: {fault})"
    return ConfigError(f"{path}: {problem}; remove it to go on")
