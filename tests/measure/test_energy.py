"""Oracles: counters in the kernel's form written by hand, a library of one's own in the place of NVML."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from autocompress.measure.energy import Nvml, Rapl, open_meter, wrapped


def write_domain(powercap: Path, folder: str, name: str, microjoules: int, top: int = 1_000_000) -> None:
    (powercap / folder).mkdir(parents=True, exist_ok=True)
    (powercap / folder / "name").write_text(name + "\n")
    (powercap / folder / "energy_uj").write_text(f"{microjoules}\n")
    (powercap / folder / "max_energy_range_uj").write_text(f"{top}\n")


def test_packages_are_added_and_what_lies_in_them_or_around_them_is_not(tmp_path: Path) -> None:
    domains = {"intel-rapl:0": "package-0", "intel-rapl:0:0": "core", "intel-rapl:1": "package-1"}
    for folder, name in {**domains, "intel-rapl:2": "psys"}.items():
        write_domain(tmp_path, folder, name, 100_000)
    meter = Rapl(tmp_path)
    for folder, name in {**domains, "intel-rapl:2": "psys"}.items():
        write_domain(tmp_path, folder, name, 350_000)
    assert meter.joules() == pytest.approx(0.5)


def test_a_counter_that_starts_anew_goes_on(tmp_path: Path) -> None:
    write_domain(tmp_path, "intel-rapl:0", "package-0", 900_000)
    meter = Rapl(tmp_path)
    write_domain(tmp_path, "intel-rapl:0", "package-0", 100_000)
    assert meter.joules() == pytest.approx(0.2)
    write_domain(tmp_path, "intel-rapl:0", "package-0", 50_000)
    assert meter.joules() == pytest.approx(0.2 + 0.95)


def test_counters_are_added_with_their_own_ranges() -> None:
    assert wrapped([10, 90, 5], [30, 10, 5], [100, 100, 7]) == 20 + 20 + 0


def test_a_machine_without_counters_has_no_meter(tmp_path: Path) -> None:
    assert open_meter("cpu", tmp_path) is None
    (tmp_path / "intel-rapl:0").mkdir()
    assert open_meter("cpu", tmp_path) is None  # a domain that cannot be read


def test_a_machine_with_counters_has_one(tmp_path: Path) -> None:
    write_domain(tmp_path, "intel-rapl:0", "package-0", 1)
    meter = open_meter("cpu", tmp_path)
    assert meter is not None
    assert meter.source == "rapl"


def test_the_gpu_is_read_in_millijoules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    readings = iter([5_000, 7_500])
    library = SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByIndex=lambda index: f"gpu {index}",
        nvmlDeviceGetTotalEnergyConsumption=lambda gpu: next(readings) if gpu == "gpu 0" else None,
    )
    meter = Nvml(library)
    assert meter.joules() == 2.5
    assert meter.source == "nvml"


@pytest.mark.parametrize(
    ("visible", "gpu"), [("", "gpu 0"), ("2,0", "gpu 2"), ("GPU-8a56,1", "gpu GPU-8a56")], ids=["all", "index", "uuid"]
)
def test_the_gpu_is_the_one_that_is_timed(monkeypatch: pytest.MonkeyPatch, visible: str, gpu: str) -> None:
    """NVML counts all GPUs of the machine, CUDA those that it was shown."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    asked: list[str] = []
    library = SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByIndex=lambda index: f"gpu {index}",
        nvmlDeviceGetHandleByUUID=lambda uuid: f"gpu {uuid}",
        nvmlDeviceGetTotalEnergyConsumption=lambda gpu: asked.append(gpu) or 0,
    )
    Nvml(library)
    assert asked == [gpu]


def test_a_gpu_that_the_library_does_not_find_has_no_meter(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise RuntimeError("NVML Shared Library Not Found")

    monkeypatch.setattr("importlib.util.find_spec", lambda _name: True)
    monkeypatch.setattr("importlib.import_module", lambda _name: SimpleNamespace(nvmlInit=fail))
    assert open_meter("cuda") is None


def test_without_the_library_no_gpu_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    assert open_meter("cuda") is None
