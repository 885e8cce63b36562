"""Runtimes that load an artefact and run it. Know files and arrays, no plan.

A runtime is one file here with ``open_file(path, threads, device) -> Session``, ``kernels(path, threads, device,
inputs)`` and ``has_device(device)``, and its line in `RUNTIMES`.
"""

from __future__ import annotations

import importlib
import importlib.util
import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from numpy.typing import NDArray

from autocompress.errors import MeasureError, near

Arrays = Mapping[str, NDArray[Any]]
Device = Literal["cpu", "cuda"]
Format = Literal["onnx", "openvino", "pt2"]


class Session(Protocol):
    """A loaded artefact.

    Where it also has ``lend``, that is a `run` without copies, whose outputs hold until the call after the next.
    """

    @property
    def ports(self) -> Mapping[str, tuple[int | None, ...]]:
        """Input name to its shape, None where it is free; empty where the runtime does not tell."""
        ...

    def run(self, inputs: Arrays) -> list[NDArray[Any]]:
        """Outputs in the artefact's order; inputs that the artefact does not take are left out."""
        ...


@dataclass(frozen=True)
class Kernel:
    """A node of an artefact as a runtime really ran it.

    Attributes:
        name: of the node, as the runtime calls it after its fusions.
        operator: what ran, in the runtime's own words.
        precision: what it multiplied in: "fp32", "fp16", "bf16", "int8", "int4-weights" (made wider inside the
            kernel) or "fp16-2:4"; None where it neither multiplies matrices nor convolves.
        seconds: of one run, under the runtime's profiler.
        layer: module of the model that it computes, where the runtime tells.
    """

    name: str
    operator: str
    precision: str | None
    seconds: float
    layer: str | None = None


@dataclass(frozen=True)
class Runtime:
    """What a runtime loads, and where.

    Attributes:
        package: the Python package that it needs.
        module: where its ``open_file``, ``kernels`` and ``has_device`` stand.
        formats: of files that it loads; candidates are exported to the first.
        devices: where it runs, if the installed build of its package does.
        kernels: on a processor: layer kind to the precisions that it turns into kernels of their own; what it claims,
            to be measured.
        cuda_kernels: the same on a GPU.
    """

    package: str
    module: str
    formats: tuple[Format, ...]
    devices: tuple[Device, ...]
    kernels: Mapping[str, tuple[str, ...]]
    cuda_kernels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def kernels_on(self, device: Device) -> Mapping[str, tuple[str, ...]]:
        """The precisions that it claims kernels for, by layer kind."""
        return self.kernels if device == "cpu" else self.cuda_kernels


_TORCH: Mapping[str, tuple[str, ...]] = {
    "linear": ("fp32", "fp16", "int8-dynamic", "int8", "int4-weights"),
    "conv": ("fp32", "fp16", "int8"),
    "embedding": ("fp32", "fp16", "int8-weights", "int4-weights"),
}

#: Half precision is computed in half on a GPU, with sparse kernels where a linear's weights are 2:4. 8-bit floats need
#: compute capability 8.9; the probe says where a GPU has none.
_TORCH_CUDA: Mapping[str, tuple[str, ...]] = {
    "linear": ("fp32", "fp16", "fp8", "int8-dynamic", "int8"),
    "conv": ("fp32", "fp16"),
    "embedding": ("fp32", "fp16", "int8-weights", "int4-weights"),
}

#: Runtime name to what it is.
RUNTIMES: Mapping[str, Runtime] = {
    "onnxruntime": Runtime(
        "onnxruntime",
        "autocompress.runtimes.onnxruntime",
        ("onnx",),
        ("cpu", "cuda"),
        {
            "linear": ("fp32", "fp16", "int8-dynamic", "int8", "int4-weights"),
            "conv": ("fp32", "fp16", "int8"),
            "embedding": ("fp32", "fp16", "int8-weights", "int4-weights"),
        },
        {"linear": ("fp32", "int4-weights"), "conv": ("fp32",), "embedding": ("fp32",)},
    ),
    "openvino": Runtime(
        "openvino",
        "autocompress.runtimes.openvino",
        ("onnx", "openvino"),
        ("cpu",),
        {
            "linear": ("fp32", "fp16", "int8", "int4-weights"),
            "conv": ("fp32", "fp16", "int8"),
            "embedding": ("fp32", "fp16", "int8-weights"),
        },
    ),
    "torch": Runtime("torch", "autocompress.runtimes.torch_program", ("pt2",), ("cpu", "cuda"), _TORCH, _TORCH_CUDA),
    "torch-compile": Runtime(
        "torch", "autocompress.runtimes.torch_compile", ("pt2",), ("cpu", "cuda"), _TORCH, _TORCH_CUDA
    ),
}


