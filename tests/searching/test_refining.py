"""Oracles: the rule of succession by hand; levels that only a mutation can give; planted ways."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from autocompress.searching.controller import Proposal
from autocompress.searching.parts import parts_of
from autocompress.searching.refining import FADE, Refining
from autocompress.searching.seen import NO_PROPOSAL, Clock, Judge, Seen

RULES = {
    "groups": {"heads": [1.0, 0.5], "neurons": [1.0, 0.75, 0.5, 0.25]},
    "layers": [{"match": "net.*", "precision": ["fp32", "int8", "int8-dynamic"], "share": "block"}],
}
WAYS = ("needed", "resolved", "switched", "bred", "sampled")


@pytest.fixture
def space(make_space):
    return make_space(RULES).untrained()


def refining(space, seen, values=(), made=None, seed=0):
    """Refines around the candidates of `values`; whatever it makes is new, and kept in `made`."""
    made = [] if made is None else made

    def make(own, origin):
        made.append(own)
        return Proposal(NO_PROPOSAL, space.decode(own), origin)

    knapsack = SimpleNamespace(space=space, parts=parts_of(space), along=())
    known = {space.decode(own).fingerprint: own for own in values}
    draw = np.random.default_rng(seed)
    controller = SimpleNamespace(space=space)
    return Refining(knapsack, seen, known, controller, dict.fromkeys(space.by_name, 0), make, lambda: None, draw)


@pytest.fixture
def seen():
    return Seen(Judge(True, lambda _trial: True), Clock(lambda: 0.0, 0.0, 1.0))


def test_a_way_is_as_likely_as_its_next_candidate_is_to_be_a_find(space, seen):
    made = refining(space, seen)
    assert {made._chance(name) for name in WAYS} == {1 / 2}
    for place, grew in enumerate([True, False, True]):
        made._under_way[str(place)] = "bred"
        made.learn(str(place), grew)
    assert made._chance("bred") == pytest.approx((FADE**2 + 1 + 1) / (FADE**2 + FADE + 1 + 2))
    assert made._chance("switched") == 1 / 2


def test_what_nobody_proposed_here_teaches_nothing(space, seen):
    made = refining(space, seen)
    made.learn("from an earlier session", True)
    assert {made._chance(name) for name in WAYS} == {1 / 2}


def test_the_way_that_finds_something_is_taken_more_often(space, seen):
    """A way that always finds and one that never does; after 40 candidates each, chances of 41/42 to 1/42, faded."""
    made, number = refining(space, seen), iter(range(10**6))
    plan = space.decode(space.uniform())
    taken = []

    def way(name):
        def propose():
            taken.append(name)
            return Proposal(NO_PROPOSAL, SimpleNamespace(plan=plan, fingerprint=str(next(number))), "refined")

        return propose

    made._ways = {name: way(name) for name in ("bred", "switched")}
    for _ in range(300):
        proposal = made.propose()
        made.learn(proposal.plan.fingerprint, taken[-1] == "bred")
    assert taken[100:].count("bred") > 0.85 * 200
    assert "switched" in taken[100:], "it may yet find something"


def test_a_way_that_proposes_nothing_makes_room_for_the_others(space, seen):
    made = refining(space, seen)
    proposal = Proposal(NO_PROPOSAL, space.decode(space.uniform()), "refined")
    made._ways = {"bred": lambda: None, "switched": lambda: proposal}
    assert all(made.propose() is proposal for _ in range(20))
    made._ways = {"bred": lambda: None, "switched": lambda: None}
    assert made.propose() is None


def test_children_take_after_two_parents_and_one_choice_on_average_is_drawn_anew(space, seen, make_trial):
    """Parents of lowest and of highest levels: levels in between come from drawing anew alone."""
    low = dict.fromkeys(space.by_name, 0)
    high = {v.name: len(v.levels) - 1 for v in space.structure}
    for number, (values, ratio, quality) in enumerate([(low, 1.0, 0.9), (high, 0.2, 0.5)]):
        seen.keep(make_trial(number, ratio, quality, plan=space.decode(values)))
    children = []
    made = refining(space, seen, [low, high], children)
    for _ in range(3000):
        made._bred()
    count = len(space.structure)
    between = [0 < child[v.name] < high[v.name] for child in children for v in space.structure]
    expected = np.mean([(len(v.levels) - 2) / len(v.levels) / count for v in space.structure])
    assert np.mean(between) == pytest.approx(expected, rel=0.15)
    from_high = [child[v.name] == high[v.name] for child in children for v in space.structure]
    assert np.mean(from_high) == pytest.approx((1 - np.mean(between)) / 2, rel=0.05)
    mixed = [0 < sum(child[n] == high[n] for n in high) < count for child in children]
    assert np.mean(mixed) > 0.4, "half of the parents are one and the same"


def test_without_a_front_nothing_is_bred(space, seen):
    assert refining(space, seen)._bred() is None
