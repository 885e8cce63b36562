"""`autocompress compress` and `autocompress techniques` as a user runs them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
KEYS = {
    "quality_before", "quality_after", "size_bytes_before", "size_bytes_after",
    "layers_changed", "artifact", "reloaded",
}  # fmt: skip


def autocompress(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "autocompress.cli", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plan for examples/my_task.py: half of the ranks, 8 bits."""
    path = tmp_path_factory.mktemp("plan") / "plan.json"
    path.write_text('{"layers": {"2": {"factorize": {"rank": 64}, "quantize": {"precision": "int8-dynamic"}}}}')
    return path


def test_compress_prints_one_object_with_all_that_is_asked(half: Path, tmp_path: Path) -> None:
    task = f"{ROOT / 'examples' / 'my_task.py'}:make_task"
    done = autocompress("compress", "--task", task, "--plan", str(half), "--out", str(tmp_path / "out"), "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert set(result) >= KEYS
    assert result["layers_changed"] == ["2"]
    assert result["size_bytes_after"] < result["size_bytes_before"]
    assert result["reloaded"] is True
    assert Path(result["artifact"]).is_file()


def test_a_wrong_plan_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text('{"layers": {"2": {"factorize": {"rank": 9999}}}}')
    task = f"{ROOT / 'examples' / 'my_task.py'}:make_task"
    done = autocompress("compress", "--task", task, "--plan", str(path), "--out", str(tmp_path / "out"))
    assert done.returncode == 2
    assert "layers: 2: rank must be at most 512, but got 9999" in done.stderr
    assert "Traceback" not in done.stderr


def test_techniques_are_listed_as_objects() -> None:
    done = autocompress("techniques", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found) == 40
    assert all(set(item) == {"id", "group", "summary", "settings", "paper", "example_plan"} for item in found)


def test_one_technique_shows_settings_and_example() -> None:
    done = autocompress("techniques", "kd-jsd")
    assert done.returncode == 0, done.stderr
    assert "distill.beta: 0.5" in done.stdout
    assert '"divergence": "jsd"' in done.stdout
    assert autocompress("techniques", "kd-jds").returncode == 2
