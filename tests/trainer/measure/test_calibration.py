"""One fitted temperature, against closed forms and a search by brute force."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from logitstore.errors import InputError
from logitstore.trainer.measure.calibration import TEMPERATURES, fit_temperature
from logitstore.trainer.measure.figures import fitted_figures
from logitstore.trainer.metrics import accuracy, ece, nll

LOWEST, HIGHEST = TEMPERATURES


def test_two_classes_at_one_confidence_are_brought_to_their_accuracy() -> None:
    # a margin of log 99 claims 0.99; 3 of 4 are right, which is a margin of log 3
    logits = np.array([[np.log(99.0), 0.0]] * 4)
    labels = [0, 0, 0, 1]
    fitted = fit_temperature(logits, labels)
    assert fitted == pytest.approx(np.log(99) / np.log(3), rel=1e-9)
    figures = fitted_figures(logits, labels, fitted)
    assert figures["nll_fitted"] == pytest.approx(-(3 * np.log(0.75) + np.log(0.25)) / 4)
    assert figures["ece10_fitted"] == pytest.approx(0, abs=1e-9)
    assert figures["ece15_fitted"] == pytest.approx(0, abs=1e-9)
    assert ece(logits, labels) == pytest.approx(0.24)


def test_labels_drawn_from_the_logits_need_no_other_temperature_and_scaled_ones_theirs() -> None:
    rng = np.random.default_rng(0)
    logits = 2 * rng.standard_normal((20_000, 10))
    labels = (logits + rng.gumbel(size=logits.shape)).argmax(1)
    fitted = fit_temperature(logits, labels)
    assert fitted == pytest.approx(1, abs=0.02)
    assert fit_temperature(3 * logits, labels) == pytest.approx(3 * fitted, rel=1e-9)
    assert fit_temperature(logits + rng.normal(size=(20_000, 1)), labels) == pytest.approx(fitted)


@pytest.mark.parametrize("scale", [0.1, 1, 30])
def test_no_other_temperature_has_a_lower_nll(scale: float) -> None:
    rng = np.random.default_rng(7)
    logits = (scale * rng.standard_normal((300, 6))).astype(np.float32)
    labels = np.where(rng.random(300) < 0.5, logits.argmax(1), rng.integers(0, 6, 300))
    fitted = fit_temperature(logits, labels)
    searched = minimize_scalar(
        lambda log: nll(logits.astype(float) / np.exp(log), labels),
        bounds=np.log(TEMPERATURES),
        method="bounded",
        options={"xatol": 1e-9},
    )
    assert fitted == pytest.approx(np.exp(searched.x), rel=1e-4)
    figures = fitted_figures(logits, labels, fitted)
    assert figures["nll_fitted"] <= searched.fun + 1e-12
    assert figures["fitted_temperature"] == fitted
    assert accuracy(logits / fitted, labels) == accuracy(logits, labels)


def test_what_has_no_best_temperature_gets_the_nearer_bound() -> None:
    rng = np.random.default_rng(2)
    logits = rng.standard_normal((50, 4))
    assert fit_temperature(logits, logits.argmax(1)) == LOWEST
    assert fit_temperature(logits, logits.argmin(1)) == HIGHEST
    assert fit_temperature(1e5 * logits, logits.argmax(1)) == LOWEST
    assert fit_temperature(np.full((5, 3), 7.0), [0, 1, 2, 0, 1]) == 1
    assert np.isnan(fit_temperature([[np.nan, 0.0]], [0]))
    assert np.isnan(fit_temperature([[np.inf, 0.0]], [0]))


def test_samples_without_a_label_do_not_matter() -> None:
    rng = np.random.default_rng(4)
    logits, labels = rng.standard_normal((40, 3)), rng.integers(0, 3, 40)
    masked = np.where(np.arange(40) < 15, -1, labels)
    assert fit_temperature(logits, masked) == fit_temperature(logits[15:], labels[15:])
    with pytest.raises(InputError, match="no sample has a label"):
        fit_temperature(logits, np.full(40, -1))
