"""LatencyTable: seconds of a plan from seconds of its units. Screens and steers; is never shown as measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import scipy.optimize
from numpy.typing import NDArray

from autocompress.errors import MeasureError
from autocompress.layers import LayerTable
from autocompress.measure.chips import WEIGHT_BITS
from autocompress.plan import Plan, Precision
from autocompress.tables.compose import FamilyLine, families
from autocompress.tables.units import Form, Signature, Unit, signatures, unit_from_json

#: Errors on models outside the fit up to which the table predicts; beyond, it only ranks.
MOST_MAPE = 0.05
LEAST_SPEARMAN = 0.98

#: Share of a unit's cost that neighbours can save it.
MOST_SAVED = 0.8

#: Layers and units that a message about another model shows.
MOST_SHOWN = 3


@dataclass(frozen=True)
class Sums:
    """What a line is over, of one unit in a model or of several.

    A unit alone takes its inputs and gives its outputs in the layout and type of the file's border, or of neighbours
    that compute alike. In a whole file they stay as they are between neighbours that compute alike, and what that saves
    goes with the values passed on; between blocks that do not, values take another form, those on the way around a
    block once more, and that costs as much in narrow models, which runtimes fill up to whole vectors.
    Alone, its weights stay in the cache from query to query; those of a whole file may not, and come from memory.

    Attributes:
        seconds: of the units alone.
        kernels: matrix kernels, one per layer and two per pair of factors.
        plain, rounded: values that come in from a neighbour in the same form, fp32 or another one.
        weight_bytes: of the weights that its products read.
        changed: values of the dense model that come in from a block in another form than this block computes in.
    """

    seconds: float = 0.0
    kernels: int = 0
    plain: int = 0
    rounded: int = 0
    weight_bytes: float = 0.0
    changed: int = 0

    def __add__(self, other: Sums) -> Sums:
        """Of both."""
        pairs = zip(astuple(self), astuple(other), strict=True)
        return Sums(*(left + right for left, right in pairs))


@dataclass(frozen=True)
class Line:
    """From units alone to a part of a whole file; all coefficients are 0 or more.

    ``base`` is what belongs to no unit; of each, ``factor · seconds + per_kernel · kernels + per_byte · weight_bytes
    + per_change · changed - saved``, with ``saved = plain_saves · plain + rounded_saves · rounded``, at most
    `MOST_SAVED` of the rest.
    """

    base: float = 0.0
    factor: float = 1.0
    per_kernel: float = 0.0
    plain_saves: float = 0.0
    rounded_saves: float = 0.0
    per_byte: float = 0.0
    per_change: float = 0.0

    def seconds(self, unit: Sums) -> float:
        """Of one unit in a whole file."""
        cost = self.factor * unit.seconds + self.per_kernel * unit.kernels
        cost += self.per_byte * unit.weight_bytes + self.per_change * unit.changed
        return cost - min(self.plain_saves * unit.plain + self.rounded_saves * unit.rounded, MOST_SAVED * cost)


@dataclass(frozen=True)
class Check:
    """One whole model that was timed: what it took, and what the table says."""

    plan: str
    measured_s: float
    predicted_s: float


@dataclass(frozen=True)
class LatencyTable:
    """Latencies of a model's units on one device, and what they add up to.

    Attributes:
        units: the modules that were timed alone.
        shapes: weight shape of every layer of the dense model, to tell another model.
        entries: seconds by signature text, without the cost of a call.
        line: from unit seconds to whole models, fitted on measured ones.
        fitted, checked: whole models in the fit, and others that tell how good it is.
    """

    units: tuple[Unit, ...]
    shapes: Mapping[str, tuple[int, ...]]
    entries: Mapping[str, float]
    line: Line = Line()
    fitted: tuple[Check, ...] = ()
    checked: tuple[Check, ...] = ()

    @property
    def mape(self) -> float:
        """Mean absolute relative error on the models outside the fit; NaN without any."""
        return mean_error(self.checked)

    @property
    def spearman(self) -> float:
        """Rank correlation of predicted and measured seconds on the models outside the fit; NaN below two."""
        return rank_correlation([c.predicted_s for c in self.checked], [c.measured_s for c in self.checked])

    @property
    def only_ranks(self) -> bool:
        """Whether its seconds are too uncertain to be compared with a budget."""
        return not (self.mape <= MOST_MAPE and self.spearman >= LEAST_SPEARMAN)

    def words(self) -> str:
        """How good it is, in one sentence."""
        if not self.checked:
            return "latency table: not checked on whole models, so it only ranks"
        found = f"latency table: mean error {self.mape:.1%}, rank correlation {self.spearman:.3f}"
        asked = f"{MOST_MAPE:.0%} and {LEAST_SPEARMAN:g} are asked for, so it only ranks"
        return f"{found} on {len(self.checked)} models outside its fit" + (f"; {asked}" if self.only_ranks else "")

    def seconds(self, plan: Plan, layer_table: LayerTable) -> float:
        """Predicted seconds per query.

        Raises:
            MeasureError: the table is another model's, or holds nothing of a precision that the plan asks for.
        """
        return self.line.base + sum(self.parts(plan, layer_table).values())

    def parts(self, plan: Plan, layer_table: LayerTable) -> dict[str, float]:
        """Share of each unit in `seconds`, by the unit's name; what is left, `line.base`, belongs to none."""
        return {name: self.line.seconds(own) for name, own in self.alone(plan, layer_table).items()}

    def alone(self, plan: Plan, layer_table: LayerTable) -> dict[str, Sums]:
        """What the line is over, by the unit's name."""
        self.check_model(layer_table)
        found: dict[str, Sums] = {}
        option, values, whole = "", 0, 0
        for name, signature in signatures(self.units, plan, layer_table).items():
            unit = self._by_name[name]
            alike = bool(signature.forms) and signature.forms[0].option == option
            kept = values if alike else 0
            plain, rounded = (kept, 0) if option == "fp32" else (0, kept)
            changed = whole if signature.forms and not alike and unit.is_block else 0
            seconds, fetched = self._seconds(name, signature), weight_bytes(unit, signature)
            found[name] = Sums(seconds, kernels(signature), plain, rounded, fetched, changed)
            for last in signature.forms[-1:]:
                option, values = last.option, last.shape[0] * unit.positions[last.role]
                whole = unit.width(last.role) * unit.positions[last.role] if unit.is_block else 0
        return found

    def check_model(self, layer_table: LayerTable) -> None:
        """Raise `MeasureError` saying what differs when the table was measured on another model."""
        here = {layer.name: layer.weight_shape for layer in layer_table.layers}
        if here == self.shapes:
            return
        names = [*self.shapes, *(name for name in here if name not in self.shapes)]
        odd = [name for name in names if here.get(name) != self.shapes.get(name)]
        shown = [f"{name}: {_shape(self.shapes.get(name))} there, {_shape(here.get(name))} here" for name in odd]
        more = [f"… and {len(odd) - MOST_SHOWN} more"] if len(odd) > MOST_SHOWN else []
        raise MeasureError(
            "\n  ".join(["the latency table was measured on another model:", *shown[:MOST_SHOWN], *more])
        )

    @cached_property
    def _families(self) -> dict[str, FamilyLine]:
        return {line.unit.dense.family: line for line in families(self.units, self.entries)}

    @cached_property
    def _by_name(self) -> dict[str, Unit]:
        return {unit.name: unit for unit in self.units}

    @cached_property
    def _known(self) -> dict[Signature, float]:
        return {}

    def _seconds(self, name: str, signature: Signature) -> float:
        if signature.family not in self._families:
            raise MeasureError(f"the latency table holds no time of {name}")
        if signature not in self._known:
            self._known[signature] = self._families[signature.family].seconds(signature)
        return self._known[signature]

    def to_json(self) -> dict[str, Any]:
        """Plain data that `from_json` reads back; the errors stand in it for readers."""
        return {
            "mape": self.mape,
            "spearman": self.spearman,
            "only_ranks": self.only_ranks,
            "line": asdict(self.line),
            "units": [unit.to_json() for unit in self.units],
            "shapes": {name: list(shape) for name, shape in self.shapes.items()},
            "entries": dict(self.entries),
            "fitted": [asdict(check) for check in self.fitted],
            "checked": [asdict(check) for check in self.checked],
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> LatencyTable:
        """Inverse of `to_json`."""
        return LatencyTable(
            tuple(unit_from_json(unit) for unit in data["units"]),
            {name: tuple(shape) for name, shape in data["shapes"].items()},
            dict(data["entries"]),
            Line(**data["line"]),
            tuple(Check(**check) for check in data["fitted"]),
            tuple(Check(**check) for check in data["checked"]),
        )


def _shape(shape: tuple[int, ...] | None) -> str:
    return "no such layer" if shape is None else "×".join(map(str, shape))


def kernels(signature: Signature) -> int:
    """Matrix kernels that a unit runs: one per layer, two per pair of factors."""
    return sum(2 if form.rank else 1 for form in signature.forms)


def weight_bytes(unit: Unit, signature: Signature) -> float:
    """Bytes of the weights that a unit's products read; embeddings are looked up, row by row, and do not count."""
    return sum(
        form.weights * WEIGHT_BITS[_precision(form)] / 8 for form in signature.forms if unit.positions[form.role]
    )


def _precision(form: Form) -> Precision:
    precision: Precision = form.option.partition("+")[0]  # type: ignore[assignment]  # `option_of` begins with it
    return precision


def fit_line(sums: Sequence[Sums], measured: Sequence[float]) -> Line:
    """Non-negative least squares of measured seconds; relative errors count.

    Args:
        sums: of each whole model, ``(models,)``.
        measured: its seconds, ``(models,)``.
    """
    seconds: NDArray[np.float64] = np.asarray(measured, dtype=float)
    rows = (
        np.array([[1.0, s.seconds, s.kernels, -s.plain, -s.rounded, s.weight_bytes, s.changed] for s in sums])
        / seconds[:, None]
    )
    widths = np.maximum(np.linalg.norm(rows, axis=0), 1e-300)
    solution, _residual = scipy.optimize.nnls(rows / widths, np.ones(len(seconds)))
    return Line(*(float(value) for value in solution / widths))


def mean_error(checks: Sequence[Check]) -> float:
    """Mean absolute relative error; NaN for none."""
    return float(np.mean([abs(c.predicted_s / c.measured_s - 1) for c in checks])) if checks else float("nan")


def rank_correlation(left: Sequence[float], right: Sequence[float]) -> float:
    """Spearman's ρ, equal values sharing their mean rank; NaN below two values, or where all are equal."""
    if len(left) < 2:
        return float("nan")
    ranks = [_ranks(np.asarray(values, dtype=float)) for values in (left, right)]
    spreads = [float(rank.std()) for rank in ranks]
    if not all(spreads):
        return float("nan")
    centred = [rank - rank.mean() for rank in ranks]
    return float((centred[0] * centred[1]).mean() / (spreads[0] * spreads[1]))


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    _values, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    means: NDArray[np.float64] = (ends - (counts - 1) / 2)[inverse]
    return means
