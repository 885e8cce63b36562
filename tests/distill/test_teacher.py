"""Oracles: the teacher asked directly, counted calls, and files that are not to be trusted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import autocompress.distill.teacher as room
from autocompress.distill import TeacherCache, soft_loss
from autocompress.tasks.task import Examples, Task
from tests.tiny import any_task, mlp, task_of


class Counting(nn.Module):
    """A teacher that counts the samples it sees."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.seen = 0

    def forward(self, **inputs: Tensor) -> Any:
        self.seen += len(next(iter(inputs.values())))
        return self.inner(**inputs)


def counting(task: Task) -> Task:
    return replace(task, model=Counting(task.model))


@pytest.fixture
def counted() -> Task:
    return counting(task_of(mlp()))


@pytest.fixture
def language() -> Task:
    return counting(any_task("gpt2"))


def asked(task: Task, rows: Any) -> Tensor:
    with torch.no_grad():
        output = task.model.inner(**task.train.batch(rows)[0])
    return output if isinstance(output, Tensor) else output.logits


def test_the_teacher_is_asked_once_for_each_row(counted: Task, tmp_path: Path) -> None:
    cache = TeacherCache(tmp_path / "teacher.npy", counted)
    for rows in ([0, 3, 5], [3, 5], [5, 7, 7]):
        torch.testing.assert_close(cache.prediction(np.array(rows)).logits, asked(counted, rows))
    assert counted.model.seen == 4


def test_the_cache_survives_a_reload_and_one_row_is_asked_again_to_check(counted: Task, tmp_path: Path) -> None:
    first = TeacherCache(tmp_path / "teacher.npy", counted)
    expected = first.prediction(np.arange(6)).logits
    first.save()
    again = TeacherCache(tmp_path / "teacher.npy", counted)
    assert torch.equal(again.prediction(np.arange(6)).logits, expected)
    assert counted.model.seen == 6 + 1
    again.prediction(np.array([6]))
    assert counted.model.seen == 6 + 1 + 1


def test_without_a_path_predictions_are_kept_in_memory(counted: Task) -> None:
    cache = TeacherCache(None, counted)
    for _ in range(2):
        cache.prediction(np.arange(5))
    cache.save()
    assert counted.model.seen == 5


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(np.zeros((3, 3), dtype=np.float32), id="other-samples"),
        pytest.param(np.zeros((24, 7), dtype=np.float32), id="other-classes"),
        pytest.param(np.zeros((24, 5, 3), dtype=np.float32), id="other-dimensions"),
        pytest.param(np.zeros((24, 3), dtype=np.float32), id="other-model"),
        pytest.param(np.zeros((24, 3), dtype=np.int64), id="other-type"),
        pytest.param(np.full((24, 3), np.nan, dtype=np.float32), id="nothing-known"),
    ],
)
def test_a_file_of_another_shape_or_model_is_ignored(content: Any, counted: Task, tmp_path: Path) -> None:
    np.save(tmp_path / "teacher.npy", content)
    found = TeacherCache(tmp_path / "teacher.npy", counted).prediction(np.array([1]))
    torch.testing.assert_close(found.logits, asked(counted, [1]))


@pytest.mark.parametrize("content", [b"", b"no array", b"\x93NUMPY\x01\x00v\x00{'descr'"])
def test_a_torn_file_is_ignored(content: bytes, counted: Task, tmp_path: Path) -> None:
    (tmp_path / "teacher.npy").write_bytes(content)
    cache = TeacherCache(tmp_path / "teacher.npy", counted)
    torch.testing.assert_close(cache.prediction(np.array([1])).logits, asked(counted, [1]))
    cache.save()
    assert np.isfinite(np.load(tmp_path / "teacher.npy")[1]).all()


def test_nothing_new_writes_no_file(counted: Task, tmp_path: Path) -> None:
    TeacherCache(tmp_path / "teacher.npy", counted).save()
    assert not (tmp_path / "teacher.npy").exists()


def test_a_teacher_left_in_training_mode_answers_in_evaluation_mode(tmp_path: Path) -> None:
    task = any_task("bert")
    expected = TeacherCache(None, task).prediction(np.arange(4)).logits
    task.model.train()
    found = TeacherCache(None, task).prediction(np.arange(4)).logits
    torch.testing.assert_close(found, expected)
    assert task.model.training


