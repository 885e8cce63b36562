"""Oracle: run folders written by hand, each of which lacks one thing."""

from __future__ import annotations

import pytest
import yaml

from autocompress.errors import ConfigError
from autocompress.plan import Distill, Plan, Prune
from autocompress.records import append_line
from autocompress.searching.alone import ALONE, check_stage, check_stage_name

RULES = {"groups": {"heads": [1.0, 0.5]}, "distill": {"steps": [0, 10]}}


@pytest.fixture
def folder(tmp_path, make_trial):
    """``folder(*plans)``: a run with a probe, dense, and a trial for each plan."""

    def make(*plans, probe=True, dense=True):
        resolved = {"maximize": True, "points": 100.0}
        (tmp_path / "experiment.yaml").write_text(yaml.safe_dump({"task": "t", "resolved": resolved}))
        if probe:
            (tmp_path / "probe.json").write_text("{}")
        trials = [make_trial(0, 1.0, 0.9, plan=Plan(), origin="dense")] if dense else []
        trials += [
            make_trial(n, 0.5, 0.8, plan=plan).replace(rung=int(plan.distill is not None))
            for n, plan in enumerate(plans, start=1)
        ]
        for trial in trials:
            append_line(tmp_path / "trials.jsonl", trial.to_json())
        return tmp_path

    return make


def test_an_unknown_stage_is_refused_with_near_names():
    for stage in (None, *ALONE):
        check_stage_name(stage)
    with pytest.raises(ConfigError, match="--stage 'refin' is unknown; did you mean 'refine'"):
        check_stage_name("refin")


def test_a_stage_that_has_what_it_needs_may_run(folder, make_space):
    root = folder(Plan({"net.0.attention/heads": Prune(2)}))
    (root / "bank").mkdir()
    (root / "bank" / "sensitivity-1.safetensors").touch()
    for stage in ALONE:
        check_stage(stage, root, make_space(RULES))


@pytest.mark.parametrize("strategy", ["joint"])
def test_another_strategy_has_no_stages(folder, make_space, strategy):
    with pytest.raises(ConfigError, match=r"--stage refine: only the strategy 'staged' has .* this run's is 'joint'"):
        check_stage("refine", folder(), make_space({**RULES, "strategy": strategy}))


def test_a_space_without_the_stage_is_refused(folder, make_space):
    with pytest.raises(ConfigError, match=r"--stage recover: this space has no recovery; give its distill\.steps"):
        check_stage("recover", folder(), make_space({"groups": RULES["groups"]}))
    with pytest.raises(
        ConfigError, match="--stage solve: this space chooses nothing but the recovery; run --stage rec"
    ):
        check_stage("solve", folder(), make_space({"distill": {"steps": [0, 10]}}))


@pytest.mark.parametrize("stage", ALONE)
@pytest.mark.parametrize("kept", [{"probe": False}, {"dense": False}])
def test_a_folder_without_a_begun_search_is_refused(folder, make_space, stage, kept):
    with pytest.raises(ConfigError, match=f"--stage {stage}: .* holds no search that .*; search without --stage first"):
        check_stage(stage, folder(**kept), make_space(RULES))


def test_what_to_run_first_is_named(folder, make_space):
    space, recovered = make_space(RULES), Plan(distill=Distill(0.5, 2.0, 1e-3, 10))
    root = folder(recovered)
    with pytest.raises(ConfigError, match=r"--stage solve: .* holds no losses of .*; run --stage losses first"):
        check_stage("solve", root, space)
    for stage in ("refine", "recover"):
        with pytest.raises(ConfigError, match=f"--stage {stage}: .* holds no measured .*; run --stage solve first"):
            check_stage(stage, root, space)
