"""Oracle: the ranges and combinations that the docstrings give, written down by hand."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

import pytest

from autocompress.errors import PlanError
from autocompress.plan import (
    INT4_GROUP,
    PRECISIONS,
    Distill,
    Factorize,
    GlobalMask,
    LayerPlan,
    Lora,
    Mask,
    Plan,
    Prune,
    Quantize,
    Terms,
)
from autocompress.plan.choices import STRUCTURE_SCORES, WEIGHT_SCORES

HUGE = 10**400  # an integer that no float can hold

LEAST: dict[type, dict[str, Any]] = {
    Prune: {"keep": 1},
    Mask: {"sparsity": 0.5},
    GlobalMask: {"sparsity": 0.5},
    Factorize: {"rank": 1},
    Quantize: {"precision": "int8"},
    Terms: {"hidden": 1.0},
    Lora: {},
    Distill: {},
}

POSITIVE = (0, -0.0, -1.0, math.nan, math.inf, HUGE, "2", True, None)
UNIT = (-0.1, 1.1, math.nan, math.inf, HUGE, "0.5", True, None)
BELOW_ONE = (-0.1, 1, 1.5, math.nan, math.inf, True, "0.5")
NOT_NEGATIVE = (-0.1, math.nan, math.inf, -math.inf, True, "1", None)
COUNT = (0, -1, 1.0, math.nan, True, "8", None)
WORD = ("l1", "", 1, True, None, ("obs",), ["obs"])
FLAG = (0, 1, "true", None)
STRUCTURE = "one of 'obs', 'magnitude', 'wanda', 'fisher', 'random', 'given'"
WEIGHT = "one of 'magnitude', 'random', 'wanda', 'fisher', 'obs', 'given'"

ILLEGAL: list[tuple[type, str, str, tuple[Any, ...]]] = [
    (Prune, "keep", "an integer of 0 or more", (-1, 1.0, 1.5, math.nan, True, False, "1", None)),
    (Prune, "score", STRUCTURE, WORD),
    (Prune, "repair", "true or false", FLAG),
    (Mask, "sparsity", "in [0, 1)", BELOW_ONE),
    (Mask, "score", WEIGHT, WORD),
    (Mask, "threshold", "above 0", POSITIVE[:-1]),
    (Mask, "norm", "one of 1, 2", (0, 3, 1.0, 2.0, True, "2", None)),
    (GlobalMask, "sparsity", "in [0, 1)", (*BELOW_ONE, None)),
    (GlobalMask, "score", "one of 'magnitude', 'fisher', 'random'", (*WORD, "obs", "wanda", "given")),
    (Factorize, "rank", "an integer of 1 or more", COUNT),
    (Factorize, "method", "one of 'activation-aware', 'plain'", WORD),
    (Factorize, "split", "one of 'channel', 'spatial'", WORD),
    (Quantize, "precision",
     "one of 'fp16', 'fp8', 'int8-dynamic', 'int8', 'int8-weights', 'int4-weights'", ("fp32", "int7", *WORD)),
    (Quantize, "weight_bits", "2 to 8 for int8", (0, 1, 9, 4.0, True, "4", math.nan)),
    (Quantize, "activation_bits", "one of 8, 4", (2, 5, 16, 8.0, True, "8", None)),
    (Quantize, "granularity", "one of 'channel', 'tensor'", WORD),
    (Quantize, "symmetric", "true or false", FLAG),
    (Quantize, "calibrator", "one of 'percentile', 'min-max', 'mse'", WORD),
    (Quantize, "rounding", "one of 'nearest', 'gptq'", WORD),
    (Quantize, "smooth", "in [0, 1]", UNIT[:-1]),
    (Quantize, "bias_correction", "true or false", FLAG),
    (Terms, "hidden", "0 or more", NOT_NEGATIVE),
    (Terms, "hidden_map", "one of 'static', 'dynamic'", WORD),
    (Terms, "cosine", "0 or more", NOT_NEGATIVE),
    (Terms, "relations", "0 or more", NOT_NEGATIVE),
    (Terms, "normalised", "0 or more", NOT_NEGATIVE),
    (Lora, "rank", "an integer of 1 or more", COUNT),
    (Lora, "alpha", "above 0", POSITIVE),
    (Lora, "base", "one of 'fp32', 'int4'", WORD),
    (Distill, "soft_weight", "in [0, 1]", UNIT),
    (Distill, "temperature", "above 0", POSITIVE),
    (Distill, "learning_rate", "above 0", POSITIVE),
    (Distill, "steps", "an integer of 1 or more", COUNT),
    (Distill, "divergence", "one of 'kl', 'jsd'", WORD),
    (Distill, "beta", "in [0, 1]", UNIT),
    (Distill, "on_policy", "in [0, 1]", UNIT),
    (Distill, "terms", "Terms", ({"hidden": 1.0}, 1.0, True, Lora())),
    (Distill, "normalise", "true or false", FLAG),
    (Distill, "peers", "1 to 4", (0, 5, 2.0, True, "2", None)),
    (Distill, "lora", "Lora", ({"rank": 8}, 8, True, Terms(1.0))),
    (Distill, "fake_quantize", "true or false", FLAG),
]  # fmt: skip


def shown(value: Any) -> str:
    return "huge" if value is HUGE else repr(value)


@pytest.mark.parametrize(
    ("kind", "name", "words", "value"),
    [
        pytest.param(kind, name, words, value, id=f"{kind.__name__}-{name}-{shown(value)}")
        for kind, name, words, values in ILLEGAL
        for value in values
    ],
)
def test_a_value_out_of_its_range_is_refused_by_record_field_and_value(kind, name, words, value):
    message = f"{name} must be {words}, but got {value!r}"
    with pytest.raises(PlanError, match=rf"^{kind.__name__}: .*{re.escape(message)}"):
        kind(**{**LEAST[kind], name: value})


def test_every_field_of_every_record_is_refused_something():
    told = {(kind, name) for kind, name, _, _ in ILLEGAL}
    every = {(kind, item.name) for kind in LEAST for item in dataclasses.fields(kind)}
    assert every - told == {(Mask, "pattern")}  # its test is below


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        pytest.param(Prune(0), (0, "obs", True), id="prune"),
        pytest.param(Prune(3, "fisher", False), (3, "fisher", False), id="prune-all"),
        pytest.param(Mask(0), (0.0, "unstructured", "magnitude", None, 2), id="mask"),
        pytest.param(Mask(0.5, "rows", norm=1), (0.5, "rows", "magnitude", None, 1), id="mask-rows"),
        pytest.param(Mask(threshold=1), (None, "unstructured", "magnitude", 1.0, 2), id="mask-threshold"),
        pytest.param(Mask(pattern="2:4", score="obs"), (None, "2:4", "obs", None, 2), id="mask-2:4"),
        pytest.param(Mask(score="given"), (None, "unstructured", "given", None, 2), id="mask-given"),
        pytest.param(Mask(0.3, score="given"), (0.3, "unstructured", "given", None, 2), id="mask-given-share"),
        pytest.param(GlobalMask(0), (0.0, "magnitude"), id="global-mask"),
        pytest.param(Factorize(1), (1, "activation-aware", "channel"), id="factorize"),
        pytest.param(Factorize(7, "plain", "spatial"), (7, "plain", "spatial"), id="factorize-all"),
        pytest.param(Quantize("int8", 7, 4, "tensor", False, "mse", "gptq", 1, True),
                     ("int8", 7, 4, "tensor", False, "mse", "gptq", 1.0, True), id="quantize-all"),
        pytest.param(Terms(cosine=1), (0.0, "static", 1.0, 0.0, 0.0), id="terms"),
        pytest.param(Lora(), (8, 16.0, "fp32"), id="lora"),
        pytest.param(Lora(1, 1, "int4"), (1, 1.0, "int4"), id="lora-all"),
        pytest.param(Distill(), (0.5, 2.0, 3e-4, 100, "kl", 0.5, 0.0, None, False, 1, None, False), id="distill"),
        pytest.param(Distill(1, 1, 1, 1, "jsd", 0, 1, None, True, 4, None, True),
                     (1.0, 1.0, 1.0, 1, "jsd", 0.0, 1.0, None, True, 4, None, True), id="distill-all"),
    ],
)  # fmt: skip
def test_legal_values_and_defaults_are_kept(record, expected):
    values = dataclasses.astuple(record)
    assert values == expected
    assert [type(v) for v in values] == [type(v) for v in expected]  # 1 became 1.0 where it is a real number


@pytest.mark.parametrize(
    ("record", "name"),
    [
        (Mask(-0.0), "sparsity"),
        (GlobalMask(-0.0), "sparsity"),
        (Quantize("int8", smooth=-0.0), "smooth"),
        (Terms(-0.0, cosine=1), "hidden"),
        (Distill(-0.0), "soft_weight"),
    ],
    ids=lambda value: type(value).__name__ if dataclasses.is_dataclass(value) else value,
)
def test_minus_zero_becomes_zero_so_that_equal_is_equal(record, name):
    assert math.copysign(1.0, getattr(record, name)) == 1.0


@pytest.mark.parametrize(
    "record", [Prune(1), Mask(0.5), Factorize(1), Quantize("int8"), Distill(), Lora(), LayerPlan()]
)
def test_records_are_frozen_and_hashable(record):
    name = dataclasses.fields(record)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError, match=name):
        setattr(record, name, None)
    assert len({record, dataclasses.replace(record)}) == 1


# all faults at once


@pytest.mark.parametrize(
    ("build", "fields"),
    [
        pytest.param(lambda: Prune(-1, "l1", 1), ["keep", "score", "repair"], id="prune"),
        pytest.param(lambda: Mask(2, "unstructured", "l1", -1, 3),
                     ["score", "norm", "sparsity", "threshold", "give", "a"],
                     id="mask"),
        pytest.param(lambda: GlobalMask(2, "obs"), ["score", "sparsity"], id="global-mask"),
        pytest.param(lambda: Factorize(0, "svd", "both"), ["rank", "method", "split"], id="factorize"),
        pytest.param(lambda: Quantize("int9", 1, 3, "row", 1, "max", "up", 2, 1),
                     ["precision", "activation_bits", "granularity", "symmetric", "calibrator", "rounding",
                      "bias_correction", "weight_bits", "smooth"], id="quantize"),
        pytest.param(lambda: Terms(-1, "none", -1, -1, -1),
                     ["hidden_map", "hidden", "cosine", "relations", "normalised"],
                     id="terms"),
        pytest.param(lambda: Lora(0, 0, "int8"), ["rank", "alpha", "base"], id="lora"),
        pytest.param(lambda: Distill(-1, 0, 0, 0, "js", 2, 2, 1, 1, 9, 1, 1),
                     ["soft_weight", "beta", "on_policy", "temperature", "learning_rate", "divergence", "normalise",
                      "fake_quantize", "terms", "lora", "steps", "peers"], id="distill"),
        pytest.param(lambda: LayerPlan(1, 2, 3), ["factorize", "quantize", "mask", "mask"], id="layer-plan"),
    ],
)  # fmt: skip
def test_all_faults_are_told_at_once(build, fields):
    with pytest.raises(PlanError) as caught:
        build()
    assert [fault.split()[0] for fault in str(caught.value).split(": ", 1)[1].split("; ")] == fields


# masks


@pytest.mark.parametrize(
    "pattern", ["", "row", "2:2", "4:2", "0:4", "2:0", "02:4", "2:04", " 2:4", "2:4\n", "2/4", "-1:4", "٢:٤", 24, None]
)
def test_a_pattern_that_does_not_exist_is_refused(pattern):
    with pytest.raises(PlanError, match=rf"pattern must be .* N:M with N < M, got {re.escape(repr(pattern))}"):
        Mask(pattern=pattern)


@pytest.mark.parametrize(("pattern", "n_m"), [("2:4", (2, 4)), ("1:16", (1, 16)), ("10:20", (10, 20))])
def test_n_and_m_of_a_pattern(pattern, n_m):
    assert Mask(pattern=pattern).n_m == n_m
    assert Mask(0.5).n_m is None


@pytest.mark.parametrize("score", WEIGHT_SCORES)
def test_unstructured_and_n_m_masks_take_every_score(score):
    assert Mask(0.5, score=score).score == Mask(pattern="2:4", score=score).score == score


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "give exactly one of sparsity, threshold and an N:M pattern"),
        ({"pattern": "rows"}, "give exactly one of sparsity, threshold and an N:M pattern"),
        ({"sparsity": 0.5, "pattern": "2:4"}, "give exactly one of sparsity, threshold and an N:M pattern"),
        ({"sparsity": 0.5, "threshold": 0.1}, "give exactly one of sparsity, threshold and an N:M pattern"),
        ({"threshold": 0.1, "pattern": "columns"}, "a threshold needs pattern 'unstructured' and score 'magnitude'"),
        ({"threshold": 0.1, "score": "obs"}, "a threshold needs pattern 'unstructured' and score 'magnitude'"),
        ({"threshold": 0.1, "score": "given"}, "a threshold needs pattern 'unstructured' and score 'magnitude'"),
        ({"sparsity": 0.5, "pattern": "rows", "score": "obs"}, "pattern 'rows' needs score 'magnitude' or 'random'"),
        ({"sparsity": 0.5, "pattern": "columns", "score": "wanda"}, "but got 'wanda'"),
        ({"sparsity": 0.5, "pattern": "columns", "score": "fisher"}, "but got 'fisher'"),
        ({"sparsity": 0.5, "norm": 1}, "norm is for rows or columns by magnitude only"),
        ({"pattern": "2:4", "norm": 1}, "norm is for rows or columns by magnitude only"),
        ({"sparsity": 0.5, "pattern": "rows", "score": "random", "norm": 1},
        "norm is for rows or columns by magnitude"),
    ],
)  # fmt: skip
def test_a_mask_that_means_nothing_is_refused(settings, message):
    with pytest.raises(PlanError, match=f"^Mask: .*{re.escape(message)}"):
        Mask(**settings)


# quantization


def test_precisions_go_from_heavy_to_light():
    assert PRECISIONS == ("fp32", "fp16", "fp8", "int8-dynamic", "int8", "int8-weights", "int4-weights")
    assert INT4_GROUP == 32


@pytest.mark.parametrize(
    ("quantize", "bits"),
    [
        (Quantize("fp16"), 16),
        (Quantize("fp8"), 8),
        (Quantize("int8-dynamic"), 8),
        (Quantize("int8", 5), 5),
        (Quantize("int8-weights", 2), 2),
        (Quantize("int4-weights"), 4),
        (Quantize("int4-weights", 3), 3),
    ],
    ids=lambda value: value.precision if isinstance(value, Quantize) else str(value),
)
def test_bits_of_one_weight(quantize, bits):
    assert quantize.bits == bits


@pytest.mark.parametrize(("precision", "most"), [("int8", 8), ("int8-dynamic", 8), ("int4-weights", 4)])
def test_all_bits_are_said_by_none_so_that_equal_is_equal(precision, most):
    assert Quantize(precision, most) == Quantize(precision)
    assert Quantize(precision, most).weight_bits is None
    with pytest.raises(PlanError, match=f"weight_bits must be 2 to {most} for {precision}, but got {most + 1}"):
        Quantize(precision, most + 1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        pytest.param({"precision": p, name: value}, f"{name} is for static int8 only, but precision is {p!r}",
                     id=f"{name}-{p}")
        for p in ("int8-dynamic", "int8-weights", "int4-weights", "fp16", "fp8")
        for name, value in (("activation_bits", 4), ("calibrator", "mse"))
    ]
    + [
        pytest.param({"precision": p, "smooth": 0.5}, f"smooth is for int8 and int8-dynamic.* precision is {p!r}",
                     id=f"smooth-{p}")
        for p in ("int8-weights", "int4-weights", "fp16", "fp8")
    ]
    + [
        pytest.param({"precision": "int4-weights", "granularity": "tensor"}, "granularity is fixed for int4-weights",
                     id="granularity-int4"),
    ]
    + [
        pytest.param({"precision": p, name: value}, f"{p} takes no other setting, but got {name}", id=f"{p}-{name}")
        for p in ("fp16", "fp8")
        for name, value in {"weight_bits": 8, "granularity": "tensor", "symmetric": False, "rounding": "gptq",
                            "bias_correction": True}.items()
    ],
)  # fmt: skip
def test_a_quantization_setting_without_effect_is_refused(settings, message):
    with pytest.raises(PlanError, match=f"^Quantize: .*{message}"):
        Quantize(**settings)


@pytest.mark.parametrize("precision", PRECISIONS[1:])
def test_layer_plans_tell_their_precision(precision):
    assert LayerPlan(quantize=Quantize(precision)).precision == precision
    assert LayerPlan(Factorize(1)).precision == "fp32"


# records in records


def test_zeros_and_a_rank_exclude_each_other():
    with pytest.raises(PlanError, match=r"^LayerPlan: mask and factorize: a layer takes zeros or a rank, not both$"):
        LayerPlan(Factorize(2), mask=Mask(0.5))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        pytest.param(lambda: LayerPlan(Quantize("int8")), "factorize must be Factorize, but got Quantize(", id="order"),
        pytest.param(lambda: LayerPlan(quantize="int8"), "quantize must be Quantize, but got 'int8'", id="text"),
        pytest.param(lambda: LayerPlan(mask=GlobalMask(0.5)), "mask must be Mask, but got GlobalMask(", id="global"),
        pytest.param(lambda: Plan({"g": 3}), "groups: g: must be Prune, but got 3", id="group"),
        pytest.param(lambda: Plan(layers={"a": Quantize("int8")}), "layers: a: must be LayerPlan, but got Quantize(",
                     id="layer"),
        pytest.param(lambda: Plan(mask=Mask(0.5)), "mask must be GlobalMask, but got Mask(", id="mask"),
        pytest.param(lambda: Plan(distill=Terms(1.0)), "distill must be Distill, but got Terms(", id="distill"),
        pytest.param(lambda: Plan(learn="cofi"), "learn must be Gradual or LotteryTicket or Cofi, but got 'cofi'",
                     id="learn"),
    ],
)  # fmt: skip
def test_a_record_of_the_wrong_kind_is_refused(build, message):
    with pytest.raises(PlanError, match=re.escape(message)):
        build()


# terms and divergence


def test_terms_that_say_nothing_are_refused():
    with pytest.raises(PlanError, match=r"^Terms: one of hidden, cosine, relations, normalised must be above 0"):
        Terms()


@pytest.mark.parametrize("name", ["hidden", "cosine", "relations", "normalised"])
def test_one_term_is_enough(name):
    assert getattr(Terms(**{name: 2}), name) == 2.0


def test_beta_is_for_the_divergence_that_knows_it():
    assert Distill(divergence="jsd", beta=0.1).beta == 0.1
    with pytest.raises(PlanError, match=r"^Distill: beta is for divergence 'jsd' only$"):
        Distill(beta=0.1)


def test_additions_and_fake_quantization_exclude_each_other():
    message = (
        r"^Distill: lora and fake_quantize cannot go together \(lora with base \"int4\" learns on rounded weights\)$"
    )
    with pytest.raises(PlanError, match=message):
        Distill(lora=Lora(), fake_quantize=True)


@pytest.mark.parametrize("score", STRUCTURE_SCORES)
def test_groups_take_every_score(score):
    assert Prune(1, score).score == score
