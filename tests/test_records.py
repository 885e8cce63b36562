"""Oracles: the JSON round trip, a file cut at every byte, a disk that refuses (monkeypatched `os`)."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autocompress.errors import AutocompressError, PlanError, RunMismatchError, StorageError
from autocompress.plan import Plan, Prune
from autocompress.records import (
    Trial,
    append_line,
    cut_torn_line,
    read_lines,
    read_scores,
    read_trials,
    storage_errors,
    trial_from_json,
    write_atomic,
    write_json,
    write_scores,
)

# trials


def test_trial_round_trip_through_json(make_trial):
    trial = make_trial(3, 0.5, 0.9, 0.02, Plan({"g": Prune(1)}), state="INFEASIBLE", error="too slow")
    assert trial_from_json(json.loads(json.dumps(trial.to_json()))) == trial


def test_unmeasured_trial_round_trip_through_json():
    trial = Trial(0, Plan(), "FAILED", "seed", error="export: no kernel")
    assert not trial.measured
    assert trial_from_json(json.loads(json.dumps(trial.to_json()))) == trial


def test_a_trial_is_measured_only_with_latency_and_quality(make_trial):
    trial = make_trial(0, 1.0, 0.9)
    assert trial.measured
    assert not trial.replace(latency=None).measured
    assert not trial.replace(quality=None).measured
    assert trial.replace(quality=0.0).measured


def test_a_trial_whose_plan_was_edited_is_refused(make_trial):
    data = make_trial(7, 0.5, 0.9).to_json()
    data["plan"]["seed"] = 99
    with pytest.raises(RunMismatchError, match=r"trial 7: its plan's fingerprint is .*the file was edited"):
        trial_from_json(data)


def test_a_trial_with_an_illegal_plan_is_refused(make_trial):
    data = make_trial(7, 0.5, 0.9).to_json()
    data["plan"]["distil"] = None
    with pytest.raises(PlanError, match="unknown key 'distil'; did you mean 'distill'"):
        trial_from_json(data)


def test_read_trials_sorts_by_number_and_the_later_line_wins(tmp_path, make_trial):
    file = tmp_path / "trials.jsonl"
    first, second = make_trial(0, 1.0, 0.9), make_trial(1, 0.5, 0.8)
    for trial in (second, first, second.replace(quality_test=0.79)):
        append_line(file, trial.to_json())
    assert read_trials(file) == [first, second.replace(quality_test=0.79)]


def test_a_line_from_before_there_were_parts_is_read_without_them(tmp_path, make_trial):
    data = make_trial(0, 1.0, 0.9).to_json()
    del data["quality_confirm"], data["quality_confirm_stderr"]
    append_line(tmp_path / "trials.jsonl", data)
    (trial,) = read_trials(tmp_path / "trials.jsonl")
    assert (trial.quality_on("select"), trial.quality_on("confirm")) == (0.9, None)


def test_a_trial_is_graded_with_report_latency_and_a_test_figure(make_trial):
    trial = make_trial(0, 1.0, 0.9)
    timed = trial.replace(latency=replace(trial.latency, tier="report"))
    assert not trial.replace(quality_test=0.8).graded
    assert not timed.graded
    assert timed.replace(quality_test=0.8).graded


def test_scores_come_back_by_fingerprint(tmp_path, make_trial):
    with_scores, without = make_trial(0, 1.0, 0.9), make_trial(1, 0.5, 0.8)
    write_scores(tmp_path / with_scores.artifact.path, np.array([1.0, 0.0, 2.5]))
    failed = without.replace(artifact=None)
    found = read_scores(tmp_path, [with_scores, without, failed])
    assert {name: values.tolist() for name, values in found.items()} == {with_scores.fingerprint: [1.0, 0.0, 2.5]}


# files of lines


def test_lines_come_back_as_written(tmp_path):
    file = tmp_path / "deep" / "er" / "a.jsonl"
    rows = [{"a": 1}, {"b": "x\ny λ"}, {}]
    for row in rows:
        append_line(file, row)
    assert list(read_lines(file)) == rows
    assert file.read_bytes().count(b"\n") == len(rows)


def test_no_file_is_no_lines(tmp_path):
    assert list(read_lines(tmp_path / "none.jsonl")) == []
    assert read_trials(tmp_path / "none.jsonl") == []


def test_a_file_cut_at_any_byte_keeps_its_whole_lines_and_can_be_continued(tmp_path):
    # The kill in mid-write: every prefix of the file is tried.
    rows = [{"n": 0, "t": "é"}, {"n": 1, "t": "λ→"}]
    whole = b"".join(json.dumps(r, ensure_ascii=False).encode() + b"\n" for r in rows)
    file = tmp_path / "a.jsonl"
    for length in range(len(whole) + 1):
        file.write_bytes(whole[:length])
        kept = rows[: whole[:length].count(b"\n")]
        assert list(read_lines(file)) == kept
        append_line(file, {"n": 9})
        assert list(read_lines(file)) == [*kept, {"n": 9}]
        assert file.read_bytes().count(b"\n") == len(kept) + 1


@given(lines=st.lists(st.binary(max_size=5).map(lambda b: b.replace(b"\n", b"")), max_size=4), torn=st.binary())
def test_cut_torn_line_keeps_what_ends_in_a_newline(tmp_path_factory, lines, torn):
    file = tmp_path_factory.mktemp("cut") / "a"
    whole, torn = b"".join(line + b"\n" for line in lines), torn.replace(b"\n", b"")
    file.write_bytes(whole + torn)
    cut_torn_line(file)
    assert file.read_bytes() == whole


def test_cut_torn_line_of_a_missing_file_makes_none(tmp_path):
    cut_torn_line(tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_process_killed_in_mid_write_loses_only_its_own_line(tmp_path):
    file = tmp_path / "a.jsonl"
    code = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from autocompress.records import append_line\n"
        "file = Path(sys.argv[1])\n"
        "append_line(file, {'n': 0})\n"
        "with file.open('ab') as out:\n"
        '    out.write(b\'{"n": 1, "t": \')\n'
        "    out.flush()\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(file)], check=False)
    assert done.returncode == -9
    append_line(file, {"n": 2})
    assert list(read_lines(file)) == [{"n": 0}, {"n": 2}]


def test_a_broken_line_inside_names_file_and_line(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text('{"n": 0}\n{"n": \n{"n": 2}\n')
    with pytest.raises(AutocompressError, match=r"a\.jsonl: line 2 is not JSON .*remove it to go on"):
        read_lines(file)


@pytest.mark.parametrize(
    "line", [pytest.param('{"number":1}', id="no_plan"), pytest.param("3", id="no_object"),
             pytest.param('{"number":1,"plan":{},"state":"DONE","origin":"seed","new":1}', id="newer_field")],
)  # fmt: skip
def test_a_line_that_is_no_trial_names_the_file(tmp_path, line):
    file = tmp_path / "trials.jsonl"
    file.write_text(line + "\n")
    with pytest.raises(AutocompressError, match=r"trials\.jsonl"):
        read_trials(file)


# writing whole files


def refuse(code: int):
    def fail(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    return fail


@pytest.mark.parametrize("content", ["text λ\n", b"\x00\xff"], ids=["text", "bytes"])
def test_write_atomic_makes_folders_and_writes_all(tmp_path, content):
    file = tmp_path / "a" / "b.bin"
    write_atomic(file, "old")
    write_atomic(file, content)
    assert file.read_bytes() == (content.encode() if isinstance(content, str) else content)
    assert [p.name for p in file.parent.iterdir()] == ["b.bin"]
    assert file.stat().st_mode & 0o777 == 0o644


def test_write_json_reads_back(tmp_path):
    write_json(tmp_path / "a.json", {"a": [1, None]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": [1, None]}


@pytest.mark.parametrize("call", ["replace", "fsync", "chmod"])
def test_write_atomic_leaves_the_old_file_and_no_part_when_a_step_fails(tmp_path, monkeypatch, call):
    file = tmp_path / "a.json"
    write_atomic(file, "old")
    monkeypatch.setattr(os, call, refuse(errno.EIO))
    with pytest.raises(OSError, match="Input/output error"):
        write_atomic(file, "new")
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_write_atomic_leaves_no_part_when_it_is_interrupted(tmp_path, monkeypatch):
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomic(tmp_path / "a.json", "new")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT], ids=["no_space", "quota"])
@pytest.mark.parametrize(
    "write",
    [
        pytest.param(lambda path: write_atomic(path, "new"), id="write_atomic"),
        pytest.param(lambda path: append_line(path, {"n": 1}), id="append_line"),
    ],
)
def test_a_full_disk_names_the_path_and_the_remedy(tmp_path, monkeypatch, write, code):
    file = tmp_path / "a.jsonl"
    append_line(file, {"n": 0})
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse(code))
        with pytest.raises(StorageError, match=r"a\.jsonl: no space left on the disk; free some and run the same"):
            write(file)
    assert next(iter(read_lines(file))) == {"n": 0}
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_really_full_device_is_a_storage_error():
    def write() -> None:
        with storage_errors(Path("/dev/full")), open("/dev/full", "w") as file:
            file.write("x")

    with pytest.raises(StorageError, match="/dev/full: no space left"):
        write()


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR])
def test_a_refused_place_asks_for_another(tmp_path, monkeypatch, code):
    monkeypatch.setattr(os, "replace", refuse(code))
    with pytest.raises(StorageError, match=r"a\.json: cannot be written \(.+\); choose another --out"):
        write_atomic(tmp_path / "a.json", "x")


@pytest.mark.parametrize(
    "below",
    [
        pytest.param("run", id="folder_itself"),
        pytest.param("run/deeper", id="folder_above"),
    ],
)
def test_a_file_in_the_place_of_a_folder_asks_for_another(tmp_path, below):
    (tmp_path / "run").write_text("a file")
    with pytest.raises(StorageError, match=r"a\.json: cannot be written .*choose another --out"):
        write_atomic(tmp_path / below / "a.json", "x")
