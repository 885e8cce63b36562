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

from autocompress.hardware import cores

VERSIONS = ("autocompress", "torch", "onnx", "onnxruntime", "openvino", "optuna", "transformers", "numpy", "scipy")


def environment() -> dict[str, Any]:
    """What a figure depends on beside the run: machine, versions, revision."""
    versions = {}
    for name in VERSIONS:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return {
        "machine": {
            "cpu": _cpu_name(),
            "physical_cores": cores(),
            "memory_bytes": psutil.virtual_memory().total,
            "system": platform.platform(),
        },
        "python": sys.version.split()[0],
        "versions": versions,
        "revision": _revision(),
    }


def _cpu_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _revision() -> str:
    """Git revision of the checkout that runs, or "" for an installed package."""
    command = ["git", "-C", str(Path(__file__).resolve().parent), "rev-parse", "--short", "HEAD"]
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    return ""
