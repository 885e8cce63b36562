"""A graded candidate of a run in the other formats, each held against the graded file in a fresh process."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from autocompress.errors import ConfigError
from autocompress.export.export import export_model
from autocompress.export.folder import FOLDER, check_folder, read_model, write_folder
from autocompress.export.fresh import Graded, check_deviation, fresh_outputs
from autocompress.runtimes import FILES, RUNTIMES
from autocompress.tasks import NAMES, TaskSource, load_task
from autocompress.tasks.task import Task


def write_format(kind: str, graded: Graded, out: Path, experiment: Mapping[str, Any]) -> float:
    """Write a candidate into `out` as "openvino", "transformers", "onnx" or "pt2".

    Args:
        kind: the format.
        graded: the candidate.
        out: a folder that is there.
        experiment: resolved settings of the run.

    Returns:
        Relative L2 distance of a fresh process's outputs from the graded file's.

    Raises:
        ExportError: it is above what the plan's precisions may cause, or there is no such form of the model.
        ConfigError: the run does not keep what the format is made of.
    """
    return _WRITERS[kind](kind, graded, out, experiment)


def _openvino(_kind: str, graded: Graded, out: Path, experiment: Mapping[str, Any]) -> float:
    from autocompress.export.openvino_ir import write_openvino  # an extra

    source = graded.file
    if source.suffix == ".onnx":
        return write_openvino(source, out / FILES["openvino"], graded.inputs, graded.expected, graded.most).deviation
    with tempfile.TemporaryDirectory() as folder:
        _again("onnx", graded, Path(folder), experiment)
        source = Path(folder) / FILES["onnx"]
        return write_openvino(source, out / FILES["openvino"], graded.inputs, graded.expected, graded.most).deviation


def _transformers(_kind: str, graded: Graded, out: Path, _experiment: Mapping[str, Any]) -> float:
    write_folder(graded.file.parent, graded.run, out / FOLDER)
    return check_folder(out / FOLDER, graded.inputs, graded.expected, graded.most)


def _again(kind: str, graded: Graded, out: Path, experiment: Mapping[str, Any]) -> float:
    """Export the kept torch model and its integers anew."""
    runtime = next((name for name, made in RUNTIMES.items() if made.formats[0] == kind), None)
    if runtime is None:
        raise ConfigError(f"--format {kind}: no runtime loads such files here, so none could be checked")
    task = _task(kind, experiment)
    path = out / FILES[kind]  # type: ignore[index]
    with tempfile.TemporaryDirectory() as folder:
        write_folder(graded.file.parent, graded.run, Path(folder))
        made = read_model(Path(folder), lambda: task.source)
    export_model(made.model, made.codes, task, path, out, "", runtime)
    return check_deviation(path, fresh_outputs(path, runtime, graded.inputs), graded.expected, graded.most)


def _task(kind: str, experiment: Mapping[str, Any]) -> Task:
    name = str(experiment["task"])
    if name not in NAMES and ".py:" not in name:
        raise ConfigError(
            f"--format {kind}: traces the model anew and so needs its task, but the run knows only the name {name!r}; "
            "search with --task, or choose another format"
        )
    given: dict[str, Any] = {key: experiment.get(key) for key in TaskSource.__dataclass_fields__}
    length = experiment["resolved"]["hardware"]["workload"].get("sequence_length")
    return load_task(TaskSource(**given), length, lambda _text: None)


_WRITERS: Mapping[str, Callable[[str, Graded, Path, Mapping[str, Any]], float]] = {
    "openvino": _openvino,
    "transformers": _transformers,
    "onnx": _again,
    "pt2": _again,
}
