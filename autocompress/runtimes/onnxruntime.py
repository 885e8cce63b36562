"""ONNX Runtime on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnxruntime
from numpy.typing import NDArray

from autocompress.errors import MeasureError
from autocompress.runtimes import Arrays

#: Below this level ONNX Runtime prints warnings about graphs that it simplifies.
ERRORS_ONLY = 3


class OnnxRuntimeSession:
    """One loaded ONNX file.

    Threads stop spinning when a run ends, so that sessions timed in turn do not take each other's cores.
    """

    def __init__(self, path: Path, threads: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = ERRORS_ONLY
        options.add_session_config_entry("session.force_spinning_stop", "1")
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as fault:  # ONNX Runtime raises several classes that share no public base
            raise MeasureError(f"{path}: ONNX Runtime refuses it: {fault}") from fault
        self._names = {item.name for item in self._session.get_inputs()}

    def run(self, inputs: Arrays) -> list[NDArray[Any]]:
        """Outputs in the file's order."""
        outputs: list[NDArray[Any]] = self._session.run(None, {k: v for k, v in inputs.items() if k in self._names})
        return outputs
