"""What each stage of a search costs and finds, and whether what it is at still adds anything. Knows no trial."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from autocompress.errors import ConfigError

#: Growth of the hypervolume, as a share of it, below which it counts as stagnating.
GROWTH = 1e-3

#: Fewest candidates that stagnation can be told by.
LEAST_PATIENCE = 5

#: Seconds under which a stage that evaluated nothing is not told of.
NOTICED_S = 1.0


@dataclass(frozen=True)
class Stage:
    """One stage, over all sessions of a run.

    Attributes:
        stage: its name.
        seconds: wall-clock, each time that the search was in it.
        candidates: evaluated in it.
        hypervolume_before: of the front, when it first began.
        hypervolume_after: of the front, when it last ended.
    """

    stage: str
    seconds: float
    candidates: int
    hypervolume_before: float
    hypervolume_after: float

    def __str__(self) -> str:
        """What it cost and found, for a line."""
        if not self.candidates:
            return f"{self.stage}: {self.seconds:.3g} s"
        noun = "candidate" if self.candidates == 1 else "candidates"
        grown = f"{self.hypervolume_before:.4f} to {self.hypervolume_after:.4f}"
        return f"{self.stage}: {self.candidates} {noun} in {self.seconds:.3g} s, hypervolume {grown}"


class Stages:
    """The stages of a run as they come, and whether the candidates of what is tried still add anything.

    Args:
        known: what `to_json` gave in earlier sessions.
        patience: candidates of one stage after which stagnation is told; None for never.
    """

    def __init__(self, known: Iterable[Mapping[str, Any]] = (), patience: int | None = None) -> None:
        self._ended = [Stage(**record) for record in known]
        self._now: Stage | None = None
        self._since_s = 0.0
        self._patience = math.inf if patience is None else patience
        self._volumes: list[float] = []

    def enter(self, name: str, now_s: float, volume: float) -> Stage | None:
        """Another stage begins; returns the one that ends, where it did anything."""
        ended = self.end(now_s, volume)
        self._now, self._since_s = Stage(name, 0.0, 0, volume, volume), now_s
        return ended

    def end(self, now_s: float, volume: float) -> Stage | None:
        """The stage under way ends; returns it, where it did anything."""
        ended = self._so_far(now_s, volume)
        self._ended, self._now = merged(self._ended, ended), None
        return ended

    def begin(self, volume: float) -> None:
        """Something new is tried; what came before says nothing of how it goes."""
        self._volumes = [volume]

    def candidate(self, volume: float) -> None:
        """A candidate has ended."""
        self._volumes.append(volume)
        if self._now is not None:
            self._now = replace(self._now, candidates=self._now.candidates + 1)

    @property
    def stagnates(self) -> bool:
        """Whether the last candidates, as many as there is patience for, added next to nothing to something."""
        if len(self._volumes) <= self._patience or self._volumes[-1] <= 0:  # 0: nothing within the budgets yet
            return False
        return self._volumes[-1] <= (1 + GROWTH) * self._volumes[-1 - int(self._patience)]

    @property
    def stagnation(self) -> str:
        """Why a search ends that stagnates."""
        return f"the hypervolume grew by less than {GROWTH:.1%} over the last {self._patience} candidates"

    def to_json(self, now_s: float, volume: float) -> list[dict[str, Any]]:
        """One record per stage, in order of first appearance, the one under way as far as it is."""
        return [asdict(stage) for stage in merged(self._ended, self._so_far(now_s, volume))]

    def _so_far(self, now_s: float, volume: float) -> Stage | None:
        if self._now is None:
            return None
        seconds = now_s - self._since_s
        done = replace(self._now, seconds=seconds, hypervolume_after=volume)
        return done if done.candidates or seconds >= NOTICED_S else None


def merged(stages: Sequence[Stage], more: Stage | None) -> list[Stage]:
    """The stages with another one, added to its namesake where there is one."""
    if more is None:
        return list(stages)
    found = {stage.stage: stage for stage in stages}
    before = found.get(more.stage)
    found[more.stage] = (
        more
        if before is None
        else replace(
            before,
            seconds=before.seconds + more.seconds,
            candidates=before.candidates + more.candidates,
            hypervolume_after=more.hypervolume_after,
        )
    )
    return list(found.values())


def check_patience(patience: int | None) -> None:
    """Raise `ConfigError` for too little patience."""
    if patience is not None and patience < LEAST_PATIENCE:
        raise ConfigError(f"--patience must be {LEAST_PATIENCE} candidates or more, but got {patience}")
