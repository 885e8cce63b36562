"""A search as it was asked for: checked, resolved, and nothing done yet."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from autocompress.budgets import Budgets, parse_bytes
from autocompress.errors import ConfigError
from autocompress.hardware import HardwareProfile, load_profile
from autocompress.layers import LayerTable
from autocompress.objectives import Objectives, read_objectives
from autocompress.plan import Plan
from autocompress.rules import SpaceRules, Strategy, load_space
from autocompress.run import make_budgets
from autocompress.searching.controller import Sampler, check_sampler
from autocompress.searching.mixed import check_size
from autocompress.searching.warm import read_warm_start
from autocompress.space import SearchSpace, build_space, default_space
from autocompress.survey import survey
from autocompress.tasks.causal_lm import query_tokens
from autocompress.tasks.task import MIN_DIVIDED, Task


@dataclass(frozen=True)
class Order:
    """A search as it was asked for: everything is resolved and fits together, and nothing is done yet.

    Attributes:
        task, profile, table, space, budgets: what is searched, where, and for what.
        root: the run folder.
        asked, resolved: as `experiment.yaml` tells them.
        objectives: by which candidates are compared.
        bank_limit: bytes.
        warm: the front of the earlier run that was named.
    """

    task: Task
    root: Path
    profile: HardwareProfile
    table: LayerTable
    space: SearchSpace
    budgets: Budgets
    asked: Mapping[str, Any]
    resolved: Mapping[str, Any]
    bank_limit: int | None
    objectives: Objectives
    warm: tuple[Plan, ...] = ()

    @property
    def needs_memory(self) -> bool:
        """Whether every candidate's peak memory has to be known."""
        return "memory" in self.objectives.names or self.budgets.max_memory_bytes is not None


def read_order(
    task: Task,
    *,
    out: str | Path | None,
    space: str | Path | None,
    hardware: str | Path,
    max_latency: str | float | None,
    min_speedup: str | float | None,
    max_drop: str | None,
    max_size: str | int | None,
    max_memory: str | int | None,
    objectives: str | Sequence[str] | None,
    strategy: Strategy | None,
    sampler: Sampler,
    seed: int,
    warm_start: str | Path | None,
    bank_limit: str | int | None,
    source: Mapping[str, Any] | None,
    more: Mapping[str, Any],
) -> Order:
    """Check and resolve what `search` is asked for; see there. `more` goes into `experiment.yaml` as it is."""
    check_sampler(sampler, seed)
    limit = parse_bytes(bank_limit) if isinstance(bank_limit, str) else bank_limit
    check_positive({"--bank-limit": limit})
    budgets = make_budgets(max_latency, min_speedup, max_drop, task.metric.points, max_size, max_memory)
    wanted = replace(read_objectives(objectives), fraction=task.metric.fraction, allowed=budgets.max_drop)
    _check_direction(task)
    if task.student is not None:
        raise ConfigError("search compresses the task's model; a student of its own is for autocompress.compress")
    profile = load_profile(hardware)
    _check_memory(profile, wanted, budgets, max_memory)
    workload = task.workload_inputs(profile.workload.batch, query_tokens(profile.workload))
    table = survey(task.source, workload)
    rules = load_space(space or default_space(table), strategy)
    full_space = build_space(rules, table, profile)
    check_size(full_space)
    root = Path(out or f"runs/{task.name}")
    asked = {
        **(source or {"task": task.name}),
        "space": str(space or rules.name),
        "hardware": str(hardware),
        "max_latency": said(max_latency, "s"),
        "min_speedup": said(min_speedup, "x"),
        "max_drop": max_drop,
        "max_size": said(max_size, "B"),
        "max_memory": said(max_memory, "B"),
        "objectives": objectives if objectives is None or isinstance(objectives, str) else list(objectives),
        "strategy": strategy,
        "sampler": sampler,
        "seed": seed,
        "warm_start": None if warm_start is None else str(warm_start),
        "bank_limit": said(bank_limit, "B"),
        **more,
        "out": str(root),
    }
    more_kept = {"objectives": list(wanted.names), "by_size": counts_bytes(wanted, budgets)}
    resolved = {**_resolved(task, rules, profile, table, budgets), **more_kept}
    warm = () if warm_start is None else read_warm_start(warm_start, root, table, asked, resolved)
    return Order(task, root, profile, table, full_space, budgets, asked, resolved, limit, wanted, warm)


