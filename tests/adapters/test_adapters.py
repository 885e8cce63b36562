"""Oracles: the sizes in the model's config, the shapes of the weights that a group names, and ways to run a decoder."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from autocompress.adapters import FAMILIES as DESCRIBED
from autocompress.adapters import find_groups, find_norms, settle
from autocompress.adapters.cut import keep_structures
from autocompress.layers import Group
from autocompress.weights import linearized, matrix_of
from tests.tiny import ALL_FAMILIES, _one_thread, any_task, bert, build_any, cnn, llama, mlp, run, task_of  # noqa: F401  (a fixture)

KINDS = ["heads", "neurons", "attention", "feed_forward", "block"]


def groups_of(model: nn.Module, **changes: object) -> tuple[Group, ...]:
    return find_groups(model, task_of(model, **changes).workload_inputs(2, None))


@pytest.mark.parametrize("family", [*ALL_FAMILIES, "mistral", "qwen2"])
def test_groups_are_what_the_config_says(family: str) -> None:
    groups = groups_of(build_any(family, layers=3))
    assert [group.kind for group in groups] == [*KINDS * 3, "hidden"]
    decoder = family in ("llama", "mistral", "qwen2")
    sizes = {"heads": 3 if decoder else 4, "neurons": 64, "hidden": 48 if decoder else 32}
    assert all(group.size == sizes.get(group.kind, 1) for group in groups)


@pytest.mark.parametrize(
    ("family", "names"),
    [
        ("bert", ["bert.encoder.layer.0.attention/heads", "bert.encoder.layer.0.intermediate.dense/neurons",
                  "bert.encoder.layer.0/attention", "bert.encoder.layer.0/feed_forward", "bert.encoder.layer.0",
                  "bert/hidden"]),
        ("distilbert", ["distilbert.transformer.layer.0.attention/heads",
                        "distilbert.transformer.layer.0.ffn.lin1/neurons", "distilbert.transformer.layer.0/attention",
                        "distilbert.transformer.layer.0/feed_forward", "distilbert.transformer.layer.0",
                        "distilbert/hidden"]),
        ("gpt2", ["transformer.h.0.attn/heads", "transformer.h.0.mlp.c_fc/neurons", "transformer.h.0/attention",
                  "transformer.h.0/feed_forward", "transformer.h.0", "transformer/hidden"]),
        ("llama", ["model.layers.0.self_attn/heads", "model.layers.0.mlp.up_proj/neurons", "model.layers.0/attention",
                   "model.layers.0/feed_forward", "model.layers.0", "model/hidden"]),
    ],
)  # fmt: skip
def test_names(family: str, names: list[str]) -> None:
    assert [group.name for group in groups_of(build_any(family, layers=1))] == names


def spanned(group: Group, role: str) -> dict[str, list[int]]:
    """Positions of all structures, per weight."""
    found: dict[str, list[int]] = {}
    for item in getattr(group, role):
        found.setdefault(item.name, []).extend(item.positions(range(group.size)))
    return found


@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_structures_own_every_row_and_column_once(family: str) -> None:
    model = build_any(family)
    for group in groups_of(model):
        for name, positions in spanned(group, "producers").items():
            module = model.get_submodule(name)
            size = matrix_of(module).shape[1 if isinstance(module, nn.Embedding) else 0]
            assert sorted(positions) == list(range(size)), name
        for name, positions in spanned(group, "consumers").items():
            assert sorted(positions) == list(range(matrix_of(model.get_submodule(name)).shape[1])), name


@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_the_last_removed_layer_writes_the_stream(family: str) -> None:
    groups = groups_of(build_any(family))
    writers = {item.name for item in groups[-1].producers}
    for group in groups:
        if group.removable:
            assert group.removes[-1] in writers
            assert all(stub.name.startswith(group.block) for stub in group.stubs)


def test_a_key_value_head_takes_its_query_heads_along() -> None:
    heads = groups_of(llama(1))[0]
    assert [item.width for item in heads.producers] == [16, 8, 8]
    assert [item.width for item in heads.consumers] == [16]


def test_a_fused_projection_has_three_slices() -> None:
    heads = groups_of(build_any("gpt2", 1))[0]
    assert [(item.offset, item.width) for item in heads.producers] == [(0, 8), (32, 8), (64, 8)]
    assert {item.name for item in heads.producers} == {"transformer.h.0.attn.c_attn"}


@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_norms_are_those_whose_output_only_their_readers_see(family: str) -> None:
    """The oracle runs the model: scaling the norm's output and dividing the readers' inputs by it changes nothing."""
    task = any_task(family)
    model, inputs = task.model, task.validation.batch(range(4))[0]
    norms = find_norms(model)
    assert bool(norms) is (family in ("vit", "gpt2", "llama"))
    scaled = copy.deepcopy(model)
    for norm in set(norms.values()):
        scaled.get_submodule(norm).register_forward_hook(lambda _m, _a, output: output * 3)
    for layer in norms:
        scaled.get_submodule(layer).register_forward_pre_hook(lambda _m, args: (args[0] / 3, *args[1:]))
    with torch.inference_mode():
        torch.testing.assert_close(scaled(**inputs).logits, run(model, inputs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("model", [mlp(), cnn(), nn.Linear(16, 2)], ids=["mlp", "cnn", "linear"])
def test_other_models_have_no_transformer_groups(model: nn.Module) -> None:
    assert not [group for group in find_groups(model, {}) if group.kind != "channels"]
    assert find_norms(model) == {}


@pytest.mark.parametrize("flag", ["is_decoder", "add_cross_attention"])
def test_an_encoder_that_decodes_is_refused(flag: str) -> None:
    model = bert()
    setattr(model.config, flag, True)
    assert groups_of(model) == ()


def test_layers_of_several_kinds_stay_whole() -> None:
    """Their cache has a sliding window in some places, which no other layer can take."""
    kinds = ["full_attention", "sliding_attention"]
    model = llama(2, "Qwen2", layer_types=kinds, use_sliding_window=True, sliding_window=4)
    assert {group.kind for group in groups_of(model)} == {"heads", "neurons", "hidden"}


def test_names_are_unique() -> None:
    names = [group.name for group in groups_of(build_any("bert", layers=3))]
    assert len(set(names)) == len(names)


def headed(name: str, **changes: object) -> nn.Module:
    """A tiny model of transformers with another head."""
    import transformers

    family = next(f for f in ("DistilBert", "Bert", "Roberta", "GPT2", "Llama") if name.startswith(f))
    base = build_any(family.lower(), layers=1).config
    return getattr(transformers, name)(type(base)(**{**base.to_dict(), **changes})).eval()


@pytest.mark.parametrize(
    ("name", "reader"),
    [
        ("BertForTokenClassification", "classifier"),
        ("RobertaForTokenClassification", "classifier"),
        ("DistilBertForTokenClassification", "classifier"),
        ("GPT2ForSequenceClassification", "score"),
        ("GPT2ForTokenClassification", "classifier"),
        ("LlamaForSequenceClassification", "score"),
        ("LlamaForQuestionAnswering", "qa_outputs"),
    ],
)
def test_the_head_of_a_task_reads_the_stream(name: str, reader: str) -> None:
    group = groups_of(headed(name))[-1]
    assert group.kind == "hidden"
    assert group.consumers[-1].name == reader


@pytest.mark.parametrize(
    "name", ["BertModel", "BertForMaskedLM", "DistilBertForMaskedLM", "GPT2Model", "GPT2DoubleHeadsModel"]
)
def test_the_stream_is_not_offered_where_something_unknown_handles_it(name: str) -> None:
    """An answer of hidden width, a head that shares the embedding behind another layer, a second head."""
    assert "hidden" not in {group.kind for group in groups_of(headed(name))}


def test_a_norm_that_the_family_does_not_know_withdraws_the_stream() -> None:
    model = bert()
    model.bert.pooler = nn.Sequential(nn.LayerNorm(32), model.bert.pooler)
    assert "hidden" not in {group.kind for group in groups_of(model)}


def test_the_trial_cut_changes_nothing() -> None:
    inputs = task_of(model := build_any("gpt2")).workload_inputs(2, None)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert find_groups(model.train(), inputs)
    assert model.training
    assert model.lm_head.weight is model.transformer.wte.weight
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_every_family_tells_its_paths_right() -> None:
    """Each path of each description exists in the tiny models, but for what only some models have."""
    optional = {"embeddings.mask_token", "embeddings.token_type_embeddings"}
    for family in DESCRIBED:
        names = {"BertLayer": "bert", "TransformerBlock": "distilbert", "ViTLayer": "vit", "GPT2Block": "gpt2"}
        model = build_any(names.get(family.blocks[0], "llama"), layers=1)
        block = next(m for m in model.modules() if type(m).__name__ in family.blocks)
        base = next(iter(model.children()))
        for path in (*family.linears, *family.norms, *(stub.name for stub in family.attention_stubs)):
            block.get_submodule(path)
        known = {*dict(base.named_modules()), *dict(base.named_parameters())}
        wanted = {*family.stream.writers, *family.stream.norms, *family.stream.parameters}
        assert wanted - optional <= known


def test_settling_counts_the_attentions_that_are_left() -> None:
    model = linearized(build_any("gpt2", layers=3))
    model.transformer.h[0] = nn.Identity()
    heads = next(g for g in groups_of(build_any("gpt2", 3)) if g.name == "transformer.h.1.attn/heads")
    keep_structures(model, [(heads, [1, 3])])
    settle(model)
    attentions = [block.attn for block in model.transformer.h[1:]]
    assert [attention.layer_idx for attention in attentions] == [0, 1]
    assert [attention.split_size for attention in attentions] == [16, 32]


def test_the_page_shows_the_real_file() -> None:
    root = Path(__file__).resolve().parents[2]
    page = (root / "docs" / "adapters.md").read_text(encoding="utf-8")
    shown = re.findall(r"```python\n(.*?)```", page, flags=re.S)
    assert shown == [(root / "autocompress" / "adapters" / "distilbert.py").read_text(encoding="utf-8")]
    for field in re.findall(r"`([a-z_]+)`(?=[,:])", page.split("## Writing one")[1].split("##")[0]):
        assert field in DESCRIBED[0].__dataclass_fields__


class TransformerBlock(torch.nn.Module):
    """A block of somebody's own, named as DistilBERT's."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = torch.nn.Linear(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.mix(x)


def test_a_strangers_block_of_a_known_name_has_no_groups() -> None:
    model = torch.nn.Sequential(TransformerBlock(), TransformerBlock(), torch.nn.Linear(16, 3))
    assert find_groups(model, {"input": torch.zeros(2, 16)}) == ()
