"""Oracles: plans written by hand for values written by hand; `check_plan` for every value that can be drawn.

The table: two blocks of 4 heads (width 2) and 16 neurons; rounding heads 1, neurons 4, rank 2 (see conftest).
"""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autocompress.errors import SpaceError
from autocompress.hardware import HardwareProfile, Rounding
from autocompress.layers import Group, Layer, LayerTable
from autocompress.plan import Distill, Factorize, LayerPlan, Plan, Prune, Quantize, check_plan
from autocompress.rules import SpaceRules, load_space
from autocompress.space import LayerChoice, SearchSpace, Variable, build_space, default_space

JOINT = {
    "groups": {"heads": [1.0, 0.5, 0.25], "neurons": [1.0, 0.5]},
    "blocks": {"remove": True, "keep_at_least": 0.5},
    "layers": [
        {"kind": "linear", "precision": ["fp32", "int8-dynamic", "int8"], "rank": [1.0, 0.5, 0.25], "share": "block"},
        {"kind": "embedding", "precision": ["fp32", "int8-weights"], "share": "all"},
    ],
    "distill": {"steps": [0, 10, 20], "default": {"soft_weight": 0.9, "temperature": 3.0, "learning_rate": 0.0002}},
}


@pytest.fixture(scope="module")
def joint(make_space) -> SearchSpace:
    return make_space(JOINT)


def index(space: SearchSpace, name: str, level: float | str) -> int:
    return space.by_name[name].levels.index(level)


def drawn(data: st.DataObject, space: SearchSpace) -> dict[str, int | float]:
    """Any value of every variable."""
    return {
        v.name: data.draw(st.integers(0, len(v.levels) - 1) if v.levels else st.floats(v.low, v.high), label=v.name)
        for v in space.variables
    }


# variables


def test_variables_of_the_joint_space(joint):
    levels = {v.name: v.levels for v in joint.variables if v.levels}
    linear = {"precision": ("fp32", "int8-dynamic", "int8"), "rank": (1.0, 0.5, 0.25)}
    expected = {"steps": (0.0, 10.0, 20.0), "precision:rule 1": ("fp32", "int8-weights")}
    for block in ("net.0", "net.1"):
        expected |= {
            f"keep:{block}.attention/heads": (1.0, 0.5, 0.25),
            f"keep:{block}.mlp/neurons": (1.0, 0.5),
            f"remove:{block}": (0, 1),
        }
    for scope in ("net.0 (rule 0)", "net.1 (rule 0)", "classifier"):
        expected |= {f"{kind}:{scope}": value for kind, value in linear.items()}
    assert levels == expected
    assert [v for v in joint.variables if not v.levels] == [
        Variable("soft_weight", low=0.0, high=1.0),
        Variable("temperature", low=1.0, high=8.0, log=True),
        Variable("learning_rate", low=1e-4, high=1e-3, log=True),
    ]


def test_choices_say_what_each_layer_may_take(joint, table):
    linear, (first, second) = ("fp32", "int8-dynamic", "int8"), joint.rules.layers
    assert joint.choices["net.0.q"] == joint.choices["net.0.up"] == LayerChoice("net.0 (rule 0)", linear, first)
    assert joint.choices["net.1.down"] == LayerChoice("net.1 (rule 0)", linear, first)
    assert joint.choices["classifier"] == LayerChoice("classifier", linear, first)
    assert joint.choices["embed"] == LayerChoice("rule 1", ("fp32", "int8-weights"), second)
    assert set(joint.choices) == {layer.name for layer in table.layers} - {"conv"}


def test_what_has_one_level_is_fixed_and_no_variable(joint, make_space):
    space = make_space(
        {
            "groups": {"heads": [0.5]},
            "layers": [{"match": "net.0.q", "precision": ["int8"], "rank": [1.0, 0.5]}],
            "distill": {"steps": [10], "temperature": {"low": 5.0, "high": 5.0}},
        }
    )
    assert space.fixed == {
        **{f"keep:net.{i}.attention/heads": 0.5 for i in range(2)},
        **{f"keep:net.{i}.mlp/neurons": 1.0 for i in range(2)},
        "precision:net.0.q": "int8", "steps": 10.0, "temperature": 5.0,
    }  # fmt: skip
    assert {v.name for v in space.variables} == {"rank:net.0.q", "soft_weight", "learning_rate"}
    assert joint.fixed == {}


