"""What the kernel says of this process: how long its threads stood in line for a core, its memory, its cores.

Knows /proc. Where there is none, less is known, and said so.
"""

from __future__ import annotations

import contextlib
import os
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

TASKS = Path("/proc/self/task")
STATUS = Path("/proc/self/status")


class Waiting:
    """How long threads of this process were ready to run and did not, because others had the cores.

    Linux counts it per thread: the second figure of ``/proc/self/task/*/schedstat``, in ns, brought up to date when a
    thread gets a core. Elsewhere a process of one thread that computes all the time waited for as long as its
    processor time falls short of the wall-clock; of several threads nothing is known.

    Args:
        threads: of the runtime.

    Attributes:
        known: whether waits can be told at all.
    """

    def __init__(self, threads: int, tasks: Path = TASKS) -> None:
        self.threads = threads
        self._files: list[int] = []
        for path in sorted(tasks.glob("*/schedstat")) if tasks.is_dir() else ():
            with contextlib.suppress(OSError):
                self._files.append(os.open(path, os.O_RDONLY))
        self.known = bool(self._files) or threads == 1
        self._before = self._now()

    def lap(self) -> float:
        """Seconds waited since the last lap, summed over the threads."""
        now = self._now()
        waited, self._before = max(0.0, now - self._before), now
        return waited

    def close(self) -> None:
        """Give the files back."""
        for file in self._files:
            os.close(file)
        self._files.clear()

    def _now(self) -> float:
        if not self._files:
            return time.perf_counter() - time.process_time() if self.threads == 1 else 0.0
        return sum(_run_delay(file) for file in self._files) / 1e9


def _run_delay(file: int) -> int:
    try:
        return int(os.pread(file, 80, 0).split()[1])
    except (OSError, IndexError):  # the thread has ended
        return 0


def peak_memory_bytes(status: Path = STATUS) -> int:
    """Largest resident set of this process so far, the interpreter and the runtime's own code included."""
    with contextlib.suppress(OSError):
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def processor_times(tasks: Path = TASKS) -> dict[int, int]:
    """Thread to nanoseconds on a core so far; empty where the kernel does not say."""
    found = {}
    for path in tasks.glob("*/schedstat") if tasks.is_dir() else ():
        with contextlib.suppress(OSError, ValueError, IndexError):
            found[int(path.parent.name)] = int(path.read_text().split()[0])
    return found


def busiest(before: Mapping[int, int], after: Mapping[int, int], count: int, first: int) -> list[int]:
    """The `count` threads that computed most in between, `first` at the head whatever it did."""
    grown = {thread: after[thread] - before.get(thread, 0) for thread in after if thread != first}
    return [first, *sorted(grown, key=lambda thread: -grown[thread])[: count - 1]]


def stay_on(cores: Sequence[int], alone: Mapping[int, int]) -> None:
    """Let some threads run on one core each, thread to core, and all others of this process on any of `cores`.

    Threads that share out one layer wait for the slowest: two of them on one core, while a stranger has the other,
    cost far more than the stranger. Does nothing where the platform has no affinity.
    """
    if not hasattr(os, "sched_setaffinity") or not cores:
        return
    for thread in processor_times() or {0: 0}:
        with contextlib.suppress(OSError):  # it has ended, or the core is gone
            os.sched_setaffinity(thread, {alone[thread]} if thread in alone else set(cores))
