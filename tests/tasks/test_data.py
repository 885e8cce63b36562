"""Oracles: the rows that were written, and set arithmetic over the cuts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
import pytest

from autocompress.errors import DataError
from autocompress.tasks.data import Splits, Wanted, load_splits
from autocompress.tasks.labels import LABEL_COLUMNS, class_labels, class_numbers

COLUMNS = (Wanted("text", None, ("sentence", "text")), Wanted("label", None, LABEL_COLUMNS))


def rows(count: int, start: int = 0, text: str = "text", label: str = "label") -> pd.DataFrame:
    numbers = range(start, start + count)
    return pd.DataFrame({text: [f"film {i}" for i in numbers], label: [i % 3 for i in numbers], "id": list(numbers)})


def save(frame: pd.DataFrame, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        frame.to_parquet(path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(frame.to_dict("records")))
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in frame.to_dict("records")))
    else:
        frame.to_csv(path, index=False, sep="\t" if path.suffix == ".tsv" else ",")
    return path


def folder_of(path: Path, suffix: str = ".csv", **splits: pd.DataFrame) -> Path:
    for name, frame in splits.items():
        save(frame, path / f"{name}{suffix}")
    return path


def texts(split: Mapping[str, Sequence[str]]) -> set[str]:
    return set(split["text"])


def here(row: int) -> str:
    return f"here: row {row}"


def pairs(splits: Splits) -> list[tuple[str, int]]:
    return [
        pair for s in (splits.train, splits.validation, splits.test) for pair in zip(s["text"], s["label"], strict=True)
    ]


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".json", ".jsonl", ".parquet"])
def test_every_format_gives_its_rows(tmp_path: Path, suffix: str) -> None:
    frames = {"train": rows(9), "validation": rows(4, 9), "test": rows(3, 13)}
    splits = load_splits(folder_of(tmp_path / "data", suffix, **frames), COLUMNS)
    for name, frame in frames.items():
        split = getattr(splits, name)
        assert list(split) == ["text", "label"]
        assert split["text"] == frame["text"].tolist()
        assert split["label"] == frame["label"].tolist()
    assert splits.notes == ()


@pytest.mark.parametrize(
    "names", [("train", "dev", "eval"), ("training", "valid", "testing"), ("train-0", "val_1", "test_a")], ids="-".join
)
def test_splits_go_by_many_names(tmp_path: Path, names: tuple[str, ...]) -> None:
    frames = dict(zip(names, (rows(9), rows(4, 9), rows(3, 13)), strict=True))
    splits = load_splits(folder_of(tmp_path, **frames), COLUMNS)
    assert [len(s["text"]) for s in (splits.train, splits.validation, splits.test)] == [9, 4, 3]


def test_files_of_one_split_are_joined(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, **{"train-1": rows(5), "train-2": rows(4, 5), "dev": rows(3, 9), "test": rows(2, 12)})
    assert texts(load_splits(folder, COLUMNS).train) == texts(rows(9))


def test_one_file_is_cut_in_three_without_losing_a_row(tmp_path: Path) -> None:
    splits = load_splits(save(rows(100), tmp_path / "all.csv"), COLUMNS)
    assert [len(s["text"]) for s in (splits.test, splits.validation, splits.train)] == [15, 13, 72]  # 15 % each time
    frame = rows(100)
    assert sorted(pairs(splits)) == sorted(zip(frame["text"], frame["label"], strict=True))
    assert splits.notes == (
        "no test split: 15 of the 100 train rows were cut off for it with seed 0",
        "no validation split: 13 of the 85 train rows were cut off for it with seed 0",
    )


def test_the_cut_follows_from_the_seed(tmp_path: Path) -> None:
    path = save(rows(60), tmp_path / "all.csv")
    first, again, other = (texts(load_splits(path, COLUMNS, seed).test) for seed in (0, 0, 1))
    assert first == again
    assert first != other


def test_a_folder_of_unnamed_files_is_one_training_split(tmp_path: Path) -> None:
    splits = load_splits(folder_of(tmp_path, part1=rows(20), part2=rows(20, 20)), COLUMNS)
    assert len(pairs(splits)) == 40
    assert len(splits.notes) == 2


def test_an_existing_split_is_never_cut(tmp_path: Path) -> None:
    splits = load_splits(folder_of(tmp_path, train=rows(40), test=rows(10, 40)), COLUMNS)
    assert texts(splits.test) == texts(rows(10, 40))
    assert texts(splits.train) | texts(splits.validation) == texts(rows(40))
    assert not texts(splits.train) & texts(splits.validation)


@pytest.mark.parametrize("label", [-1, None])
def test_a_split_without_labels_is_left_out_and_said(tmp_path: Path, label: int | None) -> None:
    blind = rows(5, 50)
    blind["label"] = label
    folder = folder_of(tmp_path, ".json", train=rows(40), validation=rows(10, 40), test=blind)
    splits = load_splits(folder, COLUMNS)
    assert splits.notes[0] == "split 'test' carries no labels and is left out"
    assert "no test split: 6 of the 40 train rows" in splits.notes[1]
    assert not texts(splits.test) & texts(blind)


def test_columns_are_guessed_in_order_and_named_by_flags(tmp_path: Path) -> None:
    frame = rows(20, text="sentence", label="labels").assign(text="not this", verdict=1)
    path = save(frame, tmp_path / "all.csv")
    assert texts(load_splits(path, COLUMNS).train) < set(frame["sentence"])
    chosen = (Wanted("text", "text", ("sentence",)), Wanted("label", "verdict", LABEL_COLUMNS))
    splits = load_splits(path, chosen)
    assert texts(splits.train) == {"not this"}
    assert set(splits.train["label"]) == {1}


def test_a_column_that_is_not_there_shows_near_names(tmp_path: Path) -> None:
    wanted = (Wanted("text", "txt", ()), COLUMNS[1])
    with pytest.raises(DataError, match=r"has no column 'txt'; did you mean 'text'\? \(--text-column\)"):
        load_splits(save(rows(20), tmp_path / "all.csv"), wanted)


def test_a_column_that_cannot_be_guessed_names_the_flag(tmp_path: Path) -> None:
    path = save(rows(20, label="verdict"), tmp_path / "all.csv")
    with pytest.raises(DataError, match=r"which column holds the label.*--label-column; columns: text, verdict, id"):
        load_splits(path, COLUMNS)


def test_a_header_without_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"all\.csv: holds no rows"):
        load_splits(save(rows(0), tmp_path / "all.csv"), COLUMNS)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "all.csv").touch()
    with pytest.raises(DataError, match=r"all\.csv: cannot be read"):
        load_splits(tmp_path / "all.csv", COLUMNS)


def test_a_broken_file_is_refused_with_its_cause(tmp_path: Path) -> None:
    (tmp_path / "all.json").write_text('[{"text": "a", ')
    with pytest.raises(DataError, match=r"all\.json: cannot be read: .+"):
        load_splits(tmp_path / "all.json", COLUMNS)


def test_several_formats_are_refused(tmp_path: Path) -> None:
    save(rows(9), tmp_path / "train.csv")
    save(rows(9), tmp_path / "test.json")
    with pytest.raises(DataError, match=r"files of several formats \(csv, json\); keep one"):
        load_splits(tmp_path, COLUMNS)


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(DataError, match=r"holds no \.csv, \.json, \.jsonl, \.parquet, \.tsv file"):
        load_splits(tmp_path, COLUMNS)


@pytest.mark.parametrize("source", ["./nowhere", "/nowhere/at/all", "rows.csv"])
def test_a_path_that_leads_nowhere_is_refused(source: str) -> None:
    with pytest.raises(DataError, match=f"{source}: no such file or folder"):
        load_splits(source, COLUMNS)


def test_data_without_training_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no training split; name a file train\.\*"):
        load_splits(folder_of(tmp_path, test=rows(9)), COLUMNS)


def test_data_whose_training_rows_carry_no_labels_says_so(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, ".json", train=rows(9).assign(label=-1), test=rows(4))
    with pytest.raises(DataError, match=r"no training split \(split 'train' carries no labels and is left out\)"):
        load_splits(folder, COLUMNS)


def test_labels_are_only_needed_where_they_are_wanted(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, train=rows(9).assign(label=-1), validation=rows(4), test=rows(3))
    splits = load_splits(folder, COLUMNS[:1])
    assert [len(s["text"]) for s in (splits.train, splits.validation, splits.test)] == [9, 4, 3]
    assert list(splits.train) == ["text"]


def test_too_few_rows_to_cut_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="1 rows are too few to cut off a validation split"):
        load_splits(save(rows(2), tmp_path / "all.csv"), COLUMNS)


def test_a_hub_name_without_network_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def offline(_name: str) -> None:
        raise ConnectionError("Couldn't reach the hub\nsecond line")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    reason = r"--data someone/films: no such file .* \(ConnectionError: Couldn't reach the hub\); without a network"
    with pytest.raises(DataError, match=reason):
        load_splits("someone/films", COLUMNS)


def test_a_hub_data_set_keeps_its_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    made = {name: datasets.Dataset.from_pandas(frame) for name, frame in [("train", rows(30)), ("validation", rows(9))]}
    monkeypatch.setattr(datasets, "load_dataset", lambda _name: datasets.DatasetDict(made))
    splits = load_splits("someone/films", COLUMNS)
    assert len(splits.validation["text"]) == 9
    assert splits.notes == ("no test split: 4 of the 30 train rows were cut off for it with seed 0",)


def test_a_home_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    save(rows(20), tmp_path / "all.csv")
    assert len(pairs(load_splits("~/all.csv", COLUMNS))) == 20


@pytest.mark.parametrize(
    ("labels", "numbers"),
    [([0, 2, 1], [0, 2, 1]), (["bad", "good"], [0, 2]), (["1", "2"], [1, 2]), (["fine", 0], [1, 0])],
    ids=["numbers", "names", "digits", "mixed"],
)
def test_labels_are_numbers_or_names(labels: list, numbers: list[int]) -> None:
    assert class_numbers(labels, ("bad", "fine", "good"), here) == numbers


def test_a_name_that_is_a_digit_wins_over_the_number() -> None:
    assert class_numbers(["1", "0"], ("1", "0"), here) == [0, 1]
    assert class_numbers([1, 0, 1.0], ("1", "0"), here) == [0, 1, 0]  # a csv file does not tell names from numbers
    with pytest.raises(DataError, match=r"row 1: label 0 is none of the model's 3 classes \(1, 2, 3\)"):
        class_numbers([3, 0], ("1", "2", "3"), here)


def test_numbers_that_were_read_as_floats_are_numbers() -> None:
    assert class_numbers([0.0, 2.0], ("bad", "fine", "good"), here) == [0, 2]


@pytest.mark.parametrize("label", [3, -1, "great", "3", 1.5, None, True, float("nan")])
def test_a_label_outside_the_classes_names_row_and_classes(label: object) -> None:
    reason = r"here: row 1: label .* is none of the model's 3 classes \(0 to 2, or bad, fine, good\)"
    with pytest.raises(DataError, match=reason):
        class_numbers([0, label], ("bad", "fine", "good"), here)


def test_a_superscript_is_no_number() -> None:
    with pytest.raises(DataError, match="label '²' is none"):
        class_numbers(["²"], ("a", "b", "c"), here)


def classified(path: Path, names: Sequence[str]) -> Path:
    """Parquet files whose labels 0, 1, 2, … are numbers of a list of names."""
    import datasets

    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=list(names))})
    columns = {"text": [f"film {i}" for i in range(9)], "label": [i % len(names) for i in range(9)]}
    for split in ("train", "validation", "test"):
        datasets.Dataset.from_dict(columns, features).to_parquet(path / f"{split}.parquet")
    return path


def test_the_datas_own_names_are_held_against_the_models(tmp_path: Path) -> None:
    """By number, every label here would be wrong, and none out of range."""
    labels = class_labels(load_splits(classified(tmp_path, ("neg", "pos")), COLUMNS), ("POS", "NEG"), tmp_path)
    assert labels.train == [1, 0, 1, 0, 1, 0, 1, 0, 1]
    assert labels.notes == ()


def test_other_names_of_as_many_classes_are_taken_by_number_and_said(tmp_path: Path) -> None:
    splits = load_splits(classified(tmp_path, ("neg", "pos")), COLUMNS)
    labels = class_labels(splits, ("LABEL_0", "LABEL_1"), tmp_path)
    assert labels.test[:3] == [0, 1, 0]
    assert "neg is LABEL_0, pos is LABEL_1" in labels.notes[0]


@pytest.mark.parametrize("classes", [("cat", "dog", "eel"), ("neg", "neutral")], ids=["count", "some names"])
def test_classes_that_cannot_be_the_models_are_refused(tmp_path: Path, classes: tuple[str, ...]) -> None:
    splits = load_splits(classified(tmp_path, ("neg", "pos")), COLUMNS)
    with pytest.raises(DataError, match=r"its 2 classes \(neg, pos\) are not the model's"):
        class_labels(splits, classes, tmp_path)


def test_words_that_pandas_takes_for_missing_are_texts_and_classes(tmp_path: Path) -> None:
    frame = pd.DataFrame({"text": ["NA", "null", "a", "n/a"] * 5, "label": ["None", "NA", "None", "NA"] * 5})
    splits = load_splits(folder_of(tmp_path, train=frame, validation=frame, test=frame), COLUMNS)
    assert splits.train["text"][:4] == ["NA", "null", "a", "n/a"]
    assert class_labels(splits, ("NA", "None"), tmp_path).train[:2] == [1, 0]


def test_a_row_is_named_as_it_stands_in_the_file(tmp_path: Path) -> None:
    """Also where splits were cut from it, and where a gap makes floats of all labels."""
    frame = rows(40)
    frame["label"] = frame["label"].astype(object)
    frame.loc[17, "label"] = None
    splits = load_splits(save(frame, tmp_path / "all.csv"), COLUMNS)
    with pytest.raises(DataError, match=r"all\.csv: split 'train': row 17: label (None|nan) is none"):
        class_labels(splits, ("a", "b", "c"), tmp_path)


@pytest.mark.parametrize(
    ("there", "counts", "note"),
    [
        (("test",), [9, 4, 3], "split 'eval' is taken for validation"),
        (("validation",), [9, 3, 4], "split 'eval' is taken for test"),
        (("validation", "test"), [9, 3, 3], "not read: split 'eval'"),
    ],
    ids=["beside test", "beside validation", "beside both"],
)
def test_eval_stands_for_what_is_missing(tmp_path: Path, there: tuple[str, ...], counts: list[int], note: str) -> None:
    frames = {"train": rows(9), "eval": rows(4, 9)} | {name: rows(3, 13) for name in there}
    splits = load_splits(folder_of(tmp_path, **frames), COLUMNS)
    assert [len(s["text"]) for s in (splits.train, splits.validation, splits.test)] == counts
    assert splits.notes == (note,)


def test_texts_that_are_not_read_are_told(tmp_path: Path) -> None:
    frame = rows(40, text="sentence").assign(question="why?")
    path = save(frame, tmp_path / "all.csv")
    assert "texts are those of column 'sentence'; not read: question" in load_splits(path, COLUMNS).notes[0]
    named = (Wanted("text", "sentence", ()), COLUMNS[1])
    assert not any("not read" in note for note in load_splits(path, named).notes)


def test_names_that_nearly_all_agree_are_taken_by_number(tmp_path: Path) -> None:
    """As ImageNet's are, whose models know two cranes, while no list of data may name a class twice."""
    data = classified(tmp_path, ("crane", "dog", "crane (machine)", "eel", "owl"))
    labels = class_labels(load_splits(data, COLUMNS), ("Crane", "dog", "Crane", "eel", "owl"), tmp_path)
    assert labels.train[:6] == [0, 1, 2, 3, 4, 0]
    assert "by number, since the data's names are not the model's: crane (machine) is Crane" in labels.notes[0]


def test_a_name_of_two_classes_says_nothing() -> None:
    with pytest.raises(DataError, match="here: row 1: label 'crane' names several of the model's classes"):
        class_numbers(["dog", "crane"], ("crane", "dog", "crane"), here)
    assert class_numbers([0, 2], ("crane", "dog", "crane"), here) == [0, 2]
