"""Oracle: the table of conftest, whose names are written by hand; and the JSON round trip."""

from __future__ import annotations

import json

import pytest

from autocompress.errors import ModelError, SpaceError
from autocompress.layers import Group, Layer, LayerTable, Slice, Stub


def test_json_round_trip_gives_an_equal_table(table):
    assert LayerTable.from_json(json.loads(json.dumps(table.to_json()))) == table


def test_every_kind_of_slice_stub_and_norm_survives_json(table):
    made = (Slice("conv", index=(3, 1, 2, 0), width=2), Slice("token", axis=2), Slice("fused", 2, offset=8))
    extra = Group("net/hidden", "hidden", 2, made[:1], made[2:], made[1:2])
    part = Group("net.0/attention", "attention", 1, block="net.0", removes=("a",), stubs=(Stub("a", "constant-pair"),))
    full = LayerTable(table.layers, (*table.groups, extra, part), table.total_params, {"net.0.q": "net.0.norm"})
    assert LayerTable.from_json(json.loads(json.dumps(full.to_json()))) == full


@pytest.mark.parametrize(
    ("item", "positions"),
    [
        pytest.param(Slice("x"), [2, 0], id="one_each"),
        pytest.param(Slice("x", 3), [6, 7, 8, 0, 1, 2], id="neighbours"),
        pytest.param(Slice("x", 2, offset=10), [14, 15, 10, 11], id="offset"),
        pytest.param(Slice("x", 2, index=(9, 8, 7, 6, 5, 4)), [5, 4, 9, 8], id="written_out"),
    ],
)
def test_positions_of_structures_come_in_their_order(item, positions):
    assert item.positions([2, 0]) == positions


def test_parts_are_removed_as_a_whole_and_structures_counted():
    kinds = ("heads", "neurons", "channels", "hidden", "attention", "feed_forward", "block")
    assert [kind for kind in kinds if Group("g", kind, 1).removable] == ["attention", "feed_forward", "block"]


def test_blocks_are_the_block_groups_in_order(table):
    assert table.blocks == ("net.0", "net.1")


def test_allows_follows_why_not(table):
    assert table.layer("net.0.q").allows("factorize")
    assert not table.layer("embed").allows("factorize")
    assert table.layer("embed").allows("quantize")


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        pytest.param("*.q", ["net.0.q", "net.1.q"], id="suffix"),
        pytest.param("net.1.*", [f"net.1.{n}" for n in ("q", "k", "v", "o", "up", "down")], id="block"),
        pytest.param("classifier", ["classifier"], id="exact_name"),
        pytest.param("net.?.[kv]", ["net.0.k", "net.0.v", "net.1.k", "net.1.v"], id="character_set"),
    ],
)
def test_match_keeps_the_order_of_the_table(table, pattern, names):
    assert [layer.name for layer in table.match(pattern)] == names


def test_match_everything_is_the_whole_table(table):
    assert table.match("*") == table.layers


def test_pattern_that_matches_nothing_raises_with_near_names(table):
    with pytest.raises(SpaceError, match=r"layer pattern '\*clasifier' matches no layer.*did you mean 'classifier'"):
        table.match("*clasifier")


def test_pattern_is_case_sensitive(table):
    with pytest.raises(SpaceError, match="'Classifier' matches no layer"):
        table.match("Classifier")


def test_unknown_layer_and_group_show_near_names(table):
    with pytest.raises(ModelError, match=r"no layer 'net\.0\.dwn'; did you mean 'net\.0\.down'"):
        table.layer("net.0.dwn")
    with pytest.raises(ModelError, match=r"no group 'net\.0\.mlp/neuron'; did you mean 'net\.0\.mlp/neurons'"):
        table.group("net.0.mlp/neuron")
    assert table.group("net.1.mlp/neurons").size == 16


def test_tokens_are_what_the_first_embedding_looks_up() -> None:
    """A classifier of two classes beside two token types scores no tokens; a head over the vocabulary does."""
    words, types = Layer("words", "embedding", (50, 8), 400, 0), Layer("types", "embedding", (2, 8), 16, 0)
    classifier, head = Layer("classifier", "linear", (2, 8), 18, 16), Layer("head", "linear", (50, 8), 450, 400)
    assert not LayerTable((words, types, classifier), (), 434).writes_tokens
    assert LayerTable((words, types, head), (), 866).writes_tokens
    assert not LayerTable((classifier,), (), 18).writes_tokens
