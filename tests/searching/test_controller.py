"""Oracles: the journal as Optuna's own reader sees it, and the whole of a small space counted by hand."""

from __future__ import annotations

import itertools
import json
import math

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from autocompress.errors import ConfigError
from autocompress.objectives import Objectives
from autocompress.plan import Plan, Prune
from autocompress.searching.controller import (
    SAMPLERS,
    Controller,
    Proposal,
    Tuner,
    importances,
    make_sampler,
    typical_seconds,
)
from autocompress.space import Variable

# Two blocks of which one may go, heads of each: 8 plans (see test_space.py).
SMALL = {"groups": {"heads": [1.0, 0.5]}, "blocks": {"remove": True}}
LARGE = {
    "groups": {"heads": [1.0, 0.75, 0.5, 0.25], "neurons": [1.0, 0.75, 0.5, 0.25]},
    "layers": [{"kind": "linear", "precision": ["fp32", "int8-dynamic", "int8"], "rank": [1.0, 0.25]}],
    "distill": {"steps": [0, 10, 20]},
}


RATE, SOFT = Variable("learning_rate", low=1e-5, high=1e-2, log=True), Variable("soft_weight", low=0.0, high=1.0)


@pytest.fixture(scope="module")
def small(make_space):
    return make_space(SMALL)


@pytest.fixture(scope="module")
def large(make_space):
    return make_space(LARGE)


@pytest.fixture
def journal(tmp_path):
    return tmp_path / "study.journal"


def over(trial):
    """At least twice as fast, and a second budget that always holds."""
    return {"speedup": trial.latency.ratio * 2 - 1, "drop": -0.5}


def start(journal, space, trials=(), maximize=True, sampler="random", seed=0):
    return Controller(journal, space, maximize, over, sampler, seed, trials)


def study(journal, name="rung-0"):
    return optuna.load_study(study_name=name, storage=JournalStorage(JournalFileBackend(str(journal))))


def states(journal):
    return [t.state.name for t in study(journal).trials]


@pytest.fixture
def answer(make_trial):
    """The measured trial that answers a proposal."""

    def make(proposal, ratio=0.5, quality=0.9, **changes):
        trial = make_trial(proposal.number, ratio, quality, plan=proposal.plan)
        return trial.replace(origin=proposal.origin, proposal=proposal.number, **changes)

    return make


@pytest.fixture
def failure(answer):
    """The trial of a proposal that could not be measured."""
    return lambda proposal: answer(proposal).replace(state="FAILED", latency=None, quality=None, error="no kernel")


# asking


def test_seeds_come_out_in_order_with_their_origin(journal, small):
    controller = start(journal, small)
    controller.enqueue(small.uniform(), "dense")
    controller.enqueue(small.uniform(keep=0.5), "uniform")
    controller.enqueue(small.uniform(removed=("net.1",)), "seed")
    asked = [controller.ask() for _ in range(3)]
    assert [p.number for p in asked] == [0, 1, 2]
    assert [p.origin for p in asked] == ["dense", "uniform", "seed"]
    half = Plan({f"net.{i}.attention/heads": Prune(2) for i in range(2)})
    assert [p.plan for p in asked] == [Plan(), half, Plan({"net.1": Prune(0)})]


def test_what_is_withdrawn_counts_as_failed_and_may_be_proposed_again(journal, small):
    """Of 8 plans one is taken back time and again: the others come all the same, and it does, too."""
    controller = start(journal, small)
    controller.enqueue(small.uniform(), "dense")
    first = controller.ask()
    controller.withdraw(first)
    assert states(journal) == ["FAIL"]
    controller.withdraw(first)
    assert states(journal) == ["FAIL"], "once is enough"
    controller.enqueue(small.uniform(), "dense", again=True)
    assert controller.ask().plan == first.plan
    assert controller.ask().plan != first.plan
    assert start(journal, small).ask() is not None, "what is left is proposed after a restart"


def test_after_the_seeds_the_sampler_proposes(journal, small, answer):
    controller = start(journal, small)
    controller.enqueue(small.uniform(), "dense")
    first = controller.ask()
    controller.tell(first.number, answer(first))
    assert controller.ask().origin == "sampled"


