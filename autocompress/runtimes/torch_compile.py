"""torch.compile: ``.pt2`` programs turned into C++ on a processor and into Triton on a GPU."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import fx
from torch._inductor import cpp_builder
from torch._inductor.exc import InvalidCxxCompiler

from autocompress.errors import MeasureError
from autocompress.runtimes import Arrays, Device, Kernel
from autocompress.runtimes.torch_program import TorchSession, has_device, load_program, profiled

__all__ = ["has_device", "kernels", "open_file"]

#: On a processor weights are packed; nowhere do processes stay that could disturb a timing.
OPTIONS: dict[Device, dict[str, Any]] = {
    "cpu": {"freezing": True, "compile_threads": 1},
    "cuda": {"compile_threads": 1},
}

#: Shapes of inputs for which a program may be compiled anew; torch compiles one for all shapes after the first.
SHAPES = 64


def open_file(path: Path, threads: int, device: Device) -> TorchSession:
    """Load a file; it is compiled at the first inputs, see `runtimes.open_session`."""
    program, names = load_program(path, device)
    _need_compiler(path, device)
    return TorchSession(_compiled(program, device), names, threads, device)


def _need_compiler(path: Path, device: Device) -> None:
    if device == "cuda":
        if importlib.util.find_spec("triton") is None:
            raise MeasureError(f"{path}: torch.compile needs Triton on a GPU; pip install triton")
        return
    try:
        cpp_builder.get_cpp_compiler()
    except InvalidCxxCompiler as fault:
        raise MeasureError(
            f"{path}: torch.compile needs a C++ compiler; install g++ or clang++, or set CXX to one"
        ) from fault


def _compiled(program: fx.GraphModule, device: Device) -> Callable[..., Any]:
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, SHAPES)
    compiled: Callable[..., Any] = torch.compile(program, options=OPTIONS[device], fullgraph=True)
    return compiled


def kernels(path: Path, threads: int, device: Device, inputs: Arrays) -> tuple[Kernel, ...]:
    """Calls of one run, as far as they are torch's operators and not compiled code; see `runtimes.kernels`."""
    return profiled(open_file(path, threads, device), inputs)
