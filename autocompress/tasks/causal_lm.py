"""Causal language models: any `AutoModelForCausalLM` on running text, graded by perplexity.

Knows how text becomes blocks of tokens and how next-token losses become one number; knows no model family.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from autocompress.errors import DataError, ModelError
from autocompress.hardware import Workload
from autocompress.tasks.data import Wanted, load_texts
from autocompress.tasks.hub import load_model, load_pretrained
from autocompress.tasks.task import Examples, Inputs, Metric, Snippet, Task, end_to_end, logits_of

TEXT_COLUMNS = ("text", "content", "document", "sentence")

#: Target of a position that counts neither in the loss nor in the metric.
IGNORED = -100

#: Bytes that the fp32 logits of one batch may take; batches shrink for large vocabularies.
LOGITS_BYTES = 2**28

#: What stands between two rows of a table where the tokenizer has no end-of-text token.
SEPARATOR = "\n\n"

SNIPPET = Snippet(
    "transformers",
    'transformers.AutoTokenizer.from_pretrained(folder)("Once upon a time", return_tensors="np")',
)


def token_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Negative log-likelihood of each next token, in nats.

    Args:
        logits: ``(n, t, vocabulary)``.
        targets: ``(n, t)``, the very tokens that were read; position i is judged by token i + 1.

    Returns:
        ``(n, t - 1)``; 0 where the target is `IGNORED`.
    """
    return nn.functional.cross_entropy(
        logits[:, :-1].float().transpose(1, 2), targets[:, 1:], ignore_index=IGNORED, reduction="none"
    )