def agree_on_tokens(cache: TeacherCache, task: Task, rows: list[int]) -> None:
    found, mask = cache.prediction(np.array(rows)), task.train.batch(rows)[0]["attention_mask"].bool()
    expected = asked(task, rows)
    assert found.logits.shape == expected.shape
    torch.testing.assert_close(found.logits[mask], expected[mask], rtol=1e-4, atol=1e-4)
    assert not found.logits[~mask].any()


def test_predictions_per_token_are_kept_whatever_the_batch_pads(language: Task, tmp_path: Path) -> None:
    """Samples of 5, 9, 12 and 7 tokens: the same sample comes with other padding in another batch."""
    cache = TeacherCache(tmp_path / "teacher.npy", language)
    for rows in ([0, 1], [0, 2], [0], [2, 1, 1, 3]):
        agree_on_tokens(cache, language, rows)
    assert language.model.seen == 4
    cache.save()
    agree_on_tokens(TeacherCache(tmp_path / "teacher.npy", language), language, [3, 0, 2])
    assert language.model.seen == 4 + 1


def test_many_classes_are_cut_to_the_likeliest_and_the_rest(
    language: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "MANY_CLASSES", 50)
    monkeypatch.setattr(room, "LIKELIEST", 8)
    cache = TeacherCache(tmp_path / "teacher.npy", language)
    rows, mask = [0, 2], language.train.batch([0, 2])[0]["attention_mask"].bool()
    expected = asked(language, rows).softmax(-1)
    cache.prediction(np.array(rows))
    cache.save()
    for found in (cache.prediction(np.array(rows)), TeacherCache(cache.path, language).prediction(np.array(rows))):
        assert found.logits.shape == (2, 12, 9)
        likeliest = expected.topk(8)
        torch.testing.assert_close(found.logits.softmax(-1)[mask][:, :8], likeliest.values[mask], rtol=1e-4, atol=1e-5)
        assert torch.equal(found.classes[mask], likeliest.indices[mask])
        assert float(soft_loss(asked(language, rows), found, 2.0, mask)) == pytest.approx(0.0, abs=1e-5)
    assert language.model.seen == 2 + 1


def test_as_many_classes_as_a_cut_prediction_has_values_are_whole(
    language: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    """60 classes, and 2·k + 1 values of a cut prediction where k is 29.5: the nearest there is, from below."""
    monkeypatch.setattr(room, "LIKELIEST", 29)
    found = TeacherCache(None, language).prediction(np.array([0]))
    assert found.classes is None
    assert found.logits.shape == (1, 5, 60)


def test_what_does_not_fit_is_asked_each_time(language: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "CACHE_BYTES", 24 * 12 * 60 * 4 - 1)
    cache = TeacherCache(tmp_path / "teacher.npy", language)
    for _ in range(2):
        torch.testing.assert_close(cache.prediction(np.array([0, 2])).logits, asked(language, [0, 2]))
    cache.save()
    assert language.model.seen == 4
    assert not cache.path.exists()


def test_ragged_text_without_a_mask_is_asked_each_time(language: Task) -> None:
    def bare(split: Examples) -> Examples:
        return Examples({"input_ids": split.inputs["input_ids"]}, split.targets, {"input_ids": 1})

    task = replace(language, train=bare(language.train), validation=bare(language.validation), test=bare(language.test))
    cache = TeacherCache(None, task)
    for _ in range(2):
        cache.prediction(np.array([0, 2]))
    assert language.model.seen == 4


def test_text_of_one_length_without_a_mask_is_kept(language: Task) -> None:
    def even(split: Examples) -> Examples:
        return Examples({"input_ids": torch.stack([row[:5] for row in split.inputs["input_ids"]])}, split.targets)

    task = replace(language, train=even(language.train), validation=even(language.validation), test=even(language.test))
    cache = TeacherCache(None, task)
    for _ in range(2):
        torch.testing.assert_close(cache.prediction(np.array([0, 2])).logits, asked(task, [0, 2]))
    assert language.model.seen == 2
