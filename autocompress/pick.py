"""A picked model: a folder that loads and runs by itself, with the plan and the figures it was chosen by."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autocompress.errors import ConfigError
from autocompress.front import Front, front_entry
from autocompress.records import Trial, storage_errors, write_atomic, write_json
from autocompress.runtimes import Session, open_session

CARD = """\
# {name}: compressed by autocompress

{what}

| | this model | dense fp32 |
|---|---|---|
| latency, {runtime}, {threads} thread(s) | {latency_ms:.3g} ms | {dense_ms} |
| latency ratio to dense in the same runtime | {ratio:.3f} ({ratio_low:.3f} to {ratio_high:.3f}) | 1 |
| latency ratio to the fastest dense fp32 | {best:.3f} ({best_low:.3f} to {best_high:.3f}) | 1 |
| {metric}, validation | {validation} | {dense_validation} |
| {metric}, test (shown, not used to choose) | {test} | {dense_test} |
| ONNX file | {size} | {dense_size} |

Latency source: {source}, {queries} queries in {blocks} blocks, workload {workload}.
{asked}
## Use

```python
{snippet}
```

Files: `model.onnx` (the integers that were timed and graded), `weights.safetensors` (the compressed torch model in
float, before rounding; kept of models that no other beats in both), `plan.json` (what was done), `card.json` (these
figures), and the task's processor, if any.
"""


@dataclass(frozen=True)
class Picked:
    """A picked model's folder.

    Attributes:
        folder: where it lies.
        figures: the row of ``autocompress front --json`` that it was picked by.
    """

    folder: Path
    figures: Mapping[str, Any]

    def load(self) -> Session:
        """The model in the runtime that it was timed in; ``.run({name: array})`` gives its outputs."""
        return load(self.folder)


def load(folder: str | Path) -> Session:
    """Load a picked model; raises `ConfigError` when the folder is none."""
    path = Path(folder)
    if not (path / "card.json").is_file():
        raise ConfigError(f"{path}: not a picked model (it holds no card.json)")
    card = json.loads((path / "card.json").read_text())
    return open_session(path / "model.onnx", card["runtime"], card["threads"])


def write_pick(
    trial: Trial, front: Front, run: Path, out: Path, experiment: Mapping[str, Any], asked: Sequence[str]
) -> Picked:
    """Copy a trial's files into a folder of its own, with a model card.

    Args:
        trial: measured.
        front: gives the dense figures.
        run: the run folder.
        out: the folder to write; files of an earlier pick in it are replaced.
        experiment: resolved settings of the run.
        asked: budgets in words.
    """
    assert trial.artifact is not None
    assert trial.latency is not None
    if out.is_dir() and any(out.iterdir()) and not (out / "card.json").is_file():
        raise ConfigError(f"--out {out}: holds other files; choose an empty folder, or that of an earlier pick")
    source = (run / trial.artifact.path).parent
    if not (source / "model.onnx").is_file():
        raise ConfigError(f"{source / 'model.onnx'} is gone from the run; search again to make it")
    with storage_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        for name in ("model.onnx", "weights.safetensors", "plan.json"):
            (out / name).unlink(missing_ok=True)  # of an earlier pick
            if (source / name).is_file():  # float weights are kept of non-dominated candidates
                shutil.copy2(source / name, out / name)
        if (run / "processor").is_dir():
            shutil.copytree(run / "processor", out, dirs_exist_ok=True)
    figures = front_entry(trial, front, trial in front.points)
    resolved = experiment["resolved"]
    write_json(
        out / "card.json",
        {
            "task": resolved["task"],
            "metric": resolved["metric"],
            "runtime": trial.latency.runtime,
            "threads": trial.latency.threads,
            "inputs": resolved["inputs"],
            "classes": resolved["classes"],
            "asked": list(asked),
            "figures": figures,
        },
    )
    write_atomic(out / "README.md", _card(trial, front, out, resolved, asked))
    return Picked(out, figures)


def snippet(resolved: Mapping[str, Any]) -> str:
    """Five lines that run the picked model in a fresh process, with nothing of autocompress."""
    given = resolved["snippet"] or {"imports": "numpy", "inputs": "...  # input name to array"}
    return "\n".join(
        [
            f"import onnxruntime, {given['imports']}",
            'folder = "."  # where this file lies',
            f"inputs = {given['inputs']}",
            'session = onnxruntime.InferenceSession(f"{folder}/model.onnx")',
            "print(session.run(None, {i.name: inputs[i.name] for i in session.get_inputs()})[0].argmax(-1))",
        ]
    )


def _card(trial: Trial, front: Front, out: Path, resolved: Mapping[str, Any], asked: Sequence[str]) -> str:
    latency, dense = trial.latency, front.dense
    assert latency is not None
    assert trial.artifact is not None

    def shown(value: float | None) -> str:
        return "–" if value is None else f"{value:.4g}"

    def megabytes(owner: Trial | None) -> str:
        return f"{owner.artifact.size_bytes / 1e6:.2f} MB" if owner and owner.artifact else "–"

    return CARD.format(
        name=out.name,
        what=trial.what,
        runtime=latency.runtime,
        threads=latency.threads,
        latency_ms=latency.latency_s * 1e3,
        dense_ms=f"{dense.latency.latency_s * 1e3:.3g} ms" if dense and dense.latency else "–",
        ratio=latency.ratio,
        ratio_low=latency.ratio_low,
        ratio_high=latency.ratio_high,
        best=latency.ratio_best_dense,
        best_low=latency.ratio_best_dense_low,
        best_high=latency.ratio_best_dense_high,
        metric=resolved["metric"],
        validation=shown(trial.quality),
        dense_validation=shown(dense.quality if dense else None),
        test=shown(trial.quality_test),
        dense_test=shown(dense.quality_test if dense else None),
        size=megabytes(trial),
        dense_size=megabytes(dense),
        source=latency.source,
        queries=latency.queries,
        blocks=latency.blocks,
        workload=", ".join(f"{k} {v}" for k, v in resolved["hardware"]["workload"].items() if v is not None),
        asked=f"Asked for: {'; '.join(asked)}.\n" if asked else "",
        snippet=snippet(resolved),
    )
