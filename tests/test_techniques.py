"""The catalogue: what the issue names is there, and every example is a plan that fits the digits model."""

from __future__ import annotations

import dataclasses
import json

import pytest

from autocompress.errors import ConfigError
from autocompress.plan import plan_from_json
from autocompress.techniques import TECHNIQUES, Technique, technique

IDS = [
    "prune-magnitude",
    "prune-random",
    "prune-l1",
    "prune-global",
    "prune-ln-structured",
    "prune-nm",
    "prune-wanda",
    "prune-fisher",
    "prune-obs",
    "prune-heads",
    "prune-neurons",
    "prune-hidden",
    "prune-blocks",
    "prune-channels",
    "prune-gradual",
    "lottery-ticket",
    "cofi",
    "svd",
    "svd-activation-aware",
    "svd-conv",
    "lora-recovery",
    "qlora-recovery",
    "quant-dynamic",
    "quant-static",
    "quant-smoothquant",
    "quant-gptq",
    "quant-weight-only",
    "quant-bias-correction",
    "quant-aware-training",
    "quant-embedding",
    "half-precision",
    "kd-logits",
    "kd-hidden",
    "kd-cosine",
    "kd-relations",
    "kd-normalised",
    "kd-online",
    "kd-jsd",
    "student-depth",
    "student-width",
]


def test_the_catalogue_holds_each_technique_once() -> None:
    assert sorted(item.id for item in TECHNIQUES) == sorted(IDS)


@pytest.mark.parametrize("item", TECHNIQUES, ids=lambda t: t.id)
def test_a_technique_is_a_plain_object_with_all_that_is_asked(item: Technique) -> None:
    data = json.loads(json.dumps(item.to_json()))
    assert set(data) == {"id", "group", "summary", "settings", "paper", "example_plan"}
    assert all(data.values())
    fields = {f.name for record in item.records for f in dataclasses.fields(record)}
    assert {name.rpartition(".")[2] for name in data["settings"]} == fields
    plan_from_json(data["example_plan"], item.id)


@pytest.mark.parametrize("item", TECHNIQUES, ids=lambda t: t.id)
def test_an_example_sets_what_its_technique_is_about(item: Technique) -> None:
    said = json.dumps(item.to_json()["example_plan"])
    places = {name.split(".")[-2] for name in item.settings if name.count(".")}
    words = {"groups": "groups", "layers": "layers", "*": "groups", "learn": "learn"}
    assert all(words.get(place, place) in said for place in places)


def test_an_unknown_technique_shows_near_names() -> None:
    with pytest.raises(ConfigError, match="no technique is called 'prune-head'; did you mean 'prune-heads'"):
        technique("prune-head")
