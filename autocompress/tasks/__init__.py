"""Tasks: what is compressed, with which data, by which metric. `load_task` finds one by name or in a user's file."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from autocompress.errors import ConfigError, DataError, near
from autocompress.tasks.task import Task

#: Ready tasks; a user's own is ``file.py:function``.
NAMES = ("digits", "text-classification", "image-classification", "causal-lm")


@dataclass(frozen=True)
class TaskSource:
    """Where a task comes from, as the user says it.

    Attributes:
        task: one of `NAMES`, or ``file.py:function``.
        model, data: folder, file or hub name; for the ready tasks but the demo.
        text_column, image_column, label_column: of the data; guessed when None.
        student: folder or hub name of another network that is compressed in the model's place, with the model as its
            teacher; for the ready tasks but the demo.
    """

    task: str
    model: str | None = None
    data: str | None = None
    text_column: str | None = None
    image_column: str | None = None
    label_column: str | None = None
    student: str | None = None


#: Ready tasks whose students can be loaded by name, and transformers' class for them.
_STUDENTS = {
    "text-classification": "AutoModelForSequenceClassification",
    "image-classification": "AutoModelForImageClassification",
    "causal-lm": "AutoModelForCausalLM",
}


def load_task(source: TaskSource, max_length: int | None = None, say: Callable[[str], None] = print) -> Task:
    """The task that a source means.

    Args:
        source: see there.
        max_length: tokens per text, from the profile's workload.
        say: told about work that takes long, such as training the demo's reference model.

    Raises:
        ConfigError, ModelError, DataError: naming flag and value.
    """
    task = _load(source, max_length, say)
    if source.student is None:
        return task
    if source.task not in _STUDENTS:
        raise ConfigError(
            f"--student {source.student}: is for {', '.join(_STUDENTS)}; a task of one's own gives its own"
        )
    import transformers

    from autocompress.tasks.hub import load_model

    return replace(task, student=load_model(getattr(transformers, _STUDENTS[source.task]), source.student, False))


def _load(source: TaskSource, max_length: int | None, say: Callable[[str], None]) -> Task:
    if ".py:" in source.task:
        return _users_task(source.task)
    if source.task not in NAMES:
        raise ConfigError(f"--task {source.task!r} is unknown{near(source.task, NAMES)} (or give my.py:make_task)")
    if source.task == "digits":
        from autocompress.tasks.digits import make_digits

        return make_digits(say)
    for flag in ("model", "data"):
        if getattr(source, flag) is None:
            raise ConfigError(f"--task {source.task} needs --{flag}")
    assert source.model is not None
    assert source.data is not None
    if source.task == "text-classification":
        from autocompress.tasks.text import make_text_classification

        return make_text_classification(
            source.model, source.data, source.text_column, source.label_column, max_length or 128
        )
    if source.task == "causal-lm":
        from autocompress.tasks.causal_lm import make_causal_lm

        return make_causal_lm(source.model, source.data, source.text_column, max_length or 128)
    from autocompress.tasks.image import make_image_classification

    return make_image_classification(source.model, source.data, source.image_column, source.label_column)


def _users_task(spec: str) -> Task:
    file, _, function = spec.rpartition(":")
    path = Path(file)
    if not path.is_file():
        raise ConfigError(f"--task {spec}: no file {file}")
    module_spec = importlib.util.spec_from_file_location(path.stem, path)
    assert module_spec is not None
    assert module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    folder = str(path.parent.resolve())
    if folder not in sys.path:
        sys.path.insert(0, folder)  # for good: what it makes may import its neighbours later
    with _known(module):
        try:
            module_spec.loader.exec_module(module)
        except Exception as fault:  # the file is the user's: whatever it raises
            raise ConfigError(f"--task {spec}: {file} cannot be imported: {type(fault).__name__}: {fault}") from fault
        maker: Any = getattr(module, function, None)
        if not callable(maker):
            names = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
            raise ConfigError(f"--task {spec}: {file} has no function {function!r}{near(function, names)}")
        task = maker()
    if not isinstance(task, Task):
        raise DataError(
            f"--task {spec}: {function}() must return an autocompress.Task, but returned {type(task).__name__}"
        )
    return task


@contextlib.contextmanager
def _known(module: ModuleType) -> Iterator[None]:
    """A module that can be looked up by its name, as dataclasses do with their own, for a while.

    Not for good: what is pickled for other processes would then be sought there under that name.
    """
    before = sys.modules.get(module.__name__)
    sys.modules[module.__name__] = module
    try:
        yield
    finally:
        if before is None:
            del sys.modules[module.__name__]
        else:
            sys.modules[module.__name__] = before
