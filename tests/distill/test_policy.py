"""Oracles: counted steps, prompts kept word for word, and the distribution that greedy arithmetic gives."""

from __future__ import annotations

import pytest
import torch

from autocompress.distill.policy import check_language_model, continued, is_on_policy, prompt_length
from autocompress.errors import ModelError
from tests.tiny import any_task, build_any, mlp, task_of


@pytest.mark.parametrize("share", [0.0, 0.1, 0.25, 0.5, 0.8, 1.0])
def test_the_share_of_steps_is_exact_and_even(share: float) -> None:
    steps = [is_on_policy(step, share) for step in range(40)]
    assert sum(steps) == round(40 * share)
    assert all(abs(sum(steps[:k]) - k * share) < 1 for k in range(41))


@pytest.mark.parametrize(
    ("tokens", "shortest", "expected"), [(12, 12, 3), (12, 2, 2), (3, 3, 1), (1, 1, 1), (40, 40, 10)]
)
def test_a_prompt_is_a_quarter_without_padding(tokens: int, shortest: int, expected: int) -> None:
    mask = torch.ones(2, tokens, dtype=torch.long)
    mask[1, shortest:] = 0
    ids = torch.zeros(2, tokens, dtype=torch.long)
    assert prompt_length({"input_ids": ids, "attention_mask": mask}) == expected
    assert prompt_length({"input_ids": ids}) == max(1, tokens // 4)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("masked", [True, False])
def test_a_continuation_keeps_the_prompt_and_fills_the_batch(family: str, masked: bool) -> None:
    model, inputs = build_any(family), any_task(family).train.batch([1, 2, 3])[0]
    if not masked:
        del inputs["attention_mask"]
    torch.manual_seed(0)
    text = continued(model, inputs)
    assert set(text.inputs) == set(inputs)
    assert text.inputs["input_ids"].shape == (3, 12)
    assert torch.equal(text.inputs["input_ids"][:, :3], inputs["input_ids"][:, :3])
    assert text.mask.tolist() == [[False] * 2 + [True] * 10] * 3
    torch.manual_seed(0)
    assert torch.equal(continued(model, inputs).inputs["input_ids"], text.inputs["input_ids"])
    torch.manual_seed(1)
    assert not torch.equal(continued(model, inputs).inputs["input_ids"], text.inputs["input_ids"])


def test_a_text_of_one_token_has_nothing_to_continue() -> None:
    ids = torch.tensor([[5], [6]])
    text = continued(build_any("gpt2"), {"input_ids": ids})
    assert torch.equal(text.inputs["input_ids"], ids)
    assert text.mask.all()


def test_the_student_writes_without_dropout_and_stays_in_training_mode() -> None:
    model, inputs = build_any("gpt2").train(), any_task("gpt2").train.batch([1, 2])[0]
    torch.manual_seed(0)
    first = continued(model, inputs).inputs["input_ids"]
    assert all(module.training for module in model.modules())
    torch.manual_seed(0)
    assert torch.equal(continued(model.eval(), inputs).inputs["input_ids"], first)


def test_next_words_follow_the_students_own_distribution() -> None:
    """3,000 texts of two tokens that begin alike: the shares of the second are its softmax."""
    model, ids = build_any("gpt2"), torch.full((3000, 2), 7)
    with torch.no_grad():
        chances = model(input_ids=ids[:1, :1]).logits[0, 0].softmax(-1)
    torch.manual_seed(0)
    drawn = continued(model, {"input_ids": ids}).inputs["input_ids"][:, 1]
    shares = torch.bincount(drawn, minlength=len(chances)) / 3000
    assert bool(((shares - chances).abs() < 5 * (chances / 3000).sqrt() + 1e-3).all())


def test_a_model_that_writes_no_text_is_told() -> None:
    with pytest.raises(ModelError, match=r"on_policy needs a language model.*BertForSequenceClassification"):
        check_language_model(build_any("bert"), any_task("bert").train.batch([0])[0])
    with pytest.raises(ModelError, match="but Mlp with the inputs x is none"):
        check_language_model(mlp(), task_of(mlp()).train.batch([0])[0])
    check_language_model(build_any("gpt2"), any_task("gpt2").train.batch([0])[0])
