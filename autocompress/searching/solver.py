"""Who proposes plans by the integer program, as the controller proposes by Optuna: `ask`, then `tell`.

Uniform corners first, then the program's front, the most needed first. What whole plans were measured to take and to
lose corrects the tables, and the program is solved again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import cast

from autocompress.plan import Plan
from autocompress.records import Origin, Trial
from autocompress.rules import SolveRule
from autocompress.searching.controller import Proposal, typical_seconds
from autocompress.searching.solve import Solution, front, refit
from autocompress.searching.units import Tables, Unit, joined

#: Measured plans after which the program is solved again.
REFIT_EVERY = 6

#: Doubt of what the tables say, as a share of it: errors add up badly, savings rather well.
ERROR_DOUBT, ERROR_NOISE = 0.5, 0.1
COST_DOUBT, COST_NOISE = 0.2, 0.01

#: Doubt of the seconds of a unit that seemed to save nothing, as a share of the dense model's.
LEAST_DOUBT = 0.002


class Solver:
    """Proposes plans from the program's front and learns from trials; first of all those of `warm`, which may be set.

    Args:
        units: what chooses.
        tables: what the program is about.
        rule: settings of the program.
        limits: largest totals, by "latency" (seconds), "size" (bytes at their bits) and "file" (bytes as stored).
        corners: plans that are proposed first, whatever the program says.
        lost: KL of whole plans to the dense model, on the samples that the errors are of.
        trials: finished evaluations.
    """

    def __init__(
        self,
        units: Sequence[Unit],
        tables: Tables,
        rule: SolveRule,
        limits: Mapping[str, float],
        *,
        corners: Sequence[Plan] = (),
        lost: Callable[[Sequence[Plan]], Mapping[Plan, float]],
        trials: Sequence[Trial] = (),
    ) -> None:
        self.units = units
        self.tables = tables
        self.rule = rule
        self.limits = limits
        self._believed = tables
        self._corners = corners
        self.warm: Sequence[Plan] = ()
        self._lost = lost
        self._known = {trial.fingerprint: trial for trial in trials}
        self._under_way: dict[str, Proposal] = {}
        self._front: tuple[Solution, ...] | None = None
        self._fresh = 0

    def ask(self, left_s: float = math.inf) -> Proposal | None:
        """The next plan that was not proposed; None when the program has no more, was followed often enough, or late.

        Args:
            left_s: seconds that the next candidate may take.
        """
        found = self._next() if left_s >= typical_seconds(self._known.values()) else None
        if found is None:
            return None
        plan, origin = found
        proposal = Proposal(len(self._known) + len(self._under_way), plan, origin)
        self._under_way[plan.fingerprint] = proposal
        return proposal

    def _next(self) -> tuple[Plan, Origin] | None:
        for origin, first in (("warm-start", self.warm), ("uniform", self._corners)):
            for plan in first:
                if not self._proposed(plan):
                    return plan, cast(Origin, origin)
        origins = [trial.origin for trial in self._known.values()]
        solved = [*origins, *(proposal.origin for proposal in self._under_way.values())].count("solved")
        if solved >= self.rule.points + self.rule.refine:
            return None
        if self._front is None or self._fresh >= REFIT_EVERY:
            self._solve()
        needed = self._most_needed()
        if needed is None and self._fresh:
            self._solve()
            needed = self._most_needed()
        return None if needed is None else (needed, "solved")

    def _proposed(self, plan: Plan) -> bool:
        return plan.fingerprint in self._known or plan.fingerprint in self._under_way

    def tell(self, _number: int, trial: Trial) -> None:
        """Learn the outcome of a proposal."""
        self._known[trial.fingerprint] = trial
        self._under_way.pop(trial.fingerprint, None)
        self._fresh += trial.measured

    def _solve(self) -> None:
        """Correct the tables by what was measured, and solve for the front."""
        self._believed = self._corrected()
        tables, rule = self._believed, self.rule
        self._front = front(tables.errors, tables.costs, rule.sweep, rule.points, self.limits)
        self._fresh = 0

    def _corrected(self) -> Tables:
        chosen = list(self._measured())
        if not chosen:
            return self.tables
        choices = [choice for choice, _trial in chosen]
        losses = self._lost([trial.plan for _choice, trial in chosen])
        kls = [losses[trial.plan] for _choice, trial in chosen]
        doubts = [[ERROR_DOUBT * error for error in row] for row in self.tables.errors]
        least = 1e-3 * max(kls)
        errors = refit(self.tables.errors, doubts, choices, kls, [ERROR_NOISE * kl + least + 1e-12 for kl in kls])
        return replace(
            self.tables,
            errors=[[max(0.0, error) for error in row] for row in errors],
            seconds=self._corrected_seconds(choices, [trial for _choice, trial in chosen]),
        )

    def _corrected_seconds(self, choices: Sequence[Sequence[int]], trials: Sequence[Trial]) -> list[list[float]]:
        """Doubted are each option's saving, and a little of what any unit takes."""
        table, dense = self.tables.seconds, self.tables.dense_s
        least = LEAST_DOUBT * dense / math.sqrt(len(table))
        doubts = [[COST_DOUBT * abs(value - dense / len(table)) + least for value in row] for row in table]
        latencies = [trial.latency for trial in trials if trial.latency]
        noise = [dense * (COST_NOISE * la.ratio + (la.ratio_high - la.ratio_low) / 4) for la in latencies]
        return refit(table, doubts, choices, [dense * la.ratio for la in latencies], noise)

    def _measured(self) -> Iterator[tuple[tuple[int, ...], Trial]]:
        """Measured trials with the options that they chose; plans that do something else are left out."""
        for trial in self._known.values():
            options = self.options_of(trial.plan)
            if trial.measured and options is not None:
                yield options, trial

    def options_of(self, plan: Plan) -> tuple[int, ...] | None:
        """Number of the option of each unit; None where the plan is not made of them."""
        options = [unit.option_of(plan) for unit in self.units]
        found = [option for option in options if option is not None]
        if len(found) < len(options) or self.plan_of(found) != plan:
            return None
        return tuple(found)

    def plan_of(self, options: Sequence[int]) -> Plan:
        """The plan that some options make."""
        return joined([unit.options[option] for unit, option in zip(self.units, options, strict=True)])

    def _most_needed(self) -> Plan | None:
        """The dearest of the front where its cost is limited, then the one furthest in cost from all known plans."""
        along = self._believed.costs[self.rule.sweep]

        def spot(options: Sequence[int]) -> float:
            total = sum(row[option] for row, option in zip(along, options, strict=True))
            return math.log(max(total, 1e-12))

        begun = [self.options_of(proposal.plan) for proposal in self._under_way.values()]
        spots = [spot(options) for options, _trial in self._measured()] + [spot(each) for each in begun if each]
        left = []
        for solution in self._front or ():
            assert solution.options is not None
            if not self._proposed(self.plan_of(solution.options)):
                left.append(solution.options)
        if not left:
            return None
        if self.rule.sweep in self.limits and self._front and left[-1] == self._front[-1].options:
            return self.plan_of(left[-1])
        best = max(left, key=lambda options: min((abs(spot(options) - other) for other in spots), default=0.0))
        return self.plan_of(best)
