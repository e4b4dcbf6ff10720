"""Measure what an encoding loses: KL(teacher || decoded) in nats, and whether the argmax stays.

Every row is measured by itself and by the same operations, so that the figures in a store do not
depend on where a build was interrupted.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from logitstore.format.cards import Divergence, Fidelity
from logitstore.format.commits import ShardMark
from logitstore.format.encodings.base import Arrays, Encoding, Labels, Logits

_BLOCK_BYTES = 256 << 10
"""Bytes of float32 logits per block: small enough for a core's L2 cache."""

_TRUST = 1e-3
"""Relative error up to which the KL by moments is believed."""

_Float = TypeVar("_Float", bound=np.floating)


def log_softmax(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the row-wise log-softmax in float64: (N, C) -> (N, C)."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result


def kl_divergence(
    teacher: NDArray[np.floating], decoded: NDArray[np.floating], *, temperature: float
) -> NDArray[np.float64]:
    """Return KL(softmax(teacher/T) || softmax(decoded/T)) in nats: (N, C), (N, C) -> (N,).

    In float64 throughout: good to about 1e-15 nats.
    """
    t, q = (
        _below_maximum(logits.astype(np.float64)) / temperature for logits in (teacher, decoded)
    )
    p = np.exp(t)
    mass = p.sum(axis=1)
    cross = (p * (t - q)).sum(axis=1) / mass
    result: NDArray[np.float64] = cross + np.log(np.exp(q).sum(axis=1) / mass)
    return np.maximum(result, 0.0)


def compare(
    teacher: NDArray[np.float32], decoded: NDArray[np.float32], temperatures: Sequence[float]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return each row's KL by temperature, (N, temperatures), and whether its argmax agrees, (N,).

    The KL of rows float32 (N, C) is right to 1 % down to 1e-8 nats: it comes from the moments of
    the errors in float32 where these provably suffice, from ``kl_divergence`` where they do not.
    """
    step = max(1, _BLOCK_BYTES // (4 * teacher.shape[1]))
    kl = np.empty((len(teacher), len(temperatures)))
    agrees = np.empty(len(teacher), np.bool_)
    for start in range(0, len(teacher), step):
        block = slice(start, start + step)
        truth, copy = teacher[block], decoded[block]
        agrees[block] = truth.argmax(axis=1) == copy.argmax(axis=1)
        kl[block] = _block_kl(truth, copy, temperatures)
    return kl, agrees


def _block_kl(
    teacher: NDArray[np.float32], decoded: NDArray[np.float32], temperatures: Sequence[float]
) -> NDArray[np.float64]:
    below = _below_maximum(teacher)
    kl = np.empty((len(teacher), len(temperatures)))
    with np.errstate(over="ignore", invalid="ignore"):
        error = _below_maximum(decoded) - below
        squared = error * error
        for column, temperature in enumerate(temperatures):
            kl[:, column], trusted = _kl_by_moments(below, error, squared, temperature)
            if not trusted.all():
                doubtful = ~trusted
                kl[doubtful, column] = kl_divergence(
                    teacher[doubtful], decoded[doubtful], temperature=temperature
                )
    return kl


def _kl_by_moments(
    below: NDArray[np.float32],
    error: NDArray[np.float32],
    squared: NDArray[np.float32],
    temperature: float,
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return the KL of rows (N, C) from four moments of error/T, and where it can be trusted.

    The moments are those under softmax(below/T).

    KL = log E[exp(a)] - E[a], and E[exp(a)] = 1 + E[a] + E[a²]/2 + …; what follows the fourth
    power is at most E[a⁴] A exp(A) / 120 with A = max |a|.
    """
    p = np.exp(below * np.float32(1 / temperature))
    mass = p.sum(axis=1).astype(np.float64)
    m1 = _row_dot(p, error) / mass / temperature
    m2 = _row_dot(p, squared) / mass / temperature**2
    p *= squared
    m3 = _row_dot(p, error) / mass / temperature**3
    m4 = _row_dot(p, squared) / mass / temperature**4
    rest = m2 / 2 + m3 / 6 + m4 / 24
    kl = rest - ((m1 + rest) - np.log1p(m1 + rest))
    most = np.sqrt(squared.max(axis=1).astype(np.float64)) / temperature
    left_out = m4 * most * np.exp(most) / 120
    # float32 sums are good to about 1e-6, of which a constant error would leave nothing.
    trusted = (left_out <= _TRUST * kl) & (_TRUST * m2 <= kl)
    return np.maximum(kl, 0.0), trusted


def _row_dot(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float64]:
    # NumPy sums pairwise; einsum's sums would depend on where a long row lies in its block.
    dot: NDArray[np.float64] = (a * b).sum(axis=1).astype(np.float64)
    return dot


def _below_maximum(logits: NDArray[_Float]) -> NDArray[_Float]:
    below: NDArray[_Float] = logits - logits.max(axis=1, keepdims=True)
    return below


def summarise(
    marks: Iterable[ShardMark], temperatures: Sequence[float]
) -> tuple[Fidelity, float | None]:
    """Join the marks of all shards, in their order: the fidelity and the teacher's top-1."""
    marks = list(marks)
    rows = sum(mark.stop - mark.start for mark in marks)
    labelled = sum(mark.labelled for mark in marks)
    divergence = tuple(
        Divergence(
            temperature=temperature,
            mean=sum(mark.kl_sum[column] for mark in marks) / rows,
            max=max(mark.kl_max[column] for mark in marks),
        )
        for column, temperature in enumerate(temperatures)
    )
    agreement = sum(mark.agreeing for mark in marks) / rows
    top1 = sum(mark.correct for mark in marks) / labelled if labelled else None
    return Fidelity(divergence=divergence, top1_agreement=agreement), top1


def encoded(
    entry: Encoding, logits: Logits, labels: Labels, temperatures: Sequence[float]
) -> tuple[Arrays, Fidelity]:
    """Encode rows, float32 (n, C), and measure what that loses."""
    arrays = entry.encode(logits, labels)
    kl, agrees = compare(logits, entry.decode(arrays), temperatures)
    means, most = kl.sum(axis=0) / len(kl), kl.max(axis=0)
    divergence = tuple(
        Divergence(temperature=temperature, mean=float(mean), max=float(worst))
        for temperature, mean, worst in zip(temperatures, means, most, strict=True)
    )
    return arrays, Fidelity(divergence=divergence, top1_agreement=float(agrees.mean()))
