"""Torch, eager: ``.pt2`` programs, operator by operator, on a processor or a GPU."""

from __future__ import annotations

import contextlib
import json
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx
from torch.export.passes import move_to_device_pass

from autocompress.errors import MeasureError
from autocompress.runtimes import Arrays, Device, Kernel
from autocompress.runtimes.folding import fold_constants, use_sparse_kernels

#: Operators that multiply matrices or convolve, and what they compute in; None: in the type of their first input.
PRODUCTS: dict[str, str | None] = {
    "aten::_int_mm": "int8",
    "onednn::qconv_pointwise": "int8",
    "onednn::qconv2d_pointwise": "int8",
    "onednn::qlinear_pointwise": "int8",
    "aten::_weight_int4pack_mm_for_cpu": "int4-weights",
    "aten::_scaled_mm": "fp8",
    "aten::_cslt_sparse_mm": "fp16-2:4",
    "aten::_sparse_semi_structured_mm": "fp16-2:4",
    "aten::_sparse_semi_structured_addmm": "fp16-2:4",
    "aten::_sparse_semi_structured_linear": "fp16-2:4",
    "mkldnn::_linear_pointwise": None,
    "mkldnn::_convolution_pointwise": None,
    "aten::_scaled_dot_product_flash_attention_for_cpu": None,
    "aten::_scaled_dot_product_flash_attention": None,
    "aten::_scaled_dot_product_efficient_attention": None,
    "aten::convolution": None,
    "aten::addmm": None,
    "aten::mm": None,
    "aten::bmm": None,
    "aten::baddbmm": None,
}

#: Types as the profiler calls them.
TYPES = {"float": "fp32", "c10::Half": "fp16", "c10::BFloat16": "bf16", "double": "fp64"}

#: Marks the spans of a profile that belong to one layer.
MARK = "layer:"