#: File name of a candidate in each format.
FILES: Mapping[Format, str] = {"onnx": "model.onnx", "openvino": "model.xml", "pt2": "model.pt2"}


def model_file(runtime: str) -> str:
    """Name of the file that candidates of a runtime are exported to."""
    return FILES[RUNTIMES[runtime].formats[0]]


def installed_runtimes(device: Device = "cpu", form: Format = "onnx") -> list[str]:
    """Runtimes that are installed here, load such files and run on the device; asks their packages for a GPU."""
    found = [
        name
        for name, made in RUNTIMES.items()
        if device in made.devices and form in made.formats and importlib.util.find_spec(made.package)
    ]
    return [name for name in found if device == "cpu" or _module(name).has_device(device)]


def _module(runtime: str) -> Any:
    return importlib.import_module(RUNTIMES[runtime].module)


def open_session(
    path: str | Path, runtime: str, threads: int, device: Device = "cpu", inputs: Arrays | None = None
) -> Session:
    """Load an artefact with a fixed number of threads.

    Args:
        path: the file.
        runtime: one of `RUNTIMES`.
        threads: on the processor.
        device: where it runs.
        inputs: run once before this returns, so that what a runtime does at the first inputs of a shape (compile,
            choose kernels) is over; without them it happens in the first run.

    Raises:
        MeasureError: the runtime is unknown, not installed, not for this device, or refuses the file.
    """
    _refuse(runtime, device)
    session: Session = _module(runtime).open_file(Path(path), threads, device)
    if inputs is not None:
        session.run(inputs)
    return session


def _refuse(runtime: str, device: Device) -> None:
    made = RUNTIMES.get(runtime)
    if made is None:
        raise MeasureError(f"unknown runtime {runtime!r}{near(runtime, RUNTIMES)}")
    if device not in made.devices:
        raise MeasureError(f"runtime {runtime} runs on {', '.join(made.devices)}, not on {device}")
    if not importlib.util.find_spec(made.package):
        raise MeasureError(f"runtime {runtime} is not installed; pip install autocompress[{runtime}]")


def kernels(path: str | Path, runtime: str, threads: int, inputs: Arrays, device: Device = "cpu") -> tuple[Kernel, ...]:
    """The nodes that a runtime really runs for an artefact, in order, from its own profiler.

    Raises:
        MeasureError: as `open_session`.
    """
    _refuse(runtime, device)
    found: tuple[Kernel, ...] = _module(runtime).kernels(Path(path), threads, device, inputs)
    return found


def products(found: Iterable[Kernel]) -> tuple[Kernel, ...]:
    """Those that multiply matrices or convolve."""
    return tuple(kernel for kernel in found if kernel.precision is not None)


def integer_share(found: Iterable[Kernel]) -> float:
    """Share, in [0, 1] by seconds, of a model's products that multiplied 8-bit integers; 0 where there are none."""
    multiplied = products(found)
    total = sum(kernel.seconds for kernel in multiplied)
    return sum(kernel.seconds for kernel in multiplied if kernel.precision == "int8") / total if total else 0.0


def layer_in(node: str) -> str | None:
    """The module whose code an ONNX node came from, by the exporter's names ``/model/module/…/Operator…``."""
    parts = node.removeprefix("fused ").split("/")
    if parts[:2] != ["", "model"]:
        return None
    modules = list(itertools.takewhile(lambda part: not part[:1].isupper(), parts[2:]))
    return ".".join(modules) or None
