"""Composition against planted costs: sums over layers, with and without the steps and the noise of real kernels."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from autocompress.errors import MeasureError
from autocompress.hardware import Rounding
from autocompress.layers import LayerTable
from autocompress.plan import LayerPlan, Plan, Prune, Quantize
from autocompress.tables.compose import FamilyLine, fit_family
from autocompress.tables.menus import Menu, calibration_plans, menu_plans
from autocompress.tables.units import Signature, Unit, signatures, units_of
from tests.conftest import encoder_table

Cost = Callable[[Signature], float]
RATES = {"fp32": 1.0, "int8": 0.4, "int4-weights": 1.3}
MENU = Menu(
    shares={"heads": (0.75, 0.5, 0.25), "neurons": (0.75, 0.5, 0.25)},
    options={"linear": (Quantize("int8"), Quantize("int4-weights"))},
    rounding=Rounding(neurons=4),
)


def planted(step: int = 1, noise: float = 0.0) -> Cost:
    """Work of each layer by its rate, widths rounded up to `step`, a quantizer per rounded input, and noise."""
    draw = np.random.default_rng(0)

    def cost(signature: Signature) -> float:
        total = 20.0
        for form in signature.forms:
            out, into = (math.ceil(size / step) * step for size in form.shape[:2])
            total += out * into * RATES[form.option] + (0.0 if form.option == "fp32" else 2.0 * into)
        return total * (1 + noise * draw.normal())

    return cost


@pytest.fixture(scope="module")
def table() -> LayerTable:
    return encoder_table(blocks=2)


@pytest.fixture(scope="module")
def block(table: LayerTable) -> Unit:
    return units_of(table)[1]


def line_of(table: LayerTable, block: Unit, cost: Cost) -> FamilyLine:
    forms = dict.fromkeys(signatures((block,), plan, table)[block.name] for plan in menu_plans(table, MENU))
    return fit_family(block, {form: cost(form) for form in forms})


def mixtures(table: LayerTable, block: Unit) -> list[Signature]:
    return [signatures((block,), plan, table)[block.name] for plan in calibration_plans(table, MENU, 40, seed=1)]


def errors(table: LayerTable, block: Unit, line: FamilyLine, cost: Cost) -> np.ndarray:
    return np.array([line.seconds(form) / cost(form) - 1 for form in mixtures(table, block)])


def test_what_was_timed_is_looked_up(table: LayerTable, block: Unit) -> None:
    line = line_of(table, block, planted(noise=0.3))
    for form, seconds in line.entries.items():
        assert line.seconds(form) == seconds


def test_planted_sums_are_found(table: LayerTable, block: Unit) -> None:
    cost = planted()
    assert np.abs(errors(table, block, line_of(table, block, cost), cost)).max() < 0.03


def test_parts_that_follow_one_another_add_up_whatever_their_steps(table: LayerTable, block: Unit) -> None:
    """Each part timed at these widths, never both: no line fits the steps, and the sum is exact."""
    cost = planted(step=8)
    line = line_of(table, block, cost)
    plan = Plan({"net.0.attention/heads": Prune(2), "net.0.mlp/neurons": Prune(8)})
    form = signatures((block,), plan, table)[block.name]
    assert form not in line.entries
    assert line.seconds(form) == pytest.approx(cost(form), rel=1e-9)


def test_steps_and_noise_are_borne(table: LayerTable, block: Unit) -> None:
    line = line_of(table, block, planted(step=4, noise=0.03))
    assert np.abs(errors(table, block, line, planted(step=4))).mean() < 0.06


def test_no_price_is_negative(table: LayerTable, block: Unit) -> None:
    line = line_of(table, block, planted(noise=0.2))
    assert min(line.coefficients.values()) >= 0
    assert all(line.seconds(form) > 0 for form in mixtures(table, block))


def test_a_way_to_compute_that_was_never_timed_is_refused(table: LayerTable, block: Unit) -> None:
    line = line_of(table, block, planted())
    plan = Plan(layers={"net.0.up": LayerPlan(quantize=Quantize("int8-dynamic"))})
    with pytest.raises(MeasureError, match=r"no time of net\.0\.up in int8-dynamic"):
        line.seconds(signatures((block,), plan, table)[block.name])
