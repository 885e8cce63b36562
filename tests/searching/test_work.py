"""Oracles: features counted by hand, planted seconds that a fit must find again, the belief where nothing is known."""

from __future__ import annotations

import numpy as np
import pytest

from autocompress.plan import PRECISIONS, Factorize, LayerPlan, Plan, Prune, Quantize
from autocompress.searching.work import OTHERS, work_features, work_model

RATIOS = {"int8": 0.5, "int8-dynamic": 0.7}
RULES = {
    "groups": {"heads": [1.0, 0.75, 0.5, 0.25], "neurons": [1.0, 0.5, 0.25]},
    "blocks": {"remove": True},
    "layers": [{"kind": "linear", "precision": ["fp32", "int8-dynamic", "int8"], "rank": [1.0, 0.5, 0.25]}],
}
#: Multiply-adds of the table: 10 for each weight of the linears in the blocks, 360 and 24 outside.
BLOCK_MACS, FREE_MACS = 10 * (4 * 64 + 2 * 128), 384


def feature(name):
    """Place of a feature: multiply-adds by their precision, calls by "calls" and theirs."""
    kind, _, precision = name.rpartition(" ")
    named = {"base": 0, "blocks": 1, "heads": 2}
    if precision in PRECISIONS:
        return OTHERS + PRECISIONS.index(precision) + (0 if kind == "calls" else len(PRECISIONS))
    return named[name]


def drawn_plans(make_space, count, seed=0):
    space, draw = make_space(RULES), np.random.default_rng(seed)
    values = [{v.name: int(draw.integers(len(v.levels))) for v in space.variables} for _ in range(count)]
    return [space.decode(value) for value in values]


# features


def test_features_of_the_dense_model(table):
    found = work_features(Plan(), table)
    assert found[:OTHERS].tolist() == [1, 2, 8]
    assert found[feature("calls fp32")] == 14  # embeddings are looked up, and are no call
    assert found[feature("fp32")] == 2 * BLOCK_MACS + FREE_MACS
    assert found.sum() == 1 + 14 + 2 + 8 + 2 * BLOCK_MACS + FREE_MACS


def test_what_is_removed_takes_its_features_with_it(table):
    found = work_features(Plan({"net.0": Prune(0)}), table)
    assert found[:OTHERS].tolist() == [1, 1, 4]
    assert found[feature("calls fp32")] == 8
    assert found[feature("fp32")] == BLOCK_MACS + FREE_MACS


def test_pruned_factorized_and_rounded_layers_by_hand(table):
    plan = Plan(
        {"net.0.attention/heads": Prune(1), "net.1.mlp/neurons": Prune(4)},
        {"net.0.up": LayerPlan(Factorize(2), Quantize("int8")), "classifier": LayerPlan(quantize=Quantize("int8"))},
    )
    found = work_features(plan, table)
    assert found[:OTHERS].tolist() == [1, 2, 5]
    assert [found[feature(name)] for name in ("calls fp32", "calls int8")] == [12, 3]
    assert found[feature("int8")] == 10 * 2 * (16 + 8) + 24
    assert found[feature("fp32")] == 10 * 4 * 16 + 10 * 128 + 10 * 4 * 64 + 10 * 2 * 32 + 360


# belief


def test_belief_gives_the_dense_seconds_and_the_probes_ratios(table):
    model = work_model(table, 0.02, RATIOS)
    assert model.seconds(Plan()) == pytest.approx(0.02)
    assert (model.believed > 0).all()
    layers = {layer.name: LayerPlan(quantize=Quantize("int8")) for layer in table.layers if layer.macs}
    assert model.seconds(Plan(layers=layers)) == pytest.approx(0.01)


def test_a_precision_that_the_probe_did_not_time_is_believed_to_take_what_fp32_takes(table):
    model = work_model(table, 0.02, RATIOS)
    layers = {layer.name: LayerPlan(quantize=Quantize("int4-weights")) for layer in table.layers if layer.macs}
    assert model.seconds(Plan(layers=layers)) == pytest.approx(0.02)


def test_a_model_without_heads_and_blocks_has_its_seconds_in_calls_and_work(make_table):
    table = make_table(0)
    model = work_model(table, 0.02, {})
    assert model.seconds(Plan()) == pytest.approx(0.02)
    assert model.believed[[feature("blocks"), feature("heads")]].tolist() == [0, 0]
    assert model.fit([Plan()], [0.01]).fitted[[feature("blocks"), feature("heads")]].tolist() == [0, 0]


# fit


def test_without_measurements_the_belief_stays(table):
    model = work_model(table, 0.02, RATIOS)
    assert model.fit([], []).fitted == pytest.approx(model.believed)


