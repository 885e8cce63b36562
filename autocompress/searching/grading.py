"""The end of a search: finalists timed again in fresh processes, and graded on samples that nothing was chosen by."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence

from autocompress.errors import StorageError
from autocompress.front import Front
from autocompress.pipeline import measure_again, score_artifact
from autocompress.records import Trial
from autocompress.workshop import Workshop

#: Share of the time budget that the finalists may take at most.
FINAL_SHARE = 0.25

#: A finalist is believed to take so many times what timing a candidate does, in fresh processes, and so many seconds.
FRESH, FRESH_S = 4.0, 2.0

#: Times that the front is graded anew, because some of it does not keep the budgets on the confirm part.
FINAL_ROUNDS = 4


class Grading:
    """Grades the references, then of the front what adds most, as the time allows.

    Args:
        shop: of the search.
        budget_s: wall-clock seconds of the whole search.
        elapsed: gives those that are over.
        front: gives the front so far.
        keep: takes a trial as it is graded, and the seconds that this took.
        say: is told what is left ungraded, and why.
    """

    def __init__(
        self,
        shop: Workshop,
        budget_s: float,
        elapsed: Callable[[], float],
        front: Callable[[], Front],
        keep: Callable[[Trial, float], None],
        say: Callable[[str], None],
    ) -> None:
        self._shop, self._budget_s, self._elapsed = shop, budget_s, elapsed
        self._front, self._keep, self._say = front, keep, say
        self._took_s: list[float] = []

    def needed_s(self) -> float:
        """Seconds that grading will take, by the candidates so far."""
        front = self._front()
        if not front.measured:
            return 0.0
        return min((len(front.promising) + 2) * self.each_s(), FINAL_SHARE * self._budget_s)

    def each_s(self) -> float:
        """Seconds that one finalist takes: as those of this session did, before there are any by the candidates."""
        if self._took_s:
            return sum(self._took_s) / len(self._took_s)
        share = len(self._shop.task.test) / len(self._shop.task.validation)
        done = self._front().measured
        return FRESH * mean_seconds(done, "measure") + share * mean_seconds(done, "score") + FRESH_S

    def run(self, alone: bool = False) -> None:
        """Grade: report-tier latency in fresh processes, and the test split once.

        From then on a finalist is held against the budgets by the confirm part of validation; those that do not keep
        them make room for others, in further rounds.

        Args:
            alone: nothing else is done in this session: all of its time is for grading, and all is graded anew.
        """
        begun_s, graded = self._elapsed(), set[str]()
        limit_s = self._budget_s - begun_s if alone else FINAL_SHARE * self._budget_s
        for trial in self._front().references:  # what they take tells how many more there is the time for
            self._grade(trial, graded, alone)
        room = len(graded)
        for turn in itertools.count():
            front = self._front()
            # timed again, another int8 trial may be the best of them, and so a reference
            finalists = {
                t.fingerprint: t for t in (*front.references, *front.affordable(limit_s / self.each_s() - room))
            }
            waiting = [trial for name, trial in finalists.items() if name not in graded]
            if not waiting:
                left = len({trial.fingerprint for trial in front.promising} - graded)
                if left:
                    self._say(f"graded is what adds most to the front: there is no time for {left} more")
                return
            for place, trial in enumerate(waiting):
                late = self._elapsed() - begun_s > limit_s
                if (turn or alone) and (late or turn == FINAL_ROUNDS):
                    why = "their share of the time is spent" if late else f"after {turn} rounds"
                    others = " now that others do not keep the budgets on the confirm part" if turn else ""
                    self._say(f"grading stops, {why}: {len(waiting) - place} more stand on the front{others}")
                    return
                self._grade(trial, graded, alone)

    def _grade(self, trial: Trial, graded: set[str], anew: bool) -> None:
        """Grade a trial, unless it was in this run, or in an earlier session and not `anew`."""
        if trial.fingerprint in graded:
            return
        graded.add(trial.fingerprint)
        if trial.graded and not anew:
            return
        assert trial.artifact is not None
        begun = time.perf_counter()
        try:
            latency = measure_again(trial, self._shop)
            test = score_artifact(trial.artifact, self._shop, self._shop.task.test)
        except StorageError:
            raise
        except Exception as fault:  # what the search measured stays; the next run tries again
            self._say(f"final grading of {trial.fingerprint} failed: {type(fault).__name__}: {fault}")
            return
        self._took_s.append(time.perf_counter() - begun)
        found = trial.replace(latency=latency, quality_test=test.value, quality_test_stderr=test.stderr)
        self._keep(found, self._took_s[-1])


def mean_seconds(trials: Sequence[Trial], stage: str) -> float:
    """Mean seconds that a stage took in some candidates; 0 for none."""
    return sum(trial.seconds.get(stage, 0.0) for trial in trials) / max(len(trials), 1)
