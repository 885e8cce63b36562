"""A tiny run on a chip whose latencies are worked out, for everything that evaluates candidates in other processes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from autocompress.devices import open_bench
from autocompress.hardware import load_profile
from autocompress.pipeline import build
from autocompress.plan import Distill, Factorize, LayerPlan, Mask, Plan, Quantize
from autocompress.searching.controller import Proposal
from autocompress.tasks.task import Task
from autocompress.workshop import Workshop, open_workshop, write_workload
from tests.tiny import _one_thread, mlp, table_of, task_of  # noqa: F401

PLANS = (
    Plan(layers={"first": LayerPlan(quantize=Quantize("int8"))}),
    Plan(layers={"first": LayerPlan(mask=Mask(0.5, score="wanda"))}, distill=Distill(steps=3)),
    Plan(layers={"no.such.layer": LayerPlan(Factorize(4))}),
    Plan(layers={"second": LayerPlan(quantize=Quantize("int8"))}),
)

MakeShop = Callable[..., Workshop]


@pytest.fixture(autouse=True, scope="session")
def _no_waiting_for_the_disk() -> Iterator[None]:
    """Optuna's journal waits for the disk at every parameter, which took most of a test's time; none pulls the plug."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _descriptor: None)
        yield


@pytest.fixture
def make_shop(tmp_path: Path) -> MakeShop:
    """``make_shop(name="run", **changes of the task)``: a workshop with its dense artefact."""

    def make(name: str = "run", **changes: object) -> Workshop:
        task: Task = task_of(mlp(), **changes)
        root, profile, table = tmp_path / name, load_profile("raspberry-pi-5"), table_of(task)
        write_workload(root / "inputs.npz", task, profile.workload)
        bench = open_bench(profile, root / "inputs.npz", root / "artifacts" / "dense.onnx", table)
        shop = open_workshop(root, task, table, profile, bench)
        dense = build(Plan(), shop)
        bench.dense.path.parent.mkdir(parents=True, exist_ok=True)
        bench.dense.path.write_bytes((root / dense.path).read_bytes())
        return shop

    return make


@pytest.fixture
def proposals() -> list[Proposal]:
    """A plan of integers, one that recovers, one that fails, and another of integers."""
    return [Proposal(number, plan, "sampled") for number, plan in enumerate(PLANS)]
