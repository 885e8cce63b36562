"""Oracle: a planted device, planted losses and a clock of its own; the true front of a small space, counted out."""

from __future__ import annotations

import hashlib
import itertools
import math
from dataclasses import replace
from functools import cached_property

import numpy as np
import pytest

from autocompress.budgets import Budgets
from autocompress.drop import Drop
from autocompress.objectives import USUAL, Objectives
from autocompress.pareto import hypervolume, nondominated, reference_point
from autocompress.plan import PRECISIONS, Distill, Plan, Prune
from autocompress.searching import climbing, controller
from autocompress.searching import staged as module
from autocompress.searching.atoms import Atoms
from autocompress.searching.climbing import TUNED_LEAST, Climb
from autocompress.searching.controller import Controller, Proposal
from autocompress.searching.costs import weight_bytes
from autocompress.searching.knapsack import Knapsack
from autocompress.searching.parts import drawn_from, parts_of
from autocompress.searching.prepare import resources_of
from autocompress.searching.rungs import ETA
from autocompress.searching.seen import Clock, Judge, Seen, Teller
from autocompress.searching.staged import UNTRAINED_SHARE, Staged
from autocompress.searching.stages import Stages
from autocompress.searching.work import OTHERS, work_features, work_model

STRUCTURE = {
    "groups": {"heads": [1.0, 0.5], "neurons": [1.0, 0.5, 0.25]},
    "blocks": {"remove": True},
    "layers": [{"match": "net.*", "precision": ["fp32", "int8"], "share": "block"}],
}
RECOVERY = {"steps": [0, 10, 40], "soft_weight": {"low": 0.9, "high": 0.9}, "temperature": {"low": 2.0, "high": 2.0}}
BOTH = {**STRUCTURE, "distill": RECOVERY}
DENSE, BEST_RATE = 0.9, 7e-4


def noise(*what):
    """A number in [-1, 1] that is always the same for the same things."""
    return int(hashlib.sha256(repr(what).encode()).hexdigest()[:8], 16) / 2**31 - 1


def structure(plan):
    return replace(plan, distill=None, seed=0)


class World:
    """What plans really take and lose, and how long it takes to find out."""

    def __init__(self, make_trial, space, maximize=True, seed=0):
        self.make_trial, self.space, self.maximize, self.now = make_trial, space, maximize, 0.0
        draw = np.random.default_rng(seed)
        self.untrained = space.untrained()
        variables = self.untrained.structure
        self.single = {
            v.name: (0.0, *np.cumsum(draw.lognormal(-4, 1, max(0, len(v.levels) - 1))).tolist()) for v in variables
        }
        believed = work_model(space.table, 0.01, {"int8": 0.5}).believed
        self.device = believed * draw.uniform(0.6, 1.6, len(believed))
        self.ratios, self.trials, self.fails = {}, [], lambda _plan: False
        self.stages, self.entered, self.begun = Stages(), [], []

    @cached_property
    def every(self):
        """All plans without recovery, with what each loses: sums, bent, with interactions."""
        names = [v.name for v in self.untrained.structure]
        levels = [range(len(v.levels)) for v in self.untrained.structure]
        sums = {}
        for values in itertools.product(*levels):
            plan = self.untrained.decode(dict(zip(names, values, strict=True)))
            total = sum(self.single[n][i] for n, i in zip(names, values, strict=True))
            sums[plan] = min(total, sums.get(plan, math.inf))
        return {
            plan: 2 * total**1.2 * (1 + 0.1 * noise(sorted(plan.groups), len(plan.layers)))
            for plan, total in sums.items()
        }

    def ratio(self, plan):
        if structure(plan) not in self.ratios:
            seconds = [float(work_features(one, self.space.table) @ self.device) for one in (structure(plan), Plan())]
            self.ratios[structure(plan)] = seconds[0] / seconds[1]
        return self.ratios[structure(plan)]

    def quality(self, plan):
        drop = 0.3 * (1 - math.exp(-self.every[structure(plan)]))
        if plan.distill:
            off = abs(math.log(plan.distill.learning_rate / BEST_RATE))
            drop *= (0.3 + 0.1 * off) * (10 / plan.distill.steps) ** 0.25
        return DENSE - drop if self.maximize else 1 - DENSE + drop

    def trial(self, proposal):
        plan, number = proposal.plan, len(self.trials)
        self.now += 10.0 + (plan.distill.steps if plan.distill else 0)
        seconds = {"all": 10.0 + (plan.distill.steps if plan.distill else 0)}
        made = self.make_trial(number, self.ratio(plan), self.quality(plan), plan=plan, seconds=seconds)
        made = made.replace(artifact=replace(made.artifact, size_bytes=self.size(plan)))
        made = made.replace(origin=proposal.origin, proposal=proposal.number, rung=proposal.rung)
        made = made.replace(divergence=None if plan.distill else self.every[plan])
        if self.fails(plan):
            made = made.replace(state="FAILED", latency=None, quality=None, error="diverged")
        self.trials.append(made)
        return made

    def size(self, plan):
        """Bytes of a file: more than its weights, and a little less saved than they say."""
        return int(2000 + 0.9 * weight_bytes(structure(plan), self.space.table))

    def dense(self):
        made = self.make_trial(len(self.trials), 1.0, self.quality(Plan()), plan=Plan(), proposal=-1,
                               origin="dense", seconds={"all": 10.0})  # fmt: skip
        self.trials.append(made.replace(artifact=replace(made.artifact, size_bytes=self.size(Plan()))))

    def knapsack(self, objectives=USUAL, limits=None):
        if not self.untrained.structure:
            return None
        atoms = Atoms({name: tuple(2 * v**1.2 for v in row) for name, row in self.single.items()}, 0, 0)
        model = work_model(self.space.table, 0.01, {"int8": 0.5})
        resources, _limits = resources_of(Budgets(), objectives, self.trials, self.space.table)
        return Knapsack(self.untrained, parts_of(self.untrained), atoms, model, limits or {}, 0.01, resources,
                        along=tuple(resources))  # fmt: skip

    def staged(
        self, journal, budget_s=1e9, *, fits=lambda _trial: True, seed=0, sampler="random", most=None,
        objectives=USUAL, limits=None, **changes,
    ):  # fmt: skip
        known = [trial for trial in self.trials if trial.rung == 0]
        controller = Controller(
            journal, drawn_from(self.untrained), self.maximize, lambda _trial: {}, sampler, seed, known,
            objectives=objectives,
        )  # fmt: skip
        count = len(self.trials)
        clock = Clock(
            lambda: self.now, self.now, budget_s, lambda: len(self.trials), count, most, lambda: self.stages.stagnates
        )
        fastest = objectives.allowed is not None and not self.space.steps
        judge = Judge(self.maximize, fits, objectives, bool(self.space.steps), fastest)
        teller = Teller(stage=self.entered.append, begin=self.begin)
        given = {"seed": seed, "trials": list(self.trials), "teller": teller, **changes}
        return Staged(self.space, self.knapsack(objectives, limits), controller, judge, clock, **given)

    def begin(self):
        self.stages.begin(1.0)
        self.begun.append(len(self.trials))

    def follow(self, staged, budget_s=1e9, most=10_000):
        """Evaluate what is proposed while time is left; the trials of this session."""
        begun = len(self.trials)
        while len(self.trials) - begun < most and self.now < budget_s:
            proposal = staged.ask(budget_s - self.now)
            if proposal is None:
                break
            staged.tell(proposal.number, self.trial(proposal))
            self.stages.candidate(1.0)
        return self.trials[begun:]

    def volume(self, plans):
        sign = 1 if self.maximize else -1
        latency, worst = reference_point(self.quality(Plan()), self.maximize)
        points = [(math.log(self.ratio(plan)), sign * self.quality(plan)) for plan in plans]
        return hypervolume(points, (latency, sign * worst), [False, True])


