"""docs/plans.md is true. Oracles: `plan_from_json` and `check_plan` for its examples, the records for its tables.

Of docs/settings.md: its experiment is legal, and it names every shipped space and every key of the schemas.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from autocompress.experiment import Experiment
from autocompress.hardware import Chip, HardwareProfile, Rounding, Timing, Workload
from autocompress.layers import Group, Layer, LayerTable, Slice, Stub
from autocompress.plan import (
    PRECISIONS,
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
    check_plan,
    plan_from_json,
)
from autocompress.plan.choices import STRUCTURE_SCORES, WEIGHT_SCORES
from autocompress.rules import QUANTIZE_OPTIONS, BlockRule, Bounds, DistillRule, GroupRules, LayerRule, SpaceRules
from autocompress.settings import shipped_names

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGE = (DOCS / "plans.md").read_text(encoding="utf-8")
SETTINGS = (DOCS / "settings.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```json\n(.*?)```", PAGE, flags=re.S)

#: Heading to the record whose fields are the rows of the first table with defaults under it.
RECORDS: dict[str, type] = {
    "The whole plan": Plan,
    "`groups.NAME`": Prune,
    "`layers.NAME`": LayerPlan,
    "`layers.NAME.mask`": Mask,
    "`layers.NAME.factorize`": Factorize,
    "`layers.NAME.quantize`": Quantize,
    "`mask`": GlobalMask,
    '`learn` with `"recipe": "gradual"`': Gradual,
    '`learn` with `"recipe": "lottery-ticket"`': LotteryTicket,
    '`learn` with `"recipe": "cofi"`': Cofi,
    "`distill`": Distill,
    "`distill.terms`": Terms,
    "`distill.lora`": Lora,
}
KEYS_HEAD = "| key | values | default | |\n|---|---|---|---|\n"


def section(heading: str) -> str:
    """What stands under a heading, up to the next."""
    return PAGE.split(f"\n### {heading}\n", 1)[1].split("\n## ", 1)[0].split("\n### ", 1)[0]


def rows(text: str, head: str) -> list[list[str]]:
    """Cells of the table that opens with `head`."""
    body = text.split(head, 1)[1].split("\n\n", 1)[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in body.splitlines()]


def digits() -> LayerTable:
    """The digits model as the page describes it: six blocks of width 192 with 6 heads and 768 neurons."""
    layers = [_layer("vit.embeddings.patch_embeddings.projection", "conv", (192, 1, 2, 2))]
    groups = []
    writers, readers = [layers[0].name], []
    for number in range(6):
        base = f"vit.layers.{number}"
        q, k, v, o = (f"{base}.attention.{name}_proj" for name in "qkvo")
        up, down = f"{base}.mlp.fc1", f"{base}.mlp.fc2"
        shapes = {**dict.fromkeys((q, k, v, o), (192, 192)), up: (768, 192), down: (192, 768)}
        layers += [_layer(name, "linear", shape, base) for name, shape in shapes.items()]
        writers += [o, down]
        readers += [q, k, v, up]
        heads = tuple(Slice(name, 32) for name in (q, k, v))
        stub = (Stub(base),)
        groups += [
            Group(f"{base}.attention/heads", "heads", 6, heads, (Slice(o, 32),), block=base),
            Group(f"{up}/neurons", "neurons", 768, (Slice(up),), (Slice(down),), block=base),
            Group(f"{base}/attention", "attention", 1, block=base, removes=(q, k, v, o), stubs=stub),
            Group(f"{base}/feed_forward", "feed_forward", 1, block=base, removes=(up, down), stubs=stub),
            Group(base, "block", 1, block=base, removes=tuple(shapes), stubs=stub),
        ]
    layers.append(_layer("classifier", "linear", (10, 192), factorize="its smaller side has 10 features"))
    stream = Group("vit/hidden", "hidden", 192, tuple(map(Slice, writers)), tuple(map(Slice, (*readers, "classifier"))))
    return LayerTable(tuple(layers), (*groups, stream), 0)


def _layer(name: str, kind: str, shape: tuple[int, ...], block: str = "", **why_not: str) -> Layer:
    return Layer(name, kind, shape, math.prod(shape), 0, block, why_not)  # type: ignore[arg-type]


def test_the_page_shows_several_whole_plans() -> None:
    assert len(EXAMPLES) >= 3
    said = {key for text in EXAMPLES for key in json.loads(text)}
    assert said == {"groups", "layers", "repair", "learn", "distill", "seed"}


@pytest.mark.parametrize("text", EXAMPLES, ids=range(len(EXAMPLES)))
def test_an_example_is_a_plan_that_fits_the_digits_model(text: str) -> None:
    table = digits()
    plan = plan_from_json(json.loads(text), "docs/plans.md", table)
    check_plan(plan, table)
    assert plan != Plan()


@pytest.mark.parametrize(("heading", "record"), RECORDS.items(), ids=[cls.__name__ for cls in RECORDS.values()])
def test_a_table_has_a_row_for_each_field_and_no_other(heading: str, record: type) -> None:
    found = {row[0].strip("`"): row[2] for row in rows(section(heading), KEYS_HEAD)}
    assert set(found) == {item.name for item in fields(record)}
    for item in fields(record):
        assert found[item.name] == _default(item), item.name


def _default(item: Any) -> str:
    if item.default is not MISSING:
        return f"`{json.dumps(item.default)}`"
    return "*required*" if item.default_factory is MISSING else f"`{json.dumps(item.default_factory())}`"


def test_every_table_of_keys_is_checked() -> None:
    assert PAGE.count(KEYS_HEAD) == len(RECORDS)


@pytest.mark.parametrize(("heading", "record"), RECORDS.items(), ids=[cls.__name__ for cls in RECORDS.values()])
def test_the_words_of_a_table_are_taken(heading: str, record: type) -> None:
    """Every word in the column of values passes the constructor's own check of that field."""
    for name, values, *_ in rows(section(heading), KEYS_HEAD):
        for word in re.findall(r'`"([^"]*)"`', values):
            if ":" not in word and word != "int4-weights":
                assert f"{name.strip('`')} must be" not in _refusal(record, name.strip("`"), word)


