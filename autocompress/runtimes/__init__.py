"""Runtimes that load an artefact and run it. Know files and arrays, no torch, no plan."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from autocompress.errors import MeasureError, near

Arrays = Mapping[str, NDArray[Any]]


class Session(Protocol):
    """A loaded artefact."""

    def run(self, inputs: Arrays) -> list[NDArray[Any]]:
        """Outputs in the artefact's order; inputs that the artefact does not take are left out."""
        ...


#: Runtime name to the Python package that it needs.
PACKAGES = {"onnxruntime": "onnxruntime", "openvino": "openvino"}


def installed_runtimes() -> list[str]:
    """Runtimes whose package is installed here."""
    return [name for name, package in PACKAGES.items() if importlib.util.find_spec(package)]


def open_session(path: str | Path, runtime: str, threads: int) -> Session:
    """Load an artefact with a fixed number of threads.

    Raises:
        MeasureError: the runtime is unknown, not installed, or refuses the file.
    """
    if runtime not in PACKAGES:
        raise MeasureError(f"unknown runtime {runtime!r}{near(runtime, PACKAGES)}")
    if runtime not in installed_runtimes():
        raise MeasureError(f"runtime {runtime} is not installed; pip install autocompress[{runtime}]")
    if runtime == "onnxruntime":
        from autocompress.runtimes.onnxruntime import OnnxRuntimeSession

        return OnnxRuntimeSession(Path(path), threads)
    from autocompress.runtimes.openvino import OpenVinoSession

    return OpenVinoSession(Path(path), threads)
