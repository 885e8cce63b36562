"""A causal language model as a graph with a past, and whether a file of it continues a text as torch does.

Knows what a transformers decoder takes (positions, a mask, a cache with `update`), no family by name. Every sequence
of a batch has the same length: there is no padding to mask.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from autocompress.errors import ExportError
from autocompress.export.tracing import traced_graph
from autocompress.measure.decoding import (
    KEPT,
    LAST,
    LOGITS,
    TOKENS,
    Array,
    Stream,
    past_names,
    present_names,
)
from autocompress.runtimes import Session
from autocompress.tasks.task import Task, logits_of

#: What `forward` must take for its past, its mask and its positions to be given from outside.
NEEDED = (TOKENS, "attention_mask", "position_ids", "past_key_values", "use_cache", "logits_to_keep")

#: Tokens of the traced step and of the past before it; neither is 1, which tracing might take for a constant.
TRACED_NEW, TRACED_PAST = 2, 3

#: Prompts, their longest length, and the tokens after them, by which a file is checked.
CHECKED_PROMPTS, CHECKED_LENGTH, CHECKED_TOKENS = 4, 32, 8

Pair = tuple[Tensor, Tensor]


class _Cache:
    """What the attentions append to, in transformers' way: keys and values ``(batch, heads, tokens, size)``."""

    def __init__(self, pairs: dict[int, Pair]) -> None:
        self.pairs = pairs

    def update(self, key: Tensor, value: Tensor, place: int, *_args: Any, **_kwargs: Any) -> Pair:
        """Keys and values of all tokens so far."""
        if place in self.pairs:
            key, value = (torch.cat(parts, dim=2) for parts in zip(self.pairs[place], (key, value), strict=True))
        self.pairs[place] = key, value
        return key, value


class Decoder(nn.Module):
    """A model that is given its past as tensors, and gives it back with the new tokens appended.

    Where no attention is left, one past of zeros ``(batch, 1, past, 1)`` still counts the tokens.

    Args:
        model: with eager attention; not copied.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.window = _window(model)
        self.places, self.shapes = self._remembered()

    def _remembered(self) -> tuple[list[int], list[tuple[int, int]]]:
        """Places of the attentions in a cache, and heads and size of what each puts there."""
        cache = _Cache({})
        with torch.inference_mode():
            self._run(torch.zeros(1, 2, dtype=torch.long), torch.zeros(1, dtype=torch.long), cache, 0)
        places = sorted(cache.pairs)
        return places, [(pair[0].shape[1], pair[0].shape[3]) for pair in map(cache.pairs.__getitem__, places)]

    @property
    def attentions(self) -> int:
        """Pairs of tensors in the past, one or more."""
        return max(1, len(self.places))

    def past(self, batch: int, length: int = 0) -> list[Tensor]:
        """Zeros ``(batch, heads, length, size)`` in the order of `past_names`."""
        return [torch.zeros(batch, h, length, size) for h, size in self.shapes or [(1, 1)] for _ in range(2)]

    def forward(self, tokens: Tensor, kept: Tensor, *past: Tensor) -> tuple[Tensor, ...]:
        """Logits ``(batch, kept, vocabulary)`` and the present, from tokens ``(batch, new)`` and their past."""
        pairs = list(zip(past[::2], past[1::2], strict=True))
        cache = _Cache(dict(zip(self.places, pairs, strict=False)))
        logits = self._run(tokens, kept, cache, past[0].shape[2])
        if self.places:
            return logits, *(value for place in self.places for value in cache.pairs[place])
        zeros = torch.zeros_like(tokens, dtype=torch.float32)[:, None, :, None]
        return logits, *(torch.cat([part, zeros], dim=2) for part in past)

    def _run(self, tokens: Tensor, kept: Tensor, cache: _Cache, before: int) -> Tensor:
        """Logits of the kept positions; the cache takes the new keys and values."""
        positions = torch.arange(before, before + tokens.shape[1])
        output = self.model(
            input_ids=tokens,
            attention_mask=self._mask(positions, before + tokens.shape[1]),
            position_ids=positions[None],
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=kept,
        )
        return logits_of(output)

    def _mask(self, positions: Tensor, total: int) -> Tensor:
        """What is added to the scores ``(1, 1, new, past + new)``: nothing for what a token may see.

        A mask of four axes is taken as it is; transformers' own cannot be traced with a free past.
        """
        seen, row = torch.arange(total)[None, :], positions[:, None]
        unseen = seen > row
        if self.window is not None:
            unseen = unseen | (seen <= row - self.window)
        return torch.where(unseen, torch.finfo(torch.float32).min, 0.0)[None, None]


def _window(model: nn.Module) -> int | None:
    """How many tokens back every attention sees; None where all. Raises `ExportError` where layers differ."""
    config: Any = getattr(model, "config", None)
    window = getattr(config, "sliding_window", None)
    limit = getattr(config, "max_position_embeddings", None)
    kinds = set(getattr(config, "layer_types", None) or ("sliding_attention",))
    if not window or (limit and window >= limit) or "sliding_attention" not in kinds:
        return None
    if len(kinds) > 1:
        raise ExportError(f"{type(model).__name__}: its layers see differently far ({', '.join(sorted(kinds))}), "
                          "which a graph with one mask cannot hold")  # fmt: skip
    return int(window)


def decoder_of(model: nn.Module) -> Decoder:
    """A copy of the model as a `Decoder`, with plain matrix products for attention.

    Raises:
        ExportError: the model takes no past from outside.
    """
    takes = inspect.signature(model.forward).parameters
    missing = [name for name in NEEDED if name not in takes]
    twin = copy.deepcopy(model)
    if missing or not hasattr(twin, "set_attn_implementation"):
        raise ExportError(
            f"{type(model).__name__} cannot be exported with a past: its forward must take {', '.join(missing)}; "
            "leave new_tokens out of the profile's workload to export it without one"
        )
    twin.set_attn_implementation("eager")  # type: ignore[operator]  # traced sdpa is larger and slower
    return Decoder(twin).eval()


def decoder_graph(model: nn.Module, task: Task) -> onnx.ModelProto:
    """The model as an ONNX graph with a past, as `measure.decoding` feeds it; weights keep their module names.

    Batch, new and past tokens, and kept positions, are free axes.

    Raises:
        ExportError: the model takes no past, or torch cannot trace it.
    """
    decoder = decoder_of(model)
    tokens = task.trace_inputs()[TOKENS][:, :TRACED_NEW]
    past, present = past_names(decoder.attentions), present_names(decoder.attentions)
    axes: dict[str, dict[int, str]] = {TOKENS: {0: "batch", 1: "new"}, KEPT: {0: "kept"}}
    axes[LOGITS] = {0: "batch", 1: "kept"}
    axes.update({name: {0: "batch", 2: "past"} for name in past} | {name: {0: "batch", 2: "total"} for name in present})
    inputs = dict(zip(past, decoder.past(len(tokens), TRACED_PAST), strict=True))
    return traced_graph(
        decoder,
        {TOKENS: tokens, KEPT: torch.arange(TRACED_NEW), **inputs},
        [LOGITS, *present],
        axes,
        f"{type(model).__name__} with a past",
    )


@dataclass(frozen=True)
class Agreement:
    """How a file continues texts, beside torch.

    Attributes:
        deviation: relative L2 distance of its logits from torch's: of every token of the prompts, and of each step.
        tokens: steps times prompts.
        equal: of these, the tokens that torch takes, too.
        gap: what torch would lose by the others, at worst: its best logit less that of the file's token, relative to
            the largest logit. 0 where all are equal.
    """

    deviation: float
    tokens: int
    equal: int
    gap: float

    @property
    def worst(self) -> float:
        """The larger of deviation and gap: what is held against the tolerance of the file's bits; inf for NaN."""
        both = max(self.deviation, self.gap)
        return both if np.isfinite(self.deviation) else float("inf")