def _refusal(record: type, name: str, value: str) -> str:
    needed = {Prune: {"keep": 1}, Factorize: {"rank": 1}, Quantize: {"precision": "int8"}}.get(record, {})
    try:
        record(**{**needed, name: value})
    except Exception as fault:
        return str(fault)
    return ""


@pytest.mark.parametrize(
    ("heading", "head", "legal"),
    [
        ("`groups.NAME`", "| score of structures | those go first … |\n|---|---|\n", STRUCTURE_SCORES),
        ("`layers.NAME.mask`", "| score of weights | those go first … |\n|---|---|\n", WEIGHT_SCORES),
        (
            "`layers.NAME.quantize`",
            "| precision | weights | inputs | kinds of layers |\n|---|---|---|---|\n",
            PRECISIONS[1:],
        ),
    ],
    ids=["structures", "weights", "precisions"],
)
def test_a_table_of_words_is_complete(heading: str, head: str, legal: tuple[str, ...]) -> None:
    assert [row[0] for row in rows(section(heading), head)] == [f'`"{word}"`' for word in legal]


def test_patterns_go_by_the_precedence_that_the_page_tells() -> None:
    table = digits()
    bits, zeros = {"quantize": {"precision": "int8"}}, {"mask": {"sparsity": 0.5}}
    name = "vit.layers.0.mlp.fc1"
    later = plan_from_json({"layers": {"*.fc1": zeros, "vit.layers.*": bits}}, "plan", table)
    assert later.layers[name] == LayerPlan(quantize=Quantize("int8"))
    exact = plan_from_json({"layers": {name: zeros, "vit.layers.*": bits}}, "plan", table)
    assert exact.layers[name] == LayerPlan(mask=Mask(0.5))
    alone = plan_from_json({"layers": {"vit.layers.*": bits, name: {}}}, "plan", table)
    assert name not in alone.layers
    assert len(alone.layers) == 35


# docs/settings.md


def test_the_experiment_shown_is_legal() -> None:
    shown = re.findall(r"```yaml\n(.*?)```", SETTINGS, flags=re.S)[3]
    assert Experiment.model_validate(yaml.safe_load(shown)).bank_limit == "2GB"


def test_every_shipped_space_is_in_the_table() -> None:
    found = [row[0].strip("`") for row in rows(SETTINGS, "| shipped space | for |\n|---|---|\n")]
    assert sorted(found) == shipped_names("search_spaces")


@pytest.mark.parametrize(
    "schema", [SpaceRules, GroupRules, BlockRule, LayerRule, DistillRule, Bounds, Rounding, Timing, Workload, Chip]
)
def test_every_key_of_a_schema_is_shown(schema: type[BaseModel]) -> None:
    shown = "".join(re.findall(r"```yaml\n(.*?)```", SETTINGS, flags=re.S))
    for name in set(schema.model_fields) - {"name"}:  # the name is the file's
        assert re.search(rf"\b{name}:", shown), name


def test_quantize_options_and_kernels_are_named() -> None:
    assert all(f"`{name}`" in SETTINGS for name in (*QUANTIZE_OPTIONS, *PRECISIONS))
    shown = yaml.safe_load(re.findall(r"```yaml\n(.*?)```", SETTINGS, flags=re.S)[1])
    profile = HardwareProfile.model_validate({"name": "shown", **shown, "threads": 1})
    assert all("fp16" in levels for levels in profile.precisions.values())
    analytic = yaml.safe_load(re.findall(r"```yaml\n(.*?)```", SETTINGS, flags=re.S)[2])
    assert HardwareProfile.model_validate({"name": "shown", **analytic}).chip
