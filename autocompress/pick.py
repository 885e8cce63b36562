"""A picked model: a folder that loads and runs by itself, with the plan and the figures it was chosen by."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from autocompress.errors import ConfigError, near
from autocompress.export.fresh import Graded, check_copy
from autocompress.front import Front, front_entry
from autocompress.measure.decoding import open_graded
from autocompress.records import Trial, storage_errors, write_atomic, write_json
from autocompress.runtimes import FILES, RUNTIMES, Session, installed_runtimes

#: Format to what is opened in a picked model's folder.
FORMATS: Mapping[str, str] = {**{str(kind): name for kind, name in FILES.items()}, "transformers": "transformers"}

CARD = """\
# {name}: compressed by autocompress

{what}

| | this model | dense fp32 |
|---|---|---|
| latency, {runtime}, {threads} thread(s) | {latency_ms:.3g} ms | {dense_ms} |
| latency ratio to dense in the same runtime | {ratio} | 1 |
| latency ratio to the fastest dense fp32 | {best} | 1 |
| {metric}, {split} | {validation} | {dense_validation} |
| {metric}, test (shown, not used to choose) | {test} | {dense_test} |
| {graded} | {size} | {dense_size} |
| peak memory of a process that answers a query | {memory} | {dense_memory} |

Latency source: {source}, {queries} queries in {blocks} blocks, workload {workload}.
{asked}
## Use

```python
{snippet}
```

