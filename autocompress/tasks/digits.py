"""The demo task: a small Vision Transformer on scikit-learn's 1,797 real handwritten digits.

The reference model is trained once, in a minute or two on two cores, and kept in the user's cache.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from autocompress.records import storage_errors, write_json
from autocompress.tasks.hub import load_model, silence
from autocompress.tasks.task import Examples, Snippet, Task, logits_of

MODEL = {
    "hidden_size": 192,
    "num_hidden_layers": 6,
    "num_attention_heads": 6,
    "intermediate_size": 768,
    "image_size": 8,
    "patch_size": 2,
    "num_channels": 1,
    "num_labels": 10,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "initializer_range": 0.05,
}


@dataclass(frozen=True)
class Recipe:
    """How the reference model is trained.

    Attributes:
        turn, scale, shift: largest turn in radians, change of scale, and shift as a share of the image, of a copy.
        copies: augmented versions of each training image.
    """

    steps: int = 1200
    batch_size: int = 32
    learning_rate: float = 5e-4
    weight_decay: float = 0.05
    copies: int = 20
    turn: float = 0.2
    scale: float = 0.12
    shift: float = 0.1
    seed: int = 0


RECIPE = Recipe()
SPLIT = {"seed": 0, "validation": 360, "test": 360}
VERSION = "digits-vit-2"

SNIPPET = Snippet(
    "sklearn.datasets", '{"pixel_values": sklearn.datasets.load_digits().images[:1, None].astype("float32") / 16}'
)


def make_digits(say: Callable[[str], None] = print) -> Task:
    """The digits task with its trained reference model; trains it when the cache has none."""
    images, labels = _digits()
    test, validation, train = _split(labels)
    augmented, repeated = _augment(images[train], labels[train], RECIPE)
    model = _reference_model(Examples({"pixel_values": augmented}, repeated), say)
    return Task(
        name="digits",
        model=model,
        train=Examples({"pixel_values": augmented}, repeated),
        validation=Examples({"pixel_values": images[validation]}, labels[validation]),
        test=Examples({"pixel_values": images[test]}, labels[test]),
        query=lambda batch, _length: {"pixel_values": images[train][:batch]},
        classes=tuple(str(digit) for digit in range(10)),
        save_processor=_save_processor,
        snippet=SNIPPET,
        notes=(
            f"1,797 digits split with seed {SPLIT['seed']} into {len(train)} train, {len(validation)} validation and "
            f"{len(test)} test; training images with {RECIPE.copies} shifted and turned copies each",
        ),
    )


def cache_folder() -> Path:
    """Where trained reference models are kept: $AUTOCOMPRESS_CACHE, or autocompress under the user's cache."""
    base = os.environ.get("AUTOCOMPRESS_CACHE")
    return Path(base) if base else Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "autocompress"


def _digits() -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits

    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32).unsqueeze(1) / 16.0
    return images, torch.tensor(data.target, dtype=torch.int64)


def _split(labels: Tensor) -> tuple[Any, Any, Any]:
    from sklearn.model_selection import train_test_split

    numbers = np.arange(len(labels))
    rest, test = train_test_split(numbers, test_size=SPLIT["test"], random_state=SPLIT["seed"], stratify=labels.numpy())
    train, validation = train_test_split(
        rest, test_size=SPLIT["validation"], random_state=SPLIT["seed"], stratify=labels.numpy()[rest]
    )
    return np.sort(test), np.sort(validation), np.sort(train)


def _augment(images: Tensor, labels: Tensor, recipe: Recipe) -> tuple[Tensor, Tensor]:
    """The images ``(n, 1, 8, 8)`` and randomly shifted, turned and scaled versions of each."""
    generator = torch.Generator().manual_seed(recipe.seed)
    many = images.repeat(recipe.copies, 1, 1, 1)
    angle = _around_zero(generator, recipe.turn, len(many))
    scale = 1.0 + _around_zero(generator, recipe.scale, len(many))
    shift = _around_zero(generator, 2 * recipe.shift, len(many), 2)  # the grid is two units wide
    cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
    theta = torch.stack([torch.stack([cos, -sin, shift[:, 0]], 1), torch.stack([sin, cos, shift[:, 1]], 1)], 1)
    grid = nn.functional.affine_grid(theta, list(many.shape), align_corners=False)
    turned = nn.functional.grid_sample(many, grid, align_corners=False)
    return torch.cat([images, turned]), labels.repeat(recipe.copies + 1)


def _around_zero(generator: torch.Generator, largest: float, *size: int) -> Tensor:
    return (torch.rand(*size, generator=generator) * 2 - 1) * largest


def _reference_model(train: Examples, say: Callable[[str], None]) -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    folder = cache_folder() / VERSION
    if (folder / "recipe.json").is_file():
        return load_model(ViTForImageClassification, folder)
    silence()
    torch.manual_seed(RECIPE.seed)
    model: nn.Module = ViTForImageClassification(ViTConfig(**MODEL))
    say(f"training the reference model once ({RECIPE.steps} steps), kept in {folder}")
    _fit(model, train, say)
    with storage_errors(folder):
        model.save_pretrained(folder)  # type: ignore[operator]
    write_json(folder / "recipe.json", {"model": MODEL, "training": asdict(RECIPE), "split": SPLIT})
    return model.eval()


def _fit(model: nn.Module, train: Examples, say: Callable[[str], None]) -> None:
    steps = RECIPE.steps
    generator = np.random.default_rng(RECIPE.seed)
    optimizer = torch.optim.AdamW(model.parameters(), RECIPE.learning_rate, weight_decay=RECIPE.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RECIPE.learning_rate, total_steps=steps, pct_start=0.2)
    model.train()
    for step in range(1, steps + 1):
        inputs, targets = train.batch(generator.integers(0, len(train), RECIPE.batch_size))
        loss = nn.functional.cross_entropy(logits_of(model(**inputs)), targets)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 200 == 0:
            say(f"  step {step} of {steps}, loss {float(loss.detach()):.3f}")


def _save_processor(folder: Path) -> None:
    from transformers import ViTImageProcessorPil

    ViTImageProcessorPil(do_resize=False, do_rescale=True, rescale_factor=1 / 16, do_normalize=False).save_pretrained(
        folder
    )
