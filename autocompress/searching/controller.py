"""The controller: Optuna by ask and tell over a journal file. The only place that knows Optuna.

What is optimized is the affair of `Objectives`; budgets are constraints beside them. A plan that was already
evaluated is answered from the trials and not evaluated again.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, TrialState

from autocompress.errors import ConfigError, near
from autocompress.objectives import USUAL, Objectives
from autocompress.plan import Plan
from autocompress.records import Origin, Trial, cut_torn_line, storage_errors
from autocompress.space import SearchSpace, Values, Variable

Sampler = Literal["auto", "tpe", "nsga2", "nsga3", "gp", "random"]
SAMPLERS: tuple[Sampler, ...] = ("auto", "tpe", "nsga2", "nsga3", "gp", "random")

#: Generation of the genetic samplers.
POPULATION = 24

#: Recoveries from which a tuner models instead of drawing.
LEAST_TRIED = 4

#: Evaluations from which importances are told. With 14 recoveries of a planted kind the shares were within 0.2 of the
#: true ones, or within what chance gives; with fewer they were neither.
LEAST_TOLD = 12

#: Trees of the forest that importances come from, and their depth; and shuffles that say what chance gives: 19 for 1
#: case in 20. 100 trials of 43 variables take about 5 s.
TREES, DEPTH, SHUFFLES = 12, 6, 19

#: Name of the study in the journal; with more objectives than latency and quality, theirs follow.
STUDY = "rung-0"

#: Name under which the journal keeps the plan of a trial that was added.
PLAN = "plan"

#: Proposals in a row that were all evaluated before, after which the space counts as exhausted.
MAX_REPEATS = 200

#: Repetitions in a row after which a plan is drawn at random: a sampler may settle on what it knows, the space unseen.
#: Half as many the next time, until it proposes something new itself.
SETTLED = 16


@dataclass(frozen=True)
class Proposal:
    """What to evaluate next.

    Attributes:
        number: of the Optuna trial.
        plan: decoded.
        origin: who proposed it.
        rung: grade of the evaluation: 0 without recovery; of a staged search, then by the steps of it.
    """

    number: int
    plan: Plan
    origin: Origin
    rung: int = 0


#: Budget name to how far a trial is over it; 0 or less is within. The same names for every trial.
Violations = Callable[[Trial], Mapping[str, float]]


class Controller:
    """Proposes plans and learns from trials.

    Args:
        journal: Optuna's journal file; made when it is not there.
        space: what can be proposed.
        maximize: whether more quality is better.
        violations: the budgets.
        sampler: "auto" is TPE, multivariate.
        seed: of the sampler; moved on by what the journal already holds.
        trials: finished evaluations, from `trials.jsonl`.
        workers: proposals that will be under way at once.
        objectives: what is optimized.
    """

    def __init__(
        self,
        journal: Path,
        space: SearchSpace,
        maximize: bool,
        violations: Violations,
        sampler: Sampler = "auto",
        seed: int = 0,
        trials: Sequence[Trial] = (),
        workers: int = 1,
        objectives: Objectives = USUAL,
    ) -> None:
        self.space = space
        self._objectives = objectives
        self._journal = journal
        self._violations = violations
        self._asked: dict[int, optuna.trial.Trial] = {}
        self._under_way: dict[str, list[int]] = {}  # fingerprint to the proposals that wait for its trial
        self._distributions = {variable.name: _distribution(variable) for variable in space.variables}
        self._seed = seed
        with storage_errors(journal):
            journal.parent.mkdir(parents=True, exist_ok=True)
            cut_torn_line(journal)
            # Left by a killed process; whoever opens the journal holds the run folder, so nobody owns it.
            journal.with_name(f"{journal.name}.lock").unlink(missing_ok=True)
            optuna.logging.set_verbosity(logging.WARNING)
            storage = JournalStorage(JournalFileBackend(str(journal), lock_obj=JournalFileOpenLock(str(journal))))
            self._study = optuna.create_study(
                study_name="-".join([STUDY, *objectives.more]),
                storage=storage,
                directions=["maximize" if more else "minimize" for more in objectives.directions(maximize)],
                load_if_exists=True,
            )
        self._sampler = make_sampler(sampler, seed + self.proposals, workers)
        self._chance = make_sampler("random", seed + self.proposals + 1)
        self._bears = SETTLED
        self._known = {trial.fingerprint: trial for trial in trials}
        self._spent = [sum(trial.seconds.values()) for trial in trials if trial.measured]
        self._values: dict[int | str, Values] = {}
        for known in self._study.get_trials(deepcopy=False):
            self._values[known.user_attrs.get(PLAN, known.number)] = dict(known.params)
        self._settle(trials)

    def _settle(self, trials: Sequence[Trial]) -> None:
        """Bring the journal in line with the trials: tell what was finished, propose again what was not."""
        finished = {trial.proposal: trial for trial in trials}
        for open_trial in self._study.get_trials(states=(TrialState.RUNNING,)):
            # A process may die while Optuna writes the parameters; those of an enqueued proposal are kept whole.
            values = open_trial.system_attrs.get("fixed_params", open_trial.params)
            if set(values) == set(self._distributions):
                self._settle_one(
                    values, open_trial.user_attrs.get("origin", "sampled"), finished.get(open_trial.number)
                )
            self._study.tell(open_trial.number, state=TrialState.FAIL)

    def _settle_one(self, values: Values, origin: Origin, trial: Trial | None) -> None:
        if trial is None:
            self.enqueue(values, origin, again=True)
        elif self._learnable(trial):
            self._study.add_trial(self._finished(values, trial))

    def _finished(self, values: Values, trial: Trial, notes: Mapping[str, str] | None = None) -> FrozenTrial:
        return optuna.trial.create_trial(
            params=dict(values),
            distributions=self._distributions,
            values=self._objectives.values(trial),
            user_attrs=dict(notes or {}),
            constraints=dict(self._violations(trial)),
        )

    @property
    def proposals(self) -> int:
        """Number of proposals so far."""
        return len(self._study.get_trials(deepcopy=False))

    def enqueue(self, values: Values, origin: Origin, again: bool = False) -> None:
        """Propose these values next, in the order of the calls; a repetition changes nothing, unless `again`."""
        with storage_errors(self._journal):
            self._study.enqueue_trial(values, user_attrs={"origin": origin}, skip_if_exists=not again)

    def values(self, trial: Trial) -> Values | None:
        """The values that a trial answers, asked or added; None where there are none, or not whole."""
        found = self._values.get(trial.fingerprint) or self._values.get(trial.proposal, {})
        return found if set(found) == set(self._distributions) else None

    def asked(self, number: int) -> Values | None:
        """The values of a proposal."""
        return self._values.get(number)

    def add(self, values: Values, trial: Trial) -> None:
        """Learn of a trial that was not asked for here; in one line of the journal, where a proposal takes dozens.

        A genetic sampler makes no parent of it; see `enqueue`. What the space could not propose is remembered only.
        """
        own = {name: values[name] for name in self._distributions}
        new = trial.fingerprint not in self._known
        if new and self._learnable(trial) and self.space.decode(own) == trial.plan:
            with storage_errors(self._journal):
                self._study.add_trial(self._finished(own, trial, {PLAN: trial.fingerprint}))
            self._values[trial.fingerprint] = own
        self._remember(trial)
        for each in self._under_way.pop(trial.fingerprint, ()):
            self._tell(each, trial)

    def expect(self, plan: Plan) -> None:
        """A plan is under way that was not asked for here: it is not proposed, and learned once it is added."""
        self._under_way.setdefault(plan.fingerprint, [])

    def ask(self, left_s: float = math.inf, wander: bool = True) -> Proposal | None:
        """The next plan that was not proposed before; None when the space seems exhausted, or the time is.

        Repetitions are told with what is known of them, or once it is.

        Args:
            left_s: seconds that the next candidate may take.
            wander: whether a plan may be drawn at random where the sampler repeats itself.
        """
        if self._spent and left_s < sum(self._spent) / len(self._spent):
            return None
        for repeats in range(MAX_REPEATS):
            drawn = wander and repeats >= self._bears
            self._study.sampler = self._chance if drawn else self._sampler
            with storage_errors(self._journal):
                asked = self._study.ask(self._distributions)
            self._asked[asked.number] = asked
            self._values[asked.number] = dict(asked.params)
            plan = self.space.decode(asked.params, self._seed)
            origin: Origin = asked.user_attrs.get("origin", "sampled")
            known = self._known.get(plan.fingerprint)
            if known is not None:
                self._tell(asked.number, known)
            elif plan.fingerprint in self._under_way:
                self._under_way[plan.fingerprint].append(asked.number)
            else:
                self._under_way[plan.fingerprint] = [asked.number]
                self._bears = max(1, self._bears // 2) if drawn else SETTLED
                return Proposal(asked.number, plan, origin)
        return None

    def withdraw(self, proposal: Proposal) -> None:
        """Hear that what was asked for will not be evaluated; it counts as failed, of which nothing is learned."""
        for each in self._under_way.pop(proposal.plan.fingerprint, ()):
            if self._asked.pop(each, None) is not None:
                with storage_errors(self._journal):
                    self._study.tell(each, state=TrialState.FAIL)

    def tell(self, number: int, trial: Trial) -> None:
        """Learn the outcome of a proposal; a trial without figures counts as failed."""
        self._remember(trial)
        for each in dict.fromkeys([number, *self._under_way.pop(trial.fingerprint, ())]):
            self._tell(each, trial)

    def _tell(self, number: int, trial: Trial) -> None:
        asked = self._asked.pop(number, None)
        if asked is None:  # told already, by another name of its plan
            return
        with storage_errors(self._journal):
            if not self._learnable(trial):
                self._study.tell(number, state=TrialState.FAIL)
                return
            for name, value in self._violations(trial).items():
                asked.set_constraint(name, value)
            self._study.tell(number, self._objectives.values(trial))

    def _learnable(self, trial: Trial) -> bool:
        """Whether all objectives of a trial are known."""
        return trial.measured and all(map(math.isfinite, self._objectives.values(trial)))

    def _remember(self, trial: Trial) -> None:
        """Keep a trial; a repetition takes no seconds."""
        if trial.measured and trial.fingerprint not in self._known:
            self._spent.append(sum(trial.seconds.values()))
        self._known[trial.fingerprint] = trial


def typical_seconds(trials: Iterable[Trial]) -> float:
    """Mean seconds of the measured ones; 0 for none."""
    spent = [sum(trial.seconds.values()) for trial in trials if trial.measured]
    return sum(spent) / len(spent) if spent else 0.0


def check_sampler(name: str, seed: int) -> None:
    """Raise `ConfigError` for an unknown sampler or a negative seed."""
    if name not in SAMPLERS:
        raise ConfigError(f"--sampler {name!r} is unknown{near(name, SAMPLERS)}")
    if seed < 0:
        raise ConfigError(f"--seed must be 0 or more, but got {seed}")


def make_sampler(name: Sampler, seed: int, workers: int = 1) -> BaseSampler:
    """Optuna's sampler of that name, seeded; raises as `check_sampler` does.

    With several workers TPE takes what is under way for bad, so that it does not propose the like of it.
    """
    check_sampler(name, seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if name in ("auto", "tpe"):
            return optuna.samplers.TPESampler(
                seed=seed, multivariate=True, n_startup_trials=10, constant_liar=workers > 1
            )
        if name == "nsga2":
            return optuna.samplers.NSGAIISampler(seed=seed, population_size=POPULATION)
        if name == "nsga3":
            return optuna.samplers.NSGAIIISampler(seed=seed, population_size=POPULATION)
        if name == "gp":
            return optuna.samplers.GPSampler(seed=seed)
        return optuna.samplers.RandomSampler(seed=seed)


def _distribution(variable: Variable) -> BaseDistribution:
    if variable.levels:
        return IntDistribution(0, len(variable.levels) - 1)
    return FloatDistribution(variable.low, variable.high, log=variable.log)


def importances(
    variables: Sequence[Variable], tried: Sequence[tuple[Values, float]], strata: Sequence[int], seed: int = 0
) -> dict[str, tuple[float, ...]]:
    """Share of each variable in the variance of an outcome, by fANOVA (Hutter, Hoos & Leyton-Brown 2014).

    A forest is fitted to the outcomes, and the variance of what it says over the whole space (an interval that is
    searched by its logarithm counts by it) is divided among the variables; what several explain only together is in
    none of them. Beside it stand the shares that forests of shuffled outcomes give: a variable that decides nothing
    gets more than all of them in 1 case of 20. Of effects that were planted into the design of a staged search, fANOVA
    found the shares nearer than PED-ANOVA, whose densities follow where the sampler went.

    Args:
        variables: to judge.
        tried: their values, and how that did, ``(n,)``.
        strata: number of the stratum of each; outcomes are shuffled within, ``(n,)``.
        seed: of the forests and the shuffles.

    Returns:
        By variable the share, and then those of `SHUFFLES` shuffles; {} where all outcomes are equal.
    """
    outcomes = np.array([outcome for _values, outcome in tried])
    if not len(variables) or np.ptp(outcomes) == 0:
        return {}
    optuna.logging.set_verbosity(logging.WARNING)
    study, draw = optuna.create_study(), np.random.default_rng(seed)
    distributions = {variable.name: _linear(variable) for variable in variables}
    for values, _outcome in tried:
        params = {variable.name: _linear_value(variable, values[variable.name]) for variable in variables}
        study.add_trial(optuna.trial.create_trial(params=params, distributions=distributions, values=[0.0]))
    found: dict[str, tuple[float, ...]] = {variable.name: () for variable in variables}
    for shuffle in range(1 + SHUFFLES):
        told = outcomes.copy()
        for stratum in set(strata) if shuffle else ():
            places = [place for place, one in enumerate(strata) if one == stratum]
            told[places] = draw.permutation(told[places])
        evaluator = optuna.importance.FanovaImportanceEvaluator(n_trees=TREES, max_depth=DEPTH, seed=seed)
        shares = evaluator.evaluate(study, target=lambda trial, told=told: float(told[trial.number]))  # type: ignore[misc]
        found = {name: (*known, shares[name]) for name, known in found.items()}
    return found


def _linear(variable: Variable) -> BaseDistribution:
    if variable.log:
        return FloatDistribution(math.log(variable.low), math.log(variable.high))
    return _distribution(variable)


def _linear_value(variable: Variable, value: float) -> float:
    """A value on the scale of `_linear`; one beyond an interval (of an earlier space) as its end."""
    if variable.levels:
        return value
    inside = min(max(value, variable.low), variable.high)
    return math.log(inside) if variable.log else inside


class Tuner:
    """Proposes the settings of recoveries, one objective, by TPE; keeps nothing but what it is told each time.

    Args:
        variables: λ, temperature, learning rate: those that are searched.
        seed: of the sampler.
    """

    def __init__(self, variables: Sequence[Variable], seed: int = 0) -> None:
        self._distributions = {variable.name: _distribution(variable) for variable in variables}
        self._seed = seed

    def suggest(self, tried: Sequence[tuple[Values, float]], under_way: int = 0) -> Values:
        """The next settings, by how well others did (more is better), other ones for each that is under way."""
        study = self._study(tried, under_way)
        return dict(study.ask(self._distributions).params)

    def _study(self, tried: Sequence[tuple[Values, float]], under_way: int = 0) -> optuna.Study:
        optuna.logging.set_verbosity(logging.WARNING)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler = optuna.samplers.TPESampler(
                seed=self._seed + len(tried) + under_way, multivariate=True, n_startup_trials=LEAST_TRIED
            )
        study = optuna.create_study(direction="maximize", sampler=sampler)
        for values, score in tried:
            study.add_trial(
                optuna.trial.create_trial(params=dict(values), distributions=self._distributions, values=[score])
            )
        return study