@pytest.mark.parametrize(
    ("share", "scopes"),
    [
        ("all", {"rule 0"}),
        ("block", {"net.0 (rule 0)", "net.1 (rule 0)", "classifier"}),
        ("layer", {"net.0.q", "net.1.down", "classifier"}),
    ],
)
def test_share_decides_how_many_choices_there_are(make_space, table, share, scopes):
    space = make_space({"layers": [{"kind": "linear", "precision": ["fp32", "int8"], "share": share}]})
    names = {v.name for v in space.variables}
    assert {f"precision:{scope}" for scope in scopes} <= names
    assert len(names) == {"all": 1, "block": 3, "layer": 13}[share]


def test_levels_are_ordered_whatever_the_file_says(make_space):
    space = make_space(
        {
            "groups": {"heads": [0.25, 1.0, 0.5, 0.5]},
            "layers": [{"match": "classifier", "precision": ["int8", "fp32", "int8-dynamic"]}],
            "distill": {"steps": [20, 0, 10]},
        }
    )
    assert space.by_name["keep:net.0.attention/heads"].levels == (1.0, 0.5, 0.25)
    assert space.by_name["precision:classifier"].levels == ("fp32", "int8-dynamic", "int8")
    assert space.by_name["steps"].levels == (0.0, 10.0, 20.0)


@pytest.mark.parametrize(
    ("offered", "dropped", "levels"),
    [
        pytest.param(["int8-dynamic", "int8", "int4-weights"], [], ("fp32", "int8-dynamic", "int8"), id="all"),
        pytest.param(["int8"], [], ("fp32", "int8"), id="profile_has_no_kernel"),
        pytest.param(["int8-dynamic", "int8"], ["int8-dynamic"], ("fp32", "int8"), id="dropped_by_the_probe"),
        pytest.param(["int8"], ["int8"], None, id="nothing_left"),
    ],
)
def test_precisions_are_those_of_rule_profile_and_probe(make_space, offered, dropped, levels):
    profile = HardwareProfile(name="p", threads=1, precisions={"linear": tuple(offered)})
    rules = {
        "groups": {"heads": [1.0, 0.5]},
        "layers": [{"match": "classifier", "precision": ["fp32", "int8-dynamic", "int8"]}],
    }
    space = make_space(rules, profile=profile, dropped=frozenset(dropped))
    variable = space.by_name.get("precision:classifier")
    assert (variable.levels if variable else None) == levels
    assert space.choices["classifier"].precisions == (levels or ("fp32",))
    assert space.fixed.get("precision:classifier") == (None if levels else "fp32")


def test_a_kind_that_the_profile_does_not_name_stays_fp32(make_space):
    profile = HardwareProfile(name="p", threads=1, precisions={"linear": ("int8",)})
    space = make_space({"layers": [{"precision": ["fp32", "int8", "int8-weights"]}]}, profile=profile)
    assert "precision:embed" not in space.by_name
    assert "precision:conv" not in space.by_name


def test_what_a_layer_does_not_allow_is_not_offered(make_space):
    space = make_space({"layers": [{"rank": [1.0, 0.5]}]})
    assert "rank:net.0.q" in space.by_name
    assert not {"rank:embed", "rank:conv"} & set(space.by_name)


def test_of_several_rules_the_last_that_fits_counts_where_scopes_differ(make_space):
    rules = [
        {"kind": "linear", "precision": ["fp32", "int8"], "share": "all"},
        {"match": "classifier", "precision": ["fp32", "int8-dynamic"]},
    ]
    space = make_space({"layers": rules})
    assert space.by_name["precision:classifier"].levels == ("fp32", "int8-dynamic")
    assert space.choices["net.0.q"].scope == "rule 0"
    plan = space.decode({"precision:rule 0": 1})
    assert len(plan.layers) == 12
    assert "classifier" not in plan.layers


