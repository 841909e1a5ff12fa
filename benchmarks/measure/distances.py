"""What sets of pictures have in common: the kernel distance of their features, and intervals of means and distances over the pictures."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from .pareto import INTERVAL

DRAWS = 2000


class Estimate(NamedTuple):
    """A figure, and the 95 % of it over draws of the pictures with repetition (bootstrap)."""

    value: float
    low: float
    high: float

    def under(self, name: str) -> dict[str, float]:
        """The three as parts of a row."""
        return {name: self.value, f"{name}_low": self.low, f"{name}_high": self.high}


def counts_drawn(pictures: int) -> np.ndarray:
    """`[DRAWS, pictures]`: how often each picture is drawn; the same draws for all methods."""
    return np.random.default_rng(0).multinomial(pictures, [1 / pictures] * pictures, size=DRAWS).astype(float)


def mean_of(values: np.ndarray) -> Estimate:
    """The mean of one figure a picture."""
    return Estimate(float(values.mean()), *_interval(counts_drawn(len(values)) @ values / len(values)))


def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The polynomial kernel of KID, `[N, M]`, of features `[N, D]` and `[M, D]`."""
    return np.asarray((a @ b.T / a.shape[1] + 1) ** 3)


def pair_terms(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """`[N, N]`: what two pictures of each set say of the squared distance (MMD) of the sets; the mean off the diagonal is unbiased.

    That of KID, but without `kernel(a[i], b[i])`: these two are of one caption, which would make sets look closer than they are (the
    U-statistic of Gretton et al. 2012, lemma 6).
    """
    across = kernel(a, b)
    return np.asarray(kernel(a, a) + kernel(b, b) - across - across.T)


def distance_of(terms: np.ndarray) -> Estimate:
    """The kernel distance; of the differences of two such tables, that of the distances. NaN below two pictures.

    A picture that is drawn twice is not compared with itself.
    """
    apart = terms - np.diag(np.diag(terms))
    value, *draws = (_weighted(apart, counts) for counts in (np.ones(len(terms)), *counts_drawn(len(terms))))
    return Estimate(value, *_interval(np.array(draws)))


def _weighted(apart: np.ndarray, counts: np.ndarray) -> float:
    pairs = counts.sum() ** 2 - (counts**2).sum()
    return float(counts @ apart @ counts / pairs) if pairs else math.nan


def _interval(draws: np.ndarray) -> tuple[float, float]:
    known = draws[~np.isnan(draws)]
    low, high = np.percentile(known, INTERVAL).tolist() if len(known) else (math.nan, math.nan)
    return low, high
