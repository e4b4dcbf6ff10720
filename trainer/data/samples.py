"""Choose the samples that a run takes, and change their labels as the papers' experiments do.

Each choice follows from the data and a seed alone.  Nothing is refused here: whether the method can
learn from what was chosen is asked in ``requirements``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from logitstore.cache.readers import RowReader
from logitstore.format.fidelity import log_softmax
from logitstore.precompute.data.classes import class_numbers
from logitstore.trainer.config.settings import TrainConfig
from logitstore.trainer.config.specs import Teach, split_share
from logitstore.trainer.data.order import shuffled
from logitstore.trainer.data.source import Indices, Source
from logitstore.trainer.data.specialist import own_and_others

_ROWS_AT_ONCE = 4096
"""Teacher's rows that are decoded at once."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The samples of a run; all are ascending.

    ``training`` are those that were not ``held_out`` (None: nothing is), ``eligible`` those of
    them that are of no omitted class.  Each epoch shows ``samples``, and of ``others`` (None:
    there are none) as many again.
    """

    training: Indices
    held_out: Indices | None
    eligible: Indices
    samples: Indices
    others: Indices | None = None


def choose_samples(config: TrainConfig, source: Source) -> Choice:
    """Choose what a run is trained on; UnknownName for an omitted class that is none."""
    training, held, others = source.samples(), None, None
    share = split_share(config.val)
    if share is not None:
        training, held = held_out(training, share, config.limit_seed)
    omitted = omitted_numbers(source, config.omit_classes)
    eligible = training[~np.isin(source.dataset.labels[training], omitted)]
    samples = chosen_samples(eligible, config.limit, config.limit_seed)
    if config.specialist is not None:
        samples, others = own_and_others(source, samples)
    return Choice(
        training=training, held_out=held, eligible=eligible, samples=samples, others=others
    )


def held_out(samples: Indices, share: float, seed: int) -> tuple[Indices, Indices]:
    """Split samples in two parts, both ascending: those to train on, and the share held out."""
    count = round(share * len(samples))
    order = shuffled(len(samples), "held out", seed)
    return np.sort(samples[order[count:]]), np.sort(samples[order[:count]])


def omitted_numbers(source: Source, omitted: Sequence[str | int]) -> list[int]:
    """Return the numbers of named classes; UnknownName for a class that does not exist."""
    dataset = source.dataset
    return class_numbers(omitted, dataset.class_names, source.classes, dataset.name)


def chosen_samples(samples: Indices, limit: int | None, limit_seed: int) -> Indices:
    """Return all samples, or a fixed random subset of at most ``limit`` of them, ascending."""
    if limit is None:
        return samples
    return np.sort(samples[shuffled(len(samples), "limit", limit_seed)[:limit]])


def with_noise(
    source: Source, samples: Indices, share: float, seed: int, omitted: Sequence[int] = ()
) -> Source:
    """Return the source with wrong labels for ``share`` of the known ones of ``samples``.

    Each becomes any other class with equal probability, but none of the ``omitted`` ones: symmetric
    noise, Zhao et al. 2022, arXiv:2203.08679, table 4.  Which samples, and what they become,
    follows from the seed alone.  There must be two classes or more.
    """
    classes = np.setdiff1d(np.arange(source.classes), omitted)
    labels = source.dataset.labels.copy()
    known = samples[labels[samples] >= 0]
    wrong = known[shuffled(len(known), "label noise", seed)[: round(share * len(known))]]
    moves = 1 + shuffled(len(wrong), "wrong labels", seed) % (len(classes) - 1)
    places = np.searchsorted(classes, labels[wrong])
    labels[wrong] = classes[(places + moves) % len(classes)]
    return replace(source, dataset=replace(source.dataset, labels=labels))


def taught_half(
    source: Source, samples: Indices, teacher: RowReader, teach: Teach
) -> Tensor | None:
    """Return where the teacher's terms count: bool (samples of the dataset,), None: everywhere.

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
    teacher: RowReader, samples: Indices, labels: NDArray[np.int32]
) -> NDArray[np.float64]:
    """Return the log-probability of each sample's label, (n,)."""
    parts = []
    for start in range(0, len(samples), _ROWS_AT_ONCE):
        span = slice(start, start + _ROWS_AT_ONCE)
        rows = log_softmax(teacher.rows(samples[span]).logits().astype(np.float64))
        parts.append(rows[np.arange(len(rows)), labels[span]])
    return np.concatenate(parts)
