"""Oracles: the files of a bank that was built in one process, and the processes and jobs that were counted."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from autocompress.compressing import building
from autocompress.compressing.bank import Bank
from autocompress.compressing.building import Crew
from autocompress.compressing.jobs import Job
from autocompress.compressing.store import Store
from autocompress.plan import Factorize, LayerPlan, Plan, Prune
from tests.tiny import bert, table_of, task_of

TASK = task_of(bert())
TABLE = table_of(TASK)


def options() -> list[Plan]:
    """Two levels of every counted group, one removed part and two ranks."""
    counted = [g for g in TABLE.groups if not g.removable]
    plans = [Plan({g.name: Prune(g.size * part // 4)}) for g in counted for part in (1, 3)]
    name = "bert.encoder.layer.1.output.dense"
    ranks = [Plan(layers={name: LayerPlan(factorize=Factorize(rank))}) for rank in (4, 8)]
    return [*plans, *ranks, Plan({"bert.encoder.layer.1/attention": Prune(0)})]


def contents(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    store = Store(folder)
    keys = [path.name.removesuffix(".safetensors") for path in folder.glob("*.safetensors")]
    return {key: store.get(key) for key in keys if not key.startswith("input-")}


def test_built_in_other_processes_is_what_is_built_in_this_one(tmp_path: Path) -> None:
    told: list[str] = []
    Bank(tmp_path / "serial", TASK, TABLE).build(options(), workers=1)
    parallel = Bank(tmp_path / "parallel", TASK, TABLE)
    parallel.build(options(), workers=2, say=told.append)
    expected, found = contents(tmp_path / "serial"), contents(tmp_path / "parallel")
    assert {key.split("-")[0] for key in expected} == {"moment", "order", "repair", "decomposition", "output"}
    assert expected.keys() == found.keys()
    for key, tensors in expected.items():
        assert all(torch.equal(found[key][name], value) for name, value in tensors.items()), key
    assert told[0] == "bank: 1 of 6"  # five orders and a decomposition, then the repairs
    assert told[-1].endswith("of 26")


def test_what_is_there_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Bank(tmp_path, TASK, TABLE).build(options(), workers=1)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    monkeypatch.setattr(building, "run_job", None)
    monkeypatch.setattr(building, "ProcessPoolExecutor", None)
    Bank(tmp_path, TASK, TABLE).build(options(), workers=2)
    assert set(times) == set(tmp_path.iterdir())


def test_a_build_that_was_killed_half_way_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, done = building.run_job, []

    def dies(job, store, resolve):
        if len(done) == 4:
            raise KeyboardInterrupt
        done.append(real(job, store, resolve))

    monkeypatch.setattr(building, "run_job", dies)
    with pytest.raises(KeyboardInterrupt):
        Bank(tmp_path, TASK, TABLE).build(options(), workers=1)
    assert all(found is not None for found in contents(tmp_path).values())
    left: list[str] = []
    monkeypatch.setattr(building, "run_job", real)
    Bank(tmp_path, TASK, TABLE).build(options(), workers=1, say=left.append)
    assert left[0] == "bank: 1 of 2"  # four of six were done


def test_small_work_stays_in_this_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building, "ProcessPoolExecutor", None)
    Bank(tmp_path, TASK, TABLE).build(options())


def test_large_work_is_spread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building, "cores", lambda: 3)
    jobs = [Job("order", {"number": number}, {}, cost_s=6.0) for number in range(2)]

    def spreads(jobs: list[Job], workers: int | None = None) -> bool:
        return Crew(Store(tmp_path), lambda _key: torch.zeros(1), workers)._spreads(jobs)

    assert spreads(jobs)
    assert not spreads(jobs[:1])  # under PAYS_S, and one job is no work for two
    assert not spreads(jobs, workers=1)
    assert spreads([Job("order", {"number": number}, {}) for number in range(2)], workers=2)


class BrokenPool:
    """A pool whose workers are killed."""

    def __init__(self, *_args: object, **_options: object) -> None: ...

    def shutdown(self, **_options: object) -> None: ...

    def submit(self, *_args: object):
        from concurrent.futures import Future

        future: Future[bool] = Future()
        future.set_exception(building.BrokenProcessPool("killed"))
        return future


def test_what_killed_workers_leave_is_done_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building, "ProcessPoolExecutor", BrokenPool)
    Bank(tmp_path / "broken", TASK, TABLE).build(options(), workers=2)
    Bank(tmp_path / "serial", TASK, TABLE).build(options(), workers=1)
    assert contents(tmp_path / "broken").keys() == contents(tmp_path / "serial").keys()


def test_a_worker_whose_input_is_gone_says_so(tmp_path: Path) -> None:
    assert building._work(tmp_path, Job("repair", {"columns": [0]}, {"weight": "input-1", "gram": "input-2"})) is False
    assert not list(tmp_path.iterdir())


def test_the_limit_is_kept_while_building(tmp_path: Path) -> None:
    limit = 80_000
    bank = Bank(tmp_path, TASK, TABLE, limit)
    bank.build(options(), workers=1)
    assert bank.store.size_bytes() <= limit


def test_a_fault_in_a_job_is_raised(tmp_path: Path) -> None:
    store = Store(tmp_path)
    job = Job("repair", {"columns": [99]}, {"weight": "a", "gram": "b"})
    with pytest.raises(IndexError):
        Crew(store, lambda _key: torch.eye(3), workers=1).run([job])
    assert not [path for path in tmp_path.iterdir() if os.path.getsize(path)]
