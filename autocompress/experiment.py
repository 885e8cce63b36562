"""`experiment.yaml`: one search written down. The same settings as the flags of ``autocompress search``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from autocompress.errors import ConfigError
from autocompress.settings import read_yaml, validate


class Experiment(BaseModel):
    """Everything that a search is asked for; see ``autocompress search --help``.

    A run's own `experiment.yaml` is one too: its `resolved` part is what was found, and is not read back.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), coerce_numbers_to_str=True)

    task: str
    model: str | None = None
    data: str | None = None
    text_column: str | None = None
    image_column: str | None = None
    label_column: str | None = None
    space: str | None = None
    hardware: str = "cpu"
    budget: str = "30m"
    max_latency: str | None = None
    min_speedup: str | None = None
    max_drop: str | None = None
    max_size: str | None = None
    max_memory: str | None = None
    objectives: str | list[str] | None = None
    out: str | None = None
    strategy: str | None = None
    sampler: str = "auto"
    seed: int = 0
    max_trials: int | None = Field(None, ge=1)
    patience: int | None = Field(None, ge=5)
    warm_start: str | None = None
    bank_limit: str | None = None
    workers: int | None = None
    ray: str | None = None
    resolved: dict[str, Any] | None = None


#: The settings that say where the task comes from.
SOURCE_KEYS = ("task", "model", "data", "text_column", "image_column", "label_column")


def load_experiment(path: Path | None, flags: dict[str, Any]) -> Experiment:
    """The settings of a file with the flags that were given laid over them.

    Raises:
        ConfigError: all mistakes at once, naming file (or flags), key, value and remedy.
    """
    given = {key: value for key, value in flags.items() if value is not None}
    data = read_yaml(path, ConfigError) if path else {}
    if path:
        validate(Experiment, {**({"task": given["task"]} if "task" in given else {}), **data}, str(path), ConfigError)
    if "task" not in {**data, **given}:
        raise ConfigError(
            "give --task (digits, text-classification, image-classification, causal-lm or my.py:make_task)"
        )
    return validate(Experiment, {**data, **given}, "flags", ConfigError)
