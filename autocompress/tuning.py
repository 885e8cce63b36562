"""The verb `ray_tune`: a search for those who live in Ray Tune."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autocompress.errors import ConfigError
from autocompress.folder import claimed
from autocompress.launch import Limits, open_loop, opened_shop, settle_folder
from autocompress.searching.controller import Controller, Sampler
from autocompress.searching.kit import pack
from autocompress.searching.order import read_order
from autocompress.searching.ray_runner import check_ray, connect
from autocompress.searching.runner import InProcess
from autocompress.searching.status import Silent, Watcher
from autocompress.tasks.task import Task

if TYPE_CHECKING:
    from autocompress.searching.ray_tune import PlanSearcher, Trainable

#: Candidates that the controller expects to be under way at once; how many there are is Tune's affair.
SEVERAL = 2


def ray_tune(
    task: Task,
    *,
    out: str | Path | None = None,
    space: str | Path | None = None,
    hardware: str | Path = "cpu",
    max_latency: str | float | None = None,
    min_speedup: str | float | None = None,
    max_drop: str | None = None,
    max_size: str | int | None = None,
    max_memory: str | int | None = None,
    objectives: str | Sequence[str] | None = None,
    sampler: Sampler = "auto",
    seed: int = 0,
    warm_start: str | Path | None = None,
    bank_limit: str | int | None = None,
    threads: int = 1,
    ray: str = "local",
    watcher: Watcher | None = None,
    source: Mapping[str, Any] | None = None,
) -> tuple[Trainable, PlanSearcher]:
    """A trainable and a searcher for ``tune.Tuner(trainable, tune_config=tune.TuneConfig(search_alg=searcher, …))``.

    Probes the device and evaluates dense and uniform int8 first, here; then each of Tune's trials evaluates one plan,
    proposed by the controller of `strategy: joint`. Metrics: quality, latency_s, latency_ratio,
    latency_ratio_best_dense, size_bytes, peak_memory_bytes (where memory is asked for), feasible, and over_NAME per
    budget (0 or less is within). A candidate that fails is a trial with an error. All outcomes are kept in `out`, a run
    folder: `autocompress report` and `pick` work there, and the same call goes on with it.

    Args:
        task: model, data and metric.
        out: the run folder, ``runs/TASK-tune`` by default.
        space: a shipped search space or a .yaml path; by default the one that fits the model.
        hardware: a shipped profile or a .yaml path.
        max_latency: such as "5ms"; like all budgets a constraint that the controller learns from.
        min_speedup: such as "2x", against the fastest dense fp32 setting.
        max_drop: such as "1pt" (absolute) or "1%" (relative).
        max_size: of the file, such as "5MB", or bytes.
        max_memory: of a process that loads the file and runs one query, such as "200MB", or bytes.
        objectives: of the controller, as in `autocompress.search`; with memory among them it is a metric too.
        sampler: of the controller, as in `autocompress.search`.
        seed: of the sampler and of the recoveries.
        warm_start: folder of an earlier run on the same model, whose front is proposed first.
        bank_limit: disk that intermediate results may take, such as "2GB", or bytes.
        threads: cores of a trial.
        ray: the cluster to join ("host:port", "auto") or "local" to start one, unless this process has one already.
            Latencies are taken on this node.
        watcher: is told what the probe finds.
        source: how the task was made, for `experiment.yaml`.

    Raises:
        ConfigError, SpaceError, ProfileError, ModelError, BudgetError, RunMismatchError: as `search` does.
    """
    if ray.startswith("ray://"):
        raise ConfigError(f"ray_tune measures on this node, which must be in the cluster; but ray is {ray!r}")
    check_ray(ray, threads)
    order = read_order(
        task, out=out or f"runs/{task.name}-tune", space=space, hardware=hardware, max_latency=max_latency,
        min_speedup=min_speedup, max_drop=max_drop, max_size=max_size, max_memory=max_memory, objectives=objectives,
        strategy="joint", sampler=sampler, seed=seed, warm_start=warm_start, bank_limit=bank_limit, source=source,
        more={},
    )  # fmt: skip
    from autocompress.searching.ray_tune import Judge, PlanSearcher, hire, make_trainable, retire

    retire(order.root)
    claim = contextlib.ExitStack()
    claim.enter_context(claimed(order.root))
    settle_folder(order)
    connect(ray)
    with opened_shop(order) as shop:
        loop = open_loop(order, shop, InProcess(shop, SEVERAL), Limits(math.inf), watcher or Silent())
        loop.evaluate_references()
    dense = loop.front.dense
    assert dense is not None
    assert dense.quality is not None
    kit = pack(shop, threads)
    kit.marker.touch()
    clerk = hire(kit, shop.bench.dense.path.resolve(), shop.bench.best_dense, order.needs_memory)
    controller = loop.proposer()
    assert isinstance(controller, Controller)
    judge = Judge(order.budgets, dense.quality, task.metric.maximize)
    searcher = PlanSearcher(loop, controller, clerk, Path(kit.resting), claim)
    return make_trainable(kit, clerk, judge), searcher