@pytest.mark.parametrize("share", ["layer", "block", "all"])
def test_a_later_rule_takes_its_layer_out_of_any_earlier_scope(make_space, share):
    rules = [
        {"kind": "linear", "precision": ["fp32", "int8-dynamic", "int8"], "rank": [1.0, 0.25], "share": share},
        {"match": "net.0.q", "precision": ["fp32", "int4-weights"]},
    ]
    space = make_space({"layers": rules})
    assert space.choices["net.0.q"] == LayerChoice("net.0.q", ("fp32", "int4-weights"), space.rules.layers[1])
    assert "rank:net.0.q" not in space.by_name
    plan = space.decode(space.uniform(precision="int8", rank=0.25))
    assert "net.0.q" not in plan.layers
    assert plan.layers["net.0.k"] == LayerPlan(Factorize(2), Quantize("int8"))


def test_of_several_rules_per_layer_the_last_counts(make_space):
    rules = [{"kind": "linear", "precision": ["fp32", "int8"]}, {"match": "classifier", "precision": ["fp32"]}]
    space = make_space({"layers": rules})
    assert "precision:net.0.q" in space.by_name
    assert "precision:classifier" not in space.by_name


@pytest.mark.parametrize(
    ("rules", "plan"),
    [
        pytest.param(
            {"layers": [{"match": "classifier", "precision": ["int8"]}], "groups": {"heads": [1.0, 0.5]}},
            Plan(layers={"classifier": LayerPlan(quantize=Quantize("int8"))}), id="precision",
        ),
        pytest.param(
            {"groups": {"heads": [0.5]}, "layers": [{"match": "classifier", "precision": ["fp32", "int8"]}]},
            Plan({f"net.{i}.attention/heads": Prune(2) for i in range(2)}), id="heads",
        ),
        pytest.param(
            {"layers": [{"match": "net.0.up", "rank": [0.25]}], "groups": {"heads": [1.0, 0.5]}},
            Plan(layers={"net.0.up": LayerPlan(Factorize(2))}), id="rank",
        ),
        pytest.param(
            {"distill": {"steps": [10], "default": {"soft_weight": 0.9}}, "groups": {"heads": [1.0, 0.5]}},
            Plan(distill=Distill(0.9, 2.0, 3e-4, 10)), id="steps",
        ),
    ],
)  # fmt: skip
def test_a_single_level_holds_for_every_candidate(make_space, rules, plan):
    space = make_space(rules)
    assert space.decode(space.uniform()) == plan


def test_an_interval_of_one_value_holds_for_every_candidate(make_space):
    distill = {"steps": [0, 10], "temperature": {"low": 5.0, "high": 5.0}}
    space = make_space({"distill": distill, "groups": {"heads": [1.0, 0.5]}})
    plan = space.decode(space.uniform(recover=True))
    assert plan.distill is not None
    assert plan.distill.temperature == 5.0


def test_kinds_that_share_a_choice_keep_to_their_own_kernels(make_space):
    profile = HardwareProfile(name="p", threads=1, precisions={"linear": ("int8",), "conv": ("fp32",)})
    space = make_space({"layers": [{"precision": ["fp32", "int8"], "share": "all"}]}, profile=profile)
    rule = space.rules.layers[0]
    assert space.choices["classifier"] == LayerChoice("rule 0", ("fp32", "int8"), rule)
    assert space.choices["conv"] == space.choices["embed"] == LayerChoice("rule 0", ("fp32",), rule)
    plan = space.decode({"precision:rule 0": 1})
    assert {lp for lp in plan.layers.values()} == {LayerPlan(quantize=Quantize("int8"))}
    assert len(plan.layers) == 13
    assert "classifier" in plan.layers
    assert "conv" not in plan.layers


# decode


