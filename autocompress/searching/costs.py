"""Seconds and bytes of plans that only quantize, as sums over their layers.

Layers of one kind, shape and number of multiply-adds cost the same, so that they are timed together: the dense model
with all of them, and nothing else, in one precision.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from autocompress.errors import AutocompressError, MeasureError, StorageError
from autocompress.layers import LayerTable
from autocompress.measure.dense import AnyBench
from autocompress.pipeline import build_into
from autocompress.plan import INT4_GROUP, EffectiveLayer, LayerPlan, Plan, Precision, effective_layers
from autocompress.records import write_json
from autocompress.searching.probe import Probe
from autocompress.tables import RecordedBench
from autocompress.workshop import Workshop

#: Seconds per query that a plan is expected to take.
Predict = Callable[[Plan], float]


#: What a recorded table knows nothing of is taken for so many times dense, so that nothing is chosen for its speed.
UNKNOWN = 10.0


@dataclass(frozen=True)
class LayerClass:
    """Layers that cost the same, in one precision.

    Attributes:
        kind, weight_shape, groups, macs: of each of them.
        precision: that they take.
    """

    kind: str
    weight_shape: tuple[int, ...]
    groups: int
    macs: int
    precision: Precision


@dataclass(frozen=True)
class ClassCost:
    """What the dense model takes when only one class is rounded.

    Attributes:
        layers: how many there are.
        ratio, ratio_low, ratio_high: to the dense model, with the interval.
    """

    layers: int
    ratio: float
    ratio_low: float
    ratio_high: float


@dataclass(frozen=True)
class Costs:
    """Seconds as a sum: the dense model, and what each rounded layer adds to it or saves.

    Attributes:
        dense_s: of the dense model.
        extra_s: by layer and precision; negative where rounding saves time, 0 where nothing is known.
    """

    dense_s: float
    extra_s: Mapping[tuple[str, Precision], float]

    def seconds(self, plan: Plan) -> float:
        """Expected seconds of a plan that only quantizes."""
        return self.dense_s + sum(self.extra_s.get((name, lp.precision), 0.0) for name, lp in plan.layers.items())


def recorded_seconds(bench: AnyBench) -> Predict | None:
    """Seconds of plans as a recorded device's table has them; None where the device is none.

    A recipe is passed over, since what it leaves is not known before.
    """
    if not isinstance(bench, RecordedBench):
        return None
    dense = bench.seconds(Plan())

    def seconds(plan: Plan) -> float:
        try:
            return bench.seconds(replace(plan, learn=None))
        except MeasureError:  # a precision that was not recorded: whoever proposes it meets the same fault
            return UNKNOWN * dense

    return seconds


def measure_costs(
    shop: Workshop, options: Iterable[Plan], probe: Probe, limit_s: float, say: Callable[[str], None]
) -> Costs:
    """Time every class in every precision that some options hold, the ones with most work first; resumable.

    What there is no time for takes its share, by multiply-adds, of what the probe found for the precision on all
    layers. Layers without multiply-adds, which are looked up, are taken to cost the same in every precision.

    Args:
        shop: builds and measures; keeps the results in ``costs.json`` of the run folder.
        options: plans of single units.
        probe: knows the dense latency, and each precision on all layers.
        limit_s: seconds after which no further class is timed.
        say: is told how far it is.
    """
    offered = classes_of(options, shop.table)
    path = shop.root / "costs.json"
    known = _read(path)
    began = time.perf_counter()
    for number, (found, layers) in enumerate(offered.items(), start=1):
        if found in known or time.perf_counter() - began > limit_s:
            continue
        cost = measured_class(shop, layers)
        if cost is not None:
            known[found] = cost
            write_json(path, [{**asdict(c), **asdict(known[c])} for c in known])
        say(f"latency of layer classes: {number} of {len(offered)}")
    extra: dict[tuple[str, Precision], float] = {}
    for found, layers in offered.items():
        ratio = known[found].ratio if found in known else None
        each = _share(found, offered, probe) if ratio is None else (ratio - 1) / known[found].layers
        extra.update({(name, found.precision): each * probe.dense_latency_s for name in layers})
    return Costs(probe.dense_latency_s, extra)


def classes_of(options: Iterable[Plan], table: LayerTable) -> dict[LayerClass, dict[str, LayerPlan]]:
    """The layers of each class with the first settings that an option gives them, most work first."""
    found: dict[LayerClass, dict[str, LayerPlan]] = {}
    for option in options:
        for name, settings in option.layers.items():
            layer = table.layer(name)
            if layer.macs:
                member = LayerClass(layer.kind, layer.weight_shape, layer.groups, layer.macs, settings.precision)
                found.setdefault(member, {}).setdefault(name, settings)
    return dict(sorted(found.items(), key=lambda item: -item[0].macs * len(item[1])))


def measured_class(shop: Workshop, layers: Mapping[str, LayerPlan]) -> ClassCost | None:
    """The class on the profile's device; None where its file cannot be made or run."""
    folder = shop.root / "costs"
    try:
        built = build_into(folder, Plan(layers=layers), shop, keep_weights=False)
        latency = shop.bench.measure(shop.root / built.artifact.path)
    except StorageError:
        raise
    except AutocompressError:  # then its share has to do; whoever proposes it meets the same fault and keeps it
        return None
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return ClassCost(len(layers), latency.ratio, latency.ratio_low, latency.ratio_high)


