"""Text classification with any `AutoModelForSequenceClassification`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from autocompress.errors import ConfigError, DataError, ModelError
from autocompress.tasks.data import Rows, Wanted, load_splits
from autocompress.tasks.hub import class_names, load_model, load_pretrained
from autocompress.tasks.labels import LABEL_COLUMNS, class_labels
from autocompress.tasks.task import Examples, Inputs, Snippet, Task, end_to_end

TEXT_COLUMNS = ("sentence", "text", "content", "review")

SNIPPET = Snippet(
    "transformers",
    'transformers.AutoTokenizer.from_pretrained(folder)(["a gripping, funny film"], return_tensors="np")',
)

#: Role of the second text of a pair, and what makes inputs of one.
PAIR = "pair"
PAIR_SNIPPET = Snippet(
    "transformers",
    'transformers.AutoTokenizer.from_pretrained(folder)(["it rains"], ["it is wet"], return_tensors="np")',
)


def make_text_classification(
    model: str | Path,
    data: str | Path,
    text_column: str | None = None,
    label_column: str | None = None,
    max_length: int = 128,
) -> Task:
    """The task of a text classifier and its labelled texts.

    Args:
        model: Hugging Face folder or hub id.
        data: see `tasks.data.load_splits`.
        text_column: default: the first of `TEXT_COLUMNS` that the data has. Two, as "premise,hypothesis", are read as
            pairs in that order.
        label_column: default: the first of `tasks.labels.LABEL_COLUMNS` that the data has.
        max_length: tokens; longer texts are truncated.

    Raises:
        ModelError, DataError: naming flag, column, row and value.
    """
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    network = load_model(AutoModelForSequenceClassification, model)
    tokenizer = load_pretrained(AutoTokenizer, model)
    classes = class_names(network)
    columns = (*_text_columns(text_column), Wanted("label", label_column, LABEL_COLUMNS))
    splits = load_splits(data, columns)
    labels, made_of = class_labels(splits, classes, data), {wanted.role for wanted in columns}
    made, notes = {}, [*splits.notes, *labels.notes]
    for name in ("train", "validation", "test"):
        rows: Rows = getattr(splits, name)
        made[name], cut = _encode(tokenizer, rows, getattr(labels, name), max_length)
        if cut:
            notes.append(
                f"{cut:,} of {len(rows['text']):,} {name} texts are longer than {max_length} tokens and cut there "
                "(the profile's workload.sequence_length)"
            )

    def query(batch: int, length: int | None) -> Inputs:
        """Exactly so many real tokens, with an all-ones mask."""
        return {name: end_to_end(column, batch, length or max_length) for name, column in made["train"].inputs.items()}

    limit = int(getattr(network.config, "max_position_embeddings", 0) or 0)
    if 0 < limit < max_length:
        raise ModelError(
            f"--model {model}: takes {limit} tokens at most, but the profile's workload.sequence_length is {max_length}"
        )
    first = made["train"].inputs["input_ids"]
    if not any(len(first[row]) for row in range(len(first))):
        raise DataError(f"{data}: every training text is empty after tokenization")

    axes = {name: {1: "sequence"} for name in made["train"].inputs}
    return Task(
        name="text-classification",
        model=network,
        train=made["train"],
        validation=made["validation"],
        test=made["test"],
        dynamic_axes=axes,
        query=query,
        classes=classes,
        save_processor=tokenizer.save_pretrained,
        snippet=PAIR_SNIPPET if PAIR in made_of else SNIPPET,
        notes=tuple(notes),
    )


def _text_columns(given: str | None) -> tuple[Wanted, ...]:
    """One column of texts, or two of which each row makes a pair."""
    names = [name.strip() for name in given.split(",")] if given else [None]
    if len(names) > 2 or "" in names:
        raise ConfigError(f"--text-column {given}: names one column, or two of a pair such as premise,hypothesis")
    roles = zip(("text", PAIR), names, strict=False)
    return tuple(Wanted(role, name, TEXT_COLUMNS if role == "text" else ()) for role, name in roles)


def _encode(tokenizer: Any, rows: Rows, labels: Sequence[int], max_length: int) -> tuple[Examples, int]:
    """Texts as tokens, and how many of them were cut."""
    given = [list(rows[role]) for role in ("text", PAIR) if role in rows]
    for texts in given:
        for row, text in enumerate(texts):
            if not isinstance(text, str):
                raise DataError(f"{rows.place(row)}: the text must be a string, but got {text!r}")
    encoded = tokenizer(*given, truncation=True, max_length=max_length)
    if encoded.encodings:
        cut = sum(bool(one.overflowing) for one in encoded.encodings)
    else:  # a slow tokenizer does not say
        cut = sum(len(ids) >= max_length for ids in encoded["input_ids"])
    names = [name for name in ("input_ids", "attention_mask", "token_type_ids") if name in encoded]
    if "token_type_ids" in names and not any(any(ids) for ids in encoded["token_type_ids"]):
        names.remove("token_type_ids")  # single sentences: all zero, the model's default
    columns = {name: [torch.tensor(ids) for ids in encoded[name]] for name in names}
    padding = {"input_ids": tokenizer.pad_token_id or 0, "attention_mask": 0, "token_type_ids": 0}
    return Examples(columns, torch.tensor(labels), {name: padding[name] for name in names}), cut