def test_uniform_values_without_arguments_are_the_dense_model(joint):
    assert joint.decode(joint.uniform()) == Plan()
    assert joint.decode({}) == Plan()


def test_the_seed_is_in_the_plan_only_where_a_recovery_draws_from_it(joint):
    assert joint.decode({}, seed=7) == Plan()
    assert joint.decode({"remove:net.1": 1, "steps": 0}, seed=7) == Plan({"net.1": Prune(0)})
    assert joint.decode({"steps": 1}, seed=7) == Plan(distill=Distill(0.9, 3.0, 2e-4, 10), seed=7)


def test_decode_rounds_structures_to_the_profile(joint):
    plan = joint.decode({"keep:net.0.attention/heads": 1, "keep:net.1.mlp/neurons": 1})
    assert plan == Plan({"net.0.attention/heads": Prune(2), "net.1.mlp/neurons": Prune(8)})


@pytest.mark.parametrize(
    ("share", "step", "keep"),
    [(0.5, 4, 8), (0.3, 4, 4), (0.4, 4, 8), (0.01, 4, 4), (0.9, 16, None), (0.95, 4, None), (0.3, 1, 5)],
)
def test_widths_go_to_the_nearest_multiple_and_full_ones_say_nothing(make_space, share, step, keep):
    profile = HardwareProfile(name="p", threads=1, rounding=Rounding(neurons=step), precisions={})
    space = make_space({"groups": {"neurons": [1.0, share], "heads": [1.0, 0.5]}}, profile=profile)
    plan = space.decode({"keep:net.0.mlp/neurons": 1})
    assert plan == Plan({"net.0.mlp/neurons": Prune(keep)} if keep else {})


def test_a_removed_block_swallows_its_other_choices(joint):
    alone = joint.decode({"remove:net.1": 1})
    more = {
        "remove:net.1": 1,
        "keep:net.1.attention/heads": 2,
        "keep:net.1.mlp/neurons": 1,
        "precision:net.1 (rule 0)": 2,
        "rank:net.1 (rule 0)": 2,
    }
    assert alone == Plan({"net.1": Prune(0)})
    assert set(more) <= set(joint.by_name)
    assert joint.decode(more) == alone
    assert joint.decode(more).fingerprint == alone.fingerprint


def test_precision_of_a_scope_reaches_all_its_layers(joint):
    plan = joint.decode({"precision:net.0 (rule 0)": index(joint, "precision:net.0 (rule 0)", "int8")})
    int8 = LayerPlan(quantize=Quantize("int8"))
    assert plan == Plan(layers={f"net.0.{n}": int8 for n in ("q", "k", "v", "o", "up", "down")})


def test_ranks_at_or_above_break_even_are_left_out(joint):
    # Share 0.5: rank 4 of (8, 8) has 4·16 = 64 weights, as many as dense: out; of (16, 8) 4·24 = 96 < 128: in.
    plan = joint.decode({"rank:net.0 (rule 0)": index(joint, "rank:net.0 (rule 0)", 0.5)})
    assert plan == Plan(layers={f"net.0.{n}": LayerPlan(Factorize(4)) for n in ("up", "down")})
    quarter = joint.decode({"rank:net.0 (rule 0)": index(joint, "rank:net.0 (rule 0)", 0.25)})
    assert set(quarter.layers) == {f"net.0.{n}" for n in ("q", "k", "v", "o", "up", "down")}
    assert {lp.factorize for lp in quarter.layers.values()} == {Factorize(2)}


def test_ranks_are_shares_of_the_pruned_shape(joint):
    # 8 of 16 neurons stay: up is (8, 8), where rank 4 is break-even.
    half = index(joint, "rank:net.0 (rule 0)", 0.5)
    plan = joint.decode({"keep:net.0.mlp/neurons": 1, "rank:net.0 (rule 0)": half})
    assert plan == Plan({"net.0.mlp/neurons": Prune(8)})


