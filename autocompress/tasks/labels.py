"""Labels of data as the class numbers of a model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from autocompress.errors import DataError
from autocompress.tasks.data import Rows, Splits

#: Where labels usually stand.
LABEL_COLUMNS = ("label", "labels", "class", "target")


@dataclass(frozen=True)
class Labels:
    """Class numbers of each split, and what there is to say of how they were told."""

    train: list[int]
    validation: list[int]
    test: list[int]
    notes: tuple[str, ...] = ()


def class_labels(splits: Splits, classes: Sequence[str], source: str | Path) -> Labels:
    """The labels of the splits as the model's class numbers.

    Where the data brings names for its numbers, these are held against the model's, in any case of letters. Where none
    of them is a name of the model's, but there are as many, its numbers are taken as they are, which a note says.

    Raises:
        DataError: a label is no class of the model, or the data's classes cannot be the model's.
    """
    order, notes = _class_order(splits.label_names, classes, source)

    def numbers(rows: Rows) -> list[int]:
        given = [order.get(label, label) for label in rows["label"]] if order else rows["label"]
        return class_numbers(given, classes, rows.place)

    return Labels(numbers(splits.train), numbers(splits.validation), numbers(splits.test), notes)


def _class_order(
    names: Sequence[str], classes: Sequence[str], source: str | Path
) -> tuple[dict[Any, str], tuple[str, ...]]:
    """The data's number to the model's class name, nothing where it is taken as it is; and notes."""
    ours = {name.casefold(): name for name in classes}
    shared = {number: ours[name.casefold()] for number, name in enumerate(names) if name.casefold() in ours}
    twice = [name for name, count in Counter(classes).items() if count > 1]
    if len(shared) == len(names) and not set(shared.values()) & set(twice):
        return shared, ()
    pairs = list(zip(names, classes, strict=False)) if len(names) == len(classes) else []
    others = [(name, model) for name, model in pairs if name.casefold() != model.casefold()]
    moved = any(number in shared for number, (name, model) in enumerate(pairs) if (name, model) in others)
    if pairs and not moved and (not shared or 2 * len(others) < len(pairs)):
        said = _few([f"{name} is {model}" for name, model in others])
        return {}, (f"labels are taken by number, since the data's names are not the model's: {said}",)
    raise DataError(
        f"{source}: its {len(names)} classes ({_few(names)}) are not the model's {len(classes)} ({_few(classes)}); "
        "give labels by the model's names"
    )


def _few(names: Sequence[str]) -> str:
    return ", ".join(list(names)[:6]) + (", …" if len(names) > 6 else "")


def class_numbers(labels: Sequence[Any], classes: Sequence[str], place: Callable[[int], str]) -> list[int]:
    """Labels, given as numbers or as class names, as class numbers.

    Where all names are numbers themselves, such as the stars of a review, a label is always a name.

    Args:
        labels: as they were read; a column of numbers with gaps is read as floats.
        classes: names in the order of the model's logits.
        place: gives where a row was read.

    Raises:
        DataError: a label is no class of the model; names the row and the classes.
    """
    by_name = {name: number for number, name in enumerate(classes)}
    twice = {name for name, count in Counter(classes).items() if count > 1}
    named = all(name.isdecimal() for name in classes)
    numbers = []
    for row, label in enumerate(labels):
        number = label
        if isinstance(label, str) and label in twice:
            raise DataError(f"{place(row)}: label {label!r} names several of the model's classes; give its number")
        if isinstance(label, float) and label.is_integer():
            number = int(label)
        if isinstance(number, str):
            number = by_name.get(number, int(number) if number.isdecimal() and not named else None)
        elif named and isinstance(number, int | np.integer) and not isinstance(number, bool):
            number = by_name.get(str(number))
        if isinstance(number, bool) or not isinstance(number, int | np.integer) or not 0 <= number < len(classes):
            either = "" if named else f"0 to {len(classes) - 1}, or "
            raise DataError(
                f"{place(row)}: label {label!r} is none of the model's {len(classes)} classes ({either}{_few(classes)})"
            )
        numbers.append(int(number))
    return numbers
