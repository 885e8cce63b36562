"""Oracles: a planted law of quality and latency; fronts by hand."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from autocompress.drop import Drop
from autocompress.objectives import USUAL, Objectives
from autocompress.plan import Plan
from autocompress.searching.expected import Expected
from autocompress.searching.foresight import LEAST, Foresight
from autocompress.searching.seen import Clock, Judge, Seen

RULES = {
    "groups": {"heads": [1.0, 0.5], "neurons": [1.0, 0.75, 0.5, 0.25]},
    "layers": [{"match": "net.*", "precision": ["fp32", "int8", "int8-dynamic"], "share": "block"}],
}


@pytest.fixture
def space(make_space):
    return make_space(RULES).untrained()


def level(values):
    return sum(values.values())


class Program:
    """Believes that every level costs as much quality, and saves as many seconds, as every other."""

    def __init__(self, space, along=()):
        self.space, self.dense_s, self.along, self.kl = space, 1.0, along, {}
        self.limits: dict[str, float] = {}
        self.work = SimpleNamespace(seconds=lambda plan: self._of[plan.fingerprint].seconds)
        self._of: dict[str, Expected] = {}
        self.sizes: dict[tuple[int, ...], float] = {}

    def expected(self, values):
        plan = self.space.decode(values)
        others = {name: self.sizes.get(tuple(values.values()), 1e6) for name in self.along}
        found = Expected(values, plan, 1 / (1 + 0.2 * level(values)), 0.01 * (1 + level(values)), others)
        self._of[plan.fingerprint] = found
        return found

    def loss(self, values, plan):
        return self.expected(values).loss

    def effective(self, values, plan):
        return values


def searched(space, make_trial, law, count, objectives=USUAL, seed=0, program=None, every=None):
    """A foresight over drawn or given candidates, dense among them; `law` gives a candidate's ratio and quality."""
    draw = np.random.default_rng(seed)
    seen = Seen(Judge(True, lambda _trial: True, objectives), Clock(lambda: 0.0, 0.0, 1.0))
    program, values = program or Program(space), {}
    if every is None:
        every = [dict.fromkeys(space.by_name, 0)]
        every += [{v.name: int(draw.integers(len(v.levels))) for v in space.variables} for _ in range(count - 1)]
    for number, one in enumerate(every):
        found = program.expected(one)
        ratio, quality = law(one)
        values[found.plan.fingerprint] = one
        seen.keep(make_trial(number, ratio, quality, plan=found.plan, seconds={"all": 1.0}))
    return Foresight(program, seen, values), seen, program


