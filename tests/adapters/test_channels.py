"""Oracles: the masked twin (all weights of the removed channels zero), sizes counted by hand, export of the result."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autocompress.adapters import find_groups
from autocompress.adapters.channels import groups
from autocompress.compressing.choices import FirstOnes
from autocompress.compressing.shape import shape
from autocompress.layers import Group, LayerTable, Slice
from autocompress.plan import Plan, Prune, effective_layers
from autocompress.survey import survey
from autocompress.tasks.task import Task
from autocompress.weights import parameter_at
from tests.tiny import CLASSES, run, stirred, tensors


def norm(width: int) -> nn.BatchNorm2d:
    """A batch norm whose statistics are neither 0 nor 1."""
    made = nn.BatchNorm2d(width)
    made.running_mean = torch.randn(width)
    made.running_var = torch.rand(width) + 0.5
    return made


def unit(into: int, out: int, size: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(into, out, size, stride, size // 2, groups=groups, bias=False), norm(out))


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = unit(3, 6), nn.Conv2d(6, 8, 3)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.a(x)), 2)
        return self.head(F.gelu(self.b(x)).mean((2, 3)))


class Block(nn.Module):
    """A residual block; its shortcut pads with zeros (option A) or projects where the width grows."""

    def __init__(self, into: int, out: int, pads: bool) -> None:
        super().__init__()
        stride = 1 if into == out else 2
        self.a, self.b = unit(into, out, stride=stride), unit(out, out)
        self.pad = (out - into) // 2
        self.project = nn.Identity() if into == out or pads else unit(into, out, 1, stride)
        self.grows = into != out and pads

    def forward(self, x: Tensor) -> Tensor:
        shortcut = self.project(x)
        if self.grows:
            shortcut = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad))
        return F.relu(self.b(F.relu(self.a(x))) + shortcut)


class Residual(nn.Module):
    def __init__(self, pads: bool) -> None:
        super().__init__()
        self.stem = unit(3, 6)
        self.blocks = nn.Sequential(Block(6, 6, pads), Block(6, 10, pads), Block(10, 10, pads), Block(10, 14, pads))
        self.head = nn.Linear(14, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(F.relu(self.stem(x)))
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Dense(nn.Module):
    """Every layer reads all before it, norm first."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.norms = nn.ModuleList([norm(6), norm(10), norm(14)])
        self.convs = nn.ModuleList([nn.Conv2d(6, 4, 3, padding=1), nn.Conv2d(10, 4, 3, padding=1)])
        self.head = nn.Linear(14, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for before, conv in zip(self.norms, self.convs, strict=False):
            x = torch.cat([x, conv(F.relu(before(x)))], 1)
        return self.head(self.norms[2](x).mean((2, 3)))


class Mobile(nn.Module):
    """An inverted residual with a depthwise convolution, a squeeze-and-excitation gate and a layer scale."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.expand = unit(3, 6), unit(6, 12, 1)
        self.depth = unit(12, 12, groups=12)
        self.squeeze, self.excite = nn.Conv2d(12, 4, 1), nn.Conv2d(4, 12, 1)
        self.project = unit(12, 6, 1)
        self.scale = nn.Parameter(torch.randn(6, 1, 1))
        self.head = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self.stem(x))
        y = F.hardswish(self.depth(F.relu6(self.expand(x), inplace=True)))
        y = y * torch.sigmoid(self.excite(F.relu(self.squeeze(y.mean((2, 3), keepdim=True)))))
        x = x + self.scale * self.project(y)
        return self.head(F.dropout(x.mean((2, 3)), 0.1, self.training))


class Flat(nn.Module):
    """Channels that are flattened with their positions before a linear reads them, and linears behind one another."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 5, 3, 2, 1)
        self.slopes, self.each = nn.PReLU(4), nn.GroupNorm(5, 5)
        self.hidden, self.head = nn.Linear(5 * 16, 7), nn.Linear(7, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.each(self.b(self.slopes(self.a(x))))
        return self.head(F.relu(self.hidden(x.view(x.size(0), -1))))


class Halves(nn.Module):
    """A gated unit (two halves of one output), one convolution called twice, and a doubled input."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.twice = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.head = nn.Conv2d(12, CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.a(x).chunk(2, 1)
        x = self.twice(torch.tanh(self.twice(value * gate.sigmoid())))
        x = torch.cat([x, x.abs()], 1).permute(0, 2, 3, 1).permute(0, 3, 1, 2)
        return self.head(x.unsqueeze(2).squeeze(2)).mean((2, 3))


def hub_resnet() -> nn.Module:
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(embedding_size=6, hidden_sizes=[8, 10], depths=[2, 1], layer_type="basic", num_labels=CLASSES)
    return ResNetForImageClassification(config)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "plain": Plain,
    "option-A": lambda: Residual(pads=True),
    "projection": lambda: Residual(pads=False),
    "dense": Dense,
    "mobile": Mobile,
    "flat": Flat,
    "halves": Halves,
    "hub": hub_resnet,
}

#: First producer and number of channels of each group, counted by hand.
EXPECTED = {
    "plain": {"a.0": 6, "b": 8},
    "option-A": {"stem.0": 6, **{f"blocks.{i}.a.0": n for i, n in enumerate((6, 10, 10, 14))}},
    "projection": {
        "stem.0": 6,
        **{f"blocks.{i}.a.0": n for i, n in enumerate((6, 10, 10, 14))},
        "blocks.1.project.0": 10,
        "blocks.3.project.0": 14,
    },
    "dense": {"stem": 6, "convs.0": 4, "convs.1": 4},
    "mobile": {"stem.0": 6, "expand.0": 12, "squeeze": 4},
    "flat": {"a": 4, "b": 5, "hidden": 7},
    "halves": {"a": 6},
    "hub": {
        "resnet.embedder.embedder.convolution": 6,
        **{f"resnet.encoder.stages.0.layers.{i}.layer.0.convolution": 8 for i in (0, 1)},
        "resnet.encoder.stages.0.layers.0.layer.1.convolution": 8,
        "resnet.encoder.stages.1.layers.0.layer.0.convolution": 10,
        "resnet.encoder.stages.1.layers.0.layer.1.convolution": 10,
    },
}


@pytest.fixture(scope="module", params=list(MODELS))
def task(request: pytest.FixtureRequest) -> Task:
    return built(request.param)


@pytest.fixture(scope="module")
def table(task: Task) -> LayerTable:
    return table_of(task)


def built(name: str) -> Task:
    torch.manual_seed(0)
    model = stirred(MODELS[name]())
    data = [tensors("pixel_values" if name == "hub" else "x", (3, 16, 16), 8, seed) for seed in range(3)]
    return Task(name, model, *data)


def table_of(task: Task) -> LayerTable:
    return survey(task.model, task.workload_inputs(1, None))


class Drawn(FirstOnes):
    """Keeps structures that are drawn by the group's name."""

    def kept(self, group: Group, prune: Prune, _seed: int) -> Tensor:
        draw = torch.Generator().manual_seed(len(group.name) + group.size)
        return torch.randperm(group.size, generator=draw)[: prune.keep].sort().values


def zero(parameter: Tensor, item: Slice, lost: list[int], axis: int) -> None:
    parameter.data.index_fill_(axis, torch.tensor(item.positions(lost)), 0.0)


def masked_twin(model: nn.Module, group: Group, lost: list[int]) -> None:
    """Zero all weights that make, carry or read the lost channels."""
    for item in group.producers:
        module = model.get_submodule(item.name)
        for parameter in module.parameters():
            zero(parameter, item, lost, 0)
    for item in group.carriers:
        owner, leaf = parameter_at(model, item.name)
        found = getattr(owner, leaf)
        for parameter in [found] if isinstance(found, nn.Parameter) else found.parameters():
            zero(parameter, item, lost, item.axis)
    for item in group.consumers:
        zero(model.get_submodule(item.name).weight, item, lost, 1)


def half(table: LayerTable) -> Plan:
    return Plan({group.name: Prune(group.size // 2, repair=False) for group in table.groups})


def test_groups_are_those_counted_by_hand(task: Task, table: LayerTable) -> None:
    expected = {f"{name}/channels": size for name, size in EXPECTED[task.name].items()}
    assert {group.name: group.size for group in table.groups} == expected
    assert {group.kind for group in table.groups} == {"channels"}


def test_removed_is_the_masked_twin_in_any_single_group(task: Task, table: LayerTable) -> None:
    inputs = task.test.batch(range(4))[0]
    choices = Drawn(task.model)
    for group in table.groups:
        prune = Prune(group.size - group.size // 3, repair=False)
        kept = choices.kept(group, prune, 0).tolist()
        twin = copy.deepcopy(task.model)
        masked_twin(twin, group, [s for s in range(group.size) if s not in kept])
        small = shape(task.model, Plan({group.name: prune}), table, choices)
        torch.testing.assert_close(run(small, inputs), run(twin, inputs), rtol=1e-4, atol=1e-5)
        assert not torch.allclose(run(twin, inputs), run(task.model, inputs), atol=1e-4), group.name


def test_removed_is_the_masked_twin_in_all_groups_at_once(task: Task, table: LayerTable) -> None:
    inputs = task.test.batch(range(4))[0]
    choices, plan = Drawn(task.model), half(table)
    twin = copy.deepcopy(task.model)
    for group in table.groups:
        kept = choices.kept(group, plan.groups[group.name], 0).tolist()
        masked_twin(twin, group, [s for s in range(group.size) if s not in kept])
    small = shape(task.model, plan, table, choices)
    torch.testing.assert_close(run(small, inputs), run(twin, inputs), rtol=1e-4, atol=1e-5)


def test_sizes_are_what_the_plan_says(task: Task, table: LayerTable) -> None:
    small = shape(task.model, half(table), table, Drawn(task.model))
    for effective in effective_layers(half(table), table):
        module = small.get_submodule(effective.layer.name)
        assert tuple(module.weight.shape) == effective.shape, effective.layer.name


def test_the_smaller_network_trains(task: Task, table: LayerTable) -> None:
    small = shape(task.model, half(table), table, Drawn(task.model)).train()
    inputs, targets = task.train.batch(range(8))
    output = small(**inputs)
    nn.functional.cross_entropy(output if isinstance(output, Tensor) else output.logits, targets).backward()
    assert all(parameter.grad is not None for parameter in small.parameters())


def test_the_surveyed_model_is_left_as_it_was() -> None:
    model = built("mobile").model.train()
    before = copy.deepcopy(model.state_dict())
    groups(model, {"x": torch.randn(2, 3, 16, 16)})
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_flattened_channels_own_neighbouring_columns() -> None:
    found = {g.name: g for g in table_of(built("flat")).groups}["b/channels"]
    assert found.consumers == (Slice("hidden", width=16),)


def test_scattered_channels_are_written_out() -> None:
    (found,) = table_of(built("halves")).groups
    pairs = tuple(p for i in range(6) for p in (i, i + 6))
    assert found.producers == (Slice("a", 2, index=pairs), Slice("twice"))
    assert found.consumers == (Slice("twice"), Slice("head", 2, index=pairs))


def test_padded_shortcuts_shift_the_stream() -> None:
    stream = table_of(built("option-A")).groups[0]
    assert [(s.name, s.offset) for s in stream.producers] == [
        ("stem.0", 0),
        ("blocks.0.b.0", 0),
        ("blocks.1.b.0", 2),
        ("blocks.2.b.0", 2),
        ("blocks.3.b.0", 4),
    ]


class Wrap(nn.Module):
    """Two convolutions with something between them, and a pooled linear behind."""

    def __init__(self, between: Callable[[Tensor], Tensor], into: int = 8, groups: int = 1) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(into, 4, 1, groups=groups)
        self.head = nn.Linear(4, CLASSES)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.b(self.between(self.a(x))).mean((2, 3)))


@pytest.mark.parametrize(
    ("between", "into", "grouped"),
    [
        (lambda x: x.softmax(1), 8, 1),
        (lambda x: x - x.mean(1, keepdim=True), 8, 1),
        (lambda x: F.layer_norm(x, x.shape[1:]), 8, 1),
        (lambda x: F.group_norm(x, 2), 8, 1),
        (lambda x: x[:, :4], 4, 1),
        (lambda x: x.flip(1), 8, 1),
        (lambda x: x.reshape(x.size(0), 8, 256).view(x.size(0), 8, 16, 16), 8, 1),
        (lambda x: x * torch.arange(8.0)[:, None, None], 8, 1),
        (lambda x: F.pixel_shuffle(x, 2), 2, 1),
        (lambda x: x, 8, 2),
    ],
    ids=[
        "softmax",
        "mean over channels",
        "layer norm",
        "group norm",
        "slice",
        "unknown operation",
        "sizes in the code",
        "constant",
        "pixel shuffle",
        "grouped",
    ],
)
def test_what_mixes_or_counts_channels_keeps_them(between: Callable[[Tensor], Tensor], into: int, grouped: int) -> None:
    found = groups(Wrap(between, into, grouped).eval(), {"x": torch.randn(2, 3, 16, 16)})
    names = [group.name for group in found]
    assert "a/channels" not in names or found[0].size < 8
    assert names[-1:] == ([] if grouped > 1 else ["b/channels"])  # what comes after is still offered


def test_a_slice_leaves_the_channels_behind_it() -> None:
    (found, _behind) = groups(Wrap(lambda x: x[:, 3:], 5).eval(), {"x": torch.randn(1, 3, 8, 8)})
    assert (found.size, found.producers[0], found.consumers[0]) == (5, Slice("a", offset=3), Slice("b"))


def test_channels_that_are_answered_stay() -> None:
    class Answers(Wrap):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            hidden = self.a(x)
            return self.head(self.b(hidden).mean((2, 3))), hidden

    found = groups(Answers(nn.Identity()).eval(), {"x": torch.randn(1, 3, 8, 8)})
    assert [group.name for group in found] == ["b/channels"]


def test_weights_that_are_shared_stay() -> None:
    model = Wrap(nn.Conv2d(8, 8, 1))
    model.extra = nn.Conv2d(8, 8, 1)
    model.extra.weight = model.between.weight
    found = groups(model.eval(), {"x": torch.randn(1, 3, 8, 8)})
    assert [group.name for group in found] == ["b/channels"]


def test_a_model_that_cannot_be_traced_has_no_groups() -> None:
    branches = Wrap(lambda x: x * 2 if float(x.sum()) > 0 else x).eval()
    assert groups(branches, {"x": torch.randn(1, 3, 8, 8)}) == []
    assert find_groups(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), {"input": torch.randn(1, 4)}) == ()
