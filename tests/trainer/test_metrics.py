"""Metrics against closed forms and small cases counted by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from logitstore.errors import InputError
from logitstore.trainer.measure.figures import compare, measure
from logitstore.trainer.metrics import (
    accuracy,
    aurc,
    eaurc,
    ece,
    kd_error,
    kd_loss,
    nll,
    reliability,
    risk_coverage,
)


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


def test_a_reliability_diagram_has_the_means_of_each_bin_and_says_which_are_empty() -> None:
    # five bins of 0.2: (0.4, 0.6] has one sample, right; (0.8, 1] three, of which one is right
    found = reliability(logits_for([0.55, 0.85, 0.9, 0.95]), [0, 0, 1, 1], bins=5)
    assert found.count.tolist() == [0, 0, 1, 0, 3]
    assert found.confidence == pytest.approx([np.nan, np.nan, 0.55, np.nan, 0.9], nan_ok=True)
    assert found.accuracy == pytest.approx([np.nan, np.nan, 1, np.nan, 1 / 3], nan_ok=True)


def test_ece_with_ten_bins_is_not_that_with_fifteen() -> None:
    # 0.62 right and 0.68 wrong share a bin of tenths, where they cancel to |0.5 - 0.65|; with
    # fifteen (0.6, 0.667] and (0.667, 0.733] part them
    logits = logits_for([0.62, 0.68])
    assert ece(logits, [0, 1], bins=10) == pytest.approx(0.15)
    assert ece(logits, [0, 1], bins=15) == pytest.approx((0.38 + 0.68) / 2)


def test_a_row_of_nan_shows_in_the_calibration() -> None:
    logits = np.array([[np.nan, np.nan], *logits_for([0.9])])
    assert np.isnan(ece(logits, [0, 0]))
    assert risk_coverage(logits, [0, 0])[1].tolist() == [0, 0.5]


def test_risk_rises_with_the_errors_of_the_less_confident() -> None:
    # by confidence: 0.95 right, 0.85 wrong, 0.75 right, 0.65 wrong
    logits, labels = logits_for([0.75, 0.95, 0.65, 0.85]), [0, 0, 1, 1]
    coverage, risk = risk_coverage(logits, labels)
    assert coverage.tolist() == [0.25, 0.5, 0.75, 1]
    assert risk == pytest.approx([0, 1 / 2, 1 / 3, 1 / 2])
    assert aurc(logits, labels) == pytest.approx((0 + 1 / 2 + 1 / 3 + 1 / 2) / 4)
    # the best order of two errors in four: 0, 0, 1/3, 2/4
    assert eaurc(logits, labels) == pytest.approx((1 / 2 + 1 / 3 - 1 / 3) / 4)


@pytest.mark.parametrize("errors", [0, 1, 7, 30])
def test_a_perfect_order_has_no_excess_and_no_errors_no_area(errors: int) -> None:
    logits = logits_for(list(np.linspace(0.99, 0.51, 30)))
    labels = np.arange(30) >= 30 - errors
    best = sum(j / (30 - errors + j) for j in range(1, errors + 1)) / 30
    assert aurc(logits, labels) == pytest.approx(best, abs=1e-15)
    assert eaurc(logits, labels) == pytest.approx(0, abs=1e-15)
    assert (aurc(logits, labels) == 0) == (errors == 0)


def test_aurc_is_that_of_the_definition_on_random_predictions() -> None:
    rng = np.random.default_rng(3)
    logits, labels = rng.standard_normal((200, 5)), rng.integers(0, 5, 200)
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    ranked = sorted(range(200), key=lambda i: -shares[i].max())
    wrong = [int(shares[i].argmax() != labels[i]) for i in ranked]
    assert aurc(logits, labels) == pytest.approx(
        sum(sum(wrong[:n]) / n for n in range(1, 201)) / 200, rel=1e-12
    )
    best = sorted(wrong)
    assert eaurc(logits, labels) == pytest.approx(
        aurc(logits, labels) - sum(sum(best[:n]) / n for n in range(1, 201)) / 200, rel=1e-9
    )


def test_equal_confidences_rank_in_the_order_of_the_samples() -> None:
    logits = logits_for([0.8] * 40)
    labels = np.zeros(40, int)
    labels[-1] = 1
    assert risk_coverage(logits, labels)[1].tolist() == [0] * 39 + [1 / 40]
    assert risk_coverage(logits, labels[::-1])[1].tolist() == [1 / n for n in range(1, 41)]


def test_kd_loss_is_the_scaled_divergence_from_the_teacher() -> None:
    student, teacher = np.array([[0.0, 0.0]]), np.array([[np.log(9.0), 0.0]])
    # teacher (0.9, 0.1) at T=1, (0.75, 0.25) at T=2; student (0.5, 0.5)
    at_one = 0.9 * np.log(1.8) + 0.1 * np.log(0.2)
    at_two = 4 * (0.75 * np.log(1.5) + 0.25 * np.log(0.5))
    assert kd_loss(student, teacher, 1) == pytest.approx(at_one)
    assert kd_loss(student, teacher, 2) == pytest.approx(at_two)
    assert kd_loss([*student, *teacher], [*teacher, *teacher], 2) == pytest.approx(at_two / 2)
    assert kd_loss(teacher + 7, teacher, 4) == pytest.approx(0, abs=1e-15)


def test_the_figures_of_some_logits_bear_the_names_of_their_metrics() -> None:
    rng = np.random.default_rng(1)
    logits = rng.standard_normal((50, 7)).astype(np.float32)
    labels = rng.integers(-1, 7, 50).astype(np.int32)
    found = measure(logits, labels)
    assert found == {
        "top1": accuracy(logits, labels),
        "top5": accuracy(logits, labels, k=5),
        "nll": nll(logits, labels),
        "ece10": ece(logits, labels, bins=10),
        "ece15": ece(logits, labels),
        "aurc": aurc(logits, labels),
        "eaurc": eaurc(logits, labels),
        "samples": (labels >= 0).sum(),
    }
    assert "top5" not in measure(logits[:, :5], labels % 5)
    far = compare(logits, -logits, 2.0)
    assert (far["kd_error"], far["agreement"]) == (1, 0)
    assert far["kd_loss"] == kd_loss(logits, -logits, 2)


def test_kd_error_is_the_share_of_other_predictions() -> None:
    student = [[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]
    teacher = [[2.0, 0.0], [0.0, 2.0], [0.0, 2.0], [5.0, 5.0]]
    assert kd_error(student, teacher) == 0.25
    assert kd_error(student, student) == 0


def test_samples_without_a_label_are_left_out() -> None:
    rng = np.random.default_rng(0)
    logits, labels = rng.standard_normal((20, 4)), rng.integers(0, 4, 20)
    masked = np.where(np.arange(20) < 8, -1, labels)
    for figure in (accuracy, nll, ece, aurc, eaurc):
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
    with pytest.raises(InputError, match="temperature must be positive, not 0"):
        kd_loss(np.zeros((3, 2)), np.zeros((3, 2)), 0)
