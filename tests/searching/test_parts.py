"""Oracles: parts and shared variables listed by hand, and all combinations of a space counted out."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from autocompress.layers import Group, Stub
from autocompress.plan import Plan
from autocompress.searching.parts import MOST_SHARED, merged, parts_of, touched_layers

HEADS, NEURONS = {"heads": [1.0, 0.5]}, {"neurons": [1.0, 0.5, 0.25]}
BITS = ["fp32", "int8-dynamic", "int8"]


def space_of(make_space, **rules):
    return make_space(rules)


def choices(parts):
    """Every combination of options, under every combination of shared values."""
    for shared, *options in itertools.product(parts.shared, *(part.options for part in parts.parts)):
        yield merged(parts.base, shared, *options)


def test_a_block_chooses_by_itself_and_its_first_option_leaves_all_as_it_is(make_space):
    space = space_of(
        make_space, groups={**HEADS, **NEURONS}, layers=[{"match": "net.*", "precision": BITS, "share": "block"}]
    )
    parts = parts_of(space)
    assert [part.name for part in parts.parts] == ["net.0", "net.1"]
    assert [len(part.options) for part in parts.parts] == [2 * 3 * 3] * 2
    assert parts.shared == ({},)
    assert set(parts.parts[0].options[0].values()) == {0}
    assert space.decode(merged(parts.base, *(part.options[0] for part in parts.parts))) == Plan()


def test_a_removed_block_is_one_option_more(make_space):
    parts = parts_of(space_of(make_space, groups=HEADS, blocks={"remove": True}))
    for part, block in zip(parts.parts, ("net.0", "net.1"), strict=True):
        heads, remove = f"keep:{block}.attention/heads", f"remove:{block}"
        assert part.options == ({remove: 0, heads: 0}, {remove: 0, heads: 1}, {remove: 1})


def test_what_reaches_into_several_parts_is_shared(make_space):
    parts = parts_of(space_of(make_space, groups=HEADS, layers=[{"kind": "linear", "precision": BITS, "share": "all"}]))
    assert parts.shared == tuple({"precision:rule 0": level} for level in range(3))
    assert [part.options for part in parts.parts] == [
        ({f"keep:{block}.attention/heads": 0}, {f"keep:{block}.attention/heads": 1}) for block in ("net.0", "net.1")
    ]


def test_layers_outside_the_blocks_are_parts_of_their_own(make_space):
    parts = parts_of(space_of(make_space, layers=[{"precision": ["fp32", "int8", "int8-weights"]}]))
    assert [part.name for part in parts.parts] == ["embed", "net.0", "net.1", "conv", "classifier"]


SPACES = {
    "blocks": {"groups": {**HEADS, **NEURONS}, "blocks": {"remove": True}},
    "shared": {
        "groups": HEADS,
        "blocks": {"remove": True},
        "layers": [{"kind": "linear", "precision": BITS, "rank": [1.0, 0.25], "share": "all"}],
    },
}


@pytest.mark.parametrize("rules", SPACES.values(), ids=SPACES)
def test_the_combinations_of_the_parts_are_all_plans_of_the_space(make_space, rules):
    """Oracle: every value of every variable, counted out."""
    space = make_space(rules)
    names, levels = zip(*((v.name, range(len(v.levels))) for v in space.structure), strict=True)
    every = {space.decode(dict(zip(names, values, strict=True))) for values in itertools.product(*levels)}
    assert {space.decode(values) for values in choices(parts_of(space))} == every


def test_more_options_than_can_be_combined_are_chosen_scope_by_scope(make_space):
    """Six linears of a block with six options each; rank and bits of one layer stay together."""
    parts = parts_of(space_of(make_space, layers=[{"match": "net.*", "precision": BITS, "rank": [1.0, 0.25]}]))
    assert len(parts.parts) == 12
    assert {len(part.options) for part in parts.parts} == {6}
    assert all(set(o) == {f"precision:{p.name}", f"rank:{p.name}"} for p in parts.parts for o in p.options)


def test_many_shared_variables_of_one_kind_move_together(make_space):
    """Four rules with four levels each would be 256 combinations."""
    rules = [
        {"match": f"net.*.{name}", "precision": [*BITS, "int4-weights"], "share": "all"}
        for name in ("q", "k", "v", "o")
    ]
    parts = parts_of(space_of(make_space, layers=rules))
    assert [set(values.values()) for values in parts.shared] == [{0}, {1}, {2}, {3}]
    assert all(len(values) == 4 for values in parts.shared)


def test_shared_combinations_are_no_more_than_the_program_takes(make_space):
    ranks = [1.0, 0.5, 0.25, 0.125, 0.0625]
    rules = [
        {"match": f"net.*.{name}", "precision": BITS[:bits], "rank": ranks[:levels], "share": "all"}
        for name, bits, levels in (("q", 2, 4), ("up", 3, 5), ("down", 3, 3))
    ]
    parts = parts_of(space_of(make_space, layers=rules))
    assert 1 < len(parts.shared) <= MOST_SHARED
    assert set(parts.shared[0].values()) == {0}


def test_zeros_and_recipes_are_left_alone(make_space):
    zeros, recipe = {"sparsity": [0.0, 0.5]}, {"recipe": "gradual", "sparsity": 0.5, "steps": 9}
    parts = parts_of(
        space_of(make_space, groups=HEADS, **zeros, learn=[None, recipe], layers=[{"match": "net.*", **zeros}])
    )
    named = {name for values in choices(parts) for name in values if values[name]}
    assert named == {"keep:net.0.attention/heads", "keep:net.1.attention/heads"}
    assert parts.base["learn"] == parts.base["sparsity:all layers"] == 0


def test_removed_attention_goes_with_every_other_choice_of_its_block(make_space, table):
    """Oracle: all plans, counted out; a part of a block that goes leaves the rest of it a choice."""
    attention = [
        Group(f"net.{i}.attention", "attention", 1, block=f"net.{i}", removes=tuple(f"net.{i}.{n}" for n in "qkvo"),
              stubs=(Stub(f"net.{i}.attention"),))
        for i in range(2)
    ]  # fmt: skip
    wider = replace(table, groups=(*table.groups, *attention))
    space = make_space({"groups": {**NEURONS, "remove_attention": True}, "blocks": {"remove": True}}, table=wider)
    plans = {space.decode(values) for values in choices(parts_of(space))}
    names, levels = zip(*((v.name, range(len(v.levels))) for v in space.structure), strict=True)
    assert plans == {space.decode(dict(zip(names, values, strict=True))) for values in itertools.product(*levels)}


def test_touched_layers(make_space):
    rule = {"match": "net.*", "precision": BITS, "share": "block"}
    space = space_of(make_space, groups=HEADS, blocks={"remove": True}, layers=[rule])
    block = {f"net.0.{name}" for name in ("q", "k", "v", "o", "up", "down")}
    assert touched_layers("remove:net.0", space) == touched_layers("precision:net.0 (rule 0)", space) == block
    assert touched_layers("keep:net.0.attention/heads", space) == {f"net.0.{name}" for name in "qkvo"}


def test_later_choices_win():
    assert merged({"a": 1, "b": 2}, {"b": 3}, {}) == {"a": 1, "b": 3}


def test_a_head_decides_with_the_embedding_whose_weight_it_shares(make_space):
    space = make_space({"layers": [{"match": "[ec]*", "precision": ["fp32", "int8", "int8-weights"]}]})
    layers = [replace(la, shares="embed") if la.name == "classifier" else la for la in space.table.layers]
    together = parts_of(replace(space, table=replace(space.table, layers=tuple(layers))))
    assert [(part.name, len(part.options)) for part in parts_of(space).parts] == [
        ("embed", 2), ("conv", 2), ("classifier", 2),
    ]  # fmt: skip
    assert [(part.name, len(part.options)) for part in together.parts] == [("classifier", 4), ("conv", 2)]
