"""Oracle: the user's own file, and messages that name flag and value."""

from __future__ import annotations

from pathlib import Path

import pytest

from autocompress.errors import ConfigError, DataError
from autocompress.tasks import TaskSource, load_task

FILE = """
import torch
from torch import nn
from autocompress.tasks.task import Examples, Task

def make_task():
    split = Examples({"x": torch.zeros(4, 2)}, torch.zeros(4, dtype=torch.int64))
    return Task("mine", Net(), split, split, split)

def make_nothing():
    return 3

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 2)
    def forward(self, x):
        return self.linear(x)

number = 5
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(FILE)
    return path


def test_a_users_function_makes_the_task(file: Path) -> None:
    task = load_task(TaskSource(f"{file}:make_task"))
    assert task.name == "mine"
    assert task.input_names == ("x",)


def test_a_users_file_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigError, match=r"--task nowhere\.py:make: no file nowhere\.py"):
        load_task(TaskSource("nowhere.py:make"))


def test_a_function_that_is_not_there_shows_near_names(file: Path) -> None:
    with pytest.raises(ConfigError, match="has no function 'maketask'; did you mean 'make_task'"):
        load_task(TaskSource(f"{file}:maketask"))


def test_a_name_that_is_no_function_is_refused(file: Path) -> None:
    with pytest.raises(ConfigError, match="has no function 'number'"):
        load_task(TaskSource(f"{file}:number"))


def test_a_function_that_makes_something_else_is_refused(file: Path) -> None:
    with pytest.raises(DataError, match=r"make_nothing\(\) must return an autocompress.Task, but returned int"):
        load_task(TaskSource(f"{file}:make_nothing"))


def test_an_unknown_task_shows_near_names() -> None:
    with pytest.raises(ConfigError, match="--task 'digit' is unknown; did you mean 'digits'"):
        load_task(TaskSource("digit"))


@pytest.mark.parametrize("task", ["text-classification", "image-classification", "causal-lm"])
@pytest.mark.parametrize(("given", "missing"), [({"data": "d"}, "model"), ({"model": "m"}, "data")], ids=["d", "m"])
def test_a_flag_that_is_missing_is_named(task: str, given: dict[str, str], missing: str) -> None:
    with pytest.raises(ConfigError, match=f"--task {task} needs --{missing}"):
        load_task(TaskSource(task, **given))


def test_a_users_file_finds_its_neighbours_and_may_hold_dataclasses(tmp_path: Path) -> None:
    """And what it makes is pickled by value, as for other processes. Oracle: it is there without the file."""
    import subprocess
    import sys

    import cloudpickle

    (tmp_path / "neighbour_of_mine.py").write_text("WIDTH = 2\n")
    head = (
        "from __future__ import annotations\nfrom dataclasses import dataclass\nfrom neighbour_of_mine import WIDTH\n"
    )
    body = FILE.replace("nn.Linear(2, 2)", "nn.Linear(WIDTH, 2)")
    path = tmp_path / "apart.py"
    path.write_text(head + body + "\n@dataclass\nclass Settings:\n    width: int = WIDTH\n")
    task = load_task(TaskSource(f"{path}:make_task"))
    assert "apart" not in sys.modules
    pickled = tmp_path / "task.pkl"
    pickled.write_bytes(cloudpickle.dumps(task))
    code = f"import pickle; task = pickle.load(open({str(pickled)!r}, 'rb')); print(type(task.model).__name__)"
    (tmp_path / "apart.py").unlink()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "Net\n", done.stderr
