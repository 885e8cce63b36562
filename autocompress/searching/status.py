"""How far a search is, and who wants to know. Plain data, so that a terminal can show it without the search."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from autocompress.front import Front
from autocompress.records import Trial


@dataclass(frozen=True)
class Status:
    """How far a search is.

    Attributes:
        stage: what is being done.
        done, failed: candidates evaluated, and how many of them failed.
        elapsed_s, budget_s: wall-clock spent and allowed.
        hypervolume: of what was found so far.
        best: the best candidate under the budgets, in words.
        detail: what within the stage, for a line that comes and goes; "" for nothing.
    """

    stage: str
    done: int
    failed: int
    elapsed_s: float
    budget_s: float
    hypervolume: float
    best: str
    detail: str = ""


class Watcher(Protocol):
    """Whoever wants to see the search at work."""

    def say(self, text: str) -> None:
        """A fact worth a line."""
        ...

    def update(self, status: Status) -> None:
        """Where the search stands."""
        ...

    def candidate(self, trial: Trial, front: Front) -> None:
        """A candidate has ended."""
        ...


class Silent:
    """A watcher that shows nothing."""

    def say(self, text: str) -> None:
        """Nothing."""

    def update(self, status: Status) -> None:
        """Nothing."""

    def candidate(self, trial: Trial, front: Front) -> None:
        """Nothing."""
