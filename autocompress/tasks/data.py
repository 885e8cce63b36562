"""Rows from a folder, csv / json / parquet files or a hub data set, or plain text, in three splits."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from autocompress.errors import DataError, near

FORMATS = {".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}
PLAIN = (".txt",)

#: Share of a plain text that is cut off its end for each split that is missing.
TEXT_SHARE = 0.05

SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval"),
}


@dataclass(frozen=True)
class Wanted:
    """A column that a task needs: its role ("text", "label"), its name if the user gave one, else guesses."""

    role: str
    name: str | None
    guesses: tuple[str, ...]


#: Where labels usually stand.
LABEL_COLUMNS = ("label", "labels", "class", "target")


@dataclass(frozen=True)
class Splits:
    """Rows of each split as columns.

    Attributes:
        train, validation, test: role to values.
        notes: how splits that were missing came about.
    """

    train: Mapping[str, Sequence[Any]]
    validation: Mapping[str, Sequence[Any]]
    test: Mapping[str, Sequence[Any]]
    notes: tuple[str, ...] = ()


def load_splits(source: str | Path, columns: Sequence[Wanted], seed: int = 0) -> Splits:
    """Read the splits of `source`, keeping the wanted columns; splits that are missing are cut off with a seed.

    Args:
        source: a folder with files named train / validation / test, one file, or a hub data set.
        columns: what is needed; where a label is, a split whose labels are all missing or -1 is left out.
        seed: of the cuts.

    Returns:
        Rows whose columns are called by their roles.

    Raises:
        DataError: nothing readable there, a column is missing, or a split is empty.
    """
    raw = _read(source)
    names = {wanted.role: _column_name(str(source), raw, wanted) for wanted in columns}
    labelled = any(wanted.role == "label" for wanted in columns)
    kept = {split: {role: list(rows[name]) for role, name in names.items()} for split, rows in raw.items()}
    notes = []
    for split in list(kept):
        if not kept[split][columns[0].role]:
            raise DataError(f"{source}: split {split!r} is empty")
        if labelled and all(label is None or label == -1 for label in kept[split]["label"]):
            notes.append(f"split {split!r} carries no labels and is left out")
            del kept[split]
    return _complete(str(source), kept, notes, seed)


def load_texts(source: str | Path, column: Wanted, seed: int = 0) -> Splits:
    """The splits of running text: the text column of a table, or ``*.txt`` files, each split one long text.

    Text files are told apart by their names, as tables are. A split that is missing is the last 5 % of the training
    text, for all of it is one text in order; files without such names are one training text, in order of their names.

    Args:
        source: as for `load_splits`, or a .txt file, or a folder of them.
        column: the text column of a table.
        seed: of the cuts in a table.

    Returns:
        Texts under the column's role, and how missing splits came about.

    Raises:
        DataError: nothing readable there, or too little.
    """
    path = Path(source).expanduser()
    files = _text_files(path)
    if not files and path.suffix in PLAIN:
        raise DataError(f"--data {source}: no such file")
    if not files and path.is_dir() and not _files(path):
        raise DataError(f"--data {source}: holds no {', '.join(sorted({*FORMATS, *PLAIN}))} file")
    if not files:
        return load_splits(source, (column,), seed)
    if column.name is not None:
        raise DataError(
            f"--{column.role}-column {column.name}: {source} is plain text, which has no columns; leave the flag out"
        )
    texts = {split: "".join(_plain_text(name) for name in names) for split, names in files.items()}
    return _complete_texts(str(source), column.role, texts)


def _text_files(path: Path) -> dict[str, list[str]]:
    """Split name to .txt files; nothing where a table is the data and a text lies beside it."""
    texts, tables = _named_files(path, PLAIN), _named_files(path, FORMATS)
    if texts and tables:
        raise DataError(f"--data {path}: holds both texts and tables named after splits; keep one kind")
    if tables or (not texts and _files(path)):
        return {}
    return texts or _files(path, PLAIN)


def _plain_text(name: str) -> str:
    try:
        return Path(name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as fault:
        raise DataError(f"{name}: cannot be read as UTF-8 text: {fault}") from fault


def _complete_texts(source: str, role: str, texts: dict[str, str]) -> Splits:
    if "train" not in texts:
        raise DataError(f"{source}: no training text; name a file train*.txt, or give a single file")
    whole = len(texts["train"])
    notes = []
    for name in ("test", "validation"):
        if name in texts:
            continue
        text, count = texts["train"], round(whole * TEXT_SHARE)
        if not count:
            raise DataError(f"{source}: {whole} characters are too few to cut off a {name} text")
        texts["train"], texts[name] = text[: len(text) - count], text[len(text) - count :]
        notes.append(f"no {name} text: the last {count:,} of {len(text):,} training characters were cut off for it")
    for name, text in texts.items():
        if not text.strip():
            raise DataError(f"{source}: the {name} text is empty")
    return Splits({role: [texts["train"]]}, {role: [texts["validation"]]}, {role: [texts["test"]]}, tuple(notes))


def _column_name(source: str, raw: Mapping[str, Any], wanted: Wanted) -> str:
    present = next(iter(raw.values())).column_names
    name = wanted.name or next((guess for guess in wanted.guesses if guess in present), None)
    if name is None:
        raise DataError(
            f"{source}: which column holds the {wanted.role}? give --{wanted.role}-column; "
            f"columns: {', '.join(present)}"
        )
    for split, rows in raw.items():
        if name not in rows.column_names:
            raise DataError(
                f"{source}: split {split!r} has no column {name!r}{near(name, rows.column_names)} "
                f"(--{wanted.role}-column)"
            )
    return name


def _read(source: str | Path) -> Mapping[str, Any]:
    import datasets

    datasets.disable_progress_bars()
    path = Path(source).expanduser()
    files = _files(path)
    if files:
        formats = {FORMATS[Path(name).suffix] for names in files.values() for name in names}
        if len(formats) > 1:
            raise DataError(f"{source}: files of several formats ({', '.join(sorted(formats))}); keep one")
        extra = {"sep": "\t"} if all(n.endswith(".tsv") for names in files.values() for n in names) else {}
        try:
            return dict(datasets.load_dataset(formats.pop(), data_files=files, **extra))
        except Exception as fault:  # datasets wraps parser errors of several libraries
            cause = fault.__cause__ or fault
            if "no data" in str(cause):
                raise DataError(f"{source}: holds no rows") from fault
            raise DataError(f"{source}: cannot be read: {cause}") from fault
    if path.exists():
        raise DataError(f"{source}: holds no {', '.join(sorted(FORMATS))} file")
    if str(source).startswith((".", "/", "~")) or path.suffix in FORMATS:
        raise DataError(f"{source}: no such file or folder")
    try:
        return dict(datasets.load_dataset(str(source)))
    except Exception as fault:  # the hub's clients raise errors of several libraries
        reason = f"{type(fault).__name__}: {(str(fault).splitlines() or [''])[0]}"
        raise DataError(
            f"--data {source}: no such file or folder here, and the hub gave no data set of that name ({reason}); "
            "without a network give a folder or file"
        ) from fault


def _files(path: Path, suffixes: Collection[str] = tuple(FORMATS)) -> dict[str, list[str]]:
    """Split name to files; a single file, or files without a split's name, are a train split."""
    if path.is_file() and path.suffix in suffixes:
        return {"train": [str(path)]}
    named = _named_files(path, suffixes)
    if named or not path.is_dir():
        return named
    rest = [str(file) for file in sorted(path.glob("*")) if file.suffix in suffixes]
    return {"train": rest} if rest else {}


