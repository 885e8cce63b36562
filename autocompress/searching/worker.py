"""A process that makes candidates for `local_runner`: ``python -m autocompress.searching.worker HANDLE CORES``.

Talks pickles over the connection that it inherits; what is printed goes to the run's ``workers.log``.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import pickle
import signal
import sys
from multiprocessing.connection import Connection

from autocompress.errors import AutocompressError, StorageError

#: Linux: the signal that a process gets when its parent ends.
_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Make candidates until the connection ends."""
    connection, cores = Connection(int(sys.argv[1])), [int(core) for core in sys.argv[2].split(",") if core]
    _settle(cores)
    with contextlib.suppress(EOFError, BrokenPipeError):
        sys.path[:] = connection.recv()  # what is pickled by name must be found here as it was there
        _serve(connection, connection.recv_bytes())


def _serve(connection: Connection, kit: bytes) -> None:
    from autocompress.pipeline import make
    from autocompress.searching.kit import open_kit

    try:
        shop = open_kit(pickle.loads(kit))
    except Exception as fault:
        connection.send(AutocompressError(f"a worker cannot open the run: {type(fault).__name__}: {fault}"))
        return
    connection.send(None)
    while True:
        plan, rung = connection.recv()
        try:
            connection.send(make(plan, shop, rung))
        except StorageError as fault:
            connection.send(fault)


def _settle(cores: list[int]) -> None:
    """Stay on the cores given, leave an interrupt to the parent, and end with it, even while suspended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    main()
