"""LatencyTable. Oracles: planted lines, closed forms of the errors, scipy's rank correlation, JSON."""

from __future__ import annotations

import json
import math
from dataclasses import astuple, replace

import numpy as np
import pytest
import scipy.stats

from autocompress.errors import MeasureError
from autocompress.layers import LayerTable
from autocompress.plan import Factorize, LayerPlan, Plan, Prune, Quantize
from autocompress.tables.menus import Menu, calibration_plans, menu_plans
from autocompress.tables.table import Check, LatencyTable, Line, Sums, fit_line, rank_correlation, weight_bytes
from autocompress.tables.units import signatures, units_of

MENU = Menu(
    shares={"heads": (0.5,), "neurons": (0.5, 0.25)},
    options={"linear": (Quantize("int8"),), "conv": (Quantize("int8"),)},
    parts=("block",),
)


def work(signature: object) -> float:
    return 1.0 + sum(math.prod(f.shape) * (0.5 if f.option == "int8" else 1.0) for f in signature.forms)  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def made(table: LayerTable) -> LatencyTable:
    units = units_of(table)
    entries = {
        signature.text: work(signature)
        for plan in menu_plans(table, MENU)
        for signature in signatures(units, plan, table).values()
    }
    return LatencyTable(units, {layer.name: layer.weight_shape for layer in table.layers}, entries)


def test_a_table_without_line_sums_its_units(made: LatencyTable, table: LayerTable) -> None:
    expected = sum(work(signature) for signature in signatures(made.units, Plan(), table).values())
    assert made.seconds(Plan(), table) == pytest.approx(expected)


def test_parts_and_base_make_the_whole(made: LatencyTable, table: LayerTable) -> None:
    lined = replace(made, line=Line(3.0, 1.2, 0.1, 1e-3, 1e-3))
    for plan in calibration_plans(table, MENU, 6):
        parts = lined.parts(plan, table)
        assert lined.seconds(plan, table) == pytest.approx(3.0 + sum(parts.values()))
        assert min(parts.values()) > 0


def test_a_removed_block_takes_nothing(made: LatencyTable, table: LayerTable) -> None:
    assert "net.1" not in made.parts(Plan({"net.1": Prune(0)}), table)


