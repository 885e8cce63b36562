"""The pieces of the demo that need no training. Oracles: scikit-learn's data and set arithmetic."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

from autocompress.records import write_json
from autocompress.tasks import TaskSource, digits, load_task
from autocompress.tasks.digits import MODEL, RECIPE, Recipe, _augment, _digits, _split, cache_folder


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache that already holds a reference model, an untrained one."""
    from transformers import ViTConfig, ViTForImageClassification

    monkeypatch.setenv("AUTOCOMPRESS_CACHE", str(tmp_path))
    folder = tmp_path / digits.VERSION
    torch.manual_seed(0)
    ViTForImageClassification(ViTConfig(**{**MODEL, "num_hidden_layers": 1})).save_pretrained(folder)
    write_json(folder / "recipe.json", {"training": asdict(RECIPE)})
    return folder


def test_the_digits_are_sklearns() -> None:
    from sklearn.datasets import load_digits

    images, labels = _digits()
    assert images.shape == (1797, 1, 8, 8)
    assert (float(images.min()), float(images.max())) == (0.0, 1.0)
    np.testing.assert_array_equal(labels.numpy(), load_digits().target)


def test_the_split_is_stratified_and_covers_everything_once() -> None:
    labels = _digits()[1]
    test, validation, train = _split(labels)
    assert (len(test), len(validation), len(train)) == (360, 360, 1077)
    assert sorted([*test, *validation, *train]) == list(range(1797))
    for rows in (test, validation):
        assert np.bincount(labels[rows]).min() >= 34
    assert all((first == again).all() for first, again in zip(_split(labels), (test, validation, train), strict=True))


def test_augmented_data_begins_with_the_originals() -> None:
    images, labels = _digits()
    many, repeated = _augment(images[:30], labels[:30], Recipe(copies=3))
    assert many.shape == (120, 1, 8, 8)
    assert torch.equal(many[:30], images[:30])
    assert torch.equal(repeated, labels[:30].repeat(4))
    assert not torch.allclose(many[30:60], images[:30])
    assert torch.equal(many, _augment(images[:30], labels[:30], Recipe(copies=3))[0])


def test_augmentation_without_movement_is_the_original() -> None:
    images, labels = _digits()
    many, _labels = _augment(images[:5], labels[:5], Recipe(copies=2, turn=0, scale=0, shift=0))
    torch.testing.assert_close(many, images[:5].repeat(3, 1, 1, 1), rtol=0, atol=1e-5)


def test_the_cache_lies_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOCOMPRESS_CACHE", str(tmp_path / "a"))
    assert cache_folder() == tmp_path / "a"
    monkeypatch.delenv("AUTOCOMPRESS_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "b"))
    assert cache_folder() == tmp_path / "b" / "autocompress"


def test_a_cached_model_is_not_trained_again(cached: Path) -> None:
    said: list[str] = []
    task = load_task(TaskSource("digits"), say=said.append)
    assert said == []
    assert len(task.train) == 1077 * (RECIPE.copies + 1)
    assert (len(task.validation), len(task.test)) == (360, 360)
    assert task.workload_inputs(1, None)["pixel_values"].shape == (1, 1, 8, 8)
    assert not task.model.training
    assert "1,797 digits" in task.notes[0]


def test_the_saved_processor_gives_the_models_inputs(cached: Path, tmp_path: Path) -> None:
    from PIL import Image
    from transformers import ViTImageProcessorPil

    load_task(TaskSource("digits")).save_processor(tmp_path / "out")
    grey = np.full((8, 8), 4, dtype=np.uint8)
    processor = ViTImageProcessorPil.from_pretrained(tmp_path / "out")
    pixels = processor(Image.fromarray(grey), return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(pixels[0, 0], torch.full((8, 8), 0.25))
