"""Oracle: the ranges that the docstrings give, written down by hand."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

import pytest

from autocompress.errors import PlanError
from autocompress.plan import Cofi, Gradual, LotteryTicket
from autocompress.plan.recipes import RECIPES

SMALLEST: dict[type, dict[str, Any]] = {
    Gradual: {"sparsity": 0.5},
    LotteryTicket: {"sparsity": 0.5},
    Cofi: {"sparsity": 0.5},
}
POSITIVE = (0, -1.0, math.nan, math.inf, "1", True, None)
UNIT = (-0.1, 1.1, math.nan, True, None)
COUNT = (0, -1, 1.0, True, "2", None)

ILLEGAL: list[tuple[type, str, str, tuple[Any, ...]]] = [
    (Gradual, "sparsity", "in [0, 1)", (-0.1, 1, 1.5, math.nan, True, None)),
    (Gradual, "steps", "an integer of 1 or more", COUNT),
    (Gradual, "updates", "an integer of 1 or more", COUNT),
    (Gradual, "learning_rate", "above 0", POSITIVE),
    (Gradual, "soft_weight", "in [0, 1]", UNIT),
    (Gradual, "temperature", "above 0", POSITIVE),
    (LotteryTicket, "sparsity", "in (0, 1)", (0, 1, -0.5, math.nan, True, None)),
    (LotteryTicket, "rounds", "an integer of 1 or more", COUNT),
    (LotteryTicket, "steps", "an integer of 1 or more", COUNT),
    (LotteryTicket, "rewind_steps", "an integer of 0 or more", (-1, 0.0, True, None)),
    (LotteryTicket, "learning_rate", "above 0", POSITIVE),
    (LotteryTicket, "reinitialise", "true or false", (0, 1, "yes", None)),
    (Cofi, "sparsity", "in (0, 1)", (0, 1, math.nan, True)),
    (Cofi, "latency_ratio", "in (0, 1)", (0, 1, math.inf, True)),
    (Cofi, "steps", "an integer of 1 or more", COUNT),
    (Cofi, "warmup_steps", "an integer of 0 or more", (-1, 0.5, True, None)),
    (Cofi, "finetune_steps", "an integer of 0 or more", (-1, 0.5, True, None)),
    (Cofi, "learning_rate", "above 0", POSITIVE),
    (Cofi, "gate_learning_rate", "above 0", POSITIVE),
    (Cofi, "soft_weight", "in [0, 1]", UNIT),
    (Cofi, "temperature", "above 0", POSITIVE),
    (Cofi, "hidden_weight", "0 or more", (-0.1, math.nan, math.inf, True, None)),
    (Cofi, "hidden", "true or false", (1, 0, "no", None)),
]


@pytest.mark.parametrize(
    ("kind", "name", "words", "value"),
    [
        pytest.param(kind, name, words, value, id=f"{kind.__name__}-{name}-{value}")
        for kind, name, words, values in ILLEGAL
        for value in values
    ],
)
def test_a_value_out_of_its_range_is_refused_by_record_field_and_value(kind, name, words, value):
    message = f"{name} must be {words}, but got {value!r}"
    with pytest.raises(PlanError, match=rf"^{kind.__name__}: .*{re.escape(message)}"):
        kind(**{**SMALLEST[kind], name: value})


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        pytest.param(Gradual(0), (0.0, 200, 10, 3e-4, 0.5, 2.0), id="gradual"),
        pytest.param(Gradual(0.9, 1, 1, 1, 0, 1), (0.9, 1, 1, 1.0, 0.0, 1.0), id="gradual-edges"),
        pytest.param(LotteryTicket(0.5), (0.5, 3, 300, 20, 5e-4, False), id="lottery-ticket"),
        pytest.param(LotteryTicket(0.5, 1, 1, 0, 1, True), (0.5, 1, 1, 0, 1.0, True), id="lottery-ticket-edges"),
        pytest.param(Cofi(0.5), (0.5, None, 300, 100, 100, 1e-4, 0.1, 0.5, 2.0, 0.9, True), id="cofi"),
        pytest.param(Cofi(latency_ratio=0.5, steps=1, warmup_steps=0, finetune_steps=0, hidden_weight=0, hidden=False),
                     (None, 0.5, 1, 0, 0, 1e-4, 0.1, 0.5, 2.0, 0.0, False), id="cofi-edges"),
    ],
)  # fmt: skip
def test_legal_values_and_defaults_are_kept(recipe, expected):
    assert dataclasses.astuple(recipe) == expected


@pytest.mark.parametrize("targets", [{}, {"sparsity": 0.5, "latency_ratio": 0.5}], ids=["none", "two"])
def test_cofi_takes_exactly_one_target(targets):
    with pytest.raises(PlanError, match=r"^Cofi: give exactly one of sparsity and latency_ratio$"):
        Cofi(**targets)


@pytest.mark.parametrize("rewind", [300, 301])
def test_a_ticket_rewinds_to_before_the_end(rewind):
    with pytest.raises(PlanError, match=rf"rewind_steps must be under steps \(300\), but got {rewind}"):
        LotteryTicket(0.5, rewind_steps=rewind)


@pytest.mark.parametrize(
    ("build", "fields"),
    [
        pytest.param(
            lambda: Gradual(2, 0, 0, 0, 2, 0),
            ["sparsity", "soft_weight", "learning_rate", "temperature", "steps", "updates"],
            id="gradual",
        ),
        pytest.param(
            lambda: LotteryTicket(0, 0, 0, -1, 0, 2),
            ["sparsity", "learning_rate", "rounds", "steps", "rewind_steps", "reinitialise"],
            id="lottery-ticket",
        ),
        pytest.param(
            lambda: Cofi(0, 0, 0, -1, -1, 0, 0, 2, 0, -1, 3),
            ["learning_rate", "gate_learning_rate", "temperature", "soft_weight", "hidden_weight", "steps",
             "warmup_steps", "finetune_steps", "hidden", "sparsity", "latency_ratio", "give"],
            id="cofi",
        ),
    ],
)  # fmt: skip
def test_all_faults_are_told_at_once(build, fields):
    with pytest.raises(PlanError) as caught:
        build()
    assert [fault.split()[0] for fault in str(caught.value).split(": ", 1)[1].split("; ")] == fields


def test_each_recipe_has_one_name():
    assert {"gradual": Gradual, "lottery-ticket": LotteryTicket, "cofi": Cofi} == RECIPES
