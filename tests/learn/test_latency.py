"""The latency fit against planted coefficients, and the plans that it is fitted on."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from autocompress.learn.gates import plan_widths
from autocompress.learn.latency import LatencyFit, calibration_plans, fit_latency
from autocompress.plan import check_plan
from tests.tiny import any_task, table_of


def test_planted_coefficients_are_found() -> None:
    draw = np.random.default_rng(0)
    widths = draw.uniform(size=(12, 4))
    planted = np.array([0.1, 0.3, 0.05, 0.35])
    ratios = 0.2 + widths @ planted
    fit = fit_latency(widths.tolist(), ratios.tolist())
    assert fit.base == pytest.approx(0.2, abs=1e-6)
    assert fit.coefficients == pytest.approx(tuple(planted), abs=1e-6)
    assert fit.error < 1e-9


def test_no_coefficient_is_negative() -> None:
    fit = fit_latency([[1, 1, 1, 1], [1, 0, 1, 1], [1, 1, 1, 0], [0, 0, 0, 0]], [1.0, 1.1, 0.9, 0.5])
    assert min(fit.base, *fit.coefficients) >= 0


def test_prediction_is_the_line_and_has_a_gradient() -> None:
    fit = LatencyFit(0.1, (0.2, 0.3, 0.1, 0.3), 0.0)
    widths = torch.ones(4, requires_grad=True)
    predicted = fit.predict(widths)
    predicted.backward()
    assert float(predicted.detach()) == pytest.approx(1.0)
    assert widths.grad is not None
    assert widths.grad.tolist() == pytest.approx([0.2, 0.3, 0.1, 0.3])


@pytest.mark.parametrize("family", ["bert", "vit", "gpt2", "llama"])
def test_calibration_plans_are_legal_and_tell_all_widths_apart(family: str) -> None:
    table = table_of(any_task(family))
    plans = calibration_plans(table)
    for plan in plans:
        check_plan(plan, table)
    rows = np.column_stack([np.ones(len(plans)), [plan_widths(plan, table) for plan in plans]])
    assert np.linalg.matrix_rank(rows) == 5
