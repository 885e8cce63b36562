"""Oracles: the module's own forward, with inputs or outputs picked by hand; norms of torch on fewer features."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from autocompress.weights import (
    Stand,
    keep_carried,
    keep_columns,
    keep_rows,
    linearized,
    matrix_of,
    retie,
    set_weight,
    tied_weights,
    untie,
    weight_of,
    window_of,
)
from tests.tiny import _one_thread, gpt2, llama  # noqa: F401  (a fixture)

ROWS = [0, 2, 3]


def conv1d() -> nn.Module:
    from transformers.pytorch_utils import Conv1D

    module = Conv1D(5, 4)
    with torch.no_grad():
        module.bias.normal_()
    return module


@pytest.mark.parametrize(
    ("module", "shape", "matrix", "window"),
    [
        (nn.Linear(4, 5), (5, 4), (5, 4), 1),
        (conv1d(), (5, 4), (5, 4), 1),
        (nn.Conv2d(4, 6, (3, 2)), (6, 4, 3, 2), (6, 24), 6),
        (nn.Conv2d(4, 6, 1, groups=2), (6, 2, 1, 1), (6, 2), 1),
        (nn.Embedding(7, 3), (7, 3), (7, 3), 1),
    ],
    ids=["linear", "conv1d", "convolution", "grouped", "embedding"],
)
def test_a_weight_has_its_outputs_first(module: nn.Module, shape: tuple, matrix: tuple, window: int) -> None:
    assert tuple(weight_of(module).shape) == shape
    assert tuple(matrix_of(module).shape) == matrix
    assert window_of(module) == window


def test_a_conv1d_becomes_the_linear_that_computes_the_same() -> None:
    model, x = nn.Sequential(conv1d()).eval(), torch.randn(3, 4)
    expected = model(x)
    linear = linearized(model)[0]
    assert type(linear) is nn.Linear
    assert not linear.training
    torch.testing.assert_close(linear(x), expected)


def test_kept_rows_are_the_outputs_that_were_there() -> None:
    for module, x in ((nn.Linear(4, 5), torch.randn(2, 4)), (nn.Conv2d(4, 5, 3), torch.randn(2, 4, 6, 6))):
        expected = module(x)[:, ROWS]
        keep_rows(module, ROWS)
        torch.testing.assert_close(module(x), expected)
        assert weight_of(module).shape[0] == 3


def test_kept_columns_read_the_inputs_that_are_left() -> None:
    linear, x = nn.Linear(4, 5), torch.randn(2, 4)
    masked = x.clone()
    masked[:, 1] = 0
    expected = linear(masked)
    keep_columns(linear, ROWS)
    torch.testing.assert_close(linear(x[:, ROWS]), expected)
    assert (linear.in_features, linear.out_features) == (3, 5)


def test_columns_of_a_convolution_are_whole_windows() -> None:
    conv, x = nn.Conv2d(4, 5, (3, 2)), torch.randn(2, 4, 6, 6)
    masked = x.clone()
    masked[:, 1] = 0
    expected = conv(masked)
    keep_columns(conv, [c * 6 + i for c in ROWS for i in range(6)])
    torch.testing.assert_close(conv(x[:, ROWS]), expected)
    assert conv.in_channels == 3


def test_columns_of_an_embedding_are_its_features() -> None:
    table, ids = nn.Embedding(7, 4, padding_idx=0), torch.tensor([1, 5, 0])
    expected = table(ids)[:, ROWS]
    keep_columns(table, ROWS)
    assert torch.equal(table(ids), expected)
    assert (table.embedding_dim, table.num_embeddings, table.padding_idx) == (3, 7, 0)


def test_solved_columns_take_the_place_of_the_old_ones() -> None:
    linear, solved = nn.Linear(4, 5), torch.randn(5, 3)
    keep_columns(linear, ROWS, solved)
    assert torch.equal(linear.weight, solved)


@pytest.mark.parametrize(
    ("module", "x"),
    [
        (nn.BatchNorm2d(4), torch.randn(2, 4, 3, 3)),
        (nn.BatchNorm2d(4, affine=False), torch.randn(2, 4, 3, 3)),
        (nn.Conv2d(4, 4, 3, groups=4), torch.randn(2, 4, 5, 5)),
        (nn.PReLU(4), torch.randn(2, 4, 5)),
        (nn.GroupNorm(4, 4), torch.randn(2, 4, 5)),
    ],
    ids=["batchnorm", "plain_batchnorm", "depthwise", "prelu", "groupnorm"],
)
def test_what_is_carried_is_each_channel_by_itself(module: nn.Module, x: torch.Tensor) -> None:
    module(x)  # gives running statistics something to be wrong about
    expected = module.eval()(x)[:, ROWS]
    keep_carried(module, ROWS)
    torch.testing.assert_close(module(x[:, ROWS]), expected)


def test_a_layer_norm_is_taken_over_what_is_left() -> None:
    norm, x = nn.LayerNorm(4), torch.randn(2, 4)
    with torch.no_grad():
        norm.weight.normal_()
        norm.bias.normal_()
    weight, bias = norm.weight[ROWS], norm.bias[ROWS]
    keep_carried(norm, ROWS)
    torch.testing.assert_close(norm(x[:, ROWS]), nn.functional.layer_norm(x[:, ROWS], (3,), weight, bias, norm.eps))


def test_what_was_frozen_stays_frozen() -> None:
    linear = nn.Linear(4, 5).requires_grad_(False)
    keep_rows(linear, ROWS)
    set_weight(linear, torch.zeros(2, 2))
    assert not linear.weight.requires_grad
    assert not linear.bias.requires_grad


def test_shared_weights_are_found_and_shared_again() -> None:
    model = gpt2()
    ties = tied_weights(model)
    assert ties == (("transformer.wte", "lm_head"),)
    for name in ties[0]:
        keep_columns(model.get_submodule(name), range(8))
    assert not tied_weights(model)
    retie(model, ties)
    assert model.lm_head.weight is model.transformer.wte.weight
    assert tied_weights(llama(tie_word_embeddings=False)) == ()


@pytest.mark.parametrize("gives", ["input", "input-pair", "constant", "constant-pair"])
def test_a_stand_gives_what_it_says(gives: str) -> None:
    value, x = torch.arange(3.0), torch.randn(2, 4, 3)
    stand = Stand(gives, value if gives.startswith("constant") else None)
    expected = x if gives.startswith("input") else value
    for result in (stand(x, "mask", past=None), stand(hidden_states=x)):
        if gives.endswith("-pair"):
            result, nothing = result
            assert nothing is None
        assert torch.equal(result, expected)
    assert len(list(stand.parameters())) == gives.startswith("constant")


@pytest.mark.parametrize("name", ["transformer.wte", "lm_head"])
def test_an_untied_module_has_an_equal_weight_of_its_own(name: str) -> None:
    model = gpt2()
    untie(model, [name])
    head, rows = model.lm_head.weight, model.transformer.wte.weight
    assert torch.equal(head, rows)
    assert head is not rows
    assert not tied_weights(model)
