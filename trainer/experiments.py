"""What the papers' experiments change about the samples: noisy labels, and who is taught."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from logitstore.ensemble import Teacher
from logitstore.errors import InputError
from logitstore.fidelity import log_softmax
from trainer.data import Indices, Source, shuffled

Teach = Literal["all", "confident", "unsure"]

_ROWS_AT_ONCE = 4096


def with_noise(
    source: Source, samples: Indices, share: float, seed: int, omitted: Sequence[int] = ()
) -> Source:
    """The source with wrong labels for ``share`` of the known ones of ``samples``.

    Each becomes any other class alike, but none of the ``omitted`` ones.  Zhao et al. 2022,
    arXiv:2203.08679, table 4: symmetric noise.  Which samples, and what they become, follows from
    the seed alone.  InputError if there are fewer than two classes.
    """
    classes = np.setdiff1d(np.arange(source.classes), omitted)
    if len(classes) < 2:
        raise InputError("--label-noise needs two classes or more: drop it")
    labels = source.dataset.labels.copy()
    known = samples[labels[samples] >= 0]
    wrong = known[shuffled(len(known), "label noise", seed)[: round(share * len(known))]]
    moves = 1 + shuffled(len(wrong), "wrong labels", seed) % (len(classes) - 1)
    places = np.searchsorted(classes, labels[wrong])
    labels[wrong] = classes[(places + moves) % len(classes)]
    return replace(source, dataset=replace(source.dataset, labels=labels))


def taught_half(source: Source, samples: Indices, teacher: Teacher, teach: Teach) -> Tensor | None:
    """Where the teacher's terms count: bool (samples of the dataset,), None for everywhere.

    The ``confident`` half are the samples to whose label the teacher gives the most probability (at
    temperature 1, in its view 0), the ``unsure`` half the others; all labels are known.  Zhao et
    al. 2022, table 5.
    """
    if teach == "all":
        return None
    labels = source.dataset.labels[samples]
    sure = _probability_of_label(teacher, samples, labels)
    order = samples[np.argsort(-sure, kind="stable")]
    half = len(order) // 2
    mask = torch.zeros(len(source.dataset), dtype=torch.bool)
    mask[torch.from_numpy(order[:half] if teach == "confident" else order[half:])] = True
    return mask


def _probability_of_label(
    teacher: Teacher, samples: Indices, labels: NDArray[np.int32]
) -> NDArray[np.float64]:
    """Log-probability of each sample's label, (n,)."""
    parts = []
    for start in range(0, len(samples), _ROWS_AT_ONCE):
        span = slice(start, start + _ROWS_AT_ONCE)
        rows = log_softmax(teacher.logits(samples[span]).astype(np.float64))
        parts.append(rows[np.arange(len(rows)), labels[span]])
    return np.concatenate(parts)
