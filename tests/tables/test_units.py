"""Units and signatures. Oracles: the blocks that the table was built from, and pairs that must or must not be alike."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest

from autocompress.errors import MeasureError
from autocompress.layers import Layer, LayerTable
from autocompress.plan import Cofi, Factorize, LayerPlan, Mask, Plan, Prune, Quantize
from autocompress.tables.units import option_of, read_signature, signatures, unit_from_json, units_of

BLOCKS = ("net.0", "net.1")


def test_blocks_are_units_and_other_layers_stand_alone(table: LayerTable) -> None:
    assert [unit.name for unit in units_of(table)] == ["embed", *BLOCKS, "conv", "classifier"]


def test_cells_are_what_groups_join(table: LayerTable) -> None:
    block = units_of(table)[1]
    assert block.cells == (("q", "k", "v", "o"), ("up", "down"))
    assert block.inner["q"] == (True, False)
    assert block.inner["down"] == (False, True)


def flat(*names: str) -> LayerTable:
    layers = tuple(Layer(name, "conv", (4, 4, 3, 3), 148, 900) for name in names)
    return LayerTable(layers, (), 1)


@pytest.mark.parametrize(
    ("names", "units"),
    [
        (("conv1", "layer1.0.conv1", "layer1.0.conv2"), ["conv1", "layer1.0"]),
        (("a.0.conv1", "a.0.conv2", "a.0.down.0"), ["a.0"]),
        (tuple(f"features.{i}" for i in range(8)), [f"features.{i}" for i in range(8)]),
        (("first", "second"), ["first", "second"]),
    ],
    ids=["residual", "downsample", "long-sequence", "top-level"],
)
def test_without_blocks_a_module_with_a_few_layers_is_one(names: tuple[str, ...], units: list[str]) -> None:
    assert [unit.name for unit in units_of(flat(*names))] == units


def test_a_module_that_is_never_called_gives_its_layers() -> None:
    table = flat("list.0", "list.1")
    assert [unit.name for unit in units_of(table, frozenset({"list"}))] == ["list.0", "list.1"]


def test_layers_that_are_not_called_are_no_units() -> None:
    table = flat("used", "idle")
    idle = replace(table.layers[1], macs=0)
    assert [unit.name for unit in units_of(replace(table, layers=(table.layers[0], idle)))] == ["used"]


def test_equal_blocks_share_their_signature(table: LayerTable) -> None:
    found = signatures(units_of(table), Plan(), table)
    assert found["net.0"] == found["net.1"]
    assert found["net.0"] != found["classifier"]


def test_equal_weights_at_other_resolutions_are_no_twins() -> None:
    table = flat("near", "far")
    far = replace(table.layers[1], macs=2 * table.layers[1].macs)
    found = signatures(units_of(replace(table, layers=(table.layers[0], far))), Plan(), table)
    assert found["near"] != found["far"]


@pytest.mark.parametrize(
    ("plan", "alike"),
    [
        (Plan({"net.0.attention/heads": Prune(2)}), False),
        (Plan(layers={"net.0.up": LayerPlan(quantize=Quantize("int8"))}), False),
        (Plan(layers={"net.0.up": LayerPlan(Factorize(2))}), False),
        (Plan(layers={"net.0.up": LayerPlan(mask=Mask(0.5))}), True),
        (Plan(repair="sequential"), True),
    ],
    ids=["heads", "bits", "rank", "zeros", "repair"],
)
def test_what_costs_no_time_does_not_change_a_signature(plan: Plan, alike: bool, table: LayerTable) -> None:
    found = signatures(units_of(table), plan, table)
    assert (found["net.0"] == found["net.1"]) is alike


def test_shapes_follow_the_plan(table: LayerTable) -> None:
    plan = Plan({"net.0.attention/heads": Prune(1), "net.0.mlp/neurons": Prune(4)})
    forms = {form.role: form.shape for form in signatures(units_of(table), plan, table)["net.0"].forms}
    assert forms == {"q": (2, 8), "k": (2, 8), "v": (2, 8), "o": (8, 2), "up": (4, 8), "down": (8, 4)}


def test_a_removed_block_is_no_unit(table: LayerTable) -> None:
    assert "net.1" not in signatures(units_of(table), Plan({"net.1": Prune(0)}), table)


def test_a_recipe_has_no_signature_before_it_is_learned(table: LayerTable) -> None:
    with pytest.raises(MeasureError, match="learns what to remove"):
        signatures(units_of(table), Plan(learn=Cofi(sparsity=0.5)), table)


@pytest.mark.parametrize(
    ("settings", "option"),
    [
        (None, "fp32"),
        (Quantize("int8", activation_bits=4), "int8+clipped"),
        (Quantize("int8", weight_bits=4, rounding="gptq", calibrator="mse"), "int8"),
        (Quantize("int4-weights", symmetric=False), "int4-weights+offset"),
        (Quantize("int8-dynamic", smooth=0.5), "int8-dynamic+smoothed"),
    ],
)
def test_only_settings_that_add_nodes_are_told_apart(settings: Quantize | None, option: str) -> None:
    assert option_of(settings) == option


def test_signatures_and_units_survive_text(table: LayerTable) -> None:
    plan = Plan(layers={"net.0.up": LayerPlan(Factorize(2), Quantize("int8"))})
    for signature in signatures(units_of(table), plan, table).values():
        assert read_signature(signature.text) == signature
    for unit in units_of(table):
        assert unit_from_json(json.loads(json.dumps(unit.to_json()))) == unit
        assert asdict(unit)
