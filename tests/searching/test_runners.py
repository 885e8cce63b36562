"""Candidates made here and in other processes. Oracles: `evaluate` in this process, the kernel, planted deaths."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import Any

import psutil
import pytest
from torch import Tensor, nn

import autocompress
from autocompress.errors import ConfigError, MeasureError, StorageError
from autocompress.pipeline import evaluate
from autocompress.plan import Distill, LayerPlan, Mask, Plan
from autocompress.processors import cores
from autocompress.records import Trial
from autocompress.searching.controller import Proposal
from autocompress.searching.kit import Job, NoDevice, job_of, open_kit, pack, work, write_files
from autocompress.searching.local_runner import LOG, LocalRunner, check_workers
from autocompress.searching.runner import InProcess, Runner
from autocompress.searching.runners import open_runner
from autocompress.workshop import Workshop
from tests.searching.conftest import PLANS, MakeShop
from tests.test_launch import example_task

two = pytest.mark.skipif(cores() < 2, reason="two workers need two cores")
DEADLY = Plan(layers={"first": LayerPlan(mask=Mask(0.5))}, distill=Distill(steps=2))


def run_all(runner: Runner, proposals: list[Proposal]) -> dict[int, Trial]:
    """Every proposal's trial, with as many under way as the runner takes."""
    waiting, found, under_way = list(proposals), {}, 0
    while waiting or under_way:
        while waiting and under_way < runner.workers:
            runner.submit(waiting.pop(0))
            under_way += 1
        proposal, trial = runner.wait()
        found[proposal.number] = trial
        under_way -= 1
    return found


def facts(trial: Trial) -> tuple[object, ...]:
    """All that does not depend on the clock."""
    return (
        trial.fingerprint, trial.rung, trial.state, trial.quality, trial.quality_stderr, trial.artifact, trial.latency,
        trial.error, trial.what, sorted(trial.seconds),
    )  # fmt: skip


@pytest.fixture
def expected(make_shop: MakeShop, proposals: list[Proposal]) -> dict[int, Trial]:
    """What `evaluate` says, in a run of its own."""
    shop = make_shop("alone")
    return {proposal.number: evaluate(proposal.plan, shop) for proposal in proposals}


def test_in_process_is_evaluate(make_shop: MakeShop, proposals: list[Proposal], expected: dict[int, Trial]) -> None:
    runner = open_runner(make_shop(), None, None)
    assert isinstance(runner, InProcess)
    found = run_all(runner, proposals)
    assert {n: facts(trial) for n, trial in found.items()} == {n: facts(trial) for n, trial in expected.items()}
    assert [trial.state for trial in expected.values()] == ["DONE", "DONE", "FAILED", "DONE"], expected


@two
def test_two_processes_find_what_one_does(
    make_shop: MakeShop, proposals: list[Proposal], expected: dict[int, Trial]
) -> None:
    runner = open_runner(make_shop(), 2, None)
    assert isinstance(runner, LocalRunner)
    try:
        found = run_all(runner, proposals)
        assert len(runner.pids) == 2
    finally:
        runner.close()
    assert {n: facts(trial) for n, trial in found.items()} == {n: facts(trial) for n, trial in expected.items()}


class Looking:
    """A bench that notes what processes do while it times."""

    def __init__(self, bench: Any) -> None:
        self.bench = bench
        self.pids: Any = None
        self.seen: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.bench, name)

    def measure(self, path: Path, **options: Any) -> Any:
        self.seen += [psutil.Process(pid).status() for pid in self.pids()]
        return self.bench.measure(path, **options)


@two
def test_processes_rest_while_one_is_timed(make_shop: MakeShop, proposals: list[Proposal]) -> None:
    shop = make_shop()
    bench = Looking(shop.bench)
    object.__setattr__(shop, "bench", bench)
    runner = LocalRunner(shop, 2)
    bench.pids = lambda: runner.pids
    try:
        run_all(runner, proposals[:2])
        assert bench.seen == [psutil.STATUS_STOPPED] * 4
        assert psutil.STATUS_STOPPED not in [psutil.Process(pid).status() for pid in runner.pids]
    finally:
        runner.close()
    assert not runner.pids


@two
def test_a_death_costs_nothing_the_first_time(make_shop: MakeShop, proposals: list[Proposal]) -> None:
    runner = LocalRunner(make_shop(), 2)
    try:
        first = run_all(runner, proposals[:1])
        (before,) = runner.pids
        runner.submit(proposals[1])
        os.kill(before, signal.SIGKILL)
        proposal, trial = runner.wait()
        assert before not in runner.pids
    finally:
        runner.close()
    assert (first[0].state, proposal.number, trial.state) == ("DONE", 1, "DONE"), trial.error


@two
def test_a_candidate_that_kills_its_process_fails_alone(make_shop: MakeShop, proposals: list[Proposal]) -> None:
    tests = os.getpid()

    def deadly(logits: Tensor, targets: Tensor) -> Tensor:  # travels by value: it is in no module
        if os.getpid() != tests:
            os.kill(os.getpid(), signal.SIGKILL)
        return nn.functional.cross_entropy(logits, targets)

    runner = LocalRunner(make_shop(loss=deadly), 2)
    try:
        found = run_all(runner, [proposals[0], Proposal(7, DEADLY, "sampled"), proposals[3]])
    finally:
        runner.close()
    assert (found[0].state, found[3].state) == ("DONE", "DONE")
    assert found[7].state == "FAILED"
    assert found[7].error == "the process that made it was killed by signal 9, 2 times"
    assert found[7].what


