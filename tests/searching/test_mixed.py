"""A whole solved search on a small task, and what its parts say. Oracles: the files it leaves, and values by hand.

On a device whose latencies are worked out, so that what is solved does not depend on how busy the machine is.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

import autocompress
from autocompress.budgets import Budgets
from autocompress.compressing.sensitivity import Sensitivity
from autocompress.plan import LayerPlan, Plan, Quantize
from autocompress.rules import SolveRule, SpaceRules
from autocompress.searching.costs import weight_bytes
from autocompress.searching.mixed import dropped_precisions, limits_of, most_sensitive, write_sensitivities
from autocompress.searching.probe import DenseSetting, PrecisionFact, Probe
from autocompress.searching.status import Silent
from autocompress.searching.units import Unit, units_of

ROOT = Path(__file__).resolve().parents[2]
HARDWARE = "raspberry-pi-5"
FACTS = (PrecisionFact("int8", 0.6, 0.59, 0.61, True, ""), PrecisionFact("int4-weights", 1.3, 1.2, 1.4, False, "slow"),
         PrecisionFact("fp16", None, None, None, False, "does not run here"))  # fmt: skip
PROBE = Probe((DenseSetting("openvino", 1, 0.008, 0.8), DenseSetting("onnxruntime", 1, 0.010, 1.0)), FACTS,
              0.005, 0.5, 0.010)  # fmt: skip


class Listener(Silent):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture(scope="module")
def task() -> autocompress.Task:
    spec = importlib.util.spec_from_file_location("my_task", ROOT / "examples" / "my_task.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.make_task()


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("space") / "solved.yaml"
    rule = "{precision: [fp32, int8, int4-weights]}"
    path.write_text(f"strategy: solve\nsolve: {{samples: 64, points: 6, refine: 2}}\nlayers: [{rule}]\n")
    return path


@pytest.fixture(scope="module")
def listener() -> Listener:
    return Listener()


@pytest.fixture(scope="module")
def run(
    task: autocompress.Task, space: Path, listener: Listener, tmp_path_factory: pytest.TempPathFactory
) -> autocompress.Run:
    out = tmp_path_factory.mktemp("runs") / "mlp"
    return autocompress.search(
        task, out=out, space=space, hardware=HARDWARE, budget="10m", max_trials=6, watcher=listener
    )


def test_references_and_corners_come_before_what_is_solved(run: autocompress.Run) -> None:
    origins = [trial.origin for trial in run.trials]
    assert origins[:3] == ["dense", "uniform-int8", "uniform"]
    assert set(origins[3:]) == {"solved"}
    corner = run.trials[2].plan
    assert {lp.precision for lp in corner.layers.values()} == {"int4-weights"}
    assert len({trial.fingerprint for trial in run.trials}) == len(run.trials)


def test_every_candidate_is_exported_and_measured(run: autocompress.Run) -> None:
    for trial in run.trials:
        assert trial.state == "DONE", trial.error
        assert trial.latency is not None
        assert trial.artifact is not None
        assert trial.plan.distill is None
        assert (run.folder / trial.artifact.path).stat().st_size == trial.artifact.size_bytes


def test_solved_plans_lie_between_dense_and_the_fastest(run: autocompress.Run) -> None:
    """Oracle: ratios that the device gives for the two ends."""
    ratios = [trial.latency.ratio for trial in run.trials if trial.latency and trial.origin == "solved"]
    fastest = min(trial.latency.ratio for trial in run.trials if trial.latency)
    assert fastest <= min(ratios)
    assert max(ratios) < 1


def test_sensitivities_are_written_for_every_layer_and_precision(run: autocompress.Run) -> None:
    rows = json.loads((run.folder / "sensitivity.json").read_text())
    assert [(row["layer"], row["precision"]) for row in rows] == [
        (name, precision) for name in ("0", "2", "4") for precision in ("int8", "int4-weights")
    ]
    for row in rows:
        assert set(row) == {
            "layer", "layers", "precision", "weight_bits", "kl", "measured", "cost_s", "size_bytes",
        }  # fmt: skip
        assert row["kl"] > 0
        assert abs(row["cost_s"]) < 0.001
        assert row["size_bytes"] < 0
        assert row["measured"] is True
    for eight, four in zip(rows[::2], rows[1::2], strict=True):
        assert four["kl"] > eight["kl"]


def test_the_sensitive_layers_are_named(run: autocompress.Run, listener: Listener) -> None:
    rows = json.loads((run.folder / "sensitivity.json").read_text())
    worst = max(rows, key=lambda row: row["kl"])
    (said,) = (text for text in listener.said if text.startswith("most sensitive layers: "))
    assert said.startswith(f"most sensitive layers: {worst['layer']} ({worst['kl']:.2g} nats in {worst['precision']})")
    assert said.count("nats") == 3


def test_the_same_call_resumes_until_the_program_has_no_more(
    run: autocompress.Run, task: autocompress.Task, space: Path
) -> None:
    before = {trial.number: trial.fingerprint for trial in run.trials}
    costs = (run.folder / "costs.json").read_bytes()
    again = autocompress.search(task, out=run.folder, space=space, hardware=HARDWARE, budget="10m", max_trials=40)
    assert (run.folder / "costs.json").read_bytes() == costs
    assert {trial.number: trial.fingerprint for trial in again.trials}.items() >= before.items()
    solved = [trial for trial in again.trials if trial.origin == "solved"]
    assert len({trial.fingerprint for trial in again.trials}) == len(again.trials)
    assert len(solved) <= 8
    state = json.loads((run.folder / "state.json").read_text())
    assert state["finished"] == "every plan that the integer program asked for is evaluated"
    assert (run.folder / "report.html").is_file()


def test_a_budget_becomes_a_limit_with_a_margin(table) -> None:
    rule = SolveRule()
    assert limits_of(Budgets(), PROBE, rule, table) == {}
    assert limits_of(Budgets(max_latency_s=0.005), PROBE, rule, table) == {"latency": pytest.approx(0.0049)}
    both = Budgets(max_latency_s=0.005, min_speedup=2.0)  # the fastest dense takes 8 ms
    assert limits_of(both, PROBE, rule, table) == {"latency": pytest.approx(0.004 * 0.98)}
    size = limits_of(Budgets(), PROBE, SolveRule(max_size=0.25), table)
    assert size == {"size": weight_bytes(Plan(), table) / 4}
    dense = weight_bytes(Plan(), table)  # beside the weights, the file has 500 bytes
    size = limits_of(Budgets(max_size_bytes=2000), PROBE, SolveRule(max_size=0.9), table, dense + 500)
    assert size == {"size": pytest.approx(0.9 * dense), "file": pytest.approx(0.98 * 2000 - 500)}


@pytest.mark.parametrize(
    ("solve", "expected"),
    [({}, {"int4-weights", "fp16"}), ({"sweep": "size"}, {"fp16"}), ({"max_size": 0.5}, {"fp16"})],
    ids=["latency", "swept-bytes", "limited-bytes"],
)
def test_slow_precisions_stay_where_bytes_count(solve: dict[str, object], expected: set[str]) -> None:
    rules = SpaceRules(name="x", strategy="solve", solve=SolveRule.model_validate(solve))
    assert dropped_precisions(PROBE, rules) == expected


def test_a_joint_space_drops_what_is_slow() -> None:
    assert dropped_precisions(PROBE, SpaceRules(name="x")) == {"int4-weights", "fp16"}


def taking(*names: str, **settings: object) -> Plan:
    return Plan(layers={name: LayerPlan(quantize=Quantize(**settings)) for name in names})


def test_the_most_sensitive_are_told_in_order_and_what_is_predicted_says_so() -> None:
    options = {
        "a": (Plan(), taking("a", precision="int8"), taking("a", precision="int4-weights")),
        "b": (Plan(), taking("b", precision="int8", weight_bits=4)),
        "c": (Plan(), taking("c", precision="int8")),
    }
    units = [Unit(name, (name,), plans) for name, plans in options.items()]
    kls = [0.1, 0.02, 0.5, 0.001]
    flat = [option for plans in options.values() for option in plans[1:]]
    errors = {option: Sensitivity(kl, kl != 0.5) for option, kl in zip(flat, kls, strict=True)}
    errors[Plan()] = Sensitivity(0.0, True)
    assert most_sensitive(units, errors, 2) == ["b (0.5 nats in int8, 4 bits, predicted)", "a (0.1 nats in int8)"]


def test_what_a_row_says_is_the_change_of_the_whole_model(table, make_space, tmp_path: Path) -> None:
    rules = {"strategy": "solve", "layers": [{"match": "net.0.up", "precision": ["fp32", "int8"]}]}
    units = units_of(make_space(rules))
    int8 = taking("net.0.up", precision="int8")
    errors = {Plan(): Sensitivity(0.0, True), int8: Sensitivity(0.25, False)}
    path = tmp_path / "sensitivity.json"
    write_sensitivities(path, units, errors, lambda plan: 0.01 - 0.002 * len(plan.layers), table)
    (row,) = json.loads(path.read_text())
    assert row == {
        "layer": "net.0.up", "layers": ["net.0.up"], "precision": "int8", "weight_bits": None, "kl": 0.25,
        "measured": False, "cost_s": pytest.approx(-0.002), "size_bytes": -(128 * 3 - 64),
    }  # fmt: skip
