"""The methods of benchmarks/search.py on an evaluator whose figures are worked out, a second a candidate."""

from types import SimpleNamespace

import pytest
from searching.evaluator import Spent
from searching.methods import METHODS, STAGES, _spread, depths, shares, uniform_levels

from autocompress.plan import Plan

SPACE = {
    "groups": {"heads": [1.0, 0.5], "neurons": [1.0, 0.5, 0.25]},
    "blocks": {"remove": True, "keep_at_least": 0.5},
    "layers": [
        {
            "match": "*",
            "kind": "linear",
            "precision": ["fp32", "int8-dynamic", "int8"],
            "rank": [1.0, 0.5, 0.25],
            "share": "block",
        },
    ],
}


class Counted:
    """An evaluator by closed forms: each thing that a plan does makes it faster by a tenth and worse by a hundredth."""

    def __init__(self, space, make_trial, folder, limit_s=60.0):
        self.space = self.untrained = space.untrained()
        self.table, self.folder, self.limit_s, self.trained = space.table, folder, limit_s, False
        self.task = SimpleNamespace(metric=SimpleNamespace(maximize=True))
        self.latencies, self.dense_s = SimpleNamespace(seconds=lambda plan, _table: self.ratio(plan)), 1.0
        self.dense_quality = 0.9
        self.trials, self.clock, self._make_trial = [], 0.0, make_trial

    @property
    def left_s(self):
        return self.limit_s - self.clock

    @staticmethod
    def ratio(plan):
        return 0.9 ** (len(plan.groups) + sum(bool(lp.factorize) + bool(lp.quantize) for lp in plan.layers.values()))

    def __call__(self, plan, origin="sampled", proposal=-1, rung=0):
        if self.clock > self.limit_s:
            raise Spent
        self.clock += 1.0
        things = len(plan.groups) + sum(bool(lp.factorize) + bool(lp.quantize) for lp in plan.layers.values())
        trial = self._make_trial(len(self.trials), self.ratio(plan), 0.9 - 0.01 * things, plan=plan)
        self.trials.append(trial.replace(origin=origin, proposal=proposal, seconds={"evaluate": 1.0}))
        return self.trials[-1]


@pytest.fixture
def evaluator(make_space, make_trial, tmp_path):
    return Counted(make_space(SPACE), make_trial, tmp_path)


NEEDING_NO_MODEL = ("random", "uniform", "nsga2-uniform", "sequential", "nsga2", "tpe")


@pytest.mark.parametrize("method", NEEDING_NO_MODEL)
def test_each_begins_with_dense_repeats_nothing_and_ends_in_time(evaluator, method):
    assert METHODS[method](evaluator, 0) == 0.0
    plans = [trial.plan for trial in evaluator.trials]
    assert plans[0] == Plan()
    assert len(set(plans)) == len(plans)
    assert 1 < len(plans) <= evaluator.limit_s + 1


@pytest.mark.parametrize("method", NEEDING_NO_MODEL)
def test_a_seed_repeats_itself(make_space, make_trial, tmp_path, method):
    made = []
    for name in ("one", "other"):
        evaluator = Counted(make_space(SPACE), make_trial, tmp_path / name, limit_s=20.0)
        METHODS[method](evaluator, 3)
        made.append([trial.plan for trial in evaluator.trials])
    assert made[0] == made[1]


def _kinds(plan):
    layers = plan.layers.values()
    return (
        bool(plan.groups), any(lp.factorize for lp in layers), any(lp.quantize for lp in layers),
    )  # fmt: skip


def test_the_pipeline_prunes_then_factorizes_then_quantizes_for_a_third_each(evaluator):
    METHODS["sequential"](evaluator, 0)
    third = int(evaluator.limit_s) // len(STAGES)
    first, second, last = (evaluator.trials[i * third : (i + 1) * third] for i in range(3))
    assert not any(factors or bits for _groups, factors, bits in (_kinds(trial.plan) for trial in first[:-1]))
    assert not any(bits for _groups, _factors, bits in (_kinds(trial.plan) for trial in second[:-1]))
    assert any(_kinds(trial.plan) == (True, True, False) for trial in second)
    assert any(_kinds(trial.plan) == (True, True, True) for trial in last)


def test_a_stage_goes_on_from_candidates_spread_over_the_front(evaluator, make_trial):
    evaluator.trials = [
        make_trial(i, ratio, quality, plan=Plan(seed=i))
        for i, (ratio, quality) in enumerate([(1.0, 0.9), (0.8, 0.85), (0.9, 0.7), (0.6, 0.8), (0.4, 0.5), (0.2, 0.3)])
    ]
    known = {trial.fingerprint: {"n": i} for i, trial in enumerate(evaluator.trials)}
    assert [one["n"] for one in _spread(evaluator, known, 3)] == [5, 3, 0]
    assert [one["n"] for one in _spread(evaluator, known, 9)] == [5, 4, 3, 1, 0]


def test_uniform_levels_are_all_combinations_once(evaluator):
    levels = uniform_levels(evaluator)
    assert len({tuple(sorted(one.items())) for one in levels}) == len(levels)
    assert shares(evaluator) == [1.0, 0.5, 0.25]
    blocks = evaluator.table.blocks
    assert depths(evaluator) == [(), blocks[(len(blocks) + 1) // 2 :], blocks[1::2]]
