"""The command line as a user meets it: exit codes, messages, resuming after a kill, starting without torch."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from autocompress import cli

ROOT = Path(__file__).resolve().parent.parent
TASK = f"{ROOT / 'examples' / 'my_task.py'}:make_task"
FLAGS = ["--task", TASK, "--hardware", "cpu-1-thread", "--budget", "5m"]


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Run the command line in this process: exit code, stdout, stderr."""
    before = sys.argv
    sys.argv = ["autocompress", *arguments]
    try:
        cli.main()
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    finally:
        sys.argv = before
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was killed with -9 after two candidates and resumed by the same command."""
    out = tmp_path_factory.mktemp("cli") / "run"
    space = out.parent / "short.yaml"
    rule = "{match: '*', precision: [fp32, int8-dynamic, int8], rank: [1.0, 0.25]}"
    space.write_text(f"layers: [{rule}]\ndistill: {{steps: [0, 10]}}\n")
    command = [sys.executable, "-m", "autocompress.cli", "search", *FLAGS, "--max-trials", "6", "--out", str(out)]
    command += ["--space", str(space)]
    first = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True)
    lines = out / "trials.jsonl"
    give_up = time.monotonic() + 300
    while not (lines.is_file() and lines.read_bytes().count(b"\n") >= 2):
        assert first.poll() is None, "the search ended before it could be killed"
        assert time.monotonic() < give_up
        time.sleep(0.02)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    kept = lines.read_bytes()
    (out / "kept.bin").write_bytes(kept)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (out / "stdout.txt").write_text(done.stdout)
    (out / "stderr.txt").write_text(done.stderr)
    return out


def test_resume_after_kill_keeps_every_line_and_repeats_nothing(run_folder: Path) -> None:
    kept = (run_folder / "kept.bin").read_bytes()
    whole = (run_folder / "trials.jsonl").read_bytes()
    finished = kept[: kept.rfind(b"\n") + 1]
    assert whole.startswith(finished)
    trials = [json.loads(line) for line in whole.splitlines()]
    searched = [t for t in trials if t["quality_test"] is None]
    assert sorted({t["number"] for t in trials}) == list(range(6))
    assert len({t["fingerprint"] for t in searched}) == len(searched)


def test_search_shows_progress_and_where_things_are(run_folder: Path) -> None:
    progress = (run_folder / "stderr.txt").read_text()
    assert "finalists" in progress
    printed = (run_folder / "stdout.txt").read_text()
    for expected in ("Pareto front", "ratio", "drop val", "report.html", "artifacts", "autocompress pick"):
        assert expected in printed


def test_front_json_is_a_list_of_objects(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _err = call(capsys, "front", str(run_folder), "--json")
    assert code == 0
    for entry in json.loads(out):
        assert {"fingerprint", "latency_ratio_best_dense", "plan"} <= set(entry)
        assert Path(entry["artifact"]).is_absolute()
        assert Path(entry["artifact"]).is_file()


def test_report_prints_its_path(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _err = call(capsys, "report", str(run_folder))
    assert code == 0
    assert Path(out.strip()).is_file()


def test_pick_and_its_exit_code_when_nothing_fits(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _out, _err = call(capsys, "pick", str(run_folder), "--max-drop", "30pt", "--out", str(tmp_path / "a"))
    assert code == 0
    assert (tmp_path / "a" / "model.onnx").is_file()
    code, _out, err = call(capsys, "pick", str(run_folder), "--min-speedup", "900x", "--out", str(tmp_path / "b"))
    assert code == 3
    assert "no model fits; the nearest is" in err
    assert "900x asked" in err


@pytest.mark.parametrize("command", ["front", "report"])
def test_reading_a_run_needs_no_torch(run_folder: Path, command: str) -> None:
    """Oracle: a process in which torch, optuna and onnx cannot be imported."""
    code = (
        "import sys; sys.modules.update(dict.fromkeys(['torch', 'optuna', 'onnx', 'transformers']));"
        f"sys.argv = ['autocompress', '{command}', {str(run_folder)!r}];"
        "from autocompress.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


BAD_CALLS = {
    "no-task": (["search"], "give --task"),
    "unknown-task": (["search", "--task", "digts"], "--task 'digts' is unknown; did you mean 'digits'"),
    "no-file": (["search", "--task", "nowhere.py:make"], "no file nowhere.py"),
    "no-function": (["search", "--task", TASK.replace("make_task", "mak_task")], "did you mean 'make_task'"),
    "no-model": (["search", "--task", "text-classification"], "needs --model"),
    "model-folder": (["search", "--task", "text-classification", "--model", "./nope", "--data", "x"], "no such folder"),
    "budget": (["search", *FLAGS[:2], "--budget", "soon"], "--budget must be a time above 0"),
    "latency": (["search", *FLAGS[:2], "--max-latency", "5"], "--max-latency must be a time above 0 such as 5ms"),
    "drop": (["search", *FLAGS[:2], "--max-drop", "1"], "--max-drop must be points such as 1pt"),
    "speedup": (["search", *FLAGS[:2], "--min-speedup", "0.5x"], "--min-speedup must be a factor of 1 or more"),
    "profile": (["search", *FLAGS[:2], "--hardware", "cpuu"], "hardware_profiles has no 'cpuu'; did you mean 'cpu'"),
    "space": (["search", *FLAGS[:2], "--space", "transformr"], "did you mean 'transformer'"),
    "sampler": (
        ["search", *FLAGS[:2], "--sampler", "nsga4"],
        "--sampler 'nsga4' is unknown; did you mean 'nsga3' or 'nsga2'",
    ),
    "seed": (["search", *FLAGS[:2], "--seed", "-1"], "--seed must be 0 or more"),
    "patience": (["search", *FLAGS[:2], "--patience", "3"], "patience: input should be greater than or equal to 5"),
    "stage": (["search", *FLAGS[:2], "--stage", "refin"], "--stage 'refin' is unknown; did you mean 'refine'"),
    "stage-first": (["search", *FLAGS[:2], "--stage", "refine"], "search without --stage first"),
    "warm-start": (["search", *FLAGS[:2], "--warm-start", "nowhere"], "--warm-start nowhere: no run there"),
    "workers": (["search", *FLAGS[:2], "--workers", "0"], "--workers must be 1 to "),
    "ray": (
        ["search", *FLAGS[:2], "--ray", "somewhere"],
        '--ray must be "auto", "local", host:port or ray://host:port',
    ),
    "ray-away": (["search", *FLAGS[:2], "--ray", "127.0.0.1:1"], "--ray 127.0.0.1:1: nothing answers there"),
    "flag": (["search", "--taks", "digits"], "No such option"),
    "run": (["front", "nowhere"], "nowhere: no run there"),
    "pick-what": (["pick", "nowhere", "--out", "x"], "no run there"),
}


@pytest.mark.parametrize(("arguments", "message"), BAD_CALLS.values(), ids=BAD_CALLS)
def test_bad_calls_say_what_is_wrong(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    code, _out, err = call(capsys, *arguments)
    assert code == 2
    assert err.startswith("autocompress: ")
    assert message in err
    assert "Traceback" not in err


def test_experiment_file_tells_all_mistakes_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "experiment.yaml"
    file.write_text("task: digits\nbudgt: 5m\nseed: many\n")
    code, _out, err = call(capsys, "search", str(file))
    assert code == 2
    assert f"{file}:" in err
    assert "budgt: unknown key; did you mean 'budget'" in err
    assert "seed:" in err
    assert "'many'" in err


def test_a_runs_own_experiment_file_is_the_same_run(run_folder: Path) -> None:
    """In a fresh process, as the example trains its model when it is loaded: it finds itself done."""
    command = [sys.executable, "-m", "autocompress.cli", "search", str(run_folder / "experiment.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "nothing left to do" in done.stderr


def test_a_layer_pattern_that_matches_nothing_shows_near_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    space = tmp_path / "mine.yaml"
    space.write_text("layers: [{match: 'encoder.*', precision: [fp32, int8]}]\n")
    code, _out, err = call(capsys, "search", *FLAGS, "--space", str(space), "--out", str(tmp_path / "run"))
    assert code == 2
    assert "layer pattern 'encoder.*' matches no layer" in err


def test_a_full_disk_stops_with_a_remedy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    usage = shutil.disk_usage(tmp_path)._replace(free=1_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage)
    code, _out, err = call(capsys, "search", *FLAGS, "--out", str(tmp_path / "run"))
    assert code == 2
    assert "1 MB left on the disk" in err


def test_interrupted_command_says_so_and_fails(capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    """A shell must not go on with `&&` after Ctrl-C."""

    def interrupted(_folder: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("autocompress.run.Run.open", interrupted)
    assert call(capsys, "front", "runs/x") == (130, "", "autocompress: stopped; the same command resumes\n")


def test_command_line_alone_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = call(capsys)
    assert (code, err) == (2, "")
    assert "search" in out
