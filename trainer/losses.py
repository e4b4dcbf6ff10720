"""The losses: pure functions of logits -> loss per sample (N,), in nats.

Nothing is averaged, weighted, scheduled or moved to a device here: see ``methods`` and ``step``.
All algebra is in log space and at least in float32, whatever autocast left behind.
Letters: N samples of a batch, C classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def cross_entropy(student: Tensor, labels: Tensor) -> Tensor:
    """-log softmax(student)[label]: (N, C) logits, (N,) int64 labels -> (N,) nats.

    A label of -1 (unknown) gives 0 and no gradient.
    """
    return F.cross_entropy(_upcast(student), labels, ignore_index=-1, reduction="none")


def kl(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(softmax(teacher) || softmax(student)): (N, C), (N, C) logits -> (N,) nats."""
    log_s, log_t = _upcast(student).log_softmax(1), _upcast(teacher).log_softmax(1)
    return (log_t.exp() * (log_t - log_s)).sum(1)


def kd(student: Tensor, teacher: Tensor, *, temperature: float) -> Tensor:
    """Distillation: temperature² · KL of both softened softmaxes: (N, C), (N, C) -> (N,) nats.

    Hinton, Vinyals, Dean 2015, arXiv:1503.02531, section 2: the soft targets' gradients scale as
    1/temperature², hence the factor.  The paper writes the cross-entropy with the soft targets; the
    KL is that less the teacher's entropy, a constant: same gradient, and 0 for a perfect student.
    """
    return temperature**2 * kl(_upcast(student) / temperature, _upcast(teacher) / temperature)


def _upcast(logits: Tensor) -> Tensor:
    """float32 from the half precisions; float32 and float64 as they are."""
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
