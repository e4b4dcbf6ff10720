"""Compute the figures of logits: what ``evaluate`` prints and a run records on its test data."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from logitstore.trainer import metrics
from logitstore.trainer.data.run_data import EvalData
from logitstore.trainer.data.source import Source
from logitstore.trainer.measure.calibration import fit_temperature
from logitstore.trainer.measure.gather import Labels, Logits, labels_of
from logitstore.trainer.metrics import ece, nll


def fitted_figures(
    logits: NDArray[np.float32], labels: ArrayLike, temperature: float
) -> dict[str, float]:
    """Return what a fitted temperature changes, for logits (N, C) with their labels (N,)."""
    scaled = logits.astype(np.float64) / temperature
    return {
        "fitted_temperature": temperature,
        "nll_fitted": nll(scaled, labels),
        "ece10_fitted": ece(scaled, labels, bins=10),
        "ece15_fitted": ece(scaled, labels, bins=15),
    }


def measure(logits: Logits, labels: Labels) -> dict[str, float]:
    """Return the figures of logits (N, C) with their labels (N,): shares in [0, 1], and nats.

    ``top1``, ``top5`` (if C > 5), ``nll``, ``ece10``, ``ece15``, ``aurc``, ``eaurc``, ``samples``.
    """
    top5 = {"top5": metrics.accuracy(logits, labels, k=5)} if logits.shape[1] > 5 else {}
    return {
        "top1": metrics.accuracy(logits, labels),
        **top5,
        "nll": metrics.nll(logits, labels),
        "ece10": metrics.ece(logits, labels, bins=10),
        "ece15": metrics.ece(logits, labels, bins=15),
        "aurc": metrics.aurc(logits, labels),
        "eaurc": metrics.eaurc(logits, labels),
        "samples": float((labels >= 0).sum()),
    }


def compare(student: Logits, teacher: Logits, temperature: float) -> dict[str, float]:
    """Return how far a student's logits (N, C) are from its teacher's; KL at a temperature."""
    error = metrics.kd_error(student, teacher)
    loss = metrics.kd_loss(student, teacher, temperature)
    return {"kd_error": error, "agreement": 1 - error, "kd_loss": loss}


def test_figures(gather: Callable[[Source], Logits], eval_data: EvalData) -> dict[str, float]:
    """Return the figures on the test data, also after a temperature fitted on validation data.

    ``gather`` returns the logits of a source's samples from the weights that are measured.
    """
    assert eval_data.test is not None
    assert eval_data.val is not None  # a resolved run with test data has some
    temperature = fit_temperature(gather(eval_data.val), labels_of(eval_data.val))
    logits, labels = gather(eval_data.test), labels_of(eval_data.test)
    return measure(logits, labels) | fitted_figures(logits, labels, temperature)
