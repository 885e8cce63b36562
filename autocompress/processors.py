"""Which of this machine's processors the process may use. Knows /proc and /sys, and what else systems tell."""

from __future__ import annotations

import os
from collections.abc import Set
from pathlib import Path

import psutil

TOPOLOGY = Path("/sys/devices/system/cpu")

#: Where control groups are: of version 2, and of version 1's processors.
CGROUPS = Path("/sys/fs/cgroup")


def cores() -> int:
    """Physical cores that this process may use at a time: hardware threads of one core count once.

    No more than the share of processor time that a container leaves it, rounded down.
    """
    allowed = allowed_threads()
    if not allowed:
        return max(1, psutil.cpu_count(logical=False) or 1)
    known = (TOPOLOGY / f"cpu{min(allowed)}" / "topology" / "thread_siblings_list").is_file()
    physical = len({min(siblings(thread) & allowed) for thread in allowed})
    if not known:
        physical = min(physical, psutil.cpu_count(logical=False) or physical)
    share = time_share()
    return max(1, physical if share is None else min(physical, int(share)))


def allowed_threads() -> Set[int]:
    """Hardware threads that this process may run on; empty where the platform does not say."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else frozenset()


def siblings(thread: int) -> set[int]:
    """Hardware threads on the same core, itself included; itself alone where the platform does not say."""
    path = TOPOLOGY / f"cpu{thread}" / "topology" / "thread_siblings_list"
    return parse_list(path.read_text()) | {thread} if path.is_file() else {thread}


def parse_list(text: str) -> set[int]:
    """The numbers of a list such as ``0-2,8``."""
    found: set[int] = set()
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        found |= set(range(int(first), int(last or first) + 1))
    return found


def time_share(cgroups: Path | None = None) -> float | None:
    """Processors' worth of time that the container's control group allows, such as 1.5; None for no limit."""
    folder = cgroups or CGROUPS
    try:
        if (folder / "cpu.max").is_file():
            most, period = (folder / "cpu.max").read_text().split()
        else:
            most, period = ((folder / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return float(most) / float(period) if float(most) > 0 else None
    except (OSError, ValueError):  # "max", or nothing that says so
        return None