def test_rank_and_precision_of_one_layer_are_both_kept(joint):
    plan = joint.decode({"rank:net.0 (rule 0)": 2, "precision:net.0 (rule 0)": 2})
    assert plan.layers["net.0.up"] == LayerPlan(Factorize(2), Quantize("int8"))


def test_no_steps_no_distillation_settings(joint):
    assert joint.decode({"steps": 0, "soft_weight": 0.3, "temperature": 2.0, "learning_rate": 5e-4}) == Plan()


def test_steps_bring_the_settings(joint):
    plan = joint.decode({"steps": 2, "soft_weight": 0.3, "temperature": 2.0, "learning_rate": 5e-4})
    assert plan.distill == Distill(0.3, 2.0, 5e-4, 20)
    assert joint.decode({"steps": 1}).distill == Distill(0.9, 3.0, 2e-4, 10)


def test_without_soft_loss_the_temperature_says_nothing(joint):
    hot, cold = (joint.decode({"steps": 1, "soft_weight": 0.0, "temperature": t}) for t in (8.0, 1.0))
    assert hot.fingerprint == cold.fingerprint


def test_the_probed_learning_rate_takes_the_place_of_the_default(make_space):
    space = make_space(JOINT, learning_rate=7e-4)
    plan = space.decode(space.uniform(recover=True))
    assert plan.distill == Distill(0.9, 3.0, 7e-4, 20)


@pytest.mark.parametrize(
    ("blocks", "share", "removed"),
    [
        pytest.param(4, 0.5, ["net.2", "net.3"], id="half_the_last_go"),
        pytest.param(4, 1.0, [], id="all_stay"),
        pytest.param(4, 0.01, ["net.1", "net.2", "net.3"], id="one_always_stays"),
        pytest.param(1, 0.01, [], id="a_single_block_stays"),
        pytest.param(3, 0.5, ["net.2"], id="two_of_three_stay"),
        pytest.param(5, 0.5, ["net.3", "net.4"], id="three_of_five_stay"),
        pytest.param(5, 0.6, ["net.3", "net.4"], id="three_of_five_exactly"),
        pytest.param(10, 0.7, ["net.7", "net.8", "net.9"], id="seven_of_ten_in_spite_of_float_rounding"),
    ],
)  # fmt: skip
def test_keep_at_least_is_respected(make_space, make_table, blocks, share, removed):
    rules = {"blocks": {"remove": True, "keep_at_least": share}, "groups": {"heads": [1.0, 0.5]}}
    space = make_space(rules, table=make_table(blocks))
    plan = space.decode({f"remove:net.{i}": 1 for i in range(blocks)})
    assert plan == Plan({name: Prune(0) for name in removed})


@given(st.data())
def test_every_plan_that_can_be_drawn_fits_the_model_and_is_canonical(joint, table, data):
    plan = joint.decode(drawn(data, joint))
    check_plan(plan, table)
    gone = {name for name in table.blocks if name in plan.groups}
    assert len(gone) <= 1
    assert not any(name.startswith(f"{block}.") for block in gone for name in (*plan.groups, *plan.layers))
    assert all(prune.keep < table.group(name).size for name, prune in plan.groups.items())


def test_equal_candidates_have_one_fingerprint_over_the_whole_of_a_small_space(make_space):
    # 2 blocks, one goes at most: (none, 1st, 2nd) where both asked means 2nd; heads of what stays.
    space = make_space({"groups": {"heads": [1.0, 0.5]}, "blocks": {"remove": True}})
    names = [v.name for v in space.variables]
    plans = {space.decode(dict(zip(names, bits, strict=True))) for bits in itertools.product((0, 1), repeat=4)}
    assert len(names) == 4
    assert len(plans) == 4 + 2 + 2
    assert len({plan.fingerprint for plan in plans}) == len(plans)


# uniform and smallest


