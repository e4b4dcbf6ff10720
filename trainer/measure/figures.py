"""Compute the figures of logits: what ``evaluate`` prints and a run records on its test data."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from logitstore.trainer import metrics
from logitstore.trainer.data.run_data import EvalData
from logitstore.trainer.data.source import Source
from logitstore.trainer.measure.calibration import fit_temperature
from logitstore.trainer.measure.network import Labels, Logits, Network, labels_of


def fitted_figures(
    logits: NDArray[np.float32], labels: ArrayLike, temperature: float
) -> dict[str, float]:
    """Return what a fitted temperature changes, for logits (N, C) with their labels (N,)."""
    scaled = logits.astype(np.float64) / temperature
    return {
        "fitted_temperature": temperature,
        "nll_fitted": metrics.nll(scaled, labels),
        "ece10_fitted": metrics.ece(scaled, labels, bins=10),
        "ece15_fitted": metrics.ece(scaled, labels, bins=15),
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


def validation_figures(network: Network, val: Source) -> dict[str, float]:
    """Return the figures that a run records after each epoch."""
    logits, labels = network.logits(val), labels_of(val)
    return {
        "val_accuracy": metrics.accuracy(logits, labels),
        "val_nll": metrics.nll(logits, labels),
        "val_ece": metrics.ece(logits, labels),
    }


def test_figures(network: Network, eval_data: EvalData) -> dict[str, float]:
    """Return the figures on the test data, also after a temperature fitted on validation data."""
    assert eval_data.test is not None
    assert eval_data.val is not None  # a resolved run with test data has some
    temperature = fit_temperature(network.logits(eval_data.val), labels_of(eval_data.val))
    logits, labels = network.logits(eval_data.test), labels_of(eval_data.test)
    return measure(logits, labels) | fitted_figures(logits, labels, temperature)