@pytest.fixture
def world(make_trial, make_space):
    def make(rules=BOTH, **settings):
        made = World(make_trial, make_space(rules), **settings)
        made.dense()
        return made

    return make


@pytest.fixture(autouse=True)
def _few_budgets(monkeypatch):
    """A small space needs no 40 of them, and each is an integer program; nor 200 repetitions to be known."""
    monkeypatch.setattr(module, "POINTS", 12)
    monkeypatch.setattr(controller, "MAX_REPEATS", 25)


@pytest.fixture
def journal(tmp_path):
    return tmp_path / "study.journal"


def plans(trials):
    return [trial.plan for trial in trials]


# without recovery


@pytest.mark.parametrize(("seed", "maximize"), [(0, True), (1, True), (2, False)], ids=["0", "1", "minimized"])
def test_the_true_front_is_nearly_reached_and_faster_than_by_chance(world, journal, seed, maximize):
    """Oracle: the hypervolume of all 168 plans; as many plans drawn at random, the mean of 20 draws."""
    made = world(STRUCTURE, seed=seed, maximize=maximize)
    every = list(made.every)
    assert len(every) == 12 * 12 + 2 * 12
    trials = made.follow(made.staged(journal), most=40)
    draw = np.random.default_rng(0)
    chance = [made.volume([every[i] for i in draw.choice(len(every), 40, replace=False)]) for _ in range(20)]
    reached, true = made.volume(plans(trials)), made.volume(every)
    assert reached >= 0.99 * true
    assert reached > np.mean(chance)
    assert true - reached < 0.25 * (true - np.mean(chance))


@pytest.mark.parametrize("seed", range(3))
def test_asked_for_a_latency_it_refines_what_keeps_it(world, journal, seed):
    """Oracle: of all plans that are fast enough, the best; and most of what is refined is fast enough."""
    made, asked = world(STRUCTURE, seed=seed), 0.45
    fits = lambda trial: trial.latency.ratio <= asked  # noqa: E731
    trials = made.follow(made.staged(journal, fits=fits, limits={"latency": asked * 0.01}, seed=seed), most=40)
    refined = [trial for trial in trials if trial.origin == "refined"]
    assert np.mean([made.ratio(trial.plan) <= 1.05 * asked for trial in refined]) > 0.8
    best = max(made.quality(plan) for plan in made.every if made.ratio(plan) <= asked)
    assert max(trial.quality for trial in trials if fits(trial)) >= best - 1e-9


@pytest.mark.parametrize("seed", range(3))
def test_a_latency_that_is_believed_to_be_out_of_reach_is_found(world, journal, seed):
    """A device where a call in int8 takes as long as a small layer: int8 pays where nothing is pruned, as the probe
    says, and the fastest are in fp32. Oracle: of all plans the fastest, and what is little slower."""
    made = world(STRUCTURE, seed=seed)
    made.device = work_model(made.space.table, 0.01, {"int8": 0.5}).believed.copy()
    made.device[OTHERS + PRECISIONS.index("int8")] *= 8
    asked = 1.02 * min(made.ratio(plan) for plan in made.every)
    fits = lambda trial: trial.latency.ratio <= asked  # noqa: E731
    trials = made.follow(made.staged(journal, fits=fits, limits={"latency": asked * 0.01}, seed=seed), most=15)
    assert any(map(fits, trials))


@pytest.mark.parametrize(("limit", "often"), [(0.0, 3), (0.9, 2)], ids=["out of reach", "in reach"])
def test_where_a_latency_is_asked_for_choices_go_by_what_else_may_be_true(world, journal, monkeypatch, limit, often):
    """By turns with what is expected: two of three as long as nothing keeps it, then every second one."""
    made, turns = world(STRUCTURE), []
    fits = lambda trial: trial.latency.ratio <= limit  # noqa: E731
    staged = made.staged(journal, fits=fits, limits={"latency": 0.007})
    monkeypatch.setattr(staged._refining, "sought", lambda: turns.append(staged._solved))
    made.follow(staged, most=12)
    assert max(turns) > 4
    assert list(dict.fromkeys(turns)) == [number for number in range(2, max(turns) + 1) if number % often]