Files: {files}`weights.safetensors` (the compressed torch model in float, before rounding; kept of models that no other
beats in both), `plan.json` (what was done), `card.json` (these figures, with size, checksum and deviation of each
file), and the task's processor, if any.
"""

_GRADED = {"onnx": "ONNX file", "pt2": "torch.export file"}

_MEANINGS = {
    "onnx": "`model.onnx` (the integers that were timed and graded)",
    "openvino": "`model.xml` with `model.bin` (the same for OpenVINO)",
    "pt2": "`model.pt2` (a torch.export program)",
    "transformers": "`transformers/` (the torch model, for `autocompress.from_pretrained`)",
}


@dataclass(frozen=True)
class PickedFile:
    """One file that was handed out.

    Attributes:
        path: relative to the picked model's folder.
        format: see `FORMATS`.
        size_bytes, sha256: of the file.
        deviation: relative L2 distance of outputs: of the graded file from the torch model's on calibration samples, of
            other formats in a fresh process from the graded file's on one query of the workload.
        deviation_from: "torch" or the graded file's name.
    """

    path: str
    format: str
    size_bytes: int
    sha256: str
    deviation: float
    deviation_from: str


@dataclass(frozen=True)
class Picked:
    """A picked model's folder.

    Attributes:
        folder: where it lies.
        figures: the row of ``autocompress front --json`` that it was picked by.
        files: what it holds of the model.
    """

    folder: Path
    figures: Mapping[str, Any]
    files: tuple[PickedFile, ...] = ()

    def load(self, runtime: str | None = None) -> Session:
        """The model in the runtime that it was timed in; ``.run({name: array})`` gives its outputs."""
        return load(self.folder, runtime)


def check_formats(names: Sequence[str]) -> tuple[str, ...]:
    """The formats, each once; raises `ConfigError` naming what is unknown, or cannot be written here."""
    for name in names:
        if name not in FORMATS:
            raise ConfigError(f"--format {name!r} is unknown{near(name, FORMATS)}")
    if "openvino" in names and "openvino" not in installed_runtimes():
        raise ConfigError("--format openvino: OpenVINO is not installed here; pip install autocompress[openvino]")
    return tuple(dict.fromkeys(names))


def load(folder: str | Path, runtime: str | None = None) -> Session:
    """Load a picked model.

    Args:
        folder: of the pick.
        runtime: to run it in; by default the one that it was timed in.

    Raises:
        ConfigError: the folder is none, or holds no file that the runtime loads.
        MeasureError: the runtime is unknown or not installed, or refuses the file.
    """
    path = Path(folder)
    if not (path / "card.json").is_file():
        raise ConfigError(f"{path}: not a picked model (it holds no card.json)")
    card = json.loads((path / "card.json").read_text())
    name = runtime or card["runtime"]
    formats: Sequence[str] = RUNTIMES[name].formats if name in RUNTIMES else ("onnx",)
    held = [kind for kind, file in FORMATS.items() if (path / file).exists()]
    fitting = [kind for kind in formats if kind in held]
    if not fitting:
        raise ConfigError(
            f"{path}: holds {', '.join(held) or 'no model'}, but {name} loads {' or '.join(formats)}; "
            f"pick again with --format {formats[0]}"
        )
    return open_graded(path / FORMATS[fitting[0]], name, card["threads"])


def write_pick(
    trial: Trial,
    front: Front,
    run: Path,
    out: Path,
    experiment: Mapping[str, Any],
    asked: Sequence[str],
    formats: Sequence[str] = (),
) -> Picked:
    """Write a trial's model into a folder of its own, with a model card; each file is tried in a fresh process.

    Args:
        trial: measured.
        front: gives the dense figures.
        run: the run folder.
        out: the folder to write; files of an earlier pick in it are replaced once all is made.
        experiment: resolved settings of the run.
        asked: budgets in words.
        formats: of `FORMATS`; by default the one that was graded.

    Raises:
        ConfigError: the folder holds other files, or the run no longer holds the model.
        ExportError: a file does not give in a fresh process what the graded one gives.
    """
    assert trial.artifact is not None
    assert trial.latency is not None
    wanted = check_formats(formats) or (trial.artifact.format,)
    strangers = out.is_dir() and any(not path.name.startswith(".") for path in out.iterdir())
    if strangers and not (out / "card.json").is_file():
        raise ConfigError(f"--out {out}: holds other files; choose an empty folder, or that of an earlier pick")
    graded = run / trial.artifact.path
    if not graded.is_file():
        raise ConfigError(f"{graded} is gone from the run; search again to make it")
    with storage_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        # in the folder where there is one: it may be another disk's, and its parent not ours
        place = Path(tempfile.mkdtemp(prefix=".picked-", dir=out if out.is_dir() else out.parent))
    try:
        files = _fill(place, trial, run, experiment, wanted)
        figures = front_entry(trial, front, trial in front.points)
        resolved = experiment["resolved"]
        write_json(
            place / "card.json",
            {
                "task": resolved["task"],
                "metric": resolved["metric"],
                "runtime": trial.latency.runtime,
                "threads": trial.latency.threads,
                "inputs": resolved["inputs"],
                "classes": resolved["classes"],
                "asked": list(asked),
                "figures": figures,
                "files": [asdict(item) for item in files],
            },
        )
        write_atomic(place / "README.md", _card(trial, front, out, resolved, asked, wanted))
        with storage_errors(out):
            _replace(place, out)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    return Picked(out, figures, files)


def _replace(place: Path, out: Path) -> None:
    """Move all that lies in a folder to where an earlier pick may lie; other files there stay."""
    out.mkdir(parents=True, exist_ok=True)
    made = {path.name for path in place.iterdir()}
    for name in {*FORMATS.values(), "model.bin", "weights.safetensors", "plan.json", *made}:
        if (out / name).is_dir():
            shutil.rmtree(out / name)
        (out / name).unlink(missing_ok=True)
    for name in sorted(made - {"card.json"}):
        os.replace(place / name, out / name)
    os.replace(place / "card.json", out / "card.json")  # last: by it a folder is known for a pick


def _fill(
    out: Path, trial: Trial, run: Path, experiment: Mapping[str, Any], wanted: Sequence[str]
) -> tuple[PickedFile, ...]:
    """Write the model in every wanted format, with what lies beside it, and tell what is there."""
    assert trial.artifact is not None
    assert trial.latency is not None
    artifact, latency = trial.artifact, trial.latency
    device = experiment["resolved"]["hardware"].get("device", "cpu")
    graded = Graded(run, run / artifact.path, artifact.sha256, latency.runtime, latency.threads, device)
    with storage_errors(out):
        for name in ("weights.safetensors", "plan.json"):
            if (graded.file.parent / name).is_file():  # float weights are kept of non-dominated candidates
                shutil.copy2(graded.file.parent / name, out / name)
        if (run / "processor").is_dir():
            shutil.copytree(run / "processor", out, dirs_exist_ok=True)
    files = []
    for kind in wanted:
        if kind == artifact.format:
            deviation, compared = artifact.deviation, "torch"
            with storage_errors(out):
                shutil.copy2(graded.file, out / FORMATS[kind])
            check_copy(out / FORMATS[kind], graded)
        else:
            from autocompress.export.formats import write_format

            deviation, compared = write_format(kind, graded, out, experiment), graded.file.name
        for path in _files_of(kind, out):
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            name = str(path.relative_to(out))
            files.append(PickedFile(name, kind, path.stat().st_size, digest, deviation, compared))
    return tuple(files)


def _files_of(kind: str, out: Path) -> list[Path]:
    path = out / FORMATS[kind]
    if path.is_dir():
        return sorted(item for item in path.rglob("*") if item.is_file())
    return [path, path.with_suffix(".bin")] if kind == "openvino" else [path]


def snippet(resolved: Mapping[str, Any], kind: str = "onnx") -> str:
    """Five lines that run the picked model in a fresh process; of ONNX and OpenVINO without autocompress."""
    given = resolved["snippet"] or {"imports": "numpy", "inputs": "...  # input name to array"}
    imports, opening, answer = _USES[kind]
    return "\n".join(
        [
            f"import {imports}, {given['imports']}",
            'folder = "."  # where this file lies',
            f"inputs = {given['inputs']}",
            *opening,
            f"print({answer}.argmax(-1))",
        ]
    )


#: Format to what is imported, what opens the model, and the expression of its logits.
_USES: Mapping[str, tuple[str, tuple[str, ...], str]] = {
    "onnx": (
        "onnxruntime",
        (  # without the optimizer, as it was timed
            'session = onnxruntime.InferenceSession(f"{folder}/model.onnx", '
            'disabled_optimizers=["SkipLayerNormFusion"])',
        ),
        "session.run(None, {i.name: inputs[i.name] for i in session.get_inputs()})[0]",
    ),
    "openvino": (
        "openvino",
        ('model = openvino.compile_model(f"{folder}/model.xml", "CPU")',),
        "model({i.any_name: inputs[i.any_name] for i in model.inputs})[0]",
    ),
    "pt2": (
        "torch",
        ('model = torch.export.load(f"{folder}/model.pt2").module()',),
        "model(**{name: torch.as_tensor(value) for name, value in inputs.items()})",
    ),
    "transformers": (
        "autocompress, torch",
        ("model = autocompress.from_pretrained(folder)",),
        "model(**{name: torch.as_tensor(value) for name, value in inputs.items()}).logits",
    ),
}


def _card(
    trial: Trial, front: Front, out: Path, resolved: Mapping[str, Any], asked: Sequence[str], wanted: Sequence[str]
) -> str:
    latency, dense = trial.latency, front.dense
    assert latency is not None
    assert trial.artifact is not None

    def shown(value: float | None) -> str:
        return "–" if value is None else f"{value:.4g}"

    def quality(value: float | None, stderr: float | None) -> str:
        return shown(value) + ("" if value is None or stderr is None else f" ± {stderr:.2g}")

    def ratio(value: float, low: float, high: float) -> str:
        return f"{value:.3f} ({f'{low:.3f} to {high:.3f}' if latency.source == 'measured' else latency.source})"

    def megabytes(owner: Trial | None) -> str:
        return f"{owner.artifact.size_bytes / 1e6:.2f} MB" if owner and owner.artifact else "–"

    def peak(owner: Trial | None) -> str:
        known = owner.latency.peak_memory_bytes if owner and owner.latency else None
        return "–" if known is None else f"{known / 1e6:.0f} MB"

    return CARD.format(
        name=out.name,
        what=trial.what,
        runtime=latency.runtime,
        threads=latency.threads,
        latency_ms=latency.latency_s * 1e3,
        dense_ms=f"{dense.latency.latency_s * 1e3:.3g} ms" if dense and dense.latency else "–",
        ratio=ratio(latency.ratio, latency.ratio_low, latency.ratio_high),
        best=ratio(latency.ratio_best_dense, latency.ratio_best_dense_low, latency.ratio_best_dense_high),
        metric=resolved["metric"],
        split="validation" if trial.quality_confirm is None else f"validation ({front.part} part)",
        validation=quality(front.quality(trial), trial.stderr_on(front.part)),
        dense_validation=shown(front.quality(dense) if dense else None),
        test=quality(trial.quality_test, trial.quality_test_stderr),
        dense_test=shown(dense.quality_test if dense else None),
        graded=_GRADED.get(trial.artifact.format, "file"),
        size=megabytes(trial),
        dense_size=megabytes(dense),
        memory=peak(trial),
        dense_memory=peak(dense),
        source=latency.source,
        queries=latency.queries,
        blocks=latency.blocks,
        workload=", ".join(f"{k} {v}" for k, v in resolved["hardware"]["workload"].items() if v is not None),
        asked=f"Asked for: {'; '.join(asked)}.\n" if asked else "",
        snippet=snippet(resolved, wanted[0]),
        files="".join(f"{_MEANINGS[kind]}, " for kind in wanted),
    )
