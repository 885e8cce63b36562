"""Where candidates are evaluated: a small protocol, and the plain way, one after another in this process."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Protocol

from autocompress.pipeline import evaluate
from autocompress.records import Trial
from autocompress.searching.controller import Proposal
from autocompress.workshop import Workshop

#: A candidate and its evaluation; number, origin and proposal of the trial are the search's affair.
Finished = tuple[Proposal, Trial]


class Runner(Protocol):
    """Evaluates proposals, some at a time. Latencies are taken by one process per device, with its work at rest.

    Attributes:
        workers: proposals that are worth having under way at once.
    """

    workers: int

    def submit(self, proposal: Proposal) -> None:
        """Begin an evaluation."""
        ...

    def wait(self) -> Finished:
        """The next evaluation that is finished, in whatever order; only asked while some are under way.

        Raises:
            StorageError: a disk is full.
            AutocompressError: nothing can be evaluated at all.
        """
        ...

    def close(self) -> None:
        """Give up what is under way, and end what was started."""
        ...


@dataclass
class InProcess:
    """One candidate after another, here."""

    shop: Workshop
    workers: int = 1
    _waiting: deque[Proposal] = field(default_factory=deque)

    def submit(self, proposal: Proposal) -> None:
        """Remember it."""
        self._waiting.append(proposal)

    def wait(self) -> Finished:
        """Evaluate the one that has waited longest."""
        proposal = self._waiting.popleft()
        return proposal, evaluate(proposal.plan, self.shop, rung=proposal.rung)

    def close(self) -> None:
        """Forget what waits."""
        self._waiting.clear()