def test_where_no_latency_is_asked_for_seconds_are_not_drawn(world, journal, monkeypatch):
    made = world(STRUCTURE)
    monkeypatch.setattr(type(made.knapsack().work), "drawn", lambda *_: pytest.fail("nothing is to be drawn"))
    assert len(made.follow(made.staged(journal), most=30)) == 30


@pytest.mark.parametrize("only", [None, "solve"])
def test_once_draws_say_nothing_new_the_expected_front_is_gone_through(world, journal, monkeypatch, only):
    """All draws are the belief itself, whose choice is known at once."""
    made, asked = world(STRUCTURE), []
    model = type(made.knapsack().work)
    monkeypatch.setattr(model, "drawn", lambda work, _draw: asked.append(work) or work)
    fits = lambda trial: trial.latency.ratio <= 0.6  # noqa: E731
    staged = made.staged(journal, fits=fits, limits={"latency": 0.006})
    staged.only = only
    trials = made.follow(staged, most=20)
    expected = [one.plan for one in staged.knapsack.front(12)]
    assert len(set(expected) - set(plans(trials))) < len(expected) / 2
    assert sum(trial.origin == "solved" for trial in trials) > 5
    assert len(asked) < 30


def test_corners_far_over_what_is_asked_are_left_out(world, journal):
    made = world({**STRUCTURE, "learn": [None, {"recipe": "gradual", "sparsity": 0.5, "steps": 9}]})
    corners = [("uniform", made.untrained.uniform(precision=precision)) for precision in ("fp32", "int8")]
    corners.append(("seed", {**made.untrained.uniform(), "learn": 1}))
    believed = made.knapsack().work.seconds(made.untrained.decode(corners[1][1]))
    for limit, left in ((0.008, [0, 1, 2]), (believed, [1, 2]), (0.5 * believed, [2])):
        staged = made.staged(journal, corners=corners, limits={"latency": limit})
        assert staged._corners == [corners[place] for place in left]


@pytest.mark.parametrize("seed", range(3))
def test_asked_for_a_loss_it_finds_the_fastest_that_keeps_it(world, journal, seed):
    """Oracle: of all plans that lose no more, the fastest, or within a tenth of it; it is sought by halves."""
    made, allowed = world(STRUCTURE, seed=seed), Drop(0.03, relative=False)
    trials = made.follow(made.staged(journal, objectives=Objectives(allowed=allowed), seed=seed), most=40)
    keeps = lambda trial: DENSE - trial.quality <= allowed.amount  # noqa: E731
    fastest = min(made.ratio(plan) for plan in made.every if DENSE - made.quality(plan) <= allowed.amount)
    assert min(trial.latency.ratio for trial in trials if keeps(trial)) <= 1.1 * fastest
    solved = [trial for trial in trials if trial.origin == "solved"]
    assert len(solved) < 12
    assert any(keeps(trial) for trial in solved)


def test_corners_take_turns_with_what_is_solved_the_most_telling_ones_first(world, journal, monkeypatch):
    made = world(STRUCTURE)
    monkeypatch.setattr(module, "SOLVED", 5)
    corners = [("uniform", made.untrained.uniform(keep=share)) for share in (0.5, 0.25)]
    corners += [("seed", made.untrained.uniform(removed=(block,))) for block in ("net.0", "net.1")]
    trials = made.follow(made.staged(journal, corners=corners), most=20)
    assert [trial.origin for trial in trials[:9]] == [
        "uniform", "uniform", "solved", "seed", "solved", "seed", "solved", "solved", "solved",
    ]  # fmt: skip
    assert {trial.origin for trial in trials[9:]} <= {"refined", "sampled"}, "five of them are enough"
    assert [plans(trials)[i] for i in (0, 1, 3, 5)] == [made.untrained.decode(values) for _origin, values in corners]


def test_of_what_is_solved_nothing_is_measured_that_is_slower_than_the_front(world, journal):
    """Uniform int8 loses nothing here, so that no slower candidate can be on the front."""
    made = world(STRUCTURE)
    made.single = {
        name: row if not name.startswith("precision:") else (0.0,) * len(row) for name, row in made.single.items()
    }
    int8 = made.untrained.uniform(precision="int8")
    trials = made.follow(made.staged(journal, corners=[("uniform", int8)]), most=12)
    slowest = made.ratio(made.untrained.decode(int8))
    assert trials[0].origin == "uniform"
    solved = [trial for trial in trials if trial.origin == "solved"]
    assert len(solved) > 3
    assert all(made.ratio(trial.plan) <= 1.1 * slowest for trial in solved), "by what is expected of their seconds"


@pytest.mark.parametrize("looks", [True, False], ids=["looked at", "not looked at"])
def test_a_choice_that_was_estimated_far_too_low_is_measured(world, journal, looks):
    """Half of the neurons of a block break the model, and are believed to lose next to nothing."""
    made, name = world(STRUCTURE), "keep:net.1.mlp/neurons"
    made.single[name] = (0.0, 2.0, 3.0)
    del made.every  # told anew, with that
    true = {other: tuple(2 * v**1.2 for v in row) for other, row in made.single.items()}
    every = {(other, level) for other, row in true.items() for level in range(1, len(row))}
    wrong, asked = {(name, 1), (name, 2)}, []
    believed = Atoms({**true, name: (0.0, 1e-4, 2e-4)}, 0, 0, frozenset(every - wrong))
    program = Knapsack(
        made.untrained, parts_of(made.untrained), believed, work_model(made.space.table, 0.01, {"int8": 0.5}), {}, 0.01
    )
    made.knapsack = lambda *_: program

    def look(wanted, limit_s):
        asked.append((list(wanted), limit_s))
        known = program.known | set(wanted)
        kl = {
            n: tuple(v if not i or (n, i) in known else believed.kl[n][i] for i, v in enumerate(r))
            for n, r in true.items()
        }
        return Atoms(kl, 0, 0, known)

    trials = made.follow(made.staged(journal, **({"look": look} if looks else {})), most=30)
    broken = [trial for trial in trials if trial.origin == "solved" and trial.divergence > 1]
    assert {one for wanted, _limit_s in asked for one in wanted} == (wrong if looks else set())
    assert all(limit_s == 10.0 for _wanted, limit_s in asked), "as long as a candidate takes"
    assert len(broken) <= 3 if looks else len(broken) > 8