def test_values_stay_as_they_are_between_neighbours_that_compute_alike(made: LatencyTable, table: LayerTable) -> None:
    blocks, conv = 8 * 10, 4 * (360 // (4 * 1 * 3 * 3))  # what a block's down gives, and what conv gives

    def kept(*rounded: str) -> list[tuple[int, int]]:
        plan = Plan(layers={name: LayerPlan(quantize=Quantize("int8")) for name in rounded})
        return [(own.plain, own.rounded) for own in made.alone(plan, table).values()][2:]

    assert kept() == [(blocks, 0), (blocks, 0), (conv, 0)]
    assert kept("conv") == [(blocks, 0), (0, 0), (0, 0)]
    assert kept("net.1.down", "conv") == [(blocks, 0), (0, blocks), (0, 0)]


def test_values_change_between_blocks_that_compute_otherwise(made: LatencyTable, table: LayerTable) -> None:
    """In all widths as many as in the dense model; single layers, which nothing goes around, change none."""

    def changed(groups: dict[str, Prune], *rounded: str) -> list[int]:
        plan = Plan(groups, {name: LayerPlan(quantize=Quantize("int8")) for name in rounded})
        return [own.changed for own in made.alone(plan, table).values()]

    assert changed({}) == [0, 0, 0, 0, 0]
    assert changed({}, "conv", "classifier") == [0, 0, 0, 0, 0]
    assert changed({}, "net.0.down") == [0, 0, 8 * 10, 0, 0]
    assert changed({"net.0.mlp/neurons": Prune(4)}, "net.1.q") == [0, 0, 8 * 10, 0, 0]


def test_a_planted_line_is_found() -> None:
    draw = np.random.default_rng(0)
    drawn = draw.uniform(1, 100, (30, 6))
    sums = [Sums(float(s), int(k), int(p), int(r), float(b), int(c)) for s, k, p, r, b, c in drawn]
    planted = Line(200.0, 1.5, 0.25, 0.125, 0.5, 0.75, 0.625)
    saved = [0.125 * s.plain + 0.5 * s.rounded - 0.625 * s.changed for s in sums]
    costs = [200.0 + 1.5 * s.seconds + 0.25 * s.kernels + 0.75 * s.weight_bytes for s in sums]
    measured = [cost - less for cost, less in zip(costs, saved, strict=True)]
    assert astuple(fit_line(sums, measured)) == pytest.approx(astuple(planted), rel=1e-5)


def test_no_term_of_a_line_is_negative() -> None:
    line = fit_line([Sums(1.0, 5, 3, 0), Sums(2.0, 4, 2, 1), Sums(3.0, 3, 1, 2)], [1.0, 2.2, 3.6])
    assert min(astuple(line)) >= 0


def test_what_is_saved_is_at_most_four_fifths() -> None:
    line = Line(0.0, 2.0, 1.0, 0.5, 0.25)
    assert line.seconds(Sums(10.0, 4, 8, 4)) == 24.0 - 4.0 - 1.0
    assert line.seconds(Sums(10.0, 4, 80, 0)) == pytest.approx(24.0 / 5)


@pytest.mark.parametrize("seed", range(3))
def test_rank_correlation_is_scipys(seed: int) -> None:
    left, right = np.random.default_rng(seed).integers(0, 6, (2, 15)).astype(float)
    assert rank_correlation(left, right) == pytest.approx(scipy.stats.spearmanr(left, right).statistic)


def test_rank_correlation_of_too_little_is_nan() -> None:
    assert math.isnan(rank_correlation([1.0], [2.0]))
    assert math.isnan(rank_correlation([1.0, 1.0], [1.0, 2.0]))


def checked(made: LatencyTable, *ratios: float) -> LatencyTable:
    return replace(made, checked=tuple(Check(str(i), i + 1.0, (i + 1.0) * r) for i, r in enumerate(ratios)))


@pytest.mark.parametrize(
    ("ratios", "mape", "only_ranks"),
    [((1.02, 0.98, 1.0), 0.04 / 3, False), ((1.3, 1.3, 1.3), 0.3, True), ((1.0, 0.45, 1.0), 0.55 / 3, True)],
    ids=["predicts", "too-far-off", "wrong-order"],
)
def test_a_table_says_when_it_only_ranks(
    made: LatencyTable, ratios: tuple[float, ...], mape: float, only_ranks: bool
) -> None:
    table = checked(made, *ratios)
    assert table.mape == pytest.approx(mape)
    assert table.only_ranks is only_ranks
    assert ("only ranks" in table.words()) is only_ranks


def test_an_unchecked_table_only_ranks(made: LatencyTable) -> None:
    assert made.only_ranks
    assert "not checked" in made.words()


def test_a_table_survives_json(made: LatencyTable, table: LayerTable) -> None:
    full = replace(checked(made, 1.1, 0.9), line=Line(1.0, 2.0, 3.0, 4.0, 5.0), fitted=(Check("a", 1.0, 2.0),))
    again = LatencyTable.from_json(json.loads(json.dumps(full.to_json())))
    assert again == full
    assert again.seconds(Plan(), table) == full.seconds(Plan(), table)


def test_another_models_table_is_refused(made: LatencyTable, make_table: object) -> None:
    with pytest.raises(MeasureError, match=r"another model:\n  net\.2\.q: no such layer there, 8×8 here"):
        made.seconds(Plan(), make_table(3))  # type: ignore[operator]


def test_another_width_is_refused(made: LatencyTable, table: LayerTable) -> None:
    wider = replace(table.layers[-1], weight_shape=(5, 8))
    with pytest.raises(MeasureError, match="classifier: 3×8 there, 5×8 here"):
        made.seconds(Plan(), replace(table, layers=(*table.layers[:-1], wider)))


def test_a_unit_that_was_never_timed_is_named(made: LatencyTable, table: LayerTable) -> None:
    with pytest.raises(MeasureError, match="no time of embed"):
        replace(made, entries={}).seconds(Plan(), table)


def test_the_bytes_of_a_units_weights_by_hand(table: LayerTable) -> None:
    """net.0.up is 16 × 8; looked-up rows do not count."""
    units = {unit.name: unit for unit in units_of(table)}

    def read(name: str, **layers: LayerPlan) -> float:
        plan = Plan(layers={f"net.0.{key}": value for key, value in layers.items()})
        return weight_bytes(units[name], signatures(tuple(units.values()), plan, table)[name])

    dense = 4 * sum(math.prod(layer.weight_shape) for layer in table.layers if layer.name.startswith("net.0."))
    assert read("net.0") == dense
    assert read("net.0", up=LayerPlan(quantize=Quantize("int8", activation_bits=4))) == dense - 3 * 16 * 8
    assert read("net.0", up=LayerPlan(factorize=Factorize(2))) == dense - 4 * 16 * 8 + 4 * 2 * (16 + 8)
    assert read("embed") == 0
