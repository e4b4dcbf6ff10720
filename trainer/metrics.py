"""Metrics: whole arrays in, one float out; NumPy, in float64.

Logits are (N, C) float, labels (N,) integers; samples with label -1 are left out.  CPU tensors are
taken as arrays.  InputError if nothing is left to measure.  Letters: N samples, C classes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from logitstore.errors import InputError
from logitstore.fidelity import log_softmax


def accuracy(logits: ArrayLike, labels: ArrayLike, k: int = 1) -> float:
    """Share of samples whose label is among the k largest logits.

    Of equal logits the one with the lowest index ranks first, as in argmax.
    """
    values, known = _labelled(logits, labels)
    own = values[np.arange(len(values)), known][:, None]
    earlier = np.arange(values.shape[1]) < known[:, None]
    # not (<=) rather than (>): a row of NaN is wrong then, not right.
    rank = (~(values <= own) | ((values == own) & earlier)).sum(axis=1)
    return float((rank < k).mean())


def nll(logits: ArrayLike, labels: ArrayLike) -> float:
    """Mean negative log-likelihood of the label, in nats, at temperature 1."""
    values, known = _labelled(logits, labels)
    return float(-log_softmax(values)[np.arange(len(values)), known].mean())


def ece(logits: ArrayLike, labels: ArrayLike, bins: int = 15) -> float:
    """Expected calibration error: sum over bins of n_b/N · |accuracy_b - confidence_b|, in [0, 1].

    Confidence is the largest softmax probability.  Bins are (lo, hi] of equal width: a confidence
    on an edge (of ``linspace`` in float64) belongs to the bin below it, one that rounding put above
    1 to the last.  An empty bin adds nothing.  Guo et al. 2017, arXiv:1706.04599, eq. 3.
    """
    values, known = _labelled(logits, labels)
    confidence = np.minimum(np.exp(log_softmax(values).max(axis=1)), 1.0)
    correct = values.argmax(axis=1) == known
    edges = np.linspace(0, 1, bins + 1)
    number = np.searchsorted(edges[1:], confidence, side="left")
    gap = np.bincount(number, weights=correct - confidence, minlength=bins)
    return float(np.abs(gap).sum() / len(values))


def kd_error(student: ArrayLike, teacher: ArrayLike) -> float:
    """Share of samples whose argmax differs: (N, C), (N, C) -> [0, 1]; ties go to the lowest index.

    Cho, Hariharan 2019, arXiv:1910.01348, who call it the KD error.
    """
    ours, theirs = np.asarray(student), np.asarray(teacher)
    if ours.shape != theirs.shape or ours.ndim != 2 or len(ours) == 0:
        raise InputError(f"logits of shape {ours.shape} and {theirs.shape} cannot be compared")
    return float((ours.argmax(axis=1) != theirs.argmax(axis=1)).mean())


def _labelled(
    logits: ArrayLike, labels: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    values: NDArray[Any] = np.asarray(logits)
    known: NDArray[Any] = np.asarray(labels)
    if values.ndim != 2 or known.shape != values.shape[:1]:
        raise InputError(f"logits {values.shape} and labels {known.shape} do not belong together")
    chosen = known >= 0
    if not chosen.any():
        raise InputError("no sample has a label: there is nothing to measure")
    return values[chosen].astype(np.float64), known[chosen].astype(np.int64)