def test_zeros_and_recipes_are_no_suspects(world, journal):
    """Corners that break the model by what the program leaves alone; nothing is known of the other choices."""
    rules = {**STRUCTURE, "learn": [None, {"recipe": "gradual", "sparsity": 0.5, "steps": 9}], "sparsity": [0.0, 0.5]}
    made = world(rules)
    corners = [
        ("seed", {**made.untrained.uniform(precision="int8"), name: 1}) for name in ("learn", "sparsity:all layers")
    ]
    staged = made.staged(journal, corners=corners, look=lambda *_: pytest.fail("nothing is to be looked at"))
    for number, (origin, values) in enumerate(corners):
        plan = made.untrained.decode(values)
        staged._values[plan.fingerprint] = values
        trial = made.make_trial(number, 0.5, 0.3, plan=plan, seconds={"all": 1.0})
        staged.tell(-1, trial.replace(origin=origin, divergence=3.0))
    assert not staged._suspects


def test_what_is_suspected_of_earlier_sessions_is_looked_at_first(world, journal):
    """All losses are estimated; the candidate that breaks was measured before, and no time was left to look."""
    made, asked = world(STRUCTURE), []
    breaks, earlier = {**made.untrained.uniform(), "keep:net.1.mlp/neurons": 1}, made.staged(journal)
    made.trial(Proposal(-1, made.untrained.decode(breaks), "solved"))
    made.trials[-1] = made.trials[-1].replace(divergence=2.0)
    earlier._controller.add(breaks, made.trials[-1])
    program = made.knapsack()

    def look(wanted, limit_s):
        asked.extend(wanted)
        return Atoms({name: tuple(row) for name, row in program.kl.items()}, 0, 0, frozenset(wanted))

    staged = made.staged(journal, look=look)
    assert staged._suspects, "known again"
    made.follow(staged, most=1)
    assert asked == [("keep:net.1.mlp/neurons", 1)]
    staged._look_s, staged._suspects = 0.0, {("keep:net.0.mlp/neurons", 1)}
    made.follow(staged, most=1)
    assert len(asked) == 1, "the time for it is spent"


def test_a_small_space_is_exhausted_without_repetition(world, journal):
    made = world({"groups": {"heads": [1.0, 0.5]}, "blocks": {"remove": True}})
    trials = made.follow(made.staged(journal))
    assert len({trial.fingerprint for trial in made.trials}) == len(made.trials)
    assert set(plans(made.trials)) == set(made.every)
    assert len(trials) == 7


def test_without_recovery_all_time_is_used_and_no_more(world, journal):
    made = world(STRUCTURE)
    trials = made.follow(made.staged(journal, budget_s=205.0), budget_s=205.0)
    assert len(trials) == 20
    assert made.now == 200.0, "another one would take longer than the 5 seconds that are left"
    assert {trial.rung for trial in trials} == {0}


def test_recipes_and_zeros_are_corners_alone_and_teach_no_seconds(world, journal):
    """Oracle: the model of seconds without what a recipe gave; nothing else learns or has zeros, by any refinement."""
    rules = {**STRUCTURE, "learn": [None, {"recipe": "gradual", "sparsity": 0.5, "steps": 9}], "sparsity": [0.0, 0.5]}
    made = world(rules)
    corner = {**made.untrained.uniform(), "learn": 1}
    learned = made.untrained.decode(corner)
    made.single = {name: row for name, row in made.single.items() if name != "learn"}
    staged = made.staged(journal, corners=[("seed", corner)])
    first = staged.ask(1e9)
    assert first.plan == learned
    made.trials.append(made.make_trial(1, 0.2, 0.8, plan=learned, proposal=first.number, origin="seed"))
    staged.tell(first.number, made.trials[-1])
    staged._fresh = math.inf
    staged._correct(staged.knapsack)
    without = staged.knapsack.work.fit([Plan()], [0.01])
    assert staged.knapsack.work.fitted == pytest.approx(without.fitted)
    for session in (staged, made.staged(journal)):
        trials = made.follow(session, most=40)
        assert {"refined", "sampled"} & {t.origin for t in trials}
        assert not any(t.plan.learn or t.plan.mask for t in trials)
    known = staged._values[next(t.fingerprint for t in made.trials if t.origin == "solved")]
    assert known["learn"] == known["sparsity:all layers"] == 0


def test_a_space_of_zeros_alone_is_drawn_from(world, journal):
    made = world({"sparsity": [0.0, 0.5, 0.7]})
    assert {t.plan.mask.sparsity for t in made.follow(made.staged(journal)) if t.plan.mask} == {0.5, 0.7}


# three objectives

BY_SIZE = Objectives(("latency", "quality", "size"))

#: An embedding of fewer bits saves bytes and no seconds, and loses something.
LOOKED_UP = {
    **STRUCTURE,
    "layers": [*STRUCTURE["layers"], {"match": "embed", "precision": ["fp32", "int8-weights"]}],
}


def spots(made, plans):
    """Ratio, quality and bytes of plans, ``(n, 3)``, and which way is better."""
    return [(made.ratio(p), made.quality(p), made.size(p)) for p in plans], [False, True, False]


def volume_by_size(made, plans):
    """In the logarithms of the ratios to dense, up to 1.05 × dense."""
    latency, worst = reference_point(made.quality(Plan()), True)
    points = [(math.log(r), q, math.log(b / made.size(Plan()))) for r, q, b in spots(made, plans)[0]]
    return hypervolume(points, (latency, worst, latency), [False, True, False])


