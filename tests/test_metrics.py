"""Metrics against closed forms and small cases counted by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from logitstore.errors import InputError
from trainer.metrics import accuracy, ece, kd_error, nll


def logits_for(confidences: list[float]) -> np.ndarray:
    """Two-class logits whose larger softmax probability, that of class 0, is each of these."""
    return np.array([[np.log(c) - np.log1p(-c), 0.0] for c in confidences])


def test_accuracy_counts_the_labels_among_the_largest_logits() -> None:
    logits = [[3.0, 2.0, 1.0], [1.0, 2.0, 3.0], [2.0, 3.0, 1.0]]
    assert accuracy(logits, [0, 0, 0]) == pytest.approx(1 / 3)
    assert accuracy(logits, [0, 0, 0], k=2) == pytest.approx(2 / 3)
    assert accuracy(logits, [0, 0, 0], k=3) == 1


def test_equal_logits_rank_by_index_as_argmax_does() -> None:
    tied = [[1.0, 1.0, 1.0]] * 3
    assert accuracy(tied, [0, 1, 2]) == pytest.approx(1 / 3)
    assert accuracy(tied, [0, 1, 2], k=2) == pytest.approx(2 / 3)


def test_a_row_of_nan_is_wrong() -> None:
    assert accuracy([[np.nan, np.nan]], [0]) == 0


def test_nll_of_uniform_logits_is_the_log_of_the_class_count() -> None:
    assert nll(np.zeros((4, 10)), [0, 3, 7, 9]) == pytest.approx(np.log(10), rel=1e-14)


def test_nll_survives_extreme_logits() -> None:
    assert nll([[0.0, 5000.0]], [0]) == pytest.approx(5000)


def test_perfectly_calibrated_predictions_have_zero_ece() -> None:
    # four samples at confidence 0.75, three of them right; ten at 0.9, nine right
    logits = logits_for([0.75] * 4 + [0.9] * 10)
    labels = [0, 0, 0, 1] + [0] * 9 + [1]
    assert ece(logits, labels) == pytest.approx(0, abs=1e-12)


def test_ece_weighs_the_gap_of_each_bin_by_its_share() -> None:
    # (0.6, 0.667]: 0.65 twice, one right, gap 0.15; (0.933, 1]: 0.95 twice, both wrong, gap 0.95
    logits = logits_for([0.65, 0.65, 0.95, 0.95])
    assert ece(logits, [0, 1, 1, 1]) == pytest.approx(0.5 * 0.15 + 0.5 * 0.95)


def test_a_confidence_on_an_edge_belongs_to_the_bin_below() -> None:
    # exactly 0.5 with 2 bins; together with the wrong 0.9 in one bin the gaps would cancel
    logits = np.array([[0.0, 0.0], *logits_for([0.9])])
    assert ece(logits, [0, 1], bins=2) == pytest.approx(0.5 * 0.5 + 0.5 * 0.9)


def test_a_confidence_of_one_is_in_the_last_bin() -> None:
    assert ece([[1e4, 0.0], [1e4, 0.0]], [0, 1]) == pytest.approx(0.5)


def test_kd_error_is_the_share_of_other_predictions() -> None:
    student = [[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]
    teacher = [[2.0, 0.0], [0.0, 2.0], [0.0, 2.0], [5.0, 5.0]]
    assert kd_error(student, teacher) == 0.25
    assert kd_error(student, student) == 0


def test_samples_without_a_label_are_left_out() -> None:
    rng = np.random.default_rng(0)
    logits, labels = rng.standard_normal((20, 4)), rng.integers(0, 4, 20)
    masked = np.where(np.arange(20) < 8, -1, labels)
    for figure in (accuracy, nll, ece):
        assert figure(logits, masked) == figure(logits[8:], labels[8:])


def test_tensors_are_taken_as_arrays() -> None:
    logits, labels = (
        torch.randn(5, 3, generator=torch.Generator().manual_seed(0)),
        torch.arange(5) % 3,
    )
    assert ece(logits, labels) == ece(logits.numpy(), labels.numpy())


def test_what_cannot_be_measured_is_refused() -> None:
    with pytest.raises(InputError, match="no sample has a label"):
        accuracy(np.zeros((3, 2)), [-1, -1, -1])
    with pytest.raises(InputError, match="do not belong together"):
        nll(np.zeros((3, 2)), [0, 1])
    with pytest.raises(InputError, match="cannot be compared"):
        kd_error(np.zeros((3, 2)), np.zeros((3, 4)))
