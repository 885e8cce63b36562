"""Oracles: units and corners written by hand for the two-block table of the fixtures, and `SearchSpace.decode`."""

from __future__ import annotations

import itertools

import pytest

from autocompress.compressing.sensitivity import Sensitivity
from autocompress.plan import LayerPlan, Plan, Quantize
from autocompress.searching.costs import weight_bytes
from autocompress.searching.units import Unit, corners_of, joined, tables_of, units_of

LINEAR = {"match": "net.0.*", "kind": "linear", "precision": ["fp32", "int8-dynamic", "int8"]}


def solving(*layers):
    return {"strategy": "solve", "layers": list(layers)}


def taking(precision, *names, **settings):
    return Plan(layers={name: LayerPlan(quantize=Quantize(precision, **settings)) for name in names})


def test_each_layer_is_a_unit_with_its_options(make_space):
    units = units_of(make_space(solving(LINEAR)))
    assert [unit.name for unit in units] == [f"net.0.{n}" for n in ("q", "k", "v", "o", "up", "down")]
    for unit in units:
        assert unit.layers == (unit.name,)
        assert unit.options == (Plan(), taking("int8-dynamic", unit.name), taking("int8", unit.name))


def test_layers_that_share_a_scope_are_one_unit(make_space):
    units = units_of(make_space(solving({**LINEAR, "match": "net.*", "share": "block"})))
    assert [len(unit.layers) for unit in units] == [6, 6]
    assert units[1].options[2] == taking("int8", *units[1].layers)


def test_bits_within_a_precision_are_options_where_they_make_a_difference(make_space):
    rule = {"match": "classifier", "precision": ["fp32", "int8", "int4-weights"], "weight_bits": [8, 4, 3]}
    (unit,) = units_of(make_space(solving(rule)))
    names = [unit.said(number) for number in range(len(unit.options))]
    assert names == [
        ("fp32", None), ("int8", None), ("int8", 4), ("int8", 3), ("int4-weights", None), ("int4-weights", 3),
    ]  # fmt: skip


def test_without_fp32_on_offer_a_unit_has_none(make_space):
    (unit,) = units_of(make_space(solving({"match": "classifier", "precision": ["int8-dynamic", "int8"]})))
    assert unit.options == (taking("int8-dynamic", "classifier"), taking("int8", "classifier"))


def test_what_units_choose_is_what_the_space_decodes(make_space):
    """Oracle: `decode` of all values together, over the whole of a small space."""
    space = make_space(solving({**LINEAR, "match": "net.?.up"}, {"kind": "embedding", "precision": ["fp32", "fp16"]},
                               {"kind": "conv", "precision": ["fp32", "int8"]}))  # fmt: skip
    units = units_of(space)
    decoded = {
        space.decode(dict(zip(space.by_name, levels, strict=True)))
        for levels in itertools.product(*(range(len(v.levels)) for v in space.variables))
    }
    assert {joined(choice) for choice in itertools.product(*(unit.options for unit in units))} == decoded


def test_a_unit_finds_its_option_in_a_plan():
    unit = Unit("a", ("a", "b"), (Plan(), taking("int8", "a", "b")))
    assert unit.option_of(taking("int8", "a", "b", "c")) == 1
    assert unit.option_of(taking("int8", "c")) == 0
    assert unit.option_of(taking("int8", "a")) is None


def test_corners_are_the_uniform_plans(make_space):
    space = make_space(solving({"kind": "linear", "precision": ["fp32", "int8", "int4-weights"], "weight_bits": [8, 4]},
                               {"kind": "embedding", "precision": ["fp32", "int8-weights"]}))  # fmt: skip
    corners = corners_of(space)
    said = [{(lp.precision, lp.quantize.bits) for lp in plan.layers.values()} for plan in corners]
    assert said == [
        set(), {("int8", 8), ("int8-weights", 8)}, {("int8", 4), ("int8-weights", 8)},
        {("int4-weights", 4), ("int8-weights", 8)},
    ]  # fmt: skip
    assert len(set(corners)) == len(corners)


def test_rows_of_a_cost_add_up_to_the_whole_model(make_space, table):
    space = make_space(solving(LINEAR))
    units = units_of(space)
    errors = {o: Sensitivity(float(number), True) for number, o in enumerate(o for u in units for o in u.options)}

    def predict(plan):
        return 1.0 - 0.1 * len(plan.layers)

    made = tables_of(units, errors, predict, table)
    for choice in ([0] * 6, [2] * 6, [0, 1, 2, 0, 1, 2]):
        plan = joined([unit.options[option] for unit, option in zip(units, choice, strict=True)])
        assert sum(row[o] for row, o in zip(made.seconds, choice, strict=True)) == pytest.approx(predict(plan))
        found = sum(row[o] for row, o in zip(made.bytes, choice, strict=True))
        assert found == pytest.approx(weight_bytes(plan, table))
    assert [row[1:] for row in made.errors] == [[errors[o].kl for o in unit.options[1:]] for unit in units]


def test_seconds_are_exact_around_the_plan_that_they_are_priced_around(make_space, table):
    """Oracle: seconds of whole plans of which each two neighbours that compute alike save something; dense, too."""
    units = units_of(make_space(solving(LINEAR)))
    order = [layer.name for layer in table.layers]

    def predict(plan):
        kinds = [plan.layers[name].precision if name in plan.layers else "fp32" for name in order]
        saved = sum(0.01 if kind == "fp32" else 0.02 for kind, other in itertools.pairwise(kinds) if kind == other)
        return 2.0 - 0.05 * sum(kind != "fp32" for kind in kinds) - saved

    errors = {option: Sensitivity(0.0, True) for unit in units for option in unit.options}
    around = joined([unit.options[1] for unit in units])
    made = tables_of(units, errors, predict, table, around=around)
    for place, unit in enumerate(units):
        for option in range(len(unit.options)):
            choice = [1] * len(units)
            choice[place] = option
            plan = joined([u.options[o] for u, o in zip(units, choice, strict=True)])
            assert sum(row[o] for row, o in zip(made.seconds, choice, strict=True)) == pytest.approx(predict(plan))
    assert made.dense_s == predict(Plan())


def test_predicted_errors_never_fall_with_fewer_bytes(make_space, table):
    units = units_of(make_space(solving({"match": "classifier", "precision": ["fp32", "int8", "int4-weights"]})))
    dense, int8, int4 = units[0].options
    kls = {dense: 0.0, int8: 0.4, int4: 0.2}
    for measured, expected in ((True, [0.0, 0.4, 0.2]), (False, [0.0, 0.3, 0.3])):
        errors = {option: Sensitivity(kl, measured) for option, kl in kls.items()}
        assert tables_of(units, errors, lambda _plan: 1.0, table).errors == [pytest.approx(expected)]
