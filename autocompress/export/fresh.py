"""What a file gives in a process that never saw its making, and how far that may lie from what was graded.

Knows files and arrays; imports no torch.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autocompress.errors import ExportError
from autocompress.measure.decoding import open_graded
from autocompress.measure.queries import read_queries
from autocompress.plan import plan_from_json
from autocompress.runtimes import RUNTIMES, Device, installed_runtimes

#: Largest allowed deviation from the torch twin, relative L2. Integer arithmetic rounds at
#: other places than its float simulation, and one flipped code in an early layer moves everything behind it.
TOLERANCE: Mapping[str, float] = {
    "fp32": 1e-4,
    "fp16": 1e-4,
    "fp8": 0.15,
    "int8": 0.15,
    "int8-dynamic": 0.15,
    "int8-weights": 1e-4,
    "int4-weights": 0.15,
}

#: Instead of `TOLERANCE` on a GPU, where fp16 is computed in half, and convolutions in fp32 round their operands to 11
#: bits by default (TF32 of Ampere and later).
GPU_TOLERANCE: Mapping[str, float] = {**TOLERANCE, "fp32": 5e-3, "int8-weights": 5e-3, "fp16": 0.02}

#: Largest deviation of one file in two processes of one runtime.
SAME = 1e-5

_RUN = """\
import sys, numpy
from autocompress.measure.decoding import open_graded
from autocompress.measure.queries import read_queries
path, runtime, threads, device, inputs, outputs = sys.argv[1:]
found = open_graded(path, runtime, int(threads), device).run(read_queries(inputs)[0])[0]
numpy.save(outputs, found, allow_pickle=False)
"""


@dataclass(frozen=True)
class Graded:
    """A candidate as a run keeps it, which its other formats are held against.

    Attributes:
        run: the run folder.
        file: what was timed and graded; plan and weights lie beside it.
        sha256: of the file when it was graded.
        runtime, threads, device: where.
    """

    run: Path
    file: Path
    sha256: str
    runtime: str
    threads: int
    device: Device = "cpu"

    @property
    def inputs(self) -> Path:
        """.npz of one query of the workload."""
        return self.run / "inputs.npz"

    @cached_property
    def expected(self) -> NDArray[Any]:
        """First output of the file for the query."""
        return open_graded(self.file, self.runtime, self.threads, self.device).run(read_queries(self.inputs)[0])[0]

    @property
    def most(self) -> float:
        """The largest deviation that the plan's precisions may cause."""
        path = self.file.with_name("plan.json")
        plan = plan_from_json(json.loads(path.read_text(encoding="utf-8")), str(path))
        return allowed((lp.quantize.precision for lp in plan.layers.values() if lp.quantize), self.device)


def allowed(precisions: Iterable[str], device: Device = "cpu") -> float:
    """The largest deviation that layers of these precisions may cause on a device, beside others in fp32."""
    tolerance = GPU_TOLERANCE if device == "cuda" else TOLERANCE
    return max(tolerance[precision] for precision in {*precisions, "fp32"})


def relative_distance(found: NDArray[Any], expected: NDArray[Any]) -> float:
    """``‖found - expected‖ / ‖expected‖`` in L2; inf for another shape, NaN or infinity."""
    if found.shape != expected.shape:
        return float("inf")
    distance = float(np.linalg.norm(found - expected)) / (float(np.linalg.norm(expected)) or 1.0)
    return distance if np.isfinite(distance) else float("inf")


def fresh_outputs(path: Path, runtime: str, inputs: Path, threads: int = 1, device: Device = "cpu") -> NDArray[Any]:
    """First output of a file in a process of its own.

    Args:
        path: the file.
        runtime: that loads it.
        inputs: .npz of one query, input name to array.
        threads: of the runtime.
        device: of the runtime.

    Raises:
        ExportError: the process fails; with its last words.
    """
    return run_fresh(_RUN, [str(path), runtime, str(threads), device, str(inputs)], path)


def run_fresh(code: str, arguments: Sequence[str], path: Path) -> NDArray[Any]:
    """What a Python process saves as .npy under its last argument; `path` is named where it fails."""
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "outputs.npy"
        command = [sys.executable, "-c", code, *arguments, str(answer)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode or not answer.is_file():
            last = done.stderr.strip().splitlines()[-1:] or [f"it ended with exit code {done.returncode}"]
            raise ExportError(f"{path}: a fresh process cannot load and run it: {last[0]}")
        outputs: NDArray[Any] = np.load(answer, allow_pickle=False)
        return outputs


def check_deviation(path: Path, found: NDArray[Any], expected: NDArray[Any], most: float) -> float:
    """The relative distance of what a fresh process found.

    Raises:
        ExportError: it is above `most`.
    """
    deviation = relative_distance(found, expected)
    if not deviation <= most:
        raise ExportError(
            f"{path}: in a fresh process its outputs lie {deviation:.3g} (relative L2) from those of the graded file, "
            f"more than the {most:g} allowed"
        )
    return deviation


def check_copy(path: Path, graded: Graded) -> None:
    """Make sure that a copy is the graded file, and gives in a fresh process what that gives here.

    Where the runtime is not installed only the checksum is compared.

    Raises:
        ExportError: it is another file, or gives something else.
    """
    if hashlib.sha256(path.read_bytes()).hexdigest() != graded.sha256:
        raise ExportError(f"{graded.file}: was changed since it was graded (its sha256 is another); search again")
    if graded.runtime in installed_runtimes(graded.device, RUNTIMES[graded.runtime].formats[0]):
        found = fresh_outputs(path, graded.runtime, graded.inputs, graded.threads, graded.device)
        check_deviation(path, found, graded.expected, SAME)
