"""Losses against closed forms, identities and numbers computed by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from logitstore.errors import UnknownName
from logitstore.trainer.losses import (
    cross_entropy,
    dist,
    dkd,
    kd,
    kl,
    label_smoothing,
    nckd,
    nkd,
    ps_kd,
    standardize,
    tckd,
    tf_kd_reg,
    ttm,
    wttm,
)


def drawn(seed: int, rows: int = 7, classes: int = 5, dtype: torch.dtype = torch.float64) -> Tensor:
    values = np.random.default_rng(seed).standard_normal((rows, classes)) * 3
    return torch.tensor(values, dtype=dtype)


def softmax(logits: Tensor, temperature: float = 1.0) -> np.ndarray:
    powers = np.exp(logits.detach().double().numpy() / temperature)
    return powers / powers.sum(axis=1, keepdims=True)


def gradient(loss: Tensor, student: Tensor) -> Tensor:
    return torch.autograd.grad(loss.sum(), student)[0]


LABELS = torch.tensor([0, 1, 2, 3, 4, 0, 1])


def test_cross_entropy_is_minus_the_log_of_the_labels_probability() -> None:
    expected = -np.log(softmax(drawn(0))[np.arange(7), LABELS])
    np.testing.assert_allclose(cross_entropy(drawn(0), LABELS), expected, rtol=1e-12)


def test_kl_sums_over_classes_and_not_over_samples() -> None:
    student, teacher = drawn(1), drawn(2)
    p, q = softmax(teacher), softmax(student)
    expected = (p * np.log(p / q)).sum(axis=1)
    assert kl(student, teacher).shape == (7,)
    np.testing.assert_allclose(kl(student, teacher), expected, rtol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_kd_of_a_perfect_copy_is_exactly_zero(dtype: torch.dtype) -> None:
    student = drawn(3, dtype=dtype).requires_grad_()
    loss = kd(student, student.detach().clone(), temperature=4)
    assert (loss == 0).all()
    assert gradient(loss, student).abs().max() < 1e-6


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 20.0])
def test_the_gradient_of_kd_is_temperature_times_the_difference_of_probabilities(
    temperature: float,
) -> None:
    student, teacher = drawn(4).requires_grad_(), drawn(5)
    slope = gradient(kd(student, teacher, temperature=temperature), student)
    expected = temperature * (softmax(student, temperature) - softmax(teacher, temperature))
    np.testing.assert_allclose(slope, expected, atol=1e-12)


def test_at_a_high_temperature_kd_matches_centred_logits() -> None:
    student, teacher = drawn(8).requires_grad_(), drawn(9)
    loss = kd(student, teacher, temperature=1e4)
    apart = student.detach() - teacher
    apart = apart - apart.mean(1, keepdim=True)
    torch.testing.assert_close(gradient(loss, student), apart / 5, rtol=1e-2, atol=1e-3)
    torch.testing.assert_close(loss, apart.square().sum(1) / (2 * 5), rtol=1e-2, atol=0)


def test_kd_of_extreme_logits_is_their_distance() -> None:
    student = torch.tensor([[1000.0, 0.0, -1000.0]]).requires_grad_()
    loss = kd(student, torch.tensor([[-1000.0, 0.0, 1000.0]]), temperature=1)
    assert loss.item() == pytest.approx(2000)
    torch.testing.assert_close(gradient(loss, student), torch.tensor([[1.0, 0.0, -1.0]]))


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_kd_is_tckd_plus_the_doubt_of_the_teacher_times_nckd(temperature: float) -> None:
    student, teacher = drawn(1).requires_grad_(), drawn(2)
    softened = {"temperature": temperature}
    doubt = 1 - torch.tensor(softmax(teacher, temperature)[np.arange(7), LABELS])
    whole = kd(student, teacher, **softened)
    parts = tckd(student, teacher, LABELS, **softened) + doubt * nckd(
        student, teacher, LABELS, **softened
    )
    torch.testing.assert_close(parts, whole, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradient(parts, student), gradient(whole, student))


def test_dkd_with_the_doubt_of_the_teacher_as_beta_is_kd() -> None:
    student, teacher = drawn(1), drawn(2)
    for row, label in enumerate(LABELS):
        one = slice(row, row + 1)
        doubt = float(1 - softmax(teacher, 4)[row, label])
        found = dkd(student[one], teacher[one], LABELS[one], alpha=1.0, beta=doubt, temperature=4.0)
        torch.testing.assert_close(found, kd(student[one], teacher[one], temperature=4.0))


def test_dkd_weighs_its_two_parts() -> None:
    student, teacher = drawn(1), drawn(2)
    found = dkd(student, teacher, LABELS, alpha=0.5, beta=8.0, temperature=4.0)
    target = tckd(student, teacher, LABELS, temperature=4.0)
    rest = nckd(student, teacher, LABELS, temperature=4.0)
    torch.testing.assert_close(found, 0.5 * target + 8 * rest)


def test_tckd_and_nckd_by_hand() -> None:
    # Temperature 2 halves logits: these are the logarithms of what it leaves.
    teacher = 2 * torch.tensor([[0.5, 0.3, 0.2]]).log()
    student = 2 * torch.tensor([[0.2, 0.2, 0.6]]).log()
    label = torch.tensor([0])
    binary = 0.5 * np.log(0.5 / 0.2) + 0.5 * np.log(0.5 / 0.8)
    others = 0.6 * np.log(0.6 / 0.25) + 0.4 * np.log(0.4 / 0.75)
    assert tckd(student, teacher, label, temperature=2.0).item() == pytest.approx(4 * binary)
    assert nckd(student, teacher, label, temperature=2.0).item() == pytest.approx(4 * others)


def test_label_smoothing_spreads_epsilon_over_all_classes() -> None:
    log_s = np.log(softmax(drawn(0)))
    target = 0.9 * np.eye(5)[LABELS] + 0.1 / 5
    expected = -(target * log_s).sum(axis=1)
    np.testing.assert_allclose(label_smoothing(drawn(0), LABELS, epsilon=0.1), expected)
    assert torch.equal(
        label_smoothing(drawn(0), LABELS, epsilon=0.0), cross_entropy(drawn(0), LABELS)
    )


@pytest.mark.parametrize(("share", "correct"), [(0.1, 0.99), (0.6, 0.9)])
def test_tf_kd_reg_at_temperature_1_is_label_smoothing_but_for_a_constant(
    share: float, correct: float
) -> None:
    # Each other class has share (1 - correct) / (C - 1) of the target; label smoothing epsilon / C.
    epsilon = share * 5 * (1 - correct) / 4
    student = drawn(1).requires_grad_()
    regular = tf_kd_reg(student, LABELS, correct=correct, temperature=1.0)
    both = (1 - share) * cross_entropy(student, LABELS) + share * regular
    smoothed = label_smoothing(student, LABELS, epsilon=epsilon)
    torch.testing.assert_close(gradient(both, student), gradient(smoothed, student))
    designed = np.array([correct] + 4 * [(1 - correct) / 4])
    entropy = -(designed * np.log(designed)).sum()
    np.testing.assert_allclose((smoothed - both).detach(), share * entropy)


@pytest.mark.parametrize(
    ("share", "multiplier", "temperature", "epsilon"),
    [(0.1, 100.0, 20.0, 0.1), (0.95, 1.0, 40.0, 0.0095 / 0.0595)],
)
def test_the_released_tf_kd_reg_is_label_smoothing_in_disguise(
    share: float, multiplier: float, temperature: float, epsilon: float
) -> None:
    student, labels = drawn(1, 20, 100).requires_grad_(), torch.arange(20)
    weights = 1 - share, share * multiplier
    regular = tf_kd_reg(student, labels, temperature=temperature, variant="code")
    whole = weights[0] * cross_entropy(student, labels) + weights[1] * regular
    scale = weights[0] + weights[1] / 100
    smoothed = scale * label_smoothing(student, labels, epsilon=epsilon)
    found, expected = gradient(whole, student), gradient(smoothed, student)
    assert (found - expected).norm() < 1e-4 * expected.norm()


def test_tf_kd_reg_softens_teacher_and_student_and_has_no_squared_temperature() -> None:
    # Temperature 2: the teacher's (0.9, 0.05, 0.05) becomes its square roots, renormalised.
    student = torch.tensor([[2.0, 0.0, -2.0]], dtype=torch.float64)
    roots = np.sqrt([0.9, 0.05, 0.05])
    target, q = roots / roots.sum(), softmax(student, 2)[0]
    found = tf_kd_reg(student, torch.tensor([0]), correct=0.9, temperature=2.0)
    assert found.item() == pytest.approx((target * np.log(target / q)).sum())


def test_a_variant_that_tf_kd_reg_does_not_have_is_refused() -> None:
    with pytest.raises(UnknownName, match="did you mean 'paper'"):
        tf_kd_reg(drawn(1), LABELS, temperature=2.0, variant="papr")  # type: ignore[arg-type]


def test_ps_kd_that_trusts_nothing_or_remembers_the_labels_is_cross_entropy() -> None:
    student, past = drawn(1), torch.tensor(softmax(drawn(2)))
    hard = cross_entropy(student, LABELS)
    torch.testing.assert_close(ps_kd(student, LABELS, past, alpha=0.0), hard)
    labels_themselves = torch.eye(5, dtype=torch.float64)[LABELS]
    torch.testing.assert_close(ps_kd(student, LABELS, labels_themselves, alpha=0.8), hard)


def test_ps_kd_is_the_cross_entropy_with_the_mixed_target() -> None:
    student, past = drawn(1).requires_grad_(), softmax(drawn(2))
    target = 0.7 * np.eye(5)[LABELS] + 0.3 * past
    loss = ps_kd(student, LABELS, torch.tensor(past), alpha=0.3)
    expected = -(target * np.log(softmax(student))).sum(axis=1)
    np.testing.assert_allclose(loss.detach(), expected, rtol=1e-12)
    np.testing.assert_allclose(gradient(loss, student), softmax(student) - target, atol=1e-12)


def test_ps_kd_rescales_gradients_by_what_was_learned_since() -> None:
    # Where the past gives no other class more than the present does, the sums of |gradient| relate
    # by 1 - alpha (1 - past) / (1 - present), both of the label's probability.
    student = drawn(1).requires_grad_()
    present, rows = softmax(student), np.arange(7)
    past = present * np.random.default_rng(0).uniform(0.1, 1.0, present.shape)
    past[rows, LABELS] += 1 - past.sum(axis=1)
    soft = gradient(ps_kd(student, LABELS, torch.tensor(past), alpha=0.6), student)
    hard = gradient(cross_entropy(student, LABELS), student)
    expected = 1 - 0.6 * (1 - past[rows, LABELS]) / (1 - present[rows, LABELS])
    np.testing.assert_allclose(soft.abs().sum(1) / hard.abs().sum(1), expected, rtol=1e-9)


def test_dist_of_identical_logits_is_zero() -> None:
    student = drawn(1).requires_grad_()
    loss = dist(student, drawn(1), temperature=4.0)
    torch.testing.assert_close(loss, torch.zeros(7, dtype=torch.float64), rtol=0, atol=1e-12)
    assert gradient(loss, student).abs().max() < 1e-10


def test_dist_adds_row_and_column_correlations_of_softened_probabilities() -> None:
    student, teacher = drawn(1), drawn(2)
    p, q = softmax(student, 4), softmax(teacher, 4)
    rows = [1 - np.corrcoef(p[i], q[i])[0, 1] for i in range(7)]
    columns = np.mean([1 - np.corrcoef(p[:, k], q[:, k])[0, 1] for k in range(5)])
    found = dist(student, teacher, temperature=4.0, beta=2.0, gamma=0.5)
    np.testing.assert_allclose(found, 16 * (2 * np.array(rows) + 0.5 * columns), rtol=1e-9)


def test_dist_overlooks_how_sure_the_teacher_is_which_kd_does_not() -> None:
    # Mixing probabilities with the uniform distribution is an affine map, under which correlations
    # stay: within a row whatever its share, along a column only if the share is everyone's.
    teacher = drawn(2)
    probs = torch.tensor(softmax(teacher))
    same = (0.4 * probs + 0.6 / 5).log()
    share = torch.linspace(0.2, 0.9, 7, dtype=torch.float64)[:, None]
    own = (share * probs + (1 - share) / 5).log()
    nothing = torch.zeros(7, dtype=torch.float64)
    torch.testing.assert_close(dist(same, teacher, temperature=1.0), nothing, rtol=0, atol=1e-12)
    rows_only = dist(own, teacher, temperature=1.0, gamma=0.0)
    torch.testing.assert_close(rows_only, nothing, rtol=0, atol=1e-12)
    assert (dist(own, teacher, temperature=1.0) > 1e-3).all()
    assert (kd(same, teacher, temperature=1.0) > 1e-3).all()


def test_nkd_by_hand() -> None:
    student = torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64).log()
    teacher = torch.tensor([[0.6, 0.3, 0.1]], dtype=torch.float64).log()
    label = torch.tensor([0])
    hard, others = -0.6 * np.log(0.5), -0.75 * np.log(0.6) - 0.25 * np.log(0.4)
    found = nkd(student, teacher, label, gamma=2.0, temperature=1.0)
    assert found.item() == pytest.approx(hard + 2 * others)
    # Softening reaches the other classes alone: square roots of 3:1 and of 3:2.
    p, q = np.sqrt([3, 1]), np.sqrt([3, 2])
    softened = -(p / p.sum() * np.log(q / q.sum())).sum()
    found = nkd(student, teacher, label, gamma=2.0, temperature=2.0)
    assert found.item() == pytest.approx(hard + 2 * 4 * softened)


def test_ttm_softens_the_teacher_alone() -> None:
    student, teacher = drawn(1), drawn(2)
    torch.testing.assert_close(ttm(student, teacher, gamma=1.0), kl(student, teacher))
    p, q = softmax(teacher, 4), softmax(student)
    expected = (p * np.log(p / q)).sum(axis=1)
    np.testing.assert_allclose(ttm(student, teacher, gamma=0.25), expected, rtol=1e-10)


def test_wttm_weighs_each_sample_by_the_sum_of_the_teacher_s_powers() -> None:
    student, teacher = drawn(1), drawn(2)
    weights = wttm(student, teacher, gamma=0.25) / ttm(student, teacher, gamma=0.25)
    np.testing.assert_allclose(weights, (softmax(teacher) ** 0.25).sum(axis=1), rtol=1e-10)
    uniform = torch.zeros(1, 5, dtype=torch.float64)
    heaviest = wttm(student[:1], uniform, gamma=0.25) / ttm(student[:1], uniform, gamma=0.25)
    assert heaviest.item() == pytest.approx(5 / 5**0.25)


def test_standardised_rows_have_mean_0_and_unbiased_deviation_1() -> None:
    rows = standardize(drawn(1, 7, 100)).numpy()
    np.testing.assert_allclose(rows.mean(axis=1), 0, atol=1e-12)
    np.testing.assert_allclose(rows.std(axis=1, ddof=1), 1, rtol=1e-6)
    moved = standardize(drawn(1, 7, 100) * 4 - 30).numpy()
    np.testing.assert_allclose(moved, rows, rtol=1e-6, atol=1e-9)
