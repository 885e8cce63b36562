"""Energy that the machine counts itself: RAPL for processors, NVML for NVIDIA GPUs. Nothing is modelled here."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from autocompress.runtimes import Device

POWERCAP = Path("/sys/class/powercap")

EnergySource = Literal["rapl", "nvml"]


class Rapl:
    """Joules of all processor packages since the meter was made.

    Reads ``energy_uj`` of the domains named package-N; what lies inside a package (cores, memory) is in its figure.
    The counter starts anew at ``max_energy_range_uj``, which takes a minute or more: read it more often than that.

    Raises:
        OSError: there is no domain, or it cannot be read (newer kernels let only root).
    """

    source: EnergySource = "rapl"

    def __init__(self, powercap: Path = POWERCAP) -> None:
        self._domains = [
            path for path in sorted(powercap.glob("intel-rapl:*")) if (path / "name").read_text().startswith("package")
        ]
        if not self._domains:
            raise FileNotFoundError(f"{powercap}: no intel-rapl package")
        self._ranges = [int((path / "max_energy_range_uj").read_text()) for path in self._domains]
        self._last = self._read()
        self._microjoules = 0

    def joules(self) -> float:
        """Joules since the meter was made."""
        now = self._read()
        self._microjoules += wrapped(self._last, now, self._ranges)
        self._last = now
        return self._microjoules / 1e6

    def _read(self) -> list[int]:
        return [int((path / "energy_uj").read_text()) for path in self._domains]


def wrapped(before: Sequence[int], after: Sequence[int], ranges: Sequence[int]) -> int:
    """Sum of differences of counters that run from 0 to their range, and start anew at most once in between."""
    steps = zip(before, after, ranges, strict=True)
    return sum(late - early if late >= early else late + top - early for early, late, top in steps)


class Nvml:
    """Joules of the first GPU that this process sees since the meter was made; needs the package pynvml.

    From nvmlDeviceGetTotalEnergyConsumption, mJ since the driver was loaded (Volta and later). NVML itself does not
    heed CUDA_VISIBLE_DEVICES, whose first entry is the GPU that is timed.
    """

    source: EnergySource = "nvml"

    def __init__(self, nvml: Any) -> None:
        nvml.nvmlInit()
        first = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0].strip()
        if first and not first.isdigit():
            self._gpu = nvml.nvmlDeviceGetHandleByUUID(first)
        else:
            self._gpu = nvml.nvmlDeviceGetHandleByIndex(int(first or 0))
        self._nvml = nvml
        self._begun = nvml.nvmlDeviceGetTotalEnergyConsumption(self._gpu)

    def joules(self) -> float:
        """Joules since the meter was made."""
        return float(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._gpu) - self._begun) / 1e3


def open_meter(device: Device, powercap: Path = POWERCAP) -> Rapl | Nvml | None:
    """The meter of a device, or None where this machine or this user has none."""
    if device == "cpu":
        with contextlib.suppress(OSError, ValueError):
            return Rapl(powercap)
        return None
    if not importlib.util.find_spec("pynvml"):
        return None
    with contextlib.suppress(Exception):  # NVMLError has no base that can be named without the package
        return Nvml(importlib.import_module("pynvml"))
    return None
