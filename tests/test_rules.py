"""Oracle: messages and records written by hand for YAML written by hand."""

from __future__ import annotations

import re

import pytest

from autocompress.errors import SpaceError
from autocompress.plan import Gradual
from autocompress.rules import DistillDefault, SolveRule, load_space


@pytest.fixture
def write(tmp_path):
    def make(text: str):
        file = tmp_path / "mine.yaml"
        file.write_text(text)
        return file

    return make


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("lairs: []", "mine.yaml: lairs: unknown key; did you mean 'layers'", id="unknown_key"),
        pytest.param(
            "layers: [{mtach: a}]", "mine.yaml: layers.0.mtach: unknown key; did you mean 'match'", id="inner_key"
        ),
        pytest.param("groups: {heads: half}", "mine.yaml: groups.heads: input should be a valid tuple, but got 'half'",
                     id="wrong_type"),
        pytest.param("groups: {heads: [1.5]}",
                     "mine.yaml: groups.heads.0: input should be less than or equal to 1, but got 1.5", id="above_1"),
        pytest.param("groups: {neurons: [0]}",
                     "mine.yaml: groups.neurons.0: input should be greater than 0, but got 0", id="share_0"),
        pytest.param("layers: [{precision: [int7]}]",
                     "mine.yaml: layers.0.precision.0: input should be 'fp32', 'fp16', 'fp8', 'int8-dynamic'",
                     id="unknown_precision"),
        pytest.param("distill: {temperature: {low: 3, high: 2}}",
                     "low must not be above high, and above 0 where log is true", id="bounds_crossed"),
        pytest.param("distill: {temperature: {low: 0, high: 2, log: true}}",
                     "low must not be above high, and above 0 where log is true", id="log_of_0"),
        pytest.param("distill: {steps: [-1]}",
                     "mine.yaml: distill.steps.0: input should be greater than or equal to 0, but got -1", id="steps"),
        pytest.param("distill: {default: {soft_wieght: 0.5}}", "mine.yaml: distill.default.soft_wieght: ",
                     id="unknown_default"),
    ],
)  # fmt: skip
def test_load_space_names_file_key_and_value(write, text, message):
    with pytest.raises(SpaceError, match=re.escape(message)):
        load_space(write(text))


def test_load_space_tells_several_mistakes_at_once(write):
    with pytest.raises(SpaceError, match=r"mine\.yaml:") as caught:
        load_space(write("groups: {heads: [2]}\nlayers: [{mtach: a, precision: [int7]}]\nfoo: 1\n"))
    told = [line.strip().split(": ")[0] for line in str(caught.value).splitlines()[1:]]
    assert sorted(told) == ["foo", "groups.heads.0", "layers.0.mtach", "layers.0.precision.0"]


def test_a_default_out_of_range_names_the_file_and_the_other_mistakes(write):
    with pytest.raises(SpaceError, match=r"(?s)mine\.yaml:(?=.*distill\.default)(?=.*soft_weight)(?=.*foo)"):
        load_space(write("distill: {default: {soft_weight: 3}}\nfoo: 1\n"))


