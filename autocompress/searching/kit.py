"""What another process needs to make candidates of a run, and the making itself; on machines without its folder, too.

Whoever uses a kit has no device: it builds and scores, and never measures.
"""

from __future__ import annotations

import dataclasses
import pickle
import shutil
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import cloudpickle
import torch

from autocompress.errors import ConfigError, MeasureError, StorageError
from autocompress.hardware import HardwareProfile
from autocompress.layers import LayerTable
from autocompress.measure.dense import AnyBench
from autocompress.measure.latency import Contestant, Setting
from autocompress.measure.lock import lock_folder
from autocompress.pipeline import DENSE_OUTPUTS, Made, dense_outputs, make
from autocompress.plan import Plan
from autocompress.records import Trial, write_atomic
from autocompress.searching.rest import at_work
from autocompress.tasks.task import Task
from autocompress.workshop import Workshop, open_workshop

INPUTS = "inputs.npz"


@dataclass(frozen=True)
class Kit:
    """A run as another process opens it.

    Attributes:
        run: a name of its own; a file of it in the run folder tells who sees that folder.
        root: the run folder, where it can be seen.
        task: pickled.
        table, profile, bank_limit: as in the workshop.
        inputs: content of the workload's file.
        threads: of PyTorch.
        resting: folder of a machine by which its processes rest while its device is timed.
    """

    run: str
    root: str
    task: bytes = field(repr=False)
    table: LayerTable = field(repr=False)
    profile: HardwareProfile = field(repr=False)
    bank_limit: int | None
    inputs: bytes = field(repr=False)
    threads: int
    resting: str

    @property
    def marker(self) -> Path:
        """The file by which processes find out whether they see the run folder."""
        return Path(self.root) / f".run-{self.run}"


@dataclass(frozen=True)
class Job:
    """One candidate to make.

    Attributes:
        plan, rung: of it.
        files: path below the run folder to content; what a machine without that folder cannot make itself.
        known: names of the bank's files at home, which need not be brought.
    """

    plan: Plan
    rung: int
    files: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    known: frozenset[str] = field(default=frozenset(), repr=False)


@dataclass(frozen=True)
class Brought:
    """A made candidate with the files that belong into the run folder; none where they were written there."""

    made: Made
    files: Mapping[str, bytes] = field(default_factory=dict, repr=False)


class NoDevice:
    """Stands for the bench where there is no device: knows the workload, and measures nothing."""

    def __init__(self, profile: HardwareProfile, inputs: Path) -> None:
        self.profile = profile
        self.inputs = inputs
        self.setting = self.best_dense = Setting(profile.runtime, profile.threads, profile.device)
        self.dense = Contestant("dense", inputs.with_name("none"), self.setting)

    def _refuse(self, *_args: Any, **_options: Any) -> Any:
        raise MeasureError("only the process that owns the device measures")

    measure = outputs = table_time = load = race = _refuse

    def close(self) -> None:
        """Nothing was started."""


def pack(shop: Workshop, threads: int) -> Kit:
    """The kit of a run.

    Raises:
        ConfigError: the task cannot be sent to another process; says which part, and what to do.
    """
    run = uuid.uuid4().hex[:16]
    return Kit(
        run=run,
        root=str(shop.root.resolve()),
        task=pack_task(shop.task),
        table=shop.table,
        profile=shop.profile,
        bank_limit=shop.bank.store.limit_bytes,
        inputs=shop.bench.inputs.read_bytes(),
        threads=threads,
        resting=str(lock_folder() / f"work-{run}"),
    )


def pack_task(task: Task) -> bytes:
    """The task as bytes; functions of a script or a notebook travel by value."""
    try:
        return bytes(cloudpickle.dumps(task))
    except Exception as fault:
        for item in dataclasses.fields(task):
            _check_pickles(item.name, getattr(task, item.name))
        raise ConfigError(f"the task cannot be sent to other processes ({type(fault).__name__}: {fault})") from fault


