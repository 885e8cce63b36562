"""Oracles: shapes and weights worked out by hand on a table by hand, ranks and factors counted with NumPy.

The hand-made table `wide` is in this folder's conftest; `table` is the two-block encoder of the main one.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

from autocompress.errors import PlanError
from autocompress.layers import Layer, LayerTable
from autocompress.plan import (
    INT4_GROUP,
    Factorize,
    GlobalMask,
    LayerPlan,
    Mask,
    Plan,
    Prune,
    Quantize,
    check_plan,
    effective_layers,
    legal_precisions,
    removed_blocks,
    removed_groups,
)
from autocompress.plan.check import EffectiveLayer, factor_size, kept_layers, largest_rank, lies_in, removed_layers

INT8 = LayerPlan(quantize=Quantize("int8"))


def changed(plan: Plan, table: LayerTable) -> dict[str, tuple[int, ...]]:
    """Shapes that are not the dense model's."""
    dense = {layer.name: layer.weight_shape for layer in table.layers}
    return {name: shape for name, shape in kept_layers(plan, table).items() if shape != dense[name]}


def left(plan: Plan, table: LayerTable) -> dict[str, EffectiveLayer]:
    return {effective.layer.name: effective for effective in effective_layers(plan, table)}


def faults(plan: Plan, table: LayerTable) -> list[str]:
    with pytest.raises(PlanError, match=r"^the plan does not fit this model:\n") as caught:
        check_plan(plan, table)
    return [line.strip() for line in str(caught.value).splitlines()[1:]]


# shapes


@pytest.mark.parametrize(
    ("groups", "shapes"),
    [
        pytest.param({}, {}, id="nothing"),
        pytest.param({"f.attn/heads": 4, "stream/hidden": 64}, {}, id="all"),
        pytest.param({"f.attn/heads": 3}, {"f.attn.qkv": (3 * 48, 64), "f.attn.out": (64, 48)}, id="fused_heads"),
        pytest.param({"s.attn/heads": 1}, {"s.attn.q": (32, 64), "s.attn.k": (16, 64), "s.attn.v": (16, 64),
                                           "s.attn.o": (64, 32)}, id="shared_heads"),
        pytest.param({"f.mlp/neurons": 20}, {"f.mlp.up": (20, 64), "f.mlp.down": (64, 20)}, id="neurons"),
        pytest.param({"s.mlp/neurons": 32}, {"s.mlp.gate": (32, 64), "s.mlp.up": (32, 64), "s.mlp.down": (64, 32)},
                     id="gated_neurons"),
        pytest.param(
            {"stream/hidden": 48},
            {"embed": (40, 48), "positions": (20, 48), "f.attn.qkv": (192, 48), "f.attn.out": (48, 64),
             "f.mlp.up": (128, 48), "f.mlp.down": (48, 128), "s.attn.q": (64, 48), "s.attn.k": (32, 48),
             "s.attn.v": (32, 48), "s.attn.o": (48, 64), "s.mlp.gate": (96, 48), "s.mlp.up": (96, 48),
             "s.mlp.down": (48, 96), "head": (10, 48)},
            id="hidden",
        ),
        pytest.param({"first/channels": 5}, {"first": (5, 3, 3, 5), "each": (5, 1, 3, 3), "second": (6, 5, 1, 1)},
                     id="channels_through_a_depthwise_one"),
        pytest.param({"second/channels": 4}, {"second": (4, 8, 1, 1), "third": (5, 10, 3, 3), "flat": (3, 16)},
                     id="channels_at_every_other_input_and_flattened"),
        pytest.param({"first/channels": 1, "second/channels": 2},
                     {"first": (1, 3, 3, 5), "each": (1, 1, 3, 3), "second": (2, 1, 1, 1), "third": (5, 8, 3, 3),
                      "flat": (3, 8)}, id="both_sides_of_one_weight"),
        pytest.param({"stream/hidden": 32, "f.attn/heads": 1, "f.mlp/neurons": 8},
                     {"f.attn.qkv": (48, 32), "f.attn.out": (32, 16), "f.mlp.up": (8, 32), "f.mlp.down": (32, 8)},
                     id="everything_of_a_block"),
    ],
)  # fmt: skip
def test_shapes_after_structure_removal(wide, groups, shapes):
    found = changed(Plan({name: Prune(keep) for name, keep in groups.items()}), wide)
    assert {name: found.get(name, ()) for name in shapes} == shapes
    assert set(found) == set(shapes) or "stream/hidden" in groups


