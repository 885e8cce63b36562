"""Stages alone, warm starts and patience through the public API, on a device whose latencies are worked out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

import autocompress
from autocompress.errors import ConfigError
from tests.searching.test_mixed import Listener
from tests.test_launch import example_task

HARDWARE = "raspberry-pi-5"
TRIALS = 8


@pytest.fixture(scope="module")
def task() -> autocompress.Task:
    return example_task()


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bits per layer with a short recovery."""
    path = tmp_path_factory.mktemp("space") / "short.yaml"
    path.write_text("layers: [{precision: [fp32, int8, int4-weights]}]\ndistill: {steps: [0, 5]}\n")
    return path


@pytest.fixture(scope="module")
def run(task: autocompress.Task, space: Path, tmp_path_factory: pytest.TempPathFactory) -> autocompress.Run:
    out = tmp_path_factory.mktemp("runs") / "first"
    return autocompress.search(task, out=out, space=space, hardware=HARDWARE, budget="10m", max_trials=TRIALS)


def again(run: autocompress.Run, task: autocompress.Task, space: Path, **settings: Any) -> autocompress.Run:
    return autocompress.search(task, out=run.folder, space=space, hardware=HARDWARE, **{"budget": "10m", **settings})


def state(run: autocompress.Run) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run.folder / "state.json").read_text())
    return found


def test_stages_are_kept_with_what_they_took(run: autocompress.Run) -> None:
    stages = {each["stage"]: each for each in state(run)["stages"]}
    assert sum(each["candidates"] for name, each in stages.items() if name != "finalists") == TRIALS
    assert stages["search"]["candidates"] == sum(t.origin in ("dense", "uniform-int8") for t in run.trials)
    assert stages["recover"]["candidates"] == sum(t.rung > 0 for t in run.trials)
    assert sum(each["seconds"] for each in stages.values()) <= state(run)["spent_s"] + 1e-6


def test_a_stage_alone_finds_more_which_is_then_graded(
    run: autocompress.Run, task: autocompress.Task, space: Path
) -> None:
    """No budget is asked of, but two more candidates: `max_trials` counts all of a run's."""
    before = run.trials
    refined = again(run, task, space, stage="refine", max_trials=TRIALS + 2)
    found = refined.trials[len(before) :]
    assert [t.rung for t in found] == [0, 0]
    assert {t.origin for t in found} <= {"refined", "sampled"}
    assert "finished" not in state(run)
    assert refined.front.part == "select"
    assert refined.entries() == json.loads((run.folder / "front.json").read_text())
    graded = again(run, task, space, stage="finalists")
    assert state(run)["finished"] == "what there is to grade is graded"
    assert graded.front.part == "confirm"
    assert {t.fingerprint for t in graded.front.points} <= {t.fingerprint for t in graded.trials if t.graded}
    again(run, task, space, stage="losses")
    assert state(run)["finished"] == "what there is to grade is graded", "nothing new was found"


def test_a_warm_start_is_evaluated_first(
    run: autocompress.Run, task: autocompress.Task, space: Path, tmp_path: Path
) -> None:
    """Oracle: the front that the earlier run has, but for the references."""
    front = {t.fingerprint for t in run.front.points}
    settings = {"space": space, "hardware": HARDWARE, "budget": "10m", "warm_start": run.folder}
    for strategy in ("staged", "joint"):
        made = autocompress.search(
            task, out=tmp_path / strategy, strategy=strategy, max_trials=2 + len(front), **settings
        )  # type: ignore[arg-type]
        references = [t for t in made.trials if t.origin in ("dense", "uniform-int8")]
        rest = [t for t in made.trials if t not in references]
        expected = front - {t.fingerprint for t in references}
        assert {t.fingerprint for t in rest[: len(expected)]} == expected
        assert {t.origin for t in rest[: len(expected)]} == {"warm-start"}
        assert yaml.safe_load((made.folder / "experiment.yaml").read_text())["warm_start"] == str(run.folder)
    other = autocompress.search(
        task, out=tmp_path / "solve", space="mixed-precision", hardware=HARDWARE, budget="10m", max_trials=5,
        warm_start=run.folder, watcher=(listener := Listener()),
    )  # fmt: skip
    untrained = {t.fingerprint for t in run.front.points if t.rung == 0}
    assert untrained <= {t.fingerprint for t in other.trials}
    trained = len(front) - len(untrained)
    assert (f"warm start: {trained} left out, which were trained" in listener.said) is (trained > 0)


def test_a_stage_of_another_strategy_is_refused(run: autocompress.Run, task: autocompress.Task, space: Path) -> None:
    with pytest.raises(ConfigError, match="--stage solve: only the strategy 'staged' has stages"):
        again(run, task, space, stage="solve", strategy="joint")


def test_patience_ends_a_joint_search_and_is_told(
    run: autocompress.Run, task: autocompress.Task, space: Path, tmp_path: Path
) -> None:
    """The device's latencies are fixed: a search of some 27 structures soon finds nothing better."""
    settings = {"space": space, "hardware": HARDWARE, "budget": "10m", "strategy": "joint"}
    made = autocompress.search(task, out=tmp_path / "joint", patience=5, **settings)  # type: ignore[arg-type]
    reason = "the hypervolume grew by less than 0.1% over the last 5 candidates"
    assert state(made)["finished"] == reason
    assert reason in made.status()
    count = len(made.trials)
    again_ = autocompress.search(task, out=tmp_path / "joint", patience=5, **settings)  # type: ignore[arg-type]
    assert len(again_.trials) == count
