"""Oracles: a machine whose seconds are known, blocks counted by hand, the exact bootstrap of three values."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autocompress.hardware import Timing
from autocompress.measure.timing import (
    Interval,
    Rounds,
    bootstrap_median,
    queries_per_block,
    time_in_turn,
)

STEADY = Timing(min_blocks=7, max_blocks=24, half_width=0.01, drift=0.03)


@dataclass
class Machine:
    """Runs blocks of `queries`; `seconds(name, call)` says how long one query takes in that call."""

    seconds: Callable[[str, int], float]
    queries: int = 4
    noise: float = 0.0
    calls: list[str] = field(default_factory=list)
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(7))

    def __call__(self, name: str) -> list[float]:
        mean = self.seconds(name, len(self.calls))
        self.calls.append(name)
        return [mean * math.exp(self.noise * self.rng.standard_normal()) for _ in range(self.queries)]


def constant(**seconds: float) -> Machine:
    return Machine(lambda name, _: seconds[name])


# order and arithmetic


@pytest.mark.parametrize("names", ["a", "ab", "abc"])
def test_every_round_runs_forwards_then_backwards(names):
    machine = constant(a=1.0, b=2.0, c=3.0)
    time_in_turn(names, machine, STEADY)
    assert "".join(machine.calls) == (names + names[::-1]) * 7


def test_a_block_is_told_by_its_median_and_a_round_by_the_mean_of_two():
    blocks = iter([[1.0, 1.0, 9.0], [2.0, 2.0, 0.1], [4.0, 4.0, 4.0], [1.02, 1.02, 5.0]])
    rounds = time_in_turn("ab", lambda _: next(blocks), Timing().model_copy(update={"max_blocks": 1}))
    assert rounds.blocks == {"a": [pytest.approx(1.01)], "b": [3.0]}
    assert rounds.ratios("b", "a") == pytest.approx([3.0 / 1.01])
    assert rounds.times == {"a": [1.0, 1.0, 9.0, 1.02, 1.02, 5.0], "b": [2.0, 2.0, 0.1, 4.0, 4.0, 4.0]}


def test_no_rounds_have_no_length():
    assert len(Rounds()) == 0


def test_a_steady_drift_of_the_machine_hits_all_alike():
    # Half a per cent slower with every call: the mean of the outer calls equals that of the inner ones exactly.
    machine = Machine(lambda _, call: 1.0 + 0.005 * call)
    rounds = time_in_turn("abc", machine, STEADY)
    assert rounds.ratios("b", "a") == pytest.approx(np.ones(len(rounds)), abs=1e-12)
    assert rounds.ratios("c", "a") == pytest.approx(np.ones(len(rounds)), abs=1e-12)


# drift


def jumping(*rounds: int) -> Machine:
    """Two contestants of 1 s; in the rounds given, the machine slows by 10 % before the reference's second block."""
    return Machine(lambda _, call: 1.1 if call % 4 == 3 and call // 4 in rounds else 1.0)


def test_a_drifting_round_is_thrown_away_and_counted():
    machine = jumping(2)
    rounds = time_in_turn("ab", machine, STEADY)
    assert (rounds.rejected, rounds.drifting, len(rounds)) == (1, 0, 7)
    assert len(machine.calls) == 4 * 8
    assert set(rounds.times["a"]) == {1.0}


@pytest.mark.parametrize(
    ("after", "rejected"), [(1.0295, 0), (1.0305, 7), (1 / 1.0295, 0), (1 / 1.0305, 7)], ids=["in", "out", "in", "out"]
)
def test_drift_is_judged_in_both_directions(after, rejected):
    machine = Machine(lambda _, call: after if call % 4 == 3 else 1.0)
    assert time_in_turn("ab", machine, STEADY).rejected == rejected


def test_a_drift_of_another_contestant_rejects_nothing():
    machine = Machine(lambda name, call: 2.0 if name == "b" and call % 4 == 2 else 1.0)
    assert time_in_turn("ab", machine, STEADY).rejected == 0


def test_at_most_half_of_all_rounds_are_rejected_the_rest_is_kept_as_drifting():
    noisy = Machine(lambda name, call: (1.1 if call % 4 == 3 else 1.0) * (1 + 0.3 * (name == "b") * (call // 4 % 3)))
    rounds = time_in_turn("ab", noisy, STEADY)
    assert (rounds.rejected, rounds.drifting, len(rounds)) == (12, 12, 12)
    assert len(noisy.calls) == 4 * STEADY.max_blocks


@given(st.sets(st.integers(0, 23)))
def test_rejected_rounds_never_pass_half_and_every_round_is_accounted_for(where):
    machine = jumping(*where)
    rounds = time_in_turn("ab", machine, STEADY)
    done = len(machine.calls) // 4
    assert rounds.rejected + len(rounds) == done
    assert rounds.rejected <= (done + 1) // 2
    assert rounds.rejected + rounds.drifting == len({r for r in where if r < done})


# when to stop


def test_it_stops_at_the_fewest_rounds_once_the_ratio_is_known():
    rounds = time_in_turn("ab", constant(a=1.0, b=2.0), STEADY)
    assert len(rounds) == STEADY.min_blocks
    assert bootstrap_median(rounds.ratios("b", "a")) == Interval(2.0, 2.0, 2.0)


def test_it_stops_at_the_most_rounds_when_the_ratio_stays_unknown():
    wild = Machine(lambda name, call: 1.0 if name == "a" else 1.0 + (call // 4) % 2)
    assert len(time_in_turn("ab", wild, STEADY)) == STEADY.max_blocks


def test_it_goes_on_until_the_half_width_is_met_and_no_longer():
    machine = Machine(lambda name, _: 1.0 if name == "a" else 1.3, queries=8, noise=0.02)
    protocol = Timing(min_blocks=7, max_blocks=200, half_width=0.004, drift=0.5)
    rounds = time_in_turn("ab", machine, protocol)
    ratios = rounds.ratios("b", "a")
    assert 7 < len(rounds) < 200
    assert bootstrap_median(ratios).half_width < 0.004
    assert all(bootstrap_median(ratios[:n]).half_width >= 0.004 for n in range(7, len(ratios)))


def test_every_contestant_must_be_known():
    wild = Machine(lambda name, call: 1.0 + (call // 6) % 2 if name == "c" else 1.0)
    assert len(time_in_turn("abc", wild, STEADY)) == STEADY.max_blocks


@pytest.mark.parametrize(
    ("enough", "kept"),
    [(0, 24), (8 * 24, 24), (8 * 24 + 1, 25), (8 * 40, 40), (10_000, 72)],
    ids=["search", "just_enough", "one_more", "later", "out_of_patience"],
)
def test_a_wide_interval_is_followed_until_enough_queries(enough, kept):
    # 4 queries in each of 2 blocks: 8 a round.
    wild = Machine(lambda name, call: 1.0 if name == "a" else 1.0 + (call // 4) % 2)
    assert len(time_in_turn("ab", wild, STEADY, enough_queries=enough)) == kept


def test_a_narrow_interval_needs_no_more_queries():
    assert len(time_in_turn("ab", Machine(lambda name, call: 1.0), STEADY, enough_queries=10_000)) == 7


# bootstrap


@given(st.lists(st.floats(0.1, 10), min_size=1, max_size=30))
def test_the_interval_contains_the_median_and_is_the_same_again(values):
    one = bootstrap_median(np.array(values))
    assert one.low <= one.value <= one.high
    assert one.value == np.median(values)
    assert min(values) <= one.low
    assert one.high <= max(values)
    assert bootstrap_median(np.array(values)) == one


def test_the_interval_of_three_values_is_exact():
    # A resample's median is the least of three values with probability 7/27, far above 2.5 %.
    assert bootstrap_median(np.array([1.0, 2.0, 4.0])) == Interval(2.0, 1.0, 4.0)


def test_the_interval_equals_a_slow_twin():
    values = np.random.default_rng(3).normal(1.0, 0.1, 15)
    draws = np.random.default_rng(5).integers(0, 15, (1000, 15))
    medians = sorted(sorted(values[i] for i in row)[7] for row in draws)
    found = bootstrap_median(values, seed=5)
    # 2.5 % and 97.5 % of 1000 values lie between the ranks 24 and 25, 974 and 975 (from 0).
    assert medians[24] <= found.low <= medians[25]
    assert medians[974] <= found.high <= medians[975]


def test_the_interval_covers_the_true_median_in_about_95_of_100_cases():
    rng = np.random.default_rng(0)
    found = [bootstrap_median(rng.normal(1.0, 0.1, 24), seed=i) for i in range(200)]
    covered = sum(i.low <= 1.0 <= i.high for i in found)
    assert 180 <= covered <= 199


def test_half_width_is_relative():
    assert Interval(2.0, 1.9, 2.1).half_width == pytest.approx(0.05)


# what a reader relies on


@pytest.mark.parametrize("slower", [1.08, 1 / 1.08, 1.0], ids=["8_percent_slower", "8_percent_faster", "equal"])
def test_a_planted_change_of_speed_is_seen(slower):
    machine = Machine(lambda name, call: (slower if name == "b" else 1.0) * (1 + 1e-4 * call), queries=10, noise=0.03)
    rounds = time_in_turn("ab", machine, STEADY)
    interval = bootstrap_median(rounds.ratios("b", "a"))
    assert interval.value == pytest.approx(slower, rel=0.015)
    assert (interval.low <= 1.0 <= interval.high) == (slower == 1.0)


@pytest.mark.parametrize(
    ("per_query", "block", "queries"),
    [(0.001, 0.02, 20), (0.0003, 0.02, 67), (0.05, 0.02, 2), (0.0, 1e-6, 1000)],
    ids=["exact", "rounded", "two_at_least", "zero_seconds"],
)
def test_queries_per_block(per_query, block, queries):
    assert queries_per_block(per_query, block) == queries
