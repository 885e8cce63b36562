"""New candidates near those that are good, by several ways: the more a way lately found in its time, the more of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np

from autocompress.objectives import amount
from autocompress.records import Origin, Trial
from autocompress.searching.controller import Controller, Proposal
from autocompress.searching.expected import Expected
from autocompress.searching.foresight import Foresight
from autocompress.searching.knapsack import Knapsack
from autocompress.searching.programs import Losses
from autocompress.searching.seen import Seen, own_ratio, ratio_of
from autocompress.space import Values

#: Trials up to which the sampler proposes, too: what it takes to model them grows with their number.
MOST_SAMPLED = 1000

#: Spread of the losses that every second solution believes, as the standard deviation of their logarithm.
SPREAD = 0.5

#: Share of mixed variations that have two parents.
CROSSED = 0.9

#: Candidates so many times as slow as the fastest that keeps the allowed loss are near it.
NEAR = 1.4

#: Candidates slower than what is asked by less than this factor are parents, too.
OVER = 1.1

#: Times that seconds are drawn until they say something new.
TRIES = 4

#: Variations of which the most promising is taken.
POOL = 32

#: Variations that are made until one is new, where any will do.
CHILDREN = 8

#: What the gains of all ways, and the time that they took, count for after each further candidate.
FADE = 0.99

#: Candidates, as all ways together make them, that every way is taken to have made besides its own.
BELIEVED = 2.0

#: In place of no gain, and of no time.
TINY = 1e-12

#: Origin, and proposal of a candidate that is new; None where it is known or under way.
Make = Callable[[Values, Origin], Proposal | None]

#: Members of the front by the logarithm of their ratio, fast to slow.
Parents = list[tuple[float, Values]]


class Refining:
    """Proposes candidates near the front of those without recovery.

    The ways: the program by the believed losses or by some drawn near them, at seconds that the front spans or that are
    asked for, these also by seconds that may as well be true as the believed ones; of many variations of the front the
    one that is foreseen to add most; and the sampler's own proposals. Variations are two members mixed, and few of
    their choices drawn anew (as NSGA-II does); one choice heavier and another lighter; and what two blocks of a member
    do exchanged. `drawn_out` says that drawn seconds led to nothing new.

    Args:
        knapsack: with what is believed.
        seen: all trials.
        values: of candidates, by fingerprint.
        controller: over what its sampler draws from.
        heaviest: values of what `controller` knows, and of what it does not: recipes and zeros, left alone here.
        make: a proposal of some values.
        draw: of all that is drawn.
    """

    def __init__(
        self,
        knapsack: Knapsack,
        seen: Seen,
        values: dict[str, Values],
        controller: Controller,
        heaviest: Mapping[str, int],
        make: Make,
        draw: np.random.Generator,
    ) -> None:
        self._knapsack, self._seen, self._values, self._controller = knapsack, seen, values, controller
        self._heaviest, self._make, self._draw = heaviest, make, draw
        self._movable = [v for v in knapsack.space.structure if v.name in knapsack.parts.chosen]
        self._alike = _alike(knapsack)
        self._variations = [self._mixed, self._switch, *([self._exchange] if self._alike else [])]
        self._foresight = Foresight(knapsack, seen, values)
        self._ways: Mapping[str, Callable[[], Proposal | None]] = {
            "resolved": self._resolved,
            "foreseen": self._foreseen,
            "bred": self._bred,
            "sampled": self._sampled,
        }
        self._found = {name: (0.0, 0.0) for name in self._ways}
        self._under_way: dict[str, tuple[str, float]] = {}
        self._told = 0.0
        self._sampler_repeats = False
        self.drawn_out = False

    def propose(self) -> Proposal | None:
        """A new candidate; None where no way finds one."""
        left = list(self._ways)
        while left:
            chances = np.array([self._chance(name) for name in left])
            name = left.pop(int(self._draw.choice(len(left), p=chances / chances.sum())))
            begun_s = self._seen.clock.elapsed()
            proposal = self._ways[name]()
            took_s = self._seen.clock.elapsed() - begun_s
            if proposal is not None:
                self._under_way[proposal.plan.fingerprint] = (name, took_s)
                return proposal
            gains, spent_s = self._found[name]
            self._found[name] = gains, spent_s + took_s
        return self._sampled(within=False)

    def learn(self, trial: Trial, gain: float) -> None:
        """Hear of a candidate, and of what it added to the front's hypervolume."""
        name, proposed_s = self._under_way.pop(trial.fingerprint, (None, 0.0))
        if name is not None:
            self._found = {way: (FADE * gains, FADE * spent_s) for way, (gains, spent_s) in self._found.items()}
            gains, spent_s = self._found[name]
            self._found[name] = (gains + max(gain, 0.0), spent_s + proposed_s + sum(trial.seconds.values()))
            self._told = FADE * self._told + 1

    def _chance(self, name: str) -> float:
        """What a way added in its time, with some candidates of all ways taken for its own."""
        gains, spent_s = self._found[name]
        count = max(self._told, 1.0)
        usual = max(sum(gains for gains, _spent_s in self._found.values()) / count, TINY)
        usual_s = max(sum(spent_s for _gains, spent_s in self._found.values()) / count, TINY)
        return (gains + BELIEVED * usual) / (spent_s + BELIEVED * usual_s)

    def _resolved(self) -> Proposal | None:
        """The program's choice at a latency between the front's fastest and what is asked, or the best that was found.

        By the losses that are believed, or others near them. Where a loss is allowed, between what keeps it and what
        does not.
        """
        knapsack = self._knapsack
        draw = self._draw
        spread = SPREAD * draw.integers(2)
        kl = {name: [loss * math.exp(draw.normal(0, spread)) for loss in row] for name, row in knapsack.kl.items()}
        if "latency" in knapsack.limits and (draw.integers(2) or not self._seen.reached()):
            found = self._by_drawn_seconds(kl)
            return None if found is None else self._make(found.values, "refined")
        front, best = self._seen.front(), self._seen.best()
        if not front or best is None:
            return None
        fast, slow = self._seen.asked_between()
        seconds = [knapsack.work.seconds(trial.plan) for trial in front]
        slowest = max(seconds) if knapsack.along else knapsack.work.seconds(best.plan)
        high_s = min(slowest, knapsack.limits.get("latency", math.inf), slow * knapsack.dense_s)
        low_s = min(high_s, *seconds)
        if slow < math.inf:
            low_s = min(high_s, max(fast * knapsack.dense_s, high_s / NEAR))
        found = knapsack.at(math.exp(draw.uniform(math.log(low_s), math.log(high_s))), kl, self._drawn_amounts())
        return None if found is None else self._make(found.values, "refined")

    def sought(self) -> Expected | None:
        """A new choice of the program within what is asked, by drawn seconds."""
        drawn = (self._by_drawn_seconds() for _ in range(TRIES))
        found = next((one for one in drawn if one is not None and not self._seen.proposed(one.plan)), None)
        self.drawn_out = found is None
        return found

    def _by_drawn_seconds(self, kl: Losses | None = None) -> Expected | None:
        """The program's choice within what is asked, by seconds of plans that may as well be true as those believed.

        Where candidates turn out slower than they were expected to be, what is believed may be wrong of just that of
        which nothing was measured yet; drawn from what is known (Thompson 1933), it is tried as likely as it may do.
        """
        return self._knapsack.at(math.inf, kl, work=self._knapsack.work.drawn(self._draw))

    def _drawn_amounts(self) -> dict[str, float]:
        """A limit on one further objective, drawn within what the front spans; half of the time none."""
        along = self._knapsack.along
        if not along or self._draw.random() < 0.5:
            return {}
        name = along[self._draw.integers(len(along))]
        logs = np.log([amount(trial, name) or math.nan for trial in self._seen.front()])
        return {name: math.exp(self._draw.uniform(np.nanmin(logs), np.nanmax(logs)))}

    def _moved(self, values: Values, step: int) -> Values | None:
        """One variable of the program, drawn, a level lighter (1) or heavier (-1)."""
        movable = [v for v in self._movable if 0 <= values[v.name] + step < len(v.levels)]
        if not movable:
            return None
        name = movable[self._draw.integers(len(movable))].name
        return {**values, name: values[name] + step}

    def _foreseen(self) -> Proposal | None:
        """Of many variations the one that is expected to add most to the front, by what all others were measured to."""
        pool = list(self._varied(POOL))
        return self._first(one.values for one in self._foresight.ranked(pool)) if pool else None

    def _bred(self) -> Proposal | None:
        """Any new variation, as what was measured says nothing of what is unlike it."""
        return self._first(self._varied(CHILDREN))

    def _first(self, candidates: Iterable[Values]) -> Proposal | None:
        """The first that is new."""
        return next((made for made in (self._make(values, "refined") for values in candidates) if made), None)

    def _varied(self, count: int) -> Iterator[Values]:
        """Different variations of the front that may keep what is asked, so many at most."""
        parents, known = self._parents(), set[object]()
        for _ in range(2 * count if parents else 0):
            vary = self._variations[self._draw.integers(len(self._variations))]
            child = vary(parents)
            key = None if child is None else tuple(child.items())
            if child is None or key in known or len(known) >= count:
                continue
            if self._knapsack.keeps(child):
                known.add(key)
                yield child

    def _mixed(self, parents: Parents) -> Values | None:
        """Variables of one front member or of two, each as likely from either; one of them, on average, drawn anew."""
        one, other = self._drawn(parents), self._drawn(parents)
        child = dict(one)
        if self._draw.random() < CROSSED:
            child.update({v.name: other[v.name] for v in self._movable if self._draw.random() < 0.5})
        for variable in self._movable:
            if self._draw.random() < 1 / len(self._movable):
                child[variable.name] = int(self._draw.integers(len(variable.levels)))
        return child

    def _switch(self, parents: Parents) -> Values | None:
        """A front member with one choice heavier and another lighter."""
        heavier = self._moved(self._drawn(parents), -1)
        return None if heavier is None else self._moved(heavier, 1)

    def _exchange(self, parents: Parents) -> Values | None:
        """A front member with one kind of choice, or all, exchanged between two blocks that are alike."""
        parent = self._drawn(parents)
        alike = self._alike[self._draw.integers(len(self._alike))]
        one, other = (alike[i] for i in self._draw.choice(len(alike), 2, replace=False))
        places = range(len(one)) if self._draw.random() < 0.5 else [int(self._draw.integers(len(one)))]
        swapped = {one[i]: parent[other[i]] for i in places} | {other[i]: parent[one[i]] for i in places}
        return {**parent, **swapped}

    def _sampled(self, within: bool = True) -> Proposal | None:
        """The sampler's proposal; within the limits by what is believed, or else any."""
        if self._sampler_repeats or len(self._seen.trials) > MOST_SAMPLED:
            return None
        for _ in range(CHILDREN):
            proposal = self._controller.ask(wander=False)
            self._sampler_repeats = proposal is None  # so often that asking again would only take time
            if proposal is None or proposal.plan.fingerprint in self._seen.under_way:
                return None  # the controller hears of it when it is told
            values = {**self._heaviest, **(self._controller.asked(proposal.number) or {})}
            if not within or self._knapsack.keeps(values):
                self._values[proposal.plan.fingerprint] = values
                return proposal
            self._controller.withdraw(proposal)
        return None

    def _parents(self) -> Parents:
        """Members of the front by the logarithm of their ratio, fast to slow.

        Those with recipes or zeros stay the corners that they are. Where a latency alone is asked for, parents may be a
        little slower, as one lighter choice brings them within it; where a loss is allowed, they are near the fastest
        that keeps it, on either side of it.
        """
        held = self._heaviest.keys() - self._controller.space.by_name.keys()
        limits, most = self._knapsack.limits, math.inf
        if "latency" in limits:
            most = OVER * limits["latency"] / self._knapsack.dense_s
        # where bytes are limited as well, what is too slow may be too large, too
        alone = limits.keys().isdisjoint(self._knapsack.resources)
        found = [
            (trial, self._values[trial.fingerprint])
            for trial in (self._seen.front_up_to(most) if alone else self._seen.front())
            if trial.fingerprint in self._values and not any(self._values[trial.fingerprint][name] for name in held)
        ]
        found = [one for one in found if own_ratio(one[0]) <= most] or found[:1]
        place = self._seen.asked_between()[1]
        near = [one for one in found if place / NEAR <= own_ratio(one[0]) <= place * NEAR]
        return [(math.log(ratio_of(trial)), own) for trial, own in near or found]

    def _drawn(self, parents: Parents) -> Values:
        """The nearest to a latency drawn evenly in its logarithm, so that the front is refined all along."""
        drawn = self._draw.uniform(parents[0][0], parents[-1][0])
        return min(parents, key=lambda parent: abs(parent[0] - drawn))[1]


def _alike(knapsack: Knapsack) -> list[list[tuple[str, ...]]]:
    """Variables of parts that offer the same: a list for each kind of part of which there are several."""
    found: dict[object, list[tuple[str, ...]]] = {}
    for part in knapsack.parts.parts:
        names = part.names
        offers = tuple((name.partition(":")[0], knapsack.space.by_name[name].levels) for name in names)
        found.setdefault(offers, []).append(names)
    return [parts for parts in found.values() if len(parts) > 1]
