"""Oracle: values that are drawn, decoded and read back; runs written by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from autocompress.errors import ConfigError
from autocompress.plan import Distill, LayerPlan, Plan, Prune, Quantize
from autocompress.records import append_line, write_json
from autocompress.searching.warm import encode, offered, prepared, read_warm_start, rung_of

RULES = {
    "groups": {"heads": [1.0, 0.5], "neurons": [1.0, 0.5, 0.25]},
    "blocks": {"remove": True},
    "layers": [
        {"match": "net.*", "precision": ["fp32", "int8", "int4-weights"], "weight_bits": [8, 6], "rank": [1.0, 0.5]},
        {"match": "classifier", "sparsity": [0.0, 0.5], "precision": ["fp32", "int8-dynamic"]},
    ],
    "sparsity": [0.0, 0.5],
    "learn": [None, {"recipe": "gradual", "sparsity": 0.5, "steps": 9}],
    "distill": {"steps": [0, 10, 40]},
}
TASK = {"task": "t", "model": "m", "data": "d"}
RESOLVED = {"identity": "same", "maximize": True, "points": 100.0, "hardware": {"workload": {"sequence_length": 32}}}


@pytest.mark.parametrize("zeros", [False, True], ids=["ranks", "zeros"])
def test_every_plan_of_a_space_is_read_back(make_space, zeros):
    """Plans drawn from the space; where zeros cover all layers they take ranks, so both are drawn."""
    space = make_space(RULES if zeros else {**RULES, "sparsity": [0.0], "learn": [None]})
    draw = np.random.default_rng(0)
    for _ in range(40):
        values = {v.name: int(draw.integers(len(v.levels))) for v in space.variables if v.levels}
        values |= {v.name: float(draw.uniform(v.low, v.high)) for v in space.variables if not v.levels}
        plan = space.decode(values, 3)
        assert space.decode(encode(plan, space), 3) == plan


def test_what_a_space_cannot_say_is_left_out_and_recoveries_are_moved(make_space):
    """By hand: 3 of 4 heads are no level; 25 steps are nearer to 10 than to 40, a rate of 1 is beyond the interval."""
    space = make_space(RULES)
    heads, said = "net.0.attention/heads", []
    odd, even = Plan({heads: Prune(3)}), Plan({heads: Prune(2)}, distill=Distill(0.5, 2.0, 1.0, 24), seed=1)
    (values,) = offered([odd, even], space, said.append)
    plan = space.decode(values, 1)
    assert replace(plan, distill=None, seed=0) == replace(even, distill=None, seed=0)
    assert plan.distill == Distill(0.5, 2.0, 1e-3, 10)
    assert said == [
        "warm start: 1 of 2 left out, which this space cannot express",
        "warm start: 1 start with the nearest recovery that this space has",
    ]
    said.clear()
    offered([plan], space, said.append)
    assert said == []


@pytest.mark.parametrize(("steps", "rung"), [(0, 0), (5, 1), (10, 1), (39, 1), (40, 2), (99, 2)])
def test_a_rung_is_the_last_that_takes_no_more_steps(make_space, steps, rung):
    plan = Plan(distill=Distill(0.5, 2.0, 1e-3, steps)) if steps else Plan()
    assert rung_of(plan, make_space(RULES)) == rung


def test_precisions_without_a_kernel_are_left_out_and_said(table, profile):
    layer = "net.0.q"
    int8, int4 = (Plan(layers={layer: LayerPlan(quantize=Quantize(p))}) for p in ("int8", "int4-weights"))
    aware = replace(int8, distill=Distill(0.5, 2.0, 1e-3, 10, fake_quantize=True))
    learned = Plan(init="0" * 64)
    said = []
    assert prepared([int8, int4, aware, learned], table, profile, (), said.append) == (int8, int4, aware)
    assert said == ["warm start: 1 left out, which need weights that the earlier run learned"]
    said.clear()
    lesser = profile.model_copy(update={"precisions": {"linear": ("fp32", "int4-weights")}})
    found = prepared([int8, int4, aware], table, lesser, (), said.append)
    assert found == (Plan(), int4, Plan(distill=Distill(0.5, 2.0, 1e-3, 10)))
    assert said == ["warm start: int8 has no kernel on profile 'tiny'; 2 of 3 go without it"]
    assert prepared([int4], table, profile, ("int4-weights",), said.append) == (Plan(),)


# runs


@pytest.fixture
def earlier(tmp_path, table, make_trial):
    """``earlier(trials=…, **resolved)``: a run folder."""

    def make(trials=None, asked=TASK, layers=table, **resolved):
        root = tmp_path / "earlier"
        root.mkdir(exist_ok=True)
        text = yaml.safe_dump({**asked, "resolved": {**RESOLVED, **resolved}})
        (root / "experiment.yaml").write_text(text)
        write_json(root / "layers.json", layers.to_json())
        light = Plan({"net.0.attention/heads": Prune(2)}, distill=Distill(0.5, 2.0, 1e-3, 10))
        heavy = Plan({"net.0.attention/heads": Prune(2)})
        known = [make_trial(0, 1.0, 0.9, plan=Plan(), origin="dense"), make_trial(1, 0.5, 0.8, plan=light)]
        known += [make_trial(2, 0.6, 0.85, plan=heavy), make_trial(3, 0.7, 0.7, plan=Plan({"net.0": Prune(0)}))]
        (root / "trials.jsonl").unlink(missing_ok=True)
        for trial in known if trials is None else trials:
            append_line(root / "trials.jsonl", trial.to_json())
        return root

    return make


def read(folder, table, asked=TASK, root=Path("here"), **resolved):
    return read_warm_start(folder, root, table, asked, {**RESOLVED, **resolved})


def test_the_front_is_read_without_recovery_first(earlier, table):
    """By hand: of four trials the last is dominated."""
    found = read(earlier(), table)
    heads = {"net.0.attention/heads": Prune(2)}
    assert found == (Plan(heads), Plan(), Plan(heads, distill=Distill(0.5, 2.0, 1e-3, 10)))


def test_where_nothing_kept_the_budgets_there_others_may_here(earlier, table, make_trial):
    over = make_trial(1, 0.5, 0.8, plan=Plan({"net.0": Prune(0)})).replace(state="INFEASIBLE")
    dense = make_trial(0, 1.0, 0.9, plan=Plan(), origin="dense").replace(state="INFEASIBLE")
    assert read(earlier([dense, over]), table) == (over.plan, Plan())


def test_what_is_no_run_is_refused(tmp_path, table):
    with pytest.raises(ConfigError, match=r"--warm-start .*nowhere: no run there .* give the folder of an earlier"):
        read(tmp_path / "nowhere", table)


def test_the_run_itself_is_refused(earlier, table):
    with pytest.raises(ConfigError, match=r"--warm-start .*: is this very run, .*; leave --warm-start out"):
        read(earlier(), table, root=earlier())


def test_a_run_without_a_measured_trial_is_refused(earlier, table, make_trial):
    failed = make_trial(0, 1.0, 0.9).replace(state="FAILED", latency=None, quality=None)
    for trials in ([], [failed]):
        with pytest.raises(ConfigError, match=r"--warm-start .*: has measured no candidate yet; let it search first"):
            read(earlier(trials), table)


def test_a_run_of_other_layers_is_refused(earlier, table, make_table):
    with pytest.raises(
        ConfigError, match=r"is of another model: layer net\.2\.q is of \(8, 8\) there and missing here"
    ):
        read(earlier(layers=make_table(3)), table)
    with pytest.raises(ConfigError, match=r"layer net\.2\.q is missing there and of \(8, 8\) here; give a run that"):
        read(earlier(), make_table(3))


def test_a_run_of_other_weights_is_refused(earlier, table):
    with pytest.raises(ConfigError, match="is of another model: the fingerprint of its weights and data differs"):
        read(earlier(), table, identity="other")


def test_texts_cut_at_another_length_are_the_same_model(earlier, table):
    """The fingerprint covers the data, which the profile's length cuts; names tell then."""
    other = {"identity": "other", "hardware": {"workload": {"sequence_length": 128}}}
    assert len(read(earlier(), table, **other)) == 3
    with pytest.raises(ConfigError, match="is of another model: model 'm' there and 'n' here"):
        read(earlier(), table, asked={**TASK, "model": "n"}, **other)


def test_a_broken_folder_is_named(earlier, table):
    root = earlier()
    (root / "layers.json").unlink()
    with pytest.raises(ConfigError, match=r"--warm-start .*: is no whole run folder"):
        read(root, table)
    root = earlier()
    (root / "trials.jsonl").write_text("{broken\n")
    with pytest.raises(ConfigError, match=r"--warm-start .*trials\.jsonl: line 1 is not JSON"):
        read(root, table)
