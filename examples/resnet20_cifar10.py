"""ResNet-20 on CIFAR-10: autocompress search --task examples/resnet20_cifar10.py:make_task --budget 20m

The network of He et al. 2015 (section 4.2) with option-A shortcuts: where the width doubles, zeros are padded on.
Weights and images are read from `../shared/data` beside the checkout, or from the folder in AUTOCOMPRESS_SHARED.
"""

import io
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet
import safetensors.torch
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from autocompress import Examples, Task
from autocompress.errors import DataError

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
MEAN, STD = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
VALIDATION = 5_000
#: Views of each training image: itself, and copies that are shifted by up to 4 pixels and mirrored.
VIEWS = 4


class Block(nn.Module):
    def __init__(self, into: int, out: int) -> None:
        super().__init__()
        self.stride = 1 if into == out else 2
        self.pad = (out - into) // 2
        self.conv1 = nn.Conv2d(into, out, 3, self.stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x
        if self.pad:
            shortcut = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.pad, self.pad))
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + shortcut)


class ResNet20(nn.Module):
    """Images ``(n, 3, 32, 32)``, normalised, to logits ``(n, 10)``."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(Block(16, 16), Block(16, 16), Block(16, 16))
        self.layer2 = nn.Sequential(Block(16, 32), Block(32, 32), Block(32, 32))
        self.layer3 = nn.Sequential(Block(32, 64), Block(64, 64), Block(64, 64))
        self.linear = nn.Linear(64, len(CLASSES))

    def forward(self, pixel_values: Tensor) -> Tensor:
        hidden = self.layer3(self.layer2(self.layer1(F.relu(self.bn1(self.conv1(pixel_values))))))
        return self.linear(F.adaptive_avg_pool2d(hidden, 1).flatten(1))


class Pictures:
    """JPEG files that are decoded, shifted and normalised when they are asked for; sample i is image i modulo n."""

    def __init__(self, files: Sequence[bytes], views: int = 1) -> None:
        self.files = files
        self.views = views

    def __len__(self) -> int:
        return len(self.files) * self.views

    def __getitem__(self, index: int) -> Tensor:
        view, number = divmod(index, len(self.files))
        pixels = np.asarray(Image.open(io.BytesIO(self.files[number])).convert("RGB"), dtype=np.float32) / 255
        image = (torch.from_numpy(pixels) - torch.tensor(MEAN)) / torch.tensor(STD)
        return _shifted(image.permute(2, 0, 1), index) if view else image.permute(2, 0, 1)


def _shifted(image: Tensor, seed: int) -> Tensor:
    """A crop of the image in a frame of 4 pixels of zeros, mirrored or not: the same for the same seed."""
    top, left, mirrored = np.random.default_rng(seed).integers((9, 9, 2)).tolist()
    crop = F.pad(image, (4, 4, 4, 4))[:, top : top + 32, left : left + 32]
    return crop.flip(2) if mirrored else crop


def shared_folder() -> Path:
    """Where weights and images lie."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    return Path(os.environ.get("AUTOCOMPRESS_SHARED", beside))


def _present(path: Path) -> Path:
    if not path.is_file():
        raise DataError(
            f"{path} is not there; AUTOCOMPRESS_SHARED must name the folder that holds cifar10/ and models/"
        )
    return path


def _rows(path: Path) -> tuple[list[bytes], Tensor]:
    table = pyarrow.parquet.read_table(_present(path))
    return [image["bytes"] for image in table["image"].to_pylist()], torch.tensor(table["label"].to_pylist())


def load_model(folder: Path) -> ResNet20:
    """The trained network; 87.2 % on the test images."""
    model = ResNet20()
    weights = safetensors.torch.load_file(_present(folder / "models" / "resnet20-cifar10.safetensors"))
    model.load_state_dict({**model.state_dict(), **weights})  # the file holds no counts of batches
    return model.eval()


def make_task() -> Task:
    folder = shared_folder()
    model = load_model(folder)
    files, labels = _rows(folder / "cifar10" / "train.parquet")
    order = np.random.default_rng(0).permutation(len(files))
    train, validation = order[VALIDATION:], order[:VALIDATION]
    test_files, test_labels = _rows(folder / "cifar10" / "test.parquet")
    return Task(
        name="resnet20-cifar10",
        model=model,
        train=Examples({"pixel_values": Pictures([files[i] for i in train], VIEWS)}, labels[train].repeat(VIEWS)),
        validation=Examples({"pixel_values": Pictures([files[i] for i in validation])}, labels[validation]),
        test=Examples({"pixel_values": Pictures(test_files)}, test_labels),
        classes=CLASSES,
        batch_size=64,
        score_batch=100,
        notes=(f"{VALIDATION:,} of the training images are cut off for validation",),
    )
