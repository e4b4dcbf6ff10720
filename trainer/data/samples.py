"""What the papers' experiments change about the samples: noisy labels, and who is taught."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from logitstore.errors import InputError
from logitstore.format.fidelity import log_softmax
from logitstore.precompute.data.classes import class_numbers
from logitstore.reading.reader import RowReader
from logitstore.trainer.config.specs import SPLIT, Teach
from logitstore.trainer.data.order import shuffled
from logitstore.trainer.data.source import Indices, Source


def chosen_samples(samples: Indices, limit: int | None, limit_seed: int) -> Indices:
    """Return all samples, or a fixed random subset of ``limit`` of them, ascending."""
    if limit is None:
        return samples
    if limit > len(samples):
        raise InputError(f"--limit {limit} is more than the {len(samples)} samples there are")
    return np.sort(samples[shuffled(len(samples), "limit", limit_seed)[:limit]])


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


def taught_half(
    source: Source, samples: Indices, teacher: RowReader, teach: Teach
) -> Tensor | None:
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
    teacher: RowReader, samples: Indices, labels: NDArray[np.int32]
) -> NDArray[np.float64]:
    """Log-probability of each sample's label, (n,)."""
    parts = []
    for start in range(0, len(samples), _ROWS_AT_ONCE):
        span = slice(start, start + _ROWS_AT_ONCE)
        rows = log_softmax(teacher.rows(samples[span]).logits().astype(np.float64))
        parts.append(rows[np.arange(len(rows)), labels[span]])
    return np.concatenate(parts)


def held_out(samples: Indices, share: float, seed: int) -> tuple[Indices, Indices]:
    """Split samples in two parts, both ascending: those to train on, and the share held out.

    InputError if there are too few for a sample in each.
    """
    count = round(share * len(samples))
    if not 0 < count < len(samples):
        raise InputError(
            f"--val {SPLIT}{share:g} of {len(samples)} samples holds out {count} and leaves "
            f"{len(samples) - count} to train on: choose another share, or give --val DATA"
        )
    order = shuffled(len(samples), "held out", seed)
    return np.sort(samples[order[count:]]), np.sort(samples[order[:count]])


def hold_out(source: Source, share: float, seed: int) -> tuple[Indices, Source]:
    """The samples left to train on, and the held-out ones, prepared without randomness.

    InputError if no held-out sample has a label, or views blend the training images with others.
    """
    if source.views.mix is not None:
        raise InputError(
            f"--val {SPLIT}{share:g}: the store's views blend each sample of "
            f"{source.dataset.name} with another, so that held-out ones would be trained on: give "
            "--val DATA"
        )
    left, held = held_out(source.samples(), share, seed)
    if (source.dataset.labels[held] < 0).all():
        raise InputError(
            f"--val {SPLIT}{share:g}: none of the {len(held)} held-out samples of "
            f"{source.dataset.name} has a label: give --val DATA with labels"
        )
    views = source.views.evaluation()
    val = Source(
        dataset=source.dataset,
        views=views,
        classes=source.classes,
        view_count=1,
        subset=held,
        class_map=source.class_map,
    )
    return left, val


def omitted_numbers(source: Source, omitted: Sequence[str | int]) -> list[int]:
    """The numbers of classes that were named; UnknownName for one that there is not."""
    dataset = source.dataset
    return class_numbers(omitted, dataset.class_names, source.classes, dataset.name)


def without_classes(
    source: Source, samples: Indices, omitted: Sequence[str | int]
) -> tuple[Indices, list[str]]:
    """The samples that are of no omitted class, and a note of how many went.

    Samples without a label stay.  InputError if all classes or all samples would go, or the images
    are blended with those of any class; UnknownName for a class that there is not.
    """
    if not omitted:
        return samples, []
    dataset = source.dataset
    numbers = omitted_numbers(source, omitted)
    listed = ",".join(str(each) for each in omitted)
    if len(numbers) == source.classes:
        raise InputError(f"--omit-class {listed}: these are all classes of {dataset.name}")
    if source.views.mix is not None:
        raise InputError(
            f"--omit-class {listed}: the store's views blend each image with one of any class: use "
            "a snapshot built without --mix"
        )
    left = samples[~np.isin(dataset.labels[samples], numbers)]
    if len(left) == 0:
        raise InputError(f"--omit-class {listed}: no sample of {dataset.name} is left")
    gone = len(samples) - len(left)
    return left, [f"{gone:,} of {len(samples):,} samples omitted, those of class {listed}"]
