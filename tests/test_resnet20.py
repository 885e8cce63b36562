"""The real ResNet-20 on real images, where they lie beside the checkout: its accuracy, and half of its channels.

Oracles: the accuracy in the shared data's README, groups counted by hand, chance.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch

from autocompress.compressing.bank import Bank
from autocompress.compressing.batchnorm import refresh_batchnorm
from autocompress.compressing.shape import shape
from autocompress.errors import DataError
from autocompress.layers import LayerTable, Slice
from autocompress.plan import Plan, Prune
from autocompress.survey import survey
from autocompress.tasks.task import Examples, Task
from tests.tiny import _one_thread  # noqa: F401  (a fixture)

#: `shared/data/README.md` gives 87.2 % on test.
DOCUMENTED = 0.872


def load_example() -> ModuleType:
    path = Path(__file__).resolve().parent.parent / "examples" / "resnet20_cifar10.py"
    spec = importlib.util.spec_from_file_location("resnet20_cifar10", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def task() -> Task:
    example = load_example()
    if not (example.shared_folder() / "models" / "resnet20-cifar10.safetensors").is_file():
        pytest.skip(f"the shared model and images are not at {example.shared_folder()}")
    return example.make_task()


@pytest.fixture(scope="module")
def table(task: Task) -> LayerTable:
    return survey(task.source, task.workload_inputs(1, None))


def accuracy(model: torch.nn.Module, examples: Examples) -> float:
    hits = 0
    with torch.inference_mode():
        for _rows, inputs, targets in examples.batches(100):
            hits += int((model(**inputs).argmax(1) == targets).sum())
    return hits / len(examples)


def test_the_model_is_as_good_as_documented(task: Task) -> None:
    assert accuracy(task.model, task.test) == pytest.approx(DOCUMENTED, abs=0.003)


def test_splits_share_no_image(task: Task) -> None:
    sizes = [len(split) for split in (task.train, task.validation, task.test)]
    assert sizes == [4 * 45_000, 5_000, 10_000]
    files = [split.inputs["pixel_values"].files for split in (task.train, task.validation)]
    assert len(files[0]) + len(files[1]) == 50_000
    assert len(set(files[1]) & set(files[0])) < 50  # CIFAR-10 holds a few twins of its own


def test_views_of_an_image_are_the_same_each_time(task: Task) -> None:
    pictures = task.train.inputs["pixel_values"]
    assert torch.equal(pictures[45_007], pictures[45_007])
    assert not torch.equal(pictures[45_007], pictures[7])
    assert pictures[45_007].shape == pictures[7].shape == (3, 32, 32)
    assert task.train.targets[45_007] == task.train.targets[7]


def test_the_survey_finds_the_stream_and_the_inside_of_each_block(table: LayerTable) -> None:
    """What the padded shortcuts add to the stream at each widening stays: the padding is written into the model."""
    inside = {f"layer{s}.{i}.conv1/channels": 8 * 2**s for s in (1, 2, 3) for i in (0, 1, 2)}
    assert {group.name: group.size for group in table.groups} == {"conv1/channels": 16, **inside}
    stream = table.group("conv1/channels")
    assert Slice("layer1.0.conv2") in stream.producers
    assert Slice("layer2.1.conv2", offset=8) in stream.producers
    assert Slice("layer3.2.conv2", offset=24) in stream.producers
    assert Slice("linear", offset=24) in stream.consumers


def test_half_of_the_channels_run_and_refreshed_norms_bring_them_well_above_chance(
    task: Task, table: LayerTable, tmp_path: Path
) -> None:
    plan = Plan({g.name: Prune(g.size // 2, "magnitude", repair=False) for g in table.groups if "layer" in g.name})
    small = shape(task.model, plan, table, Bank(tmp_path, task, table)).eval()
    held = task.validation.subset(500)
    stale = accuracy(small, held)
    refresh_batchnorm(small, task.train, batches=12)
    assert accuracy(small, held) > max(0.5, stale + 0.1)
    left = survey(small, task.workload_inputs(1, None))
    assert left.layer("layer1.0.conv1").weight_shape == (8, 16, 3, 3)
    assert sum(layer.macs for layer in left.layers) < 0.52 * sum(layer.macs for layer in table.layers)


def test_absent_data_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AUTOCOMPRESS_SHARED", str(tmp_path))
    with pytest.raises(DataError, match=r"resnet20-cifar10\.safetensors is not there; AUTOCOMPRESS_SHARED must name"):
        load_example().make_task()
