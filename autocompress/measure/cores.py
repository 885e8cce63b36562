"""Which cores to measure on: the idlest that this process may use. Knows /proc and /sys."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from autocompress.processors import siblings as siblings_of

STAT = Path("/proc/stat")

#: How long to look; the kernel counts in hundredths of a second.
LOOK_SECONDS = 0.1


def idlest(count: int, stat: Path = STAT, look: Callable[[], None] = lambda: time.sleep(LOOK_SECONDS)) -> list[int]:
    """The `count` idlest cores, idlest first; [] where that cannot be told or the process may not choose.

    Runtimes measured against each other run on the same cores. Of hardware threads that share a core one is taken,
    and it is as idle as the busiest of them.
    """
    if not hasattr(os, "sched_getaffinity") or not stat.is_file():
        return []
    allowed = os.sched_getaffinity(0)
    before = idle_ticks(stat.read_text())
    look()
    after = idle_ticks(stat.read_text())
    idle = {core: after[core] - before.get(core, 0) for core in after}
    siblings = {core: siblings_of(core) & idle.keys() or {core} for core in allowed & idle.keys()}
    leaders = [core for core in siblings if core == min(siblings[core] & allowed)]
    return sorted(leaders, key=lambda core: (-min(idle[other] for other in siblings[core]), core))[:count]


def idle_ticks(text: str) -> dict[int, int]:
    """Core to its idle time in the kernel's ticks (idle and waiting for a disk), from /proc/stat."""
    rows = (line.split() for line in text.splitlines() if line.startswith("cpu") and not line.startswith("cpu "))
    return {int(row[0].removeprefix("cpu")): int(row[4]) + int(row[5]) for row in rows}
