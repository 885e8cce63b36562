"""Oracles: gains and seconds counted by hand; levels that only a mutation can give; planted ways."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from autocompress.drop import Drop
from autocompress.objectives import Objectives
from autocompress.plan import Plan
from autocompress.searching.controller import Proposal
from autocompress.searching.parts import parts_of
from autocompress.searching.refining import BELIEVED, FADE, POOL, Refining
from autocompress.searching.seen import NO_PROPOSAL, Clock, Judge, Seen

RULES = {
    "groups": {"heads": [1.0, 0.5], "neurons": [1.0, 0.75, 0.5, 0.25]},
    "layers": [{"match": "net.*", "precision": ["fp32", "int8", "int8-dynamic"], "share": "block"}],
}
WAYS = ("resolved", "foreseen", "bred", "sampled")


@pytest.fixture
def space(make_space):
    return make_space(RULES).untrained()


def refining(space, seen, values=(), made=None, seed=0, keeps=lambda _values: True, limits=()):
    """Refines around the candidates of `values`; whatever it makes is new, and kept in `made`."""
    made = [] if made is None else made

    def make(own, origin):
        made.append(own)
        return Proposal(NO_PROPOSAL, space.decode(own), origin)

    knapsack = SimpleNamespace(
        space=space, parts=parts_of(space), along=(), keeps=keeps, limits=dict(limits), dense_s=0.01, resources=()
    )
    known = {space.decode(own).fingerprint: own for own in values}
    draw = np.random.default_rng(seed)
    controller = SimpleNamespace(space=space)
    return Refining(knapsack, seen, known, controller, dict.fromkeys(space.by_name, 0), make, draw)


@pytest.fixture
def seen():
    return Seen(Judge(True, lambda _trial: True), Clock(lambda: 0.0, 0.0, 1.0))


def told(made, name, number, gain, seconds, make_trial):
    """A candidate of a way, that took some seconds besides half a second to propose."""
    trial = make_trial(number, 0.5, 0.9, seconds={"all": seconds})
    made._under_way[trial.fingerprint] = (name, 0.5)
    made.learn(trial, gain)


def test_a_way_is_as_likely_as_it_added_volume_in_its_time(space, seen, make_trial):
    made = refining(space, seen)
    assert {made._chance(name) for name in WAYS} == {1.0}, "nothing is known of any"
    told(made, "bred", 1, 0.2, 1.5, make_trial)
    told(made, "resolved", 2, 0.0, 0.5, make_trial)
    told(made, "bred", 3, 0.1, 3.5, make_trial)
    gains, seconds, count = FADE**2 * 0.2 + 0.1, {"bred": FADE**2 * 2 + 4, "resolved": FADE * 1.0}, 1 + FADE + FADE**2
    usual, usual_s = gains / count, sum(seconds.values()) / count
    for name, own in (("bred", gains), ("resolved", 0.0), ("sampled", 0.0)):
        expected = (own + BELIEVED * usual) / (seconds.get(name, 0.0) + BELIEVED * usual_s)
        assert made._chance(name) == pytest.approx(expected)


def test_volume_that_shrank_since_dense_was_better_than_believed_is_no_gain(space, seen, make_trial):
    made = refining(space, seen)
    told(made, "bred", 1, -0.3, 0.5, make_trial)
    assert made._found["bred"] == (0.0, 1.0)
    assert all(made._chance(name) > 0 for name in WAYS)


def test_what_nobody_proposed_here_teaches_nothing(space, seen, make_trial):
    made = refining(space, seen)
    made.learn(make_trial(1, 0.5, 0.9), 0.1)
    assert {made._chance(name) for name in WAYS} == {1.0}


def test_the_way_that_adds_most_in_its_time_is_taken_more_often(space, seen, make_trial):
    """Two add as much by a candidate, one of them in a tenth of the time; a third adds nothing."""
    made, number = refining(space, seen), iter(range(10**6))
    taken = []

    def way(name):
        def propose():
            taken.append(name)
            return Proposal(NO_PROPOSAL, Plan(seed=next(number)), "refined")

        return propose

    made._ways = {name: way(name) for name in ("bred", "resolved", "sampled")}
    made._found = dict.fromkeys(made._ways, (0.0, 0.0))
    for _ in range(300):
        proposal = made.propose()
        seconds = 0.1 if taken[-1] == "bred" else 1.0
        trial = make_trial(1, 0.5, 0.9, plan=proposal.plan, seconds={"all": seconds})
        made.learn(trial, 0.0 if taken[-1] == "sampled" else 0.1)
    assert taken[100:].count("bred") > 0.7 * 200
    assert taken[100:].count("resolved") > taken[100:].count("sampled") > 0, "it may yet find something"


def test_a_way_that_proposes_nothing_makes_room_for_the_others(space, seen):
    made = refining(space, seen)
    proposal = Proposal(NO_PROPOSAL, space.decode(space.uniform()), "refined")
    made._ways = {"bred": lambda: None, "resolved": lambda: proposal}
    assert all(made.propose() is proposal for _ in range(20))
    made._ways, made._sampled = {"bred": lambda: None, "resolved": lambda: None}, lambda within: None
    assert made.propose() is None
    made._sampled = lambda within: None if within else proposal
    assert made.propose() is proposal, "what is believed to be too slow, where there is nothing else"


def test_time_that_came_to_nothing_counts(space, seen):
    """Looking for a proposal took two seconds, in vain."""
    made, now = refining(space, seen), [0.0]
    seen.clock = Clock(lambda: now[0], 0.0, 1e9)

    def vain():
        now[0] += 2.0

    made._ways, made._sampled = {"bred": vain}, lambda within: None
    assert made.propose() is None
    assert made._found["bred"] == (0.0, 2.0)


def test_children_take_after_two_parents_and_one_choice_on_average_is_drawn_anew(space, seen, make_trial):
    """Parents of lowest and of highest levels: levels in between come from drawing anew alone."""
    low = dict.fromkeys(space.by_name, 0)
    high = {v.name: len(v.levels) - 1 for v in space.structure}
    for number, (values, ratio, quality) in enumerate([(low, 1.0, 0.9), (high, 0.2, 0.5)]):
        seen.keep(make_trial(number, ratio, quality, plan=space.decode(values)))
    made = refining(space, seen, [low, high])
    parents = made._parents()
    children = [made._mixed(parents) for _ in range(3000)]
    count = len(space.structure)
    between = [0 < child[v.name] < high[v.name] for child in children for v in space.structure]
    expected = np.mean([(len(v.levels) - 2) / len(v.levels) / count for v in space.structure])
    assert np.mean(between) == pytest.approx(expected, rel=0.15)
    from_high = [child[v.name] == high[v.name] for child in children for v in space.structure]
    assert np.mean(from_high) == pytest.approx((1 - np.mean(between)) / 2, rel=0.05)
    mixed = [0 < sum(child[n] == high[n] for n in high) < count for child in children]
    assert np.mean(mixed) > 0.4, "half of the parents are one and the same"


def test_what_two_blocks_do_is_exchanged_and_nothing_else(space, seen, make_trial):
    """One parent, the blocks of which differ in every choice: each child is the parent but for kinds that swapped."""
    parent = {v.name: i % len(v.levels) for i, v in enumerate(space.structure)}
    seen.keep(make_trial(1, 0.3, 0.9, plan=space.decode(parent)))
    made = refining(space, seen, [parent])
    assert len(made._alike) == 1
    one, other = made._alike[0]
    swapped = set()
    for _ in range(200):
        child = made._exchange([(0.0, parent)])
        differ = {name for name in parent if child[name] != parent[name]}
        assert all((name in differ) <= (name in one or name in other) for name in differ)
        for a, b in zip(one, other, strict=True):
            assert {child[a], child[b]} == {parent[a], parent[b]}
        swapped.add(frozenset(differ))
    assert max(len(each) for each in swapped) > 2, "whole blocks are exchanged as well"


def test_a_switch_is_one_choice_heavier_and_one_lighter(space, seen, make_trial):
    parent = {v.name: 1 for v in space.structure}
    made = refining(space, seen, [parent])
    switched = [made._switch([(0.0, parent)]) for _ in range(100)]
    moves = [sorted(child[name] - 1 for name in parent if child[name] != 1) for child in switched if child != parent]
    assert moves
    assert all(each == [-1, 1] for each in moves)


def test_variations_are_different_ones_and_no_more_than_asked_for(space, seen, make_trial):
    parents = [{v.name: level % len(v.levels) for v in space.structure} for level in range(3)]
    for number, parent in enumerate(parents):
        seen.keep(make_trial(number, 0.3 - 0.1 * number, 0.9 - 0.1 * number, plan=space.decode(parent)))
    found = list(refining(space, seen, parents)._varied(10))
    assert 5 < len(found) == len({tuple(child.items()) for child in found}) <= 10


def test_what_the_program_believes_to_be_over_a_limit_is_no_variation(space, seen, make_trial):
    parent = {v.name: len(v.levels) // 2 for v in space.structure}
    seen.keep(make_trial(1, 0.3, 0.9, plan=space.decode(parent)))
    found = list(refining(space, seen, [parent], keeps=lambda own: space.decode(own).fingerprint < "8")._varied(10))
    assert found
    assert all(space.decode(child).fingerprint < "8" for child in found)


def test_where_the_fastest_is_asked_for_parents_are_near_it_on_either_side(space, seen, make_trial):
    """By hand: 0.5 is the fastest that keeps the loss; 0.4 and 0.6 are within a factor of 1.4 of it, 0.2 and 1 not."""
    every = [{v.name: (level + i) % len(v.levels) for i, v in enumerate(space.structure)} for level in range(5)]
    judge = Judge(True, lambda _trial: True, Objectives(allowed=Drop(0.05, relative=False)), fastest=True)
    asked = Seen(judge, Clock(lambda: 0.0, 0.0, 1.0))
    asked.keep(make_trial(9, 1.0, 0.9, plan=Plan()))
    figures = [(0.2, 0.5), (0.4, 0.8), (0.5, 0.86), (0.6, 0.88), (0.99, 0.89)]
    for number, (own, (ratio, quality)) in enumerate(zip(every, figures, strict=True)):
        asked.keep(make_trial(number, ratio, quality, plan=space.decode(own)))
    found = [math.exp(place) for place, _values in refining(space, asked, every)._parents()]
    assert found == pytest.approx([0.4, 0.5, 0.6])
    far = [every[0], every[4]]
    found = [math.exp(place) for place, _values in refining(space, asked, far)._parents()]
    assert found == pytest.approx([0.2, 0.99]), "where none is near, any"


def test_where_a_latency_is_asked_for_what_is_little_slower_is_a_parent_too(space, make_trial):
    """By hand: 0.5 is asked for; 0.54 is within a tenth of it, and loses less than 0.5 does; 0.6 is not."""
    every = [{v.name: (level + i) % len(v.levels) for i, v in enumerate(space.structure)} for level in range(5)]
    asked = Seen(Judge(True, lambda trial: trial.latency.ratio <= 0.5), Clock(lambda: 0.0, 0.0, 1.0))
    figures = [(0.3, 0.5), (0.5, 0.8), (0.53, 0.7), (0.54, 0.88), (0.6, 0.89)]
    for number, (own, (ratio, quality)) in enumerate(zip(every, figures, strict=True)):
        asked.keep(make_trial(number, ratio, quality, plan=space.decode(own)))
    made = refining(space, asked, every, limits={"latency": 0.005})
    assert [math.exp(place) for place, _values in made._parents()] == pytest.approx([0.3, 0.5, 0.54])
    made = refining(space, asked, every, limits={"latency": 0.002})
    assert [math.exp(place) for place, _values in made._parents()] == pytest.approx([0.3]), "none is: the fastest"
    made = refining(space, asked, every[1:], limits={"latency": 0.002})
    assert [math.exp(place) for place, _values in made._parents()] == pytest.approx([0.5]), "of those that have values"
    made = refining(space, asked, every, limits={"latency": 0.005, "size": 9.0})
    made._knapsack.resources = ("size",)
    assert [math.exp(place) for place, _values in made._parents()] == pytest.approx([0.3, 0.5]), "others may be large"


def test_what_the_sampler_proposes_over_a_limit_is_withdrawn(space, seen):
    """Every third proposal keeps the limit, and is the one that is made."""
    asked, withdrawn = [], []

    def ask(wander):
        asked.append(Proposal(len(asked), Plan(seed=len(asked)), "sampled"))
        return asked[-1]

    made = refining(space, seen, keeps=lambda own: own["number"] % 3 == 2)
    made._controller = SimpleNamespace(ask=ask, asked=lambda number: {"number": number}, withdraw=withdrawn.append)
    assert made._sampled() is asked[2]
    assert withdrawn == asked[:2]
    assert made._values[asked[2].plan.fingerprint]["number"] == 2
    made._knapsack.keeps = lambda _own: False
    assert made._sampled() is None
    assert withdrawn == asked[:2] + asked[3:]
    assert len(asked) < 20, "each takes time"
    assert made._sampled(within=False) is asked[-1]
    assert asked[-1] not in withdrawn


@pytest.mark.parametrize(("along", "high"), [((), 0.5), (("size",), 2.0)], ids=["two objectives", "three"])
def test_the_program_is_asked_for_what_the_front_spans(space, seen, make_trial, along, high):
    """The best is at 0.5; what is slower is on the front only by being smaller."""
    objectives = Objectives(("latency", "quality", *along))
    seen.judge = Judge(True, lambda _trial: True, objectives)
    for number, (ratio, quality, size) in enumerate([(0.2, 0.5, 900), (0.5, 0.9, 800), (2.0, 0.7, 100)]):
        trial = make_trial(number, ratio, quality, plan=Plan(seed=number + 1))
        seen.keep(trial.replace(artifact=replace(trial.artifact, size_bytes=size)))
    made, asked = refining(space, seen), []
    seconds = {Plan(seed=number + 1).fingerprint: ratio for number, ratio in enumerate((0.2, 0.5, 2.0))}
    made._knapsack = SimpleNamespace(
        along=along, kl={}, limits={}, dense_s=1.0, at=lambda wanted, *_: asked.append(wanted),
        work=SimpleNamespace(seconds=lambda plan: seconds[plan.fingerprint]),
    )  # fmt: skip
    for _ in range(200):
        made._resolved()
    assert 0.2 <= min(asked) < 0.23
    assert 0.85 * high < max(asked) <= high


def test_of_many_variations_the_one_that_promises_most_is_made(space, seen, make_trial):
    parent = {v.name: len(v.levels) // 2 for v in space.structure}
    seen.keep(make_trial(1, 0.3, 0.9, plan=space.decode(parent)))
    children = []
    made = refining(space, seen, [parent], children)
    shown = []

    def ranked(pool):
        shown.extend(pool)
        return [SimpleNamespace(values=values) for values in sorted(pool, key=lambda v: -sum(v.values()))]

    made._foresight = SimpleNamespace(ranked=ranked)
    assert made._foreseen() is not None
    assert 5 < len(shown) <= POOL
    assert children == [max(shown, key=lambda v: sum(v.values()))]
    assert len({tuple(v.items()) for v in shown}) == len(shown)


def test_without_a_front_nothing_is_bred_or_foreseen(space, seen):
    assert refining(space, seen)._bred() is None
    assert refining(space, seen)._foreseen() is None
