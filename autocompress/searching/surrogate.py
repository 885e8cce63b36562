"""A Gaussian process over choices: what a candidate comes to, by those that were measured.

Pure numbers: a row of levels per candidate, what is foretold of it without the process, and what was measured. Knows no
plan and no model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_solve, cholesky, solve_triangular
from scipy.optimize import isotonic_regression, minimize
from scipy.spatial.distance import cdist
from scipy.special import ndtr

Array = NDArray[np.float64]

#: Candidates from which the settings of the kernel are found again, as a share of those at the last time.
GROWN = 1.3

#: Steps in which they are found.
STEPS = 25

#: Logarithms that they are believed to be near to, each within about `DOUBT`: amplitude (of the deviation), share of
#: what is foretold, weight of a difference in one kind of choice, noise.
AMPLITUDE, FORETOLD, WEIGHT, NOISE, DOUBT = -0.7, 0.0, -1.5, -1.5, 1.5

#: Doubts that they stay within, so that nothing overflows while they are sought.
FURTHEST = 4.0

#: Added to the variance of each candidate, relative to that of all, so that equal ones can be told apart.
JITTER = 1e-8


class Surrogate:
    """Gaussian process regression of one figure over choices.

    The kernel is ``a²·exp(-Σ_k w_k·d_k) + f²·m·m'``: of two candidates `d_k` is the number of choices of kind k in
    which they differ, half of each counted by how far its levels lie apart; `m` is what is foretold of a candidate
    without the process, brought to the figure by isotonic regression. The larger that is, the more it errs, and the
    noisier the figure is: all is told as a share of ``floor + m``. Amplitudes, weights and noise maximise the
    posterior, with normal beliefs of their logarithms.

    Args:
        kinds: of each choice; those of one kind share a weight.
        levels: number of levels of each choice.
        floor: figure below which errors do not get smaller with it, above 0.
    """

    def __init__(self, kinds: Sequence[str], levels: Sequence[int], floor: float) -> None:
        self._columns = [[i for i, one in enumerate(kinds) if one == kind] for kind in dict.fromkeys(kinds)]
        self._spans = np.maximum(np.asarray(levels, dtype=float) - 1, 1.0)
        self._floor = floor
        weights = len(self._columns)
        self._believed = np.array([AMPLITUDE, FORETOLD, *[WEIGHT] * weights, NOISE])
        self._settings = self._believed
        self._fitted = 0

    def learn(self, choices: Array, foretold: Array, measured: Array) -> None:
        """Take in all that was measured.

        Args:
            choices: levels, ``(candidates, choices)``.
            foretold: grows with what is to be expected, ``(candidates,)``.
            measured: the figure, ``(candidates,)``.
        """
        places, group, counts = np.unique(foretold, return_inverse=True, return_counts=True)
        means = np.bincount(group, weights=measured) / counts
        self._line = places, np.asarray(isotonic_regression(means, weights=counts).x)
        scale, straight = self._straight(foretold)
        self._level, self._spread = float((measured / scale).mean()), float((measured / scale).std()) or 1.0
        own, self._mean = self._shared(measured / scale), self._shared(straight / scale)
        self._choices = np.asarray(choices, dtype=float)
        apart = self._apart(self._choices, self._choices)
        if len(own) >= GROWN * self._fitted:
            self._settings = minimize(
                self._posterior, self._settings, (apart, own), jac=True, method="L-BFGS-B",
                options={"maxiter": STEPS},
                bounds=[(one - FURTHEST * DOUBT, one + FURTHEST * DOUBT) for one in self._believed],
            ).x  # fmt: skip
            self._fitted = len(own)
        self._factor = self._kernel(self._settings, apart)[2]
        self._weights = cho_solve((self._factor, True), own)

    def foretell(self, choices: Array, foretold: Array) -> tuple[Array, Array]:
        """Mean of what would be measured, and its standard deviation without noise, ``(candidates,)`` each."""
        scale, straight = self._straight(foretold)
        mean = self._shared(straight / scale)
        amplitude, share, weights, _noise = self._unpacked(self._settings)
        apart = self._apart(np.asarray(choices, dtype=float), self._choices)
        near = amplitude * self._near(weights, apart) + share * np.outer(mean, self._mean)
        known = solve_triangular(self._factor, near.T, lower=True)
        variance = amplitude + share * mean**2 - (known**2).sum(axis=0)
        spread = np.sqrt(np.maximum(variance, JITTER))
        return scale * (self._level + self._spread * (near @ self._weights)), scale * self._spread * spread

    def _straight(self, foretold: Array) -> tuple[Array, Array]:
        """What the figure is expected to be by what is foretold alone, and its scale before it."""
        straight: Array = np.interp(foretold, *self._line)
        return self._floor + np.maximum(straight, 0.0), straight

    def _shared(self, figures: Array) -> Array:
        """Scaled figures as the process sees them."""
        return (figures - self._level) / self._spread

    def _apart(self, some: Array, others: Array) -> list[Array]:
        """How far candidates lie apart in each kind of choice, ``(some, others)`` each."""
        found = []
        for columns in self._columns:
            one, other, spans = some[:, columns], others[:, columns], self._spans[columns]
            differ = len(columns) * cdist(one, other, "hamming")
            found.append(0.5 * (differ + cdist(one / spans, other / spans, "cityblock")))
        return found

    @staticmethod
    def _near(weights: Array, apart: Sequence[Array]) -> Array:
        found: Array = np.exp(-sum(weight * gap for weight, gap in zip(weights, apart, strict=True)))
        return found

    @staticmethod
    def _unpacked(settings: Array) -> tuple[float, float, Array, float]:
        """Variance of the deviation, of what is foretold, weights, variance of the noise."""
        amplitude, share, noise = np.exp(2 * settings[[0, 1, -1]])
        return float(amplitude), float(share), np.exp(settings[2:-1]), float(noise)

    def _kernel(self, settings: Array, apart: Sequence[Array]) -> tuple[Array, Array, Array]:
        """What differences in choices explain, what is foretold explains, and the factor of both with noise."""
        amplitude, share, weights, noise = self._unpacked(settings)
        near = amplitude * self._near(weights, apart)
        straight = share * np.outer(self._mean, self._mean)
        whole = near + straight
        whole[np.diag_indices_from(whole)] += noise + JITTER * (1 + amplitude + share)
        return near, straight, cholesky(whole, lower=True)

    def _posterior(self, settings: Array, apart: Sequence[Array], own: Array) -> tuple[float, Array]:
        """Negative logarithm of the posterior of settings, and its gradient."""
        _amplitude, _share, weights, noise = self._unpacked(settings)
        near, straight, factor = self._kernel(settings, apart)
        inverse = cho_solve((factor, True), np.eye(len(own)))
        solved = inverse @ own
        off = (settings - self._believed) / DOUBT
        value = 0.5 * own @ solved + np.log(np.diag(factor)).sum() + 0.5 * off @ off
        slopes = inverse - np.outer(solved, solved)
        bent = slopes * near
        gradient = np.array(
            [
                bent.sum(),
                (slopes * straight).sum(),
                *(-0.5 * weight * (bent * gap).sum() for weight, gap in zip(weights, apart, strict=True)),
                noise * np.trace(slopes),
            ]
        )
        return float(value), gradient + off / DOUBT


def expected_gains(
    front: Array, corner: tuple[float, float], places: Array, means: Array, spreads: Array, most: float = math.inf
) -> Array:
    """Hypervolume that candidates are expected to add to a front of two figures, less being better, ``(candidates,)``.

    ``∫_place^corner E[max(0, best(t) - y)·(y ≤ most)] dt`` over places t, where `best` is the least y of the front up
    to t and y is normal.

    Args:
        front: place and y of its members, ``(members, 2)``.
        corner: place and y that count as nothing gained.
        places: of the candidates, ``(candidates,)``.
        means: of their y, ``(candidates,)``.
        spreads: standard deviations of it, above 0, ``(candidates,)``.
        most: y above which a candidate is of no use.
    """
    inside = front[(front < corner).all(axis=1)]
    inside = inside[np.lexsort((inside[:, 1], inside[:, 0]))]
    begins = np.concatenate([[-math.inf], inside[:, 0]])
    ends = np.concatenate([inside[:, 0], corner[:1]])
    best = np.minimum.accumulate(np.concatenate([corner[1:], inside[:, 1]]))
    widths = np.maximum(ends - np.maximum(begins, places[:, None]), 0.0)
    counted = np.minimum(best, most)
    below = (counted - means[:, None]) / spreads[:, None]
    density = np.exp(-0.5 * below**2) / math.sqrt(2 * math.pi)
    gain = spreads[:, None] * (below * ndtr(below) + density) + (best - counted) * ndtr(below)
    found: Array = (widths * np.maximum(gain, 0.0)).sum(axis=1)
    return found


def likely_below(limit: float, means: Array, spreads: Array) -> Array:
    """Probabilities that normal figures are below a limit, ``(candidates,)``; inf is no limit."""
    found: Array = ndtr((limit - means) / spreads)
    return found
