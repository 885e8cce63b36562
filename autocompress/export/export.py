"""The verb `export_model`: torch model + integers → one file that agrees with them; here, ONNX."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from autocompress.compressing.codes import Codes
from autocompress.compressing.quantize import simulate
from autocompress.errors import ExportError
from autocompress.export.decoder import decoder_agreement, decoder_graph
from autocompress.export.fresh import TOLERANCE as TOLERANCE
from autocompress.export.fresh import allowed, relative_distance
from autocompress.export.integers import insert_codes
from autocompress.export.tracing import traceable, traced_graph
from autocompress.records import Artifact, write_atomic
from autocompress.runtimes import RUNTIMES, Device, open_session
from autocompress.tasks.task import Task, logits_of

OUTPUT = "logits"

#: Runtimes whose integer convolutions must write integers. OpenVINO's need not, and a rounded output goes wrong there
#: where a constant is appended to it (2026.4: a ViT's class token).
ROUNDS_OUTPUTS = ("onnxruntime",)


class _Traced(nn.Module):
    """Positional inputs and plain logits, as the exporter wants them."""

    def __init__(self, model: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model = model
        self.names = names
        takes = inspect.signature(model.forward).parameters
        self.needs_mask = "input_ids" in names and "attention_mask" in takes and "attention_mask" not in names

    def forward(self, *values: Tensor) -> Tensor:
        """The logits."""
        inputs = dict(zip(self.names, values, strict=True))
        if self.needs_mask:  # without one a decoder looks for packed sequences, with operators that ONNX lacks
            inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        return logits_of(self.model(**inputs))


def float_graph(model: nn.Module, task: Task) -> onnx.ModelProto:
    """The model as an ONNX graph with free batch (and the task's dynamic axes); weights keep their module names.

    Raises:
        ExportError: torch cannot trace the model.
    """
    names = task.input_names
    inputs = task.trace_inputs()
    axes = {name: {0: "batch", **task.dynamic_axes.get(name, {})} for name in names}
    return traced_graph(
        _Traced(traceable(model), names).eval(),
        {name: inputs[name] for name in names},
        [OUTPUT],
        {**axes, OUTPUT: {0: "batch"}},
        type(model).__name__,
    )


def codes_for(codes: Mapping[str, Codes], runtime: str) -> dict[str, Codes]:
    """The codes as a runtime's file holds them: without quantizers on outputs where it needs none."""
    if runtime in ROUNDS_OUTPUTS:
        return dict(codes)
    return {name: replace(made, output=None) for name, made in codes.items()}


def export_model(
    model: nn.Module,
    codes: Mapping[str, Codes],
    task: Task,
    path: Path,
    root: Path,
    fingerprint: str,
    runtime: str,
    *,
    device: Device = "cpu",
    past: bool = False,
) -> Artifact:
    """Write the model with its integers to `path`, in the runtime's first format, and check the file against torch.

    Args:
        model: shaped and recovered, in float.
        codes: integers by module name, from `compressing.quantize`.
        task: gives example inputs.
        path: the file to write.
        root: run folder, to which `Artifact.path` is relative.
        fingerprint: of the plan.
        runtime: that checks the file.
        device: where it does.
        past: export a decoder that continues from a past (an empty one is the prefill), and let it continue text.

    Raises:
        ExportError: the file's outputs leave the torch model's by more than `TOLERANCE` allows.
    """
    if runtime in RUNTIMES and RUNTIMES[runtime].formats[0] == "pt2":
        if past:
            raise ExportError(
                f"runtime {runtime} loads .pt2 files, which hold no past: a decoder needs an ONNX runtime"
            )
        from autocompress.export.program import export_program  # which imports from here

        return export_program(model, codes, task, path, root, fingerprint, runtime, device=device)
    codes = codes_for(codes, runtime)
    graph = decoder_graph(model, task) if past else float_graph(model, task)
    content, twin = insert_codes(graph, codes).SerializeToString(), simulate(model, codes)

    def compare(aside: Path) -> tuple[float, float]:
        if past:
            found = decoder_agreement(twin, open_session(aside, runtime, 1, device), task)
            return found.deviation, found.worst
        deviation = agreement(twin, aside, task, runtime, device)
        return deviation, deviation

    precisions = computing_precisions(model, codes)
    return write_verified(content, path, root, fingerprint, compare, precisions, device)


def computing_precisions(model: nn.Module, codes: Mapping[str, Codes]) -> set[str]:
    """Precisions that products are computed in; lookups compute nothing."""
    layers = (name for name in codes if not isinstance(model.get_submodule(name), nn.Embedding))
    return {codes[name].precision for name in layers} | {"fp32"}


def write_verified(
    content: bytes,
    path: Path,
    root: Path,
    fingerprint: str,
    compare: Callable[[Path], tuple[float, float]],
    precisions: Collection[str],
    device: Device = "cpu",
) -> Artifact:
    """Write a file aside, and give it its name where it agrees with its torch twin.

    Args:
        content: of the file.
        path: its name; the suffix is its format.
        root: run folder, to which `Artifact.path` is relative.
        fingerprint: of the plan.
        compare: deviation of the file written aside, and the figure that is held against what is allowed.
        precisions: that it computes in.
        device: where.

    Raises:
        ExportError: it leaves the twin by more than is allowed.
    """
    aside = path.with_name(f"unverified{path.suffix}")
    try:
        write_atomic(aside, content)
        deviation, worst = compare(aside)
        most = allowed(precisions, device)
        if not worst <= most:
            raise ExportError(
                f"{path}: its outputs lie {worst:.3g} (relative L2) from the torch model's, "
                f"more than the {most:g} allowed for {', '.join(sorted(precisions))}"
            )
        os.replace(aside, path)
    finally:
        with contextlib.suppress(OSError):  # of a disk that refused the file as well
            aside.unlink(missing_ok=True)
    form, sha256 = path.suffix.removeprefix("."), hashlib.sha256(content).hexdigest()
    return Artifact(str(path.relative_to(root)), form, len(content), sha256, fingerprint, deviation)


def agreement(twin: nn.Module, path: Path, task: Task, runtime: str, device: Device = "cpu") -> float:
    """Relative L2 distance between the file's outputs and the twin's over up to 16 calibration samples; inf for NaN."""
    inputs, _targets = task.calibration().batch(range(min(16, task.score_batch, len(task.calibration()))))
    with torch.inference_mode():
        expected = logits_of(twin(**inputs)).numpy()
    return relative_distance(open_session(path, runtime, 1, device).run(to_arrays(inputs))[0], expected)


def to_arrays(inputs: Mapping[str, Tensor]) -> dict[str, NDArray[Any]]:
    """Tensors as NumPy arrays."""
    return {name: value.numpy() for name, value in inputs.items()}
