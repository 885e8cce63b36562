"""A sheet of results that several processes fill: each case is run once."""

import common
import pytest


@pytest.fixture
def sheets(tmp_path):
    return common.Sheet("some", tmp_path), common.Sheet("some", tmp_path)


def test_a_case_that_another_has_written_is_not_run_again(sheets):
    ours, theirs = sheets
    theirs.run(lambda: {"x": 1}, seed=0)
    ours.run(lambda: pytest.fail("ran again"), seed=0)
    ours.run(lambda: {"x": 2}, seed=1)
    assert [line["values"]["x"] for line in ours.lines] == [1, 2]


def test_a_case_that_another_is_at_is_left_to_it(sheets):
    ours, theirs = sheets
    with theirs.claimed(seed=0) as free:
        assert free
        ours.run(lambda: pytest.fail("claimed by another"), seed=0)
        ours.run(lambda: {"x": 1}, seed=1)
    ours.run(lambda: {"x": 2}, seed=0)
    assert [line["case"]["seed"] for line in ours.lines] == [1, 0]


def test_a_claim_ends_with_what_was_at_it(sheets):
    ours, theirs = sheets
    with pytest.raises(RuntimeError, match="broken"):
        theirs.run(lambda: (_ for _ in ()).throw(RuntimeError("broken")), seed=0)
    ours.run(lambda: {"x": 1}, seed=0)
    assert ours.has(seed=0)
