"""One measuring process per device at a time: an advisory lock that searches of one user take turns with.

The kernel frees the lock when its holder ends, however it ends: there is nothing to clean up.
"""

from __future__ import annotations

import fcntl
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from autocompress.records import storage_errors

#: Seconds between two tries, and until the user hears what is waited for.
POLL_SECONDS = 0.05
NOTICE_SECONDS = 5.0


def lock_folder() -> Path:
    """Where this machine keeps this user's locks; not the home, which several machines may share."""
    return Path(tempfile.gettempdir()) / f"autocompress-{os.getuid()}"


def warn(message: str) -> None:
    """Say something on stderr."""
    print(message, file=sys.stderr, flush=True)


class DeviceLock:
    """``with lock:`` while a device is timed; may be nested, not shared between threads.

    Args:
        device: such as "cpu".
        say: told who holds the lock, once `NOTICE_SECONDS` have passed.
        folder: of the lock's file.
        clock, sleep: seconds.
    """

    def __init__(
        self,
        device: str,
        say: Callable[[str], None] = warn,
        *,
        folder: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.device = device
        self.path = (folder or lock_folder()) / f"measuring-{device}.lock"
        self._say, self._clock, self._sleep = say, clock, sleep
        self._depth = 0
        self._file = -1

    def __enter__(self) -> DeviceLock:
        """Wait for the device.

        Raises:
            StorageError: the lock's file cannot be made.
        """
        if not self._depth:
            self._file = self._wait()
        self._depth += 1
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _fault: BaseException | None, _trace: TracebackType | None
    ) -> None:
        """Let the next one have it."""
        self._depth -= 1
        if not self._depth:
            os.ftruncate(self._file, 0)
            os.close(self._file)

    def _wait(self) -> int:
        """Take the gate, then the device, and leave the gate: who measures again queues behind who waits already."""
        begun = self._clock()
        gate = self._open(self.path.with_suffix(".gate"))
        try:
            told = self._take(gate, begun)
            file = self._take_device(begun, told)
        finally:
            os.close(gate)
        os.ftruncate(file, 0)
        os.pwrite(file, f"{os.getpid()} {shlex.join(sys.orig_argv)}"[:200].encode(), 0)
        return file

    def _take_device(self, begun: float, told: bool) -> int:
        file = self._open(self.path)
        try:
            self._take(file, begun, told)
        except BaseException:
            os.close(file)
            raise
        return file

    def _open(self, path: Path) -> int:
        with storage_errors(path):
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def _take(self, file: int, begun: float, told: bool = False) -> bool:
        """Try until the file is ours; returns whether the user was told of the wait."""
        while not _taken(file):
            if not told and self._clock() - begun >= NOTICE_SECONDS:
                self._say(f"waiting to measure on {self.device}: {self._holder()} is measuring there")
                told = True
            self._sleep(POLL_SECONDS)
        return told

    def _holder(self) -> str:
        known = self.path.read_text(errors="replace") if self.path.is_file() else ""
        process, _, command = known.partition(" ")
        return f"process {process} ({command})" if process else "another process"


def _taken(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