@pytest.mark.parametrize(
    ("text", "key"),
    [
        pytest.param("distill: {steps: []}", "distill.steps", id="steps"),
        pytest.param("groups: {heads: []}", "groups.heads", id="heads"),
        pytest.param("layers: [{precision: []}]", "layers.0.precision", id="precision"),
        pytest.param("layers: [{rank: []}]", "layers.0.rank", id="rank"),
    ],
)
def test_an_empty_list_of_levels_is_refused(write, text, key):
    message = f"mine.yaml: {key}: value error, must hold at least one level, but got []"
    with pytest.raises(SpaceError, match=re.escape(message)):
        load_space(write(text))


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        pytest.param("groups: {score: l1}", ["groups.score: input should be 'obs', 'magnitude', 'wanda'", "'l1'"],
                     id="group_score"),
        pytest.param("groups: {score: given}", ["groups.score: input should be 'obs'", "'given'"], id="score_given"),
        pytest.param("groups: {remove_atention: true}",
                     ["groups.remove_atention: unknown key; did you mean 'remove_attention'"], id="unknown_group_key"),
        pytest.param("groups: {hidden: [0.5, 1.5]}",
                     ["groups.hidden.1: input should be less than or equal to 1, but got 1.5"], id="hidden_above_1"),
        pytest.param("layers: [{weight_bits: [8, 1]}]",
                     ["layers.0.weight_bits.1: input should be greater than or equal to 2, but got 1"], id="bits_1"),
        pytest.param("layers: [{weight_bits: []}]",
                     ["layers.0.weight_bits: value error, must hold at least one level"], id="no_bits"),
        pytest.param("layers: [{sparsity: [1.0]}]",
                     ["layers.0.sparsity.0: input should be less than 1, but got 1.0"], id="sparsity_1"),
        pytest.param("layers: [{sparsity: []}]",
                     ["layers.0.sparsity: value error, must hold at least one level"], id="no_sparsity"),
        pytest.param('layers: [{sparsity: [0, 0.6], pattern: "2:4"}]',
                     ["layers.0: value error, pattern 2:4 has sparsity 0.5, but the level is 0.6"], id="level_of_2_4"),
        pytest.param('layers: [{sparsity: [0, 0.5], pattern: "4:2"}]',
                     ["layers.0: value error, Mask: pattern must be", "N:M with N < M, got '4:2'"], id="pattern"),
        pytest.param("layers: [{pattern: blocks}]", ["layers.0: value error, Mask: pattern must be", "'blocks'"],
                     id="pattern_without_levels"),
        pytest.param("layers: [{sparsity: [0.5], pattern: rows, mask_score: wanda}]",
                     ["layers.0: value error, Mask: pattern 'rows' needs score 'magnitude' or 'random'", "'wanda'"],
                     id="rows_by_wanda"),
        pytest.param("layers: [{mask_score: l1}]", ["layers.0.mask_score: input should be 'magnitude'", "'l1'"],
                     id="mask_score"),
        pytest.param("layers: [{method: svd}]", ["layers.0.method: input should be 'activation-aware' or 'plain'",
                     "'svd'"], id="method"),
        pytest.param("layers: [{split: space}]", ["layers.0.split: input should be 'channel' or 'spatial'", "'space'"],
                     id="split"),
        pytest.param("layers: [{precision: [int8], quantize: {smoth: 0.5}}]",
                     ["layers.0: value error, quantize: unknown key 'smoth'; known: activation_bits, granularity"],
                     id="unknown_quantize_option"),
        pytest.param("layers: [{precision: [int8], quantize: {weight_bits: 4}}]",
                     ["layers.0: value error, quantize: unknown key 'weight_bits'"], id="bits_are_levels"),
        pytest.param("layers: [{precision: [fp32, int8], quantize: {smooth: 2}}]",
                     ["layers.0: value error, quantize: Quantize: smooth must be in [0, 1], but got 2"],
                     id="wrong_quantize_option"),
        pytest.param("layers: [{precision: [fp32, fp16, int4-weights], quantize: {calibrator: mse}}]",
                     ["layers.0: value error, quantize: Quantize: calibrator is for static int8 only", "'fp16'"],
                     id="no_precision_knows_it"),
        pytest.param("layers: [{quantize: {smooth: 0.5}}]",
                     ["layers.0: value error, quantize: smooth needs a precision beside fp32"], id="fp32_only"),
        pytest.param("sparsity: [0, 1.2]", ["sparsity.1: input should be less than 1, but got 1.2"], id="all_layers"),
        pytest.param("mask_score: wanda", ["mask_score: input should be 'magnitude', 'fisher' or 'random'", "'wanda'"],
                     id="mask_score_of_all_layers"),
        pytest.param("repair: twice", ["repair: input should be 'dense' or 'sequential', but got 'twice'"],
                     id="repair"),
        pytest.param("learn: [{recipe: gradul, sparsity: 0.5}]",
                     ["learn: value error, learn: learn: recipe must be one of gradual, lottery-ticket, cofi, "
                      "but got 'gradul'"], id="unknown_recipe"),
        pytest.param("learn: [null, {recipe: gradual, sparsity: 2}]",
                     ["learn: value error, learn: learn: Gradual: sparsity must be in [0, 1), but got 2"],
                     id="value_of_a_recipe"),
        pytest.param("learn: [{recipe: cofi, sparsity: 0.5, latency_ratio: 0.5}]",
                     ["Cofi: give exactly one of sparsity and latency_ratio"], id="two_targets"),
        pytest.param("learn: []", ["learn: value error, must hold at least one level"], id="no_recipe"),
        pytest.param("distill: {options: {steps: 10}}",
                     ["distill: value error, options: steps is searched, so it cannot be fixed here"],
                     id="option_that_is_searched"),
        pytest.param("distill: {options: {tems: {hidden: 1}}}",
                     ["distill: value error, options: distill: unknown key 'tems'; did you mean 'terms'"],
                     id="unknown_option"),
        pytest.param("distill: {options: {terms: {hidden: -1}}}",
                     ["options: distill: terms: Terms: hidden must be 0 or more, but got -1"], id="value_of_an_option"),
        pytest.param("distill: {options: {fake_quantize: 1}}",
                     ["distill: value error, Distill: fake_quantize must be true or false, but got 1"],
                     id="fake_quantize_1"),
        pytest.param("distill: {options: {fake_quantize: true, lora: {rank: 4}}}",
                     ["distill: value error, Distill: lora and fake_quantize cannot go together"], id="lora_and_fake"),
        pytest.param("layers: [{precision: [int8], quantize: {rounding: gptq}}]\n"
                     "distill: {options: {fake_quantize: true}}",
                     ["distill.options.fake_quantize cannot go with gptq or bias_correction"], id="gptq_and_fake"),
        pytest.param("layers: [{precision: [int8], quantize: {bias_correction: true}}]\n"
                     "distill: {options: {fake_quantize: true}}",
                     ["distill.options.fake_quantize cannot go with gptq or bias_correction"], id="bias_and_fake"),
    ],
)  # fmt: skip
def test_a_wrong_technique_names_file_key_and_value(write, text, messages):
    with pytest.raises(SpaceError, match=r"mine\.yaml: ") as caught:
        load_space(write(text))
    for message in messages:
        assert message in str(caught.value)


