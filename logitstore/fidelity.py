"""What an encoding loses, measured: KL(teacher || decoded) in nats, and whether the argmax stays.

All sums are taken in float64 in a fixed order, so that the figures in a store do not depend on how
often its build was interrupted.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from logitstore.schema import Divergence, Fidelity, ShardMark

TEMPERATURES = (1.0, 4.0)
_BLOCK_BYTES = 4 << 20


def log_softmax(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    """Row-wise log-softmax in float64: (N, C) -> (N, C)."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result


def kl_divergence(
    teacher: NDArray[np.floating], decoded: NDArray[np.floating], *, temperature: float
) -> NDArray[np.float64]:
    """KL(softmax(teacher/T) || softmax(decoded/T)) per row, in nats: (N, C), (N, C) -> (N,)."""
    p, q = log_softmax(teacher / temperature), log_softmax(decoded / temperature)
    result: NDArray[np.float64] = (np.exp(p) * (p - q)).sum(axis=1)
    return np.maximum(result, 0.0)


def compare(
    teacher: NDArray[np.float32], decoded: NDArray[np.float32]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Per-row KL at each of TEMPERATURES (rows, temperatures) and whether the argmax agrees."""
    step = max(1, _BLOCK_BYTES // (8 * teacher.shape[1]))
    kl = np.empty((len(teacher), len(TEMPERATURES)))
    for start in range(0, len(teacher), step):
        block = slice(start, start + step)
        for column, temperature in enumerate(TEMPERATURES):
            kl[block, column] = kl_divergence(
                teacher[block], decoded[block], temperature=temperature
            )
    return kl, teacher.argmax(axis=1) == decoded.argmax(axis=1)


def summarise(marks: Iterable[ShardMark]) -> tuple[Fidelity, float | None]:
    """Join the marks of all shards, in the order given: the fidelity and the teacher's top-1."""
    marks = list(marks)
    rows = sum(mark.stop - mark.start for mark in marks)
    labelled = sum(mark.labelled for mark in marks)
    divergence = tuple(
        Divergence(
            temperature=temperature,
            mean=sum(mark.kl_sum[column] for mark in marks) / rows,
            max=max(mark.kl_max[column] for mark in marks),
        )
        for column, temperature in enumerate(TEMPERATURES)
    )
    agreement = sum(mark.agreeing for mark in marks) / rows
    top1 = sum(mark.correct for mark in marks) / labelled if labelled else None
    return Fidelity(divergence=divergence, top1_agreement=agreement), top1
