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
from autocompress.measure.blocks import Block
from autocompress.measure.timing import (
    Interval,
    bootstrap_median,
    bootstrap_nested,
    order_decided,
    p99,
    time_in_turn,
    verdict,
)

STEADY = Timing(min_blocks=7, max_blocks=24, half_width=0.01, drift=0.03)
#: Of contestants that are wild by nature, so that there is nothing to throw away.
LOOSE = STEADY.model_copy(update={"slowed": 10.0})


@dataclass
class Machine:
    """Runs blocks of `queries`; `seconds(name, call)` says how long one query takes in that call.

    Where a `slice_s` is given, a stranger takes the core for so long, again and again, after as long a run of ours:
    a query then takes longer by what it stood in line, and tells so at its end.
    """

    seconds: Callable[[str, int], float]
    queries: int = 4
    noise: float = 0.0
    slice_s: float = 0.0
    one_thread: bool = False
    seed: int = 7
    calls: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)
        self.left = self.slice_s

    def __call__(self, name: str) -> Block:
        mean = self.seconds(name, len(self.calls))
        self.calls.append(name)
        work = [mean * math.exp(self.noise * self.rng.standard_normal()) for _ in range(self.queries)]
        waits = [self._stand_in_line(seconds) for seconds in work] if self.slice_s else []
        return Block(
            tuple(w + t for w, t in zip(waits or [0.0] * len(work), work, strict=True)),
            tuple(waits),
            one_thread=self.one_thread,
        )

    def _stand_in_line(self, seconds: float) -> float:
        """Seconds that a stranger ran within a query of so many seconds of our own."""
        self.left -= seconds
        waited = 0.0
        while self.left <= 0:
            waited += self.slice_s
            self.left += self.slice_s * self.rng.uniform(0.8, 1.2)
        return waited


def constant(**seconds: float) -> Machine:
    return Machine(lambda name, _: seconds[name])


# order and arithmetic


@pytest.mark.parametrize("names", ["a", "ab", "abc"])
def test_every_round_runs_forwards_then_backwards(names):
    machine = constant(a=1.0, b=2.0, c=3.0)
    time_in_turn(names, machine, STEADY)
    assert "".join(machine.calls) == (names + names[::-1]) * 7


def test_a_block_is_told_by_its_median_and_a_round_by_the_mean_of_two():
    blocks = iter([(1.0, 1.0, 9.0), (2.0, 2.0, 0.1), (4.0, 4.0, 4.0), (1.02, 1.02, 5.0)])
    rounds = time_in_turn(
        "ab", lambda _: Block(next(blocks)), LOOSE.model_copy(update={"min_blocks": 1, "max_blocks": 1})
    )
    assert {name: turn.seconds for name, (turn,) in rounds.turns.items()} == {"a": pytest.approx(1.01), "b": 3.0}
    assert rounds.ratios("b", "a") == pytest.approx([3.0 / 1.01])
    assert rounds.times("a") == [1.0, 1.0, 9.0, 1.02, 1.02, 5.0]
    assert rounds.times("b") == [2.0, 2.0, 0.1, 4.0, 4.0, 4.0]


def test_a_steady_drift_of_the_machine_hits_all_alike():
    # A thousandth slower with every call: the mean of the outer calls equals that of the inner ones exactly.
    machine = Machine(lambda _, call: 1.0 + 0.001 * call)
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
    kept = rounds.kept("b")
    assert (kept.rejected, kept.unsteady, len(kept)) == (1, 0, 7)
    assert len(machine.calls) == 4 * len(rounds) == 4 * 8
    assert set(rounds.times("a")) == {1.0}


@pytest.mark.parametrize(
    ("after", "rejected"),
    [(1.0295, 0), (1.0305, 17), (1 / 1.0295, 0), (1 / 1.0305, 17)],
    ids=["in", "out", "in", "out"],
)
def test_drift_is_judged_in_both_directions(after, rejected):
    machine = Machine(lambda _, call: after if call % 4 == 3 else 1.0)
    assert time_in_turn("ab", machine, STEADY).kept("b").rejected == rejected


