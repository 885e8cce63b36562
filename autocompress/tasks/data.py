"""Rows from a folder, csv / json / parquet files or a hub data set, or plain text, in three splits."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from autocompress.errors import DataError, near

T = TypeVar("T")

FORMATS = {".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}
PLAIN = (".txt",)

#: Share of a plain text that is cut off its end for each split that is missing.
TEXT_SHARE = 0.05

SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
}

#: Name that some give to validation and others to test: it stands for the first of the two that is missing.
EVAL = "eval"


@dataclass(frozen=True)
class Wanted:
    """A column that a task needs: its role ("text", "label"), its name if the user gave one, else guesses."""

    role: str
    name: str | None
    guesses: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Rows(Mapping[str, Sequence[Any]]):
    """Rows of a split as columns, that know where they were read.

    Attributes:
        columns: role to values, one per row.
        source: what was read, such as "films.csv: split 'train'".
        numbers: of the rows in it.
    """

    columns: Mapping[str, Sequence[Any]]
    source: str
    numbers: Sequence[int]

    def __getitem__(self, role: str) -> Sequence[Any]:
        """The values of a role."""
        return self.columns[role]

    def __iter__(self) -> Iterator[str]:
        """The roles."""
        return iter(self.columns)

    def __len__(self) -> int:
        """How many roles there are."""
        return len(self.columns)

    def place(self, row: int) -> str:
        """Where a row was read, such as "films.csv: split 'train': row 7"."""
        return f"{self.source}: row {self.numbers[row]}"

    def take(self, order: Sequence[int]) -> Rows:
        """Some of the rows."""
        columns = {role: [values[i] for i in order] for role, values in self.columns.items()}
        return Rows(columns, self.source, [self.numbers[i] for i in order])


@dataclass(frozen=True)
class Splits:
    """Rows of each split.

    Attributes:
        train, validation, test: of each.
        notes: how splits that were missing came about, and what is there and not read.
        label_names: class names of the data where its labels are numbers of these; empty where it has none.
    """

    train: Rows
    validation: Rows
    test: Rows
    notes: tuple[str, ...] = ()
    label_names: tuple[str, ...] = ()


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
    notes = [note for wanted in columns if wanted.name is None for note in _unread(raw, wanted.role, names)]
    kept = {split: _rows(source, split, rows, names) for split, rows in raw.items()}
    for split, rows in list(kept.items()):
        if not rows[columns[0].role]:
            raise DataError(f"{source}: split {split!r} is empty")
        if "label" in names and all(label is None or label == -1 for label in rows["label"]):
            notes.append(f"split {split!r} carries no labels and is left out")
            del kept[split]
    return _complete(str(source), kept, notes, seed, _label_names(raw, names.get("label")))


def _rows(source: str | Path, split: str, rows: Any, names: Mapping[str, str]) -> Rows:
    """The wanted columns; images as the bytes or paths that they are read as, since decoded they would fill memory."""
    import datasets

    columns = {}
    for role, name in names.items():
        encoded = isinstance(rows.features[name], datasets.Image)
        columns[role] = list((rows.cast_column(name, datasets.Image(decode=False)) if encoded else rows)[name])
    return Rows(columns, f"{source}: split {split!r}", range(len(rows)))


def decoded(image: Any, where: str) -> Any:
    """The picture that a value of an image column stands for; what is no such value, as it is.

    Raises:
        DataError: it cannot be read; names where it stands.
    """
    import datasets

    if not isinstance(image, dict):
        return image
    try:
        return datasets.Image().decode_example(image)
    except Exception as fault:  # of the picture's own format
        raise DataError(f"{where}: the image cannot be read: {fault}") from fault


def _unread(raw: Mapping[str, Any], role: str, names: Mapping[str, str]) -> Iterator[str]:
    """What is said where texts were guessed to stand in a column and others hold texts, too."""
    features = next(iter(raw.values())).features
    others = [name for name, kind in features.items() if name not in names.values() and _is_text(kind)]
    if role == "text" and others:
        yield f"texts are those of column {names[role]!r}; not read: {', '.join(others)} (--text-column names another)"


def _is_text(kind: Any) -> bool:
    return getattr(kind, "dtype", None) in ("string", "large_string")


def _label_names(raw: Mapping[str, Any], column: str | None) -> tuple[str, ...]:
    import datasets

    kind = None if column is None else next(iter(raw.values())).features[column]
    return tuple(kind.names) if isinstance(kind, datasets.ClassLabel) else ()


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
    named, notes = _named(files)
    texts = {split: "".join(_plain_text(name) for name in names) for split, names in named.items()}
    return _complete_texts(str(source), column.role, texts, notes)


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


def _complete_texts(source: str, role: str, texts: dict[str, str], notes: list[str]) -> Splits:
    if "train" not in texts:
        raise DataError(f"{source}: no training text; name a file train*.txt, or give a single file")
    whole = len(texts["train"])
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
    made = {name: Rows({role: [text]}, f"{source}: split {name!r}", [0]) for name, text in texts.items()}
    return Splits(made["train"], made["validation"], made["test"], tuple(notes))


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
        kind = formats.pop()
        extra: dict[str, Any] = {}
        if kind == "csv":  # "None" and "NA" are classes and texts like others; only nothing is missing
            extra = {"keep_default_na": False, "na_values": [""]}
        if all(n.endswith(".tsv") for names in files.values() for n in names):
            extra["sep"] = "\t"
        try:
            return dict(datasets.load_dataset(kind, data_files=files, **extra))
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
    """Split name, or `EVAL`, to the files of a folder that are named after it."""
    found: dict[str, list[str]] = {}
    known = {**SPLIT_NAMES, EVAL: (EVAL,)}
    for file in sorted(path.glob("*")) if path.is_dir() else []:
        if file.suffix not in suffixes:
            continue
        stem = file.stem.lower()
        split = next((s for s, names in known.items() if stem.startswith(names)), None)
        if split:
            found.setdefault(split, []).append(str(file))
    return {split: found[split] for split in known if split in found}  # train first: it sets the columns' types


def _named(splits: Mapping[str, T]) -> tuple[dict[str, T], list[str]]:
    """What is train, validation and test, and what there is to say of it."""
    found: dict[str, T] = {}
    used: dict[str, str] = {}
    for split in splits:
        name = next((s for s, names in SPLIT_NAMES.items() if split in names), None)
        if name and name not in found:
            found[name], used[split] = splits[split], name
    notes = []
    missing = [name for name in ("validation", "test") if name not in found]
    if EVAL in splits and missing:
        found[missing[0]], used[EVAL] = splits[EVAL], missing[0]
        notes.append(f"split {EVAL!r} is taken for {missing[0]}")
    left = [split for split in splits if split not in used]
    if left and found:
        notes.append(f"not read: split {', '.join(map(repr, left))}")
    return found, notes


def _complete(
    source: str, splits: Mapping[str, Rows], notes: list[str], seed: int, label_names: tuple[str, ...]
) -> Splits:
    canonical, said = _named(splits)
    if "train" not in canonical:
        why = "".join(f" ({note})" for note in notes)
        raise DataError(f"{source}: no training split{why}; name a file train.*, or give a single file")
    notes += said
    for name in ("test", "validation"):
        if name in canonical:
            continue
        train = canonical["train"]
        total = len(train.numbers)
        count = min(2000, max(1, round(total * 0.15)))
        if total - count < 1:
            raise DataError(f"{source}: {total} rows are too few to cut off a {name} split")
        order = np.random.default_rng(seed + len(name)).permutation(total)
        canonical[name] = train.take(sorted(order[:count]))
        canonical["train"] = train.take(sorted(order[count:]))
        notes.append(f"no {name} split: {count} of the {total} train rows were cut off for it with seed {seed}")
    return Splits(canonical["train"], canonical["validation"], canonical["test"], tuple(notes), label_names)
