"""Which precisions pay on which layers: every shape of layer, in every precision, on the profile's own device.

Where the whole model gains by a precision, narrow layers may still lose by it. What is timed is the dense model with
all layers of one shape rounded and nothing else, so that what its neighbours have to convert counts, too.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from autocompress.layers import Layer, LayerTable
from autocompress.plan import PRECISIONS, LayerPlan, Precision
from autocompress.records import aside, write_json
from autocompress.searching.costs import LayerClass, classes_of, measured_class
from autocompress.searching.probe import Probe, only_in
from autocompress.space import SearchSpace
from autocompress.workshop import Workshop

#: Share of a search's time that shapes may take; at least one is timed.
SHARE = 0.04

#: What layers of one shape have in common: kind, shape of the weight, groups, and multiply-adds.
Shape = tuple[str, tuple[int, ...], int, int]


@dataclass(frozen=True)
class ShapeFact:
    """What one precision, on all layers of one shape and on no other, does to the dense model's latency.

    Attributes:
        kind, weight_shape, groups, macs: of each of the layers.
        layers: how many they are.
        precision: that they take.
        ratio, low, high: to the dense model, with the 95 % interval; None where its file cannot be made or run.
        kept: whether the space keeps the precision on these layers.
        why: it does not.
    """

    kind: str
    weight_shape: tuple[int, ...]
    groups: int
    macs: int
    layers: int
    precision: Precision
    ratio: float | None
    low: float | None
    high: float | None
    kept: bool
    why: str

    @property
    def shape(self) -> Shape:
        """Of the layers."""
        return self.kind, self.weight_shape, self.groups, self.macs

    def words(self) -> str:
        """One line."""
        layers = f"{self.layers} layers" if self.layers > 1 else "1 layer"
        what = f"{self.precision} on {layers} of {'×'.join(map(str, self.weight_shape))}"
        found = "does not run" if self.ratio is None else f"{self.ratio:.3g} of dense"
        return f"{what}: {found}" + ("" if self.kept else f", dropped there: {self.why}")


def probe_shapes(
    shop: Workshop, space: SearchSpace, probe: Probe, path: Path, limit_s: float, say: Callable[[str], None]
) -> tuple[ShapeFact, ...]:
    """Time the layer shapes of a model in every precision that is left after the probe, most work first.

    A precision that is slower on a shape than the next heavier one is dropped there. Shapes that there is no time for
    keep all, and so does a precision that all of its layers have one shape for, which the probe told of already.

    Args:
        shop: builds and measures.
        space: before anything is dropped.
        probe: of the run.
        path: file to write the facts to.
        limit_s: seconds after which no further shape is begun.
        say: is told what was found.
    """
    left = [fact.precision for fact in probe.precisions if fact.kept]
    shapes = _shapes(space, left)
    began, facts, timed = time.perf_counter(), list[ShapeFact](), 0
    for classes in shapes.values() if len(shapes) > 1 else ():
        if timed and time.perf_counter() - began > limit_s:
            break
        timed += 1
        facts += _facts(shop, classes)
    write_json(path, [asdict(fact) for fact in facts])
    for fact in facts:
        if not fact.kept:
            say(fact.words() + aside(shop.profile.source))
    if timed:
        say(f"layer shapes timed in each precision: {timed} of {len(shapes)}")
    return tuple(facts)


def _shapes(space: SearchSpace, precisions: Iterable[Precision]) -> dict[Shape, dict[LayerClass, dict[str, LayerPlan]]]:
    """The classes of each shape, heavier precisions first; shapes with most work first."""
    wanted = sorted(precisions, key=PRECISIONS.index)
    found: dict[Shape, dict[LayerClass, dict[str, LayerPlan]]] = {}
    classes = classes_of([only_in(space, precision) for precision in wanted], space.table)
    for member, layers in sorted(classes.items(), key=lambda item: PRECISIONS.index(item[0].precision)):
        found.setdefault((member.kind, member.weight_shape, member.groups, member.macs), {})[member] = layers
    return dict(sorted(found.items(), key=lambda item: -item[0][3] * max(map(len, item[1].values()))))


def _facts(shop: Workshop, classes: Mapping[LayerClass, Mapping[str, LayerPlan]]) -> Iterator[ShapeFact]:
    heavier, heavier_ratio = "fp32", 1.0
    for member, layers in classes.items():
        cost = measured_class(shop, layers)
        # what cannot be made here is kept, and meets its fault as a candidate
        kept = cost is None or cost.ratio_low <= heavier_ratio
        why = "" if kept or cost is None else f"slower than {heavier} ({cost.ratio:.3g} against {heavier_ratio:.3g})"
        yield ShapeFact(
            member.kind, member.weight_shape, member.groups, member.macs, len(layers), member.precision,
            cost.ratio if cost else None, cost.ratio_low if cost else None, cost.ratio_high if cost else None,
            kept, why,
        )  # fmt: skip
        if kept and cost is not None:
            heavier, heavier_ratio = member.precision, cost.ratio


def read_shapes(path: Path) -> tuple[ShapeFact, ...]:
    """The facts of a run; none where they were not taken."""
    found: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    return tuple(ShapeFact(**{**item, "weight_shape": tuple(item["weight_shape"])}) for item in found)


def dropped_there(facts: Iterable[ShapeFact], table: LayerTable) -> dict[str, frozenset[Precision]]:
    """Precisions that the space goes without, by layer."""
    facts = list(facts)
    return {
        layer.name: frozenset(fact.precision for fact in facts if not fact.kept and fact.shape == shape_of(layer))
        for layer in table.layers
    }


def shape_of(layer: Layer) -> Shape:
    """What the layer has in common with its like."""
    return layer.kind, layer.weight_shape, layer.groups, layer.macs