def test_enqueueing_the_same_values_twice_changes_nothing_unless_again(journal, small):
    controller = start(journal, small)
    controller.enqueue(small.uniform(), "dense")
    controller.enqueue(small.uniform(), "seed")
    assert controller.proposals == 1
    controller.enqueue(small.uniform(), "seed", again=True)
    assert controller.proposals == 2


def test_what_is_under_way_is_not_proposed_again_and_told_when_it_is_known(journal, small, answer):
    """A space of 8 plans asked for 8 at once: each once; draws of the same plans wait, and are told with it."""
    controller = start(journal, small)
    asked = []
    while (proposal := controller.ask()) is not None:
        asked.append(proposal)
    assert len({proposal.plan for proposal in asked}) == len(asked) == 8
    waiting = states(journal).count("RUNNING")
    assert waiting > 8
    for proposal in asked:
        controller.tell(proposal.number, answer(proposal))
    assert states(journal) == ["COMPLETE"] * waiting


def test_a_kill_with_several_under_way_proposes_them_again(journal, small, answer):
    before = start(journal, small)
    asked = [before.ask() for _ in range(3)]
    before.tell(asked[1].number, answer(asked[1]))
    after = start(journal, small, [answer(asked[1])])
    again = [after.ask() for _ in range(2)]
    assert {proposal.plan for proposal in again} == {asked[0].plan, asked[2].plan}


def test_the_seed_of_the_search_is_in_every_plan_that_recovers(journal, large):
    controller = start(journal, large, seed=11)
    controller.enqueue(large.uniform(keep=0.5, recover=True), "seed")
    controller.enqueue(large.uniform(keep=0.5), "seed")
    recovers, still = controller.ask().plan, controller.ask().plan
    assert recovers.distill is not None
    assert (recovers.seed, still.seed) == (11, 0)
    assert (still.distill, still.groups) == (None, recovers.groups)
    for _ in range(5):
        plan = controller.ask().plan
        assert plan.seed == (11 if plan.distill else 0)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_one_seed_gives_the_same_proposals_again(tmp_path, large, answer, sampler):
    def proposals(name, seed):
        controller, plans = start(tmp_path / name, large, sampler=sampler, seed=seed), []
        for number in range(11 if sampler == "gp" else 13):  # beyond 10 random ones
            asked = controller.ask()
            controller.tell(asked.number, answer(asked, 0.3 + 0.05 * (number % 7), 0.9 - 0.01 * number))
            plans.append((asked.plan.groups, asked.plan.layers, asked.plan.distill))
        return plans

    first = proposals("a", 1)
    assert proposals("b", 1) == first
    assert proposals("c", 2) != first


def test_an_unknown_sampler_shows_near_names(journal, small):
    with pytest.raises(ConfigError, match="--sampler 'nsga4' is unknown; did you mean 'nsga"):
        start(journal, small, sampler="nsga4")
    with pytest.raises(ConfigError, match="--sampler 'zzz' is unknown; known: auto, gp, nsga2, nsga3, random, tpe"):
        make_sampler("zzz", 0)


@pytest.mark.parametrize(
    ("sampler", "name"),
    [("auto", "TPESampler"), ("tpe", "TPESampler"), ("nsga2", "NSGAIISampler"), ("nsga3", "NSGAIIISampler"),
     ("gp", "GPSampler"), ("random", "RandomSampler")],
)  # fmt: skip
def test_samplers_are_those_of_their_names(sampler, name):
    assert type(make_sampler(sampler, 0)).__name__ == name


def test_nothing_is_asked_when_less_is_left_than_a_candidate_takes(journal, small, answer):
    """By hand: candidates of 2, 4 and 6 seconds; one that failed is not counted."""
    controller, trials = start(journal, small), []
    for seconds in (2.0, 4.0, 6.0):
        asked = controller.ask(0.1 if not trials else 10.0)
        trials.append(answer(asked, seconds={"measure": seconds / 2, "score": seconds / 2}))
        controller.tell(asked.number, trials[-1])
    assert typical_seconds(trials) == pytest.approx(4.0)
    assert typical_seconds([*trials, trials[0].replace(quality=None, seconds={"build": 99.0})]) == pytest.approx(4.0)
    assert typical_seconds([]) == 0.0
    for controller_now in (controller, start(journal, small, trials)):
        assert controller_now.ask(3.9) is None
        assert controller_now.ask(4.1) is not None


