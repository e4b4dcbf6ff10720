"""Every loss at the edges: finite differences, extreme logits, half precision, C = 2, N = 1.

A loss is found by being a public function of ``trainer.losses``, and called by the names of its
parameters, so that a new one is examined here without being added.
"""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from logitstore.trainer import losses

LOSSES = {
    name: value
    for name, value in vars(losses).items()
    if inspect.isfunction(value) and value.__module__ == losses.__name__ and name[0] != "_"
}
HYPER = {"temperature": 3.0, "alpha": 0.7, "beta": 2.0, "gamma": 0.6, "epsilon": 0.1}

every_loss = pytest.mark.parametrize("name", sorted(LOSSES))


def call(name: str, student: Tensor, teacher: Tensor, labels: Tensor, **other: Any) -> Tensor:
    """The loss of these logits; the teacher's probabilities stand in for the student's past."""
    known = {
        **HYPER,
        "student": student,
        "logits": student,
        "teacher": teacher,
        "labels": labels,
        "past_probs": teacher.softmax(1, torch.float32 if teacher.itemsize < 4 else None),
        **other,
    }
    parameters = inspect.signature(LOSSES[name]).parameters
    missing = [key for key, wanted in parameters.items() if wanted.default is wanted.empty]
    return LOSSES[name](**{key: known[key] for key in {*missing, *(parameters.keys() & other)}})


def gradient(name: str, student: Tensor, teacher: Tensor, labels: Tensor, **other: Any) -> Tensor:
    """Of the sum over samples (of the row weighted by the teacher's, for ``standardize``)."""
    student = student.clone().requires_grad_()
    output = call(name, student, teacher, labels, **other)
    weights = teacher if output.ndim == 2 else torch.ones_like(output)
    return torch.autograd.grad((output * weights).sum(), student)[0]


def drawn(seed: int, rows: int = 6, classes: int = 5, scale: float = 3.0) -> Tensor:
    values = np.random.default_rng(seed).standard_normal((rows, classes)) * scale
    return torch.tensor(values, dtype=torch.float64)


def labels_of(rows: int, classes: int) -> Tensor:
    return torch.arange(rows) % classes


@every_loss
@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_gradients_agree_with_finite_differences(
    name: str, classes: int, temperature: float
) -> None:
    student, teacher = drawn(1, 3, classes).requires_grad_(), drawn(2, 3, classes)

    def loss(logits: Tensor) -> Tensor:
        changed = {"temperature": temperature, "gamma": 1 / temperature}
        return call(name, logits, teacher, labels_of(3, classes), **changed)

    assert torch.autograd.gradcheck(loss, student)


def test_the_released_variant_of_tf_kd_reg_agrees_with_finite_differences() -> None:
    def loss(logits: Tensor) -> Tensor:
        return call("tf_kd_reg", logits, drawn(2, 3), labels_of(3, 5), variant="code")

    assert torch.autograd.gradcheck(loss, drawn(1, 3).requires_grad_())


@every_loss
@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize(("rows", "classes"), [(6, 5), (6, 2), (1, 5), (1, 2)])
def test_float32_follows_float64_at_logits_of_a_hundred(
    name: str, rows: int, classes: int, temperature: float
) -> None:
    student, teacher = (drawn(seed, rows, classes).sign() * 100 for seed in (3, 4))
    student[0], teacher[0] = -100.0, -100.0
    student[0, 0], teacher[0, 1] = 100.0, 100.0  # each sure, of different classes
    changed = {"temperature": temperature, "gamma": 1 / temperature}
    value, slope = (
        measure(name, student.float(), teacher.float(), labels_of(rows, classes), **changed)
        for measure in (call, gradient)
    )
    exact, exact_slope = (
        measure(name, student, teacher, labels_of(rows, classes), **changed)
        for measure in (call, gradient)
    )
    assert value.dtype == torch.float32
    assert value.isfinite().all()
    assert slope.isfinite().all()
    torch.testing.assert_close(value.double(), exact, rtol=1e-5, atol=1e-5)
    largest = max(1.0, exact_slope.abs().max().item())
    torch.testing.assert_close(slope.double(), exact_slope, rtol=0, atol=1e-5 * largest)