def _named_files(path: Path, suffixes: Collection[str]) -> dict[str, list[str]]:
    """Split name to the files of a folder that are named after it."""
    found: dict[str, list[str]] = {}
    for file in sorted(path.glob("*")) if path.is_dir() else []:
        if file.suffix not in suffixes:
            continue
        stem = file.stem.lower()
        split = next((s for s, names in SPLIT_NAMES.items() if stem.startswith(names)), None)
        if split:
            found.setdefault(split, []).append(str(file))
    return {split: found[split] for split in SPLIT_NAMES if split in found}  # train first: it sets the columns' types


def _complete(source: str, splits: dict[str, dict[str, list[Any]]], notes: list[str], seed: int) -> Splits:
    canonical: dict[str, dict[str, list[Any]]] = {}
    for split, rows in splits.items():
        name = next((s for s, names in SPLIT_NAMES.items() if split in names), None)
        if name:
            canonical[name] = rows
    if "train" not in canonical:
        why = "".join(f" ({note})" for note in notes)
        raise DataError(f"{source}: no training split{why}; name a file train.*, or give a single file")
    for name in ("test", "validation"):
        if name in canonical:
            continue
        donor = "train"
        total = len(next(iter(canonical[donor].values())))
        count = min(2000, max(1, round(total * 0.15)))
        if total - count < 1:
            raise DataError(f"{source}: {total} rows are too few to cut off a {name} split")
        order = np.random.default_rng(seed + len(name)).permutation(total)
        canonical[name] = _take(canonical[donor], sorted(order[:count]))
        canonical[donor] = _take(canonical[donor], sorted(order[count:]))
        notes.append(f"no {name} split: {count} of the {total} {donor} rows were cut off for it with seed {seed}")
    return Splits(canonical["train"], canonical["validation"], canonical["test"], tuple(notes))


def _take(rows: Mapping[str, Sequence[Any]], order: Sequence[int]) -> dict[str, list[Any]]:
    return {name: [values[i] for i in order] for name, values in rows.items()}


def class_numbers(labels: Sequence[Any], classes: Sequence[str], where: str) -> list[int]:
    """Labels, given as numbers or as class names, as class numbers.

    Raises:
        DataError: a label is no class of the model; names the row and the classes.
    """
    by_name = {name: number for number, name in enumerate(classes)}
    numbers = []
    for row, label in enumerate(labels):
        number = by_name.get(label) if isinstance(label, str) else label
        if number is None and isinstance(label, str) and label.isdecimal():
            number = int(label)
        if isinstance(number, bool) or not isinstance(number, int | np.integer) or not 0 <= number < len(classes):
            shown = ", ".join(list(classes)[:6]) + (", …" if len(classes) > 6 else "")
            raise DataError(
                f"{where}: row {row}: label {label!r} is none of the model's {len(classes)} classes "
                f"(0 to {len(classes) - 1}, or {shown})"
            )
        numbers.append(int(number))
    return numbers