def next_token_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean of `token_losses` over the tokens that count; NaN where none does."""
    return token_losses(logits, targets).sum() / (targets[:, 1:] != IGNORED).sum()


def loss_sums(logits: NDArray[Any], targets: NDArray[Any]) -> NDArray[Any]:
    """Per block, the sum of its token losses in nats and the number of tokens that count: ``(n, 2)``, float64."""
    wanted = torch.from_numpy(targets)
    losses = token_losses(torch.from_numpy(logits), wanted).double().sum(dim=1)
    return torch.stack([losses, (wanted[:, 1:] != IGNORED).sum(dim=1).double()], dim=1).numpy()


def perplexity(sums: NDArray[Any], _targets: NDArray[Any] | None = None) -> float:
    """``exp`` of the mean token loss of `loss_sums`; inf where it overflows."""
    with np.errstate(over="ignore"):
        return float(np.exp(sums[:, 0].sum() / sums[:, 1].sum()))


def perplexity_per_block(sums: NDArray[Any], _targets: NDArray[Any] | None = None) -> NDArray[Any]:
    """``(n,)`` numbers whose mean is the perplexity P and whose standard error is its own, to first order.

    The delta method for the ratio of two means: with block losses s, counts c and mean token loss m = Σs/Σc,
    block i gives P·(1 + (s_i − m·c_i)/mean(c)). Blocks and not tokens are the sample, for the losses of neighbouring
    tokens depend on each other.
    """
    losses, counts = sums[:, 0], sums[:, 1]
    deviations = (losses - losses.sum() / counts.sum() * counts) / counts.mean()
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray(perplexity(sums) * (1 + deviations))


#: Lower is better; a point is one unit of perplexity.
PERPLEXITY = Metric("perplexity", False, perplexity, perplexity_per_block, fraction=False, reduce=loss_sums)


def make_causal_lm(model: str | Path, data: str | Path, text_column: str | None = None, max_length: int = 128) -> Task:
    """The task of a causal language model and running text.

    The tokens of each split are cut into blocks of `max_length` in order; a rest shorter than a block is dropped.
    Nothing is padded, so `input_ids` is the only input.

    Args:
        model: Hugging Face folder or hub id, with its tokenizer.
        data: ``*.txt`` files or a table; see `tasks.data.load_texts`.
        text_column: of a table; default: the first of `TEXT_COLUMNS` that it has.
        max_length: tokens per block.

    Raises:
        ModelError, DataError: naming flag, column, row and value.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    network = load_model(AutoModelForCausalLM, model)
    tokenizer = load_pretrained(AutoTokenizer, model)
    limit = int(getattr(network.config, "max_position_embeddings", 0) or 0)
    _check_length(model, max_length, limit)
    splits = load_texts(data, Wanted("text", text_column, TEXT_COLUMNS))
    made, counts = {}, []
    for name in ("train", "validation", "test"):
        where = f"{data}: split {name!r}"
        stream = token_stream(tokenizer, getattr(splits, name)["text"], where)
        ids = blocks(stream, max_length, where)
        made[name] = Examples({"input_ids": ids}, ids)
        counts.append(f"{len(ids):,} for {name} ({len(stream) % max_length} tokens dropped)")
    vocabulary = _check_model(network, model, made)
    rows = max(1, LOGITS_BYTES // (4 * max_length * vocabulary))

    def query(batch: int, length: int | None) -> Inputs:
        _check_length(model, length or max_length, limit)
        return {"input_ids": end_to_end(made["train"].targets, batch, length or max_length)}

    return Task(
        name="causal-lm",
        model=network,
        train=made["train"],
        validation=made["validation"],
        test=made["test"],
        metric=PERPLEXITY,
        loss=next_token_loss,
        dynamic_axes={"input_ids": {1: "sequence"}},
        query=query,
        batch_size=min(32, rows),
        score_batch=min(32, rows),
        save_processor=tokenizer.save_pretrained,
        snippet=SNIPPET,
        ordered=True,
        notes=(*splits.notes, f"blocks of {max_length} tokens: {', '.join(counts)}"),
    )


def generates(task: Task) -> bool:
    """Whether the task's model continues what it reads: transformers says so, and tokens are all that it reads."""
    asked = getattr(task.source, "can_generate", None)
    return task.input_names == ("input_ids",) and asked is not None and bool(asked())


def decodes(task: Task, workload: Workload) -> bool:
    """Whether a query is a prompt and tokens after it, so that the model is exported with a past.

    Raises:
        ModelError: the workload asks for new tokens of a model that makes none.
    """
    if workload.new_tokens is not None and not generates(task):
        raise ModelError(
            f"task {task.name}: the profile's workload.new_tokens is {workload.new_tokens}, but "
            f"{type(task.source).__name__}, which reads {', '.join(task.input_names)}, does not continue text; "
            "leave prompt_length and new_tokens out"
        )
    return workload.new_tokens is not None


def query_tokens(workload: Workload) -> int | None:
    """Tokens of one query: the prompt and what follows, or the sequence; None for tasks without a sequence."""
    if workload.prompt_length is None or workload.new_tokens is None:
        return workload.sequence_length
    return workload.prompt_length + workload.new_tokens


def token_stream(tokenizer: Any, texts: Sequence[Any], where: str) -> Tensor:
    """All tokens of some texts in order, ``(tokens,)``, without the tokenizer's own additions.

    After each of several texts comes the end-of-text token; a tokenizer without one reads `SEPARATOR` between them.
    Texts that are empty or None are left out.
    """
    for row, text in enumerate(texts):
        if text is not None and not isinstance(text, str):
            raise DataError(f"{where}: row {row}: the text must be a string, but got {text!r}")
    given = [text for text in texts if text]
    end = tokenizer.eos_token_id
    if len(given) > 1 and end is None:
        given = [SEPARATOR.join(given)]
    pieces = tokenizer(given, add_special_tokens=False, verbose=False)["input_ids"] if given else []
    closing = [end] if len(pieces) > 1 else []
    return torch.tensor([token for piece in pieces for token in (*piece, *closing)], dtype=torch.int64)


def blocks(stream: Tensor, length: int, where: str) -> Tensor:
    """A stream ``(tokens,)`` cut into consecutive blocks ``(tokens // length, length)``; the rest is dropped."""
    count = len(stream) // length
    if not count:
        raise DataError(
            f"{where}: {len(stream)} tokens are less than one block of {length} "
            "(the profile's workload.sequence_length); give more text or a shorter length"
        )
    return stream[: count * length].reshape(count, length)


def _check_length(model: str | Path, length: int, limit: int) -> None:
    if length < 2:
        raise ModelError(f"--model {model}: the profile's workload.sequence_length must be 2 or more, but is {length}")
    if 0 < limit < length:
        raise ModelError(
            f"--model {model}: takes {limit} tokens at most, but the profile's workload.sequence_length is {length}"
            ", or prompt_length and new_tokens together are"
        )


def _check_model(network: nn.Module, model: str | Path, splits: dict[str, Examples]) -> int:
    """The vocabulary's size, of a model that knows every token and reads from left to right only."""
    block = splits["train"].targets[:1]
    embeddings: Any = network.get_input_embeddings()  # type: ignore[operator]
    largest = max(int(split.targets.max()) for split in splits.values())
    if largest >= embeddings.num_embeddings:
        raise ModelError(
            f"--model {model}: its tokenizer gives token {largest}, but the model knows {embeddings.num_embeddings} "
            "tokens; give the tokenizer that it was trained with"
        )
    changed = block.clone()
    changed[0, -1] = (block[0, -1] + 1) % embeddings.num_embeddings
    with torch.inference_mode():
        first, second = (logits_of(network(input_ids=ids))[:, :-1] for ids in (block, changed))
    if not torch.allclose(first, second, rtol=1e-3, atol=1e-4):
        raise ModelError(
            f"--model {model}: {type(network).__name__} looks at later tokens to predict earlier ones, "
            "so its perplexity would mean nothing; give a causal language model"
        )
    return int(first.shape[-1])