def _share(found: LayerClass, offered: Mapping[LayerClass, Mapping[str, LayerPlan]], probe: Probe) -> float:
    """What one layer adds to the ratio, by its share of the work of all that take the precision; 0 if not known."""
    ratio = next((fact.ratio for fact in probe.precisions if fact.precision == found.precision), None)
    work = sum(other.macs * len(layers) for other, layers in offered.items() if other.precision == found.precision)
    return 0.0 if ratio is None else (ratio - 1) * found.macs / work


def _read(path: Path) -> dict[LayerClass, ClassCost]:
    known = {}
    for item in json.loads(path.read_text()) if path.is_file() else []:
        shape = tuple(item.pop("weight_shape"))
        member = {name: item.pop(name) for name in ("kind", "groups", "macs", "precision")}
        known[LayerClass(weight_shape=shape, **member)] = ClassCost(**item)
    return known


def weight_bytes(plan: Plan, table: LayerTable, stored: bool = False) -> float:
    """Bytes of all layers at the bits that a plan gives their weights, with scales and float biases.

    Fewer bits within a precision count here, though the file's integers are no shorter for it; but where bytes are
    `stored`, as in a file. A weight that a head shares with its embedding counts once, unless either takes bits or a
    rank.
    """
    found = {left.layer.name: left for left in effective_layers(plan, table)}
    left_over = [left for left in found.values() if not left.removed and not _is_held_by(found, left)]
    return sum(_layer_bytes(left, stored) for left in left_over)


def _is_held_by(found: Mapping[str, EffectiveLayer], left: EffectiveLayer) -> bool:
    """Whether another layer holds its weight."""
    both = (left, found[left.layer.shares]) if left.layer.shares else ()
    return bool(both) and not any(one.quantize or one.factorize for one in both)


def _layer_bytes(left: EffectiveLayer, stored: bool) -> float:
    layer, weights, quantize = left.layer, left.weights, left.quantize
    rest = 4.0 * (layer.params - math.prod(layer.weight_shape)) * left.shape[0] / layer.weight_shape[0]
    if quantize is None:
        return 4.0 * weights + rest
    rows = left.shape[0] + (left.rank or 0)
    columns = weights // left.shape[0]
    scales = {"fp16": 0, "fp8": 1, "int4-weights": left.shape[0] * math.ceil(columns / INT4_GROUP)}
    count = scales.get(quantize.precision, rows if quantize.granularity == "channel" else 1)
    return weights * (quantize.stored_bits if stored else quantize.bits) / 8 + 4.0 * count + rest
