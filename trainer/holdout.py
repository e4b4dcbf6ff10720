"""Validation samples held out of the training data: which they are, and that they stay out.

They depend on the data and a seed alone: runs of other methods, limits and seeds of training share
them, so that their figures can be compared.
"""

from __future__ import annotations

import re

import numpy as np

from logitstore.errors import InputError
from trainer.data import Indices, Source, shuffled

HELD_OUT = "split:0.1"
"""What a run with test data alone is validated on, so that nothing is chosen on the test data."""
_PREFIX = "split:"


def split_share(val: str | None) -> float | None:
    """The share in (0, 1) that ``split:SHARE`` holds out, None for data of their own or none.

    InputError for any other share.
    """
    if val is None or not val.startswith(_PREFIX):
        return None
    text = val.removeprefix(_PREFIX)
    share = float(text) if re.fullmatch(r"[0-9]*\.?[0-9]+", text) else 0.0
    if not 0 < share < 1:
        raise InputError(
            f"--val {val}: expected the share of the training samples to hold out, above 0 and "
            f"below 1, such as {HELD_OUT}"
        )
    return share


def held_out(there: Indices, share: float, seed: int) -> tuple[Indices, Indices]:
    """Some samples in two parts, both ascending: those to train on, and the share held out.

    InputError if there are too few for a sample in each.
    """
    count = round(share * len(there))
    if not 0 < count < len(there):
        raise InputError(
            f"--val {_PREFIX}{share:g} of {len(there)} samples holds out {count} and leaves "
            f"{len(there) - count} to train on: choose another share, or give --val DATA"
        )
    order = shuffled(len(there), "held out", seed)
    return np.sort(there[order[count:]]), np.sort(there[order[:count]])


def hold_out(source: Source, share: float, seed: int) -> tuple[Indices, Source]:
    """The samples left to train on, and the held-out ones, prepared without randomness.

    InputError if no held-out sample has a label, or views blend the training images with others.
    """
    if source.views.mix is not None:
        raise InputError(
            f"--val {_PREFIX}{share:g}: the store's views blend each sample of "
            f"{source.dataset.name} with another, so that held-out ones would be trained on: give "
            "--val DATA"
        )
    left, held = held_out(source.there(), share, seed)
    if (source.dataset.labels[held] < 0).all():
        raise InputError(
            f"--val {_PREFIX}{share:g}: none of the {len(held)} held-out samples of "
            f"{source.dataset.name} has a label: give --val DATA with labels"
        )
    views = source.views.evaluation()
    val = Source(
        dataset=source.dataset,
        views=views,
        classes=source.classes,
        view_count=1,
        samples=held,
        class_map=source.class_map,
    )
    return left, val