def test_uniform_takes_the_nearest_levels(joint):
    plan = joint.decode(joint.uniform(keep=0.3, precision="int8", recover=True))
    # heads 0.25 of 4: 1; neurons nearest 0.5 of 16: 8.
    assert {name: prune.keep for name, prune in plan.groups.items()} == {
        "net.0.attention/heads": 1, "net.0.mlp/neurons": 8, "net.1.attention/heads": 1, "net.1.mlp/neurons": 8,
    }  # fmt: skip
    assert {lp.precision for lp in plan.layers.values()} == {"int8", "int8-weights"}
    assert plan.layers["embed"].precision == "int8-weights"
    assert plan.distill == Distill(0.9, 3.0, 2e-4, 20)


@pytest.mark.parametrize(
    ("wanted", "linear", "embedding"),
    [
        ("fp32", "fp32", "fp32"),
        ("int8-dynamic", "int8-dynamic", "int8-weights"),
        ("int8", "int8", "int8-weights"),
        ("int4-weights", "int8", "int8-weights"),
    ],
)
def test_uniform_precision_is_the_wanted_or_the_lightest_that_is_not_lighter(joint, wanted, linear, embedding):
    plan = joint.decode(joint.uniform(precision=wanted))
    found = {name: plan.layers.get(name, LayerPlan()).precision for name in ("classifier", "embed")}
    assert found == {"classifier": linear, "embed": embedding}


def test_uniform_can_remove_blocks_and_set_ranks(joint):
    plan = joint.decode(joint.uniform(rank=0.25, removed=("net.1",)))
    assert plan.groups == {"net.1": Prune(0)}
    assert plan.layers["net.0.q"] == LayerPlan(Factorize(2))


def test_uniform_keeps_the_default_inside_the_interval(make_space):
    distill = {"steps": [0, 5], "learning_rate": {"low": 1e-3, "high": 2e-3}, "default": {"learning_rate": 1e-4}}
    space = make_space({"distill": distill, "groups": {"heads": [1.0, 0.5]}})
    assert space.uniform()["learning_rate"] == 1e-3


def test_uniform_names_every_variable(joint):
    names = {v.name for v in joint.variables}
    assert set(joint.uniform()) == names


def test_uniform_at_zero_is_the_least_structure_without_recovery(joint, table):
    plan = joint.decode(joint.uniform(keep=0.0, precision="int8", removed=table.blocks))
    check_plan(plan, table)
    assert plan.groups == {"net.1": Prune(0), "net.0.attention/heads": Prune(1), "net.0.mlp/neurons": Prune(8)}
    assert plan.layers["net.0.q"].precision == "int8"
    assert plan.distill is None


# refusals


def test_a_pattern_that_matches_nothing_shows_near_names(make_space):
    with pytest.raises(SpaceError, match="'clasifier' matches no layer of this model; did you mean 'classifier'"):
        make_space({"layers": [{"match": "clasifier", "precision": ["fp32", "int8"]}]})


def test_a_pattern_that_matches_only_other_kinds_says_which(make_space):
    with pytest.raises(SpaceError, match=r"space 'test': layers\.0: 'net\.\*' matches only linear layers"):
        make_space({"layers": [{"match": "net.*", "kind": "conv", "precision": ["fp32", "int8"]}]})


def test_a_kind_that_the_model_lacks_is_passed_over_for_all_layers(make_space, table):
    linear_only = LayerTable(tuple(la for la in table.layers if la.kind == "linear"), (), 1)
    rules = [{"kind": "conv", "precision": ["fp32", "int8"]}, {"kind": "linear", "precision": ["fp32", "int8"]}]
    space = make_space({"layers": rules}, table=linear_only)
    assert len(space.variables) == len(linear_only.layers)


def test_a_pattern_or_kind_that_does_not_fit_is_told_with_the_others_and_the_file(tmp_path, table, profile):
    file = tmp_path / "mine.yaml"
    file.write_text("layers: [{match: clasifier}, {match: 'net.*', kind: conv}, {kind: conv, precision: [fp32, int8]}]")
    with pytest.raises(SpaceError) as caught:
        build_space(load_space(file), table, profile)
    assert str(caught.value).splitlines() == [
        f"{file}:",
        "  layers.0.match: layer pattern 'clasifier' matches no layer of this model; did you mean 'classifier'?",
        "  layers.1: 'net.*' matches only linear layers, but kind is 'conv'",
    ]