# telling


def test_objectives_and_constraints_are_stored_of_infeasible_trials_too(journal, small, answer):
    controller = start(journal, small)
    for values in (small.uniform(), small.uniform(keep=0.5)):
        controller.enqueue(values, "seed")
    fits, breaks = controller.ask(), controller.ask()
    controller.tell(fits.number, answer(fits, 0.4, 0.91))
    controller.tell(breaks.number, answer(breaks, 0.8, 0.95, state="INFEASIBLE"))
    told = study(journal)
    assert [d.name for d in told.directions] == ["MINIMIZE", "MAXIMIZE"]
    assert [t.values for t in told.trials] == [[0.4, 0.91], [0.8, 0.95]]
    assert [dict(t.constraints) for t in told.trials] == [
        {"speedup": pytest.approx(-0.2), "drop": -0.5},
        {"speedup": pytest.approx(0.6), "drop": -0.5},
    ]
    assert [t.number for t in told.best_trials] == [0]


def test_a_quality_that_is_minimized_is_an_objective_to_minimize(journal, small):
    start(journal, small, maximize=False)
    assert [d.name for d in study(journal).directions] == ["MINIMIZE", "MINIMIZE"]


def test_a_failed_trial_is_told_as_failed_and_not_proposed_again(journal, small, failure):
    controller = start(journal, small)
    controller.enqueue(small.uniform(), "dense")
    asked = controller.ask()
    controller.tell(asked.number, failure(asked))
    assert states(journal) == ["FAIL"]
    controller.enqueue(small.uniform(), "seed", again=True)
    assert controller.ask().plan != asked.plan
    assert states(journal)[:2] == ["FAIL", "FAIL"]


def test_a_duplicate_is_answered_without_evaluation(journal, small, answer):
    removed = small.uniform(removed=("net.1",))
    controller = start(journal, small)
    controller.enqueue(removed, "seed")
    controller.enqueue({**removed, "keep:net.1.attention/heads": 1}, "seed")  # of the removed block: no effect
    controller.enqueue(small.uniform(), "dense")
    first = controller.ask()
    controller.tell(first.number, answer(first, 0.4, 0.91))
    second = controller.ask()
    assert (second.number, second.origin) == (2, "dense")
    original, copy, _ = study(journal).trials
    assert (copy.state, copy.values) == (TrialState.COMPLETE, [0.4, 0.91])
    assert copy.constraints == original.constraints


def test_a_small_space_is_exhausted_after_all_its_plans(journal, small, answer):
    names = [v.name for v in small.variables]
    every = {small.decode(dict(zip(names, bits, strict=True))) for bits in itertools.product((0, 1), repeat=4)}
    controller, found = start(journal, small), []
    while (asked := controller.ask()) is not None:
        found.append(asked.plan)
        controller.tell(asked.number, answer(asked))
    assert len(found) == len(every) == 8
    assert set(found) == every


class Settled(optuna.samplers.RandomSampler):
    """Proposes the same over and over, as TPE does once it has settled."""

    def __init__(self) -> None:
        super().__init__(seed=0)
        self.asked = 0

    def sample_independent(self, _study, _trial, _name, distribution):
        self.asked += 1
        return distribution.low


