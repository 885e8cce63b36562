"""OpenVINO on the CPU; an extra."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import openvino
from numpy.typing import NDArray

from autocompress.errors import MeasureError
from autocompress.runtimes import Arrays, Device, Kernel, Session, layer_in

#: Layers that multiply matrices or convolve; subgraphs do where a product is among the layers that they stand for.
PRODUCTS = ("FullyConnected", "MatMul", "Convolution", "Deconvolution", "ScaledDotProductAttention")

#: Types as OpenVINO calls them; those of weights where the arithmetic is in floats.
TYPES = {"f32": "fp32", "f16": "fp16", "bf16": "bf16", "u8": "int8", "i8": "int8"}
NARROW = {"u4": "int4-weights", "i4": "int4-weights", "u8": "int8-weights", "i8": "int8-weights", "u2": "int2-weights"}


class OpenVinoSession:
    """One loaded ONNX file, compiled for latency in fp32 where it is not quantized."""

    def __init__(self, path: Path, threads: int, profile: bool = False) -> None:
        core = openvino.Core()
        settings = {
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
            "PERF_COUNT": profile,
        }
        try:
            self.model = core.compile_model(str(path), "CPU", settings)
        except RuntimeError as fault:
            raise MeasureError(f"{path}: OpenVINO refuses it: {str(fault).strip().splitlines()[-1]}") from fault
        self._names = {name for port in self.model.inputs for name in port.names}
        self.ports = {port.any_name: _shape(port) for port in self.model.inputs}
        self._request = self.model.create_infer_request()
        self._lending = [self.model.create_infer_request() for _ in range(2)]

    def run(self, inputs: Arrays) -> list[NDArray[Any]]:
        """Outputs in the file's order."""
        result = self._request.infer({k: v for k, v in inputs.items() if k in self._names}, share_inputs=True)
        return [np.array(result[port]) for port in self.model.outputs]

    def lend(self, inputs: Arrays) -> list[NDArray[Any]]:
        """As `run`, without a copy: outputs are good until the call after the next one."""
        self._lending.reverse()
        given = {name: value for name, value in inputs.items() if name in self._names}
        result = self._lending[0].infer(given, share_inputs=True, share_outputs=True)
        return [result[port] for port in self.model.outputs]

    def seconds(self) -> dict[str, float]:
        """Of the last run, by layer; needs `profile`."""
        return {item.node_name: item.real_time.total_seconds() for item in self._request.profiling_info}


def has_device(device: Device) -> bool:
    """Whether it runs there."""
    return device == "cpu"


def _shape(port: Any) -> tuple[int | None, ...]:
    return tuple(None if size.is_dynamic else size.get_length() for size in port.partial_shape)


def open_file(path: Path, threads: int, _device: Device) -> Session:
    """Load a file; see `runtimes.open_session`."""
    return OpenVinoSession(path, threads)


def kernels(path: Path, threads: int, _device: Device, inputs: Arrays) -> tuple[Kernel, ...]:
    """Layers of the graph that OpenVINO made of the file; see `runtimes.kernels`."""
    opened = OpenVinoSession(path, threads, profile=True)
    opened.run(inputs)
    opened.run(inputs)
    seconds = opened.seconds()
    found = []
    for node in opened.model.get_runtime_model().get_ordered_ops():
        name, facts = node.get_friendly_name(), node.get_rt_info()
        kind, primitive, runs_in, stands_for = (
            facts[key].astype(str) for key in ("layerType", "primitiveType", "runtimePrecision", "originalLayersNames")
        )
        if kind not in ("Const", "Input", "Output"):
            precision = _precision(kind, primitive, runs_in, stands_for)
            layer = layer_in(name) or layer_in(stands_for.split(",")[0])
            found.append(Kernel(name, f"{kind} {primitive}", precision, seconds.get(name, 0.0), layer))
    return tuple(found)


def _precision(kind: str, primitive: str, runs_in: str, stands_for: str) -> str | None:
    if kind not in PRODUCTS and not (kind == "Subgraph" and "MatMul" in stands_for):
        return None
    in_floats = primitive.lower().endswith(("_f32", "_fp32"))
    return (NARROW.get(runs_in) if in_floats else None) or TYPES.get(runs_in, runs_in)
