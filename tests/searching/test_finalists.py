"""The end of a search on planted figures: what steers, what is graded, and what the final front is chosen by.

Oracle: three candidates of which the one that wins on select is the worst on confirm.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from autocompress.budgets import Budgets
from autocompress.drop import Drop
from autocompress.plan import Plan
from autocompress.records import Trial, read_trials, write_scores
from autocompress.run import final_front
from autocompress.searching import grading as searching
from autocompress.searching.grading import Grading
from autocompress.searching.loop import Loop
from autocompress.searching.status import Silent
from autocompress.tasks.task import ACCURACY
from tests.conftest import MakeTrial

DENSE, LUCKY, SOUND, NEXT = range(4)


@pytest.fixture
def trials(make_trial: MakeTrial) -> list[Trial]:
    """Ratio, select, confirm: dense 1.0/.90/.90; lucky .5/.91/.80; sound .6/.905/.89; next .55/.895/.895."""
    figures = {
        DENSE: (1.0, 0.90, 0.90),
        LUCKY: (0.5, 0.91, 0.80),
        SOUND: (0.6, 0.905, 0.89),
        NEXT: (0.55, 0.895, 0.895),
    }
    made = [make_trial(number, *figures[number][:2], quality_confirm=figures[number][2]) for number in figures]
    dense = make_trial(DENSE, *figures[DENSE][:2], plan=Plan(), quality_confirm=figures[DENSE][2], origin="dense")
    return [dense, *made[1:]]


@pytest.fixture
def graded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of the trials in the order in which they were graded; the test figure is 0.5 for all."""
    numbers: list[int] = []

    def time_again(trial: Trial, _shop: Any) -> Any:
        numbers.append(trial.number)
        assert trial.latency is not None
        return replace(trial.latency, tier="report")

    monkeypatch.setattr(searching, "measure_again", time_again)
    monkeypatch.setattr(searching, "score_artifact", lambda *_: SimpleNamespace(value=0.5, stderr=0.01))
    monkeypatch.setattr(Loop, "proposer", lambda _self: None)
    return numbers


def loop_of(root: Path, trials: list[Trial], budgets: Budgets) -> Loop:
    task = SimpleNamespace(metric=ACCURACY, test=range(10), validation=range(10))
    shop: Any = SimpleNamespace(task=task, root=root, artifact_folder=lambda plan, rung: root / plan.fingerprint)
    space: Any = SimpleNamespace(steps=())  # nothing is recovered
    return Loop(shop, space, budgets, list(trials), 60.0, 0.0, Silent(), lambda _front: None, max_trials=len(trials))


def numbers(trials: tuple[Trial, ...]) -> list[int]:
    return [trial.number for trial in trials]


def test_the_winner_on_select_is_graded_but_not_on_the_final_front(
    tmp_path: Path, trials: list[Trial], graded: list[int]
) -> None:
    """Without a budget the select winner beats all others; on confirm dense beats none and is beaten by none."""
    slower = replace(trials[LUCKY].latency, ratio_best_dense=0.58)  # type: ignore[type-var]
    trials[LUCKY] = trials[LUCKY].replace(latency=slower)
    loop = loop_of(tmp_path, trials, Budgets())
    loop.run()
    assert graded == [DENSE, NEXT, LUCKY]
    assert numbers(loop.front.points) == [NEXT, LUCKY]
    front = final_front(loop.front, tmp_path)
    assert front.part == "confirm"
    assert numbers(front.points) == [NEXT, DENSE]


def test_finalists_keep_the_budgets_on_confirm_and_make_room_for_the_next(
    tmp_path: Path, trials: list[Trial], graded: list[int]
) -> None:
    """Lucky dominates the others on select; it loses 10 points on confirm, so that they are graded in its place."""
    loop = loop_of(tmp_path, trials, Budgets(max_drop=Drop(0.02, False)))
    loop.run()
    assert graded == [DENSE, LUCKY, NEXT, SOUND]
    assert loop.trials[LUCKY].state == "INFEASIBLE"
    assert loop.trials[LUCKY].error == "it loses 10.00 points on the confirm part of validation, 2 points allowed"
    assert numbers(final_front(loop.front, tmp_path).points) == [NEXT, DENSE]


class Listener(Silent):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture
def losers(make_trial: MakeTrial) -> list[Trial]:
    """Dense, and seven that beat all behind them on select, and all lose 10 points on confirm."""
    dense = make_trial(0, 1.0, 0.9, plan=Plan(), quality_confirm=0.9, origin="dense")
    rest = [make_trial(n, 0.1 * n, 0.91 - 0.001 * n, quality_confirm=0.8) for n in range(1, 8)]
    return [dense, *rest]


def test_dense_on_the_front_is_graded_once(tmp_path: Path, trials: list[Trial], graded: list[int]) -> None:
    loop = loop_of(tmp_path, [trials[DENSE], trials[NEXT]], Budgets())
    loop.run()
    assert graded == [DENSE, NEXT]