def test_with_little_measured_candidates_stay_as_they_are(space, make_trial):
    made, seen, _program = searched(space, make_trial, lambda _v: (0.5, 0.9), LEAST // 2)
    assert len(seen.trials) < LEAST
    children = [space.uniform(keep=keep) for keep in (0.5, 1.0)]
    assert [one.values for one in made.ranked(children)] == children


def test_the_candidate_that_is_fast_and_good_against_the_programs_belief_comes_first(space, make_trial):
    """Halving the heads of the first block costs nothing, and of the second all; the program takes both for alike."""
    first, second = (v.name for v in space.variables if v.name.startswith("keep:") and len(v.levels) == 2)

    def law(values):
        return 1 / (1 + 0.2 * level(values)), 0.9 - 0.002 * level(values) - 0.3 * values[second]

    made, _seen, _program = searched(space, make_trial, law, 80)
    base = {**dict.fromkeys(space.by_name, 1), first: 0, second: 0}
    ranked = [one.values for one in made.ranked([{**base, second: 1}, {**base, first: 1}])]
    assert ranked[0][first] == 1


def test_the_candidate_that_is_faster_than_the_program_believes_comes_first(space, make_trial):
    """int8 on the first block alone saves half of the seconds, and the program takes it for one choice of many."""
    precision = next(v.name for v in space.variables if v.name.startswith("precision:"))

    def law(values):
        return (1 if values[precision] == 0 else 0.5) / (1 + 0.02 * level(values)), 0.9 - 0.002 * level(values)

    made, _seen, _program = searched(space, make_trial, law, 80)
    heaviest = dict.fromkeys(space.by_name, 0)
    slow = {**dict.fromkeys(space.by_name, 1), precision: 0}
    assert made.ranked([slow, {**heaviest, precision: 1}])[0].values[precision] == 1


def test_less_than_the_smallest_difference_of_the_metric_is_no_gain(space, make_trial):
    """Accuracies in steps of 2 points, of which 10 are a whole: a fifth of it, which the front is brought down by."""

    def law(values):
        return 1 / (1 + 0.2 * level(values)), 0.9 if level(values) < 5 else 0.88 if level(values) < 6 else 0.84

    made, seen, program = searched(space, make_trial, law, 60)
    made.ranked([space.uniform()])
    assert seen.dense_quality() - seen.reference()[1] == pytest.approx(0.1)
    assert made._step == pytest.approx(0.2)
    program.kl = {}  # corrected since: all is told anew
    assert made.ranked([space.uniform()])


def test_of_further_objectives_a_candidate_is_held_against_those_that_take_no_more(space, make_trial):
    """Two new candidates are as good as what is measured, and slower; one of them is smaller than all of that."""
    program = Program(space, along=("size",))
    medium, other = ({**dict.fromkeys(space.by_name, 1), name: 0} for name in list(space.by_name)[:2])

    def law(values):
        return 0.3, 0.9

    made, seen, _ = searched(space, make_trial, law, 60, Objectives(("latency", "quality", "size")), program=program)
    for trial in list(seen.trials.values()):
        seen.keep(trial.replace(artifact=replace(trial.artifact, size_bytes=1_000_000)))
    for small, big in ((medium, other), (other, medium)):
        program.sizes = {tuple(small.values()): 5e5, tuple(big.values()): 2e6}
        assert made.ranked([big, small])[0].values == small


@pytest.mark.parametrize(("apart", "gains"), [(1.0, True), (1.5, False)], ids=["same runtime", "another is faster"])
def test_the_corner_is_told_to_the_fastest_dense(space, make_trial, apart, gains):
    """A good candidate at 0.9 of dense in its runtime is no gain where dense is half as fast again in another one."""

    def law(values):
        return 1 / (1 + 0.2 * level(values)), 0.9 - 0.01 * level(values)

    made, seen, _program = searched(space, make_trial, law, 60)
    for trial in list(seen.trials.values()):
        told = replace(trial.latency, ratio_best_dense=apart * trial.latency.ratio)
        seen.keep(trial.replace(latency=told))
    corners = []

    def noting(_members, corner, places, *_others):
        corners.append(corner)
        return np.zeros(len(places))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("autocompress.searching.foresight.expected_gains", noting)
        made.ranked([space.uniform()])
    assert (math.log(0.9) < corners[0][0]) is gains


def law_of_levels(values):
    return 1 / (1 + 0.2 * level(values)), 0.9 - 0.01 * level(values)


def at_level(space, count):
    """Some values whose levels come to a sum."""
    names = [v.name for v in space.variables for _ in range(len(v.levels) - 1)]
    return {**dict.fromkeys(space.by_name, 0), **Counter(names[:count])}


def light_or_heavy(space):
    """All values of levels up to 2, and some of 10 and more, which lose all that counts."""
    every = itertools.product(*(range(len(v.levels)) for v in space.variables))
    found = [dict(zip(space.by_name, levels, strict=True)) for levels in every]
    return [one for one in found if level(one) <= 2] + [one for one in found if level(one) >= 10][:20]


@pytest.mark.parametrize(("asked", "first"), [(math.inf, 4), (0.5, 8)], ids=["no budget", "twice as fast as dense"])
def test_what_is_too_slow_is_no_gain(space, make_trial, asked, first):
    """Of levels 4 and 8, ratios of 0.56 and 0.38, the first adds more: by hand, 0.25 * 0.06 and 0.62 * 0.02."""
    made, _seen, program = searched(space, make_trial, law_of_levels, 0, every=light_or_heavy(space))
    program.limits = {"latency": asked}
    children = [at_level(space, count) for count in (4, 8)]
    for offered in (children, children[::-1]):
        assert level(made.ranked(offered)[0].values) == first


@pytest.mark.parametrize(("most_lost", "first"), [(math.inf, 6), (0.045, 3)], ids=["any loss", "4.5 points"])
def test_what_loses_too_much_is_no_gain(space, make_trial, most_lost, first):
    """Of levels 3 and 6, losses of 3 and 6 points, the second adds more: by hand, 0.134 * 0.07 and 0.45 * 0.04."""
    made, seen, _program = searched(space, make_trial, law_of_levels, 0, every=light_or_heavy(space))
    allowed = None if most_lost == math.inf else Drop(most_lost, relative=False)
    seen.judge = replace(seen.judge, objectives=Objectives(allowed=allowed))
    seen._front = None
    children = [at_level(space, count) for count in (3, 6)]
    for offered in (children, children[::-1]):
        assert level(made.ranked(offered)[0].values) == first


@pytest.mark.parametrize("names", [("latency", "quality"), ("latency", "quality", "size")], ids=["two", "three"])
def test_where_nothing_keeps_the_loss_all_are_still_ranked(space, make_trial, names):
    """All that is measured loses 5 points more than what no choice costs; half of a point may be lost."""

    def law(values):
        return 1 / (1 + 0.2 * level(values)), 0.85 - 0.002 * level(values) if level(values) else 0.9

    program = Program(space, along=names[2:])
    made, seen, _program = searched(space, make_trial, law, 60, Objectives(names), program=program)
    seen.judge = replace(seen.judge, objectives=Objectives(names, allowed=Drop(0.005, relative=False)))
    assert [trial.plan for trial in seen.asked_front()] == [Plan()]
    seen.judge = replace(seen.judge, fits=lambda trial: trial.plan != Plan())
    seen._front = None
    assert seen.asked_front() == []
    light, heavy = at_level(space, 1), at_level(space, 9)
    assert sorted(level(one.values) for one in made.ranked([heavy, light])) == [1, 9]


def test_dense_alone_is_known_by_its_plan(space):
    assert Program(space).expected(dict.fromkeys(space.by_name, 0)).plan == Plan()
