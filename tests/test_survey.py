"""Oracles: closed forms of multiply-adds, hand counts of parameters, and the model left as it was."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor, nn

from autocompress.errors import ModelError
from autocompress.layers import LayerTable
from autocompress.survey import survey
from tests.tiny import ALL_FAMILIES, DECODERS, FAMILIES, any_task, build, cnn, llama, mlp, table_of, task_of


def test_macs_of_linears_are_rows_times_weights() -> None:
    table = survey(mlp(), {"x": torch.zeros(5, 16)})
    assert [la.macs for la in table.layers] == [5 * 16 * 48, 5 * 48 * 3]


def test_macs_of_convolutions_are_positions_times_weights() -> None:
    table = survey(cnn(), {"pixel_values": torch.zeros(2, 1, 8, 8)})
    positions = 2 * 4 * 4  # stride 2
    assert [la.macs for la in table.layers] == [positions * 8 * 9, positions * 12 * 4 * 9, 2 * 12 * 3]
    assert [la.kind for la in table.layers] == ["conv", "conv", "linear"]


def test_macs_of_bert_in_closed_form() -> None:
    length, hidden, neurons = 7, 32, 64
    inputs = {"input_ids": torch.ones(1, length, dtype=torch.int64), "attention_mask": torch.ones(1, length)}
    table = survey(build("bert"), inputs)
    blocks = 2 * length * (4 * hidden * hidden + 2 * hidden * neurons)
    assert sum(la.macs for la in table.layers) == blocks + hidden * hidden + hidden * 3
    assert {la.macs for la in table.layers if la.kind == "embedding"} == {0}


def test_a_layer_called_twice_counts_twice() -> None:
    linear = nn.Linear(4, 4)
    table = survey(nn.Sequential(linear, nn.ReLU(), linear), {"input": torch.zeros(1, 4)})
    assert [la.macs for la in table.layers] == [2 * 16]


def test_parameters_are_counted_with_bias() -> None:
    table = survey(mlp(), {"x": torch.zeros(1, 16)})
    assert [la.params for la in table.layers] == [16 * 48 + 48, 48 * 3 + 3]
    assert table.total_params == 16 * 48 + 48 + 48 * 3 + 3


class Tied(nn.Module):
    """Two linears that share one weight, and one that is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(40, 40)
        self.b = nn.Linear(40, 40)
        self.b.weight = self.a.weight
        self.unused = nn.Linear(40, 40)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("a", "its weight is shared with b"),
        ("b", "its weight is shared with a"),
        ("unused", "its forward was not called on the example inputs"),
    ],
)
@pytest.mark.parametrize("technique", ["factorize", "quantize"])
def test_what_cannot_be_compressed_says_why(name: str, reason: str, technique: str) -> None:
    layer = survey(Tied(), {"x": torch.zeros(1, 40)}).layer(name)
    assert not layer.allows(technique)
    assert layer.why_not[technique] == reason


def test_narrow_linears_and_grouped_convolutions_are_not_factorized() -> None:
    table = table_of(task_of(cnn()))
    assert table.layer("first").allows("factorize")
    assert table.layer("second").why_not["factorize"] == "it is a convolution in 2 groups"
    assert "3 features, under 32" in table.layer("head").why_not["factorize"]
    assert all(la.allows("quantize") for la in table.layers)


@pytest.mark.parametrize("model", [nn.Sequential(nn.ReLU()), nn.Conv1d(1, 1, 1)], ids=["relu", "conv1d"])
def test_a_model_with_nothing_to_compress_is_refused(model: nn.Module) -> None:
    with pytest.raises(ModelError, match=f"{type(model).__name__} has nothing to compress: no Linear, Conv2d or"):
        survey(model, {"input": torch.zeros(1, 1, 1)})


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_it_was(training: bool) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).train(training)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    survey(model, {"input": torch.randn(3, 4)})
    assert model.training is training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not model[0]._forward_hooks


def test_hooks_go_even_when_the_model_fails() -> None:
    model = mlp()
    with pytest.raises(ModelError, match=r"Mlp cannot be called with the inputs x as keywords: .*shape"):
        survey(model, {"x": torch.zeros(1, 7)})
    assert not model.first._forward_hooks


@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_a_table_survives_json(family: str) -> None:
    table = table_of(any_task(family))
    assert LayerTable.from_json(json.loads(json.dumps(table.to_json()))) == table


def test_a_fused_conv1d_is_a_linear_with_its_outputs_first() -> None:
    table = table_of(any_task("gpt2"))
    layer = table.layer("transformer.h.0.attn.c_attn")
    assert (layer.kind, layer.weight_shape) == ("linear", (96, 32))
    assert layer.params == 96 * 32 + 96
    assert layer.macs == table.layer("transformer.h.0.attn.c_proj").macs * 3


@pytest.mark.parametrize("tie", [True, False], ids=["tied", "free"])
def test_a_head_that_shares_the_embedding_may_take_bits_and_a_rank(tie: bool) -> None:
    table = table_of(task_of(llama(tie_word_embeddings=tie)))
    head, rows = table.layer("lm_head"), table.layer("model.embed_tokens")
    assert (head.shares, rows.shares) == ("model.embed_tokens" if tie else "", "")
    assert all(la.allows("quantize") for la in (head, rows))
    assert head.allows("factorize")
    assert head.why_not.get("mask", "") == ("its weight is shared with model.embed_tokens" if tie else "")
    assert rows.why_not.get("factorize", "") == ("its weight is shared with lm_head" if tie else "")


@pytest.mark.parametrize("family", [*ALL_FAMILIES, "mistral", "qwen2"])
def test_norms_belong_to_layers_of_the_table(family: str) -> None:
    table = table_of(any_task(family))
    count = {"vit": 4, "gpt2": 2, **dict.fromkeys(DECODERS[1:], 5)}.get(family, 0)
    assert len(table.norms) == 2 * count
    assert all(
        table.layer(name).block and norm.startswith(table.layer(name).block) for name, norm in table.norms.items()
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_know_their_blocks(family: str) -> None:
    table = table_of(task_of(build(family)))
    assert [sum(la.block == block for la in table.layers) for block in table.blocks] == [6, 6]
    assert table.layers[-1].block == ""


@pytest.mark.parametrize(
    ("module", "inputs", "reason"),
    [
        (nn.Embedding(50, 8), torch.zeros(1, 2, dtype=torch.int64), None),
        (nn.Embedding(50, 8, max_norm=1.0), torch.zeros(1, 2, dtype=torch.int64), "its rows are rescaled where they"),
        (nn.Conv2d(1, 192, 2, 2), torch.zeros(1, 1, 4, 4), None),
        (nn.Conv2d(8, 8, 1), torch.zeros(1, 8, 4, 4), None),
        (nn.Conv2d(2, 2, 1), torch.zeros(1, 2, 4, 4), "two factors of rank 1 are no smaller than its weight"),
        (nn.Conv2d(8, 8, 3, groups=8), torch.zeros(1, 8, 4, 4), "it is a convolution in 8 groups"),
    ],
    ids=["embedding", "max_norm", "patches", "1x1", "tiny", "depthwise"],
)
def test_why_a_weight_takes_no_rank(module: nn.Module, inputs: Tensor, reason: str | None) -> None:
    found = survey(nn.Sequential(module), {"input": inputs}).layers[0].why_not.get("factorize")
    assert (found or "").startswith(reason or "")
    assert (found is None) == (reason is None)
