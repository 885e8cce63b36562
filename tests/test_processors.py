"""Cores that may be used. Oracles: sysfs and control groups written by hand."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from autocompress import processors
from autocompress.processors import cores, time_share

LINUX = pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="only Linux tells which processors are allowed")


@LINUX
@pytest.mark.parametrize(
    ("pairs", "allowed", "count"),
    [
        (["0,4", "1,5", "2,6", "3,7", "0,4", "1,5", "2,6", "3,7"], {0, 1, 2, 3, 4, 5, 6, 7}, 4),
        (["0-1", "0-1", "2-3", "2-3"], {0, 1, 2, 3}, 2),
        (["0-1", "0-1", "2-3", "2-3"], {0, 1}, 1),
        (["0-1", "0-1", "2-3", "2-3"], {1, 2}, 2),
        (["0", "1", "2"], {1, 2}, 2),
    ],
    ids=["whole", "a set of two pairs", "one pair", "halves of two pairs", "single threads"],
)
def test_hardware_threads_of_one_core_count_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pairs: list[str], allowed: set[int], count: int
) -> None:
    """As many as measuring then pins, which takes one thread of each core."""
    for thread, siblings in enumerate(pairs):
        (tmp_path / f"cpu{thread}" / "topology").mkdir(parents=True)
        (tmp_path / f"cpu{thread}" / "topology" / "thread_siblings_list").write_text(siblings)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _process: allowed)
    monkeypatch.setattr(processors, "TOPOLOGY", tmp_path)
    monkeypatch.setattr(processors, "CGROUPS", tmp_path)
    assert cores() == count


@pytest.mark.parametrize(
    ("files", "share"),
    [
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "200000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 2.0),
        ({}, None),
    ],
    ids=["v2 unlimited", "v2", "v1 unlimited", "v1", "none"],
)
def test_a_containers_share_of_time_is_read(tmp_path: Path, files: dict[str, str], share: float | None) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert time_share(tmp_path) == share


@LINUX
@pytest.mark.parametrize(("share", "count"), [(None, 3), (2.5, 2), (0.5, 1), (9.0, 3)])
def test_no_more_cores_than_a_container_has_time_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, share: float | None, count: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _process: {0, 1, 2})
    monkeypatch.setattr(processors, "TOPOLOGY", tmp_path)
    monkeypatch.setattr("psutil.cpu_count", lambda logical: 8)
    monkeypatch.setattr(processors, "time_share", lambda: share)
    assert cores() == count
