"""Where latencies come from, by profile; and the verb `measure`: a run's front timed again, here or on another device.

Needs no torch, so that a device need not have it: copy the run folder there, measure, and bring `measured.json` back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from autocompress.elsewhere import MEASURED, Elsewhere, read_elsewhere
from autocompress.environment import environment
from autocompress.errors import AutocompressError, ConfigError, MeasureError
from autocompress.export.fresh import relative_distance
from autocompress.front import Front
from autocompress.hardware import HardwareProfile, load_profile
from autocompress.layers import LayerTable
from autocompress.measure.dense import AnyBench, find_best_dense
from autocompress.measure.latency import Bench, Setting
from autocompress.records import Latency, Tier, Trial, aside, read_answer, write_json
from autocompress.run import Run
from autocompress.runtimes import RUNTIMES

Say = Callable[[str], None]

#: Relative L2 distance of answers above which a file is told to compute something else here than where it was graded.
OTHERWISE = 0.05


def open_bench(
    profile: HardwareProfile,
    inputs: Path,
    dense: Path,
    table: LayerTable,
    best_dense: Setting | None = None,
    *,
    memory: bool = False,
) -> AnyBench:
    """The bench that a profile's latencies come from.

    Args:
        profile: `latencies` decides.
        inputs: .npz file of the workload's queries.
        dense: the dense model's file.
        table: of the model, for a recorded profile.
        best_dense: as the probe found it.
        memory: whether every candidate's peak memory is measured too, on a profile that measures.
    """
    if profile.latencies == "analytic":
        from autocompress.measure.roofline import RooflineBench

        return RooflineBench(profile, inputs, dense, best_dense)
    if profile.latencies == "recorded":
        from autocompress.tables.recorded import RecordedBench

        return RecordedBench(profile, inputs, dense, table)
    return Bench(profile, inputs, dense, best_dense, memory=memory)


def measure_front(
    run: Run, hardware: str | Path, *, tier: Tier = "report", out: Path | None = None, say: Say = lambda _text: None
) -> Elsewhere:
    """Time a run's front and references with a profile; nothing is compressed again.

    Every figure is written down when it is known; the same call again goes on where it stopped.

    Args:
        run: whose artefacts are timed.
        hardware: a profile of this machine, or of one that is recorded or analytic.
        tier: "report" or "full".
        out: the file to write, `measured.json` of the run by default; other devices in it stay.
        say: is told what was found.

    Raises:
        ConfigError: the run has no dense artefact, or the profile's workload is another than the run's.
        MeasureError: the runtime cannot load the run's files.
    """
    profile = load_profile(hardware)
    _check_fits(run, profile)
    front, path = run.front, out or run.folder / MEASURED
    dense = front.dense
    if dense is None or dense.artifact is None or not (run.folder / dense.artifact.path).is_file():
        raise ConfigError(f"{run.folder}: the dense artefact is gone, and every figure is a ratio to it; search again")
    here = environment()
    name = f"{profile.name} ({here['machine']['cpu']})" if profile.latencies == "measured" else profile.name
    others = [device for device in read_elsewhere(path) if device.name != name]
    before = next((device for device in read_elsewhere(path) if device.name == name), None)
    known = dict(before.latencies) if before and before.profile == profile.model_dump(mode="json") else {}
    bench = open_bench(profile, run.folder / "inputs.npz", run.folder / dense.artifact.path, run.table)
    try:
        settings = find_best_dense(bench)
        bench.best_dense = Setting(settings[0].runtime, settings[0].threads, profile.device)
        say(f"fastest dense fp32: {bench.best_dense}, {settings[0].latency_s * 1e3:.3g} ms{aside(profile.source)}")
        found = Elsewhere(name, profile.model_dump(mode="json"), here, str(bench.best_dense), known)
        for trial in to_time(front):
            if not _timed(known.get(trial.fingerprint), tier):
                _time(bench, trial, run, tier, known, say)
                write_json(path, {"devices": [device.to_json() for device in (*others, found)]})
    finally:
        bench.close()
    return found


def _timed(latency: Latency | None, tier: Tier) -> bool:
    """Whether a latency is there that answers a tier."""
    return latency is not None and (latency.source != "measured" or latency.tier in (tier, "full"))


def _time(bench: AnyBench, trial: Trial, run: Run, tier: Tier, known: dict[str, Latency], say: Say) -> None:
    assert trial.artifact is not None
    try:
        path = run.folder / trial.artifact.path
        latency = bench.measure(path, tier)
        doubt = _answers_otherwise(bench, path)
    except AutocompressError as fault:
        say(f"{trial.fingerprint[:8]} {trial.what}: {fault}")
        return
    if doubt:
        latency = replace(latency, warnings=(*latency.warnings, doubt))
        say(f"{trial.fingerprint[:8]} {doubt}")
    known[trial.fingerprint] = latency
    span = f"{latency.ratio_best_dense_low:.3f}–{latency.ratio_best_dense_high:.3f}"
    say(
        f"{trial.fingerprint[:8]} {latency.latency_s * 1e3:.3g} ms, {latency.ratio_best_dense:.3f} of dense "
        f"({span if latency.source == 'measured' else latency.source}): {trial.what}"
    )


def _answers_otherwise(bench: AnyBench, path: Path) -> str:
    """What is to be said of a file that gives another answer here than where it was graded; "" for nothing."""
    graded = read_answer(path)
    here = None if graded is None else bench.outputs(path)
    if graded is None or here is None:
        return ""
    distance = relative_distance(here, graded)
    if distance <= OTHERWISE:
        return ""
    return (
        f"its answer here lies {distance:.2g} (relative L2) from the one it was graded by: its quality was taken on "
        "another processor or runtime, and is not this one's"
    )


def to_time(front: Front) -> Iterator[Trial]:
    """References first, then the front, each trial once; those whose artefact is known."""
    for trial in dict.fromkeys(t.fingerprint for t in (*front.references, *front.points)):
        yield next(t for t in front.measured if t.fingerprint == trial)


def _check_fits(run: Run, profile: HardwareProfile) -> None:
    """Refuse a profile that cannot time this run's files."""
    ours, theirs = run.experiment["resolved"]["hardware"]["workload"], profile.workload.model_dump(mode="json")
    differences = [
        f"{key}: {ours.get(key)} in the run, {value} now" for key, value in theirs.items() if value != ours.get(key)
    ]
    if differences:
        raise ConfigError(
            f"hardware profile {profile.name!r} has another workload than {run.folder}, so that its figures could not "
            f"stand beside the run's ({'; '.join(differences)}); give a profile with the run's workload"
        )
    dense, formats = run.front.dense, RUNTIMES[profile.runtime].formats
    held = dense.artifact.format if dense and dense.artifact else "onnx"
    if held not in formats:
        loads = ", ".join(formats)
        raise MeasureError(f"{run.folder} holds .{held} files, and runtime {profile.runtime} loads {loads}")
