"""Oracle: seconds, counts and hypervolumes added by hand."""

from __future__ import annotations

import json

import pytest

from autocompress.errors import ConfigError
from autocompress.searching.stages import Stage, Stages, check_patience


def test_each_stage_adds_up_over_its_returns_and_over_sessions():
    stages = Stages()
    assert stages.enter("probe", 0.0, 0.0) is None
    assert stages.enter("refine", 5.0, 0.0) == Stage("probe", 5.0, 0, 0.0, 0.0)
    stages.candidate(0.2)
    stages.candidate(0.3)
    assert stages.enter("recover", 9.0, 0.3) == Stage("refine", 4.0, 2, 0.0, 0.3)
    stages.candidate(0.4)
    stages.enter("refine", 20.0, 0.4)
    written = json.loads(json.dumps(stages.to_json(22.0, 0.5)))
    assert written == [
        {"stage": "probe", "seconds": 5.0, "candidates": 0, "hypervolume_before": 0.0, "hypervolume_after": 0.0},
        {"stage": "refine", "seconds": 6.0, "candidates": 2, "hypervolume_before": 0.0, "hypervolume_after": 0.5},
        {"stage": "recover", "seconds": 11.0, "candidates": 1, "hypervolume_before": 0.3, "hypervolume_after": 0.4},
    ]
    resumed = Stages(written)
    resumed.enter("recover", 30.0, 0.5)
    resumed.candidate(0.6)
    resumed.end(33.0, 0.6)
    assert [one["stage"] for one in resumed.to_json(99.0, 0.6)] == ["probe", "refine", "recover"]
    assert resumed.to_json(99.0, 0.6)[2] == {
        "stage": "recover", "seconds": 14.0, "candidates": 2, "hypervolume_before": 0.3, "hypervolume_after": 0.6,
    }  # fmt: skip


def test_a_stage_that_did_nothing_is_not_told_of():
    stages = Stages()
    stages.enter("recover", 0.0, 0.1)
    assert stages.end(0.5, 0.1) is None
    assert stages.to_json(9.0, 0.1) == []


def test_the_words_of_a_stage():
    assert str(Stage("losses", 14.2, 0, 0.1, 0.1)) == "losses: 14.2 s"
    assert str(Stage("refine", 41.0, 12, 0.312, 0.345)) == (
        "refine: 12 candidates in 41 s, hypervolume 0.3120 to 0.3450"
    )
    assert "1 candidate in" in str(Stage("refine", 41.0, 1, 0.3, 0.3))


@pytest.mark.parametrize(("last", "stagnates"), [(1.0, True), (1.0009, True), (1.0011, False), (0.5, True)])
def test_stagnation_is_told_over_as_many_candidates_as_there_is_patience_for(last, stagnates):
    stages = Stages(patience=5)
    stages.begin(0.2)
    for volume in (1.0, 1.0, 1.0, 1.0, 1.0):
        stages.candidate(volume)
        assert not stages.stagnates, "five candidates grew from 0.2"
    stages.candidate(last)
    assert stages.stagnates is stagnates
    stages.begin(last)
    assert not stages.stagnates


def test_without_patience_nothing_stagnates():
    stages = Stages()
    stages.begin(1.0)
    for _ in range(1000):
        stages.candidate(1.0)
    assert not stages.stagnates


def test_too_little_patience_is_refused():
    check_patience(None)
    check_patience(5)
    with pytest.raises(ConfigError, match="--patience must be 5 candidates or more, but got 4"):
        check_patience(4)


def test_nothing_within_the_budgets_is_no_stagnation():
    """Patience is with what adds nothing; where there is nothing yet, only the time ends a search."""
    stages = Stages(patience=5)
    stages.begin(0.0)
    for _ in range(20):
        stages.candidate(0.0)
    assert not stages.stagnates
    for volume in (0.2, *[0.2] * 5):
        stages.candidate(volume)
    assert stages.stagnates
