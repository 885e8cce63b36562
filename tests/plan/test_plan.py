"""Oracles: sha256 of hand-written JSON, literal fingerprints, fresh processes, the JSON round trip."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import pickle
import re
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autocompress.errors import PlanError
from autocompress.plan import (
    Cofi,
    Distill,
    Factorize,
    GlobalMask,
    Gradual,
    LayerPlan,
    Lora,
    LotteryTicket,
    Mask,
    Plan,
    Prune,
    Quantize,
    Terms,
    plan_from_json,
)
from tests.plan.strategies import layer_plans, plans

SHA = "0123456789abcdef" * 4

RICH = Plan(
    {"net.1": Prune(0), "net.0.attention/heads": Prune(2, "fisher", repair=False)},
    {
        "net.0.q": LayerPlan(Factorize(2, "plain"), Quantize("int8", 4, smooth=0.5, rounding="gptq")),
        "net.0.up": LayerPlan(mask=Mask(pattern="2:4", score="obs")),
        "embed": LayerPlan(quantize=Quantize("int8-weights")),
    },
    Distill(0.9, 4.0, 1e-4, 30, terms=Terms(1.0, "dynamic"), lora=Lora(4)),
    seed=3,
    repair="sequential",
)

#: What each plan is in JSON, written by hand, and the digits that may never change.
PINNED = [
    pytest.param(Plan(), "{}", "44136fa355b3678a", id="dense"),
    pytest.param(Plan({"h": Prune(2)}), '{"groups":{"h":{"keep":2}}}', "a9f7b7c5e03b5927", id="prune"),
    pytest.param(
        Plan(layers={"a": LayerPlan(quantize=Quantize("int8"))}),
        '{"layers":{"a":{"quantize":{"precision":"int8"}}}}', "06a4f98c20477b8d", id="quantize",
    ),
    pytest.param(Plan(mask=GlobalMask(0.5), seed=7), '{"mask":{"sparsity":0.5},"seed":7}', "6dd61b01a2209551",
                 id="global"),
    pytest.param(Plan(distill=Distill()), '{"distill":{}}', "ca9e6332cb93418c", id="distill"),
    pytest.param(
        Plan(learn=LotteryTicket(0.5, 4)), '{"learn":{"recipe":"lottery-ticket","rounds":4,"sparsity":0.5}}',
        "e4de118660993f5d",
        id="ticket",
    ),
    pytest.param(Plan(learn=Gradual(0.5)), '{"learn":{"recipe":"gradual","sparsity":0.5}}', "532226a49605f764",
                 id="gradual"),
    pytest.param(
        Plan(learn=Cofi(latency_ratio=0.25)), '{"learn":{"latency_ratio":0.25,"recipe":"cofi"}}', "c9b4aa7dadada59f",
        id="cofi"
    ),
    pytest.param(
        RICH,
        '{"distill":{"learning_rate":0.0001,"lora":{"rank":4},"soft_weight":0.9,"steps":30,'
        '"temperature":4.0,"terms":{"hidden":1.0,"hidden_map":"dynamic"}},'
        '"groups":{"net.0.attention/heads":{"keep":2,"repair":false,"score":"fisher"},"net.1":{"keep":0}},'
        '"layers":{"embed":{"quantize":{"precision":"int8-weights"}},'
        '"net.0.q":{"factorize":{"method":"plain","rank":2},'
        '"quantize":{"precision":"int8","rounding":"gptq","smooth":0.5,"weight_bits":4}},'
        '"net.0.up":{"mask":{"pattern":"2:4","score":"obs"}}},"repair":"sequential","seed":3}', "9730980a190e40af",
        id="rich",
    ),
]  # fmt: skip


# fingerprint and JSON


@pytest.mark.parametrize(("plan", "text", "digits"), PINNED)
def test_json_leaves_out_what_is_default(plan, text, digits):
    assert json.dumps(plan.to_json(), sort_keys=True, separators=(",", ":")) == text


@pytest.mark.parametrize(("plan", "text", "digits"), PINNED)
def test_fingerprints_are_the_hash_of_the_json_and_never_change(plan, text, digits):
    assert plan.fingerprint == hashlib.sha256(text.encode()).hexdigest()[:16] == digits


@pytest.mark.parametrize("hash_seed", ["1", "4242"])
def test_fingerprint_is_the_same_in_a_fresh_process(hash_seed):
    code = (
        "import json, sys\n"
        "from autocompress.plan import plan_from_json\n"
        "print(plan_from_json(json.loads(sys.stdin.read())).fingerprint, 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps(RICH.to_json()),
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == [RICH.fingerprint, "False"]


@given(plans())
def test_json_round_trip_gives_an_equal_plan(plan):
    again = plan_from_json(json.loads(json.dumps(plan.to_json(), allow_nan=False)))
    assert again == plan
    assert again.fingerprint == plan.fingerprint
    assert hash(again) == hash(plan)


@given(layer_plans)
def test_json_round_trip_gives_an_equal_layer_plan(layer_plan):
    plan = Plan(layers={"a": layer_plan}, init=SHA if layer_plan.mask and layer_plan.mask.score == "given" else None)
    assert plan_from_json(json.loads(json.dumps(plan.to_json()))).layers == plan.layers


@given(plans())
def test_order_of_the_mappings_changes_nothing(plan):
    turned = Plan(
        dict(reversed(plan.groups.items())), dict(reversed(plan.layers.items())),
        plan.distill, plan.seed, plan.mask, plan.repair, plan.learn, plan.init,
    )  # fmt: skip
    assert turned == plan
    assert turned.fingerprint == plan.fingerprint
    assert list(turned.groups) == sorted(plan.groups)
    assert list(turned.layers) == sorted(plan.layers)


@given(plans(), plans())
def test_plans_are_equal_exactly_when_their_fingerprints_are(one, other):
    assert (one == other) == (one.fingerprint == other.fingerprint)


@given(plans())
def test_plans_survive_copies_and_pickles(plan):
    assert copy.deepcopy(plan) == pickle.loads(pickle.dumps(plan)) == plan


@pytest.mark.parametrize(
    ("one", "other"),
    [
        pytest.param(Plan(distill=Distill(1)), Plan(distill=Distill(1.0)), id="soft_weight"),
        pytest.param(Plan(distill=Distill(0)), Plan(distill=Distill(-0.0)), id="minus_zero"),
        pytest.param(Plan(distill=Distill(temperature=2)), Plan(distill=Distill(temperature=2.0)), id="temperature"),
        pytest.param(Plan(distill=Distill(lora=Lora(alpha=8))), Plan(distill=Distill(lora=Lora(8, 8.0))), id="alpha"),
        pytest.param(Plan(mask=GlobalMask(0)), Plan(mask=GlobalMask(0.0)), id="sparsity"),
        pytest.param(Plan(learn=Gradual(0.5, temperature=3)), Plan(learn=Gradual(0.5, temperature=3.0)), id="recipe"),
        pytest.param(Plan(layers={"a": LayerPlan()}), Plan(), id="empty_layer_plan"),
        pytest.param(
            Plan(layers={"a": LayerPlan(quantize=Quantize("int8", 8))}),
            Plan(layers={"a": LayerPlan(quantize=Quantize("int8"))}), id="all_bits",
        ),
    ],
)  # fmt: skip
def test_plans_that_mean_the_same_have_one_fingerprint(one, other):
    assert one == other
    assert one.fingerprint == other.fingerprint


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 4}, {"repair": "dense"}, {"distill": None},
        {"layers": RICH.layers | {"embed": LayerPlan()}},
        {"groups": RICH.groups | {"net.1": Prune(0, repair=False)}},
    ],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_any_change_changes_the_fingerprint(change):
    values: dict[str, Any] = {name: getattr(RICH, name) for name in RICH.__dataclass_fields__}
    assert Plan(**{**values, **change}).fingerprint != RICH.fingerprint


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


# contradictions

GIVEN = LayerPlan(mask=Mask(0.5, score="given"))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        pytest.param({"mask": GlobalMask(0.5), "layers": {"a": LayerPlan(mask=Mask(0.5))}},
                     "mask: covers all layers, so layer a can have none of its own", id="two_masks"),
        pytest.param({"mask": GlobalMask(0.5), "layers": {"b": LayerPlan(Factorize(2))}},
                     "mask: covers all layers, so layer b cannot be factorized", id="mask_and_rank"),
        pytest.param({"learn": Gradual(0.5), "groups": {"g": Prune(1)}}, "learn: finds groups and masks itself",
                     id="learn_and_groups"),
        pytest.param({"learn": Gradual(0.5), "mask": GlobalMask(0.5)}, "learn: finds groups and masks itself",
                     id="learn_and_mask"),
        pytest.param({"learn": Gradual(0.5), "layers": {"a": LayerPlan(mask=Mask(0.5))}},
                     "learn: finds groups and masks itself", id="learn_and_layer_mask"),
        pytest.param({"learn": Gradual(0.5), "layers": {"a": LayerPlan(Factorize(2))}},
                     "learn: finds whole weights, so layer a cannot be factorized", id="learn_and_rank"),
        *(pytest.param({"layers": {"a": LayerPlan(quantize=quantize)}, "distill": Distill(fake_quantize=True)},
                       "distill: fake_quantize trains on plainly rounded weights, which gptq or bias_correction of a",
                       id=f"fake_quantize_and_{name}")
          for name, quantize in (("gptq", Quantize("int8", rounding="gptq")),
                                 ("bias", Quantize("int8", bias_correction=True)))),
        pytest.param({"learn": Gradual(0.5), "init": SHA}, "learn: finds groups and masks itself", id="learn_and_init"),
        pytest.param({"groups": {"g": Prune(1, "given")}}, "g: score 'given' needs the plan's init", id="given_group"),
        pytest.param({"layers": {"a": GIVEN}}, "a: score 'given' needs the plan's init", id="given_mask"),
        pytest.param({"distill": Distill(fake_quantize=True)}, "distill: fake_quantize needs layers with quantize",
                     id="fake_quantize"),
        pytest.param({"repair": "both"}, "repair must be one of 'dense', 'sequential', but got 'both'", id="repair"),
        pytest.param({"init": "abc"}, "init: must be a sha256, 64 hexadecimal digits, but got 'abc'", id="init_short"),
        pytest.param({"init": "../" + "a" * 61}, "init: must be a sha256", id="init_path"),
        pytest.param({"init": 5}, "init: must be a sha256, 64 hexadecimal digits, but got 5", id="init_number"),
        *(pytest.param({"seed": value}, f"seed: must be an integer of 0 or more, but got {value!r}", id=f"seed_{value}")
          for value in (-1, 1.0, True, "1", None)),
    ],
)  # fmt: skip
def test_a_plan_that_contradicts_itself_is_refused(values, message):
    with pytest.raises(PlanError, match=re.escape(message)):
        Plan(**values)


def test_contradictions_are_told_at_once():
    with pytest.raises(PlanError) as caught:
        Plan(
            {"g": Prune(1, "given")},
            {"a": LayerPlan(Factorize(1)), "b": GIVEN},
            mask=GlobalMask(0.5),
            seed=-1,
            repair="",
        )
    told = str(caught.value).split("; ")
    assert [fault.split()[0] for fault in told] == ["mask:", "mask:", "g:", "repair", "seed:"]


def test_given_structures_and_zeros_are_legal_with_weights_to_start_from():
    assert Plan({"g": Prune(1, "given")}, {"a": GIVEN}, init=SHA).init == SHA


# reading


@pytest.mark.parametrize(
    ("data", "message"),
    [
        pytest.param([], "p.json: expected an object, but got []", id="not_an_object"),
        pytest.param({"layer": {}}, "p.json: unknown key 'layer'; did you mean 'layers'", id="unknown_key"),
        pytest.param({3: {}}, "p.json: keys must be text, but got 3", id="number_as_key"),
        pytest.param({"groups": {1: {"keep": 2}}}, "p.json: groups: keys must be text, but got 1",
                     id="number_as_group"),
        pytest.param({"groups": None}, "p.json: groups: expected an object, but got None", id="groups_is_null"),
        pytest.param({"groups": {"g": 3}}, "p.json: groups: g: expected an object, but got 3", id="group_not_object"),
        pytest.param({"groups": {"g": {"kep": 3}}}, "p.json: groups: g: unknown key 'kep'; did you mean 'keep'",
                     id="group_key"),
        pytest.param({"groups": {"g": {"keep": -2}}},
                     "p.json: groups: g: Prune: keep must be an integer of 0 or more, but got -2", id="group_value"),
        pytest.param({"groups": {"g": {}}}, "p.json: groups: g: Prune needs 'keep'", id="group_without_keep"),
        pytest.param({"layers": []}, "p.json: layers: expected an object, but got []", id="layers_is_a_list"),
        pytest.param({"layers": {"a": 3}}, "p.json: layers: a: expected an object, but got 3", id="layer_is_a_number"),
        pytest.param({"layers": {"a": {"quantise": {}}}},
                     "p.json: layers: a: unknown key 'quantise'; did you mean 'quantize'", id="technique_unknown"),
        pytest.param({"layers": {"a": {"quantize": "int8"}}},
                     "p.json: layers: a: quantize: expected an object, but got 'int8'", id="quantize_is_text"),
        pytest.param({"layers": {"a": {"quantize": {"precision": "int7"}}}},
                     "p.json: layers: a: quantize: Quantize: precision must be one of", id="layer_value"),
        pytest.param({"layers": {"a": {"quantize": {}}}}, "p.json: layers: a: quantize: Quantize needs 'precision'",
                     id="quantize_empty"),
        pytest.param({"layers": {"a": {"mask": {"sparsity": 0.5}, "factorize": {"rank": 2}}}},
                     "p.json: layers: a: LayerPlan: mask and factorize", id="mask_and_rank"),
        pytest.param({"mask": {"sparsity": 2}}, "p.json: mask: GlobalMask: sparsity must be in [0, 1), but got 2",
                     id="mask"),
        pytest.param({"distill": {"steps": 0}}, "p.json: distill: Distill: steps must be an integer", id="distill"),
        pytest.param({"distill": {"temperature": "2"}}, "p.json: distill: Distill: temperature must be above 0",
                     id="distill_text"),
        pytest.param({"distill": {"terms": {"hiden": 1}}},
                     "p.json: distill: terms: unknown key 'hiden'; did you mean 'hidden'", id="terms_key"),
        pytest.param({"distill": {"lora": {"rank": 0}}}, "p.json: distill: lora: Lora: rank must be an integer",
                     id="lora_value"),
        pytest.param({"learn": {"sparsity": 0.5}},
                     "p.json: learn: recipe must be one of gradual, lottery-ticket, cofi, but got None",
                     id="no_recipe"),
        pytest.param({"learn": {"recipe": "ticket"}}, "p.json: learn: recipe must be one of gradual",
                     id="recipe_unknown"),
        pytest.param({"learn": {"recipe": "cofi", "sparsty": 0.5}},
                     "p.json: learn: unknown key 'sparsty'; did you mean 'sparsity'", id="recipe_key"),
        pytest.param({"learn": {"recipe": "cofi"}}, "p.json: learn: Cofi: give exactly one of", id="recipe_value"),
        pytest.param({"learn": {"recipe": "gradual"}}, "p.json: learn: Gradual needs 'sparsity'", id="recipe_missing"),
        pytest.param({"learn": "cofi"}, "p.json: learn: expected an object, but got 'cofi'", id="recipe_is_text"),
        pytest.param({"seed": "x"}, "p.json: seed: must be an integer of 0 or more, but got 'x'", id="seed_is_text"),
        pytest.param({"seed": 10**400, "distill": {"temperature": 10**400}},
                     "p.json: distill: Distill: temperature must be above 0", id="huge"),
        pytest.param({"groups": {"g": {"keep": 1, "score": "given"}}}, "p.json: g: score 'given' needs the plan's init",
                     id="contradiction"),
    ],
)  # fmt: skip
def test_plan_from_json_names_source_key_and_value(data, message):
    with pytest.raises(PlanError, match=f"^{re.escape(message)}"):
        plan_from_json(data, "p.json")


def test_null_says_nothing_where_a_record_may_be_left_out():
    data = {
        "mask": None, "distill": None, "learn": None, "init": None,
        "layers": {"a": {"mask": None, "factorize": None, "quantize": None}},
    }  # fmt: skip
    assert plan_from_json(data) == Plan()


# patterns

INT8 = {"quantize": {"precision": "int8"}}
DYNAMIC = {"quantize": {"precision": "int8-dynamic"}}
RANK = {"factorize": {"rank": 2}}


def test_a_pattern_stands_for_every_layer_that_it_fits(wide):
    plan = plan_from_json({"layers": {"*.up": INT8}}, table=wide)
    assert dict(plan.layers) == dict.fromkeys(("f.mlp.up", "s.mlp.up"), LayerPlan(quantize=Quantize("int8")))


def test_an_exact_name_goes_before_a_pattern_wherever_it_stands(wide):
    exact = LayerPlan(quantize=Quantize("int8-dynamic"))
    for data in ({"f.mlp.up": DYNAMIC, "*.up": INT8}, {"*.up": INT8, "f.mlp.up": DYNAMIC}):
        plan = plan_from_json({"layers": data}, table=wide)
        assert plan.layers["f.mlp.up"] == exact
        assert plan.layers["s.mlp.up"].precision == "int8"


def test_a_later_pattern_goes_before_an_earlier_one_as_a_whole(wide):
    plan = plan_from_json({"layers": {"s.*": INT8, "*.mlp.*": RANK}}, table=wide)
    assert plan.layers["s.mlp.up"] == plan.layers["f.mlp.up"] == LayerPlan(Factorize(2))  # no int8 is mixed in
    assert plan.layers["s.attn.q"].precision == "int8"
    turned = plan_from_json({"layers": {"*.mlp.*": RANK, "s.*": INT8}}, table=wide)
    assert turned.layers["s.mlp.up"] == LayerPlan(quantize=Quantize("int8"))


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("?.attn.q*", {"f.attn.qkv", "s.attn.q"}),
        ("s.attn.[qk]", {"s.attn.q", "s.attn.k"}),
        ("s.attn.[!qk]", {"s.attn.v", "s.attn.o"}),
        ("*", None),
    ],
)
def test_signs_of_a_pattern(wide, pattern, found):
    plan = plan_from_json({"layers": {pattern: INT8}}, table=wide)
    assert set(plan.layers) == (found or {layer.name for layer in wide.layers})


def test_groups_take_patterns_too(wide):
    plan = plan_from_json({"groups": {"*/heads": {"keep": 1}, "f.attn/heads": {"keep": 3}}}, table=wide)
    assert dict(plan.groups) == {"f.attn/heads": Prune(3), "s.attn/heads": Prune(1)}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"layers": {"*.fc1": INT8}}, "p.json: layers: pattern '*.fc1' matches nothing in this model"),
        ({"layers": {"*.UP": INT8}}, "p.json: layers: pattern '*.UP' matches nothing in this model"),
        ({"groups": {"*/head": {"keep": 1}}},
        "p.json: groups: pattern '*/head' matches nothing in this model; did you"),
        ({"groups": {"*.up": {"keep": 1}}}, "p.json: groups: pattern '*.up' matches nothing in this model"),
    ],
)  # fmt: skip
def test_a_pattern_that_matches_nothing_is_refused(wide, data, message):
    with pytest.raises(PlanError, match=f"^{re.escape(message)}"):
        plan_from_json(data, "p.json", wide)


def test_the_records_behind_a_pattern_are_checked_under_the_names_it_found(wide):
    with pytest.raises(PlanError, match=r"^plan: layers: f\.mlp\.up: factorize: Factorize: rank must be"):
        plan_from_json({"layers": {"*.up": {"factorize": {"rank": 0}}}}, table=wide)


def test_without_a_table_a_pattern_is_a_name(wide):
    assert list(plan_from_json({"layers": {"*.up": INT8}}).layers) == ["*.up"]


@given(st.data())
def test_a_written_plan_reads_the_same_with_and_without_its_table(wide, data):
    plan = data.draw(plans())
    named = {group.name: Prune(1) for group in wide.groups[: len(plan.groups)]}
    layers = dict(zip((layer.name for layer in wide.layers), plan.layers.values(), strict=False))
    whole = Plan(named if not plan.init else {}, layers, init=plan.init)
    assert plan_from_json(whole.to_json(), table=wide) == plan_from_json(whole.to_json()) == whole


@pytest.mark.parametrize(
    ("plan", "draws"),
    [
        (Plan(), False),
        (Plan({"g": Prune(2)}), False),
        (Plan({"g": Prune(2, score="random")}), True),
        (Plan(layers={"a": LayerPlan(mask=Mask(0.5, score="random"))}), True),
        (Plan(mask=GlobalMask(0.5, score="random")), True),
        (Plan(learn=Cofi(sparsity=0.5)), True),
    ],
)
def test_whether_structure_depends_on_the_seed(plan: Plan, draws: bool) -> None:
    assert plan.draws is draws