def test_where_all_rounds_drift_the_few_that_drift_least_are_kept():
    # The k-th round drifts by 5 + k %.
    noisy = Machine(lambda name, call: 1.05 + 0.01 * (call // 4) if call % 4 == 3 else 1.0)
    kept = time_in_turn("ab", noisy, STEADY).kept("b")
    assert (kept.rejected, kept.unsteady, kept.numbers) == (17, 7, tuple(range(7)))
    assert len(noisy.calls) == 4 * STEADY.max_blocks


@given(st.sets(st.integers(0, 23)))
def test_every_round_is_accounted_for_and_faulty_ones_stand_in_only_for_want_of_others(where):
    machine = jumping(*where)
    kept = time_in_turn("ab", machine, STEADY).kept("b")
    done = len(machine.calls) // 4
    assert kept.rejected + len(kept) == done
    assert len(kept) >= STEADY.min_blocks
    assert kept.rejected + kept.unsteady == len({r for r in where if r < done})
    assert kept.unsteady == 0 or done == STEADY.max_blocks
    assert (kept.contended, kept.crowded) == (0, 0)


# contention


def crowded(*rounds: int, waited: float = 0.5) -> Machine:
    """In the rounds given, every query of b stands in line for `waited` of its second."""

    class Crowded(Machine):
        def __call__(self, name: str) -> Block:
            there = name == "b" and len(self.calls) // 4 in rounds
            times = super().__call__(name).times
            return Block(tuple(t + waited * there for t in times), tuple(waited * there for _ in times))

    return Crowded(lambda name, call: 1.0)


def test_a_contended_round_is_thrown_away_and_counted_apart():
    rounds = time_in_turn("ab", crowded(0, 3), STEADY)
    kept = rounds.kept("b")
    assert (kept.rejected, kept.contended, kept.unsteady, kept.crowded, len(kept)) == (2, 2, 0, 0, 7)
    assert set(rounds.times("b")) == {1.0}


def test_a_round_may_be_contended_in_a_contestant_that_is_no_reference():
    assert time_in_turn("ab", crowded(1), STEADY).kept("b").contended == 1


def test_where_no_round_is_free_a_few_are_kept():
    kept = time_in_turn("ab", crowded(*range(48)), STEADY).kept("b")
    assert (kept.rejected, kept.contended, kept.crowded, len(kept)) == (17, 17, 7, 7)


def test_a_few_free_rounds_are_kept_and_filled_up():
    kept = time_in_turn("ab", crowded(*range(3, 48)), STEADY).kept("b")
    assert (len(kept), kept.crowded) == (7, 4)
    assert kept.numbers[:3] == (0, 1, 2)


def test_enough_free_rounds_need_no_stand_ins():
    wild = crowded(*range(0, 24, 2))
    wild.seconds = lambda name, call: 1.0 + 0.5 * (name == "b") * (call // 4 % 3)
    kept = time_in_turn("ab", wild, LOOSE).kept("b")
    assert (len(kept), kept.rejected, kept.crowded) == (12, 12, 0)


def test_a_starved_process_stops_in_time():
    # After a block each, every query takes a hundred times as long: one round is worth a hundred.
    machine = Machine(lambda name, call: 1.0 if call < 2 else 100.0 + call % 5)
    time_in_turn("ab", machine, LOOSE.model_copy(update={"half_width": 1e-9}))
    assert len(machine.calls) // 4 == STEADY.min_blocks


# a machine that others slow from outside


def slowed(*rounds: int, dense: float = 1.3, other: float = 1.6) -> Machine:
    """In the rounds given, a takes `dense` and b `other` times as long, from the first block to the last."""

    def seconds(name: str, call: int) -> float:
        there = call // 4 in rounds
        return (1.0 if name == "a" else 0.5) * ((dense if name == "a" else other) if there else 1.0)

    return Machine(seconds, noise=0.002)


def test_a_slowed_round_is_thrown_away_though_nothing_drifts_within_it():
    rounds = time_in_turn("ab", slowed(0, 1, 2, 3, 4, 8, 9), STEADY)
    kept = rounds.kept("b")
    assert (kept.rejected, kept.contended, kept.unsteady) == (7, 0, 0)
    assert bootstrap_median(rounds.ratios("b", "a")).value == pytest.approx(0.5, rel=0.01)


def test_a_round_is_slowed_by_any_of_its_contestants():
    assert time_in_turn("ab", slowed(1, 5, dense=1.0, other=1.2), STEADY).kept("b").rejected == 2


@pytest.mark.parametrize(("slower", "rejected"), [(1.049, 0), (1.051, 2)], ids=["in", "out"])
def test_slowed_is_more_than_the_profile_allows(slower, rejected):
    machine = Machine(lambda name, call: slower if call // 4 in (2, 3) else 1.0)
    rounds = time_in_turn("ab", machine, STEADY.model_copy(update={"half_width": 1e-9}))
    assert rounds.kept("b").rejected == rejected


def test_the_slow_rounds_may_come_first_and_be_many():
    """What is slow shows only once it ends: the rounds kept so far are judged anew."""
    rounds = time_in_turn("ab", slowed(*range(16)), LOOSE.model_copy(update={"slowed": 0.05, "half_width": 1e-9}))
    assert len(rounds.kept("b")) == 8
    assert bootstrap_median(rounds.ratios("b", "a")).value == pytest.approx(0.5, rel=0.01)


def test_of_slowed_rounds_the_least_slowed_stand_in():
    # Every eighth round is undisturbed: too few; the k-th of the others takes 6 + k % longer.
    machine = Machine(lambda _, call: 1.0 if call // 4 % 8 == 0 else 1.06 + call // 4 / 100, noise=1e-5)
    kept = time_in_turn("ab", machine, STEADY).kept("b")
    assert (len(kept), kept.unsteady, kept.rejected) == (7, 4, 17)
    assert kept.numbers == (0, 1, 2, 3, 4, 8, 16)


# faults of one contestant among many


def slowed_alone(names: str, victims: Callable[[int], str]) -> Machine:
    """Contestants of 1 s, 2 s and so on; those that `victims` names take 1.5 times as long in that round."""

    def seconds(name: str, call: int) -> float:
        return (1.0 + names.index(name)) * (1.5 if name in victims(call // (2 * len(names))) else 1.0)

    return Machine(seconds, noise=0.002)


def test_each_contestant_loses_only_the_rounds_in_which_it_is_slowed_itself():
    # In every round one of six is slowed, another each time: no round is without fault.
    machine = slowed_alone("abcdefg", lambda k: "bcdefg"[k % 6])
    rounds = time_in_turn("abcdefg", machine, STEADY)
    assert len(rounds) == 9  # b, c and d lose two of these: the fewest that leave seven to each
    for k, name in enumerate("bcdefg"):
        kept = rounds.kept(name)
        assert kept.numbers == tuple(n for n in range(9) if n % 6 != k)
        assert (kept.rejected, kept.unsteady, kept.contended, kept.crowded) == (9 - len(kept), 0, 0, 0)
        assert rounds.ratios(name, "a") == pytest.approx(np.full(len(kept), 2.0 + k), rel=0.01)


def test_one_that_is_always_slowed_takes_stand_ins_and_the_others_none():
    machine = slowed_alone("abc", lambda k: "c" if k % 6 else "")
    rounds = time_in_turn("abc", machine, STEADY)
    assert len(rounds) == STEADY.max_blocks
    assert (len(rounds.kept("b")), rounds.kept("b").unsteady) == (STEADY.max_blocks, 0)
    assert (len(rounds.kept("c")), rounds.kept("c").unsteady, rounds.kept("c").rejected) == (7, 3, 17)
    assert rounds.ratios("b", "a") == pytest.approx(np.full(STEADY.max_blocks, 2.0), rel=0.01)


def test_a_fault_of_the_reference_costs_all_that_round():
    rounds = time_in_turn("abc", slowed_alone("abc", lambda k: "a" * (k == 1) + "b" * (k == 3)), STEADY)
    assert [rounds.kept(name).rejected for name in "abc"] == [1, 2, 1]
    assert 1 not in rounds.kept("c").numbers


def test_so_does_a_fault_of_any_reference():
    machine = slowed_alone("abc", lambda k: "b" * (k in (0, 2)) + "c" * (k in (2, 4)))
    rounds = time_in_turn("abc", machine, STEADY, references=["c"])
    assert len(rounds) == 10
    assert rounds.kept("b").numbers == (1, 3, 5, 6, 7, 8, 9)
    assert rounds.kept("c").numbers == (0, 1, 3, 5, 6, 7, 8, 9)
    assert rounds.ratios("b", "c") == pytest.approx(np.full(7, 2 / 3), rel=0.01)


def test_only_the_first_contestant_drifts():
    # The second block of b takes 4 % longer than the first: no drift of the machine, and not slowed by 5 %.
    machine = Machine(lambda name, call: 1.04 if name == "b" and call % 4 == 2 else 1.0)
    assert time_in_turn("ab", machine, STEADY).kept("b").rejected == 0


def test_a_dozen_contestants_that_are_often_slowed_need_few_rounds():
    """Each block is slowed with probability 1/10: 8 % of the rounds of 13 are without fault, 66 % of those of two."""
    rng = np.random.default_rng(4)
    names = "abcdefghijklm"
    machine = Machine(lambda name, _: (1.0 + names.index(name)) * (1.4 if rng.random() < 0.1 else 1.0), noise=0.003)
    rounds = time_in_turn(names, machine, STEADY)
    assert len(rounds) < STEADY.max_blocks
    for k, name in enumerate(names):
        kept = rounds.kept(name)
        assert kept.faultless == len(kept) >= STEADY.min_blocks
        assert rounds.ratios(name, "a") == pytest.approx(np.full(len(kept), 1.0 + k), rel=0.02)


# when to stop


def test_it_stops_at_the_fewest_rounds_once_the_ratio_is_known():
    rounds = time_in_turn("ab", constant(a=1.0, b=2.0), STEADY)
    assert len(rounds) == STEADY.min_blocks
    assert bootstrap_median(rounds.ratios("b", "a")) == Interval(2.0, 2.0, 2.0)


def test_it_stops_at_the_most_rounds_when_the_ratio_stays_unknown():
    wild = Machine(lambda name, call: 1.0 if name == "a" else 1.0 + (call // 4) % 2)
    assert len(time_in_turn("ab", wild, LOOSE)) == STEADY.max_blocks


def test_it_goes_on_until_the_half_width_is_met_and_no_longer():
    machine = Machine(lambda name, _: 1.0 if name == "a" else 1.3, queries=8, noise=0.02)
    protocol = Timing(min_blocks=7, max_blocks=200, half_width=0.004, drift=0.5, slowed=0.5)
    rounds = time_in_turn("ab", machine, protocol)
    ratios = rounds.ratios("b", "a")
    assert 7 < len(rounds) < 200
    assert bootstrap_median(ratios).half_width < 0.004
    assert all(bootstrap_median(ratios[:n]).half_width >= 0.004 for n in range(7, len(ratios)))


def test_every_contestant_must_be_known():
    wild = Machine(lambda name, call: 1.0 + (call // 6) % 2 if name == "c" else 1.0)
    assert len(time_in_turn("abc", wild, LOOSE)) == STEADY.max_blocks


@pytest.mark.parametrize(
    ("enough", "kept"),
    [(0, 24), (8 * 24, 24), (8 * 24 + 1, 25), (8 * 40, 40), (10_000, 58)],
    ids=["search", "just_enough", "one_more", "later", "out_of_patience"],
)
def test_a_wide_interval_is_followed_until_enough_queries(enough, kept):
    # 4 queries in each of 2 blocks: 8 a round, which takes 5/4 of the fastest: patience ends at 72 × 4/5.
    wild = Machine(lambda name, call: 1.0 if name == "a" else 1.0 + (call // 4) % 2)
    assert len(time_in_turn("ab", wild, LOOSE, enough_queries=enough)) == kept


def test_a_narrow_interval_needs_no_more_queries():
    assert len(time_in_turn("ab", Machine(lambda name, call: 1.0), LOOSE, enough_queries=10_000)) == 7


def test_a_decided_order_ends_it():
    wild = Machine(lambda name, call: 1.0 if name == "a" else 1.0 + (call // 4) % 2)
    rounds = time_in_turn("ab", wild, LOOSE, decided=lambda kept: order_decided(kept.ratios("b", "a"), [0.5, 3.0]))
    assert len(rounds) == STEADY.min_blocks


def test_an_open_order_does_not():
    wild = Machine(lambda name, call: 1.0 if name == "a" else 1.0 + (call // 4) % 2)
    rounds = time_in_turn("ab", wild, LOOSE, decided=lambda kept: order_decided(kept.ratios("b", "a"), [0.5, 1.2]))
    assert len(rounds) == STEADY.max_blocks


def test_without_rivals_nothing_is_decided():
    assert not order_decided(np.ones(7), [])


# percentiles


def test_no_99th_percentile_below_a_thousand():
    assert p99(range(999)) is None


def test_the_interval_of_the_99th_percentile_is_that_of_the_binomial():
    """Oracle: scipy's binomial distribution, ranks found by trying."""
    from scipy.stats import binom

    for n in (1000, 1024, 3000):
        found = p99(range(1, n + 1))  # the k-th smallest value is k
        first = max(r for r in range(1, n) if binom.cdf(r - 1, n, 0.99) <= 0.025)
        last = min(s for s in range(1, n + 1) if binom.sf(s - 1, n, 0.99) <= 0.025)
        assert (found.low, found.high) == (first, last)
        assert found.value == pytest.approx(np.quantile(np.arange(1, n + 1), 0.99))
        assert binom.cdf(last - 1, n, 0.99) - binom.cdf(first - 1, n, 0.99) >= 0.95


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


# pooled processes


def test_one_process_is_a_plain_bootstrap():
    values = np.random.default_rng(1).normal(1.0, 0.1, 12)
    assert bootstrap_nested([values]) == bootstrap_median(values)


def test_processes_weigh_alike_however_many_blocks_they_have():
    groups = [np.full(3, 1.0), np.full(50, 2.0), np.full(7, 3.0)]
    assert bootstrap_nested(groups).value == 2.0


def test_the_pooled_interval_of_steady_processes_is_exact():
    # The median of three picks is the least with probability 7/27, far above 2.5 %.
    assert bootstrap_nested([np.full(5, v) for v in (1.0, 2.0, 4.0)]) == Interval(2.0, 1.0, 4.0)


def test_one_process_with_a_bad_lot_widens_the_interval_and_not_the_value():
    rng = np.random.default_rng(2)
    groups = [rng.normal(mean, 0.003, 8) for mean in (0.90, 0.91, 0.996)]
    found = bootstrap_nested(groups)
    assert found.value == pytest.approx(0.91, abs=0.005)
    assert found.high > 0.99
    assert found.low < 0.905


def test_the_pooled_interval_covers_what_processes_differ_by_and_a_flat_one_does_not():
    rng = np.random.default_rng(0)
    nested = flat = 0
    for case in range(200):
        groups = [rng.normal(1.0 + shift, 0.01, 8) for shift in rng.normal(0.0, 0.02, 3)]
        wide, narrow = bootstrap_nested(groups, seed=case), bootstrap_median(np.concatenate(groups), seed=case)
        nested += wide.low <= 1.0 <= wide.high
        flat += narrow.low <= 1.0 <= narrow.high
    assert flat < 150
    assert nested >= 150


@pytest.mark.parametrize(
    ("interval", "said"),
    [
        (Interval(1.08, 1.05, 1.1), "slower"),
        (Interval(0.9, 0.88, 0.93), "faster"),
        (Interval(1.08, 0.99, 1.1), "equal"),
        (Interval(1.015, 1.01, 1.02), "equal"),
        (Interval(0.985, 0.98, 0.99), "equal"),
    ],
    ids=["slower", "faster", "not_sure", "a_trifle_slower", "a_trifle_faster"],
)
def test_a_verdict_needs_an_interval_without_1_and_more_than_a_trifle(interval, said):
    assert verdict(interval) == said


# what the benchmark asks of a real machine, on one made of numbers


def pooled_ratio(slower: float, seed: int, slice_s: float = 0.0, one_thread: bool = False) -> Interval:
    """Three processes, in each of which the two files differ by chance by 0.5 %; queries of 2 ms, 3 % of noise."""
    rng = np.random.default_rng(seed)
    groups = []
    for process in range(3):
        lot = slower * (1 + 0.005 * rng.standard_normal())
        machine = Machine(
            lambda name, call, lot=lot: 0.002 * (lot if name == "b" else 1.0) * (1 + 1e-4 * call),
            queries=10,
            noise=0.03,
            slice_s=slice_s,
            one_thread=one_thread,
            seed=100 * seed + process,
        )
        groups.append(time_in_turn("ab", machine, STEADY.model_copy(update={"max_blocks": 8})).ratios("b", "a"))
    return bootstrap_nested(groups)


BUSY = pytest.mark.parametrize(
    ("slice_s", "one_thread"),
    [(0.0, True), (0.004, True), (0.001, True), (0.004, False)],
    ids=["quiet", "a_stranger_has_half_of_the_core", "in_slices_shorter_than_a_query", "waits_of_any_thread"],
)


@BUSY
def test_ten_runs_agree(slice_s, one_thread):
    found = np.array([pooled_ratio(0.6, seed, slice_s, one_thread).value for seed in range(10)])
    assert np.abs(found / np.median(found) - 1).max() < 0.03
    assert np.median(found) == pytest.approx(0.6, rel=0.03)


@BUSY
def test_a_planted_8_percent_are_found_and_equals_called_equal(slice_s, one_thread):
    planted = [verdict(pooled_ratio(1.08, seed, slice_s, one_thread)) for seed in range(20)]
    equal = [verdict(pooled_ratio(1.0, seed, slice_s, one_thread)) for seed in range(20)]
    assert planted.count("slower") >= 18
    assert equal.count("equal") >= 18
