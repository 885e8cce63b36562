"""Which of many candidates promise most: what each is expected to add to the front, by all that was measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autocompress.objectives import amount
from autocompress.plan import Plan
from autocompress.records import Trial
from autocompress.searching.expected import Expected
from autocompress.searching.knapsack import Knapsack
from autocompress.searching.seen import NOTHING, Seen, own_ratio, ratio_of
from autocompress.searching.surrogate import Surrogate, expected_gains, likely_below
from autocompress.space import Values

Array = NDArray[np.float64]

#: Measured candidates that are learned from, the last ones and those of the front.
MOST = 300

#: Measured candidates below which nothing is foreseen.
LEAST = 24

#: Losses of quality are told as a share of the largest that counts, and cut off here: how broken a model is that
#: nobody wants says nothing.
BROKEN = 1.5

#: Least doubt of a foretold logarithm of latency: it is measured no better.
BLURRED = 0.01

#: Such a share below which what is lost is foretold no better, the less it is.
SURE = 0.2


@dataclass(frozen=True)
class _Row:
    """A candidate in numbers: levels of its choices that have an effect, and what the program expects of it."""

    choices: Array
    log_loss: float
    seconds: float


class Foresight:
    """Learns quality and latency of candidates without recovery from those that were measured.

    Args:
        knapsack: with what is believed, which is corrected from time to time.
        seen: all trials.
        values: of candidates, by fingerprint.
    """

    def __init__(self, knapsack: Knapsack, seen: Seen, values: dict[str, Values]) -> None:
        self._knapsack, self._seen, self._values = knapsack, seen, values
        self._variables = knapsack.space.structure
        kinds = [variable.name.partition(":")[0] for variable in self._variables]
        levels = [len(variable.levels) for variable in self._variables]
        self._quality, self._latency = Surrogate(kinds, levels, SURE), Surrogate(kinds, levels, 1.0)
        self._rows: dict[str, _Row] = {}
        self._believed: object = None
        self._known, self._step = 0, 0.0

    def ranked(self, children: Sequence[Values]) -> list[Expected]:
        """Candidates by what they are expected to add, the most first; as they are where too little was measured.

        The likelier one is to be slower than the program allows, the less it is expected to add.
        """
        expected = [self._knapsack.expected(values) for values in children]
        if not self._learned() or not self._seen.front():
            return expected
        rows = [self._row(one.values, one.plan, one) for one in expected]
        choices = np.array([row.choices for row in rows])
        drops, spreads = self._quality.foretell(choices, np.array([row.log_loss for row in rows]))
        factors, blurs = self._latency.foretell(choices, np.zeros(len(rows)))
        places = np.log([row.seconds / self._knapsack.dense_s for row in rows]) + factors
        more, front, one = self._seen.judge.objectives.more, self._seen.asked_front(), self._seen.front()[0]
        # the corner is told to the fastest dense, and everything here to dense in the same runtime
        apart = math.log(ratio_of(one) / own_ratio(one))
        corner = (self._seen.reference()[0] - apart, 1.0 - self._step)
        members = np.array([(math.log(own_ratio(trial)), self._drop(trial) - self._step) for trial in front])
        members = members.reshape(-1, 2)
        most = math.inf if self._seen.judge.recovers else self._share(self._seen.most_lost)
        if not more:
            gains = expected_gains(members, corner, places, drops, spreads, most)
        else:  # against those alone that take at most as much of everything else
            taken = np.array([[amount(trial, name) or math.inf for name in more] for trial in front])
            taken = taken.reshape(-1, len(more))
            gains = np.array(
                [
                    expected_gains(
                        members[(taken <= [one.others.get(name, math.inf) for name in more]).all(axis=1)],
                        corner, places[[i]], drops[[i]], spreads[[i]], most,
                    )[0]
                    for i, one in enumerate(expected)
                ]
            )  # fmt: skip
        slowest = math.log(self._knapsack.limits.get("latency", math.inf) / self._knapsack.dense_s)
        gains *= likely_below(slowest, places, np.maximum(blurs, BLURRED))
        return [expected[i] for i in np.argsort(-gains, kind="stable")]

    def _learned(self) -> bool:
        """Whether enough was measured; learns what is new."""
        trials = self._seen.trials
        if self._believed is not self._knapsack.kl:
            self._rows, self._believed, self._known = {}, self._knapsack.kl, 0
        if len(trials) == self._known:
            return len(self._rows) >= LEAST
        chosen = [trial for trial in self._seen.learned_from(MOST) if trial.fingerprint in self._values]
        if len(chosen) < LEAST:
            return False
        rows = []
        for trial in chosen:
            if trial.fingerprint not in self._rows:
                self._rows[trial.fingerprint] = self._row(self._values[trial.fingerprint], trial.plan)
            rows.append(self._rows[trial.fingerprint])
        choices = np.array([row.choices for row in rows])
        drops = np.array([min(self._drop(trial), BROKEN) for trial in chosen])
        gaps = np.diff(np.unique(drops))
        self._step = float(gaps.min()) if len(gaps) else 0.0
        self._quality.learn(choices, np.array([row.log_loss for row in rows]), drops)
        measured = np.array([own_ratio(trial) * self._knapsack.dense_s for trial in chosen])
        factors = np.log(measured / np.array([row.seconds for row in rows]))
        self._latency.learn(choices, np.zeros(len(rows)), factors)
        self._known = len(trials)
        return True

    def _row(self, values: Values, plan: Plan, expected: Expected | None = None) -> _Row:
        effective = self._knapsack.effective(values, plan)
        loss = self._knapsack.loss(values, plan) if expected is None else expected.loss
        seconds = self._knapsack.work.seconds(plan) if expected is None else expected.seconds
        choices = np.array([effective[variable.name] for variable in self._variables], dtype=float)
        return _Row(choices, math.log(max(loss, NOTHING)), seconds)

    def _drop(self, trial: Trial) -> float:
        """Quality lost, as a share of the loss that counts as nothing gained."""
        return self._share(self._seen.drop(trial))

    def _share(self, drop: float) -> float:
        return drop / max(self._seen.worst_drop(), NOTHING)