def _resolved(
    task: Task, rules: SpaceRules, profile: HardwareProfile, table: LayerTable, budgets: Budgets
) -> dict[str, Any]:
    return {
        "task": task.name,
        "identity": task.identity,
        "metric": task.metric.name,
        "maximize": task.metric.maximize,
        "points": task.metric.points,
        "samples": {"train": len(task.train), "validation": len(task.validation), "test": len(task.test)},
        "parts": {"select": len(task.parts.select), "confirm": len(task.parts.confirm)},
        "notes": [*task.notes, *part_notes(task), *query_notes(task, profile)],
        "inputs": list(task.input_names),
        "classes": list(task.classes),
        "snippet": asdict(task.snippet) if task.snippet else None,
        "params": table.total_params,
        "layers": len(table.layers),
        "hardware": profile.model_dump(mode="json"),
        "space": rules.model_dump(mode="json"),
        "budgets": list(budgets.sentences()),
    }


def counts_bytes(objectives: Objectives, budgets: Budgets) -> bool:
    """Whether bytes are looked at, so that what is slow but small has a place."""
    return bool(objectives.more) or (budgets.max_size_bytes, budgets.max_memory_bytes) != (None, None)


def said(value: str | float | None, unit: str) -> str | None:
    """A setting as a user would write it, so that the run's own file says what was asked."""
    if value is None or isinstance(value, str):
        return value
    return np.format_float_positional(value, trim="-") + unit


def check_positive(numbers: Mapping[str, float | None]) -> None:
    """Raise `ConfigError` for a number of 0 or less, by the name of its flag."""
    for flag, number in numbers.items():
        if number is not None and number <= 0:
            raise ConfigError(f"{flag} must be above 0, but got {number:g}")


def _check_direction(task: Task) -> None:
    """Refuse a quality of which nobody knows whether more of it is better."""
    metric = task.metric
    if not isinstance(metric.maximize, bool):
        raise ConfigError(
            f"task {task.name!r}: its metric {metric.name!r} gives quality no direction: maximize is "
            f"{metric.maximize!r}, but must be True (more is better) or False (less is better)"
        )


def _check_memory(
    profile: HardwareProfile, objectives: Objectives, budgets: Budgets, max_memory: str | int | None
) -> None:
    """Refuse to look at memory where no candidate's is measured."""
    asked = []
    if "memory" in objectives.names:
        asked.append(f"--objectives {','.join(objectives.names)}")
    if budgets.max_memory_bytes is not None:
        asked.append(f"--max-memory {max_memory}")
    if not asked:
        return
    why = ""
    if profile.latencies != "measured":
        why = f"its latencies are {profile.latencies}, and no file is run on the device"
    elif profile.device != "cpu":
        why = f"what is measured is the processor's memory, not that of {profile.device}"
    if why:
        raise ConfigError(
            f"{' and '.join(asked)}: peak memory is not known on hardware profile {profile.name!r} ({why}); "
            "size stands for it there: --objectives latency,quality,size or --max-size"
        )


def query_notes(task: Task, profile: HardwareProfile) -> Iterator[str]:
    """What a user should know of how long a query is."""
    length = profile.workload.sequence_length
    if task.query is None and length is not None and 0 < task.longest < length:
        yield (
            f"queries have {task.longest} positions, as the longest training sample, and not the {length} of profile "
            f"{profile.name} (workload.sequence_length); a task that takes more gives its own query"
        )


def part_notes(task: Task) -> Iterator[str]:
    """What a user should know of how validation is divided."""
    if not task.parts.divided:
        yield (
            f"validation has {len(task.validation)} samples, which are too few to divide (under {MIN_DIVIDED}): the "
            "search and the front are both judged by all of them, so that the front's figures flatter"
        )
