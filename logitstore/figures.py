"""Compute the metrics from whole arrays, in NumPy and float64: one float each, or a curve.

Logits are (N, C) float, labels (N,) integers; samples with label -1 are left out.  CPU tensors are
taken as arrays.  InputError if nothing is left to measure.  Letters: N samples, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from logitstore.errors import InputError
from logitstore.format.fidelity import log_softmax


def accuracy(logits: ArrayLike, labels: ArrayLike, k: int = 1) -> float:
    """Return the share of samples whose label is among the k largest logits.

    Of equal logits the one with the lowest index ranks first, as in argmax.
    """
    values, known = labelled(logits, labels)
    of_label = values[np.arange(len(values)), known][:, None]
    earlier = np.arange(values.shape[1]) < known[:, None]
    # not (<=) rather than (>): a row of NaN is wrong then, not right.
    rank = (~(values <= of_label) | ((values == of_label) & earlier)).sum(axis=1)
    return float((rank < k).mean())


def nll(logits: ArrayLike, labels: ArrayLike) -> float:
    """Return the mean negative log-likelihood of the label, in nats, at temperature 1."""
    values, known = labelled(logits, labels)
    return float(-log_softmax(values)[np.arange(len(values)), known].mean())


def ece(logits: ArrayLike, labels: ArrayLike, bins: int = 15) -> float:
    """Return the expected calibration error, in [0, 1].

    It is the sum over bins of n_b/N · |accuracy_b - confidence_b|, with bins as in ``reliability``;
    an empty one adds nothing.  Guo et al. 2017, arXiv:1706.04599, eq. 3, with 15 bins; PS-KD's
    released code takes 10.
    """
    by_bin = reliability(logits, labels, bins)
    filled = by_bin.count > 0
    gap = np.abs(by_bin.accuracy - by_bin.confidence)[filled]
    return float((by_bin.count[filled] * gap).sum() / by_bin.count.sum())


@dataclass(frozen=True)
class Reliability:
    """Holds mean confidence, accuracy (NaN if empty) and samples of each bin, (bins,)."""

    confidence: NDArray[np.float64]
    accuracy: NDArray[np.float64]
    count: NDArray[np.int64]


def reliability(logits: ArrayLike, labels: ArrayLike, bins: int = 15) -> Reliability:
    """Return what a reliability diagram shows, from the lowest bin to the highest.

    Confidence is the largest softmax probability.  Bins are (lo, hi] of equal width: a confidence
    on an edge (of ``linspace`` in float64) belongs to the bin below it, one that rounding put above
    1, or that is NaN, to the last.
    """
    confidence, correct = _predictions(logits, labels)
    edges = np.linspace(0, 1, bins + 1)
    number = np.minimum(np.searchsorted(edges[1:], confidence, side="left"), bins - 1)
    count = np.bincount(number, minlength=bins)
    with np.errstate(invalid="ignore"):  # 0/0 of an empty bin is the NaN that it should be
        means = [
            np.bincount(number, weights=values, minlength=bins) / count
            for values in (confidence, correct)
        ]
    return Reliability(means[0], means[1], count)


def risk_coverage(
    logits: ArrayLike, labels: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return (coverage, risk), each (N,): the error among the i/N most confident samples.

    Of equal confidences the sample that comes first counts as the higher: the order is stable, and
    as arbitrary as that of the samples.  NaN is the lowest.
    """
    confidence, correct = _predictions(logits, labels)
    order = np.argsort(-confidence, kind="stable")
    taken = np.arange(1, len(order) + 1)
    return taken / len(order), np.cumsum(~correct[order]) / taken


def aurc(logits: ArrayLike, labels: ArrayLike) -> float:
    """Return the area under the risk-coverage curve: the mean risk over all coverages, in [0, 1].

    Papers print it times 1,000.  Geifman, El-Yaniv 2017, arXiv:1705.08500.
    """
    return float(risk_coverage(logits, labels)[1].mean())


def eaurc(logits: ArrayLike, labels: ArrayLike) -> float:
    """Return the AURC less that of the best order of the same predictions, all errors last.

    0 for a perfect order.  With R errors the best is 1/N · sum of j/(N-R+j) for j in 1..R: exact,
    where Geifman et al. 2019, arXiv:1805.08206, take its integral.
    """
    risk = risk_coverage(logits, labels)[1]
    errors = np.arange(1, round(risk[-1] * len(risk)) + 1)
    best = (errors / (len(risk) - len(errors) + errors)).sum() / len(risk)
    # Rounding must not make a perfect order better than perfect.
    return max(0.0, float(risk.mean() - best))


def _predictions(
    logits: ArrayLike, labels: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return the confidence in [0, 1] of each labelled sample's prediction, and if it is right.

    A row with a NaN has confidence NaN, and is wrong.
    """
    values, known = labelled(logits, labels)
    confidence = np.minimum(np.exp(log_softmax(values).max(axis=1)), 1.0)
    return confidence, (values.argmax(axis=1) == known) & ~np.isnan(confidence)


def labelled(logits: ArrayLike, labels: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the samples that have a label: logits (N, C) in float64 and labels (N,)."""
    values: NDArray[Any] = np.asarray(logits)
    known: NDArray[Any] = np.asarray(labels)
    if values.ndim != 2 or known.shape != values.shape[:1]:
        raise InputError(f"logits {values.shape} and labels {known.shape} do not belong together")
    chosen = known >= 0
    if not chosen.any():
        raise InputError("no sample has a label: there is nothing to measure")
    return values[chosen].astype(np.float64), known[chosen].astype(np.int64)
