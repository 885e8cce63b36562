"""The README is true: its commands exist with these flags, its Python runs, its example is the shipped one."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from autocompress.cli import app

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BASH = [line for block in re.findall(r"```bash\n(.*?)```", README, flags=re.S) for line in block.splitlines()]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PYTHON = re.findall(r"```python\n(.*?)```", README, flags=re.S)


@pytest.mark.parametrize("line", BASH)
def test_commands_exist(line: str) -> None:
    words = shlex.split(line, comments=True)
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), flags=re.M)
        return
    assert words[0] == "autocompress"
    command = typer.main.get_command(app).commands[words[1]]
    known = {option for parameter in command.params for option in parameter.opts}
    assert {word for word in words[2:] if word.startswith("--")} <= known


def test_shown_task_is_the_shipped_example() -> None:
    shown = next(block for block in PYTHON if "def make_task" in block)
    assert shown in (ROOT / "examples" / "my_task.py").read_text(encoding="utf-8")


def test_shown_python_runs(tmp_path: Path) -> None:
    code = next(block for block in PYTHON if block.startswith("import autocompress"))
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False, env={**os.environ}
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) >= 1


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_pages_link_to_exist(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


SHOWN = [(0, "SpaceRules"), (1, "HardwareProfile"), (2, "HardwareProfile")]


@pytest.mark.parametrize(("place", "schema"), SHOWN, ids=["space", "profile", "chip"])
def test_settings_shown_in_the_docs_are_legal(place: int, schema: str) -> None:
    import yaml

    from autocompress.hardware import HardwareProfile
    from autocompress.rules import SpaceRules

    blocks = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "settings.md").read_text(encoding="utf-8"), flags=re.S)
    data = {"name": "shown", **yaml.safe_load(blocks[place])}
    if schema == "HardwareProfile":
        data["threads"] = 1
    {"SpaceRules": SpaceRules, "HardwareProfile": HardwareProfile}[schema].model_validate(data)
