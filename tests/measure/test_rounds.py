"""Oracle: turns written by hand, and which of them count worked out beside them."""

from __future__ import annotations

import numpy as np
import pytest

from autocompress.measure.rounds import Kept, Rounds, Turn

GOOD = Turn(1.0, (1.0, 1.0))


def late(slowed: float) -> Turn:
    return Turn(1.0 + slowed, (1.0 + slowed,), slowed, "unsteady")


def shared(slowed: float) -> Turn:
    return Turn(1.0 + slowed, (1.0 + slowed,), slowed, "contended")


def test_no_rounds_have_no_length():
    assert len(Rounds()) == 0


def test_a_round_counts_where_the_contestant_and_the_references_have_no_fault():
    rounds = Rounds(
        {"a": [GOOD, late(0.1), GOOD, GOOD], "b": [GOOD, GOOD, shared(0.2), GOOD], "c": [late(0.3), GOOD, GOOD, GOOD]},
        ("a",),
    )
    assert len(rounds) == 4
    assert rounds.kept("a") == rounds.kept() == Kept((0, 2, 3), rejected=1, contended=0, crowded=0, unsteady=0)
    assert rounds.kept("b") == Kept((0, 3), rejected=2, contended=1, crowded=0, unsteady=0)
    assert rounds.kept("c") == Kept((2, 3), rejected=2, contended=0, crowded=0, unsteady=0)
    assert rounds.kept("b", "c") == Kept((3,), rejected=3, contended=1, crowded=0, unsteady=0)


def test_a_ratio_pairs_blocks_of_the_same_rounds():
    rounds = Rounds(
        {"a": [Turn(1.0), late(1.0), Turn(4.0)], "b": [Turn(2.0), Turn(5.0), Turn(6.0)], "c": [late(1.0), GOOD, GOOD]},
        ("a",),
    )
    assert rounds.ratios("b", "a").tolist() == [2.0, 1.5]
    assert rounds.ratios("c", "a").tolist() == [0.25]
    assert rounds.ratios("b", "c").tolist() == [6.0]


def test_where_too_few_count_the_least_slowed_stand_in():
    rounds = Rounds({"a": [GOOD] * 5, "b": [late(0.3), GOOD, shared(0.1), late(0.2), late(0.4)]}, ("a",), least=3)
    kept = rounds.kept("b")
    assert kept == Kept((1, 2, 3), rejected=2, contended=0, crowded=1, unsteady=1)
    assert kept.faultless == 1
    assert rounds.times("b") == [1.0, 1.0, 1.1, 1.2]
    assert rounds.times("a") == [1.0] * 10


def test_a_pair_without_a_common_round_has_stand_ins():
    rounds = Rounds(
        {"a": [GOOD] * 4, "b": [GOOD, GOOD, late(0.1), late(0.3)], "c": [late(0.2)] * 2 + [GOOD] * 2}, "a", 2
    )
    assert rounds.kept("b").faultless == rounds.kept("c").faultless == 2
    assert rounds.kept("b", "c") == Kept((0, 2), rejected=2, contended=0, crowded=0, unsteady=2)
    assert rounds.ratios("b", "c") == pytest.approx([1 / 1.2, 1.1])


def test_of_many_rounds_a_quarter_stands_in():
    rounds = Rounds({"a": [late(n) for n in np.linspace(0.1, 0.9, 40)]}, ("a",), least=7)
    assert rounds.kept("a") == Kept(tuple(range(10)), rejected=30, contended=0, crowded=0, unsteady=10)


def test_fewer_rounds_than_the_fewest_all_count():
    assert Rounds({"a": [late(0.2), GOOD]}, ("a",), least=7).kept("a").numbers == (0, 1)
