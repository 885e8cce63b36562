"""The verb `record`: the latency table of a model on this device, as one file to take along."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from autocompress.environment import environment
from autocompress.errors import ConfigError
from autocompress.export.export import to_arrays
from autocompress.hardware import HardwareProfile, load_profile
from autocompress.layers import LayerTable
from autocompress.measure.dense import find_best_dense
from autocompress.measure.latency import Bench
from autocompress.plan import Plan
from autocompress.rules import load_space
from autocompress.space import build_space, default_space
from autocompress.survey import survey
from autocompress.tables.measuring import Say, make_dense, measure_table
from autocompress.tables.menus import Menu, calibration_plans, menu_of, menu_plans
from autocompress.tables.recorded import Recorded
from autocompress.tasks.task import Task
from autocompress.workshop import open_workshop

#: Whole models that calibrate a table, and others that check it.
FITTED = 24
CHECKED = 10


def record(
    task: Task,
    profile: HardwareProfile | str | Path,
    out: str | Path,
    *,
    space: str | Path | None = None,
    models: tuple[int, int] = (FITTED, CHECKED),
    say: Say = print,
) -> Recorded:
    """Measure a model's latency table on this device and write it down.

    The same call goes on where it was stopped: what was timed lies in the folder ``OUT.parts``, which may be deleted
    when the file is there.

    Args:
        task: model and data.
        profile: of this device.
        out: the .json file to write.
        space: whose choices are timed; by default the shipped one that fits the model.
        models: whole models that are timed to calibrate the table, and to check it.
        say: is told how far it is.

    Raises:
        ConfigError: the profile's latencies are not measured, or `out` is no .json file.
        SpaceError, ProfileError, ModelError: before any work.
        MeasureError: the dense model cannot be timed.
    """
    wanted = profile if isinstance(profile, HardwareProfile) else load_profile(profile)
    _check(wanted, Path(out))
    query = task.workload_inputs(wanted.workload.batch, wanted.workload.sequence_length)
    layers = survey(task.source, query)
    menu = menu_of(build_space(load_space(space or default_space(layers)), layers, wanted))
    parts = Path(f"{out}.parts") / f"{task.identity[:16]}-{wanted.runtime}"
    parts.mkdir(parents=True, exist_ok=True)
    np.savez(parts / "inputs.npz", **to_arrays(query))  # type: ignore[arg-type]
    with Bench(wanted, parts / "inputs.npz", parts / "dense" / "model.onnx") as bench:
        shop = open_workshop(parts, task, layers, wanted, bench)
        make_dense(shop)
        dense = find_best_dense(bench)
        table = measure_table(shop, menu_plans(layers, menu), *_models(layers, menu, models), cache=parts, say=say)
    found = Recorded(wanted, environment(), layers, table, dense)
    found.save(Path(out))
    say(table.words())
    return found


def _models(layers: LayerTable, menu: Menu, counts: tuple[int, int]) -> tuple[Sequence[Plan], Sequence[Plan]]:
    fitted, checked = counts
    return calibration_plans(layers, menu, fitted), calibration_plans(layers, menu, checked, seed=1)


def _check(profile: HardwareProfile, out: Path) -> None:
    faults = []
    if profile.latencies != "measured":
        faults.append(
            f"hardware profile {profile.name!r}: latencies must be measured to record, not {profile.latencies}"
        )
    if out.suffix != ".json":
        faults.append(f"--out {out}: must end in .json, which is how a profile of it is recognised")
    if profile.workload.new_tokens is not None:
        faults.append(
            f"hardware profile {profile.name!r}: workload: prompt_length and new_tokens generate; a table is of single "
            "queries: give sequence_length"
        )
    if profile.workload.lengths != "padded":
        faults.append(
            f"hardware profile {profile.name!r}: workload: lengths: {profile.workload.lengths} times queries of many "
            "lengths; a table is of one: give lengths: padded"
        )
    if faults:
        raise ConfigError("\n  ".join(faults))
