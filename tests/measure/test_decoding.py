"""Oracles: a clock that is read from a list, and a session of NumPy whose next token is the sum of all before it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from autocompress.errors import MeasureError
from autocompress.measure.decoding import (
    KEPT,
    TOKENS,
    Decoded,
    Prefill,
    Stream,
    decode_query,
    decoded,
    decodes,
    empty_past,
    generate,
    past_names,
    pieces,
    present_names,
)

VOCABULARY = 11
PORTS = {
    TOKENS: (None, None),
    KEPT: (None,),
    "past_key_values.1.value": (None, 2, None, 3),  # a file may name them in any order
    "past_key_values.0.key": (None, 1, None, 1),
    "past_key_values.0.value": (None, 1, None, 1),
    "past_key_values.1.key": (None, 2, None, 3),
}


class Summing:
    """Logits are largest at the sum of all tokens so far; keys hold the tokens, values twice as much."""

    ports = PORTS

    def __init__(self) -> None:
        self.calls: list[dict[str, NDArray[Any]]] = []

    def run(self, inputs: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
        self.calls.append(dict(inputs))
        tokens = inputs[TOKENS]
        batch, new = tokens.shape
        present = []
        for name in past_names(2):
            _free, heads, _past, size = PORTS[name]
            factor = 2 if name.endswith("value") else 1
            added = np.broadcast_to(factor * tokens[:, None, :, None], (batch, heads, new, size))
            present.append(np.concatenate([inputs[name], added.astype(np.float32)], axis=2))
        sums = present[0][:, 0, :, 0].cumsum(axis=1)[:, -new:].astype(int) % VOCABULARY
        return [np.eye(VOCABULARY, dtype=np.float32)[sums][:, inputs[KEPT]], *present]


class Lending(Summing):
    """Gives the same memory again at every second call."""

    def __init__(self) -> None:
        super().__init__()
        self.room = [[np.zeros(10_000, dtype=np.float32) for _ in range(5)] for _ in range(2)]

    def lend(self, inputs: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
        lent = []
        for room, value in zip(self.room[len(self.calls) % 2], self.run(inputs), strict=True):
            room[:] = np.nan
            lent.append(room[: value.size].reshape(value.shape))
            lent[-1][:] = value
        return lent


def reads(*seconds: float) -> Callable[[], float]:
    left: Iterator[float] = iter(seconds)
    return lambda: next(left)


def continued(prompt: list[int], count: int) -> list[int]:
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(sum(tokens) % VOCABULARY)
    return tokens[len(prompt) :]


def test_names_come_in_pairs() -> None:
    assert past_names(2) == [f"past_key_values.{i}.{part}" for i in (0, 1) for part in ("key", "value")]
    assert present_names(1) == ["present.0.key", "present.0.value"]


def test_an_empty_past_has_the_files_heads_and_sizes_in_the_outputs_order() -> None:
    past = empty_past(PORTS, batch=3)
    assert list(past) == past_names(2)
    assert [value.shape for value in past.values()] == [(3, 1, 0, 1)] * 2 + [(3, 2, 0, 3)] * 2
    assert {value.dtype for value in past.values()} == {np.dtype(np.float32)}


@pytest.mark.parametrize("make", [Summing, Lending])
def test_generating_takes_the_likeliest_token_each_time(make: Callable[[], Summing]) -> None:
    prompts = [[1, 2, 3], [4, 4, 9]]
    made = generate(make(), np.array(prompts), 6)
    assert made.tolist() == [continued(prompt, 6) for prompt in prompts]


@pytest.mark.parametrize("make", [Summing, Lending])
@pytest.mark.parametrize("split", [[5], [1] * 5, [2, 1, 2]], ids=str)
def test_a_text_in_pieces_is_the_whole_text(make: Callable[[], Summing], split: list[int]) -> None:
    text = np.array([[3, 1, 4, 1, 5]])
    stream, start, found = Stream(make(), 1), 0, []
    for length in split:
        found.append(np.array(stream.feed(text[:, start : start + length], np.arange(length))))
        start += length
    assert np.concatenate(found, axis=1).argmax(-1).tolist() == [(np.cumsum(text) % VOCABULARY).tolist()]
    assert stream.past["past_key_values.1.value"].shape == (1, 2, 5, 3)


def test_a_query_is_the_prompt_and_each_token_after_it() -> None:
    """The clock is read once before the prompt and once behind each piece."""
    session = Summing()
    first, steps = decode_query(session, {TOKENS: np.arange(8)[None]}, 4, 3, reads(10.0, 10.5, 10.75, 11.75, 11.875))
    assert (first, steps) == (0.5, [0.25, 1.0, 0.125])
    assert [call[TOKENS].tolist() for call in session.calls] == [[[0, 1, 2, 3]], [[4]], [[5]], [[6]]]
    assert [call["past_key_values.0.key"].shape[2] for call in session.calls] == [0, 4, 5, 6]
    assert [call[KEPT].tolist() for call in session.calls] == [[-1]] * 4


def test_each_query_starts_from_an_empty_past() -> None:
    session = Summing()
    for _ in range(2):
        decode_query(session, {TOKENS: np.ones((2, 3), dtype=np.int64)}, 2, 1)
    assert [call["past_key_values.0.key"].shape for call in session.calls] == [(2, 1, 0, 1), (2, 1, 2, 1)] * 2


def test_the_objective_is_the_prompt_and_all_steps() -> None:
    """Medians over queries: of 2 + 4, 1 + 8 and 3 + 2 seconds; of the prompts; and of the mean steps 2, 4 and 1."""
    queries = [(2.0, [1.0, 3.0]), (1.0, [4.0, 4.0]), (3.0, [1.0, 1.0])]
    assert decoded(queries) == Decoded(latency_s=6.0, first_token_s=2.0, per_token_s=2.0)


def test_one_query_is_its_first_token_and_n_times_the_mean_step() -> None:
    made = decoded([(0.5, [0.25, 0.5, 0.75])])
    assert made.latency_s == made.first_token_s + 3 * made.per_token_s


def test_pieces_are_contiguous_and_leave_out_what_is_too_many() -> None:
    made = pieces(np.arange(20).reshape(2, 10), 3, 2)
    assert [part.tolist() for part in made] == [[[0, 1, 2], [10, 11, 12]], [[3], [13]], [[4], [14]]]
    assert all(part.flags.c_contiguous for part in made)


def test_too_few_tokens_are_refused() -> None:
    with pytest.raises(MeasureError, match="prompt_length 3 and new_tokens 4 wants 7 tokens, but input_ids has 5"):
        pieces(np.zeros((1, 5), dtype=np.int64), 3, 4)


class Plain:
    def __init__(self) -> None:
        self.ports = {"x": (None, 4)}

    def run(self, inputs: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
        return [inputs["x"] + 1]


def test_a_prefill_is_the_logits_of_all_tokens() -> None:
    session = Summing()
    logits = Prefill(session).run({TOKENS: np.array([[3, 1, 4], [2, 2, 2]])})[0]
    assert logits.argmax(-1).tolist() == [[3, 4, 8], [2, 4, 6]]
    assert decodes(session.ports)


def test_a_file_without_a_past_runs_as_it_is() -> None:
    assert not decodes(Plain().ports)
    assert Prefill(Plain()).run({"x": np.ones((1, 4))})[0].tolist() == [[2.0] * 4]
    with pytest.raises(MeasureError, match=r"the file reads x, but no past_key_values\.\*; it cannot decode"):
        Stream(Plain(), 1)