def test_by_size_the_true_front_of_three_objectives_is_nearly_reached(world, journal, tmp_path):
    """Oracle: the volume of all 336 plans in three objectives; and a search of as many plans that looks at two."""
    made, other = world(LOOKED_UP), world(LOOKED_UP)
    assert len(made.every) == 2 * 168
    found = plans(made.follow(made.staged(journal, objectives=BY_SIZE), most=40))
    usual = plans(other.follow(other.staged(tmp_path / "usual.journal"), most=40))
    true = volume_by_size(made, made.every)
    assert volume_by_size(made, found) >= 0.98 * true
    assert true - volume_by_size(made, found) < 0.5 * (true - volume_by_size(made, usual))


def test_the_front_and_its_volume_are_those_of_three_objectives(world, journal):
    """Oracle: domination and volume from the planted figures, by hand."""
    made = world(LOOKED_UP)
    staged = made.staged(journal, objectives=BY_SIZE)
    made.follow(staged, most=20)
    every = plans(made.trials)
    mask = nondominated(*spots(made, every))
    assert set(plans(staged._seen.front())) == {plan for plan, keep in zip(every, mask, strict=True) if keep}
    assert staged._seen.volume() == pytest.approx(volume_by_size(made, every))
    two = nondominated(*(part[:2] if i else [row[:2] for row in part] for i, part in enumerate(spots(made, every))))
    assert mask.sum() > two.sum(), "some are there for their size"


def test_the_estimate_of_bytes_is_corrected_by_files(world, journal):
    """Oracle: the planted files save 0.9 bytes for each byte of weights."""
    made = world(STRUCTURE)
    staged = made.staged(journal, objectives=BY_SIZE)
    made.follow(staged, most=20)
    staged._fresh = math.inf
    staged._correct(staged.knapsack)
    for trial in made.trials:
        assert staged.knapsack.amounts.of("size", trial.plan) == pytest.approx(trial.artifact.size_bytes, rel=0.02)


def test_promotion_and_recovery_look_at_size(world, journal):
    """Oracle: ranks of the rung below in three objectives; a third of it goes on, the front before the rest."""
    made = world()
    trials = made.follow(made.staged(journal, objectives=BY_SIZE), most=150)
    below = {}
    for trial in trials:
        if trial.rung == 1:
            best = below.setdefault(structure(trial.plan), trial)
            below[structure(trial.plan)] = max(best, trial, key=lambda t: t.quality)
    above = {structure(trial.plan) for trial in trials if trial.rung == 2}
    assert above
    mask = nondominated(*spots(made, [trial.plan for trial in below.values()]))
    front = {plan for plan, keep in zip(below, mask, strict=True) if keep}
    assert above <= front or front <= above


# recovery


def run_both(made, journal, budget_s, **changes):
    return made.follow(made.staged(journal, budget_s, **changes), budget_s)


def test_time_is_divided_between_the_stages(world, journal):
    made = world()
    trials = run_both(made, journal, 2000.0)
    rungs = [trial.rung for trial in trials]
    first = next(i for i, rung in enumerate(rungs) if rung)
    again = next((i for i, rung in enumerate(rungs) if i > first and rung == 0), len(rungs))
    assert rungs[:again] == sorted(rungs[:again])
    assert set(rungs[:again]) == {0, 1, 2}
    assert 10 * first <= UNTRAINED_SHARE * 2000 + 10
    assert 2000 - 10 < made.now <= 2000, "no candidate fits into the rest"


def test_a_count_of_candidates_is_divided_like_the_time(world, journal):
    """Oracle: the share of 21 candidates that are allowed, the dense one apart."""
    made = world()
    trials = made.follow(made.staged(journal, most=21), most=20)
    assert next(i for i, trial in enumerate(trials) if trial.rung) == math.ceil(UNTRAINED_SHARE * 20)
    assert {trial.rung for trial in trials} == {0, 1, 2}


@pytest.mark.parametrize("rules", [{"blocks": {"remove": True}, "distill": {**RECOVERY, "steps": [0, 10]}},
                                   {"blocks": {"remove": True}, "distill": RECOVERY}])  # fmt: skip
def test_a_small_space_uses_its_time_too(world, journal, rules):
    """Once its few structures are recovered, more settings are tried."""
    made = world(rules)
    run_both(made, journal, 1500.0)
    assert 1500 - 50 < made.now <= 1500


def test_a_space_that_is_used_up_ends(world, journal):
    """By hand: two structures beside dense, each recovered in the one way there is, at two rungs."""
    held = {**RECOVERY, "learning_rate": {"low": 3e-4, "high": 3e-4}}
    made = world({"blocks": {"remove": True}, "distill": held})
    trials = run_both(made, journal, 1e9)
    assert sorted(t.rung for t in trials) == [0, 0, 1, 1, 2, 2]


def test_a_stagnating_stage_hands_over_and_the_last_one_ends_the_search(world, journal):
    """By hand: five of each stage, of tuning and of each rung at most, and in the end five more of whatever stage."""
    made = world()
    made.stages = Stages(patience=5)  # of a hypervolume that never grows
    staged = made.staged(journal)
    trials = made.follow(staged)
    assert [t.origin for t in trials[:5]] == ["solved"] * 5
    assert {t.origin for t in trials[5:10]} <= {"refined", "sampled"}
    assert trials[10].rung == 1
    counts = [later - before for before, later in itertools.pairwise([*made.begun, len(made.trials)])]
    assert counts[:3] == [5, 5, 5]
    assert max(counts) == counts[-1] == 5
    assert staged.stagnated
    assert made.entered[:3] == ["solve", "refine", "recover"]