def test_levels_of_techniques_are_ordered_whatever_the_file_says(write):
    text = (
        "groups: {hidden: [0.5, 1.0], channels: [0.25, 1.0]}\nsparsity: [0.5, 0, 0.5]\n"
        "layers: [{weight_bits: [4, 8, 4], sparsity: [0.5, 0]}]\nlearn: [{recipe: gradual, sparsity: 0.5}, null]\n"
    )
    rules = load_space(write(text))
    assert (rules.groups.hidden, rules.groups.channels) == ((1.0, 0.5), (1.0, 0.25))
    assert rules.sparsity == (0.0, 0.5)
    assert (rules.layers[0].weight_bits, rules.layers[0].sparsity) == ((8, 4), (0.0, 0.5))
    assert rules.recipes == (None, Gradual(0.5))


def test_the_defaults_of_the_recovery_are_checked_by_the_file(write):
    rules = load_space(write("distill: {default: {soft_weight: 1, temperature: 3}}\n"))
    assert rules.distill.default == DistillDefault(soft_weight=1.0, temperature=3.0, learning_rate=3e-4)
    text = "distill: {default: {soft_weight: 2, temperature: 0, learning_rate: -1}}"
    with pytest.raises(SpaceError, match=r"mine\.yaml:") as caught:
        load_space(write(text))
    for key in ("soft_weight", "temperature", "learning_rate"):
        assert f"distill.default.{key}: input should be" in str(caught.value)


