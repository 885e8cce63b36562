"""Oracles: building the same class with the same seed, and `reset_parameters` of each module."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from autocompress.errors import ModelError
from autocompress.learn.untrained import untrained
from tests import tiny


@pytest.mark.parametrize("family", [*tiny.FAMILIES, "gpt2"])
def test_a_transformer_is_built_from_its_config(family: str) -> None:
    model = tiny.build_any(family)
    fresh = untrained(model, 5)
    torch.manual_seed(5)
    wanted = type(model)(model.config).state_dict()
    assert all(torch.equal(wanted[name], value) for name, value in fresh.state_dict().items())
    assert not fresh.training
    assert fresh.config is not model.config


def test_tied_weights_stay_tied() -> None:
    fresh = untrained(tiny.build_any("gpt2"), 0)
    assert fresh.lm_head.weight is fresh.transformer.wte.weight


class Mixed(nn.Module):
    """Leaves of several kinds, one with running statistics, one whose reset is private."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.table = nn.Embedding(5, 4)
        self.attention = nn.MultiheadAttention(4, 2)
        self.head = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.LayerNorm(4))


def test_other_modules_are_reset_leaf_by_leaf() -> None:
    model = tiny.stirred(Mixed(), amount=1.0)
    model.norm.running_mean += 7
    fresh = untrained(model, 2)
    twin = copy.deepcopy(model)
    torch.manual_seed(2)
    for module in (twin.conv, twin.norm, twin.table):
        module.reset_parameters()
    twin.attention._reset_parameters()
    twin.attention.out_proj.reset_parameters()
    twin.head[0].reset_parameters()
    twin.head[2].reset_parameters()
    assert all(torch.equal(twin.state_dict()[name], value) for name, value in fresh.state_dict().items())
    assert not fresh.norm.running_mean.any()


@pytest.mark.parametrize("make", [tiny.mlp, tiny.bert])
def test_the_seed_decides_and_nothing_else_changes(make: object) -> None:
    model = make()  # type: ignore[operator]
    before = copy.deepcopy(model.state_dict())
    torch.manual_seed(0)
    wanted = torch.rand(3)
    torch.manual_seed(0)
    first, again, other = (untrained(model, seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.rand(3), wanted)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


class Bare(nn.Module):
    """Owns a parameter that nobody knows how to draw."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(2, 2)
        self.token = nn.Parameter(torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


def test_a_parameter_without_reset_is_named() -> None:
    with pytest.raises(ModelError, match=r"Sequential cannot be built untrained: module 0 \(Bare\) owns token"):
        untrained(nn.Sequential(Bare()), 0)
    with pytest.raises(ModelError, match=r"module \(the model\) \(Bare\) owns token"):
        untrained(Bare(), 0)


def test_a_config_that_builds_another_architecture_is_refused() -> None:
    model = tiny.bert()
    model.classifier = nn.Linear(32, 7)
    with pytest.raises(ModelError, match=r"gives classifier.weight the shape \(3, 32\), but the model has \(7, 32\)"):
        untrained(model, 0)


def test_a_constructor_that_fails_is_told() -> None:
    class Picky(nn.Module):
        def __init__(self, config: object, more: int) -> None:
            super().__init__()
            self.config, self.linear = config, nn.Linear(2, more)

        def save_pretrained(self) -> None: ...

    with pytest.raises(ModelError, match="Picky cannot be built untrained from its config: TypeError"):
        untrained(Picky({}, 2), 0)
