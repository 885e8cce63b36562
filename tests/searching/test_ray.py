"""A cluster of two nodes on this machine. Oracles: the run folder, Optuna's journal, and a node that is taken away."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from torch import Tensor, nn

import autocompress
from autocompress.errors import ConfigError
from autocompress.front import Front
from autocompress.records import Trial
from autocompress.searching.ray_runner import check_ray, shared_out
from autocompress.searching.status import Silent
from tests.test_launch import example_task
from tests.tiny import _one_thread, mlp, task_of  # noqa: F401

pytest.importorskip("ray", reason="Ray is not installed")
pytestmark = pytest.mark.filterwarnings("default")  # Ray's own

ENVIRONMENT = {
    "RAY_AUTH_MODE": "disabled",  # no token in the home of whoever runs the tests
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_health_check_failure_threshold": "2",
    "RAY_TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
}
HARDWARE = "raspberry-pi-5"
README = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")
TRIALS = 7


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head and another node, one core each."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        import ray
        from ray.cluster_utils import Cluster

        made: Any = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        made.other = made.add_node(num_cpus=1)
        yield made
        ray.shutdown()
        made.shutdown()


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bits and zeros per layer, with a short recovery."""
    path = tmp_path_factory.mktemp("space") / "short.yaml"
    rule = "{match: '*', precision: [fp32, int8-dynamic, int8], rank: [1.0, 0.25]}"
    path.write_text(f"strategy: joint\nlayers: [{rule}]\ndistill: {{steps: [0, 3]}}\n")
    return path


class TakesANode(Silent):
    """Takes the cluster's second node away once some candidates are done."""

    def __init__(self, cluster: Any) -> None:
        self.cluster = cluster
        self.at: int | None = None

    def candidate(self, trial: Trial, _front: Front) -> None:
        if trial.number == TRIALS - 4:
            self.cluster.remove_node(self.cluster.other, allow_graceful=False)
            self.at = trial.number


def test_a_search_outlives_a_node(cluster: Any, space: Path, tmp_path: Path) -> None:
    watcher = TakesANode(cluster)
    run = autocompress.search(
        example_task(), out=tmp_path / "run", space=space, hardware=HARDWARE, budget="20m", max_trials=TRIALS,
        sampler="random", workers=2, ray=cluster.address, watcher=watcher,
    )  # fmt: skip
    assert watcher.at is not None
    lines = [json.loads(line) for line in (run.folder / "trials.jsonl").read_text().splitlines()]
    searched = [line for line in lines if line["quality_test"] is None]
    assert [line["number"] for line in searched] == list(range(TRIALS))
    assert len({line["fingerprint"] for line in searched}) == TRIALS
    assert {line["state"] for line in searched} == {"DONE"}, [line["error"] for line in searched]
    for trial in run.trials:
        assert trial.artifact is not None
        assert (run.folder / trial.artifact.path).stat().st_size == trial.artifact.size_bytes
    assert not list(run.folder.glob(".run-*"))


def test_tune_searches_with_constraints_and_failures(cluster: Any, tmp_path: Path) -> None:
    """The README's lines. Oracles: Tune's own table, and the trials in Optuna's journal as Optuna reads them."""
    from ray import tune
    from ray.tune.search import Searcher

    here = os.getpid()

    def loss(logits: Tensor, targets: Tensor) -> Tensor:  # the probe's recoveries go well, those of trials do not
        if os.getpid() != here:
            raise ValueError("planted")
        return nn.functional.cross_entropy(logits, targets)

    folder = tmp_path / "run"
    space = tmp_path / "space.yaml"
    rule = "{match: '*', precision: [fp32, int8-dynamic, int8], rank: [1.0, 0.25]}"
    space.write_text(f"layers: [{rule}]\ndistill: {{steps: [0, 3]}}\n")
    code = next(block for block in README.split("```python\n") if "autocompress.ray_tune" in block).split("```")[0]
    for shown, run_here in {
        'out="runs/tuned", max_drop="1pt"': "**options",
        "num_samples=20": "num_samples=3, reuse_actors=True",
        "tune_config=config": "tune_config=config, run_config=quiet",
    }.items():
        assert shown in code
        code = code.replace(shown, run_here)
    names: dict[str, Any] = {
        "autocompress": autocompress,
        "task": dataclasses.replace(example_task(), loss=loss),
        "options": {"out": folder, "space": space, "hardware": HARDWARE, "max_size": 500_000, "sampler": "random",
                    "ray": cluster.address},
        "quiet": tune.RunConfig(storage_path=str(tmp_path / "tune"), name="tiny", verbose=0),
    }  # fmt: skip
    exec(code, names)
    grid, searcher = names["results"], names["searcher"]
    run = autocompress.Run(folder)
    asked = [trial for trial in run.trials if trial.proposal >= 0]
    failed = [trial for trial in asked if trial.state == "FAILED"]
    assert len(asked) == len(grid) == 3
    assert len(failed) == len(grid.errors) >= 1
    assert all("planted" in trial.error for trial in failed)
    shown = {round(result.metrics["quality"], 9) for result in grid if not result.error}
    assert shown == {round(trial.quality or 0.0, 9) for trial in asked if trial.measured}
    storage = JournalStorage(JournalFileBackend(str(folder / "study.journal")))
    study = optuna.load_study(study_name="rung-0", storage=storage)
    told = {trial.number: trial for trial in study.trials}
    for trial in asked:
        mirrored = told[trial.proposal]
        assert mirrored.state.name == ("FAIL" if trial in failed else "COMPLETE")
        if trial not in failed:
            assert mirrored.constraints
    assert run.report().is_file()
    assert pickle.loads(pickle.dumps(searcher)) is searcher
    assert searcher.suggest("late") not in (None, Searcher.FINISHED)
    searcher.save(str(tmp_path / "searcher.json"))
    searcher.restore(str(tmp_path / "searcher.json"))
    searcher.on_trial_complete("late", error=True)
    searcher.on_trial_complete("a stranger", error=True)
    last = autocompress.Run(folder).trials[-1]
    assert (last.state, last.error, last.number) == ("FAILED", "its process died", len(run.trials) - 1)


def test_tasks_are_shared_out_so_that_each_fits_a_node() -> None:
    assert shared_out([4, 8], None) == (2, 4)
    assert shared_out([4, 8], 3) == (3, 4)
    assert shared_out([1, 1], 2) == (2, 1)
    assert shared_out([1, 8], 1) == (1, 8)
    with pytest.raises(ConfigError, match=r"--workers must be 1 to 2 on this Ray cluster \(its cores\), but got 3"):
        shared_out([1, 1], 3)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("127.0.0.1:1", "--ray 127.0.0.1:1: nothing answers there"),
        ("ray://127.0.0.1:1", "nothing answers there"),
        ("somewhere", '--ray must be "auto", "local", host:port or ray://host:port, but got \'somewhere\''),
    ],
)
def test_an_address_where_nothing_is_says_so_at_once(address: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_ray(address, None)


def test_ray_that_is_not_installed_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(ConfigError, match="Ray is not installed here; pip install"):
        check_ray("auto", None)


def test_fewer_than_one_task_is_refused() -> None:
    with pytest.raises(ConfigError, match="--workers must be 1 or more with --ray, but got 0"):
        check_ray("auto", 0)


def test_tune_measures_in_the_cluster() -> None:
    with pytest.raises(ConfigError, match="must be in the cluster"):
        autocompress.ray_tune(task_of(mlp()), ray="ray://somewhere:10001")