def test_where_nothing_promises_anything_the_front_is_recovered_the_furthest_first(world, journal, monkeypatch):
    """Oracle: distances in log latency, by hand."""
    monkeypatch.setattr(climbing, "most_gained", lambda *_: None)
    made = world()
    on_first_rung(made, 2)
    names = list(made.every)
    for plan in names[1:60:4]:
        made.trial(Proposal(-1, plan, "sampled")) if plan not in plans(made.trials) else None
    staged, found = made.staged(journal), []
    for proposal in staged.climb.climb(1, 10, lambda: True):
        logs = [math.log(made.ratio(t.plan)) for t in made.trials if t.rung]
        front = [t for t in staged._seen.front() if t.plan != Plan()]
        left = [t.plan for t in front if t.plan not in {structure(t.plan) for t in made.trials if t.rung}]
        far = {plan: min(abs(math.log(made.ratio(plan)) - log) for log in logs) for plan in left}
        assert far[structure(proposal.plan)] == pytest.approx(max(far.values()))
        staged.tell(proposal.number, made.trial(proposal))
        found.append(proposal)
    assert len(found) == len(left) + len(found) - 1 > 2


@pytest.mark.parametrize(
    ("allowed", "first"), [(None, 0.2), (0.02, 0.5), (0.005, 0.2)], ids=["any loss", "2 points", "less than any"]
)
def test_what_is_expected_to_keep_the_loss_that_is_allowed_is_recovered(make_trial, make_space, allowed, first):
    """By hand: two that were recovered lost 1 and 9 points, so that 0.5 is expected to lose 1.8 and 0.2 to lose 5.

    The second adds more, ln 4.5 * 4 points against ln 1.8 * 7.2, and is of no use where 2 points may be lost.
    """
    space = make_space(BOTH)
    objectives = Objectives(allowed=None if allowed is None else Drop(allowed, relative=False))
    seen = Seen(Judge(True, lambda _trial: True, objectives, recovers=True), Clock(lambda: 0.0, 0.0, 1e9))
    drawn = space.untrained()
    every = [drawn.decode({**drawn.uniform(), **one}) for one in ({}, *({v.name: 1} for v in drawn.structure[:4]))]
    losses = {1.0: 0.0, 0.9: 1e-4, 0.5: 10**-3.6, 0.2: 1e-2, 0.1: 1.0}
    for number, (plan, (ratio, loss)) in enumerate(zip(every, losses.items(), strict=True)):
        seen.keep(make_trial(number, ratio, 0.8 if loss else 0.9, plan=plan).replace(divergence=loss))
    for place, ratio, quality in ((1, 0.9, 0.89), (4, 0.1, 0.81)):
        plan = replace(every[place], distill=Distill(0.9, 2.0, 1e-3, 10))
        seen.keep(make_trial(10 + place, ratio, quality, plan=plan).replace(rung=1))
    assert len(seen.trials) == 7
    found = Climb(space, seen)._most_promising(False)
    assert found.latency.ratio == first


def test_recovery_begins_in_time_even_while_refinements_still_gain(world, journal):
    trials = run_both(world(), journal, 250.0)
    first = next(i for i, trial in enumerate(trials) if trial.rung)
    assert first == math.ceil((UNTRAINED_SHARE * 250) / 10), "the first that would begin later than that share"


def test_steps_of_each_rung_are_those_of_the_space(world, journal):
    trials = run_both(world(), journal, 2000.0)
    steps = {0: None, 1: 10, 2: 40}
    assert all((t.plan.distill.steps if t.plan.distill else None) == steps[t.rung] for t in trials)
    assert all(t.plan.seed == 0 for t in trials)


def test_recovered_structures_are_those_that_were_measured(world, journal):
    trials = run_both(world(), journal, 2000.0)
    untrained = {structure(t.plan) for t in trials if t.rung == 0}
    assert {structure(t.plan) for t in trials if t.rung} <= untrained - {Plan()}
    assert {structure(t.plan) for t in trials if t.rung == 2} <= {structure(t.plan) for t in trials if t.rung == 1}


def test_no_plan_is_proposed_twice(world, journal):
    made = world()
    run_both(made, journal, 3000.0)
    assert len({trial.fingerprint for trial in made.trials}) == len(made.trials)


def test_settings_are_tuned_at_anchors_and_shared_with_the_nearest(world, journal):
    """Oracle: the best rate of the anchor that is nearest in log latency; the planted optimum is approached."""
    trials = run_both(world(), journal, 3000.0)
    tuned = [t for t in trials if t.origin == "tuned"]
    anchors = {}
    for trial in tuned:
        anchors.setdefault(structure(trial.plan), []).append(trial)
    assert len(anchors) == 2
    assert [structure(t.plan) for t in tuned[: 2 * TUNED_LEAST]] == list(anchors) * TUNED_LEAST, "in turn"
    default = 3e-4
    for alike in anchors.values():
        assert len(alike) >= TUNED_LEAST
        rates = [t.plan.distill.learning_rate for t in alike[:3]]
        assert rates == pytest.approx([default, default * 10**0.25, default * 10**-0.25])
        best = max(alike, key=lambda t: t.quality)
        assert abs(math.log(best.plan.distill.learning_rate / BEST_RATE)) < abs(math.log(default / BEST_RATE))
    assert {t.rung for t in tuned} == {1}
    shared = [t for t in trials if t.rung == 1 and t.origin == "recovered"]
    assert shared
    for trial in shared:
        near = min(anchors.values(), key=lambda a: abs(math.log(a[0].latency.ratio / trial.latency.ratio)))
        before = [t for t in near if t.number < trial.number]  # in a later turn more settings are tried
        best = max(before, key=lambda t: t.quality).plan.distill
        assert trial.plan.distill.learning_rate == best.learning_rate


def test_one_in_three_structures_is_promoted_and_the_front_before_the_rest(world, journal):
    """Oracle: ranks of the rung below by the slow way: non-dominated structures first."""
    made = world()
    names = list(made.every)
    for plan in names[1::4]:
        made.trial(Proposal(-1, plan, "sampled"))
    staged, begun = made.staged(journal), len(made.trials)
    for proposal in staged.climb.proposals():
        staged.tell(proposal.number, made.trial(proposal))
    trials = made.trials[begun:]
    below = {}
    for trial in trials:
        if trial.rung == 1:
            best = below.setdefault(structure(trial.plan), trial)
            below[structure(trial.plan)] = max(best, trial, key=lambda t: t.quality)
    above = [structure(t.plan) for t in trials if t.rung == 2]
    assert len(above) == len(set(above)) == math.ceil(len(below) / ETA)
    points = [(t.latency.ratio, t.quality) for t in below.values()]
    front = {plan for plan, keep in zip(below, nondominated(points, [False, True]), strict=True) if keep}
    assert set(above) <= front or front <= set(above)
    for trial in trials:
        if trial.rung == 2:
            assert trial.plan.distill.learning_rate == below[structure(trial.plan)].plan.distill.learning_rate


