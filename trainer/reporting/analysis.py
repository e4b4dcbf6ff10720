"""Compute a report's figures beyond ``metrics``; the same arrays give the same figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from logitstore.trainer.data.order import shuffled
from logitstore.trainer.data.source import Indices

Floats = NDArray[np.floating]

MOST_EMBEDDED = 2000
"""Most samples that a map of points shows."""

FEWEST_EMBEDDED = 10
"""Fewest samples of which a map is drawn."""

MOST_CLASSES = 30
"""Most classes that are all listed."""

WORST_AND_BEST = 15
"""Classes listed of the worst, and of the best, where there are too many to list all."""

_PERPLEXITY = 30.0


def class_accuracy(
    logits: Floats, labels: NDArray[np.integer]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return each class's accuracy (C,), NaN without samples, and its number of samples (C,).

    Of equal logits the lowest class is the answer; samples with label -1 are left out.
    """
    known = labels >= 0
    right = logits[known].argmax(axis=1) == labels[known]
    count = np.bincount(labels[known], minlength=logits.shape[1])
    hits = np.bincount(labels[known], weights=right, minlength=logits.shape[1])
    return np.divide(hits, count, out=np.full(len(count), np.nan), where=count > 0), count


def shown_classes(accuracies: Sequence[Floats], count: NDArray[np.integer]) -> list[int]:
    """Return the classes to list: up to 30 with samples, else the 15 worst and the 15 best.

    The latter are sorted by the mean of the runs' ``accuracies`` (C,), the lowest first; of equal
    ones the lowest number comes first.
    """
    classes = np.flatnonzero(count)
    if len(classes) <= MOST_CLASSES:
        return [int(number) for number in classes]
    order = classes[np.argsort(np.mean(accuracies, axis=0)[classes], kind="stable")]
    return [int(number) for number in (*order[:WORST_AND_BEST], *order[-WORST_AND_BEST:])]


def correlation_difference(student: Floats, teacher: Floats) -> NDArray[np.float64]:
    """Return |corr(student) - corr(teacher)| for each pair of classes: (N, C), (N, C) -> (C, C).

    Pearson's correlation of logits over the samples, 0 with a class whose logit never changes.
    Zhao et al. 2022, arXiv:2203.08679, figure 3.  The notebook released with it draws something
    else: the difference of each class's mean logits, over 3.
    """
    return np.abs(_correlation(student) - _correlation(teacher))


def mean_difference(difference: NDArray[np.float64]) -> float:
    """Return the mean over pairs of different classes: a class always correlates with itself."""
    classes = len(difference)
    return float(difference[~np.eye(classes, dtype=bool)].mean()) if classes > 1 else 0.0


def embedded_samples(samples: int, seed: int) -> Indices:
    """Return the samples of a map of points: all, or a fixed random choice of 2,000, ascending."""
    return np.sort(shuffled(samples, "t-SNE", seed)[:MOST_EMBEDDED])


def embed(logits: Floats, seed: int) -> NDArray[np.float64] | None:
    """Map logits by t-SNE: (N, C) -> (N, 2); None if there are under 10 or all are the same.

    van der Maaten, Hinton 2008; perplexity 30, or a third of the samples if that is less.
    """
    if len(logits) < FEWEST_EMBEDDED or not np.ptp(logits, axis=0).any():
        return None
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    maker: Any = TSNE(
        perplexity=min(_PERPLEXITY, (len(logits) - 1) / 3),
        init="pca",
        learning_rate="auto",
        random_state=seed,
    )
    with threadpool_limits(1):  # sums of several threads come in no fixed order
        points: NDArray[np.float64] = maker.fit_transform(logits.astype(np.float64))
    return points


def _correlation(logits: Floats) -> NDArray[np.float64]:
    centred = logits.astype(np.float64) - logits.mean(axis=0, dtype=np.float64)
    length = np.linalg.norm(centred, axis=0)
    unit = np.divide(centred, length, out=np.zeros_like(centred), where=length > 0)
    correlation: NDArray[np.float64] = unit.T @ unit
    return correlation
