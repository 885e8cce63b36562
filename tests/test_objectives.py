"""Oracle: four trials whose volume is counted in boxes by hand; dense takes 10 ms, 1,000 kB and 100 MB."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from autocompress.budgets import Budgets
from autocompress.drop import Drop
from autocompress.errors import ConfigError
from autocompress.front import LEAST_GRADED, Front, front_entry
from autocompress.objectives import OBJECTIVES, USUAL, Objectives, amount, read_objectives
from autocompress.pareto import hypervolume, most_telling
from autocompress.plan import Plan

BY_SIZE = Objectives(("latency", "quality", "size"))
BY_ALL = Objectives(OBJECTIVES)
CORNER = math.log(1.05)


@pytest.fixture
def make(make_trial):
    """``make(number, ratio, quality, kilobytes, megabytes of memory, **changes)``."""

    def made(number, ratio, quality, size, memory=None, **changes):
        trial = make_trial(number, ratio, quality, **changes)
        peak = None if memory is None else int(memory * 1e6)
        return trial.replace(
            artifact=replace(trial.artifact, size_bytes=size * 1000),
            latency=replace(trial.latency, peak_memory_bytes=peak),
        )

    return made


@pytest.fixture
def trials(make):
    """Half is faster and smaller than dense; tiny is neither faster nor better than half, but smaller; bad is none."""
    return (
        make(0, 1.0, 0.90, 1000, 100, plan=Plan(), origin="dense"),
        make(1, 0.5, 0.85, 500, 80),
        make(2, 0.6, 0.84, 100, 80),
        make(3, 0.6, 0.83, 500, 79.8),
    )


def numbers(trials):
    return [t.number for t in trials]


# what is read


@pytest.mark.parametrize(
    ("given", "names"),
    [
        pytest.param(None, ("latency", "quality"), id="nothing"),
        pytest.param("quality, latency", ("latency", "quality"), id="any_order"),
        pytest.param("latency,quality,size", ("latency", "quality", "size"), id="three"),
        pytest.param(["memory", "size", "latency", "quality"], OBJECTIVES, id="a_list"),
    ],
)
def test_objectives_are_read_into_one_order(given, names):
    assert read_objectives(given).names == names
    assert read_objectives(read_objectives(given).names).names == names


@pytest.mark.parametrize(
    ("given", "message"),
    [
        pytest.param("latency,quality,sise", r"^--objectives: 'sise' is unknown; did you mean 'size'\?$", id="unknown"),
        pytest.param(
            "latency,quality,xyz", "^--objectives: 'xyz' is unknown; known: latency, memory, quality, size$", id="far"
        ),
        pytest.param(
            "latency,quality,size,size",
            "^--objectives latency,quality,size,size: names size more than once; each may stand there once$",
            id="twice",
        ),
        pytest.param(
            "size,quality",
            "^--objectives size,quality: lacks latency, which every search needs; give latency,quality,size$",
            id="less",
        ),
        pytest.param(
            "memory", "lacks latency and quality, which every search needs; give latency,quality,memory$", id="alone"
        ),
        pytest.param("", "^--objectives: '' is unknown; known: ", id="empty"),
    ],
)  # fmt: skip
def test_what_is_no_choice_of_objectives_is_refused(given, message):
    with pytest.raises(ConfigError, match=message):
        read_objectives(given)


# values


def test_values_are_the_trials_own(trials):
    assert BY_ALL.values(trials[1]) == (0.5, 0.85, 500_000.0, 80e6)
    assert BY_ALL.taken(trials[1]) == (500_000.0, 80e6)
    assert USUAL.values(trials[1]) == (0.5, 0.85)
    assert [BY_ALL.directions(maximize) for maximize in (True, False)] == [
        (False, True, False, False),
        (False, False, False, False),
    ]


def test_points_are_logarithms_of_ratios_to_dense(trials):
    expected = (math.log(0.5), 0.85, math.log(0.5), math.log(0.8))
    assert BY_ALL.point(trials[1], trials[0]) == pytest.approx(expected)
    assert BY_ALL.point(trials[0], trials[0]) == (0.0, 0.9, 0.0, 0.0)
    assert BY_ALL.reference(0.9, True) == pytest.approx((CORNER, 0.8, CORNER, CORNER))
    allowed = Objectives(allowed=Drop(0.3, relative=True), fraction=False)
    assert allowed.reference(20.0, False) == pytest.approx((CORNER, 20.0 * (1 + 1.05 * 0.3)))


def test_what_is_not_known_is_no_number(make, trials):
    unknown = make(9, 0.5, 0.9, 500)
    assert amount(unknown, "memory") is None
    assert np.isnan(BY_ALL.values(unknown)).tolist() == [False, False, False, True]
    assert np.isnan(BY_ALL.point(trials[1], unknown)).tolist() == [False, False, False, True]
    assert np.isnan(BY_SIZE.point(trials[1], None)).tolist() == [False, False, True]
    assert numbers(Front((*trials, unknown), True, objectives=BY_ALL).points) == [1, 2, 0]


def test_memory_is_compared_in_steps_that_its_noise_does_not_pass(make, trials):
    """79.8 MB and 80 MB are the same: what is larger, slower and worse is not on the front for it."""
    assert BY_ALL.values(trials[3])[3] == BY_ALL.values(trials[1])[3] == 80e6
    assert numbers(Front(trials, True, objectives=BY_ALL).points) == [1, 2, 0]
    leaner = make(4, 0.6, 0.83, 500, 70)
    assert numbers(Front((*trials, leaner), True, objectives=BY_ALL).points) == [1, 2, 4, 0]


# the front


def test_what_is_neither_faster_nor_better_but_smaller_is_on_the_front(trials):
    assert numbers(Front(trials, True).points) == [1, 0]
    front = Front(trials, True, objectives=BY_SIZE)
    assert numbers(front.points) == [1, 2, 0]
    assert front.choose(Budgets(max_size_bytes=200_000)) == trials[2]


def test_the_volume_is_that_of_boxes_by_hand(trials):
    """Three boxes down to the corner, less their overlaps: the common part of two is the box of their worse ends."""

    def box(*members):
        points = np.array([BY_SIZE.point(trials[i], trials[0]) for i in members]) * [1, -1, 1]
        return float(np.prod(np.array([CORNER, -0.8, CORNER]) - points.max(axis=0)))

    expected = box(0) + box(1) + box(2) - box(0, 1) - box(0, 2) - box(1, 2) + box(0, 1, 2)
    assert Front(trials, True, objectives=BY_SIZE).hypervolume() == pytest.approx(expected)
    assert Front(trials[1:], True, objectives=BY_SIZE).hypervolume() == 0.0
    with_equal_memory = Front(tuple(t.replace(latency=replace(t.latency, peak_memory_bytes=10**8)) for t in trials),
                              True, objectives=BY_ALL)  # fmt: skip
    assert with_equal_memory.hypervolume() == pytest.approx(expected * CORNER)


def test_weights_of_what_is_smaller_are_kept(make, trials):
    better = make(4, 0.4, 0.9, 300)
    front = (*trials, better)
    assert Front(front, True).clearly_dominated(trials[2])
    assert not Front(front, True, objectives=BY_SIZE).clearly_dominated(trials[2])
    assert Front(front, True, objectives=BY_SIZE).clearly_dominated(trials[3])


def test_no_point_is_tied_that_is_there_for_its_size(trials):
    """Half and tiny are right on the same samples."""
    graded = tuple(
        t.replace(quality_confirm=t.quality, quality_test=0.8, latency=replace(t.latency, tier="report"))
        for t in trials[:3]
    )
    scores = {t.fingerprint: np.ones(100) for t in graded}
    front = Front(graded, True, final=True, scores=scores, objectives=BY_SIZE)
    assert numbers(front.points) == [1, 2, 0]
    assert front.ties == {graded[0].fingerprint: (graded[2].fingerprint,)}


def test_entries_tell_of_memory_where_it_is_known(make, trials):
    front = Front((*trials, make(5, 0.4, 0.8, 400)), True)
    known = front_entry(trials[1], front, True)
    assert (known["peak_memory_bytes"], known["peak_memory_bytes_dense"]) == (80_000_000, 100_000_000)
    assert front_entry(front.trials[-1], front, True)["peak_memory_bytes"] is None


# finalists


def test_what_adds_least_volume_goes_first():
    """Up to (0, 0): (-1, -3) and (-3, -1) are the ends, (-2, -2) adds 1 and (-2.1, -1.95) next to nothing beside it."""
    points = [(-1.0, -3.0), (-2.0, -2.0), (-2.1, -1.95), (-3.0, -1.0)]
    least = (False, False)
    assert most_telling(points, (0.0, 0.0), least, 4) == [0, 1, 2, 3]
    kept = most_telling(points, (0.0, 0.0), least, 3)
    losses = [hypervolume(points, (0, 0), least) - hypervolume([p for p in points if p != q], (0, 0), least)
              for q in points]  # fmt: skip
    assert kept == [i for i in range(4) if i != int(np.argmin(losses))]
    assert most_telling(points, (0.0, 0.0), least, 1) in ([0], [1], [2], [3])
    assert most_telling([], (0.0, 0.0), least, 3) == []


def test_a_long_front_is_thinned_to_what_can_be_graded(make, trials):
    """More kilobytes for less time, all of one quality: 40 of them, and dense."""
    many = [make(i, 1 / (1 + 0.02 * i), 0.85, 100 + 10 * i) for i in range(1, 41)]
    every = (trials[0], *many)
    front = Front(every, True, objectives=BY_SIZE)
    assert len(front.points) == 41
    assert len(front.affordable(30.5)) == 30
    assert len(front.affordable(3)) == LEAST_GRADED
    assert len(front.affordable(math.inf)) == 41
    assert set(numbers(front.affordable(30))) <= set(numbers(front.points))
    usual = Front((trials[0], *(make(i, 1 / (1 + 0.1 * i), 0.85 - 0.01 * i, 100) for i in range(1, 13))), True)
    assert [len(usual.affordable(count)) for count in (1, 10, 13)] == [LEAST_GRADED, 10, 13]
