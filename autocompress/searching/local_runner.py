"""Candidates made by several processes of this machine, each with its share of the cores.

They build and score. This process measures, one file at a time, while they are suspended.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import subprocess
import sys
from collections import deque
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.connection import Connection
from typing import Any

import psutil

from autocompress.errors import AutocompressError, ConfigError
from autocompress.pipeline import Made, measured, settle
from autocompress.plan import describe
from autocompress.processors import cores
from autocompress.searching.controller import Proposal
from autocompress.searching.kit import failed, pack
from autocompress.searching.rest import at_rest
from autocompress.searching.runner import Finished
from autocompress.workshop import Workshop

LOG = "workers.log"

#: Times that a candidate is begun whose process died: the first death may be another program's doing.
TRIES = 2

#: Seconds that a process which closed its connection may take to end.
DIES_S = 5.0


def check_workers(workers: int) -> None:
    """Raise `ConfigError` for more processes than cores, or fewer than one."""
    if not 1 <= workers <= cores():
        raise ConfigError(f"--workers must be 1 to {cores()} on this machine (its cores), but got {workers}")


@dataclass
class Worker:
    """One process, and what it is at; `place` tells its cores."""

    process: subprocess.Popen[bytes]
    connection: Connection
    place: int
    ready: bool = False
    proposal: Proposal | None = None

    def end(self, patience_s: float = 0.0) -> int:
        """End the process, with all that it started, unless it ends by itself; returns its exit code."""
        self.connection.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.process.wait(patience_s)
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in psutil.Process(self.process.pid).children(recursive=True):
                child.kill()
        self.process.kill()
        return self.process.wait()


class LocalRunner:
    """Spreads candidates over processes; see `runner.Runner`.

    A process that dies costs at most its candidate, which is tried once more.

    Args:
        shop: of the run.
        workers: processes; they start with the first candidates.

    Raises:
        ConfigError: more workers than cores, or a task that cannot be sent to them.
    """

    def __init__(self, shop: Workshop, workers: int) -> None:
        check_workers(workers)
        self.workers = workers
        self._shop = shop
        self._kit = pickle.dumps(pack(shop, max(1, cores() // workers)))
        self._crew: list[Worker] = []
        self._tries: dict[str, int] = {}
        self._made: deque[tuple[Proposal, Made]] = deque()
        self._proven = False

    @property
    def pids(self) -> list[int]:
        """The processes."""
        return [worker.process.pid for worker in self._crew]

    def submit(self, proposal: Proposal) -> None:
        """Give it to a process that is free, or to a new one."""
        if proposal.plan.learn:
            with at_rest(self.pids):
                settle(proposal.plan, self._shop)
        self._give(proposal)

    def wait(self) -> Finished:
        """Hear from the processes until one has made a candidate, and time that while they rest."""
        while not self._made:
            busy = {worker.connection: worker for worker in self._crew if worker.proposal is not None}
            for heard in connection.wait(list(busy)):
                self._hear(busy[heard])  # type: ignore[index]
        proposal, made = self._made.popleft()
        with at_rest(self.pids):
            return proposal, measured(made, self._shop.root, self._shop.bench)

    def close(self) -> None:
        """End the processes."""
        for worker in self._crew:
            worker.end()
        self._crew.clear()
        self._made.clear()

    def _give(self, proposal: Proposal) -> None:
        free = [worker for worker in self._crew if worker.proposal is None]
        worker = free[0] if free else self._start()
        worker.proposal = proposal
        with contextlib.suppress(ConnectionError):  # it died idle: heard of like any other death
            worker.connection.send((proposal.plan, proposal.rung))

    def _start(self) -> Worker:
        place = min(set(range(self.workers)) - {worker.place for worker in self._crew})
        ours, theirs = multiprocessing.Pipe()
        allowed = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        command = [sys.executable, "-m", "autocompress.searching.worker", str(theirs.fileno())]
        command.append(",".join(map(str, allowed[place :: self.workers])))
        with (self._shop.root / LOG).open("ab") as log, theirs:
            process = subprocess.Popen(
                command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        worker = Worker(process, ours, place)
        self._crew.append(worker)
        with contextlib.suppress(ConnectionError):
            ours.send(sys.path)
            ours.send_bytes(self._kit)
        return worker

    def _hear(self, worker: Worker) -> None:
        try:
            answer: Any = worker.connection.recv()
        except (EOFError, ConnectionError):
            self._bury(worker)
            return
        if isinstance(answer, AutocompressError):
            raise answer
        if answer is None:
            worker.ready = self._proven = True
            return
        assert worker.proposal is not None
        self._made.append((worker.proposal, answer))
        worker.proposal = None

    def _bury(self, worker: Worker) -> None:
        """Of a process that died: try its candidate once more, or give it up."""
        proposal, code = worker.proposal, worker.end(DIES_S)
        self._crew.remove(worker)
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        if not self._proven:
            raise AutocompressError(f"a worker process {how} before it was ready; {self._shop.root / LOG} may say why")
        assert proposal is not None
        key = f"{proposal.plan.fingerprint}-r{proposal.rung}"
        self._tries[key] = self._tries.get(key, 1) + 1
        if self._tries[key] <= TRIES:
            self._give(proposal)
            return
        made = failed(proposal.plan, proposal.rung, f"the process that made it {how}, {TRIES} times")
        trial = made.trial.replace(what=describe(proposal.plan, self._shop.table))
        self._made.append((proposal, Made(trial)))
