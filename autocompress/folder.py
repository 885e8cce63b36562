"""A run folder as a search finds it: whether it is free, holds the same experiment, or becomes a new one."""

from __future__ import annotations

import contextlib
import copy
import fcntl
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from autocompress.environment import environment
from autocompress.errors import ConfigError, RunMismatchError, StorageError
from autocompress.layers import LayerTable
from autocompress.records import storage_errors, write_atomic, write_json
from autocompress.run import Run, budgets_of
from autocompress.tasks.task import Task

#: What `search` itself writes before `experiment.yaml`; a kill in between leaves no stranger.
OWN = ("layers.json", "environment.json", "processor")

#: Setting to the part of the budgets that it becomes.
BUDGETS = {
    "max_latency": "max_latency_s",
    "min_speedup": "min_speedup",
    "max_drop": "max_drop",
    "max_size": "max_size_bytes",
    "max_memory": "max_memory_bytes",
}

#: Free disk under which a search is not begun.
MIN_FREE_BYTES = 200_000_000


@contextlib.contextmanager
def claimed(root: Path) -> Iterator[None]:
    """Hold the run folder, so that two searches never write into one; a killed process lets go by itself."""
    with storage_errors(root):
        root.mkdir(parents=True, exist_ok=True)
        handle = (root / ".lock").open("w")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        handle.close()
        raise ConfigError(f"--out {root}: another process searches in this run folder right now") from None
    with handle:
        yield


def settle(root: Path, asked: Mapping[str, Any], resolved: Mapping[str, Any], task: Task, table: LayerTable) -> None:
    """Write down a new experiment, or make sure that the folder holds this one."""
    path = root / "experiment.yaml"
    if path.is_file():
        _refuse_another(Run(root), asked, resolved)
        if has_results(root):
            return
    else:
        strangers = sorted(i.name for i in root.iterdir() if i.name not in OWN and not i.name.startswith("."))
        if strangers:
            raise ConfigError(f"--out {root}: holds {', '.join(strangers[:3])} but no run; choose an empty folder")
    free = shutil.disk_usage(root).free
    if free < MIN_FREE_BYTES:
        raise StorageError(f"--out {root}: {free / 1e6:.0f} MB left on the disk, {MIN_FREE_BYTES / 1e6:.0f} needed")
    write_json(root / "layers.json", table.to_json())
    write_json(root / "environment.json", environment())
    if task.save_processor is not None:
        with storage_errors(root):
            (root / "processor").mkdir(exist_ok=True)
            task.save_processor(root / "processor")
    _save_config(task, root)
    text = yaml.safe_dump({**asked, "resolved": dict(resolved)}, sort_keys=False, allow_unicode=True)
    write_atomic(path, text)


def _save_config(task: Task, root: Path) -> None:
    """Keep the model's configuration, from which a picked folder makes the architecture again."""
    config: Any = copy.deepcopy(getattr(task.source, "config", None))
    if hasattr(config, "save_pretrained"):
        config.architectures = [type(task.source).__name__]
        with storage_errors(root):
            config.save_pretrained(root / "processor")


def has_results(root: Path) -> bool:
    """Whether the folder holds an evaluation; until then what was asked may still be changed."""
    trials = root / "trials.jsonl"
    return trials.is_file() and trials.stat().st_size > 0


def _refuse_another(run: Run, asked: Mapping[str, Any], resolved: Mapping[str, Any]) -> None:
    before = run.experiment
    differences = list(_asked_otherwise(run, asked, resolved)) if has_results(run.folder) else []
    for key, meaning in (
        ("task", "task"),
        ("identity", "model or data (fingerprint)"),
        ("hardware", "hardware profile"),
        ("space", "search space"),
        ("parts", "parts of validation"),
    ):
        if before["resolved"].get(key) != resolved[key]:
            names = before.get(key), asked.get(key)
            shown = names if names[0] != names[1] else _first_difference(before["resolved"].get(key), resolved[key])
            differences.append(f"{meaning}: {shown[0]!r} there, {shown[1]!r} now")
    if differences:
        raise RunMismatchError(
            f"--out {run.folder}: holds another experiment; choose another folder. What differs:\n  "
            + "\n  ".join(differences)
        )


def _asked_otherwise(run: Run, asked: Mapping[str, Any], resolved: Mapping[str, Any]) -> Iterator[str]:
    """What a run was asked for and is not now, whatever the words."""
    before = run.experiment
    there, now = budgets_of(before), budgets_of({**asked, "resolved": resolved})
    differing = [key for key, part in BUDGETS.items() if getattr(there, part) != getattr(now, part)]
    differing += [key for key in ("strategy", "sampler", "seed") if before.get(key) != asked[key]]
    for key in differing:
        yield f"{key}: {before.get(key)!r} there, {asked[key]!r} now"
    ours, theirs = (",".join(names) for names in (run.objectives.names, resolved["objectives"]))
    if ours != theirs:
        yield f"objectives: {ours} there, {theirs} now"


def _first_difference(before: Any, now: Any) -> tuple[Any, Any]:
    """The innermost first place where two settings differ."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in {**before, **now}:
            if before.get(key) != now.get(key):
                return _first_difference(before.get(key), now.get(key))
    return before, now
