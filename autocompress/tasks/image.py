"""Image classification with any `AutoModelForImageClassification`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from autocompress.errors import DataError
from autocompress.tasks.data import Rows, Wanted, decoded, load_splits
from autocompress.tasks.hub import class_names, load_model, load_pretrained
from autocompress.tasks.labels import LABEL_COLUMNS, class_labels
from autocompress.tasks.task import Examples, Snippet, Task

IMAGE_COLUMNS = ("image", "img", "pixel_values", "picture")

SNIPPET = Snippet(
    "PIL.Image, transformers",
    'transformers.AutoImageProcessor.from_pretrained(folder)(PIL.Image.open("picture.jpg"), return_tensors="np")',
)


#: Of each split; what is over it is decoded whenever it is asked for.
KEPT_BYTES = 500_000_000


class _Images:
    """Images read and turned into model inputs when they are asked for; as many as `KEPT_BYTES` hold stay decoded."""

    def __init__(self, rows: Rows, processor: Any) -> None:
        self.rows = rows
        self.processor = processor
        self._kept: dict[int, Any] = {}
        self._room = KEPT_BYTES

    def __getstate__(self) -> dict[str, Any]:
        """Without what is decoded: another process reads it again."""
        return {**self.__dict__, "_kept": {}, "_room": KEPT_BYTES}

    def __len__(self) -> int:
        return len(self.rows["image"])

    def __getitem__(self, index: int) -> Tensor:
        image = self._kept.get(index) or decoded(self.rows["image"][index], self.rows.place(index))
        if not hasattr(image, "convert"):
            raise DataError(f"{self.rows.place(index)}: not an image, but {type(image).__name__}")
        image = image.convert("RGB")
        size = 3 * image.width * image.height
        if index not in self._kept and size <= self._room:
            self._kept[index], self._room = image, self._room - size
        pixels: Tensor = self.processor(image, return_tensors="pt")["pixel_values"][0]
        return pixels


def make_image_classification(
    model: str | Path, data: str | Path, image_column: str | None = None, label_column: str | None = None
) -> Task:
    """The task of an image classifier and its labelled images (parquet or hub data with an image column).

    Raises:
        ModelError, DataError: naming flag, column, row and value.
    """
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    network = load_model(AutoModelForImageClassification, model)
    processor = load_pretrained(AutoImageProcessor, model)
    classes = class_names(network)
    columns = (Wanted("image", image_column, IMAGE_COLUMNS), Wanted("label", label_column, LABEL_COLUMNS))
    splits = load_splits(data, columns)
    labels = class_labels(splits, classes, data)
    made = {}
    for name in ("train", "validation", "test"):
        images = _Images(getattr(splits, name), processor)
        made[name] = Examples({"pixel_values": images}, torch.tensor(getattr(labels, name)))
    return Task(
        name="image-classification",
        model=network,
        train=made["train"],
        validation=made["validation"],
        test=made["test"],
        classes=classes,
        save_processor=processor.save_pretrained,
        snippet=SNIPPET,
        notes=(*splits.notes, *labels.notes),
    )
