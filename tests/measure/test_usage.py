"""Oracles: files in the kernel's form written by hand; and of this process, what must hold on any machine."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

import pytest

from autocompress.measure.cores import idle_ticks, idlest
from autocompress.measure.usage import Waiting, busiest, peak_memory_bytes, processor_times, stay_on
from autocompress.processors import parse_list

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, which only Linux has")


def write_thread(tasks: Path, thread: int, ran: int, waited: int) -> None:
    (tasks / str(thread)).mkdir(parents=True, exist_ok=True)
    (tasks / str(thread) / "schedstat").write_text(f"{ran} {waited} 7\n")


def test_a_lap_is_what_all_threads_waited_since_the_last(tmp_path: Path) -> None:
    write_thread(tmp_path, 1, 10, 1_000_000_000)
    write_thread(tmp_path, 2, 10, 500_000_000)
    waiting = Waiting(2, tmp_path)
    assert waiting.known
    write_thread(tmp_path, 1, 20, 1_250_000_000)
    write_thread(tmp_path, 2, 20, 1_500_000_000)
    assert waiting.lap() == pytest.approx(0.25 + 1.0)
    assert waiting.lap() == 0.0
    waiting.close()


def test_a_thread_that_ended_waits_no_more(tmp_path: Path) -> None:
    write_thread(tmp_path, 1, 10, 4_000_000)
    waiting = Waiting(2, tmp_path)
    (tmp_path / "1" / "schedstat").write_text("")
    assert waiting.lap() == 0.0
    waiting.close()


@pytest.mark.parametrize(("threads", "known"), [(1, True), (2, False)])
def test_where_the_kernel_does_not_count_only_one_thread_is_known(tmp_path: Path, threads: int, known: bool) -> None:
    waiting = Waiting(threads, tmp_path / "none")
    assert waiting.known == known
    assert waiting.lap() >= 0.0


@LINUX
def test_this_process_is_counted() -> None:
    waiting = Waiting(1)
    assert waiting.lap() >= 0.0
    waiting.close()
    assert processor_times()[threading.get_native_id()] > 0


def test_peak_memory_is_the_kernels_high_water_mark(tmp_path: Path) -> None:
    (tmp_path / "status").write_text("Name:\tx\nVmPeak:\t  900 kB\nVmHWM:\t  123 kB\nVmRSS:\t  100 kB\n")
    assert peak_memory_bytes(tmp_path / "status") == 123 * 1024


def test_peak_memory_without_proc_is_what_the_process_says(tmp_path: Path) -> None:
    assert 5_000_000 < peak_memory_bytes(tmp_path / "none") < 100_000_000_000


def test_the_busiest_threads_follow_the_first() -> None:
    before = {1: 100, 2: 100, 3: 100}
    after = {1: 101, 2: 150, 3: 900, 4: 300}
    assert busiest(before, after, 3, first=1) == [1, 3, 4]
    assert busiest(before, after, 1, first=1) == [1]


@LINUX
def test_threads_stay_where_they_are_put() -> None:
    before, done = os.sched_getaffinity(0), threading.Event()
    other = threading.Thread(target=done.wait)
    other.start()
    assert other.native_id is not None
    try:
        core = min(before)
        stay_on(sorted(before), {other.native_id: core})
        assert os.sched_getaffinity(other.native_id) == {core}
        assert os.sched_getaffinity(0) == before
        stay_on([], {other.native_id: max(before)})
        assert os.sched_getaffinity(other.native_id) == {core}
    finally:
        done.set()
        other.join()


# cores

STAT = "cpu  9 9 9 9 9\ncpu0 5 0 5 {0} 0 0\ncpu1 5 0 5 {1} 3 0\nctxt 12\n"


def test_idle_time_is_idle_and_waiting_for_a_disk() -> None:
    assert idle_ticks(STAT.format(100, 200)) == {0: 100, 1: 203}


@pytest.mark.parametrize(("text", "cores"), [("0", {0}), ("0-2,8", {0, 1, 2, 8}), ("3,1\n", {1, 3})])
def test_a_list_of_cores_is_read(text: str, cores: set[int]) -> None:
    assert parse_list(text) == cores


@LINUX
@pytest.mark.parametrize(("first", "order"), [(9, [0, 1]), (1, [1, 0])], ids=["second_busy", "first_busy"])
def test_the_idlest_core_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: int, order: list[int]
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _process: {0, 1})
    monkeypatch.setattr("autocompress.processors.TOPOLOGY", tmp_path)
    stat = tmp_path / "stat"
    stat.write_text(STAT.format(100, 100))
    found = idlest(2, stat, look=lambda: stat.write_text(STAT.format(100 + first, 105)) and None)
    assert found == order


@LINUX
def test_of_hardware_threads_on_one_core_one_is_taken_as_busy_as_the_busier(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "".join(f"cpu{core} 0 0 0 {{{core}}} 0\n" for core in range(4))
    for core, siblings in enumerate(["0,2", "1,3", "0,2", "1,3"]):
        (tmp_path / f"cpu{core}" / "topology").mkdir(parents=True)
        (tmp_path / f"cpu{core}" / "topology" / "thread_siblings_list").write_text(siblings)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _process: {0, 1, 2, 3})
    monkeypatch.setattr("autocompress.processors.TOPOLOGY", tmp_path)
    stat = tmp_path / "stat"
    stat.write_text(text.format(0, 0, 0, 0))
    # Core 0 is idle, but its other thread works.
    assert idlest(2, stat, look=lambda: stat.write_text(text.format(10, 8, 0, 8)) and None) == [1, 0]


def test_without_the_kernels_figures_no_core_is_chosen(tmp_path: Path) -> None:
    assert idlest(2, tmp_path / "none") == []
