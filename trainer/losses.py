"""The losses: pure functions from logits to the loss of each sample, (N,) in nats.

Nothing is averaged, weighted, scheduled or moved to a device here: see ``methods`` and ``run``.
All algebra is in log space and at least in float32, whatever autocast left behind: values and
gradients are finite for any finite logits, for two classes and for one sample.
Letters: N samples of a batch, C classes.  Labels are int64 (N,) in 0..C-1.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from logitstore.errors import UnknownName

Variant = Literal["paper", "code"]
VARIANTS: tuple[Variant, ...] = ("paper", "code")

_LEAST_DEVIATION = 1e-3
"""Smallest deviation that is divided by; less would blow gradients up."""


def cross_entropy(student: Tensor, labels: Tensor) -> Tensor:
    """Return -log softmax(student)[label]: (N, C) logits, (N,) int64 labels -> (N,) nats.

    A label of -1 (unknown) gives 0 and no gradient.
    """
    return F.cross_entropy(_upcast(student), labels, ignore_index=-1, reduction="none")


def label_smoothing(student: Tensor, labels: Tensor, *, epsilon: float) -> Tensor:
    """Return the cross-entropy with (1 - epsilon) · one-hot + epsilon / C: (N, C), (N,) -> (N,).

    Szegedy et al. 2016, arXiv:1512.00567, section 7; Yuan et al. 2020, arXiv:1909.11723.
    The latter's code puts epsilon / (C - 1) on the other classes and nothing of it on the label's.
    A label of -1 (unknown) gives 0 and no gradient.
    """
    return F.cross_entropy(
        _upcast(student), labels, ignore_index=-1, reduction="none", label_smoothing=epsilon
    )


def kl(student: Tensor, teacher: Tensor) -> Tensor:
    """Return KL(softmax(teacher) || softmax(student)): (N, C), (N, C) logits -> (N,) nats."""
    log_s, log_t = _upcast(student).log_softmax(1), _upcast(teacher).log_softmax(1)
    return (log_t.exp() * (log_t - log_s)).sum(1)


def kd(student: Tensor, teacher: Tensor, *, temperature: float) -> Tensor:
    """Return temperature² · KL of both softened softmaxes: (N, C), (N, C) -> (N,) nats.

    Hinton, Vinyals, Dean 2015, arXiv:1503.02531, section 2: the soft targets' gradients scale as
    1/temperature², hence the factor.  The paper writes the cross-entropy with the soft targets; the
    KL is that less the teacher's entropy, a constant: same gradient, and 0 for a perfect student.
    """
    return temperature**2 * kl(_upcast(student) / temperature, _upcast(teacher) / temperature)


def tckd(student: Tensor, teacher: Tensor, labels: Tensor, *, temperature: float) -> Tensor:
    """Return temperature² · KL of (label, all others): (N, C), (N, C), (N,) -> (N,) nats.

    Target-class KD, Zhao et al. 2022, arXiv:2203.08679: how sure the teacher is of the label.
    """
    (student_target, _), (teacher_target, _) = _decoupled(student, teacher, labels, temperature)
    return temperature**2 * kl(student_target, teacher_target)


def nckd(student: Tensor, teacher: Tensor, labels: Tensor, *, temperature: float) -> Tensor:
    """Return temperature² · KL among the classes beside the label: -> (N,) nats; 0 if C = 2.

    Non-target-class KD, Zhao et al. 2022, arXiv:2203.08679: kd = tckd + (1 - p) · nckd, where p is
    the teacher's softened probability of the label.
    """
    (_, student_rest), (_, teacher_rest) = _decoupled(student, teacher, labels, temperature)
    return temperature**2 * kl(student_rest, teacher_rest)


def dkd(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    *,
    alpha: float,
    beta: float,
    temperature: float,
) -> Tensor:
    """Return alpha · tckd + beta · nckd: (N, C), (N, C), (N,) -> (N,) nats.

    Decoupled KD, Zhao et al. 2022, arXiv:2203.08679.  Its code takes the logarithm of
    a softmax, and gives infinite gradients for logits of ±50 at temperature 1; this does not.
    """
    target, rest = zip(*_decoupled(student, teacher, labels, temperature), strict=True)
    return temperature**2 * (alpha * kl(*target) + beta * kl(*rest))


def tf_kd_reg(
    student: Tensor,
    labels: Tensor,
    *,
    correct: float = 0.99,
    temperature: float,
    variant: Variant = "paper",
) -> Tensor:
    """Return the distance from a teacher made by hand: (N, C), (N,) -> (N,), without temperature².

    That teacher gives ``correct`` to the label and the rest, evenly, to the others.  Yuan et al.
    2020, arXiv:1909.11723: ``paper`` softens it and the student by the temperature.  ``code`` is
    what was released: a softmax of its probabilities over the temperature, almost uniform, against
    the student at temperature 1, divided by C; label smoothing by another name.
    A label of -1 (unknown) gives 0 and no gradient.
    """
    if variant not in VARIANTS:
        raise UnknownName.among("variant of tf_kd_reg", variant, VARIANTS)
    logits, known = _upcast(student), labels >= 0
    classes = logits.shape[1]
    other = (1 - correct) / max(classes - 1, 1)
    if variant == "paper":
        designed = _designed(logits, labels, math.log(correct), math.log(other))
        distance = kl(logits / temperature, designed / temperature)
    else:
        designed = _designed(logits, labels, correct, other)
        distance = kl(logits, designed / temperature) / classes
    return torch.where(known, distance, distance.new_zeros(()))


def ps_kd(student: Tensor, labels: Tensor, past_probs: Tensor, *, alpha: float) -> Tensor:
    """Return the cross-entropy with (1 - alpha) · one-hot + alpha · past: -> (N,) nats.

    ``past_probs`` are probabilities, the student's own of an earlier epoch.  Kim et al. 2021,
    arXiv:2006.12000: no temperature and no factor.
    """
    student = _upcast(student)
    log_s = student.log_softmax(1)
    soft = -(past_probs.to(log_s.dtype) * log_s).sum(1)
    return (1 - alpha) * cross_entropy(student, labels) + alpha * soft


def dist(
    student: Tensor, teacher: Tensor, *, temperature: float, beta: float = 1.0, gamma: float = 1.0
) -> Tensor:
    """Return temperature² · (beta · row + gamma · column distance): (N, C), (N, C) -> (N,).

    A distance is 1 - Pearson's correlation of softened probabilities, within a sample and, for each
    class, over the batch; a constant row or column correlates with nothing (distance 1).  Huang et
    al. 2022, arXiv:2205.10536; temperature² as in its code.  The column term is one
    number of the batch, which every sample carries, so that the mean over samples is the loss.
    """
    probs_s = (_upcast(student) / temperature).softmax(1)
    probs_t = (_upcast(teacher) / temperature).softmax(1)
    rows = 1 - _pearson(probs_s, probs_t, 1)
    columns = (1 - _pearson(probs_s, probs_t, 0)).mean()
    return temperature**2 * (beta * rows + gamma * columns)


def nkd(
    student: Tensor, teacher: Tensor, labels: Tensor, *, gamma: float, temperature: float
) -> Tensor:
    """Return the normalised KD loss: (N, C), (N, C), (N,) -> (N,) nats.

    -p_t(y) · log p_s(y), always at temperature 1, and gamma · temperature² times the cross-entropy
    among the other classes, renormalised and softened.  Yang et al. 2023, arXiv:2303.13005.
    """
    student = _upcast(student)
    soft = _upcast(teacher).log_softmax(1).gather(1, labels[:, None])[:, 0].exp()
    (_, student_rest), (_, teacher_rest) = _decoupled(student, teacher, labels, temperature)
    others = -(teacher_rest.softmax(1) * student_rest.log_softmax(1)).sum(1)
    return soft * cross_entropy(student, labels) + gamma * temperature**2 * others


def ttm(student: Tensor, teacher: Tensor, *, gamma: float) -> Tensor:
    """Return KL(p_t^gamma, renormalised || softmax(student)): (N, C), (N, C) -> (N,) nats.

    Zheng, Yang 2024, arXiv:2402.11148: the teacher is softened by temperature 1/gamma, the
    student is not.
    """
    return kl(student, gamma * _upcast(teacher))


def wttm(student: Tensor, teacher: Tensor, *, gamma: float) -> Tensor:
    """Return ``ttm``, each sample weighted by its sum of p_t^gamma: (N, C), (N, C) -> (N,) nats.

    Zheng, Yang 2024, arXiv:2402.11148: the smoother the teacher, the larger the weight.
    """
    weight = (gamma * _upcast(teacher).log_softmax(1)).logsumexp(1).exp()
    return weight * ttm(student, teacher, gamma=gamma)


def standardize(logits: Tensor) -> Tensor:
    """Return each row with mean 0 and (unbiased) standard deviation 1: (N, C) -> (N, C).

    Sun et al. 2024, arXiv:2403.01427.  Rows that deviate by less than 0.001 are not
    blown up beyond 1000 times: the code's bound, 1e7, makes a freshly initialised head explode.
    """
    rows = _upcast(logits)
    deviation = rows.std(1, keepdim=True).clamp(min=_LEAST_DEVIATION)
    return (rows - rows.mean(1, keepdim=True)) / (1e-7 + deviation)


def _decoupled(
    student: Tensor, teacher: Tensor, labels: Tensor, temperature: float
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    return (
        _decouple(_upcast(student) / temperature, labels),
        _decouple(_upcast(teacher) / temperature, labels),
    )


def _decouple(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return logits of (label, all others together), (N, 2), and of the others, (N, C - 1)."""
    index = labels[:, None]
    others = torch.arange(logits.shape[1] - 1, device=logits.device).expand(len(logits), -1)
    rest = logits.gather(1, others + (others >= index))
    return torch.cat([logits.gather(1, index), rest.logsumexp(1, keepdim=True)], 1), rest


def _designed(like: Tensor, labels: Tensor, correct: float, other: float) -> Tensor:
    """Return (N, C) with ``correct`` at the label and ``other`` elsewhere."""
    places = labels.clamp(min=0)[:, None]
    return torch.full_like(like, other).scatter(1, places, correct)


def _pearson(left: Tensor, right: Tensor, axis: int) -> Tensor:
    return (_direction(left, axis) * _direction(right, axis)).sum(axis)


def _direction(values: Tensor, axis: int) -> Tensor:
    """Centre values and scale them to length 1 along an axis, or less if they hardly deviate.

    Dividing by almost nothing would give a freshly initialised head gradients of 1e5.
    """
    centred = values - values.mean(axis, keepdim=True)
    least = (_LEAST_DEVIATION * values.detach().norm(dim=axis, keepdim=True)).clamp(min=1e-8)
    return centred / torch.maximum(centred.norm(dim=axis, keepdim=True), least)


def _upcast(logits: Tensor) -> Tensor:
    """Return float32 for the half precisions; float32 and float64 stay as they are."""
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
