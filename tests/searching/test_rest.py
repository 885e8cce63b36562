"""Oracle: what the kernel says of processes that the test started."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from autocompress.errors import MeasureError
from autocompress.searching.rest import all_at_rest, at_rest

SLEEPS = "import time; time.sleep(60)"
PARENT = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {SLEEPS!r}])"
WORKS = """\
import sys, time
from pathlib import Path
from autocompress.searching.rest import at_work
with at_work(Path(sys.argv[1])):
    print("begun", flush=True)
    time.sleep(60)
"""


def stopped(pid: int) -> bool:
    return psutil.Process(pid).status() == psutil.STATUS_STOPPED


def worker(folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", WORKS, str(folder)], stdout=subprocess.PIPE, text=True)


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    if process.stdout:
        process.stdout.close()


@pytest.fixture
def family() -> Iterator[list[int]]:
    """A process and the one that it started."""
    parent = subprocess.Popen([sys.executable, "-c", PARENT])
    try:
        while not (children := psutil.Process(parent.pid).children()):
            time.sleep(0.01)
        yield [parent.pid, children[0].pid]
        children[0].kill()
    finally:
        parent.kill()
        parent.wait()


def test_a_process_rests_with_all_that_it_started(family: list[int]) -> None:
    with at_rest(family[:1]):
        assert [stopped(pid) for pid in family] == [True, True]
    assert not any(stopped(pid) for pid in family)


def test_what_rests_goes_on_after_a_fault(family: list[int]) -> None:
    with pytest.raises(ValueError, match="planted"), at_rest(family[:1]):
        raise ValueError("planted")
    assert not any(stopped(pid) for pid in family)


def test_a_process_that_ended_needs_no_rest() -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    with at_rest([gone.pid]):
        pass


def test_a_strangers_process_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(_process: psutil.Process) -> None:
        raise psutil.AccessDenied

    monkeypatch.setattr(psutil.Process, "suspend", denied)
    with (
        pytest.raises(MeasureError, match=rf"process {os.getpid()} works on this machine for another user"),
        at_rest([os.getpid()]),
    ):
        pass


def test_those_at_work_rest_and_nobody_begins(tmp_path: Path) -> None:
    first = worker(tmp_path)
    assert first.stdout is not None
    assert first.stdout.readline() == "begun\n"
    (tmp_path / "999999999").write_text("1.0")
    with all_at_rest(tmp_path):
        assert stopped(first.pid)
        assert not (tmp_path / "999999999").exists(), "the mark of a process that is no more"
        second = worker(tmp_path)
        while not (tmp_path / str(second.pid)).exists():
            time.sleep(0.01)
        assert second.stdout is not None
        assert select.select([second.stdout], [], [], 0.2)[0] == []
    assert second.stdout.readline() == "begun\n"
    assert not stopped(first.pid)
    end(first)
    end(second)