class TorchSession:
    """One loaded program.

    Threads are set for the length of a run, since torch has one number of them in a process.
    """

    def __init__(self, call: Callable[..., Any], names: tuple[str, ...], threads: int, device: Device) -> None:
        self.ports: Mapping[str, tuple[int | None, ...]] = {}
        self._call = call
        self._names = names
        self._threads = threads
        self._device = device

    def run(self, inputs: Arrays) -> list[NDArray[Any]]:
        """Outputs in the file's order, computed to the end."""
        missing = [name for name in self._names if name not in inputs]
        if missing:
            raise MeasureError(f"the program takes input {missing[0]!r}, which is not among {', '.join(inputs)}")
        with _threads(self._threads), torch.inference_mode():
            taken = {name: tensor_of(inputs[name]).to(self._device) for name in self._names}
            made = self._call(taken)
            outputs = [made] if isinstance(made, Tensor) else [value for value in made if isinstance(value, Tensor)]
            return [output.cpu().numpy() for output in outputs]  # to the CPU: waits for the GPU


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    if before == count:
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def tensor_of(array: NDArray[Any]) -> Tensor:
    """The array's memory as a tensor; a copy where torch could write to what must not change."""
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def load_program(path: Path, device: Device) -> tuple[fx.GraphModule, tuple[str, ...]]:
    """A program on its device with everything done that needs no input, and the names of its inputs.

    Raises:
        MeasureError: there is no such device, or the file is no program.
    """
    if device == "cuda" and not has_device(device):
        raise MeasureError(
            f"{path}: torch {torch.__version__} finds no CUDA device here; see torch.cuda.is_available()"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exported = torch.export.load(path)
            if device != "cpu":
                exported = move_to_device_pass(exported, device)
            program = exported.module(check_guards=False)
            names = tuple(exported.call_spec.in_spec.child(0).child(0).context)
    except Exception as fault:  # torch raises many classes that share no base
        raise MeasureError(f"{path}: torch refuses it: {fault}") from fault
    assert isinstance(program, fx.GraphModule)
    with torch.inference_mode(False), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that sparse kernels may change
        fold_constants(program)
        if device == "cuda":
            use_sparse_kernels(program)
    return program, names


def has_device(device: Device) -> bool:
    """Whether torch runs on it here."""
    return device == "cpu" or torch.cuda.is_available()


def open_file(path: Path, threads: int, device: Device) -> TorchSession:
    """Load a file; see `runtimes.open_session`."""
    program, names = load_program(path, device)
    return TorchSession(program, names, threads, device)


class _Marking(fx.Interpreter):
    """Runs a program node by node, so that a profile tells which module of the model each belongs to."""

    def run_node(self, n: fx.Node) -> Any:
        """One node, in a span of its own."""
        with torch.profiler.record_function(MARK + layer_of(n)):
            return super().run_node(n)


def layer_of(node: fx.Node) -> str:
    """The module of the model that a node was traced from; empty where it is not known."""
    stack = node.meta.get("nn_module_stack") or {}
    last = next(reversed(stack.values()), ("", None))[0] if stack else ""
    return str(last).removeprefix("model.").removesuffix(".layer") if last != "model" else ""


def kernels(path: Path, threads: int, device: Device, inputs: Arrays) -> tuple[Kernel, ...]:
    """Operators of one run; see `runtimes.kernels`."""
    program, names = load_program(path, device)
    marking = _Marking(program)

    def call(taken: dict[str, Tensor]) -> Any:
        return marking.run(*[taken[name] for name in names])

    return profiled(TorchSession(call, names, threads, device), inputs)


def profiled(session: TorchSession, inputs: Arrays) -> tuple[Kernel, ...]:
    """What torch's profiler saw of one run, behind one that warmed up."""
    session.run(inputs)
    activities = [torch.profiler.ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")
        with torch.profiler.profile(activities=activities, record_shapes=True) as profile:
            session.run(inputs)
        profile.export_chrome_trace(str(Path(folder) / "trace.json"))
        events = json.loads((Path(folder) / "trace.json").read_text(encoding="utf-8"))["traceEvents"]
    return tuple(_kernels_of([event for event in events if event.get("ph") == "X"]))


def _kernels_of(events: list[dict[str, Any]]) -> Iterator[Kernel]:
    """Outermost operators, in order; each named by the product inside it, if there is one."""
    on_gpu: dict[Any, float] = {}
    for event in events:
        if event.get("cat") == "kernel":
            key = event["args"].get("External id")
            on_gpu[key] = on_gpu.get(key, 0.0) + event["dur"]
    operators = (event for event in events if event.get("cat") == "cpu_op" and "::" in event["name"])
    calls = sorted(operators, key=lambda e: (e["ts"], -e["dur"]))
    spans = sorted(
        (e for e in events if e.get("cat") == "user_annotation" and e["name"].startswith(MARK)), key=lambda e: e["ts"]
    )
    starts = np.array([span["ts"] for span in spans])
    for family in _families(calls):
        call = next((event for event in family if event["name"] in PRODUCTS), family[0])
        place = int(np.searchsorted(starts, call["ts"], side="right")) - 1
        inside = place >= 0 and call["ts"] <= spans[place]["ts"] + spans[place]["dur"]
        layer = spans[place]["name"].removeprefix(MARK) if inside else ""
        seconds = sum(on_gpu.get(event["args"].get("External id"), 0.0) for event in family) or family[0]["dur"]
        yield Kernel(family[0]["name"], call["name"], _precision(call), seconds * 1e-6, layer or None)


def _families(calls: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Each outermost call with those inside it."""
    family: list[dict[str, Any]] = []
    for call in calls:
        if family and call["ts"] + call["dur"] <= family[0]["ts"] + family[0]["dur"]:
            family.append(call)
            continue
        if family:
            yield family
        family = [call]
    if family:
        yield family


def _precision(call: dict[str, Any]) -> str | None:
    if call["name"] not in PRODUCTS:
        return None
    types = [name for name in call["args"].get("Input type", []) if name in TYPES]
    return PRODUCTS[call["name"]] or (TYPES[types[0]] if types else "fp32")
