"""Calibrate logits by one temperature, which is fitted on validation data.

Dividing all logits by one number changes no prediction: accuracy stays, and only the confidence
changes.  Guo et al. 2017, arXiv:1706.04599, section 4.2.
"""

from __future__ import annotations

from math import exp, log

import numpy as np
from numpy.typing import ArrayLike, NDArray

from logitstore.trainer.metrics import labelled

TEMPERATURES = (0.01, 100.0)
"""The lowest and the highest temperature that can be fitted."""

_BLOCK = 1 << 16
"""Logits per block: small enough for a core's L2 cache, with what is computed from them."""


def fit_temperature(logits: ArrayLike, labels: ArrayLike) -> float:
    """Return the temperature T that minimises the mean NLL of logits/T: (N, C), (N,) -> float.

    The NLL is convex in 1/T, so it has one minimum.  If that lies at no finite T or beyond
    ``TEMPERATURES``, the answer is the nearer of the two: the lowest if all samples are right, the
    highest if a label's logit is on average not above its row's mean.  The answer is 1 if the
    logits of each row are equal, because no T changes anything, and NaN if a logit is NaN or
    infinite.  InputError without labels.
    """
    from scipy.optimize import brentq  # takes a second

    values, known = labelled(logits, labels)
    if not np.isfinite(values).all():
        return float("nan")
    if (values == values[:, :1]).all():
        return 1.0

    def slope(log_temperature: float) -> float:
        return _slope(values, known, exp(-log_temperature))

    low, high = map(log, TEMPERATURES)
    if slope(high) >= 0:
        return TEMPERATURES[1]
    if slope(low) <= 0:
        return TEMPERATURES[0]
    return exp(brentq(slope, low, high, xtol=1e-13))


def _slope(values: NDArray[np.float64], labels: NDArray[np.int64], sharpness: float) -> float:
    """Return the derivative of the mean NLL by 1/T, at 1/T = ``sharpness``."""
    total = 0.0
    step = max(1, _BLOCK // values.shape[1])
    for start in range(0, len(values), step):
        rows, known = values[start : start + step], labels[start : start + step]
        below = rows - rows.max(axis=1, keepdims=True)
        weights = np.exp(below * sharpness)
        weights /= weights.sum(axis=1, keepdims=True)
        mean = (weights * below).sum(axis=1)
        total += float((mean - below[np.arange(len(rows)), known]).sum())
    return total / len(values)
