"""Oracle: a planted device and planted losses, whose true front is known."""

from __future__ import annotations

import numpy as np
import pytest

from autocompress.plan import LayerPlan, Plan, Quantize
from autocompress.rules import SolveRule
from autocompress.searching.solve import front
from autocompress.searching.solver import Solver
from autocompress.searching.units import Tables, Unit, joined

UNITS, OPTIONS = 6, ("int8-dynamic", "int8")


def unit(number):
    name = f"layer{number}"
    plans = [Plan(layers={name: LayerPlan(quantize=Quantize(precision))}) for precision in OPTIONS]
    return Unit(name, (name,), (Plan(), *plans))


ALL = tuple(unit(number) for number in range(UNITS))


def uniform(option):
    return joined([u.options[option] for u in ALL])


class World:
    """What plans really take and lose: sums over units, of which the tables know something."""

    def __init__(self, make_trial, seed=0, wrong=0.0):
        draw = np.random.default_rng(seed)
        self.make_trial = make_trial
        saved = draw.uniform(0.02, 0.12, UNITS)
        self.seconds = np.stack([np.full(UNITS, 1 / UNITS), 1 / UNITS - 0.6 * saved, 1 / UNITS - saved], axis=1) * 0.01
        self.errors = np.stack([np.zeros(UNITS), *np.sort(draw.lognormal(-6, 1.5, (2, UNITS)), axis=0)], axis=1)
        factors = draw.uniform(1 - wrong, 1 + wrong, (UNITS, 3))
        told = 0.01 / UNITS + (self.seconds - 0.01 / UNITS) * factors
        size = [[4.0, 1.0, 1.0]] * UNITS
        self.tables = Tables((self.errors * factors[::-1]).tolist(), told.tolist(), size, 0.01)
        self.asked = []

    def choice(self, plan):
        return [u.option_of(plan) for u in ALL]

    def total(self, table, plan):
        return float(sum(row[o] for row, o in zip(table, self.choice(plan), strict=True)))

    def lost(self, plans):
        return {plan: self.total(self.errors, plan) for plan in plans}

    def trial(self, number, plan, origin):
        ratio = self.total(self.seconds, plan) / 0.01
        return self.make_trial(number, ratio, 0.9, 0.001, plan=plan, origin=origin)

    def solver(self, trials=(), limits=None, **rule):
        given = SolveRule(**{"points": 12, "refine": 4, **rule})
        corners = (Plan(), uniform(1), uniform(2))
        return Solver(ALL, self.tables, given, limits or {}, corners=corners, lost=self.lost, trials=trials)

    def follow(self, solver, most=100):
        trials = []
        while len(trials) < most and (proposal := solver.ask()) is not None:
            trials.append(self.trial(proposal.number, proposal.plan, proposal.origin))
            solver.tell(proposal.number, trials[-1])
        return trials


@pytest.fixture
def world(make_trial):
    def make(**settings):
        return World(make_trial, **settings)

    return make


def true_front(world, **limits):
    costs = {"latency": world.seconds.tolist(), "size": world.tables.bytes}
    return [s.options for s in front(world.errors.tolist(), costs, "latency", 12, limits)]


def test_corners_come_first_and_nothing_twice(world):
    trials = world().follow(world().solver())
    assert [t.plan for t in trials[:3]] == [Plan(), uniform(1), uniform(2)]
    assert [t.origin for t in trials[:4]] == ["uniform"] * 3 + ["solved"]
    assert len({t.fingerprint for t in trials}) == len(trials)
    assert [t.number for t in trials] == list(range(len(trials)))


def test_the_whole_front_is_proposed_where_the_tables_are_right(world):
    made = world()
    trials = made.follow(made.solver())
    assert {tuple(made.choice(t.plan)) for t in trials} >= set(true_front(made))


def test_wrong_tables_are_corrected_by_what_was_measured(world):
    """Oracle: the true losses at the true costs; refitting comes nearer to them than the tables alone."""
    made = world(seed=3, wrong=0.6)

    def misses(trials):
        gaps = []
        for options in true_front(made):
            plan = joined([u.options[o] for u, o in zip(ALL, options, strict=True)])
            seconds, error = made.total(made.seconds, plan), made.total(made.errors, plan)
            reached = [made.total(made.errors, t.plan) for t in trials if made.total(made.seconds, t.plan) <= seconds]
            gaps.append(min(reached) - error)
        return sum(gaps)

    blind = made.solver()
    blind._corrected = lambda: made.tables
    assert misses(made.follow(made.solver(refine=20))) < misses(made.follow(blind)) + 1e-12


def test_no_more_is_proposed_than_asked_for(world):
    made = world(wrong=0.5)
    trials = made.follow(made.solver(points=4, refine=1))
    assert sum(t.origin == "solved" for t in trials) <= 5


def test_a_limit_is_kept_and_its_edge_comes_first(world):
    made = world()
    trials = made.follow(made.solver(limits={"latency": 0.0075}))
    solved = [t for t in trials if t.origin == "solved"]
    assert all(made.total(made.seconds, t.plan) <= 0.0075 + 1e-12 for t in solved)
    assert tuple(made.choice(solved[0].plan)) == true_front(made, latency=0.0075)[-1]


def test_a_limit_that_nothing_keeps_leaves_the_corners(world):
    made = world()
    assert [t.origin for t in made.follow(made.solver(limits={"latency": 1e-4}))] == ["uniform"] * 3


def test_sweeping_bytes_goes_from_dense_to_the_smallest(world):
    made = world()
    trials = made.follow(made.solver(sweep="size"))
    sizes = sorted({made.total(made.tables.bytes, t.plan) for t in trials})
    assert sizes == [6.0, *(6.0 + 3 * n for n in range(1, 6)), 24.0]


def test_an_interrupted_search_goes_on(world):
    made = world(wrong=0.3)
    begun = made.follow(made.solver(), most=6)
    rest = made.follow(made.solver(trials=begun))
    assert not {t.fingerprint for t in begun} & {t.fingerprint for t in rest}
    assert rest[0].number == 6


def test_what_is_under_way_is_not_proposed_again(world):
    """Three at a time: the same corners first, nothing twice, and as many in all as one at a time."""
    made = world()
    one, three = made.follow(made.solver()), []
    solver, under_way = made.solver(), []
    while True:
        while len(under_way) < 3 and (proposal := solver.ask()) is not None:
            under_way.append(proposal)
        if not under_way:
            break
        first = under_way.pop(0)
        three.append(made.trial(len(three), first.plan, first.origin))
        solver.tell(first.number, three[-1])
    assert [t.plan for t in three[:3]] == [Plan(), uniform(1), uniform(2)]
    assert len({t.fingerprint for t in three}) == len(three) == len(one)


def test_failures_are_not_proposed_again_and_teach_nothing(world):
    made = world()
    solver, asked = made.solver(), []
    while (proposal := solver.ask()) is not None:
        asked.append(proposal.plan.fingerprint)
        failed = made.trial(proposal.number, proposal.plan, proposal.origin)
        solver.tell(proposal.number, failed.replace(latency=None, quality=None, state="FAILED"))
    assert len(set(asked)) == len(asked)


def test_plans_of_something_else_are_left_out(world):
    solver = world().solver()
    assert solver.options_of(uniform(2)) == (2,) * UNITS
    assert solver.options_of(Plan(layers={"other": LayerPlan(quantize=Quantize("int8"))})) is None
    assert solver.options_of(Plan(layers={"layer0": LayerPlan(quantize=Quantize("fp16"))})) is None