def decoder_agreement(twin: nn.Module, session: Session, task: Task) -> Agreement:
    """Let a file continue the beginnings of calibration samples, and torch read the same tokens in the same steps.

    Torch is fed the file's own tokens, each step with the past of the one before. While both take the same token,
    torch's greedy continuation is the file's.

    Args:
        twin: what the file should compute; see `compressing.quantize.simulate`.
        session: of the file.
        task: gives the prompts: the first half of up to `CHECKED_PROMPTS` samples.
    """
    decoder, calibration = decoder_of(twin), task.calibration()
    samples = calibration.batch(range(min(CHECKED_PROMPTS, len(calibration))))[0][TOKENS].numpy()
    length = min(CHECKED_LENGTH, samples.shape[1] // 2)
    tokens, kept = samples[:, :length], np.arange(length)
    stream, past = Stream(session, len(samples)), decoder.past(len(samples))
    found, wanted, chosen = [], [], []
    for _ in range(min(CHECKED_TOKENS, samples.shape[1] - length)):
        found.append(np.array(stream.feed(tokens, kept)))
        with torch.inference_mode():
            logits, *past = decoder(torch.from_numpy(tokens), torch.from_numpy(kept), *past)
        wanted.append(logits.numpy())
        tokens, kept = found[-1][:, -1:].argmax(-1), LAST
        chosen.append(tokens)
    return _compared(found, wanted, chosen)


def _compared(found: Sequence[Array], wanted: Sequence[Array], chosen: Sequence[Array]) -> Agreement:
    """Logits ``(batch, kept, vocabulary)`` of both sides, and the tokens ``(batch, 1)`` taken, step by step."""
    ours, theirs = (np.concatenate(steps, axis=1).astype(np.float64) for steps in (found, wanted))
    last = np.stack([logits[:, -1] for logits in wanted])
    taken = np.take_along_axis(last, np.stack(chosen), axis=2)[..., 0]
    lost = last.max(axis=2) - taken
    scale = float(np.linalg.norm(theirs)) or 1.0
    deviation = float(np.linalg.norm(ours - theirs)) / scale
    return Agreement(deviation, lost.size, int((lost == 0).sum()), float(lost.max() / (np.abs(last).max() or 1.0)))