def on_first_rung(made, count):
    """Structures drawn at random, recovered for the fewest steps."""
    draw = np.random.default_rng(0)
    names = [plan for plan in made.every if plan != Plan()]
    for number in draw.choice(len(names), count, replace=False):
        plan = names[number]
        made.trial(Proposal(-1, plan, "sampled"))
        made.trial(Proposal(-1, replace(plan, distill=Distill(0.9, 2.0, 3e-4, 10)), "recovered", 1))


def promote(made, journal):
    """Structures that go on to the second rung."""
    staged, found = made.staged(journal), []
    for proposal in staged.climb.climb(2, 40, lambda: True):
        staged.tell(proposal.number, made.trial(proposal))
        found.append(structure(proposal.plan))
    return found


def test_where_a_rung_foretold_badly_twice_as_many_go_on(world, journal):
    """Oracle: qualities on the second rung in the order of the first, or in the opposite one."""
    for turned, least, most in ((False, 6, 6), (True, 7, 12)):
        made = world()
        on_first_rung(made, 18)
        known = {structure(t.plan): t.quality for t in made.trials if t.rung == 1}
        sign = -0.1 if turned else 0.1
        made.quality = lambda plan, sign=sign, known=known: 0.5 + sign * known[structure(plan)]
        found = promote(made, journal.with_name(f"{turned}.journal"))
        assert least <= len(found) <= most
        assert len(set(found)) == len(found)


def test_several_recoveries_of_one_structure_are_promoted_once(world, journal):
    """By hand: of 4 structures, one with 10 recoveries, two go on; the one with its best settings."""
    made = world()
    on_first_rung(made, 4)
    plan = structure(made.trials[-1].plan)
    for rate in np.geomspace(1e-4, 1e-3, 9):
        recovery = Distill(0.9, 2.0, float(rate), 10)
        made.trial(Proposal(-1, replace(plan, distill=recovery), "tuned", 1))
    found = promote(made, journal)
    assert len(found) == len(set(found)) == 2


def test_what_is_too_slow_is_not_recovered(world, journal):
    trials = run_both(world(), journal, 3000.0, fits=lambda trial: trial.latency.ratio <= 0.5)
    assert any(t.latency.ratio > 0.5 for t in trials if t.rung == 0)
    recovered = [t.latency.ratio for t in trials if t.rung]
    assert recovered
    assert max(recovered) <= 0.5


def test_where_nothing_is_fast_enough_nothing_is_recovered(world, journal):
    trials = run_both(world(), journal, 3000.0, fits=lambda _trial: False)
    assert {t.rung for t in trials} == {0}


def test_a_failed_recovery_does_not_end_its_rung(world, journal):
    """Every second structure diverges; it is not tried again, and the others are recovered."""
    made = world()
    made.fails = lambda plan: plan.distill is not None and noise(plan.groups, len(plan.layers)) > 0
    trials = run_both(made, journal, 4000.0)
    states = [t.state for t in trials if t.rung == 1 and t.origin == "recovered"]
    assert "DONE" in states[states.index("FAILED") :]
    assert len({t.fingerprint for t in trials}) == len(trials)


def test_recovered_candidates_add_to_the_front(world, journal):
    made = world()
    trials = run_both(made, journal, 3000.0)
    before = made.volume([t.plan for t in trials if t.rung == 0])
    assert made.volume(plans(trials)) > 1.02 * before


def test_the_search_ends_when_time_is_over(world, journal):
    for budget_s in (0.0, 15.0, 100.0, 700.0):
        made = world()
        run_both(made, journal.with_name(f"{budget_s:g}.journal"), budget_s)
        assert made.now <= budget_s + 10


# any space


def test_a_space_of_recoveries_alone(world, journal):
    made = world({"distill": RECOVERY})
    trials = run_both(made, journal, 1000.0)
    assert all(structure(t.plan) == Plan() for t in trials)
    assert {t.rung for t in trials} == {1, 2}
    assert len({t.fingerprint for t in trials}) == len(trials)


def test_a_recovery_without_settings_to_search(world, journal):
    held = {**RECOVERY, "learning_rate": {"low": 3e-4, "high": 3e-4}, "steps": [10]}
    made = world({**STRUCTURE, "distill": held})
    trials = run_both(made, journal, 1000.0)
    assert [t.origin for t in trials].count("tuned") == 2, "each anchor once"
    assert {(t.plan.distill.learning_rate, t.plan.distill.steps) for t in trials if t.rung} == {(3e-4, 10)}


def test_one_shared_choice_alone(world, journal):
    made = world({"layers": [{"kind": "linear", "precision": ["fp32", "int8-dynamic", "int8"], "share": "all"}]})
    assert len(made.follow(made.staged(journal))) == 2


def test_a_metric_that_is_minimized(world, journal):
    made = world(maximize=False)
    trials = run_both(made, journal, 3000.0)
    assert {t.rung for t in trials} == {0, 1, 2}
    recovered = [t for t in trials if t.origin == "recovered"]
    tuned = [t for t in trials if t.origin == "tuned" and t.number < recovered[0].number]  # more in later turns
    best = min(tuned, key=lambda t: t.quality)
    assert best.plan.distill.learning_rate in {t.plan.distill.learning_rate for t in recovered}


