"""Oracles: a device whose ratios are planted by shape and precision, and the levels that a layer then decodes to."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from autocompress.searching import shapes
from autocompress.searching.costs import ClassCost
from autocompress.searching.probe import DenseSetting, PrecisionFact, Probe
from autocompress.searching.shapes import dropped_there, probe_shapes, read_shapes
from autocompress.space import build_space

KEPT = ("int8-dynamic", "int8")
PROBE = Probe(
    (DenseSetting("onnxruntime", 1, 0.010, 1.0),),
    (
        *(PrecisionFact(precision, 0.6, 0.59, 0.61, True, "") for precision in KEPT),
        PrecisionFact("int4-weights", 1.2, 1.1, 1.3, False, "slow"),
    ),
    0.005, 0.5, 0.010,
)  # fmt: skip

#: Share of dense by precision: int8 loses to int8-dynamic on "up", and both lose to fp32 on the attention's layers.
RATIOS = {"up": {"int8-dynamic": 0.90, "int8": 0.95}, "q": {"int8-dynamic": 1.05, "int8": 1.04}}
RULES = {"layers": [{"kind": "linear", "precision": ["fp32", *KEPT, "int4-weights"], "share": "all"}]}


class Shop:
    def __init__(self, table, source):
        self.table, self.profile = table, SimpleNamespace(source=source)


@pytest.fixture
def timed(monkeypatch):
    """The sets of layers and the precision that were timed, in order."""
    done = []

    def measure(_shop, layers):
        precision = next(iter(layers.values())).precision
        done.append((sorted(layers), precision))
        name = next((name for name in RATIOS if any(layer.endswith("." + name) for layer in layers)), None)
        ratio = RATIOS[name][precision] if name else 0.8
        return ClassCost(len(layers), ratio, ratio - 0.005, ratio + 0.005)

    monkeypatch.setattr(shapes, "measured_class", measure)
    return done


def probed(space, path, limit_s=100.0, said=None, source="measured"):
    shop = Shop(space.table, source)
    return probe_shapes(shop, space, PROBE, path, limit_s, (said if said is not None else []).append)


def test_a_precision_goes_from_the_shapes_where_the_next_heavier_one_is_faster(make_space, timed, tmp_path):
    space, said = make_space(RULES), []
    facts = probed(space, tmp_path / "kernels.json", said=said)
    assert len(timed) == len(facts)
    assert {precision for _layers, precision in timed} == set(KEPT)  # 4 bits were dropped everywhere
    gone = dropped_there(facts, space.table)
    assert {layer.name: gone[layer.name] for layer in space.table.layers if gone[layer.name]} == {
        **{f"net.{block}.{name}": {*KEPT} for block in (0, 1) for name in "qkvo"},
        **{f"net.{block}.up": {"int8"} for block in (0, 1)},
    }
    wide = next(line for line in said if "16×8" in line)
    assert wide == "int8 on 2 layers of 16×8: 0.95 of dense, dropped there: slower than int8-dynamic (0.95 against 0.9)"


def test_what_was_not_measured_says_so(make_space, timed, tmp_path):
    said = []
    probed(make_space(RULES), tmp_path / "kernels.json", said=said, source="predicted")
    assert next(line for line in said if "16×8" in line).endswith("(0.95 against 0.9), predicted")


def test_one_level_then_means_what_each_layer_still_has(make_space, timed, tmp_path):
    full = make_space(RULES)
    gone = dropped_there(probed(full, tmp_path / "kernels.json"), full.table)
    space = build_space(full.rules, full.table, full.profile, PROBE.dropped, dropped_there=gone)
    plan = space.decode(space.uniform(precision="int8"))
    assert {name: lp.precision for name, lp in plan.layers.items() if name.startswith("net.0")} == {
        "net.0.up": "int8-dynamic", "net.0.down": "int8",
    }  # fmt: skip


def test_what_was_written_is_read_again(make_space, timed, tmp_path):
    path = tmp_path / "kernels.json"
    assert read_shapes(path) == ()
    facts = probed(make_space(RULES), path)
    assert read_shapes(path) == facts


def test_without_time_only_the_shape_with_most_work_is_timed(make_space, timed, tmp_path):
    space = make_space(RULES)
    facts = probed(space, tmp_path / "kernels.json", limit_s=-1.0)
    work = {}
    for layer in space.table.layers:
        if layer.kind == "linear":
            work[layer.weight_shape] = work.get(layer.weight_shape, 0) + layer.macs
    assert {fact.weight_shape for fact in facts} == {max(work, key=work.__getitem__)}


def test_a_model_of_one_shape_is_not_timed_again(make_space, timed, tmp_path):
    rules = {"layers": [{"match": "net.*.up", "precision": ["fp32", *KEPT]}]}
    assert probed(make_space(rules), tmp_path / "kernels.json") == ()
    assert not timed


def test_a_shape_that_cannot_be_made_keeps_its_precisions(make_space, tmp_path, monkeypatch):
    monkeypatch.setattr(shapes, "measured_class", lambda _shop, _layers: None)
    facts = probed(make_space(RULES), tmp_path / "kernels.json")
    assert all(fact.kept and fact.ratio is None for fact in facts)
    assert facts[0].words().endswith("does not run")
