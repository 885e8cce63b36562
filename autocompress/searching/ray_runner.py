"""Candidates made by the tasks of a Ray cluster. This process measures; tasks on this machine rest meanwhile.

With `ray_tune` the only place that knows Ray.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from autocompress.errors import ConfigError, StorageError
from autocompress.pipeline import measured, settle
from autocompress.plan import describe
from autocompress.processors import cores
from autocompress.searching.controller import Proposal
from autocompress.searching.kit import Brought, Kit, failed, job_of, pack, work, write_files
from autocompress.searching.rest import all_at_rest
from autocompress.searching.runner import Finished
from autocompress.workshop import Workshop

#: Times that Ray begins a candidate again whose node or process died.
RETRIES = 3

#: Seconds within which a cluster's address must answer.
ANSWERS_S = 5.0


def check_ray(address: str, workers: int | None) -> None:
    """Refuse what cannot be, before any work.

    Raises:
        ConfigError: Ray is not installed, nothing answers at the address, or there is less than one task at a time.
    """
    if importlib.util.find_spec("ray") is None:
        raise ConfigError("--ray: Ray is not installed here; pip install 'ray[tune]'")
    if workers is not None and workers < 1:
        raise ConfigError(f"--workers must be 1 or more with --ray, but got {workers}")
    _check_answers(address)


def connect(address: str) -> bool:
    """Join a Ray cluster, or start one here for "local"; returns False where this process had joined one before.

    Raises:
        ConfigError: there is none at the address.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    if ray.is_initialized():
        return False
    more: dict[str, Any] = {"num_cpus": cores(), "include_dashboard": False} if address == "local" else {}
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **more)
    except Exception as fault:  # ConnectionError, or what the versions and tokens of both sides disagree about
        raise ConfigError(
            f"--ray {address}: no Ray cluster can be joined there ({type(fault).__name__}: {fault}); start one with "
            "`ray start --head`, or give --ray local"
        ) from fault
    return True


def _check_answers(address: str) -> None:
    """Refuse an address that nothing listens at; Ray itself would wait for minutes."""
    if address in ("auto", "local"):
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        raise ConfigError(f'--ray must be "auto", "local", host:port or ray://host:port, but got {address!r}')
    try:
        socket.create_connection((host, int(port)), ANSWERS_S).close()
    except (OSError, OverflowError) as fault:
        raise ConfigError(
            f"--ray {address}: nothing answers there ({fault}); start a cluster with `ray start --head`, and give the "
            "address that it prints"
        ) from None


def shared_out(nodes: list[int], workers: int | None) -> tuple[int, int]:
    """How many tasks at a time, and the cores of each, so that every task fits on some node.

    Args:
        nodes: cores of each node.
        workers: tasks that were asked for; None for one per node.

    Raises:
        ConfigError: there are fewer cores than tasks.
    """
    if workers is None:
        return len(nodes), max(1, min(nodes))
    if workers > sum(nodes):
        raise ConfigError(f"--workers must be 1 to {sum(nodes)} on this Ray cluster (its cores), but got {workers}")
    threads = max(n for n in range(1, max(nodes) + 1) if sum(node // n for node in nodes) >= workers)
    return workers, threads


class RayRunner:
    """Spreads candidates over a Ray cluster; see `runner.Runner`.

    Ray begins the candidates of a node that dies again on another one. Where tasks do not see the run folder, their
    files travel with their results.

    Args:
        shop: of the run.
        address: "host:port", "ray://host:port", "auto" or "local"; a cluster that this process has joined goes before.
        workers: candidates at a time; one per node by default.

    Raises:
        ConfigError: no cluster, more workers than it has cores, or a task that cannot be sent to it.
    """

    def __init__(self, shop: Workshop, address: str, workers: int | None = None) -> None:
        check_ray(address, workers)
        self._joined = connect(address)
        import ray

        self._ray: Any = ray
        self._shop = shop
        self.workers, threads = shared_out(node_cores(), workers)
        self._kit = pack(shop, threads)
        self._kit.marker.touch()
        self._sent = ray.put(self._kit)
        self._work: Any = ray.remote(work).options(num_cpus=threads, max_retries=RETRIES, retry_exceptions=False)
        self._under_way: dict[Any, Proposal] = {}

    def submit(self, proposal: Proposal) -> None:
        """Make a task of it."""
        if proposal.plan.learn:
            with resting(self._kit):
                settle(proposal.plan, self._shop)
        job = job_of(proposal.plan, proposal.rung, self._shop.root)
        self._under_way[self._work.remote(self._sent, job)] = proposal

    def wait(self) -> Finished:
        """Wait for a task, write what it brought, and time its file while tasks on this machine rest."""
        (ready, *_), _others = self._ray.wait(list(self._under_way), num_returns=1)
        proposal = self._under_way.pop(ready)
        brought = self._fetch(ready, proposal)
        write_files(self._shop.root, brought.files)
        with resting(self._kit):
            return proposal, measured(brought.made, self._shop.root, self._shop.bench)

    def _fetch(self, ready: Any, proposal: Proposal) -> Brought:
        try:
            brought: Brought = self._ray.get(ready)
        except self._ray.exceptions.RayTaskError as fault:
            if isinstance(fault.cause, StorageError):
                raise fault.cause from None
            return self._lost(proposal, f"{type(fault.cause).__name__}: {fault.cause}")
        except self._ray.exceptions.RayError as fault:
            return self._lost(proposal, f"the task was lost {RETRIES + 1} times: {type(fault).__name__}: {fault}")
        return brought

    def _lost(self, proposal: Proposal, why: str) -> Brought:
        made = failed(proposal.plan, proposal.rung, why)
        return Brought(type(made)(made.trial.replace(what=describe(proposal.plan, self._shop.table))))

    def close(self) -> None:
        """Give up the tasks; end the cluster's processes where they were started here."""
        for ref in self._under_way:
            with contextlib.suppress(self._ray.exceptions.RayError):
                self._ray.cancel(ref, force=True)
        self._under_way.clear()
        self._kit.marker.unlink(missing_ok=True)
        if self._joined:
            self._ray.shutdown()


@contextlib.contextmanager
def resting(kit: Kit) -> Iterator[None]:
    """While this lasts, the run's tasks on this machine are suspended, and none begins."""
    with all_at_rest(Path(kit.resting)):
        yield


def node_cores() -> list[int]:
    """Cores of the cluster's nodes that are alive, where there are any."""
    import ray

    cluster: Any = ray
    found = [int(node["Resources"].get("CPU", 0)) for node in cluster.nodes() if node["Alive"]]
    return [count for count in found if count] or [1]
