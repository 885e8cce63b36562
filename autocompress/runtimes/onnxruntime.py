"""ONNX Runtime, on the CPU and on NVIDIA's GPUs."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import onnxruntime
from numpy.typing import NDArray

from autocompress.errors import MeasureError
from autocompress.runtimes import Arrays, Device, Kernel, Session, layer_in

#: Below this level ONNX Runtime prints warnings about graphs that it simplifies.
ERRORS_ONLY = 3

CUDA = "CUDAExecutionProvider"

#: Optimizers that a processor is better off without: its SkipLayerNormalization takes four times as long as the sum and
#: the norm that become it (1.31, 128 × 384, one thread: 310 and 70 µs).
SLOWER_ON_CPU = ("SkipLayerNormFusion",)

#: Operators that multiply matrices or convolve, and what they compute in; None: in the type of their first input.
PRODUCTS: dict[str, str | None] = {
    "MatMulIntegerToFloat": "int8",
    "DynamicQuantizeMatMul": "int8",
    "MatMulInteger": "int8",
    "ConvInteger": "int8",
    "QLinearMatMul": "int8",
    "QLinearConv": "int8",
    "QGemm": "int8",
    "QAttention": "int8",
    "MatMulNBits": "int4-weights",
    **dict.fromkeys(("MatMul", "FusedMatMul", "Gemm", "FusedGemm", "Conv", "FusedConv", "NhwcFusedConv", "Einsum")),
    **dict.fromkeys(("Attention", "MultiHeadAttention", "GroupQueryAttention")),
}

#: Types as the profiler calls them.
TYPES = {"float": "fp32", "float16": "fp16", "bfloat16": "bf16", "double": "fp64"}


class OnnxRuntimeSession:
    """One loaded ONNX file.

    Threads stop spinning when a run ends, so that sessions timed in turn do not take each other's cores.
    """

    def __init__(self, path: Path, threads: int, device: Device, profile: str | None = None) -> None:
        if not has_device(device):
            raise MeasureError(
                f"{path}: this build of ONNX Runtime has no {CUDA}; pip uninstall onnxruntime, then "
                "pip install onnxruntime-gpu"
            )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = ERRORS_ONLY
        options.add_session_config_entry("session.force_spinning_stop", "1")
        if profile is not None:
            options.enable_profiling = True
            options.profile_file_prefix = profile
        providers = [CUDA, "CPUExecutionProvider"] if device == "cuda" else ["CPUExecutionProvider"]
        off = list(SLOWER_ON_CPU) if device == "cpu" else []
        try:
            self.session = onnxruntime.InferenceSession(str(path), options, providers, disabled_optimizers=off)
        except Exception as fault:  # ONNX Runtime raises several classes that share no public base
            raise MeasureError(f"{path}: ONNX Runtime refuses it: {fault}") from fault
        if self.session.get_providers()[0] != providers[0]:  # it falls back to the CPU without raising
            raise MeasureError(f"{path}: ONNX Runtime finds no CUDA device here, or not the CUDA that it was built for")
        self.ports = {
            item.name: tuple(size if isinstance(size, int) else None for size in item.shape)
            for item in self.session.get_inputs()
        }

    def run(self, inputs: Arrays) -> list[NDArray[Any]]:
        """Outputs in the file's order."""
        outputs: list[NDArray[Any]] = self.session.run(None, {k: v for k, v in inputs.items() if k in self.ports})
        return outputs


def has_device(device: Device) -> bool:
    """Whether this build runs on it."""
    return device == "cpu" or CUDA in onnxruntime.get_available_providers()


def open_file(path: Path, threads: int, device: Device) -> Session:
    """Load a file; see `runtimes.open_session`."""
    return OnnxRuntimeSession(path, threads, device)


def kernels(path: Path, threads: int, device: Device, inputs: Arrays) -> tuple[Kernel, ...]:
    """Nodes of the second of two runs; see `runtimes.kernels`."""
    with tempfile.TemporaryDirectory() as folder:
        opened = OnnxRuntimeSession(path, threads, device, profile=str(Path(folder) / "profile"))
        opened.run(inputs)
        opened.run(inputs)
        events = json.loads(Path(opened.session.end_profiling()).read_text(encoding="utf-8"))
    start = max(event["ts"] for event in events if event["name"] == "model_run")
    nodes = [event for event in events if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")]
    return tuple(_kernel(event) for event in nodes if event["ts"] >= start)


def _kernel(event: dict[str, Any]) -> Kernel:
    name, operator = event["name"].removesuffix("_kernel_time"), event["args"]["op_name"]
    precision = None
    if operator in PRODUCTS:
        types = [kind for item in event["args"].get("input_type_shape", []) for kind in item]
        precision = PRODUCTS[operator] or TYPES.get(types[0] if types else "float", "fp32")
    return Kernel(name, operator, precision, event["dur"] * 1e-6, layer_in(name))