NAMELESS = "the model has 15 layers (conv, embedding, linear) and 0 groups; the space for it is 'generic'"


@pytest.mark.parametrize(
    ("rules", "grouped", "told"),
    [
        pytest.param(
            {}, False, ["it asks for nothing; give levels to groups, blocks or layers", NAMELESS], id="nothing"
        ),
        pytest.param(
            {"groups": {"heads": [1.0, 0.5], "remove_attention": True}, "blocks": {"remove": True},
             "distill": {"steps": [0, 10]}}, False,
            ["groups.heads [1.0, 0.5]: no adapter knows heads of this model",
             "groups.remove_attention true: no adapter knows such parts of this model",
             "blocks.remove true: no adapter knows such parts of this model", NAMELESS], id="no_structure",
        ),
        pytest.param(
            {"groups": {"channels": [0.5]}, "distill": {"steps": [10]}}, False,
            ["groups.channels [0.5]: no adapter knows channels of this model", NAMELESS], id="fixed_structure",
        ),
        pytest.param(
            {"groups": {"neurons": [1.0, 0.95]}}, True,
            ["groups.neurons [1.0, 0.95]: rounded to multiples of 4 (rounding.neurons of the profile), "
             "all of them stay"],
            id="rounded",
        ),
        pytest.param(
            {"blocks": {"remove": True, "keep_at_least": 0.9}}, True,
            ["blocks.remove true: keep_at_least 0.9 keeps all 2 of them"], id="all_blocks_stay",
        ),
        pytest.param(
            {"layers": [{"match": "conv", "rank": [1.0, 0.5]}, {"match": "net.*", "rank": [1.0, 0.9]}]}, True,
            ["layers.0.rank [1.0, 0.5]: layer conv: it is a convolution",
             "layers.1.rank [1.0, 0.9]: in multiples of 2 (rounding.rank of the profile) none is smaller"], id="rank",
        ),
        pytest.param(
            {"layers": [{"kind": "linear", "precision": ["int8"]}]}, True,
            ["layers.0.precision ['int8']: one level is a decision and no choice; give several"], id="one_level",
        ),
    ],
)  # fmt: skip
def test_a_space_that_leaves_nothing_to_choose_says_why_of_each_key(make_space, table, rules, grouped, told):
    with pytest.raises(SpaceError) as caught:
        make_space(rules, table=table if grouped else LayerTable(table.layers, (), 1))
    first, *lines = str(caught.value).splitlines()
    assert first == "space 'test': leaves nothing to choose for this model on profile 'tiny'"
    assert [line.strip() for line in lines][: len(told)] == told


@pytest.mark.parametrize(
    ("dropped", "ending"),
    [([], "linear fp32, int8"), (["int8"], "int8; the probe dropped int8, which save no time here")],
)
def test_kernels_that_are_missing_or_dropped_are_named(make_space, dropped, ending):
    profile = HardwareProfile(name="bare", threads=1, precisions={"linear": ("fp32", "int8")})
    with pytest.raises(SpaceError, match=f"layers.0.precision .*: the profile has kernels for .*{ending}"):
        make_space(
            {"layers": [{"kind": "linear", "precision": ["fp32", "int8" if dropped else "int4-weights"]}]},
            profile=profile,
            dropped=frozenset(dropped),
        )


def test_what_only_teaches_may_leave_the_model_whole(make_space, table):
    space = make_space({"distill": {"steps": [0, 10]}}, table=LayerTable(table.layers, (), 1))
    assert {v.name for v in space.variables} == {"steps", "soft_weight", "temperature", "learning_rate"}


def test_a_recipe_for_structure_is_refused_where_none_is_known(make_space, table):
    rules = {"layers": [{"precision": ["fp32", "int8"]}], "learn": [None, {"recipe": "cofi", "sparsity": 0.5}]}
    with pytest.raises(
        SpaceError, match=r"space 'test': learn: recipe cofi needs heads or neurons in blocks, .* 0 groups"
    ):
        make_space(rules, table=LayerTable(table.layers, (), 1))
    assert "learn" in make_space(rules).by_name


