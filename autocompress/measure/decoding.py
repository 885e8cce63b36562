"""Decoding: how a file with a past is fed, and what a query of it costs. Knows arrays and names, no torch.

The file reads `TOKENS` (batch, new), `KEPT` (kept,) and per attention a past (batch, heads, past, size) of keys and
values; it answers with the logits (batch, kept, vocabulary) of the kept positions and with the past that the next
step is fed. An empty past is the prefill, so one file does both.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autocompress.errors import MeasureError
from autocompress.runtimes import Arrays, Device, Session, open_session

TOKENS = "input_ids"
KEPT = "logits_at"
PAST = "past_key_values."
PRESENT = "present."
LOGITS = "logits"

#: Positions whose logits are worth their price when the next token is all that is wanted.
LAST = np.array([-1], dtype=np.int64)

#: Shapes by name of input; None where an axis is free.
Ports = Mapping[str, tuple[int | None, ...]]

Array = NDArray[Any]


def past_names(attentions: int) -> list[str]:
    """Names of the past's tensors in order: key and value of each attention."""
    return [f"{PAST}{number}.{part}" for number in range(attentions) for part in ("key", "value")]


def present_names(attentions: int) -> list[str]:
    """Names of what a step adds its tokens to, in the same order."""
    return [name.replace(PAST, PRESENT) for name in past_names(attentions)]


def decodes(ports: Ports) -> bool:
    """Whether a file has a past."""
    return any(name.startswith(PAST) for name in ports)


def empty_past(ports: Ports, batch: int) -> dict[str, Array]:
    """A past of no tokens, ``(batch, heads, 0, size)`` each: what a prompt comes after."""
    sizes = {name: (ports[name][1] or 0, ports[name][3] or 0) for name in past_names(_attentions(ports))}
    return {name: np.zeros((batch, heads, 0, size), dtype=np.float32) for name, (heads, size) in sizes.items()}


def _attentions(ports: Ports) -> int:
    return sum(name.startswith(PAST) for name in ports) // 2


@dataclass(frozen=True)
class Prefill:
    """A session with a past as one without: it reads `TOKENS` and gives the logits of all of them.

    What scores, compares or loads a file need not know that it decodes; other files run as they are.
    """

    session: Session

    @property
    def ports(self) -> Mapping[str, tuple[int | None, ...]]:
        """Inputs of the file."""
        return self.session.ports

    def run(self, inputs: Arrays) -> list[Array]:
        """Logits ``(batch, new, vocabulary)``, then the present; of other files their outputs."""
        if not decodes(self.session.ports):
            return self.session.run(inputs)
        batch, length = inputs[TOKENS].shape
        return self.session.run({**empty_past(self.session.ports, batch), KEPT: np.arange(length), **inputs})


def open_graded(path: Path, runtime: str, threads: int, device: Device = "cpu") -> Session:
    """A file as it is scored and compared, with or without a past; raises `MeasureError` as `open_session`."""
    return Prefill(open_session(path, runtime, threads, device))


@dataclass
class Stream:
    """Tokens that are fed to a session piece by piece; holds the past.

    Args:
        session: with a past.
        batch: sequences, all of one length.
    """

    session: Session
    batch: int

    def __post_init__(self) -> None:
        """Begin with an empty past."""
        self.past: dict[str, Array] = empty_past(self.session.ports, self.batch)
        if not self.past:
            raise MeasureError(f"the file reads {', '.join(self.session.ports)}, but no {PAST}*; it cannot decode")
        self._run: Callable[[Arrays], list[Array]] = getattr(self.session, "lend", self.session.run)

    def feed(self, tokens: Array, kept: Array = LAST) -> Array:
        """Logits ``(batch, kept, vocabulary)`` at some positions of the new tokens ``(batch, new)``.

        They are the session's own and hold until the call after the next.
        """
        logits, *present = self._run({TOKENS: tokens, KEPT: kept, **self.past})
        self.past = dict(zip(self.past, present, strict=True))
        return logits


def generate(session: Session, prompt: Array, new_tokens: int) -> Array:
    """The most likely continuation, token by token: ``(batch, new_tokens)`` after a prompt ``(batch, length)``.

    Stops at no token, and takes the first of two equally likely ones.
    """
    stream, tokens, made = Stream(session, len(prompt)), prompt, []
    for _ in range(new_tokens):
        tokens = stream.feed(tokens)[:, -1:].argmax(-1)
        made.append(tokens)
    return np.concatenate(made, axis=1)


def pieces(tokens: Array, prompt_length: int, new_tokens: int) -> list[Array]:
    """What one query feeds: the prompt ``(batch, prompt_length)``, then `new_tokens` times ``(batch, 1)``.

    Raises:
        MeasureError: there are too few tokens.
    """
    length = prompt_length + new_tokens
    if tokens.shape[1] < length:
        raise MeasureError(
            f"a query of prompt_length {prompt_length} and new_tokens {new_tokens} wants {length} tokens, "
            f"but {TOKENS} has {tokens.shape[1]}"
        )
    steps = range(prompt_length, length)
    return [np.ascontiguousarray(part) for part in (tokens[:, :prompt_length], *(tokens[:, i : i + 1] for i in steps))]


def decode_query(
    session: Session,
    inputs: Arrays,
    prompt_length: int,
    new_tokens: int,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[float, list[float]]:
    """Seconds of the prompt and of each of `new_tokens` steps after it: prefill(P) and N times decode.

    The tokens are those of `inputs`, whatever the logits say, so that every candidate does the same work; a step
    includes feeding the last one's present as its past, and the logits of its token.

    Args:
        session: with a past.
        inputs: `TOKENS` ``(batch, prompt_length + new_tokens or more)``; all else is left out.
        prompt_length: P.
        new_tokens: N.
        clock: seconds; read before the prompt, and after it and each step.
    """
    parts = pieces(inputs[TOKENS], prompt_length, new_tokens)
    stream = Stream(session, len(parts[0]))
    before, seconds = clock(), []
    for part in parts:
        stream.feed(part)
        after = clock()
        seconds.append(after - before)
        before = after
    return seconds[0], seconds[1:]


@dataclass(frozen=True)
class Decoded:
    """What queries of a decoder took, in seconds.

    Attributes:
        latency_s: median of whole queries, prefill(P) + N · decode: the objective.
        first_token_s: median of the prompts.
        per_token_s: median over queries of the mean step.
    """

    latency_s: float
    first_token_s: float
    per_token_s: float


def decoded(queries: Sequence[tuple[float, Sequence[float]]]) -> Decoded:
    """The figures of some answers of `decode_query`."""
    first = np.array([prompt for prompt, _steps in queries])
    steps = np.array([steps for _prompt, steps in queries])
    medians = (np.median(values) for values in (first + steps.sum(axis=1), first, steps.mean(axis=1)))
    return Decoded(*map(float, medians))
