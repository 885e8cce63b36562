"""Many jobs of a bank at once: in this process, or spread over others that share the store's folder."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from autocompress.compressing.jobs import VALUE, Job, run_job
from autocompress.compressing.store import Store
from autocompress.processors import cores

#: Estimated seconds of work under which starting other processes (about 3 s each) does not pay.
PAYS_S = 8.0

Say = Callable[[str], None]


class Crew:
    """Computes entries; what comes out does not depend on the number of workers.

    Used as a context: other processes are started when there is enough to do, and stay until its end. A kill leaves
    whole entries only, and the next crew goes on from there.

    Args:
        store: takes the results.
        resolve: key of an input to its tensor.
        workers: processes; 1 computes in this one, None chooses by the work that is left.
        say: is told how far it is.
    """

    def __init__(
        self, store: Store, resolve: Callable[[str], Tensor], workers: int | None = None, say: Say | None = None
    ) -> None:
        self.store = store
        self.resolve = resolve
        self.workers = workers
        self.say = say
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Crew:
        """The crew itself; nothing is started yet."""
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _fault: BaseException | None, _trace: TracebackType | None
    ) -> None:
        """End the processes; jobs that have not begun are given up."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None

    def run(self, jobs: Iterable[Job]) -> None:
        """Compute the entries that are not there yet; none of the jobs may need the result of another."""
        left = list({job.key: job for job in jobs if not self.store.has(job.key)}.values())
        left.sort(key=lambda job: -job.cost_s)
        total = len(left)
        inputs = {key for job in left for key in job.inputs.values()}
        with self.store.hold(*inputs):
            if self._spreads(left):
                self._hand_over(inputs)
                left = self._run_in_processes(left, total)
            for number, job in enumerate(left):
                run_job(job, self.store, self.resolve)
                self._tell(total - len(left) + number + 1, total)

    def _spreads(self, left: Sequence[Job]) -> bool:
        if self.workers is not None:
            return min(self.workers, len(left)) > 1
        pays = self._pool is not None or sum(job.cost_s for job in left) > PAYS_S
        return pays and min(cores(), len(left)) > 1

    def _hand_over(self, inputs: Iterable[str]) -> None:
        """Make every input a file, for processes that know nothing of the model."""
        for key in inputs:
            if not self.store.path(key).is_file() or self.store.get(key) is None:
                self.store.put(key, {VALUE: self.resolve(key)})

    def _run_in_processes(self, jobs: Sequence[Job], total: int) -> list[Job]:
        """Returns the jobs that are left where a process was killed, could not start, or missed an input."""
        left = {job.key: job for job in jobs}
        try:
            pool = self._started()
            futures = {pool.submit(_work, self.store.folder, job): job for job in jobs}
            for future in as_completed(futures):
                if future.result():
                    del left[futures[future].key]
                    self.store.trim()
                    self._tell(total - len(left), total)
        except BrokenProcessPool:
            self.__exit__(None, None, None)
        return list(left.values())

    def _started(self) -> ProcessPoolExecutor:
        if self._pool is None:
            self._pool = ProcessPoolExecutor(
                self.workers or cores(),
                mp_context=multiprocessing.get_context("spawn"),
                initializer=torch.set_num_threads,
                initargs=(1,),
            )
        return self._pool

    def _tell(self, done: int, total: int) -> None:
        if self.say is not None:
            self.say(f"bank: {done} of {total}")


def _work(folder: Path, job: Job) -> bool:
    """One job in a worker, which makes no room: only its parent knows what is needed. False where an input is gone."""
    store = Store(folder, memory_bytes=0)
    found = {key: store.get(key) for key in job.inputs.values()}
    tensors = {key: entry[VALUE] for key, entry in found.items() if entry is not None}
    if len(tensors) == len(found):
        run_job(job, store, tensors.__getitem__)
    return len(tensors) == len(found)
