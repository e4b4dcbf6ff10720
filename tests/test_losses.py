"""Losses and methods against closed forms, identities and independently computed numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from logitstore.errors import InputError, UnknownName
from trainer.losses import cross_entropy, kd, kl
from trainer.methods import METHODS, Outputs, make_method


def drawn(seed: int, rows: int = 7, classes: int = 5, dtype: torch.dtype = torch.float64) -> Tensor:
    values = np.random.default_rng(seed).standard_normal((rows, classes)) * 3
    return torch.tensor(values, dtype=dtype)


def softmax(logits: Tensor, temperature: float = 1.0) -> np.ndarray:
    powers = np.exp(logits.detach().double().numpy() / temperature)
    return powers / powers.sum(axis=1, keepdims=True)


def test_cross_entropy_is_minus_the_log_of_the_labels_probability() -> None:
    logits, labels = drawn(0), torch.tensor([0, 1, 2, 3, 4, 0, 1])
    expected = -np.log(softmax(logits)[np.arange(7), labels])
    np.testing.assert_allclose(cross_entropy(logits, labels), expected, rtol=1e-12)


def test_cross_entropy_of_an_unknown_label_is_zero_and_has_no_gradient() -> None:
    logits = drawn(0).requires_grad_()
    loss = cross_entropy(logits, torch.tensor([0, -1, 2, -1, 4, 0, 1]))
    loss.sum().backward()
    assert logits.grad is not None
    assert loss[1] == loss[3] == 0
    assert not logits.grad[[1, 3]].any()
    assert logits.grad[[0, 2]].any()


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
    loss.sum().backward()
    assert student.grad is not None
    assert (loss == 0).all()
    assert student.grad.abs().max() < 1e-6


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 20.0])
def test_the_gradient_of_kd_is_temperature_times_the_difference_of_probabilities(
    temperature: float,
) -> None:
    student, teacher = drawn(4).requires_grad_(), drawn(5)
    kd(student, teacher, temperature=temperature).sum().backward()
    assert student.grad is not None
    expected = temperature * (softmax(student, temperature) - softmax(teacher, temperature))
    np.testing.assert_allclose(student.grad, expected, atol=1e-12)


def test_gradients_agree_with_finite_differences() -> None:
    student, teacher = drawn(6, 3).requires_grad_(), drawn(7, 3)
    labels = torch.tensor([0, -1, 4])
    assert torch.autograd.gradcheck(lambda z: kd(z, teacher, temperature=3.0), student)
    assert torch.autograd.gradcheck(lambda z: cross_entropy(z, labels), student)


def test_at_a_high_temperature_kd_matches_centred_logits() -> None:
    student, teacher = drawn(8).requires_grad_(), drawn(9)
    kd(student, teacher, temperature=1e4).sum().backward()
    assert student.grad is not None
    centred = [z - z.mean(1, keepdim=True) for z in (student.detach(), teacher)]
    torch.testing.assert_close(student.grad, (centred[0] - centred[1]) / 5, rtol=1e-2, atol=1e-3)


def test_losses_do_not_change_when_a_constant_is_added_to_a_row() -> None:
    student, teacher = drawn(1), drawn(2)
    shift = torch.arange(7.0, dtype=torch.float64)[:, None] * 10
    moved = kd(student + shift, teacher - shift, temperature=2)
    torch.testing.assert_close(moved, kd(student, teacher, temperature=2))


def test_extreme_logits_keep_values_and_gradients_finite() -> None:
    student = torch.tensor([[1000.0, 0.0, -1000.0]]).requires_grad_()
    loss = kd(student, torch.tensor([[-1000.0, 0.0, 1000.0]]), temperature=1)
    (loss + cross_entropy(student, torch.tensor([2]))).sum().backward()
    assert student.grad is not None
    assert loss.item() == pytest.approx(2000)
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("narrow", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_taken_to_float32_first(narrow: torch.dtype) -> None:
    student, teacher = drawn(1).to(narrow), drawn(2).to(narrow)
    labels = torch.zeros(7, dtype=torch.int64)
    assert torch.equal(
        kd(student, teacher, temperature=3), kd(student.float(), teacher.float(), temperature=3)
    )
    assert torch.equal(cross_entropy(student, labels), cross_entropy(student.float(), labels))


def test_the_squared_temperature_and_the_weights_are_where_they_belong() -> None:
    batch = Outputs(drawn(1), torch.arange(7) % 5, drawn(2))
    hard = -np.log(softmax(batch.student)[np.arange(7), batch.labels])
    p, q = softmax(batch.teacher, 5), softmax(batch.student, 5)  # type: ignore[arg-type]
    soft = (p * np.log(p / q)).sum(axis=1)
    method = make_method("kd", {"temperature": 5.0, "ce_weight": 0.3, "kd_weight": 0.6})
    terms = method.terms(batch, 0)
    np.testing.assert_allclose(terms["ce"], 0.3 * hard, rtol=1e-10)
    np.testing.assert_allclose(terms["kd"], 0.6 * 25 * soft, rtol=1e-10)
    np.testing.assert_allclose(method.loss(batch, 0), 0.3 * hard + 15 * soft, rtol=1e-10)


def test_kd_defaults_are_the_documented_ones() -> None:
    assert vars(make_method("kd", {})) == {"temperature": 4.0, "ce_weight": 0.1, "kd_weight": 0.9}


def test_every_method_has_a_row_in_the_document() -> None:
    from pathlib import Path

    import trainer

    document = (Path(trainer.__file__).parent / "METHODS.md").read_text()
    for name in METHODS:
        assert f"| `{name}` |" in document


def test_what_a_method_does_not_have_is_refused_by_name() -> None:
    with pytest.raises(UnknownName, match=r"unknown method 'kb': did you mean 'kd'\?"):
        make_method("kb", {})
    with pytest.raises(
        InputError, match="'ce' has no temperature: drop --temperature, or use --method kd"
    ):
        make_method("ce", {"temperature": 4.0})
    with pytest.raises(InputError, match="temperature must be positive"):
        make_method("kd", {"temperature": 0.0})
    with pytest.raises(InputError, match="nor both 0"):
        make_method("kd", {"ce_weight": 0.0, "kd_weight": 0.0})