@every_loss
@pytest.mark.parametrize("narrow", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_taken_to_float32_first(name: str, narrow: torch.dtype) -> None:
    student, teacher = drawn(1).to(narrow), drawn(2).to(narrow)
    labels = labels_of(6, 5)
    value = call(name, student, teacher, labels)
    assert value.dtype == torch.float32
    assert torch.equal(value, call(name, student.float(), teacher.float(), labels))
    slope = gradient(name, student, teacher, labels)
    wide = gradient(name, student.float(), teacher.float(), labels)
    bound = 2 * torch.finfo(narrow).eps * wide.abs().max().item()
    torch.testing.assert_close(slope.float(), wide, rtol=0, atol=bound)


@every_loss
def test_a_constant_added_to_a_row_changes_nothing(name: str) -> None:
    shift = torch.arange(6.0, dtype=torch.float64)[:, None] * 10
    moved = call(name, drawn(1) + shift, drawn(2) - shift, labels_of(6, 5))
    torch.testing.assert_close(moved, call(name, drawn(1), drawn(2), labels_of(6, 5)))


@pytest.mark.parametrize("name", sorted(LOSSES.keys() - {"dist"}))  # its columns are the batch's
def test_one_sample_alone_gives_what_it_gives_in_a_batch(name: str) -> None:
    student, teacher, labels = drawn(1), drawn(2), labels_of(6, 5)
    together = call(name, student, teacher, labels)
    for row in range(6):
        part = slice(row, row + 1)
        alone = call(name, student[part], teacher[part], labels[part])
        torch.testing.assert_close(alone, together[part])


@every_loss
def test_a_student_of_constant_rows_gets_finite_values_and_gradients(name: str) -> None:
    student, teacher, labels = torch.full((6, 5), 3.0), drawn(2).float(), labels_of(6, 5)
    assert call(name, student, teacher, labels).isfinite().all()
    assert gradient(name, student, teacher, labels).isfinite().all()


def test_standardising_a_constant_row_is_zero_with_a_bounded_gradient() -> None:
    student, weights = torch.zeros(6, 5), drawn(2).float()
    assert not call("standardize", student, weights, labels_of(6, 5)).any()
    slope = gradient("standardize", student, weights, labels_of(6, 5))
    centred = weights - weights.mean(1, keepdim=True)
    torch.testing.assert_close(slope, 1000 * centred, rtol=1e-3, atol=1e-3)


def test_with_two_classes_nothing_is_left_among_the_others() -> None:
    student, teacher, labels = drawn(1, classes=2), drawn(2, classes=2), labels_of(6, 2)
    assert not call("nckd", student, teacher, labels).any()
    assert not gradient("nckd", student, teacher, labels).any()
    whole = call("kd", student, teacher, labels)
    torch.testing.assert_close(call("tckd", student, teacher, labels), whole)
    own = labels[:, None]
    label_s, label_t = (z.log_softmax(1).gather(1, own)[:, 0] for z in (student, teacher))
    torch.testing.assert_close(call("nkd", student, teacher, labels), -label_t.exp() * label_s)


def test_dist_of_one_sample_has_its_row_term_and_a_constant() -> None:
    student, teacher, labels = drawn(1, 1), drawn(2, 1), labels_of(1, 5)
    rows = call("dist", student, teacher, labels, beta=2.0, gamma=0.0)
    both = call("dist", student, teacher, labels, beta=2.0, gamma=0.5)
    torch.testing.assert_close(both, rows + 0.5 * 9)
    torch.testing.assert_close(
        gradient("dist", student, teacher, labels, beta=2.0, gamma=0.5),
        gradient("dist", student, teacher, labels, beta=2.0, gamma=0.0),
    )


@pytest.mark.parametrize("name", ["cross_entropy", "label_smoothing", "tf_kd_reg"])
def test_an_unknown_label_gives_zero_and_no_gradient(name: str) -> None:
    student, teacher, labels = drawn(1), drawn(2), torch.tensor([0, -1, 2, -1, 4, 0])
    unknown = labels < 0
    value = call(name, student, teacher, labels)
    slope = gradient(name, student, teacher, labels)
    assert not value[unknown].any()
    assert not slope[unknown].any()
    full = call(name, student, teacher, labels.clamp(min=0))
    torch.testing.assert_close(value[~unknown], full[~unknown])
    assert (slope[~unknown].abs().sum(1) > 0).all()