def test_what_an_earlier_run_found_comes_first_at_its_rung(world, journal):
    """Two of the space's plans, one beyond its levels, and recoveries of 10 and of 25 steps; a pause in between."""
    made = world()
    inside, other = list(made.every)[5], list(made.every)[9]
    beyond = Plan({"net.0.attention/heads": Prune(3)})
    made.every[beyond] = 0.02
    recovered = [replace(other, distill=Distill(0.5, 3.0, 2e-3, steps), seed=7) for steps in (10, 25)]
    warm = [Plan(), inside, beyond, *recovered]
    staged = made.staged(journal, 2000.0)
    staged.warm = warm
    made.follow(staged, 2000.0, most=2)
    staged = made.staged(journal, 2000.0)
    staged.warm = warm
    trials = made.trials[1:3] + made.follow(staged, 2000.0)
    assert plans(trials[:4]) == warm[1:]
    assert [t.rung for t in trials[:4]] == [0, 0, 1, 1]
    assert {t.origin for t in trials[:4]} == {"warm-start"}
    assert "warm-start" not in {t.origin for t in trials[4:]}
    assert trials[4].rung == 0, "it is not taken for a search that recovers"
    assert staged._values[inside.fingerprint]
    assert beyond.fingerprint not in staged._values
    assert len({t.fingerprint for t in made.trials}) == len(made.trials)


# seeds and resuming


@pytest.mark.parametrize("sampler", ["random", "auto"])
def test_one_seed_gives_the_same_proposals_again(world, tmp_path, sampler):
    def proposals(name, seed):
        made = world()
        trials = run_both(made, tmp_path / name, 1500.0, seed=seed, sampler=sampler)
        return [(structure(t.plan), t.plan.distill, t.origin) for t in trials]

    first = proposals("a", 1)
    assert proposals("b", 1) == first
    assert proposals("c", 2) != first


@pytest.mark.parametrize("killed", [1, 12, 25, 45])
def test_a_resumed_search_goes_on_without_repeating(world, journal, killed):
    """Killed after so many candidates, in the midst of the next one."""
    made = world()
    staged = made.staged(journal, 1200.0)
    made.follow(staged, 1200.0, most=killed)
    staged.ask(1200.0 - made.now)
    rest = made.follow(made.staged(journal, 1200.0), 1200.0)
    assert rest
    assert len({t.fingerprint for t in made.trials}) == len(made.trials)
    assert {t.rung for t in made.trials} == {0, 1, 2}
    tuned = [structure(t.plan) for t in made.trials if t.origin == "tuned"]
    assert max(tuned.count(plan) for plan in tuned) <= 15, "more are tried only where all structures are used up"


def test_a_search_that_was_recovering_goes_on_with_it(world, journal):
    """Killed after its fifth recovery; the time is not divided anew."""
    made = world()
    staged = made.staged(journal, 2000.0)
    while sum(t.rung > 0 for t in made.trials) < 5:
        made.follow(staged, 2000.0, most=1)
    rest = made.follow(made.staged(journal, 2000.0), 2000.0, most=10)
    assert all(t.rung for t in rest)


def test_a_search_that_solved_enough_goes_on_refining(world, journal, monkeypatch):
    monkeypatch.setattr(module, "SOLVED", 4)
    made = world(STRUCTURE)
    before = made.follow(made.staged(journal), most=3)
    before += made.follow(made.staged(journal), most=8)
    assert sum(trial.origin == "solved" for trial in before) == 4
    assert all(trial.origin != "solved" for trial in made.follow(made.staged(journal), most=6))


def test_resumed_refinements_know_their_parents(world, journal):
    made = world(STRUCTURE)
    made.follow(made.staged(journal), most=30)
    staged = made.staged(journal)
    assert set(staged._values) == {t.fingerprint for t in made.trials if t.origin != "dense"}
    assert {t.origin for t in made.follow(staged, most=10)} & {"refined"}


def test_what_failed_is_not_proposed_again(world, journal):
    made = world(STRUCTURE)
    made.fails = lambda plan: noise(plan.groups, len(plan.layers)) > 0
    made.follow(made.staged(journal), most=40)
    rest = made.follow(made.staged(journal), most=20)
    assert rest
    assert len({t.fingerprint for t in made.trials}) == len(made.trials)


def test_what_is_recovered_is_the_structure_that_was_measured(world, journal):
    """With another seed, what is drawn by it would be another structure; all other recoveries follow the search's."""
    made = world()
    staged = made.staged(journal, seed=3)
    plain, drawn = (Plan({"net.0.mlp/neurons": Prune(4, score=score)}) for score in ("obs", "random"))
    for plan, seed in ((plain, 3), (drawn, 0)):
        trial = made.trial(Proposal(-1, plain, "sampled")).replace(plan=plan)
        proposal = staged.climb._recovery(trial, {}, made.space.steps[0], 1, "recovered")
        assert proposal.plan.seed == seed
        assert proposal.plan.groups == plan.groups


def test_a_middle_rung_has_its_own_share_of_the_time(world, journal):
    """Else the last one would never have anything to promote."""
    made = world({**STRUCTURE, "distill": {**RECOVERY, "steps": [0, 10, 20, 40]}})
    names = [plan for plan in made.every if plan != Plan()]
    for number in np.random.default_rng(0).choice(len(names), 14, replace=False):
        made.trial(Proposal(-1, names[number], "sampled"))
    staged = made.staged(journal, made.now + 250.0)
    staged.only = "recover"
    trials = made.follow(staged, made.now + 250.0)
    rungs = [sum(trial.rung == rung for trial in trials) for rung in (1, 2, 3)]
    assert rungs[0] > rungs[1] > 0
    assert rungs[2] > 0


def test_a_warm_start_goes_on_in_a_space_with_zeros(world, journal):
    """What the program leaves alone is known of its candidates, too."""
    made = world({**STRUCTURE, "sparsity": [0.0, 0.5]})
    names = [plan for plan in made.every if plan != Plan() and not plan.mask]
    staged = made.staged(journal)
    staged.warm = names[3:40:9]
    trials = made.follow(staged, most=80)
    assert {t.origin for t in trials} >= {"warm-start", "refined"}
