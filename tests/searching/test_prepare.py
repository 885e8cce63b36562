"""Oracles: corners listed by hand; what a tiny model's search is prepared with, worked out again plainly."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from autocompress.budgets import Budgets
from autocompress.compressing.losses import losses
from autocompress.drop import Drop
from autocompress.found import LOSSES, read_losses
from autocompress.objectives import USUAL, Objectives
from autocompress.plan import Plan, Prune
from autocompress.rules import SpaceRules
from autocompress.searching import prepare as module
from autocompress.searching.controller import Controller
from autocompress.searching.costs import weight_bytes
from autocompress.searching.prepare import SAMPLES, corners, make_staged, resources_of
from autocompress.searching.probe import DenseSetting, PrecisionFact, Probe
from autocompress.searching.seen import Clock, Teller
from autocompress.space import build_space
from tests.tiny import any_task, bank_of, profile_of

FACTS = (PrecisionFact("int8", 0.5, 0.49, 0.51, True, ""), PrecisionFact("int8-dynamic", 0.7, 0.6, 0.8, True, ""))
PROBE = Probe((DenseSetting("openvino", 1, 0.008, 0.8), DenseSetting("onnxruntime", 1, 0.010, 1.0)), FACTS,
              0.001, 0.1, 0.010)  # fmt: skip
BITS = {"kind": "linear", "precision": ["fp32", "int8"], "share": "all"}


# corners


def test_shares_of_everything_come_middle_first_and_then_blocks_by_depth(make_space):
    rules = {"groups": {"heads": [1.0, 0.5], "neurons": [1.0, 0.5, 0.25]}, "blocks": {"remove": True}, "layers": [BITS]}
    space = make_space(rules)
    found = [(origin, space.decode(values)) for origin, values in corners(space, PROBE)]
    half, least = (("uniform", space.decode(space.uniform(keep=share, precision="int8"))) for share in (0.5, 0.25))
    removed = ("seed", space.decode(space.uniform(precision="int8", removed=("net.1",))))
    assert found == [removed, removed, least, half], "of two blocks, the upper half and every second one are the same"


def test_low_ranks_of_the_middle_structure_come_second(make_space):
    ranks = {"kind": "linear", "precision": ["fp32", "int8"], "rank": [1.0, 0.5, 0.25]}
    space = make_space({"groups": {"neurons": [1.0, 0.75, 0.5, 0.25]}, "layers": [ranks]})
    found = list(corners(space, PROBE))
    assert found == [
        ("uniform", space.uniform(**values))
        for values in (
            {"keep": 0.5, "precision": "int8"},
            {"keep": 0.5, "precision": "fp32", "rank": 0.25},
            {"keep": 0.5, "precision": "int8", "rank": 0.25},
            {"keep": 0.75, "precision": "int8"},
            {"keep": 0.25, "precision": "int8"},
        )
    ]


def test_ranks_where_nothing_can_be_pruned(make_space):
    space = make_space({"layers": [{"kind": "linear", "precision": ["fp32", "int8"], "rank": [1.0, 0.5, 0.25]}]})
    found = [values for _origin, values in corners(space, PROBE)]
    assert found == [space.uniform(rank=rank, precision="int8") for rank in (0.25, 0.5)]


def test_recipes_come_last(make_space):
    recipe = {"recipe": "gradual", "sparsity": 0.5, "steps": 9}
    space = make_space({"groups": {"heads": [1.0, 0.5]}, "layers": [BITS], "learn": [None, recipe]})
    *_, (origin, values) = corners(space, PROBE)
    assert origin == "seed"
    assert space.decode(values).learn is not None
    assert len(list(corners(space, PROBE))) == 2


def test_every_level_of_zeros_is_a_corner(make_space):
    """The program leaves them alone, so that nothing else would propose any. Oracle: levels counted by hand."""
    layers = [{"kind": "linear", "precision": ["fp32", "int8"], "sparsity": [0.0, 0.5, 0.75]}]
    space = make_space({"groups": {"heads": [1.0, 0.5]}, "layers": layers, "sparsity": [0.0, 0.6]})
    plans = [space.decode(values) for _origin, values in corners(space, PROBE)]
    assert [plan.mask.sparsity for plan in plans if plan.mask] == [0.6]
    each = [{lp.mask.sparsity for lp in plan.layers.values() if lp.mask} for plan in plans]
    assert [shares for shares in each if shares] == [{0.5}, {0.75}]
    assert len(plans) == 4
    assert all(any(lp.precision == "int8" for lp in plan.layers.values()) for plan in plans)


def test_bits_alone_have_no_corners(make_space):
    assert list(corners(make_space({"layers": [BITS]}), PROBE)) == []


# what else is limited


def test_bytes_are_estimated_from_dense_as_weights_are_saved(make_trial, table):
    """Oracle: a file of 5,000 bytes, a process of 70 MB, less what the weights of a block take."""
    dense = make_trial(0, 1.0, 0.9, plan=Plan())
    dense = dense.replace(artifact=replace(dense.artifact, size_bytes=5000),
                          latency=replace(dense.latency, peak_memory_bytes=70_000_000))  # fmt: skip
    gone = Plan({"net.0": Prune(0)})
    saved = weight_bytes(Plan(), table) - weight_bytes(gone, table)
    budgets = Budgets(max_size_bytes=4000)
    found, limits = resources_of(budgets, Objectives(("latency", "quality", "memory")), [dense], table)
    assert {name: (take(Plan()), take(gone)) for name, take in found.items()} == {
        "size": (5000, 5000 - saved),
        "memory": (70_000_000, 70_000_000 - saved),
    }
    assert limits == {"size": pytest.approx(3920)}
    assert resources_of(Budgets(max_memory_bytes=50), USUAL, [dense], table)[1] == {"memory": pytest.approx(49)}
    assert resources_of(Budgets(), USUAL, [dense], table) == ({}, {})
    assert resources_of(budgets, USUAL, [], table) == ({}, {})


# a prepared search


def prepared(folder: Path, rules: dict[str, object], budgets: Budgets, said: list[str]):
    task = any_task("bert")
    bank = bank_of(task, folder)
    space = build_space(SpaceRules.model_validate({"name": "x", **rules}), bank.table, profile_of())
    shop = SimpleNamespace(root=folder, bank=bank, table=bank.table, task=task, bench=None)
    controller = Controller(folder / "study.journal", space.untrained(), True, lambda _trial: {})
    teller = Teller(said.append, said.append)
    clock = Clock(lambda: 0.0, 0.0, 1e6)
    return make_staged(shop, space, PROBE, budgets, [], controller, clock, seed=0, teller=teller)


def test_what_is_prepared_knows_losses_seconds_and_limits(tmp_path: Path) -> None:
    rules = {"groups": {"neurons": [1.0, 0.5]}, "layers": [BITS], "distill": {"steps": [0, 10]}}
    said: list[str] = []
    staged = prepared(tmp_path, rules, Budgets(max_latency_s=0.006), said)
    knapsack = staged.knapsack
    shown = [loss for loss in read_losses(tmp_path / LOSSES) if loss.measured]
    assert sorted(loss.kl for loss in shown) == pytest.approx(
        sorted(kl for row in knapsack.kl.values() for kl in row[1:])
    )
    assert {(loss.kind, loss.level) for loss in shown} == {("neurons", "50 %"), ("precision", "int8")}
    assert said[0] == "losses"
    assert said[1] == "losses of single choices: 3 of 3 measured, the others estimated"
    assert knapsack.limits["latency"] == pytest.approx(0.006 * 0.98)
    assert knapsack.work.seconds(Plan()) == pytest.approx(0.010)
    space = staged.space.untrained()
    for variable in space.structure:
        plan = space.decode({**space.uniform(), variable.name: 1})
        known = losses(bank_of(any_task("bert"), tmp_path), [plan], samples=SAMPLES)
        assert tuple(knapsack.kl[variable.name]) == (0.0, pytest.approx(known[plan], rel=1e-3))


def test_what_is_looked_at_is_kept_with_the_losses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOSS_SHARE", 0.0)
    rules = {"groups": {"heads": [1.0, 0.5], "neurons": [1.0, 0.5, 0.25]}, "layers": [BITS]}
    staged = prepared(tmp_path, rules, Budgets(), [])
    before = {(loss.scope, loss.kind, loss.level) for loss in read_losses(tmp_path / LOSSES) if loss.measured}
    estimated = [
        (v.name, level)
        for v in staged.space.structure
        for level in range(1, len(v.levels))
        if (v.name, level) not in staged.knapsack.known
    ]
    atoms = staged._look(estimated[:2], math.inf)
    after = {(loss.scope, loss.kind, loss.level) for loss in read_losses(tmp_path / LOSSES) if loss.measured}
    assert atoms.known == staged.knapsack.known | set(estimated[:2])
    assert before < after
    assert len(after) == len(before) + 2


def test_what_is_too_slow_is_not_worth_recovering(tmp_path: Path, make_trial) -> None:
    rules = {"groups": {"neurons": [1.0, 0.5]}, "distill": {"steps": [0, 10]}}
    staged = prepared(tmp_path, rules, Budgets(max_latency_s=0.006), [])
    assert staged._seen.judge.fits(make_trial(0, 0.5, 0.1)), "fast enough, whatever it loses"
    assert not staged._seen.judge.fits(make_trial(0, 0.7, 0.9))


@pytest.mark.parametrize(
    ("asked", "recovery", "fastest"),
    [
        ({}, False, True),
        ({"max_latency_s": 0.006}, False, False),
        ({"min_speedup": 2.0}, False, False),
        ({}, True, False),
    ],
    ids=["a drop", "and a latency", "and a speed-up", "with recovery"],
)
def test_the_fastest_is_sought_where_nothing_but_a_drop_is_asked(tmp_path, asked, recovery, fastest) -> None:
    rules = {"groups": {"neurons": [1.0, 0.5]}, **({"distill": {"steps": [0, 10]}} if recovery else {})}
    staged = prepared(tmp_path, rules, Budgets(max_drop=Drop(0.01, relative=False), **asked), [])
    assert (staged._seen.judge.fastest, staged._seen.judge.recovers) == (fastest, recovery)


def test_recovery_alone_needs_no_program(tmp_path: Path) -> None:
    said: list[str] = []
    staged = prepared(tmp_path, {"distill": {"steps": [0, 10]}}, Budgets(), said)
    assert staged.knapsack is None
    assert said == []
    proposal = staged.ask(math.inf)
    assert (proposal.plan, proposal.origin, proposal.rung) == (Plan(), "seed", 0)
