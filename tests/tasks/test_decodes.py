"""Which tasks and workloads decode. Oracles: transformers' own word on what generates, and plain sums."""

from __future__ import annotations

import pytest
import torch

from autocompress.errors import ModelError
from autocompress.hardware import Workload
from autocompress.tasks.causal_lm import decodes, generates, query_tokens
from autocompress.tasks.task import Examples, Task
from tests.tiny import any_task, bert, gpt2, llama, mlp, task_of

WRITING = Workload(prompt_length=5, new_tokens=3)


def reading_tokens(model: torch.nn.Module) -> Task:
    ids = torch.randint(2, 60, (6, 8))
    split = Examples({"input_ids": ids}, ids)
    return Task("text", model, split, split, split)


@pytest.mark.parametrize("make", [gpt2, llama])
def test_a_causal_model_that_reads_tokens_generates(make: type) -> None:
    task = reading_tokens(make())
    assert generates(task)
    assert decodes(task, WRITING)


def test_without_new_tokens_nothing_decodes() -> None:
    assert not decodes(reading_tokens(gpt2()), Workload(sequence_length=8))
    assert not decodes(task_of(mlp()), Workload())


@pytest.mark.parametrize(
    ("task", "kind", "reads"),
    [
        (lambda: task_of(mlp()), "Mlp", "x"),
        (lambda: reading_tokens(bert()), "BertForSequenceClassification", "input_ids"),
        (lambda: any_task("gpt2"), "GPT2LMHeadModel", "input_ids, attention_mask"),
    ],
    ids=["no-language", "encoder", "padded"],
)
def test_new_tokens_of_a_model_that_makes_none_are_refused(task: type, kind: str, reads: str) -> None:
    made = task()
    assert not generates(made)
    reason = (
        rf"task {made.name}: the profile's workload.new_tokens is 3, but {kind}, which reads {reads}, does not cont"
    )
    with pytest.raises(ModelError, match=reason):
        decodes(made, WRITING)


def test_a_query_has_the_tokens_of_its_prompt_and_those_after_it() -> None:
    assert query_tokens(WRITING) == 8
    assert query_tokens(Workload(sequence_length=128, prompt_length=64, new_tokens=32)) == 96
    assert query_tokens(Workload(sequence_length=128)) == 128
    assert query_tokens(Workload()) is None
