"""Seconds of plans from the work that they leave, fitted to whatever whole models were measured so far. No torch.

Steers a search from its first candidates on, without timing anything by itself; is never shown as measured. A device
that is recorded brings its latency table, which takes the place of the work.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import scipy.optimize
from numpy.typing import NDArray

from autocompress.layers import LayerTable
from autocompress.plan import PRECISIONS, Plan, Precision, effective_layers, removed_blocks
from autocompress.plan.check import lies_in, removed_layers

Array = NDArray[np.float64]

#: Shares of the dense model's seconds that are believed before anything else is measured to go into its call, its
#: blocks, its heads, and its layers' calls; the rest goes into multiply-adds.
BASE, BLOCKS, HEADS, CALLS = 0.03, 0.04, 0.08, 0.06

#: Features beside calls and multiply-adds.
OTHERS = 3

#: A multiply-add in any precision is believed to take at least this share of one in fp32.
LEAST = 0.05

#: Plans whose features are remembered.
REMEMBERED = 4096

#: Doubt of what is believed, as a share of it; and of any one measurement.
DOUBT, NOISE = 0.6, 0.02


@dataclass(frozen=True)
class WorkModel:
    """Seconds as a sum over features of a plan.

    Attributes:
        features: of a plan, ``(features,)``, none below 0.
        believed: seconds per unit of each feature before anything is measured, ``(features,)``.
        fitted: the same after `fit`.
        by_place: whether a block's features depend on what computes before and after it.
        information: inverse covariance of what is believed of the coefficients, each as a share of `believed`,
            ``(features, features)``; None before `fit`, when each is doubted by itself.
        known: features of plans that were asked for lately, by fingerprint.
    """

    features: Callable[[Plan], Array]
    believed: Array
    fitted: Array
    by_place: bool = False
    information: Array | None = None
    known: dict[str, Array] = field(default_factory=dict, compare=False, repr=False)

    def seconds(self, plan: Plan) -> float:
        """Expected seconds per query."""
        return float(self._features(plan) @ self.fitted)

    def spread(self, plan: Plan) -> float:
        """Standard deviation of the expected seconds: what is not known of the coefficients."""
        each = self._features(plan) * self.believed
        return math.sqrt(each @ np.linalg.solve(self._information, each))

    def drawn(self, draw: np.random.Generator) -> WorkModel:
        """One that may as well be true: its coefficients are drawn from what is known of them, none below 0."""
        root = np.linalg.cholesky(self._information)
        off = np.linalg.solve(root.T, draw.normal(size=len(self.believed)))
        return replace(self, fitted=np.maximum(self.fitted + off * self.believed, 0.0))

    @property
    def _information(self) -> Array:
        return np.eye(len(self.believed)) / DOUBT**2 if self.information is None else self.information

    def _features(self, plan: Plan) -> Array:
        if plan.fingerprint not in self.known:
            if len(self.known) >= REMEMBERED:
                self.known.clear()
            self.known[plan.fingerprint] = self.features(plan)
        return self.known[plan.fingerprint]

    def fit(self, plans: Sequence[Plan], seconds: Sequence[float]) -> WorkModel:
        """The coefficients, none below 0, that explain what was measured and stay near what is believed.

        The most likely ones under normal doubts: `DOUBT` of each coefficient, `NOISE` of each measurement, both
        relative, so that ``min Σ ((x·θ - y) / (NOISE·y))² + Σ ((θ - θ₀) / (DOUBT·θ₀))²  s.t.  θ ≥ 0``.
        """
        measured = np.asarray(seconds, dtype=float)[:, None]
        rows = np.array([self._features(plan) for plan in plans]).reshape(len(plans), len(self.believed))
        left = np.vstack([rows * self.believed / (NOISE * measured), np.eye(len(self.believed)) / DOUBT])
        right = np.repeat([1 / NOISE, 1 / DOUBT], [len(plans), len(self.believed)])
        factors, _residual = scipy.optimize.nnls(left, right)
        return replace(self, fitted=factors * self.believed, information=left.T @ left)


def work_model(table: LayerTable, dense_s: float, ratios: Mapping[Precision, float]) -> WorkModel:
    """What is believed of a device before whole candidates are measured.

    Args:
        table: of the model.
        dense_s: seconds of the dense model.
        ratios: of each precision that the probe timed on all layers, to the dense model.
    """

    def features(plan: Plan) -> Array:
        return work_features(plan, table)

    dense = features(Plan())
    others, calls, macs = np.split(dense, [OTHERS, OTHERS + len(PRECISIONS)])
    shares = np.array([BASE, BLOCKS, HEADS]) * (others > 0)
    work = 1 - shares.sum() - CALLS
    per_call, per_mac = CALLS * dense_s / max(calls.sum(), 1.0), work * dense_s / max(macs.sum(), 1.0)
    lighter = [max(LEAST, (ratios.get(precision, 1.0) - (1 - work)) / work) for precision in PRECISIONS]
    believed = np.concatenate(
        [shares * dense_s / np.maximum(others, 1.0), np.full(len(PRECISIONS), per_call), per_mac * np.array(lighter)]
    )
    return WorkModel(features, believed, believed)


def table_model(seconds: Callable[[Plan], float]) -> WorkModel:
    """What is believed of a device whose latency table is at hand: what the table says."""

    def features(plan: Plan) -> Array:
        return np.array([seconds(plan)])

    return WorkModel(features, np.ones(1), np.ones(1), by_place=True)


def work_features(plan: Plan, table: LayerTable) -> Array:
    """One, blocks, heads, and calls of layers and multiply-adds in each precision of `PRECISIONS`."""
    calls, macs = np.zeros((2, len(PRECISIONS)))
    for left in effective_layers(plan, table):
        if left.removed or not left.layer.macs:
            continue
        place = PRECISIONS.index(left.precision)
        calls[place] += 2 if left.factorize else 1
        macs[place] += left.layer.macs * left.weights / math.prod(left.layer.weight_shape)
    blocks = len(table.blocks) - len(removed_blocks(plan, table))
    lost, heads = removed_layers(plan, table), 0
    for group in table.groups:
        if group.kind == "heads" and not lies_in(group, lost):
            prune = plan.groups.get(group.name)
            heads += prune.keep if prune else group.size
    return np.concatenate([[1.0, blocks, heads], calls, macs])