def test_what_agrees_with_the_belief_changes_nothing(table, make_space):
    model, plans = work_model(table, 0.02, RATIOS), drawn_plans(make_space, 10)
    assert model.fit(plans, [model.seconds(plan) for plan in plans]).fitted == pytest.approx(model.believed)


@pytest.mark.parametrize("seed", range(3))
def test_planted_seconds_are_found_again(table, make_space, seed):
    """Oracle: a device whose coefficients are believed wrongly by up to a factor of two; plans that were not fitted."""
    model, plans = work_model(table, 0.02, RATIOS), drawn_plans(make_space, 90, seed)
    planted = model.believed * np.random.default_rng(seed).uniform(0.5, 2, len(model.believed))
    truth = [float(work_features(plan, table) @ planted) for plan in plans]
    fitted = model.fit(plans[:60], truth[:60])
    errors = [[abs(m.seconds(p) / t - 1) for p, t in zip(plans[60:], truth[60:], strict=True)] for m in (model, fitted)]
    assert max(errors[1]) < 0.02
    assert np.mean(errors[1]) < 0.1 * np.mean(errors[0])
    seen = [feature(name) for name in ("heads", "fp32", "int8", "int8-dynamic")]
    assert fitted.fitted[seen] == pytest.approx(planted[seen], rel=0.15)


def test_a_fit_is_the_most_likely_one(table, make_space):
    """Oracle: the objective of the docstring; no small step that keeps coefficients above 0 makes it less."""
    model, plans = work_model(table, 0.02, RATIOS), drawn_plans(make_space, 5)
    draw = np.random.default_rng(0)
    measured = [model.seconds(plan) * draw.uniform(0.3, 1.5) for plan in plans]

    def unlikely(theta):
        fits = [((work_features(p, table) @ theta - y) / (0.02 * y)) ** 2 for p, y in zip(plans, measured, strict=True)]
        return sum(fits) + float((((theta - model.believed) / (0.6 * model.believed)) ** 2).sum())

    fitted = model.fit(plans, measured).fitted
    assert (fitted >= 0).all()
    best = unlikely(fitted)
    for _ in range(50):
        step = draw.normal(size=len(fitted)) * 1e-4 * model.believed
        assert unlikely(np.maximum(fitted + step, 0)) >= best - 1e-9


def test_a_fit_starts_from_the_belief_each_time(table, make_space):
    model, plans = work_model(table, 0.02, RATIOS), drawn_plans(make_space, 3)
    once = model.fit(plans, [0.01, 0.02, 0.03])
    assert once.fit(plans, [0.01, 0.02, 0.03]).fitted == pytest.approx(once.fitted)


# doubt


def test_doubt_before_anything_is_measured_is_that_of_each_coefficient(table, make_space):
    """By hand: 0.6 of each, independent of each other."""
    model = work_model(table, 0.02, RATIOS)
    for plan in drawn_plans(make_space, 5):
        each = 0.6 * work_features(plan, table) * model.believed
        assert model.spread(plan) == pytest.approx(float(np.sqrt((each**2).sum())))


def test_what_was_measured_is_doubted_less_and_what_is_unlike_it_is_not(table):
    model = work_model(table, 0.02, RATIOS)
    layers = {layer.name: LayerPlan(quantize=Quantize("int8")) for layer in table.layers if layer.macs}
    pruned, rounded = Plan({"net.0.mlp/neurons": Prune(4)}), Plan(layers=layers)
    fitted = model.fit([Plan()], [0.03])
    assert fitted.spread(Plan()) == pytest.approx(0.02 * 0.03, rel=0.05), "as any one measurement is"
    assert fitted.spread(pruned) < 0.3 * model.spread(pruned)
    assert fitted.spread(rounded) > 0.9 * model.spread(rounded)


def test_models_that_may_as_well_be_true_spread_as_is_doubted(table, make_space):
    """Oracle: mean and deviation over 4,000 of them; as many doubts of a few percent, so that none is cut off at 0."""
    model, plans = work_model(table, 0.02, RATIOS), drawn_plans(make_space, 40)
    fitted = model.fit(plans, [1.1 * model.seconds(plan) for plan in plans])
    draw, asked = np.random.default_rng(0), drawn_plans(make_space, 3, seed=1)
    every = [fitted.drawn(draw) for _ in range(4000)]
    assert all((one.fitted >= 0).all() for one in every)
    for plan in asked:
        seconds = [one.seconds(plan) for one in every]
        assert np.mean(seconds) == pytest.approx(fitted.seconds(plan), rel=0.01)
        assert np.std(seconds) == pytest.approx(fitted.spread(plan), rel=0.1)
