"""OpenVINO on the CPU; an extra."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import openvino
from numpy.typing import NDArray

from autocompress.errors import MeasureError
from autocompress.runtimes import Arrays


class OpenVinoSession:
    """One loaded ONNX file, compiled for latency in fp32 where it is not quantized."""

    def __init__(self, path: Path, threads: int) -> None:
        core = openvino.Core()
        settings = {
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
        }
        try:
            self._model = core.compile_model(str(path), "CPU", settings)
        except RuntimeError as fault:
            raise MeasureError(f"{path}: OpenVINO refuses it: {str(fault).strip().splitlines()[-1]}") from fault
        self._names = {name for port in self._model.inputs for name in port.names}
        self._request = self._model.create_infer_request()

    def run(self, inputs: Arrays) -> list[NDArray[Any]]:
        """Outputs in the file's order."""
        result = self._request.infer({k: v for k, v in inputs.items() if k in self._names}, share_inputs=True)
        return [np.array(result[port]) for port in self._model.outputs]
