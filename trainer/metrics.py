"""Metrics: whole arrays in, one float (or a curve) out; NumPy, in float64.

Figures of one network's logits against labels are those of ``logitstore.figures``, which the
service shares; those of a student beside its teacher are here.  Letters: N samples, C classes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from logitstore.errors import InputError
from logitstore.figures import (
    Reliability,
    accuracy,
    aurc,
    eaurc,
    ece,
    labelled,
    nll,
    reliability,
    risk_coverage,
)
from logitstore.format.fidelity import kl_divergence

__all__ = [
    "Reliability",
    "accuracy",
    "aurc",
    "eaurc",
    "ece",
    "kd_error",
    "kd_loss",
    "labelled",
    "nll",
    "reliability",
    "risk_coverage",
]


def kd_error(student: ArrayLike, teacher: ArrayLike) -> float:
    """Return the share of samples whose argmax differs: (N, C), (N, C) -> [0, 1].

    Of equal logits the lowest index counts.  Cho, Hariharan 2019, arXiv:1910.01348,
    call it the KD error.
    """
    ours, theirs = _pair(student, teacher)
    return float((ours.argmax(axis=1) != theirs.argmax(axis=1)).mean())


def kd_loss(student: ArrayLike, teacher: ArrayLike, temperature: float) -> float:
    """Return the mean T² · KL(teacher || student) at a temperature T, in nats."""
    if not temperature > 0:
        raise InputError(f"temperature must be positive, not {temperature}")
    ours, theirs = _pair(student, teacher)
    return float(temperature**2 * kl_divergence(theirs, ours, temperature=temperature).mean())


def _pair(student: ArrayLike, teacher: ArrayLike) -> tuple[NDArray[Any], NDArray[Any]]:
    ours: NDArray[Any] = np.asarray(student)
    theirs: NDArray[Any] = np.asarray(teacher)
    if ours.shape != theirs.shape or ours.ndim != 2 or len(ours) == 0:
        raise InputError(f"logits of shape {ours.shape} and {theirs.shape} cannot be compared")
    return ours, theirs
