"""Oracles: waits and medians counted by hand; a block without waits is its plain median."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autocompress.measure.blocks import Block, queries_per_block, undisturbed

SECONDS = st.floats(1e-4, 1.0)


@given(st.lists(SECONDS, min_size=1, max_size=20))
def test_without_waits_every_query_counts(times: list[float]) -> None:
    block = Block(tuple(times))
    assert undisturbed(block).all()
    assert not block.contended
    assert block.seconds == np.median(times)
    assert block.kept_times == tuple(times)


def test_a_query_that_stood_in_line_is_left_out() -> None:
    block = Block((1.0, 5.0, 1.0, 1.2), (0.0, 4.0, 0.0, 0.0))
    # 4 s in line, told at the end of a query that began at 1.0: they may have begun at -3.0.
    assert undisturbed(block).tolist() == [False, False, True, True]
    assert block.kept_times == (1.0, 1.2)
    assert block.seconds == pytest.approx(1.1)


def test_a_wait_reaches_back_as_far_as_it_is_long() -> None:
    block = Block((1.0,) * 6, (0.0, 0.0, 0.0, 0.0, 1.5, 0.0))
    # Told in the query from 4 to 5: it may have begun at 2.5, in the third query.
    assert undisturbed(block).tolist() == [True, True, False, False, False, True]


def test_a_wait_of_a_thread_alone_lies_within_its_query() -> None:
    block = Block((1.0, 1.0, 9.0, 1.0), (0.0, 0.0, 8.0, 0.0), one_thread=True)
    assert undisturbed(block).tolist() == [True, True, False, True]


def test_a_wait_of_a_twentieth_is_no_disturbance() -> None:
    assert undisturbed(Block((1.0, 1.0), (0.05, 0.05))).all()
    assert not undisturbed(Block((1.0, 1.0), (0.051, 0.051))).any()


@pytest.mark.parametrize(
    ("waited", "contended"),
    [((0.0,) * 8, False), ((0.1,) * 6 + (0.0,) * 2, False), ((0.1,) * 7 + (0.0,), True)],
    ids=["none", "a_quarter_is_left", "an_eighth_is_left"],
)
def test_a_block_is_contended_when_under_a_quarter_is_left(waited: tuple[float, ...], contended: bool) -> None:
    assert Block((1.0,) * 8, waited).contended == contended


def test_every_input_needs_an_undisturbed_query() -> None:
    # Two inputs, two passes; the second input was disturbed both times, by waits too short to reach back.
    waited = (0.0, 0.1, 0.0, 0.1)
    assert not undisturbed(Block((1.0,) * 4, waited)).all()
    assert Block((1.0,) * 4, waited, inputs=2).contended


def test_a_contended_block_keeps_all_of_its_queries() -> None:
    block = Block((2.0, 3.0, 7.0), (1.0, 1.0, 5.0))
    assert block.contended
    assert block.kept_times == (2.0, 3.0, 7.0)
    assert block.seconds == 2.5  # the lower quartile


def test_a_thread_alone_takes_its_waiting_out() -> None:
    block = Block((2.0, 3.0, 7.0), (1.0, 1.75, 5.0), one_thread=True)
    assert block.contended
    assert block.kept_times == (1.0, 1.25, 2.0)
    assert block.seconds == 1.25


def test_a_wait_longer_than_its_query_lay_beside_it() -> None:
    assert Block((2.0, 2.0), (2.5, 1.5), one_thread=True).kept_times == (2.0, 0.5)


def test_several_inputs_are_told_by_the_mean_of_their_medians() -> None:
    # Inputs of 1 s and 4 s, in three passes; one pass of each was slow by chance.
    block = Block((1.0, 4.0, 9.0, 4.0, 1.0, 8.0), inputs=2)
    assert block.seconds == pytest.approx((1.0 + 4.0) / 2)


@given(st.lists(SECONDS, min_size=4, max_size=20), st.data())
def test_whatever_the_waits_a_block_has_a_figure_within_its_times(times: list[float], data: st.DataObject) -> None:
    waits = data.draw(st.lists(st.floats(0, 2.0), min_size=len(times), max_size=len(times)))
    block = Block(tuple(times), tuple(waits))
    assert min(times) <= block.seconds <= max(times)
    assert set(block.kept_times) <= set(times)


@pytest.mark.parametrize(
    ("per_query", "block", "inputs", "queries"),
    [
        (0.001, 0.02, 1, 20),
        (0.0003, 0.02, 1, 67),
        (0.05, 0.02, 1, 2),
        (0.0, 1e-6, 1, 1000),
        (0.001, 0.02, 8, 16),
        (0.05, 0.02, 8, 8),
    ],
    ids=["exact", "rounded", "two_at_least", "zero_seconds", "whole_passes", "a_pass_at_least"],
)
def test_queries_per_block(per_query: float, block: float, inputs: int, queries: int) -> None:
    assert queries_per_block(per_query, block, inputs) == queries