def _check_pickles(name: str, value: object) -> None:
    try:
        cloudpickle.dumps(value)
    except Exception as fault:
        raise ConfigError(
            f"the task's {name} cannot be sent to other processes ({type(fault).__name__}: {fault}); let it hold no "
            "open file, lock or connection, or search with one worker and without --ray"
        ) from fault


def open_kit(kit: Kit, root: Path | None = None) -> Workshop:
    """The workshop of a run, for a process without the device."""
    torch.set_num_threads(kit.threads)
    folder = root or Path(kit.root)
    bench = cast(AnyBench, NoDevice(kit.profile, folder / INPUTS))
    return open_workshop(folder, pickle.loads(kit.task), kit.table, kit.profile, bench, bank_limit=kit.bank_limit)


def failed(plan: Plan, rung: int, why: str) -> Made:
    """A candidate that came to nothing."""
    return Made(Trial(0, plan, "FAILED", "sampled", rung=rung, error=why))


#: The run that this process worked for last.
_open: dict[str, Workshop] = {}


def work(kit: Kit, job: Job) -> Brought:
    """Make a candidate, in the run folder or, where that is not seen, in a folder of this machine.

    Raises:
        StorageError: a disk is full.
    """
    with at_work(Path(kit.resting)):
        seen = kit.marker.is_file()
        root = Path(kit.root) if seen else Path(kit.resting) / "run"
        if kit.run not in _open:
            _open.clear()
            write_files(root, {} if seen else {INPUTS: kit.inputs})
            _open[kit.run] = open_kit(kit, root)
        shop = _open[kit.run]
        if seen:
            return Brought(make(job.plan, shop, job.rung))
        write_files(root, job.files)
        made = make(job.plan, shop, job.rung)
        return Brought(made, dict(_to_bring(shop, job)))


def _to_bring(shop: Workshop, job: Job) -> Iterator[tuple[str, bytes]]:
    """The candidate's own files, which go from here, what is new in the bank, and what others are held against."""
    folder = shop.artifact_folder(job.plan, job.rung)
    if folder.is_dir():
        yield from _contents(shop.root, folder)
        shutil.rmtree(folder)
    for name, content in _contents(shop.root, shop.bank.folder):
        if Path(name).name not in job.known:
            yield name, content
    if job.plan == Plan() and dense_outputs(shop).is_file():
        yield str(dense_outputs(shop).relative_to(shop.root)), dense_outputs(shop).read_bytes()


def _contents(root: Path, folder: Path) -> Iterator[tuple[str, bytes]]:
    for path in sorted(folder.glob("*")):
        if path.is_file() and not path.name.startswith("."):
            try:
                yield str(path.relative_to(root)), path.read_bytes()
            except FileNotFoundError:  # another process of this machine made room
                continue


def job_of(plan: Plan, rung: int, root: Path) -> Job:
    """A candidate as the run's own process gives it away; what was learned for it before goes along.

    So does what the dense model says, by which it is known how far a candidate's predictions are from that.
    """
    bank = root / "bank"
    known = frozenset(path.name for path in bank.glob("*"))
    wanted = list(root.glob(DENSE_OUTPUTS.format(identity="*")))
    if plan.learn:
        wanted += [*bank.glob("latency-fit-*.json"), *bank.glob("learned-*.json")]
    if plan.learn or plan.init:
        wanted += bank.glob("weights-*")
    return Job(plan, rung, {str(path.relative_to(root)): path.read_bytes() for path in wanted}, known)


def write_files(root: Path, files: Mapping[str, bytes]) -> None:
    """Write what was brought, each file whole or not at all.

    Raises:
        StorageError: the disk refused it, or a path leads out of the folder.
    """
    for name, content in files.items():
        path = (root / name).resolve()
        if not path.is_relative_to(root.resolve()):
            raise StorageError(f"{name}: leads out of {root}")
        write_atomic(path, content)