def test_a_sampler_that_has_settled_does_not_end_a_search(journal, large, answer):
    """Plans are drawn at random then, and ever less time goes into asking it."""
    controller, sampler = start(journal, large), Settled()
    controller._sampler = sampler
    assert controller.ask(wander=False) is not None
    asked = []
    for _ in range(8):
        before = sampler.asked
        proposal = controller.ask()
        controller.tell(proposal.number, answer(proposal))
        asked.append((sampler.asked - before) // len(large.variables))
    assert asked == [16, 8, 4, 2, 1, 1, 1, 1]
    assert controller.ask(wander=False) is None
    controller._sampler = optuna.samplers.RandomSampler(seed=9)
    controller.tell((proposal := controller.ask()).number, answer(proposal))
    controller._sampler = sampler
    before = sampler.asked
    controller.ask()
    assert (sampler.asked - before) // len(large.variables) == 16, "it proposed something new, and is trusted again"


def test_what_is_evaluated_elsewhere_is_not_proposed_but_learned(journal, small, answer):
    """As of a Tune experiment that is restored, which runs its own trials again."""
    killed = start(journal, small).ask()
    controller = start(journal, small)
    controller.expect(killed.plan)
    asked = []
    while (proposal := controller.ask()) is not None:
        asked.append(proposal)
        controller.tell(proposal.number, answer(proposal))
    assert killed.plan not in [proposal.plan for proposal in asked]
    values = controller.asked(killed.number)
    controller.add(values, answer(killed))
    assert controller.ask() is None
    assert "RUNNING" not in states(journal)


# resuming


def test_a_proposal_without_a_trial_is_proposed_again(journal, small):
    controller = start(journal, small)
    controller.enqueue(small.uniform(keep=0.5), "uniform")
    killed = controller.ask()
    asked = start(journal, small).ask()
    assert (asked.plan, asked.origin) == (killed.plan, "uniform")
    assert asked.number != killed.number
    assert states(journal)[0] == "FAIL"


def test_two_kills_in_a_row_lose_nothing(journal, large):
    killed = start(journal, large).ask()
    for _ in range(2):
        asked = start(journal, large).ask()
        assert (asked.plan, asked.origin) == (killed.plan, "sampled")


def test_seeds_that_were_not_asked_yet_wait_for_the_next_start(journal, small, answer):
    controller = start(journal, small)
    controller.enqueue(small.uniform(), "dense")
    controller.enqueue(small.uniform(keep=0.5), "uniform")
    first = controller.ask()
    trial = answer(first)
    controller.tell(first.number, trial)
    again = start(journal, small, [trial])
    assert (again.proposals, again.ask().origin) == (2, "uniform")


def test_a_proposal_whose_trial_was_written_but_not_told_is_told(journal, small, answer):
    controller = start(journal, small)
    controller.enqueue(small.uniform(), "dense")
    asked = controller.ask()
    again = start(journal, small, [answer(asked, 0.7, 0.93)])
    told = [t for t in study(journal).trials if t.state == TrialState.COMPLETE]
    assert [t.values for t in told] == [[0.7, 0.93]]
    assert dict(told[0].constraints) == {"speedup": pytest.approx(0.4), "drop": -0.5}
    assert told[0].params == small.uniform()
    assert "RUNNING" not in states(journal)
    assert again.ask().plan != asked.plan


def test_a_failed_trial_that_was_not_told_stays_failed(journal, small, failure):
    asked = start(journal, small).ask()
    again = start(journal, small, [failure(asked)])
    assert states(journal) == ["FAIL"]
    assert again.ask().plan != asked.plan


def test_a_resumed_sampler_moves_on_instead_of_starting_over(journal, large, answer):
    controller, trials = start(journal, large), []
    for _ in range(3):
        asked = controller.ask()
        trials.append(answer(asked))
        controller.tell(asked.number, trials[-1])
    assert start(journal, large, trials).ask().number == 3  # no repetition was answered in between
    assert states(journal) == ["COMPLETE"] * 3 + ["RUNNING"]


def test_what_was_told_is_not_told_again(journal, small, answer):
    controller = start(journal, small)
    asked = controller.ask()
    trial = answer(asked)
    controller.tell(asked.number, trial)
    start(journal, small, [trial])
    assert states(journal) == ["COMPLETE"]


@pytest.mark.parametrize(
    "left", [b"{", b'{"op_code": 4, "wor', b'{"op_code": 99, "worker_id": "x"}'], ids=["brace", "half", "no_newline"]
)
def test_a_torn_last_journal_line_is_survived(journal, small, answer, left):
    controller = start(journal, small)
    controller.enqueue(small.uniform(), "dense")
    asked = controller.ask()
    trial = answer(asked)
    controller.tell(asked.number, trial)
    whole = journal.read_bytes()
    journal.write_bytes(whole + left)
    again = start(journal, small, [trial])
    assert again.proposals == 1
    assert again.ask() is not None
    assert journal.read_bytes().startswith(whole)
    assert 99 not in [json.loads(line)["op_code"] for line in journal.read_text().splitlines()]
    assert states(journal) == ["COMPLETE", "RUNNING"]


def cut_journals(tmp_path, first, begin):
    """Copies of the journal cut after each line from `begin` on: a kill between any two writes."""
    lines = first.read_bytes().splitlines(keepends=True)
    for kept in range(begin, len(lines) + 1):
        cut = tmp_path / f"{kept}.journal"
        cut.write_bytes(b"".join(lines[:kept]))
        yield cut


def test_a_journal_cut_after_any_line_can_be_continued(tmp_path, small, answer):
    first = tmp_path / "whole.journal"
    controller = start(first, small)
    controller.enqueue(small.uniform(), "dense")
    asked = controller.ask()
    trial = answer(asked)
    controller.tell(asked.number, trial)
    for cut in cut_journals(tmp_path, first, 0):
        assert start(cut, small, [trial]).ask().plan != trial.plan
        assert states(cut).count("RUNNING") == 1


def test_a_seed_killed_while_its_values_are_written_is_proposed_again(tmp_path, small):
    first = tmp_path / "whole.journal"
    controller = start(first, small)
    controller.enqueue(small.uniform(), "dense")
    waiting = len(first.read_bytes().splitlines())
    controller.ask()
    for cut in cut_journals(tmp_path, first, waiting):
        asked = start(cut, small).ask()
        assert (asked.origin, asked.plan) == ("dense", Plan()), cut.name


# values


def test_values_of_a_proposal_are_known_to_the_next_session_too(journal, small, answer):
    controller = start(journal, small)
    controller.enqueue(small.uniform(keep=0.5), "uniform")
    asked = controller.ask()
    trial = answer(asked)
    controller.tell(asked.number, trial)
    for known in (controller, start(journal, small, [trial])):
        assert known.asked(asked.number) == small.uniform(keep=0.5)
        assert known.values(trial) == small.uniform(keep=0.5)
        assert known.values(trial.replace(plan=Plan(), proposal=-1)) is None
        assert known.asked(99) is None


def test_an_added_trial_is_learned_once_and_found_again(journal, small, answer, make_trial):
    controller, half = start(journal, small), small.uniform(keep=0.5)
    trial = make_trial(0, 0.4, 0.91, plan=small.decode(half), proposal=-1)
    for _ in range(2):
        controller.add(half, trial)
    assert [t.values for t in study(journal).trials] == [[0.4, 0.91]]
    again = start(journal, small, [trial])
    assert controller.values(trial) == again.values(trial) == half
    again.add(half, trial)
    assert states(journal) == ["COMPLETE"]
    every = {small.decode(dict(zip([v.name for v in small.variables], bits, strict=True)))
             for bits in itertools.product((0, 1), repeat=4)}  # fmt: skip
    found = set()
    while (asked := again.ask()) is not None:
        found.add(asked.plan)
        again.tell(asked.number, answer(asked))
    assert found == every - {trial.plan}


def test_an_added_trial_that_failed_is_not_proposed_and_not_told(journal, small, make_trial):
    controller, half = start(journal, small), small.uniform(keep=0.5)
    trial = make_trial(0, 0.4, 0.9, plan=small.decode(half))
    controller.add(half, trial.replace(state="FAILED", quality=None, latency=None))
    assert controller.proposals == 0
    controller.enqueue(half, "uniform")
    assert controller.ask().plan != small.decode(half)


# settings of recoveries


def peak(values):
    """Best at a learning rate of 1e-3; the soft weight hardly matters."""
    return -abs(math.log10(values["learning_rate"]) + 3) - 0.01 * values["soft_weight"]


def test_a_tuner_comes_near_the_planted_best():
    """Oracle: the planted optimum; the last half of 30 suggestions is nearer to it than the first ones."""
    tuner, tried = Tuner((RATE, SOFT), seed=0), []
    for _ in range(30):
        values = tuner.suggest(tried)
        assert set(values) == {"learning_rate", "soft_weight"}
        assert 1e-5 <= values["learning_rate"] <= 1e-2
        tried.append((values, peak(values)))
    scores = [score for _values, score in tried]
    assert max(scores) > -0.2
    assert sum(scores[15:]) / 15 > sum(scores[:5]) / 5


def test_a_tuner_keeps_nothing_and_is_seeded():
    tried = [({"learning_rate": 10.0**-n, "soft_weight": 0.5}, float(-n)) for n in (2, 3, 4, 5)]
    first = Tuner((RATE, SOFT), seed=1)
    first.suggest([])
    assert first.suggest(tried) == Tuner((RATE, SOFT), seed=1).suggest(tried)
    assert first.suggest(tried) != Tuner((RATE, SOFT), seed=2).suggest(tried)


def test_settings_that_failed_are_the_worst():
    tried = [({"learning_rate": 10.0**-n, "soft_weight": 0.5}, -math.inf if n < 4 else -1.0 * n) for n in (2, 3, 4, 5)]
    found = [Tuner((RATE, SOFT), seed=seed).suggest(tried)["learning_rate"] for seed in range(10)]
    assert sorted(found)[5] < 1e-3


def test_importances_are_shares_of_the_planted_variance():
    """Oracle: main effects of independent terms, in closed form on a grid; what is constant explains nothing."""
    tried = []
    for place, soft in itertools.product(range(8), range(6)):
        values = {"learning_rate": 10.0 ** -(2 + 3 * place / 7), "soft_weight": soft / 5}
        tried.append((values, 3.0 * (place >= 4) + 1.0 * (soft >= 3)))
    shares = importances((RATE, SOFT), tried, [0] * len(tried))
    assert {name: len(row) for name, row in shares.items()} == {"learning_rate": 20, "soft_weight": 20}
    assert shares["learning_rate"][0] == pytest.approx(0.9, abs=0.04)
    assert shares["soft_weight"][0] == pytest.approx(0.1, abs=0.04)
    assert importances((RATE, SOFT), [(values, 1.0) for values, _outcome in tried], [0] * len(tried)) == {}


def test_shuffles_stay_within_their_strata():
    """Oracle: where each stratum has one outcome throughout, no shuffle changes anything."""
    tried = [
        ({"learning_rate": 10.0 ** -(2 + n * 3 % 10 / 4), "soft_weight": 0.1 * n}, float(n >= 5)) for n in range(10)
    ]
    shares = importances((RATE, SOFT), tried, [int(n >= 5) for n in range(10)])
    assert set(shares["soft_weight"]) == {shares["soft_weight"][0]}
    assert len(set(importances((RATE, SOFT), tried, [0] * 10)["soft_weight"])) > 1


# objectives


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "nsga3"])
def test_further_objectives_are_told_to_a_study_of_their_own(journal, small, answer, sampler):
    """Oracle: the journal as Optuna reads it; what was told of two objectives is not mixed in."""
    first = start(journal, small)
    first.tell(first.ask().number, answer(Proposal(0, Plan(), "sampled")))
    by_size = Objectives(("latency", "quality", "size"))
    controller = Controller(journal, small, True, over, sampler, objectives=by_size)
    asked = [controller.ask() for _ in range(4)]
    told = [answer(proposal, ratio=0.5 + 0.1 * i) for i, proposal in enumerate(asked)]
    for proposal, trial in zip(asked, told, strict=True):
        controller.tell(proposal.number, trial)
    found = study(journal, "rung-0-size")
    assert [d.name for d in found.directions] == ["MINIMIZE", "MAXIMIZE", "MINIMIZE"]
    for trial in told:
        expected = [trial.latency.ratio, 0.9, trial.artifact.size_bytes]
        assert found.trials[trial.proposal].values == expected
    assert len(study(journal).trials) == 1


def test_a_trial_of_unknown_memory_teaches_nothing(journal, small, answer):
    controller = Controller(journal, small, True, over, "tpe", objectives=Objectives(("latency", "quality", "memory")))
    proposal = controller.ask()
    controller.tell(proposal.number, answer(proposal))
    assert [t.state for t in study(journal, "rung-0-memory").trials] == [TrialState.FAIL]
