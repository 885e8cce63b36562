"""Oracles: who holds the lock, told by a second descriptor or process; a clock set by hand."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from autocompress.errors import StorageError
from autocompress.measure.lock import NOTICE_SECONDS, DeviceLock

HOLD = (
    "import sys; from pathlib import Path; from autocompress.measure.lock import DeviceLock\n"
    "with DeviceLock('cpu', folder=Path(sys.argv[1])):\n"
    "    print('held', flush=True); sys.stdin.readline()\n"
)


def free(lock: DeviceLock) -> bool:
    """Whether another holder could have the device now."""

    class Busy(Exception):
        pass

    def give_up(_seconds: float) -> None:
        raise Busy

    other = DeviceLock(lock.device, folder=lock.path.parent, sleep=give_up)
    try:
        with other:
            return True
    except Busy:
        return False


def test_a_device_has_one_holder_and_is_free_again_after_it(tmp_path: Path) -> None:
    lock = DeviceLock("cpu", folder=tmp_path)
    assert free(lock)
    with lock:
        assert not free(lock)
        assert free(DeviceLock("cuda", folder=tmp_path))
    assert free(lock)


def test_a_lock_may_be_nested(tmp_path: Path) -> None:
    lock = DeviceLock("cpu", folder=tmp_path)
    with lock:
        with lock:
            pass
        assert not free(lock)
    assert free(lock)


def test_a_fault_inside_frees_it(tmp_path: Path) -> None:
    lock = DeviceLock("cpu", folder=tmp_path)
    with pytest.raises(RuntimeError, match="inside"), lock:
        raise RuntimeError("inside")
    assert free(lock)


def test_the_file_is_the_users_alone(tmp_path: Path) -> None:
    with DeviceLock("cpu", folder=tmp_path / "mine") as lock:
        assert stat.S_IMODE(lock.path.stat().st_mode) == 0o600
        assert stat.S_IMODE(lock.path.parent.stat().st_mode) == 0o700


def test_whoever_waits_long_hears_once_for_whom(tmp_path: Path) -> None:
    now, said = [0.0], []
    holder = DeviceLock("cpu", folder=tmp_path)
    holder.__enter__()

    def sleep(_seconds: float) -> None:
        now[0] += 1.0
        if now[0] > NOTICE_SECONDS + 3:
            holder.__exit__(None, None, None)

    with DeviceLock("cpu", said.append, folder=tmp_path, clock=lambda: now[0], sleep=sleep):
        pass
    assert len(said) == 1
    assert said[0].startswith(f"waiting to measure on cpu: process {os.getpid()} (")
    assert said[0].endswith("is measuring there")


def test_whoever_waits_shortly_hears_nothing(tmp_path: Path) -> None:
    said: list[str] = []
    holder = DeviceLock("cpu", folder=tmp_path)
    holder.__enter__()
    with DeviceLock(
        "cpu", said.append, folder=tmp_path, clock=lambda: 0.0, sleep=lambda _s: holder.__exit__(None, None, None)
    ):
        pass
    assert said == []


def test_who_measures_again_queues_behind_who_waits(tmp_path: Path) -> None:
    """A holder that leaves and comes back at once finds the gate shut until the one who waited has had its turn."""
    first, turns = DeviceLock("cpu", folder=tmp_path), []
    first.__enter__()
    held = True

    def leave_and_come_back(_seconds: float) -> None:
        nonlocal held
        if held:
            first.__exit__(None, None, None)
            held = False
            turns.append("first comes back" if free(first) else "first must wait")

    with DeviceLock("cpu", folder=tmp_path, sleep=leave_and_come_back):
        turns.append("second")
    assert turns == ["first must wait", "second"]
    assert free(first)


@pytest.mark.parametrize("end", ["leaves", "is killed"])
def test_another_process_holds_it_until_it_ends_however(tmp_path: Path, end: str) -> None:
    lock = DeviceLock("cpu", folder=tmp_path)
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdin is not None
        assert other.stdout.readline() == "held\n"
        assert not free(lock)
        assert lock.path.read_text().startswith(f"{other.pid} ")
        if end == "leaves":
            other.stdin.write("\n")
            other.stdin.flush()
        else:
            other.kill()
        other.wait()
        assert free(lock)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"file/measuring-cpu\.gate"), DeviceLock("cpu", folder=tmp_path / "file"):
        pass
