"""How every file is made: ours by `compress`, each peer's by its script in an environment of its own."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import common
import numpy as np

from autocompress.export.export import to_arrays
from autocompress.records import write_json
from autocompress.tasks.task import Examples, Task
from autocompress.toolbox import compress
from peers.lists import BATCH, LENGTH, OURS, PEERS, PLACE, PROFILES, TRANSFORMER, Entry, entries

SCRIPTS = Path(__file__).resolve().parent / "inside"
#: Samples by which a peer may tune.
TUNING = 1000
#: Seconds that a peer may take for one file.
PATIENCE = 3600


class PeerError(Exception):
    """A peer that cannot be installed or quantizes nothing; the message is its own."""


class Shop:
    """One model's data in the forms that makers and graders take; everything is made when first asked for."""

    def __init__(self, model: str) -> None:
        self.model = model
        self.folder = PLACE / "files" / model
        self.folder.mkdir(parents=True, exist_ok=True)
        (PLACE / ".gitignore").write_text("*\n")

    @functools.cached_property
    def task(self) -> Task:
        return common.load(self.model)

    @functools.cached_property
    def calibration(self) -> Path:
        """The samples that calibrate ours, one by one, without padding."""
        return write_samples(self.folder / "calibration.npz", self.task.calibration())

    @functools.cached_property
    def validation(self) -> Path:
        """What peers may tune by."""
        return write_samples(self.folder / "validation.npz", self.task.validation.subset(TUNING))

    @functools.cached_property
    def inputs(self) -> Path:
        """The query that is timed."""
        path = self.folder / "inputs.npz"
        np.savez(path, **to_arrays(self.task.workload_inputs(BATCH[self.model], LENGTH[self.model])))
        return path

    @functools.cached_property
    def splits(self) -> dict[str, list]:
        """Validation and test in the batch that is timed, in order: inputs and classes."""
        size, made = BATCH[self.model], {}
        for name, examples in (("validation", self.task.validation), ("test", self.task.test)):
            cuts = [range(i, min(i + size, len(examples))) for i in range(0, len(examples), size)]
            batches = (examples.batch(cut) for cut in cuts)
            made[name] = [(to_arrays(inputs), targets.numpy()) for inputs, targets in batches]
        return made


def write_samples(path: Path, examples: Examples) -> Path:
    """Samples as `inside/samples.py` reads them."""
    arrays = {}
    for number in range(len(examples)):
        inputs, targets = examples.batch([number])
        arrays |= {f"{number:05d}.{name}": value for name, value in to_arrays(inputs).items()}
        arrays[f"{number:05d}.:label"] = targets.numpy()
    np.savez(path, **arrays)
    return path


def environment_of(maker: str) -> Path:
    """The Python of a peer's own environment, installed when it is not there; raises `PeerError`."""
    folder, wanted = PLACE / "environments" / maker, "\n".join(PEERS[maker].packages)
    python, mark = folder / "bin" / "python", folder / "installed.txt"
    if not (mark.is_file() and mark.read_text() == wanted):
        shutil.rmtree(folder, ignore_errors=True)
        _run([sys.executable, "-m", "venv", str(folder)])
        _run([str(python), "-m", "pip", "install", "--quiet", *PEERS[maker].packages])
        mark.write_text(wanted)
    return python


def _run(command: list[str], **settings) -> str:
    """A process's stdout; raises `PeerError` with its last words."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False, **settings)
    except subprocess.TimeoutExpired:
        raise PeerError(f"took longer than {PATIENCE} s") from None
    if done.returncode:
        lines = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        raise PeerError(f"exit code {done.returncode}: {lines[-1] if lines else ''}"[:400])
    return done.stdout


def make(entry: Entry, shop: Shop) -> dict:
    """Make an entry's file where it is not there; its settings in words and the seconds it took. Raises `PeerError`."""
    mark = entry.path.with_name("made.json")
    if mark.is_file():
        return json.loads(mark.read_text())
    shutil.rmtree(entry.path.parent, ignore_errors=True)
    entry.path.parent.mkdir(parents=True)
    start = time.perf_counter()
    settings = by_us(entry, shop) if entry.maker in ("dense", "autocompress") else by_peer(entry, shop)
    made = {"settings": settings, "making_s": round(time.perf_counter() - start, 1)}
    write_json(mark, made)
    return made


def by_us(entry: Entry, shop: Shop) -> str:
    """Build with the public verb `compress`, and keep the file."""
    plan = {} if entry.maker == "dense" else {"layers": plan_of(entry)}
    with tempfile.TemporaryDirectory(dir=shop.folder) as folder:
        made = compress(shop.task, plan, folder, hardware=PROFILES[entry.runtimes[0]])
        shutil.copy(made.artifact, entry.path)
        return made.what


def plan_of(entry: Entry) -> dict:
    """The layers of our plan for an entry."""
    return {name: {"quantize": settings} for name, settings in OURS[entry.model][entry.runtimes[0]][entry.arm].items()}


def by_peer(entry: Entry, shop: Shop) -> str:
    """Have the peer's script write the file from our dense one."""
    dense = entries(entry.model)[0]
    make(dense, shop)
    job = {
        "arm": entry.arm,
        "dense": str(dense.path),
        "calibration": str(shop.calibration),
        "validation": str(shop.validation),
        "out": str(entry.path),
        "transformer": TRANSFORMER[entry.model],
    }
    path = entry.path.with_name("job.json")
    write_json(path, job)
    command = [str(environment_of(entry.maker)), str(SCRIPTS / PEERS[entry.maker].script), str(path)]
    with tempfile.TemporaryDirectory() as folder:  # where a peer leaves what it writes on the side
        answer = _run(command, cwd=folder, env={**os.environ, "TOKENIZERS_PARALLELISM": "false"})
    if not entry.path.is_file():
        raise PeerError("wrote no file")
    said = [line for line in answer.splitlines() if line.startswith("{")]  # some peers print more after it
    return str(json.loads(said[-1])["settings"])
