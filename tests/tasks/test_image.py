"""Oracle: the processor called by hand on the same picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from autocompress.errors import DataError
from autocompress.tasks import TaskSource, load_task
from tests.tiny import run


def pictures(count: int) -> list[Image.Image]:
    draw = np.random.default_rng(0)
    return [Image.fromarray(draw.integers(0, 256, (10, 12), dtype=np.uint8)) for _ in range(count)]


def save(path: Path, columns: dict[str, list]) -> Path:
    import datasets

    datasets.disable_progress_bars()
    for split in ("train", "validation", "test"):
        datasets.Dataset.from_dict(columns).to_parquet(path / f"{split}.parquet")
    return path


def test_pictures_go_through_the_processor(image_model: Path, tmp_path: Path) -> None:
    from transformers import ViTImageProcessorPil

    images = pictures(6)
    data = save(tmp_path, {"image": images, "label": ["bad", "good", "fine", "good", "bad", "fine"]})
    task = load_task(TaskSource("image-classification", str(image_model), str(data)))
    inputs, targets = task.train.batch([1, 4])
    processor = ViTImageProcessorPil.from_pretrained(image_model)
    expected = processor([images[i].convert("RGB") for i in (1, 4)], return_tensors="pt")["pixel_values"]
    assert inputs["pixel_values"].shape == (2, 3, 8, 8)
    torch.testing.assert_close(inputs["pixel_values"], expected)
    assert targets.tolist() == [2, 0]
    assert run(task.model, inputs).shape == (2, 3)
    assert task.classes == ("bad", "fine", "good")
    assert task.workload_inputs(3, None)["pixel_values"].shape == (3, 3, 8, 8)


def test_images_are_decoded_once_while_there_is_room(
    image_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is 10 by 12 pixels of three channels, and there is room for two."""
    from autocompress.tasks import image

    monkeypatch.setattr(image, "KEPT_BYTES", 2 * 360 + 100)
    read, real = [], image.decoded

    def noting(value: object, where: str) -> object:
        read.append(where)
        return real(value, where)

    monkeypatch.setattr(image, "decoded", noting)
    data = save(tmp_path, {"image": pictures(3), "label": [0, 1, 2]})
    task = load_task(TaskSource("image-classification", str(image_model), str(data)))
    first = task.train.batch([0, 1, 2])[0]["pixel_values"]
    assert torch.equal(task.train.batch([0, 1, 2])[0]["pixel_values"], first)
    assert [int(where[-1]) for where in read] == [0, 1, 2, 2]


def test_the_processor_is_saved_beside_the_model(image_model: Path, tmp_path: Path) -> None:
    data = save(tmp_path / "data", {"image": pictures(3), "label": [0, 1, 2]})
    load_task(TaskSource("image-classification", str(image_model), str(data))).save_processor(tmp_path / "out")
    assert (tmp_path / "out" / "preprocessor_config.json").is_file()


def test_a_column_that_holds_no_pictures_is_refused(image_model: Path, tmp_path: Path) -> None:
    data = save(tmp_path, {"image": ["a", "b", "c"], "label": [0, 1, 2]})
    task = load_task(TaskSource("image-classification", str(image_model), str(data)))
    with pytest.raises(DataError, match="split 'train': row 1: not an image, but str"):
        task.train.batch([1])