def test_the_reference_that_is_the_best_once_another_is_timed_again_is_graded_too(
    tmp_path: Path, trials: list[Trial], graded: list[int], make_trial: MakeTrial, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two uniform int8 trials, both behind the front: the faster one turns out to be the slower."""
    int8 = [
        make_trial(number, ratio, 0.7, quality_confirm=0.7, origin="uniform-int8")
        for number, ratio in ((4, 0.70), (5, 0.72))
    ]
    loop = loop_of(tmp_path, [trials[DENSE], trials[NEXT], *int8], Budgets())
    time_again = searching.measure_again

    def slower(trial: Trial, shop: Any) -> Any:
        latency = time_again(trial, shop)
        return replace(latency, ratio_best_dense=0.8) if trial.number == 4 else latency

    monkeypatch.setattr(searching, "measure_again", slower)
    loop.run()
    assert sorted(graded) == [DENSE, NEXT, 4, 5]
    assert [trial.number for trial in loop.front.references] == [DENSE, 5]


def test_finalists_alone_are_graded_anew_within_their_own_time(
    tmp_path: Path, trials: list[Trial], graded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By hand: 60 s are for them, and each takes 40 s, so that two of three are graded in their first round."""
    slower = replace(trials[LUCKY].latency, ratio_best_dense=0.58)  # type: ignore[type-var]
    loop = loop_of(tmp_path, [trials[DENSE], trials[LUCKY].replace(latency=slower), trials[NEXT]], Budgets())
    loop.run()
    assert graded == [DENSE, NEXT, LUCKY]
    graded.clear()
    again = loop_of(tmp_path, loop.trials, Budgets())
    again.only, again.watcher = "finalists", (listener := Listener())
    time_again = searching.measure_again

    def slow(trial: Trial, shop: Any) -> Any:
        again.spent_s += 40
        return time_again(trial, shop)

    monkeypatch.setattr(searching, "measure_again", slow)
    again.run()
    assert graded == [DENSE, NEXT]
    assert "grading stops, their share of the time is spent: 1 more stand on the front" in listener.said


def test_grading_ends_after_a_few_rounds_and_says_so(tmp_path: Path, losers: list[Trial], graded: list[int]) -> None:
    loop = loop_of(tmp_path, losers, Budgets(max_drop=Drop(0.02, False)))
    loop.watcher = listener = Listener()
    loop.run()
    assert graded == [0, *range(1, searching.FINAL_ROUNDS + 1)]
    assert any(text.startswith("grading stops, after 4 rounds: 1 more stand on") for text in listener.said)


def test_grading_in_further_rounds_keeps_within_its_share_of_the_time(
    tmp_path: Path, losers: list[Trial], graded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By hand: 10 s each of 60 s, a quarter of which is for grading; the first round is whole whatever it takes."""
    loop = loop_of(tmp_path, losers, Budgets(max_drop=Drop(0.02, False)))
    loop.watcher = listener = Listener()
    time_again = searching.measure_again

    def slow(trial: Trial, shop: Any) -> Any:
        loop.spent_s += 10
        return time_again(trial, shop)

    monkeypatch.setattr(searching, "measure_again", slow)
    loop.run()
    assert graded == [0, 1]
    assert any(text.startswith("grading stops, their share of the time is spent") for text in listener.said)


def test_of_a_long_front_as_many_are_graded_as_there_is_the_time_for(
    tmp_path: Path, trials: list[Trial], graded: list[int], make_trial: MakeTrial, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By hand: 1.2 s each of 15 s, one of which is dense, which is on the front as well; 20 others are."""
    many = [make_trial(i, 0.1 + 0.01 * i, 0.8 + 0.004 * i, quality_confirm=0.9) for i in range(1, 21)]
    loop = loop_of(tmp_path, [trials[DENSE], *many], Budgets())
    loop.watcher = listener = Listener()
    monkeypatch.setattr(Grading, "each_s", lambda _self: 1.2)
    assert len(loop.front.points) == 21
    loop.run()
    assert len(graded) == len(set(graded)) == 11
    assert "graded is what adds most to the front: there is no time for 10 more" in listener.said


def test_the_search_is_steered_by_select_alone(tmp_path: Path, trials: list[Trial], graded: list[int]) -> None:
    loop = loop_of(tmp_path, trials, Budgets(max_drop=Drop(0.02, False)))
    before = [loop._violations(trial) for trial in trials], loop.front.hypervolume(), numbers(loop.front.points)
    other = loop_of(tmp_path, [t.replace(quality_confirm=0.1) for t in trials], loop.budgets)
    assert ([other._violations(t) for t in trials], other.front.hypervolume(), numbers(other.front.points)) == before


def test_a_search_that_was_interrupted_grades_the_rest_and_keeps_the_ties(
    tmp_path: Path, trials: list[Trial], graded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Oracle: the same search without an interruption."""
    for trial in trials:
        assert trial.artifact is not None
        right = np.arange(200) < 200 * (trial.quality_confirm or 0.0)
        write_scores(tmp_path / trial.artifact.path, right)
    budgets = Budgets(max_drop=Drop(0.02, False))
    whole = loop_of(tmp_path, trials, budgets)
    whole.run()
    expected = final_front(whole.front, tmp_path)
    assert expected.ties == {trials[DENSE].fingerprint: (trials[NEXT].fingerprint,)}  # a single sample lies between

    (tmp_path / "trials.jsonl").unlink()
    graded.clear()
    time_again = searching.measure_again

    def interrupted(trial: Trial, shop: Any) -> Any:
        if trial.number == NEXT:
            raise KeyboardInterrupt
        return time_again(trial, shop)

    with monkeypatch.context() as patch:
        patch.setattr(searching, "measure_again", interrupted)
        with pytest.raises(KeyboardInterrupt):
            loop_of(tmp_path, trials, budgets).run()
    known = {trial.number: trial for trial in (*trials, *read_trials(tmp_path / "trials.jsonl"))}
    resumed = loop_of(tmp_path, list(known.values()), budgets)
    resumed.run()
    assert graded == [DENSE, LUCKY, NEXT, SOUND]
    front = final_front(resumed.front, tmp_path)
    assert (front.points, front.ties) == (expected.points, expected.ties)
