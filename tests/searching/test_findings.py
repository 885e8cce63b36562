"""Oracles: planted qualities of which one setting decides; choices listed by hand."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from autocompress.found import Audit, Found, Loss, read_found
from autocompress.plan import Distill, Plan, Prune
from autocompress.searching.atoms import Atoms
from autocompress.searching.controller import LEAST_TOLD
from autocompress.searching.findings import found_by, joint_importances, keep_found, losses_of, recovery_importances
from autocompress.searching.parts import parts_of

RULES = {
    "groups": {"neurons": [1.0, 0.5]},
    "distill": {
        "steps": [0, 10, 40],
        "temperature": {"low": 2.0, "high": 2.0},
        "learning_rate": {"low": 1e-4, "high": 3e-3, "log": True},
    },
}


def recoveries(make_trial, count, quality, structures=2):
    """`count` recoveries of each structure, which themselves lie far apart; quality by learning rate, λ, steps."""
    trials = []
    for number in range(structures * count):
        place, of = divmod(number, structures)
        rate, soft, steps = 10.0 ** -(2.6 + place % 5 / 3), (place * 7 % count) / count, (10, 40)[place % 2]
        distill = Distill(soft, 2.0, rate, steps)
        plan = Plan({"net.0.mlp/neurons": Prune(1 + of)}, distill=distill)
        value = 0.2 + 0.5 * of + quality(rate, soft, steps)
        trials.append(make_trial(number, 0.5, value, plan=plan, rung=1 + (steps == 40)))
    return trials


@pytest.mark.parametrize("maximize", [True, False])
def test_the_setting_that_decides_within_structures_is_found(make_space, make_trial, maximize):
    """Oracle: quality by learning rate alone, though the structures lie 0.5 apart."""
    sign = 1 if maximize else -1
    trials = recoveries(make_trial, 12, lambda rate, _soft, _steps: -sign * 0.05 * abs(math.log10(rate) + 3))
    found = recovery_importances(make_space(RULES), trials, maximize)
    assert (found.of, found.count) == ("recovery", 24)
    assert {share.name for share in found.shares} == {"learning_rate", "soft_weight", "steps"}
    assert found.shares[0].name == "learning_rate"
    assert found.shares[0].shown
    assert found.shares[0].share > 0.8
    assert not any(share.shown for share in found.shares[1:])


def test_what_was_recovered_once_and_what_failed(make_space, make_trial):
    """The former tells nothing; the latter did as badly as the worst of its structure."""
    trials = recoveries(make_trial, 12, lambda _rate, soft, _steps: 0.1 * (soft > 0))
    alone = make_trial(99, 0.5, 0.9, plan=Plan({"net.1.mlp/neurons": Prune(3)}, distill=Distill(steps=10)), rung=1)
    space = make_space(RULES)
    assert recovery_importances(space, [*trials, alone], True) == recovery_importances(space, trials, True)
    failed = [t.replace(state="FAILED", quality=None) if t.plan.distill.steps == 40 else t for t in trials]
    (first, *_others) = recovery_importances(space, failed, True).shares
    assert first.name == "steps"


def test_recoveries_of_an_earlier_run_are_left_out(make_space, make_trial):
    """Their steps are none of this space."""
    trials = recoveries(make_trial, 12, lambda rate, _soft, _steps: rate)
    plan = replace(trials[0].plan, distill=replace(trials[0].plan.distill, steps=25))
    earlier = make_trial(99, 0.5, 0.9, plan=plan, rung=1, origin="warm-start")
    space = make_space(RULES)
    assert recovery_importances(space, [*trials, earlier], True) == recovery_importances(space, trials, True)


def test_few_recoveries_tell_nothing(make_space, make_trial):
    trials = recoveries(make_trial, LEAST_TOLD - 1, lambda rate, _soft, _steps: rate, structures=1)
    found = recovery_importances(make_space(RULES), trials, True)
    assert (found.count, found.least, found.shares) == (LEAST_TOLD - 1, LEAST_TOLD, ())


def test_a_joint_study_is_told_by_groups(make_space, make_trial):
    """Oracle: latency by the bits of one block, quality by the steps."""
    space = make_space({**RULES, "layers": [{"match": "net.*", "precision": ["fp32", "int8"], "share": "block"}]})
    bits, *_ = (v.name for v in space.variables if v.name.startswith("precision:net.0"))
    values, trials = {}, []
    for number in range(32):
        chosen = {
            v.name: (number >> i) % 2 if v.levels else 0.5 * (v.low + v.high) for i, v in enumerate(space.variables)
        }
        trial = make_trial(number, 0.9 - 0.4 * chosen[bits], 0.8 + 0.1 * chosen["steps"], plan=Plan(seed=number))
        values[trial.fingerprint] = chosen
        trials.append(trial)
    latency, quality = joint_importances(space, trials, lambda trial: values[trial.fingerprint])
    assert [(one.of, one.count) for one in (latency, quality)] == [("latency", 32), ("quality", 32)]
    assert latency.shares[0].name == "bits"
    assert quality.shares[0].name == "recovery"
    assert {share.name for share in latency.shares} == {"structure", "bits", "recovery"}
    assert latency.shares[0].share == pytest.approx(1.0, abs=0.05)
    assert latency.shares[0].shown
    assert quality.shares[0].shown


def test_audits_are_found_kept_and_told(make_space, make_trial, tmp_path: Path):
    trials = []
    for place in range(4):
        for rung in (0, 1):
            plan = Plan({"net.0.mlp/neurons": Prune(1 + place)}, distill=Distill(steps=10) if rung else None)
            trials.append(
                make_trial(2 * place + rung, 0.2 + 0.1 * place, 0.5 + 0.1 * place + 0.05 * rung, plan=plan, rung=rung)
            )
    found = found_by(make_space(RULES), trials, True)
    (audit,) = found.audits
    below, above = (pytest.approx(values) for values in ((0.5, 0.6, 0.7, 0.8), (0.55, 0.65, 0.75, 0.85)))
    assert replace(audit, correlation=1.0) == Audit(0, 1, 0.2, pytest.approx(0.5), 4, 1.0, below, above)
    said: list[str] = []
    keep_found(found, tmp_path, said.append)
    assert said == [audit.words()]
    assert read_found(tmp_path / "search.json") == found
    json.loads((tmp_path / "search.json").read_text())


def test_nothing_is_found_without_recovery(make_space, make_trial):
    assert found_by(make_space({"groups": {"neurons": [1.0, 0.5]}}), [make_trial(0, 0.5, 0.5)], True) == Found()


def test_losses_name_blocks_layers_and_rules(make_space):
    """Oracle: the list by hand."""
    rules = {
        "groups": {"heads": [1.0, 0.75], "neurons": [1.0, 0.375]},
        "blocks": {"remove": True},
        "layers": [
            {"match": "net.*", "kind": "linear", "rank": [1.0, 0.5], "share": "block"},
            {"match": "*", "kind": "embedding", "precision": ["fp32", "int8-weights"], "share": "all"},
            {"match": "classifier", "precision": ["fp32", "int8"]},
        ],
    }
    space = make_space(rules)
    parts = parts_of(space)
    kl = {v.name: tuple(0.1 * level for level in range(len(v.levels))) for v in space.structure}
    measured = frozenset({("keep:net.0.attention/heads", 1)})
    found = losses_of(space, parts, Atoms(kl, 1, len(kl), measured))
    names = {(loss.scope, loss.kind, loss.level) for loss in found}
    assert names == {
        *((f"net.{i}", kind, level) for i in (0, 1) for kind, level in (
            ("heads", "75 %"), ("neurons", "37.5 %"), ("remove", "block"), ("rank", "50 %"))),
        ("embed", "precision", "int8-weights"),
        ("classifier", "precision", "int8"),
    }  # fmt: skip
    assert Loss("net.0", "heads", "75 %", 0.1, True) in found
    assert sum(loss.measured for loss in found) == 1


def test_layers_that_a_rule_holds_together_are_counted(make_space):
    space = make_space({"layers": [{"kind": "linear", "precision": ["fp32", "int8"], "share": "all"}]})
    (loss,) = losses_of(space, parts_of(space), Atoms({v.name: (0.0, 0.1) for v in space.structure}, 0, 1))
    assert loss.scope == "13 linear layers"