def test_default_space_follows_the_structure(table):
    assert default_space(table) == "transformer"
    assert default_space(LayerTable(table.layers, (), 1)) == "generic"
    channels = (Group("conv/channels", "channels", 4),)
    assert default_space(LayerTable(table.layers, channels, 1)) == "cnn"


def test_a_head_that_scores_what_an_embedding_reads_makes_a_decoder(table):
    head = Layer("head", "linear", table.layer("embed").weight_shape, 400, 400)
    inside = replace(head, block="net.0")
    assert default_space(LayerTable((*table.layers, head), table.groups, 1)) == "decoder"
    assert default_space(LayerTable((*table.layers, inside), table.groups, 1)) == "transformer"
    assert default_space(LayerTable((*table.layers, head), (), 1)) == "generic"


def test_groups_outside_any_block_are_choices_too(profile):
    lone = LayerTable((), (Group("g/neurons", "neurons", 16),), 0)
    space = build_space(SpaceRules(name="x", groups={"neurons": [1.0, 0.5]}), lone, profile)  # type: ignore[arg-type]
    assert space.decode({"keep:g/neurons": 1}) == Plan({"g/neurons": Prune(8)})


# structure and recovery apart


def test_variables_are_of_the_structure_or_of_the_recovery(joint):
    names = {v.name for v in joint.variables}
    assert {v.name for v in joint.recovery} == {"soft_weight", "temperature", "learning_rate"}
    assert {v.name for v in joint.structure} == names - {"soft_weight", "temperature", "learning_rate", "steps"}
    assert joint.steps == (10, 20)


def test_a_space_without_recovery_has_none(make_space):
    space = make_space({"groups": {"heads": [1.0, 0.5]}})
    assert (space.recovery, space.steps, space.structure) == ((), (), space.variables)
    assert space.untrained().variables == space.variables


def test_a_space_of_recovery_alone_has_no_structure(make_space):
    space = make_space({"distill": {"steps": [10], "temperature": {"low": 2.0, "high": 2.0}}})
    assert space.structure == space.untrained().variables == ()
    assert [v.name for v in space.recovery] == ["soft_weight", "learning_rate"]
    assert space.steps == (10,)
    assert space.untrained().decode({}) == Plan()


@given(st.data())
def test_the_untrained_space_means_the_same_without_the_recovery(joint, data):
    """Oracle: the plan of the whole space with its recovery taken off."""
    values = drawn(data, joint)
    plan = joint.decode(values, seed=7)
    assert joint.untrained().decode(values, seed=7) == Plan(
        plan.groups, plan.layers, mask=plan.mask, repair=plan.repair
    )


@given(st.data())
def test_a_recovery_put_on_later_is_the_one_of_the_whole(joint, data):
    """Oracle: `decode` of all values at once."""
    values = drawn(data, joint)
    plain = joint.untrained().decode(values)
    assert joint.recovery_of(values, plain) == joint.decode(values).distill


def test_recoveries_by_hand(joint, make_space):
    settings = {"soft_weight": 0.25, "temperature": 4.0, "learning_rate": 5e-4}
    assert joint.recovery_of({**settings, "steps": 0}, Plan()) is None
    assert joint.recovery_of({**settings, "steps": 2}, Plan()) == Distill(0.25, 4.0, 5e-4, 20)
    assert joint.recovery_of({**settings, "soft_weight": 0.0, "steps": 1}, Plan()) == Distill(0.0, 3.0, 5e-4, 10)
    assert joint.recovery_of({"steps": 1}, Plan()) == Distill(0.9, 3.0, 2e-4, 10)
    held = make_space({"distill": {"steps": [30], "temperature": {"low": 5.0, "high": 5.0}}})
    assert held.recovery_of({**settings, "steps": 0}, Plan()) == Distill(0.25, 5.0, 5e-4, 30)
