"""Calibration by one temperature: fitted on validation data, told by the figures after it.

Dividing all logits by one number changes no prediction, so that accuracy stays and calibration
alone moves.  Guo et al. 2017, arXiv:1706.04599, §4.2.
"""

from __future__ import annotations

from math import inf

import numpy as np
from numpy.typing import ArrayLike, NDArray

from logitstore.trainer.metrics import labelled

TEMPERATURES = (0.01, 100.0)
"""The lowest and the highest temperature that is ever fitted."""


_STEPS = 100


_BLOCK = 1 << 16
"""Numbers at a time: they and what is computed from them stay in a core's cache."""


def fit_temperature(logits: ArrayLike, labels: ArrayLike) -> float:
    """The temperature T that minimises the mean NLL of logits/T: (N, C), (N,) -> float.

    The NLL is convex in 1/T: Newton's steps, or halvings of the bracket where they leave it, find
    its one minimum.  Where it lies at no finite T or beyond ``TEMPERATURES``, the nearer of the two
    is the answer: the lowest if all samples are right (the sharper, the better), the highest if the
    logits are no better than none (a label's logit is on average not above its row's mean); 1 if
    the logits of each row are equal, as no T changes anything.
    NaN if a logit is NaN or infinite; InputError without labels.
    """
    values, known = labelled(logits, labels)
    if not np.isfinite(values).all():
        return float("nan")
    if (values == values[:, :1]).all():
        return 1.0
    low, high = 1 / TEMPERATURES[1], 1 / TEMPERATURES[0]
    if _slope(values, known, low)[0] >= 0:
        return TEMPERATURES[1]
    if _slope(values, known, high)[0] <= 0:
        return TEMPERATURES[0]
    sharpness = 1.0
    for _ in range(_STEPS):
        slope, curvature = _slope(values, known, sharpness)
        low, high = (low, sharpness) if slope > 0 else (sharpness, high)
        newton = sharpness - slope / curvature if curvature > 0 else inf
        if abs(newton - sharpness) <= 1e-12 * sharpness:
            break
        sharpness = newton if low < newton < high else (low * high) ** 0.5
    return float(1 / sharpness)


def _slope(
    values: NDArray[np.float64], labels: NDArray[np.int64], sharpness: float
) -> tuple[float, float]:
    """First and second derivative of the mean NLL by 1/T."""
    first = second = 0.0
    step = max(1, _BLOCK // values.shape[1])
    for start in range(0, len(values), step):
        rows, known = values[start : start + step], labels[start : start + step]
        below = rows - rows.max(axis=1, keepdims=True)
        weights = np.exp(below * sharpness)
        weights /= weights.sum(axis=1, keepdims=True)
        mean = (weights * below).sum(axis=1)
        first += float((mean - below[np.arange(len(rows)), known]).sum())
        second += float(((weights * below**2).sum(axis=1) - mean**2).sum())
    return first / len(values), second / len(values)
