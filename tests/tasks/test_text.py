"""Oracles: the vocabulary of a word-level tokenizer, by hand."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from autocompress.errors import ConfigError, DataError
from autocompress.tasks import TaskSource, load_task
from autocompress.tasks.task import Task
from autocompress.tasks.text import make_text_classification
from tests.tiny import run

TEXTS = ["a good film", "bad", "very very long dull film", "fine unknownword"]
CLS, SEP, PAD, UNK = 2, 3, 0, 1


@pytest.fixture
def data(tmp_path: Path) -> Path:
    frame = pd.DataFrame({"text": TEXTS * 6, "label": ["good", "bad", "bad", "fine"] * 6})
    for split in ("train", "validation", "test"):
        frame.to_csv(tmp_path / f"{split}.csv", index=False)
    return tmp_path


@pytest.fixture
def task(text_model: Path, data: Path) -> Task:
    return make_text_classification(text_model, data, max_length=6)


def test_texts_become_ids_and_masks(task: Task) -> None:
    assert task.train.inputs["input_ids"][0].tolist() == [CLS, 4, 5, 7, SEP]
    assert task.train.inputs["input_ids"][3].tolist() == [CLS, 11, UNK, SEP]
    inputs, targets = task.train.batch([0, 1])
    assert inputs["input_ids"][1].tolist() == [CLS, 6, SEP, PAD, PAD]
    assert inputs["attention_mask"].tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]
    assert targets.tolist() == [2, 0]


def test_long_texts_are_cut(task: Task) -> None:
    assert task.train.inputs["input_ids"][2].tolist() == [CLS, 8, 8, 10, 9, SEP]


def test_token_types_that_say_nothing_are_left_out(task: Task) -> None:
    assert task.input_names == ("input_ids", "attention_mask")
    assert task.dynamic_axes == {"input_ids": {1: "sequence"}, "attention_mask": {1: "sequence"}}


@pytest.mark.parametrize(("batch", "length", "shape"), [(1, 20, (1, 20)), (3, 5, (3, 5)), (2, None, (2, 6))])
def test_a_query_is_full_of_real_tokens(task: Task, batch: int, length: int | None, shape: tuple[int, int]) -> None:
    inputs = task.workload_inputs(batch, length)
    assert inputs["input_ids"].shape == shape
    assert inputs["attention_mask"].all()
    assert PAD not in inputs["input_ids"]
    assert run(task.model, inputs).shape == (batch, 3)


def test_classes_and_processor_come_from_the_folder(task: Task, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    assert task.classes == ("bad", "fine", "good")
    task.save_processor(tmp_path / "saved")
    assert AutoTokenizer.from_pretrained(tmp_path / "saved")("a film")["input_ids"] == [CLS, 4, 7, SEP]


def test_load_task_finds_it_by_name(text_model: Path, data: Path) -> None:
    source = TaskSource("text-classification", str(text_model), str(data), text_column="text", label_column="label")
    task = load_task(source, max_length=4)
    assert max(len(row) for row in task.train.inputs["input_ids"]) == 4


def test_a_text_that_is_none_names_split_and_row(text_model: Path, tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"text": "a", "label": 0}\n' * 9 + '{"text": null, "label": 0}\n' * 9)
    with pytest.raises(DataError, match=r"split '\w+': row \d+: the text must be a string, but got None"):
        make_text_classification(text_model, tmp_path)


def test_a_label_outside_the_classes_names_file_and_row(text_model: Path, tmp_path: Path) -> None:
    frame = pd.DataFrame({"text": TEXTS, "label": [0, 1, 2, 7]})
    for split in ("train", "validation", "test"):
        frame.to_csv(tmp_path / f"{split}.csv", index=False)
    with pytest.raises(DataError, match="split 'train': row 3: label 7 is none of the model's 3 classes"):
        make_text_classification(text_model, tmp_path)


def test_pairs_are_read_from_two_columns(text_model: Path, tmp_path: Path) -> None:
    """Oracle: the tokens of either text by hand, with a separator after each."""
    frame = pd.DataFrame({"text": ["a film"] * 6, "about": ["bad"] * 6, "label": ["good"] * 6})
    for split in ("train", "validation", "test"):
        frame.to_csv(tmp_path / f"{split}.csv", index=False)
    task = make_text_classification(text_model, tmp_path, text_column="about, text", max_length=20)
    assert task.train.inputs["input_ids"][0].tolist() == [CLS, 6, SEP, 4, 7, SEP]
    assert task.notes == ()
    assert run(task.model, task.workload_inputs(2, 9)).shape == (2, 3)
    assert '["it rains"], ["it is wet"]' in task.snippet.inputs
    assert "not read: about" in make_text_classification(text_model, tmp_path, max_length=20).notes[0]
    with pytest.raises(DataError, match="has no column 'abuot'; did you mean 'about'"):
        make_text_classification(text_model, tmp_path, text_column="text,abuot", max_length=20)
    with pytest.raises(ConfigError, match="--text-column a,b,c: names one column, or two of a pair"):
        make_text_classification(text_model, tmp_path, text_column="a,b,c", max_length=20)


def test_texts_that_are_cut_are_counted(task: Task, text_model: Path, data: Path) -> None:
    """Of each six texts of four kinds, one kind has seven tokens with those at its ends."""
    assert task.notes == tuple(
        f"6 of 24 {name} texts are longer than 6 tokens and cut there (the profile's workload.sequence_length)"
        for name in ("train", "validation", "test")
    )
    assert make_text_classification(text_model, data, max_length=7).notes == ()