def test_slices_and_shapes_agree(wide):
    """What the slices of a group own, counted one by one, is what a plan that keeps a part leaves."""
    for group in wide.groups:
        if group.removable:
            continue
        keep = max(1, group.size // 2)
        shapes = kept_layers(Plan({group.name: Prune(keep)}), wide)
        for axis, slices in ((0, group.producers), (1, group.consumers)):
            for name in {item.name for item in slices}:
                whole = wide.layer(name)
                at = 1 if whole.kind == "embedding" else axis
                gone = [p for s in slices if s.name == name for p in s.positions(range(keep, group.size))]
                assert len(set(gone)) == len(gone)
                assert shapes[name][at] == whole.weight_shape[at] - len(gone)


def test_whole_parts_leave_shapes_as_they_are(wide):
    assert changed(Plan({"f": Prune(0), "s.attn": Prune(0)}), wide) == {}


# what is removed


@pytest.mark.parametrize(
    ("groups", "blocks", "layers"),
    [
        ((), set(), set()),
        (("f/heads", "f.attn/heads", "stream/hidden"), set(), set()),
        (("f.attn",), set(), {"f.attn.qkv", "f.attn.out"}),
        (("s.mlp",), set(), {"s.mlp.gate", "s.mlp.up", "s.mlp.down"}),
        (("f",), {"f"}, {"f.attn.qkv", "f.attn.out", "f.mlp.up", "f.mlp.down"}),
        (("f", "s.mlp"), {"f"}, {"f.attn.qkv", "f.attn.out", "f.mlp.up", "f.mlp.down", "s.mlp.gate", "s.mlp.up",
                                 "s.mlp.down"}),
    ],
    ids=["nothing", "counted", "attention", "feed_forward", "block", "block_and_part"],
)  # fmt: skip
def test_what_goes_with_a_removed_part(wide, groups, blocks, layers):
    plan = Plan({name: Prune(0) for name in groups})
    assert removed_groups(plan, wide) == {name for name in groups if name in ("f", "f.attn", "s.mlp")}
    assert removed_blocks(plan, wide) == blocks
    assert removed_layers(plan, wide) == layers
    assert {name for name, e in left(plan, wide).items() if e.removed} == layers


def test_a_choice_goes_with_its_layers_but_the_stream_stays(wide):
    gone = removed_layers(Plan({"f": Prune(0)}), wide)
    assert {g.name for g in wide.groups if lies_in(g, gone)} == {
        "f",
        "f.attn",
        "f.mlp",
        "f.attn/heads",
        "f.mlp/neurons",
    }
    attention = removed_layers(Plan({"f.attn": Prune(0)}), wide)
    assert {g.name for g in wide.groups if lies_in(g, attention)} == {"f.attn", "f.attn/heads"}
    assert not any(lies_in(g, frozenset()) for g in wide.groups)


# weights


def test_effective_layers_of_the_empty_plan_are_the_layers(wide):
    for effective, layer in zip(effective_layers(Plan(), wide), wide.layers, strict=True):
        assert effective.layer == layer
        assert effective.shape == layer.weight_shape
        assert (effective.rank, effective.precision, effective.removed) == (None, "fp32", False)
        assert (effective.kept_fraction, effective.weights) == (1.0, math.prod(layer.weight_shape))


def test_effective_weights_by_hand(wide):
    plan = Plan(
        {"f": Prune(0), "s.mlp/neurons": Prune(24), "first/channels": Prune(4)},
        {
            "s.mlp.up": LayerPlan(Factorize(3), Quantize("int4-weights")),
            "first": LayerPlan(Factorize(2, split="spatial")),
            "third": LayerPlan(Factorize(2)),
            "embed": LayerPlan(Factorize(5), Quantize("int8-weights")),
            "s.mlp.gate": LayerPlan(quantize=Quantize("int8"), mask=Mask(0.5)),
        },
    )
    found = left(plan, wide)
    weights = {
        "s.mlp.up": 3 * (24 + 64), "first": 2 * (3 * 3 + 4 * 5), "third": 2 * (5 + 12 * 9), "embed": 5 * (40 + 64),
        "s.mlp.gate": 24 * 64, "s.mlp.down": 64 * 24, "each": 4 * 9, "second": 6 * 4, "f.mlp.up": 0,
    }  # fmt: skip
    assert {name: found[name].weights for name in weights} == weights
    assert (found["s.mlp.up"].kept_fraction, found["s.mlp.up"].rank) == (0.25, 3)
    assert [found[name].precision for name in ("s.mlp.up", "embed", "s.mlp.gate")] == [
        "int4-weights", "int8-weights", "int8",
    ]  # fmt: skip
    assert found["first"].kept_fraction == 0.5
    assert all(found[f"f.{n}"].kept_fraction == 0.0 for n in ("attn.qkv", "attn.out", "mlp.up", "mlp.down"))


@pytest.mark.parametrize(
    ("shape", "split", "rank"),
    [
        ((12, 7), "channel", 7),
        ((7, 12), "channel", 7),
        ((8, 3, 3, 5), "channel", 8),
        ((20, 2, 3, 1), "channel", 6),
        ((8, 3, 3, 5), "spatial", 9),
        ((2, 4, 5, 3), "spatial", 6),
        ((4, 3, 1, 1), "spatial", 3),
    ],
)
def test_the_largest_rank_is_the_rank_of_any_weight_seen_as_the_split_does(shape, split, rank):
    weight = np.random.default_rng(0).normal(size=shape)
    if split == "spatial":  # (out, in, kh, kw): rows are in·kh, columns out·kw
        matrix = weight.transpose(1, 2, 0, 3).reshape(shape[1] * shape[2], -1)
    else:
        matrix = weight.reshape(shape[0], -1)
    assert largest_rank(shape, split) == np.linalg.matrix_rank(matrix) == rank
    u, s, v = np.linalg.svd(matrix, full_matrices=False)
    assert rank * factor_size(shape, split) == (u[:, :rank] * s[:rank]).size + v[:rank].size


# faults


def test_what_fits_is_accepted(wide):
    check_plan(Plan(), wide)
    check_plan(Plan(mask=GlobalMask(0.5)), wide)
    groups = {
        "f.attn": Prune(0), "f.mlp/neurons": Prune(8), "s.mlp": Prune(0), "s.attn/heads": Prune(1),
        "stream/hidden": Prune(32), "first/channels": Prune(1), "second/channels": Prune(6),
    }  # fmt: skip
    layers = {
        "f.mlp.up": LayerPlan(Factorize(8), Quantize("int8", 3)),
        "s.attn.o": LayerPlan(quantize=Quantize("int4-weights"), mask=Mask(pattern="2:4")),
        "embed": LayerPlan(Factorize(32), Quantize("int4-weights")),
        "first": LayerPlan(Factorize(1, split="spatial"), Quantize("int8", smooth=0.5)),
        "third": LayerPlan(quantize=Quantize("fp16"), mask=Mask(0.2, "rows")),
    }
    check_plan(Plan(groups, layers), wide)


@pytest.mark.parametrize(
    ("groups", "fault"),
    [
        pytest.param({"f.attn/head": 1}, "f.attn/head: the model has no such group; did you mean 'f.attn/heads'",
                     id="unknown"),
        pytest.param({"f.attn/heads": 5}, "f.attn/heads: keep must be at most 4, but got 5", id="too_many"),
        pytest.param({"s.attn/heads": 4}, "s.attn/heads: keep must be at most 2, but got 4", id="too_many_shared"),
        pytest.param({"stream/hidden": 65}, "stream/hidden: keep must be at most 64, but got 65", id="too_wide"),
        pytest.param({"first/channels": 9}, "first/channels: keep must be at most 8, but got 9",
                     id="too_many_channels"),
        *(pytest.param({name: 0}, f"{name}: keep must be 1 or more (remove the whole part to remove all), but got 0",
                       id=f"none_of_{name}")
          for name in ("f.attn/heads", "f.mlp/neurons", "stream/hidden", "second/channels")),
        *(pytest.param({name: 1}, f"{name}: is kept or removed as a whole: keep must be 0, but got 1",
        id=f"some_of_{name}")
          for name in ("f", "f.attn", "f.mlp")),
        *(pytest.param({"f": 0, name: 0}, f"{name}: its block is removed, so nothing else can be done to it",
                       id=f"{name}_in_a_removed_block")
          for name in ("f.attn", "f.mlp")),
        *(pytest.param({part: 0, name: 2}, f"{name}: its layers are removed, so nothing else can be done to it",
                       id=f"{name}_in_{part}")
          for part, name in (("f", "f.attn/heads"), ("f", "f.mlp/neurons"), ("f.attn", "f.attn/heads"),
                             ("s.mlp", "s.mlp/neurons"))),
    ],
)  # fmt: skip
def test_groups_that_do_not_fit(wide, groups, fault):
    told = faults(Plan({name: Prune(keep) for name, keep in groups.items()}), wide)
    assert len(told) == 1
    assert told[0].startswith(f"groups: {fault}")


@pytest.mark.parametrize(
    ("name", "layer_plan", "fault"),
    [
        pytest.param("f.mlp.upp", INT8, "the model has no such layer; did you mean 'f.mlp.up'", id="unknown"),
        pytest.param("*.up", INT8, "the model has no such layer", id="pattern_not_spelt_out"),
        pytest.param("f.mlp.up", LayerPlan(Factorize(65)), "rank must be at most 64, but got 65", id="rank"),
        pytest.param("embed", LayerPlan(Factorize(41)), "rank must be at most 40, but got 41", id="rank_embedding"),
        pytest.param("first", LayerPlan(Factorize(9)), "rank must be at most 8, but got 9", id="rank_channel"),
        pytest.param("first", LayerPlan(Factorize(10, split="spatial")), "rank must be at most 9, but got 10",
                     id="rank_spatial"),
        pytest.param("f.mlp.up", LayerPlan(Factorize(2, split="spatial")),
                     "split 'spatial' is for convolutions, and this is linear", id="spatial_linear"),
        pytest.param("embed", LayerPlan(Factorize(2, split="spatial")),
                     "split 'spatial' is for convolutions, and this is embedding", id="spatial_embedding"),
        pytest.param("second", LayerPlan(Factorize(2, split="spatial")), "split 'spatial' needs a window above 1×1",
                     id="spatial_without_a_window"),
        pytest.param("each", LayerPlan(Factorize(1)), "factorize: it is depthwise", id="why_not_factorize"),
        pytest.param("embed", LayerPlan(mask=Mask(0.5)), "mask: its rows are looked up", id="why_not_mask"),
        pytest.param("positions", LayerPlan(quantize=Quantize("int8-weights")), "quantize: it is added",
                     id="why_not_quantize"),
        pytest.param("first", LayerPlan(mask=Mask(pattern="2:4")),
                     "mask: pattern 2:4 needs a multiple of 4 inputs, but it has 45", id="n_m_convolution"),
        pytest.param("flat", LayerPlan(mask=Mask(pattern="3:5")),
                     "mask: pattern 3:5 needs a multiple of 5 inputs, but it has 24", id="n_m_linear"),
        pytest.param("first", LayerPlan(quantize=Quantize("int4-weights")),
                     "precision must be one of fp32, fp16, int8, but got int4-weights", id="precision_conv"),
        pytest.param("embed", INT8, "precision must be one of fp32, fp16, int8-weights, int4-weights, but got int8",
                     id="precision_embedding"),
        pytest.param("head", LayerPlan(quantize=Quantize("int8-weights")),
                     "precision must be one of fp32, fp16, fp8, int8-dynamic, int8, int4-weights, but got int8-weights",
                     id="precision_linear"),
        pytest.param("embed", LayerPlan(quantize=Quantize("int8-weights", rounding="gptq")),
                     "gptq and bias_correction need inputs to calibrate on, and this is an embedding", id="gptq"),
        pytest.param("embed", LayerPlan(quantize=Quantize("int8-weights", bias_correction=True)),
                     "gptq and bias_correction need inputs to calibrate on, and this is an embedding", id="bias"),
        pytest.param("embed", LayerPlan(Factorize(24), Quantize("int4-weights")),
                     f"int4-weights need a multiple of {INT4_GROUP} features, but 24 are left", id="int4_factors"),
    ],
)  # fmt: skip
def test_layers_that_do_not_fit(wide, name, layer_plan, fault):
    told = faults(Plan(layers={name: layer_plan}), wide)
    assert len(told) == 1
    assert told[0].startswith(f"layers: {name}: {fault}")


@pytest.mark.parametrize(
    ("groups", "name", "fits", "fault"),
    [
        pytest.param({"f.mlp/neurons": 8}, "f.mlp.up", (LayerPlan(Factorize(8)), LayerPlan(Factorize(9))),
                     "rank must be at most 8, but got 9", id="rank"),
        pytest.param({"first/channels": 1}, "first",
                     (LayerPlan(Factorize(5, split="spatial")), LayerPlan(Factorize(6, split="spatial"))),
                     "rank must be at most 5, but got 6", id="rank_spatial"),
        pytest.param({"f.mlp/neurons": 6}, "f.mlp.down",
                     (LayerPlan(mask=Mask(pattern="1:3")), LayerPlan(mask=Mask(pattern="2:4"))),
                     "mask: pattern 2:4 needs a multiple of 4 inputs, but it has 6", id="n_m"),
        pytest.param({"second/channels": 5}, "third",
                     (LayerPlan(mask=Mask(pattern="1:3")), LayerPlan(mask=Mask(pattern="2:4"))),
                     "mask: pattern 2:4 needs a multiple of 4 inputs, but it has 99", id="n_m_convolution"),
        pytest.param({"stream/hidden": 48}, "embed",
                     (LayerPlan(quantize=Quantize("int8-weights")), LayerPlan(quantize=Quantize("int4-weights"))),
                     "int4-weights need a multiple of 32 features, but 48 are left", id="int4"),
    ],
)  # fmt: skip
def test_layers_are_checked_against_the_pruned_shape(wide, groups, name, fits, fault):
    structure = {group: Prune(keep) for group, keep in groups.items()}
    check_plan(Plan(structure, {name: fits[0]}), wide)
    assert faults(Plan(structure, {name: fits[1]}), wide) == [f"layers: {name}: {fault}"]


@pytest.mark.parametrize("part", ["f", "f.mlp"])
@pytest.mark.parametrize("layer_plan", [INT8, LayerPlan(Factorize(999)), LayerPlan(mask=Mask(0.5))])
def test_nothing_can_be_done_to_a_removed_layer(wide, part, layer_plan):
    told = faults(Plan({part: Prune(0)}, {"f.mlp.up": layer_plan, "s.mlp.up": INT8}), wide)
    assert told == ["layers: f.mlp.up: it is removed, so nothing else can be done to it"]


def test_all_faults_are_told_at_once(table):
    plan = Plan(
        {
            "net.0.attention/head": Prune(1),
            "net.0.mlp/neurons": Prune(17),
            "net.0.attention/heads": Prune(0),
            "net.1": Prune(0),
        },
        {
            "net.0.upp": LayerPlan(Factorize(2)),
            "net.0.q": LayerPlan(Factorize(9)),
            "embed": LayerPlan(Factorize(2), Quantize("int8")),
            "conv": LayerPlan(quantize=Quantize("int4-weights")),
            "net.1.q": INT8,
        },
    )
    told = faults(plan, table)
    expected = [
        "groups: net.0.attention/head: the model has no such group; did you mean 'net.0.attention/heads'",
        "groups: net.0.attention/heads: keep must be 1 or more",
        "groups: net.0.mlp/neurons: keep must be at most 16, but got 17",
        "layers: net.0.upp: the model has no such layer; did you mean 'net.0.up'",
        "layers: embed: factorize: embeddings are looked up",
        "layers: embed: precision must be one of fp32, fp16, int8-weights, but got int8",
        "layers: net.0.q: rank must be at most 0, but got 9",
        "layers: conv: precision must be one of fp32, fp16, int8, but got int4-weights",
        "layers: net.1.q: it is removed",
    ]
    for fault in expected:
        assert any(line.startswith(fault) for line in told), (fault, told)
    assert len(told) == len(expected)


def test_several_faults_of_one_layer_are_all_told(wide):
    layer_plan = LayerPlan(Factorize(99, split="spatial"), Quantize("int8", bias_correction=True))
    assert [fault.split(": ")[2].split()[0] for fault in faults(Plan(layers={"embed": layer_plan}), wide)] == [
        "rank", "split", "precision", "gptq",
    ]  # fmt: skip


# precisions


@pytest.mark.parametrize(
    ("kind", "shape", "legal"),
    [
        pytest.param("linear", (4, 4), ("fp32", "fp16", "fp8", "int8-dynamic", "int8", "int4-weights"), id="linear"),
        pytest.param("conv", (4, 1, 3, 3), ("fp32", "fp16", "int8"), id="conv"),
        pytest.param("embedding", (50, INT4_GROUP), ("fp32", "fp16", "int8-weights", "int4-weights"), id="one_group"),
        pytest.param("embedding", (5, 96), ("fp32", "fp16", "int8-weights", "int4-weights"), id="three_groups"),
        pytest.param("embedding", (32, 48), ("fp32", "fp16", "int8-weights"), id="part_of_a_group"),
        pytest.param("embedding", (32, 8), ("fp32", "fp16", "int8-weights"), id="less_than_a_group"),
    ],
)
def test_legal_precisions_of_each_kind(kind, shape, legal):
    assert legal_precisions(Layer("a", kind, shape, 16, 16)) == legal
    assert legal_precisions(Layer("a", kind, shape, 16, 16, why_not={"quantize": "tied"})) == ("fp32",)
