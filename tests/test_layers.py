"""Oracle: the table of conftest, whose names are written by hand; and the JSON round trip."""

from __future__ import annotations

import json

import pytest

from autocompress.errors import ModelError, SpaceError
from autocompress.layers import LayerTable


def test_json_round_trip_gives_an_equal_table(table):
    assert LayerTable.from_json(json.loads(json.dumps(table.to_json()))) == table


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
