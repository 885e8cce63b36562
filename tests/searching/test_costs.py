"""Oracles: bytes and shares worked out by hand, and a device whose latencies are planted."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest

from autocompress.errors import ExportError
from autocompress.hardware import HardwareProfile, load_profile
from autocompress.layers import Layer, LayerTable
from autocompress.plan import Gradual, LayerPlan, Plan, Quantize
from autocompress.searching import costs
from autocompress.searching.costs import measure_costs, recorded_seconds, weight_bytes
from autocompress.searching.probe import DenseSetting, PrecisionFact, Probe
from autocompress.tables import LatencyTable, Menu, Recorded, RecordedBench, menu_plans
from autocompress.tables.units import signatures, units_of

PROBE = Probe((DenseSetting("onnxruntime", 1, 0.010, 1.0),), (PrecisionFact("int8", 0.6, 0.59, 0.61, True, ""),),
              0.005, 0.5, 0.010)  # fmt: skip


def taking(precision, *names, **settings):
    return Plan(layers={name: LayerPlan(quantize=Quantize(precision, **settings)) for name in names})


@dataclass
class Shop:
    """A run folder with a device on which every rounded feed-forward layer saves 3 % and every other one 1 %."""

    root: Path
    table: object
    built: list

    @property
    def bench(self):
        return self

    def measure(self, _path):
        saved = sum(0.03 if name.endswith(("up", "down")) else 0.01 for name in self.built[-1].layers)
        return SimpleNamespace(ratio=1 - saved, ratio_low=0.99 - saved, ratio_high=1.01 - saved)


@pytest.fixture
def shop(tmp_path, table, monkeypatch):
    made = Shop(tmp_path, table, [])

    def build_into(_folder, plan, given, keep_weights):
        assert given is made
        assert keep_weights is False
        made.built.append(plan)
        return SimpleNamespace(artifact=SimpleNamespace(path="costs/model.onnx"))

    monkeypatch.setattr(costs, "build_into", build_into)
    return made


def test_a_recorded_device_knows_the_seconds_of_every_plan(tmp_path, table):
    """Oracle: the table itself; what it does not hold is never chosen for its speed, and recipes are passed over."""
    units, int8 = units_of(table), taking("int8", "net.0.up")
    plans = menu_plans(table, Menu(options={"linear": (Quantize("int8"),)}))
    entries = {
        s.text: 1e-5 * (len(s.text) - s.text.count("int8"))
        for plan in plans
        for s in signatures(units, plan, table).values()
    }
    latencies = LatencyTable(units, {layer.name: layer.weight_shape for layer in table.layers}, entries)
    far = tmp_path / "far.json"
    Recorded(
        HardwareProfile(name="far", threads=1), {}, table, latencies, (DenseSetting("onnxruntime", 1, 0.1, 1.0),)
    ).save(far)
    bench = RecordedBench(load_profile(far), tmp_path / "inputs.npz", tmp_path / "dense.onnx", table)
    seconds = recorded_seconds(bench)
    assert seconds(int8) == latencies.seconds(int8, table) != seconds(Plan())
    assert seconds(taking("int4-weights", "net.0.up")) == 10 * seconds(Plan())
    assert seconds(Plan(learn=Gradual(sparsity=0.5))) == seconds(Plan())
    assert recorded_seconds(SimpleNamespace()) is None


NAMES = [f"net.{block}.{name}" for block in (0, 1) for name in ("q", "k", "v", "o", "up", "down")]
OPTIONS = [taking("int8", name, weight_bits=bits) for name in NAMES for bits in (8, 4)]


def test_layers_of_one_shape_and_work_are_timed_together(shop):
    found = measure_costs(shop, OPTIONS, PROBE, 100.0, lambda _text: None)
    assert sorted(sorted(plan.layers) for plan in shop.built) == sorted(
        [sorted(n for n in NAMES if n[-1] in "qkvo"), ["net.0.up", "net.1.up"], ["net.0.down", "net.1.down"]]
    )
    assert found.seconds(Plan()) == 0.010
    assert found.seconds(taking("int8", "net.1.q")) == pytest.approx(0.0099)
    assert found.seconds(taking("int8", *NAMES, weight_bits=4)) == pytest.approx(0.010 * (1 - 8 * 0.01 - 4 * 0.03))


def test_layers_that_are_looked_up_cost_the_same(shop):
    found = measure_costs(shop, [taking("int8-weights", "embed")], PROBE, 100.0, lambda _text: None)
    assert not shop.built
    assert found.seconds(taking("int8-weights", "embed")) == 0.010


def test_without_time_layers_take_their_share_of_the_probe(shop):
    """Oracle: q has 640 of 12,800 - 2·… multiply-adds; shares of all layers come to what the probe found."""
    found = measure_costs(shop, OPTIONS, PROBE, -1.0, lambda _text: None)
    assert not shop.built
    assert found.seconds(taking("int8", *NAMES)) == pytest.approx(0.006)
    one, wide = (0.010 - found.seconds(taking("int8", name)) for name in ("net.0.q", "net.0.up"))
    assert wide == pytest.approx(2 * one)


def test_a_class_that_cannot_be_made_takes_its_share(shop, monkeypatch):
    def refuse(*_given, **_more):
        raise ExportError("no such kernel")

    monkeypatch.setattr(costs, "build_into", refuse)
    found = measure_costs(shop, OPTIONS, PROBE, 100.0, lambda _text: None)
    assert found.seconds(taking("int8", *NAMES)) == pytest.approx(0.006)
    assert not (shop.root / "costs.json").is_file()


def test_what_was_timed_is_not_timed_again(shop):
    first = measure_costs(shop, OPTIONS, PROBE, 100.0, lambda _text: None)
    assert len(json.loads((shop.root / "costs.json").read_text())) == len(shop.built) == 3
    assert measure_costs(shop, OPTIONS, PROBE, 100.0, lambda _text: None) == first
    assert len(shop.built) == 3


@pytest.mark.parametrize(
    ("plan", "saved"),
    [
        (Plan(), 0),
        (taking("int8", "net.0.up"), 128 * 3 - 16 * 4),  # a float scale for each of 16 rows
        (taking("int8", "net.0.up", weight_bits=4), 128 * 3.5 - 16 * 4),
        (taking("int8", "net.0.up", granularity="tensor"), 128 * 3 - 4),
        (taking("int4-weights", "net.0.down"), 128 * 3.5 - 8 * 4),  # 16 columns are one group of 32
        (taking("fp16", "classifier"), 24 * 2),
        (taking("fp8", "net.0.up"), 128 * 3 - 4),
        (taking("int8-weights", "embed"), 400 * 3 - 50 * 4),
        (taking("int8", "conv"), 36 * 3 - 4 * 4),
    ],
    ids=["dense", "int8", "4-bits", "per-tensor", "int4", "fp16", "fp8", "embedding", "conv"],
)
def test_bytes_are_those_of_the_bits(table, plan, saved):
    dense = weight_bytes(Plan(), table)
    assert dense == 4 * sum(layer.params for layer in table.layers)
    assert dense - weight_bytes(plan, table) == saved


def test_a_shared_weight_counts_once_until_either_side_takes_bits():
    rows, features = 100, 32
    shape, whole = (rows, features), 4 * rows * features
    embed = Layer("embed", "embedding", shape, rows * features, 0)
    head = Layer("head", "linear", shape, rows * features, rows * features, shares="embed")
    table = LayerTable((embed, head), (), rows * features)
    eighth = rows * features + 4 * rows  # a byte each, and a scale per row
    assert weight_bytes(Plan(), table) == whole
    assert weight_bytes(taking("int8", "head"), table) == whole + eighth
    assert weight_bytes(taking("int8-weights", "embed"), table) == whole + eighth
    both = Plan(layers={**taking("int8", "head").layers, **taking("int8-weights", "embed").layers})
    assert weight_bytes(both, table) == 2 * eighth


def test_a_file_holds_whole_integers_however_few_of_them_are_used(table) -> None:
    """Oracle: by hand, 8 by 8 weights."""
    name = "net.0.q"
    dense = weight_bytes(Plan(), table)
    for weight_bits, at_bits, stored in ((None, 8, 8), (2, 2, 8)):
        plan = Plan(layers={name: LayerPlan(quantize=Quantize("int8", weight_bits))})
        scales = 4 * 8
        assert weight_bytes(plan, table) == dense - 64 * 4 + 64 * at_bits / 8 + scales
        assert weight_bytes(plan, table, stored=True) == dense - 64 * 4 + 64 * stored / 8 + scales
