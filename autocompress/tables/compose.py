"""Latency of a unit in forms that were not timed, from those that were.

Three steps, each of which is exact where it has what it needs:

1. A form that was timed is looked up.
2. Parts of a unit that share no structure (attention and feed-forward part) follow one another, so their changes add
   up: ``t(a, b) = t(a, b0) + t(a0, b) - t(a0, b0)``, where a0 and b0 are their narrowest plain forms. Of dense ones the
   noise alone would outweigh a narrow part; and without the other part runtimes fuse what they else do not.
3. Within a part, a non-negative line over the work of each layer, by precision, is fitted to all forms of the family
   that were timed. What it misses is made good by its mean error on the part with one precision throughout, at the
   same widths: there runtimes have their steps.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import scipy.optimize
from numpy.typing import NDArray

from autocompress.errors import MeasureError
from autocompress.tables.units import Form, Signature, Unit, read_signature

#: Weight of the penalty that shares a cost among layers which never changed one by one.
RIDGE = 1e-3

Feature = tuple[str, ...]


@dataclass(frozen=True)
class FamilyLine:
    """Seconds of a family as a line over features of its forms.

    Attributes:
        unit: one of the family.
        coefficients: seconds per unit of each feature, 0 or more.
        entries: seconds of the forms that were timed.
        rest: the narrowest plain form, layer by layer: what other cells are while one is looked at.
    """

    unit: Unit
    coefficients: Mapping[Feature, float]
    entries: Mapping[Signature, float]
    rest: Mapping[str, Form]

    def seconds(self, signature: Signature) -> float:
        """Seconds of a form, timed or composed.

        Raises:
            MeasureError: the form holds a way to compute of which nothing was timed.
        """
        if signature in self.entries:
            return self.entries[signature]
        rest = self._with_rest(signature, ())
        base = self._miss(rest) or 0.0
        total = self._line(signature) + base
        for cell in self.unit.cells:
            changed = self._with_rest(signature, cell)
            if changed != rest:
                total += self._miss_of_cell(changed, cell, base) - base
        return max(total, self._line(signature) / 2)

    def _with_rest(self, signature: Signature, cell: Sequence[str]) -> Signature:
        """The form whose other cells are at rest; what lies on the stream stays as wide as it is here."""
        here = {form.role: form for form in signature.forms}
        forms: list[Form] = []
        for role, rest in self.rest.items():
            form = here.get(role)
            if role not in cell:
                forms.append(_resting(rest, form or rest, self.unit.inner[role]))
            elif form:
                forms.append(form)
        return Signature(signature.family, tuple(forms))

    def _line(self, signature: Signature) -> float:
        return sum(self._price(f) * amount for f, amount in features(self.unit, signature).items())

    def _price(self, feature: Feature) -> float:
        """Seconds of a feature; the work of a pair of factors costs what that of one weight does, and vice versa."""
        if feature not in self.coefficients and feature[0] == "work":
            feature = (*feature[:3], "weight" if feature[3] == "factors" else "factors")
        if feature not in self.coefficients:
            layer = ".".join(name for name in (self.unit.name, feature[1]) if name)
            raise MeasureError(f"the latency table holds no time of {layer} in {feature[2]}")
        return self.coefficients[feature]

    def _miss(self, signature: Signature) -> float | None:
        """Timed minus fitted; None for what was not timed."""
        found = self.entries.get(signature)
        return None if found is None else found - self._line(signature)

    def _miss_of_cell(self, changed: Signature, cell: Sequence[str], base: float) -> float:
        known = self._miss(changed)
        if known is not None:
            return known
        options = [form.option for form in changed.forms if form.role in cell]
        misses = [self._miss(_uniform(changed, cell, option)) for option in options]
        return sum(base if miss is None else miss for miss in misses) / len(misses) if misses else base


def _resting(rest: Form, form: Form, inner: tuple[bool, bool]) -> Form:
    out, into = (r if is_inner else s for r, s, is_inner in zip(rest.shape, form.shape, inner, strict=False))
    return Form(rest.role, (out, into, *rest.shape[2:]))


def _narrowest(unit: Unit, timed: Mapping[Signature, float]) -> dict[str, Form]:
    """Of the plain forms that hold every layer and were timed, the one of least work at the stream's full width."""

    def is_plain(signature: Signature) -> bool:
        whole = tuple(form.role for form in signature.forms) == unit.roles
        return whole and all(form.option == "fp32" and not form.rank and _is_wide(form) for form in signature.forms)

    def _is_wide(form: Form) -> bool:
        sizes = zip(form.shape, dense[form.role].shape, unit.inner[form.role], strict=False)
        return all(is_inner or size == whole for size, whole, is_inner in sizes)

    dense = {form.role: form for form in unit.dense.forms}
    plain = [unit.dense, *filter(is_plain, timed)]
    least = min(plain, key=lambda signature: sum(math.prod(form.shape) for form in signature.forms))
    return {form.role: form for form in least.forms}


def _uniform(signature: Signature, cell: Sequence[str], option: str) -> Signature:
    forms = (replace(f, option=option, rank=0, split="channel") if f.role in cell else f for f in signature.forms)
    return replace(signature, forms=tuple(forms))


def features(unit: Unit, signature: Signature) -> dict[Feature, float]:
    """What the line is over: shares of the dense unit's work, outputs and rounded inputs, by layer and option."""
    dense = {form.role: form for form in unit.dense.forms}
    found: dict[Feature, float] = {("whole",): 1.0}
    for form in signature.forms:
        whole = dense[form.role].shape
        kernels = "factors" if form.rank else "weight"
        found["work", form.role, form.option, kernels] = form.weights / math.prod(whole)
        found["outputs", form.role] = form.shape[0] / whole[0]
        if form.option != "fp32":
            found["inputs", form.role, form.option] = form.shape[1] / whole[1]
    return found


def fit_family(unit: Unit, timed: Mapping[Signature, float]) -> FamilyLine:
    """The line of one family, by non-negative least squares of relative errors.

    Args:
        unit: one of the family.
        timed: seconds by signature, at least that of the dense form.
    """
    rows = [features(unit, signature) for signature in timed]
    names = sorted({name for row in rows for name in row})
    matrix = np.array([[row.get(name, 0.0) for name in names] for row in rows])
    seconds = np.array(list(timed.values()))
    scale = float(seconds.max())
    solution = _nonnegative(matrix / seconds[:, None] * scale, np.ones(len(seconds)))
    coefficients = {name: float(value) * scale for name, value in zip(names, solution, strict=True)}
    return FamilyLine(unit, coefficients, dict(timed), _narrowest(unit, timed))


def _nonnegative(matrix: NDArray[np.float64], wanted: NDArray[np.float64]) -> NDArray[np.float64]:
    columns = matrix.shape[1]
    penalty = RIDGE * np.sqrt(len(matrix)) * np.eye(columns)
    stacked = np.vstack([matrix, penalty])
    solution, _residual = scipy.optimize.nnls(stacked, np.concatenate([wanted, np.zeros(columns)]))
    found: NDArray[np.float64] = solution
    return found


def families(units: Sequence[Unit], entries: Mapping[str, float]) -> Iterator[FamilyLine]:
    """One line per family among the units, from the entries that belong to it."""
    first = {unit.dense.family: unit for unit in reversed(units)}
    timed: dict[str, dict[Signature, float]] = {family: {} for family in first}
    for text, seconds in entries.items():
        signature = read_signature(text)
        if signature.family in timed:
            timed[signature.family][signature] = seconds
    for family, unit in first.items():
        if timed[family]:
            yield fit_family(unit, timed[family])
