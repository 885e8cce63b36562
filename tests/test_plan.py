"""Oracles: sha256 of hand-written JSON, a fresh process, the JSON round trip, shapes worked out by hand."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autocompress.errors import PlanError
from autocompress.layers import Layer
from autocompress.plan import (
    INT4_GROUP,
    PRECISIONS,
    Distill,
    Factorize,
    LayerPlan,
    Plan,
    Prune,
    Quantize,
    check_plan,
    describe,
    effective_layers,
    legal_precisions,
    plan_from_json,
    removed_blocks,
)

names = st.text("abc.01/é", min_size=1, max_size=8)
unit = st.floats(0, 1).map(abs)  # abs: no -0.0
above = st.floats(1e-9, 1e9)
prunes = st.builds(Prune, st.integers(0, 64), st.sampled_from(["obs", "magnitude"]), st.booleans())
layer_plans = st.builds(
    LayerPlan,
    st.none() | st.builds(Factorize, st.integers(1, 512)),
    st.none() | st.builds(Quantize, st.sampled_from(PRECISIONS[1:])),
)
distills = st.builds(Distill, unit, above, above, st.integers(1, 10**6))
plans = st.builds(
    Plan,
    st.dictionaries(names, prunes, max_size=4),
    st.dictionaries(names, layer_plans, max_size=4),
    st.none() | distills,
    st.integers(0, 2**31),
)

RICH = Plan(
    {"net.1": Prune(0), "net.0.attention/heads": Prune(2, "magnitude", repair=False)},
    {"net.0.q": LayerPlan(Factorize(2), Quantize("int8")), "embed": LayerPlan(quantize=Quantize("int8-weights"))},
    Distill(0.9, 4.0, 1e-4, 30),
    seed=3,
)


# fingerprint and JSON


def test_fingerprint_of_the_empty_plan_is_the_hash_of_its_canonical_json():
    text = '{"distill":null,"groups":{},"layers":{},"seed":0}'
    assert Plan().fingerprint == hashlib.sha256(text.encode()).hexdigest()[:16]


@pytest.mark.parametrize("hash_seed", ["1", "4242"])
def test_fingerprint_is_the_same_in_a_fresh_process(hash_seed):
    code = (
        "import json, sys\n"
        "from autocompress.plan import plan_from_json\n"
        "print(plan_from_json(json.loads(sys.stdin.read())).fingerprint)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps(RICH.to_json()),
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == RICH.fingerprint


@given(plans)
def test_json_round_trip_gives_an_equal_plan(plan):
    again = plan_from_json(json.loads(json.dumps(plan.to_json())))
    assert again == plan
    assert again.fingerprint == plan.fingerprint
    assert hash(again) == hash(plan)


@given(plans)
def test_order_of_the_mappings_changes_nothing(plan):
    turned = Plan(dict(reversed(plan.groups.items())), dict(reversed(plan.layers.items())), plan.distill, plan.seed)
    assert turned == plan
    assert turned.fingerprint == plan.fingerprint
    assert list(turned.groups) == sorted(plan.groups)
    assert list(turned.layers) == sorted(plan.layers)


@given(plans, plans)
def test_plans_are_equal_exactly_when_their_fingerprints_are(one, other):
    assert (one == other) == (one.fingerprint == other.fingerprint)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        pytest.param(Plan(distill=Distill(1)), Plan(distill=Distill(1.0)), id="soft_weight"),
        pytest.param(Plan(distill=Distill(temperature=2)), Plan(distill=Distill(temperature=2.0)), id="temperature"),
        pytest.param(Plan(distill=Distill(learning_rate=1)), Plan(distill=Distill(learning_rate=1.0)), id="rate"),
    ],
)
def test_equal_plans_of_other_number_types_have_one_fingerprint(one, other):
    assert one == other
    assert one.fingerprint == other.fingerprint


def test_layer_plans_that_say_nothing_are_dropped():
    assert Plan(layers={"a": LayerPlan()}) == Plan()


def test_a_plan_is_frozen():
    with pytest.raises(AttributeError, match="seed"):
        Plan().seed = 1  # type: ignore[misc]
    with pytest.raises(TypeError, match="does not support item assignment"):
        RICH.groups["x"] = Prune(1)  # type: ignore[index]


def test_later_changes_of_the_given_mappings_do_not_reach_the_plan():
    groups = {"g": Prune(1)}
    plan = Plan(groups)
    groups["h"] = Prune(2)
    assert dict(plan.groups) == {"g": Prune(1)}


# refusals


@pytest.mark.parametrize(
    ("build", "message"),
    [
        pytest.param(lambda: Prune(-1), "Prune.keep must be an integer of 0 or more, but got -1", id="keep_negative"),
        pytest.param(lambda: Prune(1.5), "Prune.keep must be an integer of 0 or more, but got 1.5", id="keep_float"),
        pytest.param(
            lambda: Prune(1, "l1"), "Prune.score must be 'obs' or 'magnitude', but got 'l1'", id="score_unknown"
        ),
        pytest.param(lambda: Factorize(0), "Factorize.rank must be an integer of 1 or more, but got 0", id="rank_0"),
        pytest.param(
            lambda: Factorize("8"), "Factorize.rank must be an integer of 1 or more, but got '8'", id="rank_text"
        ),
        pytest.param(lambda: Quantize("fp32"), "Quantize.precision must be one of int8-dynamic, int8", id="fp32"),
        pytest.param(lambda: Quantize("int7"), "int4-weights, but got 'int7'", id="precision_unknown"),
        pytest.param(lambda: Distill(soft_weight=1.1), "soft_weight must be in [0, 1], but got 1.1", id="soft_weight"),
        pytest.param(
            lambda: Distill(soft_weight=float("nan")), "soft_weight must be in [0, 1], but got nan", id="soft_nan"
        ),
        pytest.param(lambda: Distill(temperature=0), "temperature must be above 0, but got 0", id="temperature_0"),
        pytest.param(
            lambda: Distill(learning_rate=-1.0), "learning_rate must be above 0, but got -1.0", id="learning_rate"
        ),
        pytest.param(
            lambda: Distill(soft_weight=True), "soft_weight must be in [0, 1], but got True", id="soft_weight_bool"
        ),
        pytest.param(
            lambda: Distill(temperature=True), "temperature must be above 0, but got True", id="temperature_bool"
        ),
        pytest.param(
            lambda: Distill(temperature=float("inf")), "temperature must be above 0, but got inf", id="temperature_inf"
        ),
        pytest.param(
            lambda: Distill(temperature=float("nan")), "temperature must be above 0, but got nan", id="temperature_nan"
        ),
        pytest.param(
            lambda: Distill(learning_rate=float("inf")), "learning_rate must be above 0, but got inf", id="rate_inf"
        ),
        pytest.param(
            lambda: Distill(learning_rate="3e-4"), "learning_rate must be above 0, but got '3e-4'", id="rate_text"
        ),
        pytest.param(
            lambda: Distill(steps=True), "steps must be an integer of 1 or more, but got True", id="steps_bool"
        ),
        pytest.param(lambda: Distill(steps=0), "steps must be an integer of 1 or more, but got 0", id="steps_0"),
    ],
)
def test_constructors_refuse_what_is_illegal(build, message):
    with pytest.raises(PlanError, match=re.escape(message)):
        build()


def test_distill_tells_all_its_faults_at_once():
    with pytest.raises(PlanError, match=r"Distill: soft_weight .*; temperature .*; learning_rate .*; steps .*0\.5"):
        Distill(-1, 0, 0, 0.5)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        pytest.param([], "p.json: expected an object, but got []", id="not_an_object"),
        pytest.param({"layer": {}}, "p.json: unknown key 'layer'; did you mean 'layers'?", id="unknown_key"),
        pytest.param({"groups": {"g": 3}}, "p.json: groups: g: expected an object, but got 3", id="group_not_object"),
        pytest.param(
            {"groups": {"g": {"kep": 3}}}, "p.json: groups: g: unknown key 'kep'; did you mean 'keep'?", id="group_key"
        ),
        pytest.param(
            {"groups": {"g": {"keep": -2}}}, "p.json: groups: g: Prune.keep must be an integer", id="group_value"
        ),
        pytest.param({"groups": {"g": {}}}, "p.json: groups: g: ", id="group_without_keep"),
        pytest.param(
            {"layers": {"a": {"quantise": {}}}},
            "p.json: layers: a: unknown key 'quantise'; did you mean 'quantize'?",
            id="technique_unknown",
        ),
        pytest.param(
            {"layers": {"a": {"quantize": {"precision": "int7"}}}},
            "p.json: layers: a: quantize: Quantize.precision must be one of",
            id="layer_value",
        ),
        pytest.param({"distill": {"steps": 0}}, "p.json: distill: Distill: steps must be an integer", id="distill"),
        pytest.param({"distill": {"temperature": "2"}}, "p.json: distill: ", id="distill_text"),
    ],
)
def test_plan_from_json_names_source_key_and_value(data, message):
    with pytest.raises(PlanError, match=re.escape(message)):
        plan_from_json(data, "p.json")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        pytest.param({"layers": {"a": 3}}, "p.json: layers: a: ", id="layer_is_a_number"),
        pytest.param({"layers": []}, "p.json: layers: ", id="layers_is_a_list"),
        pytest.param({"groups": None}, "p.json: groups: ", id="groups_is_null"),
        pytest.param({"seed": "x"}, "p.json: seed: ", id="seed_is_text"),
    ],
)
def test_plan_from_json_refuses_what_is_no_object(data, message):
    with pytest.raises(PlanError, match=re.escape(message)):
        plan_from_json(data, "p.json")


# for one model


def test_effective_layers_of_the_empty_plan_are_the_layers(table):
    for effective, layer in zip(effective_layers(Plan(), table), table.layers, strict=True):
        assert effective.layer == layer
        assert effective.shape == layer.weight_shape
        assert (effective.rank, effective.precision, effective.removed) == (None, "fp32", False)
        assert effective.kept_fraction == 1.0


def test_effective_shapes_after_structure_removal(table):
    # 3 of 4 heads of width 2 stay: 6 rows of q, k, v, 6 columns of o; 4 of 16 neurons stay.
    plan = Plan({"net.0.attention/heads": Prune(3), "net.0.mlp/neurons": Prune(4)})
    by_name = {e.layer.name: e for e in effective_layers(plan, table)}
    shapes = {n: by_name[f"net.0.{n}"].shape for n in ("q", "k", "v", "o", "up", "down")}
    assert shapes == {"q": (6, 8), "k": (6, 8), "v": (6, 8), "o": (8, 6), "up": (4, 8), "down": (8, 4)}
    assert by_name["net.0.up"].kept_fraction == 0.25
    assert by_name["net.0.up"].weights == 32
    assert all(e.shape == e.layer.weight_shape for n, e in by_name.items() if not n.startswith("net.0"))


def test_effective_weights_of_factors_and_of_removed_blocks(table):
    plan = Plan({"net.1": Prune(0), "net.0.mlp/neurons": Prune(8)}, {"net.0.up": LayerPlan(Factorize(2))})
    by_name = {e.layer.name: e for e in effective_layers(plan, table)}
    assert by_name["net.0.up"].weights == 2 * (8 + 8)
    assert by_name["conv"].weights == 36
    assert removed_blocks(plan, table) == {"net.1"}
    gone = [e for n, e in by_name.items() if n.startswith("net.1")]
    assert len(gone) == 6
    assert all(e.removed and e.weights == 0 and e.kept_fraction == 0.0 for e in gone)


def test_check_plan_accepts_the_empty_and_a_rich_plan(table):
    check_plan(Plan(), table)
    check_plan(RICH, table)


def test_check_plan_tells_all_faults_at_once(table):
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
            "net.1.q": LayerPlan(quantize=Quantize("int8")),
        },
    )
    with pytest.raises(PlanError, match="the plan does not fit this model") as caught:
        check_plan(plan, table)
    lines = str(caught.value).splitlines()[1:]
    expected = [
        "groups: net.0.attention/head: the model has no such group; did you mean 'net.0.attention/heads'",
        "groups: net.0.attention/heads: keep must be 1 or more",
        "groups: net.0.mlp/neurons: keep must be at most 16, but got 17",
        "layers: net.0.upp: the model has no such layer; did you mean 'net.0.up'",
        "layers: embed: factorize: embeddings are looked up",
        "layers: embed: precision must be one of fp32, int8-weights, but got int8",
        "layers: net.0.q: rank must be at most 0, but got 9",
        "layers: conv: precision must be one of fp32, int8, but got int4-weights",
        "layers: net.1.q: its block is removed",
    ]
    for fault in expected:
        assert any(line.strip().startswith(fault) for line in lines), (fault, lines)
    assert len(lines) == len(expected)


def test_check_plan_counts_the_rank_against_the_pruned_shape(table):
    structure = {"net.0.mlp/neurons": Prune(4)}
    check_plan(Plan(structure, {"net.0.up": LayerPlan(Factorize(4))}), table)
    with pytest.raises(PlanError, match=r"net\.0\.up: rank must be at most 4, but got 5"):
        check_plan(Plan(structure, {"net.0.up": LayerPlan(Factorize(5))}), table)


@pytest.mark.parametrize(
    ("kind", "shape", "legal"),
    [
        pytest.param("linear", (4, 4), ("fp32", "int8-dynamic", "int8", "int4-weights"), id="linear"),
        pytest.param("conv", (4, 1, 3, 3), ("fp32", "int8"), id="conv"),
        pytest.param("embedding", (50, INT4_GROUP), ("fp32", "int8-weights", "int4-weights"), id="embedding_one_group"),
        pytest.param("embedding", (5, 96), ("fp32", "int8-weights", "int4-weights"), id="embedding_three_groups"),
        pytest.param("embedding", (32, 48), ("fp32", "int8-weights"), id="embedding_part_of_a_group"),
        pytest.param("embedding", (32, 8), ("fp32", "int8-weights"), id="embedding_less_than_a_group"),
    ],
)
def test_legal_precisions_of_each_kind(kind, shape, legal):
    assert legal_precisions(Layer("a", kind, shape, 16, 16)) == legal
    assert legal_precisions(Layer("a", kind, shape, 16, 16, why_not={"quantize": "tied"})) == ("fp32",)


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        pytest.param(Plan(), "dense fp32", id="dense"),
        pytest.param(
            Plan({"net.0.attention/heads": Prune(2)}), "heads 75 %", id="heads_of_all_live_groups"
        ),  # 6 of 8
        pytest.param(Plan({"net.0.mlp/neurons": Prune(4), "net.1": Prune(0)}),
                     "neurons 25 %, 1 of 2 blocks removed (1)", id="neurons_of_the_block_that_stays"),
        pytest.param(Plan(layers={"net.0.q": LayerPlan(Factorize(2))}), "rank 2", id="one_rank"),
        pytest.param(Plan(layers={"net.0.q": LayerPlan(Factorize(2)), "net.0.k": LayerPlan(Factorize(3))}),
                     "rank 2–3 ×2", id="two_ranks"),
        pytest.param(RICH, "heads 50 %, 1 of 2 blocks removed (1), rank 2, int8 ×1, int8-weights ×1, "
                           "λ 0.90, T 4.0, 30 steps", id="rich"),
    ],
)  # fmt: skip
def test_describe(plan, words, table):
    assert describe(plan, table) == words


def test_describe_names_the_blocks_that_go_by_their_numbers(make_table):
    table = make_table(6)
    plan = Plan({f"net.{i}": Prune(0) for i in (5, 1, 3)})
    assert describe(plan, table) == "3 of 6 blocks removed (1, 3, 5)"