def test_a_task_that_cannot_travel_is_refused_with_the_part_named(make_shop: MakeShop) -> None:
    lock = threading.Lock()

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        with lock:
            return nn.functional.cross_entropy(logits, targets)

    with pytest.raises(ConfigError, match=r"the task's loss cannot be sent to other processes .*lock"):
        pack(make_shop(loss=loss), 1)


@pytest.mark.parametrize("workers", [0, -1, cores() + 1])
def test_workers_are_one_to_the_cores(workers: int) -> None:
    with pytest.raises(ConfigError, match=rf"--workers must be 1 to {cores()} on this machine .* but got {workers}"):
        check_workers(workers)


def test_a_full_disk_in_a_process_ends_the_search(make_shop: MakeShop, proposals: list[Proposal]) -> None:
    shop = make_shop()
    runner = LocalRunner(shop, 1)
    (shop.root / "artifacts").rename(shop.root / "elsewhere")
    (shop.root / "artifacts").write_text("in the way")
    try:
        with pytest.raises(StorageError, match="cannot be written"):
            run_all(runner, proposals[:1])
    finally:
        runner.close()
    assert (shop.root / LOG).is_file()


@two
def test_a_staged_search_by_two_processes_goes_on_in_one(tmp_path: Path) -> None:
    """Nothing is evaluated twice, and the number of processes may differ on resume."""
    space = tmp_path / "space.yaml"
    rule = "{match: '*', precision: [fp32, int8-dynamic, int8], rank: [1.0, 0.25]}"
    space.write_text(f"layers: [{rule}]\ndistill: {{steps: [0, 3]}}\n")
    task, options = example_task(), {"space": space, "hardware": "raspberry-pi-5", "out": tmp_path / "run"}
    first = [t.fingerprint for t in autocompress.search(task, **options, max_trials=6, workers=2).trials]
    run = autocompress.search(task, **options, max_trials=8)
    assert [trial.number for trial in run.trials] == list(range(8))
    assert len({trial.fingerprint for trial in run.trials}) == 8
    assert [t.fingerprint for t in run.trials[:6]] == first
    assert run.trials[0].origin == "dense"


# A machine that does not see the run folder


def test_files_travel_where_the_run_folder_is_not_seen(
    make_shop: MakeShop, proposals: list[Proposal], expected: dict[int, Trial]
) -> None:
    """Oracle: the same candidate built in the run folder, byte by byte."""
    home, alone = make_shop(), expected[1]
    kit = pack(home, 1)
    assert not kit.marker.exists()
    brought = work(kit, job_of(PLANS[1], 0, home.root))
    folder = f"artifacts/{PLANS[1].fingerprint}-r0"
    names = {Path(name).name for name in brought.files if name.startswith(folder)}
    assert names == {path.name for path in (home.root.parent / "alone" / folder).iterdir()}
    assert any(name.startswith("bank/") for name in brought.files)
    assert not home.artifact_folder(PLANS[1]).exists()
    write_files(home.root, brought.files)
    assert brought.made.trial.artifact == alone.artifact
    assert alone.artifact is not None
    there = home.root.parent / "alone" / alone.artifact.path
    assert (home.root / alone.artifact.path).read_bytes() == there.read_bytes()
    again = work(kit, job_of(PLANS[1], 0, home.root))
    assert not any(name.startswith("bank/") for name in again.files), "what is at home is not brought again"


def test_what_dense_says_travels_so_that_others_are_held_against_it(make_shop: MakeShop) -> None:
    """Else only the machine that scored dense would know how far candidates are from it. Oracle: found at home."""
    home, there = make_shop(), make_shop("there")
    kit = pack(home, 1)
    dense = work(kit, job_of(Plan(), 0, home.root))
    assert dense.made.trial.divergence == 0.0
    write_files(home.root, dense.files)
    kit = pack(home, 1)  # another machine, which has not scored it
    brought = work(kit, job_of(PLANS[1], 0, home.root)).made.trial
    assert brought.divergence is not None
    assert brought.divergence > 0
    assert there.root != home.root


def test_nothing_travels_where_the_run_folder_is_seen(make_shop: MakeShop) -> None:
    shop = make_shop()
    kit = pack(shop, 1)
    kit.marker.touch()
    brought = work(kit, Job(PLANS[0], 0))
    assert not brought.files
    assert (shop.artifact_folder(PLANS[0]) / "model.onnx").is_file()


def test_files_stay_in_the_folder(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="leads out of"):
        write_files(tmp_path / "run", {"../elsewhere": b""})


def test_whoever_has_a_kit_measures_nothing(make_shop: MakeShop) -> None:
    shop: Workshop = open_kit(pack(make_shop(), 1))
    assert isinstance(shop.bench, NoDevice)
    with pytest.raises(MeasureError, match="only the process that owns the device measures"):
        shop.bench.measure(Path("any.onnx"))
    shop.bench.close()
