"""Oracles: the sizes in the model's config, and the shapes of the weights that a group names."""

from __future__ import annotations

import pytest
from torch import nn

from autocompress.adapters import find_groups
from tests.tiny import FAMILIES, bert, build, cnn, mlp


@pytest.mark.parametrize("family", FAMILIES)
def test_groups_are_what_the_config_says(family: str) -> None:
    groups = find_groups(build(family, layers=3))
    kinds = [group.kind for group in groups]
    assert kinds == ["heads", "neurons", "block"] * 3
    assert {(g.kind, g.size, g.width) for g in groups} == {("heads", 4, 8), ("neurons", 64, 1), ("block", 1, 1)}


@pytest.mark.parametrize("family", FAMILIES)
def test_producers_rows_and_consumers_columns_belong_to_the_structures(family: str) -> None:
    model = build(family)
    for group in find_groups(model):
        for name in group.producers:
            assert model.get_submodule(name).weight.shape[0] == group.size * group.width
        for name in group.consumers:
            assert model.get_submodule(name).weight.shape[1] == group.size * group.width
        assert group.name.startswith(group.block)
        model.get_submodule(group.block)


@pytest.mark.parametrize("model", [mlp(), cnn(), nn.Linear(2, 2)], ids=["mlp", "cnn", "linear"])
def test_other_models_have_layers_but_no_groups(model: nn.Module) -> None:
    assert find_groups(model) == ()


def test_a_decoder_keeps_its_blocks() -> None:
    model = bert()
    model.config.is_decoder = True
    assert find_groups(model) == ()


def test_names_are_unique() -> None:
    names = [group.name for group in find_groups(build("bert", layers=3))]
    assert len(set(names)) == len(names)
