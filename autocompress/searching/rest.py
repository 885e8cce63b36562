"""Work that rests while a device is timed: processes are suspended, and continue where they were.

Processes that the timing one did not start itself, such as those of a cluster, say in a folder of their machine that
they are at work. Knows processes; nothing of what they do.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import psutil

from autocompress.errors import MeasureError

GATE = "gate"

#: States in which a process computes nothing, and seconds that reaching them may take.
STILL = (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP, psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
STOPS_S = 1.0


@contextlib.contextmanager
def at_rest(pids: Iterable[int]) -> Iterator[None]:
    """Suspend processes, and all that they started, for as long as this lasts.

    Raises:
        MeasureError: one of them is another user's.
    """
    resting: list[psutil.Process] = []
    try:
        for pid in pids:
            _suspend(pid, resting)
        _wait(resting)
        yield
    finally:
        for process in reversed(resting):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()


def _suspend(pid: int, resting: list[psutil.Process]) -> None:
    """A process first, so that it starts no more, then what it started."""
    try:
        process = psutil.Process(pid)
        process.suspend()
        resting.append(process)
        for child in process.children():
            _suspend(child.pid, resting)
    except psutil.NoSuchProcess:
        return
    except psutil.AccessDenied:
        raise MeasureError(
            f"process {pid} works on this machine for another user and cannot rest while the device is timed; run both "
            "as one user"
        ) from None


def _wait(resting: Iterable[psutil.Process]) -> None:
    """Until all of them have stopped; the kernel takes a moment where a thread is in it."""
    end = time.monotonic() + STOPS_S
    for process in resting:
        with contextlib.suppress(psutil.NoSuchProcess):
            while process.status() not in STILL and time.monotonic() < end:
                time.sleep(0.001)


@contextlib.contextmanager
def at_work(folder: Path) -> Iterator[None]:
    """Let this process be found by `all_at_rest`; while something is timed on this machine, wait to begin.

    Args:
        folder: of this machine; the same for all that belong together.
    """
    folder.mkdir(parents=True, exist_ok=True)
    mark = folder / str(os.getpid())
    mark.write_text(repr(psutil.Process().create_time()))
    try:
        with _gate(folder) as gate:  # either whoever times has seen the mark, or this waits for it
            fcntl.flock(gate, fcntl.LOCK_SH)
        yield
    finally:
        mark.unlink(missing_ok=True)


@contextlib.contextmanager
def all_at_rest(folder: Path) -> Iterator[None]:
    """Suspend all processes that are at work by the folder, and let none begin."""
    folder.mkdir(parents=True, exist_ok=True)
    with _gate(folder) as gate:
        fcntl.flock(gate, fcntl.LOCK_EX)
        with at_rest(_working(folder)):
            yield


@contextlib.contextmanager
def _gate(folder: Path) -> Iterator[int]:
    gate = os.open(folder / GATE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        yield gate
    finally:
        os.close(gate)


def _working(folder: Path) -> Iterator[int]:
    """Processes that marked themselves and still are the same ones; marks of killed ones are removed."""
    for mark in folder.iterdir():
        if not mark.name.isdigit() or int(mark.name) == os.getpid():
            continue
        try:
            begun = psutil.Process(int(mark.name)).create_time()
            if abs(begun - float(mark.read_text())) < 1:
                yield int(mark.name)
        except psutil.NoSuchProcess:
            mark.unlink(missing_ok=True)
        except (FileNotFoundError, ValueError):  # it has just ended, or has not begun
            continue