def test_the_name_is_the_file_unless_given(write):
    assert load_space(write("description: x\n")).name == "mine"
    assert load_space(write("name: other\n")).name == "other"


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        pytest.param("strategy: solved", ["strategy: input should be 'staged', 'joint' or 'solve', but got 'solved'"],
                     id="strategy"),
        pytest.param("strategy: solve\nsolve: {points: 1}",
                     ["solve.points: input should be greater than or equal to 2, but got 1"], id="points"),
        pytest.param("strategy: solve\nsolve: {max_size: 0}",
                     ["solve.max_size: input should be greater than 0, but got 0"], id="max_size"),
        pytest.param("strategy: solve\nsolve: {sweep: energy}",
                     ["solve.sweep: input should be 'latency' or 'size', but got 'energy'"], id="sweep"),
        pytest.param("strategy: solve\nsolve: {budget: 3}", ["solve.budget: unknown key"], id="unknown_key"),
        pytest.param("solve: {points: 20}", ["solve is for strategy 'solve', but the strategy is 'staged'"],
                     id="solve_without_strategy"),
        pytest.param("strategy: solve\ngroups: {heads: [1.0, 0.5]}\ndistill: {steps: [0, 10]}",
                     ["strategy 'solve' chooses precision and weight_bits alone, but got groups, distill"],
                     id="structure"),
        pytest.param("strategy: solve\nlayers: [{rank: [0.5]}, {sparsity: [0, 0.5]}]",
                     ["but got layers.0.rank, layers.1.sparsity"], id="rank"),
        pytest.param("strategy: solve\nlearn: [null, {recipe: gradual, sparsity: 0.5}]\nsparsity: [0, 0.5]\n"
                     "blocks: {remove: true}", ["but got blocks, sparsity, learn"], id="recipe"),
    ],
)  # fmt: skip
def test_what_the_integer_program_cannot_choose_is_refused(write, text, messages):
    with pytest.raises(SpaceError, match=r"mine\.yaml: ") as caught:
        load_space(write(text))
    for message in messages:
        assert message in str(caught.value)


def test_a_space_is_searched_in_stages_unless_it_says_otherwise(write):
    assert load_space(write("description: x\n")).strategy == "staged"
    rules = load_space(write("strategy: solve\nlayers: [{precision: [fp32, int8], weight_bits: [8, 4]}]\n"))
    assert (rules.strategy, rules.solve.points, rules.solve.by_size) == ("solve", 40, False)


@pytest.mark.parametrize(("solve", "by_size"), [("sweep: size", True), ("max_size: 0.5", True), ("refine: 2", False)])
def test_bytes_count_where_they_are_swept_or_limited(write, solve, by_size):
    assert load_space(write(f"strategy: solve\nsolve: {{{solve}}}\n")).solve.by_size == by_size


@pytest.mark.parametrize("strategy", ["staged", "joint"])
def test_a_strategy_takes_the_place_of_the_spaces_own(write, strategy):
    file = write("strategy: solve\nsolve: {points: 12}\nlayers: [{precision: [fp32, int8]}]\n")
    assert load_space(file).solve.points == 12
    other = load_space(file, strategy)
    assert (other.strategy, other.solve) == (strategy, SolveRule())
    assert other.layers == load_space(file).layers


def test_a_space_of_bits_alone_can_be_solved(write):
    file = write("layers: [{precision: [fp32, int8]}]\n")
    assert load_space(file, "solve").strategy == "solve"
    assert load_space(file, None).strategy == "staged"
    assert load_space("mixed-precision", "solve") == load_space("mixed-precision")


def test_what_the_program_cannot_choose_is_refused_of_an_override_too(write):
    with pytest.raises(SpaceError, match="strategy 'solve' chooses precision and weight_bits alone, but got groups"):
        load_space(write("groups: {heads: [1.0, 0.5]}\n"), "solve")


def test_an_unknown_strategy_shows_near_names(write):
    with pytest.raises(SpaceError, match="--strategy 'stage' is unknown; did you mean 'staged'"):
        load_space(write("description: x\n"), "stage")
