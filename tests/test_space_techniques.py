"""What the rules say beyond shares, bits and ranks. Oracles: plans by hand for values by hand; `check_plan` for all.

The table: blocks ``a`` and ``b`` of 4 heads (width 16) and 96 neurons on a stream of width 64, an embedding, a
classifier, and two convolutions outside. Rounding: heads 1, neurons 8, channels 4, hidden 16, rank 4.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autocompress.hardware import HardwareProfile, Rounding
from autocompress.layers import Group, Layer, LayerTable, Slice, Stub
from autocompress.plan import (
    Cofi,
    Distill,
    Factorize,
    GlobalMask,
    Gradual,
    LayerPlan,
    Lora,
    Mask,
    Plan,
    Prune,
    Quantize,
    Terms,
    check_plan,
)
from autocompress.rules import SpaceRules, load_space
from autocompress.space import SearchSpace, build_space

WIDTH, NEURONS = 64, 96
ALL = ("fp32", "fp16", "int8-dynamic", "int8", "int8-weights", "int4-weights")
GRADUAL = {"recipe": "gradual", "sparsity": 0.5, "steps": 20}
HEADS = {"heads": [1.0, 0.5]}

Make = Callable[[dict[str, object]], SearchSpace]


def _layer(name: str, kind: str, shape: tuple[int, ...], block: str = "", **why_not: str) -> Layer:
    return Layer(name, kind, shape, math.prod(shape), 0, block, why_not)  # type: ignore[arg-type]


def _block(name: str) -> tuple[list[Layer], list[Group]]:
    square, up, down = (WIDTH, WIDTH), (NEURONS, WIDTH), (WIDTH, NEURONS)
    shapes = {"q": square, "k": square, "v": square, "o": square, "up": up, "down": down}
    layers = [_layer(f"{name}.{short}", "linear", shape, name) for short, shape in shapes.items()]
    q, k, v, o, above, below = (layer.name for layer in layers)
    heads = tuple(Slice(layer, 16) for layer in (q, k, v))
    stub = (Stub(name),)
    groups = [
        Group(f"{name}.attention/heads", "heads", 4, heads, (Slice(o, 16),), block=name),
        Group(f"{name}.up/neurons", "neurons", NEURONS, (Slice(above),), (Slice(below),), block=name),
        Group(f"{name}/attention", "attention", 1, block=name, removes=(q, k, v, o), stubs=stub),
        Group(f"{name}/feed_forward", "feed_forward", 1, block=name, removes=(above, below), stubs=stub),
        Group(name, "block", 1, block=name, removes=(q, k, v, o, above, below), stubs=stub),
    ]
    return layers, groups


@pytest.fixture(scope="module")
def model() -> LayerTable:
    (first, its), (second, others) = _block("a"), _block("b")
    embedding = _layer("embed", "embedding", (50, WIDTH), mask="its rows are looked up")
    classifier = _layer("classifier", "linear", (10, WIDTH), factorize="it is small")
    convolutions = [_layer("conv", "conv", (16, 3, 3, 3)), _layer("point", "conv", (8, 16, 1, 1))]
    layers = (embedding, *first, *second, classifier, *convolutions)
    writers = tuple(Slice(name) for name in ("embed", "a.o", "a.down", "b.o", "b.down"))
    readers = tuple(Slice(f"{block}.{name}") for block in "ab" for name in ("q", "k", "v", "up"))
    stream = Group("net/hidden", "hidden", WIDTH, writers, (*readers, Slice("classifier")), (Slice("norm"),))
    channels = Group("conv/channels", "channels", 16, (Slice("conv"),), (Slice("point"),))
    return LayerTable(layers, (*its, *others, stream, channels), sum(layer.params for layer in layers))


@pytest.fixture(scope="module")
def device() -> HardwareProfile:
    rounding = Rounding(heads=1, neurons=8, channels=4, hidden=16, rank=4)
    kinds = ("linear", "conv", "embedding")
    return HardwareProfile(name="tiny", threads=1, rounding=rounding, precisions=dict.fromkeys(kinds, ALL))


@pytest.fixture(scope="module")
def make(model: LayerTable, device: HardwareProfile) -> Make:
    return lambda rules: build_space(SpaceRules.model_validate({"name": "test", **rules}), model, device)


def ruled(match: str = "classifier", **rule: object) -> dict[str, object]:
    """A space with one rule of layers."""
    return {"layers": [{"match": match, **rule}]}


def on(name: str, **said: object) -> Plan:
    """A plan that says something of one layer."""
    return Plan(layers={name: LayerPlan(**said)})  # type: ignore[arg-type]


def values(space: SearchSpace, levels: dict[str, object]) -> dict[str, int | float]:
    """Variable to level, as indices; all variables named must exist."""
    return {name: space.by_name[name].levels.index(level) for name, level in levels.items()}  # type: ignore[arg-type]


FEW = {"precision": ["fp32", "fp16", "int8", "int4-weights"]}
CAREFUL = {"rounding": "gptq", "smooth": 0.5}


@pytest.mark.parametrize(
    ("rules", "levels", "plan"),
    [
        pytest.param({"groups": {"channels": [1.0, 0.5]}}, {"keep:conv/channels": 0.5},
                     Plan({"conv/channels": Prune(8)}), id="channels"),
        pytest.param({"groups": {"hidden": [1.0, 0.75]}}, {"keep:net/hidden": 0.75},
                     Plan({"net/hidden": Prune(48)}), id="hidden"),
        pytest.param({"groups": {"remove_attention": True}}, {"remove:a/attention": 1},
                     Plan({"a/attention": Prune(0)}), id="remove_attention"),
        pytest.param({"groups": {"remove_feed_forward": True}}, {"remove:b/feed_forward": 1},
                     Plan({"b/feed_forward": Prune(0)}), id="remove_feed_forward"),
        pytest.param({"groups": {**HEADS, "score": "wanda"}}, {"keep:a.attention/heads": 0.5},
                     Plan({"a.attention/heads": Prune(2, "wanda")}), id="group_score"),
        pytest.param({"groups": {**HEADS, "repair": False}}, {"keep:a.attention/heads": 0.5},
                     Plan({"a.attention/heads": Prune(2, repair=False)}), id="group_repair"),
        pytest.param({"groups": {"remove_attention": True, "repair": False}}, {"remove:a/attention": 1},
                     Plan({"a/attention": Prune(0, repair=False)}), id="repair_of_a_removed_part"),
        pytest.param({"groups": HEADS, "repair": "sequential"}, {"keep:a.attention/heads": 0.5},
                     Plan({"a.attention/heads": Prune(2)}, repair="sequential"), id="sequential"),
        pytest.param(ruled(**FEW, weight_bits=[8, 4, 3]), {"precision:classifier": "int8", "bits:classifier": 4.0},
                     on("classifier", quantize=Quantize("int8", 4)), id="weight_bits"),
        pytest.param(ruled(**FEW, weight_bits=[8, 3]), {"precision:classifier": "int4-weights", "bits:classifier": 3.0},
                     on("classifier", quantize=Quantize("int4-weights", 3)), id="weight_bits_of_4"),
        pytest.param(ruled(precision=["fp32", "int8"], weight_bits=[6]), {"precision:classifier": "int8"},
                     on("classifier", quantize=Quantize("int8", 6)), id="weight_bits_of_every_candidate"),
        pytest.param(ruled(sparsity=[0.0, 0.5]), {"sparsity:classifier": 0.5},
                     on("classifier", mask=Mask(0.5)), id="sparsity"),
        pytest.param(ruled(sparsity=[0.5, 0], pattern="2:4", mask_score="wanda"), {"sparsity:classifier": 0.5},
                     on("classifier", mask=Mask(pattern="2:4", score="wanda")), id="pattern_2_4"),
        pytest.param(ruled(sparsity=[0, 0.25, 0.5], pattern="rows"), {"sparsity:classifier": 0.25},
                     on("classifier", mask=Mask(0.25, "rows")), id="pattern_rows"),
        pytest.param(ruled("a.q", rank=[1.0, 0.25], method="plain"), {"rank:a.q": 0.25},
                     on("a.q", factorize=Factorize(16, "plain")), id="method"),
        pytest.param(ruled("conv", rank=[1.0, 0.5], split="spatial"), {"rank:conv": 0.5},
                     on("conv", factorize=Factorize(4, split="spatial")), id="split"),
        pytest.param(ruled("point", rank=[1.0, 0.5], split="spatial"), {"rank:point": 0.5},
                     on("point", factorize=Factorize(4)), id="split_of_a_1x1_window"),
        pytest.param(ruled(**FEW, quantize=CAREFUL), {"precision:classifier": "int8"},
                     on("classifier", quantize=Quantize("int8", rounding="gptq", smooth=0.5)), id="quantize_int8"),
        pytest.param(ruled(**FEW, quantize=CAREFUL), {"precision:classifier": "int4-weights"},
                     on("classifier", quantize=Quantize("int4-weights", rounding="gptq")), id="quantize_int4"),
        pytest.param(ruled(**FEW, quantize=CAREFUL), {"precision:classifier": "fp16"},
                     on("classifier", quantize=Quantize("fp16")), id="quantize_fp16"),
        pytest.param(ruled("embed", precision=["fp32", "int8-weights"],
                           quantize={"rounding": "gptq", "symmetric": False}), {"precision:embed": "int8-weights"},
                     on("embed", quantize=Quantize("int8-weights", symmetric=False)), id="quantize_embedding"),
        pytest.param({"sparsity": [0.0, 0.5], "mask_score": "fisher"}, {"sparsity:all layers": 0.5},
                     Plan(mask=GlobalMask(0.5, "fisher")), id="sparsity_of_all_layers"),
        pytest.param({"learn": [None, GRADUAL, {"recipe": "cofi", "sparsity": 0.5}]}, {"learn": 1.0},
                     Plan(learn=Gradual(0.5, 20)), id="learn"),
        pytest.param({"learn": [None, GRADUAL, {"recipe": "cofi", "sparsity": 0.5}]}, {"learn": 2.0},
                     Plan(learn=Cofi(0.5)), id="learn_another"),
        pytest.param({"distill": {"steps": [0, 5], "options": {"terms": {"hidden": 0.5}, "lora": {"rank": 4}}}},
                     {"steps": 5.0}, Plan(distill=Distill(steps=5, terms=Terms(0.5), lora=Lora(4))), id="options"),
    ],
)  # fmt: skip
def test_a_key_means_its_plan(make, model, rules, levels, plan):
    space = make(rules)
    found = space.decode(values(space, levels))
    assert found == plan
    check_plan(found, model)
    assert space.decode(space.uniform()) == Plan()


@pytest.mark.parametrize(
    ("rules", "plan"),
    [
        pytest.param(ruled(sparsity=[0.5]), on("classifier", mask=Mask(0.5)), id="sparsity"),
        pytest.param({"sparsity": [0.5]}, Plan(mask=GlobalMask(0.5)), id="sparsity_of_all_layers"),
        pytest.param({"learn": [GRADUAL]}, Plan(learn=Gradual(0.5, 20)), id="learn"),
    ],
)
def test_one_level_holds_for_every_candidate(make, rules, plan):
    space = make({**rules, "groups": HEADS})
    assert space.decode(space.uniform()) == plan


# what has no effect is left out


def test_a_recipe_takes_groups_ranks_and_zeros_and_leaves_bits(make):
    space = make(
        {
            "groups": {"heads": [1.0, 0.5], "hidden": [1.0, 0.5], "remove_attention": True},
            "blocks": {"remove": True},
            "sparsity": [0.0, 0.5],
            "learn": [None, GRADUAL],
            "repair": "sequential",
            **ruled("b.q", precision=["fp32", "int8"], rank=[1.0, 0.25], sparsity=[0.0, 0.5]),
        }
    )
    chosen = {name: len(variable.levels) - 1 for name, variable in space.by_name.items()}
    plan = Plan(layers={"b.q": LayerPlan(quantize=Quantize("int8"))}, learn=Gradual(0.5, 20))
    assert space.decode(chosen) == plan
    assert space.decode({"learn": 1, "precision:b.q": 1}) == plan


def test_zeros_over_all_layers_take_ranks_and_zeros_of_single_ones(make):
    rule = ruled("a.q", precision=["fp32", "int8"], rank=[1.0, 0.25], sparsity=[0.0, 0.5])
    space = make({"sparsity": [0.0, 0.3], **rule})
    plan = Plan(layers={"a.q": LayerPlan(quantize=Quantize("int8"))}, mask=GlobalMask(0.3))
    for rank in (0, 1):
        for zeros in (0, 1):
            several = {"sparsity:all layers": 1, "precision:a.q": 1, "rank:a.q": rank, "sparsity:a.q": zeros}
            assert space.decode(several) == plan


def test_a_rank_takes_zeros(make):
    space = make(ruled("a.q", rank=[1.0, 0.75, 0.25], sparsity=[0.0, 0.5]))
    assert space.decode({"rank:a.q": 2, "sparsity:a.q": 1}) == on("a.q", factorize=Factorize(16))
    assert space.decode({"rank:a.q": 1, "sparsity:a.q": 1}) == on("a.q", mask=Mask(0.5))  # 48 is above break-even


@pytest.mark.parametrize(("quantized", "aware"), [(0, False), (1, True)])
def test_fake_quantize_without_quantized_layers_is_off(make, quantized, aware):
    space = make(
        {**ruled(precision=["fp32", "int8"]), "distill": {"steps": [5], "options": {"fake_quantize": True, "peers": 2}}}
    )
    plan = space.decode({"precision:classifier": quantized})
    assert plan.distill == Distill(steps=5, peers=2, fake_quantize=aware)


def test_a_removed_part_takes_its_choices(make):
    rule = ruled("a.*", precision=["fp32", "int8"], share="block")
    space = make({"groups": {**HEADS, "neurons": [1.0, 0.5], "remove_attention": True}, **rule})
    found = space.decode({"remove:a/attention": 1, "keep:a.attention/heads": 1, "precision:a (rule 0)": 1})
    int8 = LayerPlan(quantize=Quantize("int8"))
    assert found == Plan({"a/attention": Prune(0)}, {"a.up": int8, "a.down": int8})
    kept = space.decode({"remove:a/attention": 1, "keep:a.up/neurons": 1})
    assert kept.groups == {"a/attention": Prune(0), "a.up/neurons": Prune(48)}


def test_a_removed_block_takes_its_parts(make):
    space = make({"groups": {"remove_attention": True, "remove_feed_forward": True}, "blocks": {"remove": True}})
    found = space.decode({"remove:b": 1, "remove:b/attention": 1, "remove:b/feed_forward": 1, "remove:a/attention": 1})
    assert found == Plan({"b": Prune(0), "a/attention": Prune(0)})


@pytest.mark.parametrize(
    ("neurons", "pattern", "zeros"),
    [
        pytest.param(48, "2:4", 0.5, id="divides"),
        pytest.param(40, "2:16", 0.875, id="does_not"),
        pytest.param(48, "2:16", 0.875, id="divides_again"),
    ],
)
def test_n_of_m_only_where_the_width_that_is_left_divides(make, model, neurons, pattern, zeros):
    rule = ruled("a.down", sparsity=[0, zeros], pattern=pattern)
    space = make({"groups": {"neurons": [1.0, neurons / NEURONS]}, **rule})
    found = space.decode({"keep:a.up/neurons": 1, "sparsity:a.down": 1})
    expected = {"a.down": LayerPlan(mask=Mask(pattern=pattern))} if neurons % int(pattern[2:]) == 0 else {}
    assert found == Plan({"a.up/neurons": Prune(neurons)}, expected)
    check_plan(found, model)


def test_four_bit_embeddings_whose_width_left_does_not_divide_take_eight(make):
    space = make({"groups": {"hidden": [1.0, 0.75, 0.5]}, **ruled("embed", precision=ALL)})
    precision = values(space, {"precision:embed": "int4-weights"})
    found = [space.decode({**precision, "keep:net/hidden": level}).layers["embed"].precision for level in range(3)]
    assert found == ["int4-weights", "int8-weights", "int4-weights"]  # widths 64, 48, 32


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_fewer_bits_say_nothing_where_a_precision_has_none(make, precision):
    space = make(ruled(**FEW, weight_bits=[8, 4]))
    few, all_of_them = (
        space.decode({**values(space, {"precision:classifier": precision}), "bits:classifier": level})
        for level in (1, 0)
    )
    assert few == all_of_them


@pytest.mark.parametrize("precision", [["fp32", "fp16"], ["fp32", "int8-weights"], ["int8-weights"]])
def test_no_variable_for_bits_that_nothing_can_take(make, precision):
    # int8-weights exist for embeddings only, so the classifier has nothing to take fewer bits of
    space = make({"groups": HEADS, **ruled(precision=precision, weight_bits=[8, 4])})
    assert "bits:classifier" not in space.by_name


@pytest.mark.parametrize(
    ("rules", "chosen", "seed"),
    [
        pytest.param({"groups": HEADS}, {"keep:a.attention/heads": 1}, 0, id="nothing_random"),
        pytest.param({"groups": {**HEADS, "score": "random"}}, {"keep:a.attention/heads": 1}, 7, id="random_heads"),
        pytest.param({"groups": {**HEADS, "score": "random"}}, {}, 0, id="random_heads_all_kept"),
        pytest.param(ruled(sparsity=[0, 0.5]), {"sparsity:classifier": 1}, 0, id="least_weights"),
        pytest.param(ruled(sparsity=[0, 0.5], mask_score="random"), {"sparsity:classifier": 1}, 7, id="random_zeros"),
        pytest.param({"sparsity": [0, 0.5]}, {"sparsity:all layers": 1}, 0, id="least_of_all"),
        pytest.param({"sparsity": [0, 0.5], "mask_score": "random"}, {"sparsity:all layers": 1}, 7, id="random_of_all"),
        pytest.param({"learn": [None, GRADUAL]}, {"learn": 1}, 7, id="learned"),
        pytest.param({"distill": {"steps": [0, 5]}}, {"steps": 1}, 7, id="trained"),
    ],
)
def test_the_seed_is_there_only_where_something_draws_from_it(make, rules, chosen, seed):
    assert make(rules).decode(chosen, seed=7).seed == seed


@pytest.mark.parametrize(
    ("groups", "chosen", "repair"),
    [
        pytest.param({}, {"keep:a.attention/heads": 1}, "sequential", id="heads"),
        pytest.param({}, {}, "dense", id="nothing_pruned"),
        pytest.param({}, {"remove:a/attention": 1}, "dense", id="whole_parts_only"),
        pytest.param({"repair": False}, {"keep:a.attention/heads": 1}, "dense", id="no_repair"),
    ],
)
def test_repair_is_sequential_only_where_something_is_repaired(make, groups, chosen, repair):
    space = make({"groups": {**HEADS, "remove_attention": True, **groups}, "repair": "sequential"})
    assert space.decode(chosen).repair == repair


# uniform


def test_uniform_keeps_the_hidden_width_but_for_the_least_of_everything(make):
    space = make({"groups": {"heads": [1.0, 0.5], "hidden": [1.0, 0.75, 0.5], "channels": [1.0, 0.5]}})
    half = {"a.attention/heads": Prune(2), "b.attention/heads": Prune(2), "conv/channels": Prune(8)}
    assert space.decode(space.uniform(keep=0.5)) == Plan(half)
    assert space.decode(space.uniform(keep=0.0)) == Plan({**half, "net/hidden": Prune(32)})


def test_uniform_leaves_out_zeros_recipes_and_fewer_bits_whatever_the_file_says_first(make):
    rule = ruled(precision=["fp32", "int8"], weight_bits=[4, 8], sparsity=[0.5, 0.0])
    space = make({"sparsity": [0.5, 0.0], "learn": [GRADUAL, None], **rule})
    assert space.decode(space.uniform(precision="int8")) == on("classifier", quantize=Quantize("int8"))


# all of it


@pytest.fixture(scope="module")
def everything(model: LayerTable, device: HardwareProfile) -> SearchSpace:
    return build_space(load_space("everything"), model, device)


def test_everything_offers_every_kind_of_choice(everything):
    kinds = {name.partition(":")[0] for name in everything.by_name}
    recovery = {"steps", "soft_weight", "temperature", "learning_rate"}
    assert kinds == {"keep", "remove", "precision", "bits", "rank", "sparsity", "learn", *recovery}
    assert {"keep:net/hidden", "remove:a", "remove:a/attention", "remove:b/feed_forward"} <= set(everything.by_name)


@given(data=st.data())
def test_every_plan_of_everything_fits_and_is_canonical(everything, model, data):
    chosen = {
        v.name: data.draw(st.integers(0, len(v.levels) - 1) if v.levels else st.floats(v.low, v.high), label=v.name)
        for v in everything.variables
    }
    plan = everything.decode(chosen, seed=3)
    check_plan(plan, model)
    assert not (plan.learn and (plan.groups or plan.mask))
    assert not (plan.mask and any(lp.factorize or lp.mask for lp in plan.layers.values()))
    assert plan.seed == (3 if plan.learn or plan.distill else 0)
    assert all(prune.keep < model.group(name).size for name, prune in plan.groups.items())


@given(data=st.data())
def test_every_plan_of_everything_fits_with_options_that_depend_on_other_choices(model, device, data):
    """4-bit embeddings, patterns that few widths divide, and training on rounded weights."""
    layers = [
        {"kind": "linear", "precision": ALL, "weight_bits": [8, 3], "sparsity": [0, 0.9375], "pattern": "2:32"},
        {"kind": "embedding", "precision": ALL, "rank": [1.0, 0.7, 0.3]},
        {"kind": "conv", "precision": ALL, "rank": [1.0, 0.5], "split": "spatial", "quantize": {"calibrator": "mse"}},
    ]
    rules = load_space("everything").model_dump() | {"layers": layers}
    rules["distill"] = {"steps": [0, 5], "options": {"fake_quantize": True}}
    space = build_space(SpaceRules.model_validate(rules), model, device)
    chosen = {
        v.name: data.draw(st.integers(0, len(v.levels) - 1) if v.levels else st.floats(v.low, v.high), label=v.name)
        for v in space.variables
    }
    check_plan(space.decode(chosen), model)
