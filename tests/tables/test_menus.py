"""Plans that a table is measured at. Oracles: `check_plan`, and what a single change may touch."""

from __future__ import annotations

import pytest

from autocompress.layers import LayerTable
from autocompress.plan import Plan, Quantize, check_plan, effective_layers, legal_precisions
from autocompress.tables.menus import Menu, calibration_plans, menu_of, menu_plans
from autocompress.tables.units import signatures, units_of
from tests.tiny import any_task, table_of

RULES = {
    "groups": {"heads": [1.0, 0.5], "neurons": [1.0, 0.5, 0.25], "hidden": [1.0, 0.5], "remove_attention": True},
    "blocks": {"remove": True},
    "layers": [
        {"match": "*", "kind": "linear", "precision": ["fp32", "int8", "int4-weights"], "rank": [1.0, 0.5]},
        {"match": "*", "kind": "embedding", "precision": ["fp32", "int8-weights", "int4-weights"]},
    ],
}
MENU = Menu(
    shares={"heads": (0.5,), "neurons": (0.5, 0.25), "hidden": (0.5,), "channels": (0.5,)},
    options={
        "linear": (Quantize("int8"), Quantize("int4-weights")),
        "conv": (Quantize("int8"),),
        "embedding": (Quantize("int8-weights"), Quantize("int4-weights")),
    },
    ranks=(0.5,),
    parts=("block", "attention", "feed_forward"),
)
FAMILIES = ("bert", "vit", "gpt2", "llama", "distilbert")


def test_a_menu_is_what_a_space_offers(make_space: object) -> None:
    menu = menu_of(make_space(RULES))  # type: ignore[operator]
    assert menu.shares == {"heads": (0.5,), "neurons": (0.5, 0.25)}
    assert menu.options["linear"] == (Quantize("int8"), Quantize("int4-weights"))
    assert menu.options["embedding"] == (Quantize("int8-weights"),)
    assert menu.ranks == (0.5,)
    assert menu.parts == ("block", "attention")
    assert menu.rounding.neurons == 4


@pytest.fixture(scope="module", params=FAMILIES)
def layers(request: pytest.FixtureRequest) -> LayerTable:
    return table_of(any_task(request.param))


def test_single_changes_are_legal_distinct_and_start_dense(layers: LayerTable) -> None:
    plans = menu_plans(layers, MENU)
    assert plans[0] == Plan()
    assert len(set(plans)) == len(plans)
    for plan in plans:
        check_plan(plan, layers)


def test_every_way_to_compute_of_every_layer_is_among_them(layers: LayerTable) -> None:
    seen = {(e.layer.name, e.precision) for plan in menu_plans(layers, MENU) for e in effective_layers(plan, layers)}
    for layer in layers.layers:
        for option in MENU.options[layer.kind]:
            if option.precision in legal_precisions(layer):
                assert (layer.name, option.precision) in seen


def test_mixtures_are_legal_distinct_and_repeat_with_their_seed(layers: LayerTable) -> None:
    plans = calibration_plans(layers, MENU, 25)
    assert plans[0] == Plan()
    assert len(set(plans)) == 25
    assert plans == calibration_plans(layers, MENU, 25)
    others = calibration_plans(layers, MENU, 25, seed=1)
    assert Plan() not in others
    assert len(set(plans) & set(others)) < 5
    for plan in plans:
        check_plan(plan, layers)


def test_mixtures_hold_structure_ranks_and_ways_to_compute(layers: LayerTable) -> None:
    plans = calibration_plans(layers, MENU, 25)
    assert any(plan.groups for plan in plans)
    left = [e for plan in plans for e in effective_layers(plan, layers)]
    assert any(e.rank for e in left)
    assert {"fp32", "int8", "int4-weights"} <= {e.precision for e in left}


def test_while_a_part_changes_the_others_are_at_rest() -> None:
    table = table_of(any_task("bert"))
    block = units_of(table)[1]
    found = [signatures(units_of(table), plan, table)[block.name] for plan in menu_plans(table, MENU)]
    shapes = [{form.role: form.shape for form in signature.forms} for signature in found]
    middle = [s for s in shapes if s.get("intermediate.dense") == (32, 32)]
    assert middle
    assert all(s["attention.self.query"] == (16, 32) for s in middle)
    assert any("attention.self.query" not in s and s["intermediate.dense"] == (16, 32) for s in shapes)
