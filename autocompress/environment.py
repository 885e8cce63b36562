"""What a figure depends on beside the run: machine, versions, revision."""

from __future__ import annotations

import contextlib
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from autocompress.processors import cores

VERSIONS = ("autocompress", "torch", "onnx", "onnxruntime", "openvino", "optuna", "transformers", "numpy", "scipy")

#: Instructions that kernels of bytes and of half precision hang on, of those that processors have.
INSTRUCTIONS = frozenset(
    ["avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "amx_bf16", "avx512_bf16", "asimddp", "i8mm", "sve"]
)


def environment() -> dict[str, Any]:
    """What a figure depends on beside the run: machine, versions, revision."""
    versions = {}
    for name in VERSIONS:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return {
        "machine": {
            "cpu": _cpu_fact("model name") or platform.processor() or platform.machine(),
            "instructions": sorted(INSTRUCTIONS & {*(_cpu_fact("flags") or _cpu_fact("Features")).split()}),
            "physical_cores": cores(),
            "memory_bytes": psutil.virtual_memory().total,
            "system": platform.platform(),
        },
        "python": sys.version.split()[0],
        "versions": versions,
        "revision": _revision(),
    }


def _cpu_fact(name: str) -> str:
    """What the system says of the first processor; "" where it says nothing."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(name):
                return line.split(":", 1)[1].strip()
    return ""


def _revision() -> str:
    """Git revision of the checkout that runs, or "" for an installed package."""
    command = ["git", "-C", str(Path(__file__).resolve().parent), "rev-parse", "--short", "HEAD"]
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    return ""
