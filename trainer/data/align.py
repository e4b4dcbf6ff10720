"""Bring a dataset into a store's order and numbering of classes, or refuse it.

A student that sees sample 17 and learns from the logits of sample 18 trains without any error, and
badly.  Images are not compared here but in ``precompute.views.canaries``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from logitstore.errors import InputError, MismatchError, UnknownName
from logitstore.format.documents import first_difference
from logitstore.precompute.data.classes import Classes, ClassMap, renumbered
from logitstore.precompute.data.images import ImageDataset
from logitstore.reading.ensemble import Teacher, leaves
from logitstore.reading.store import LogitStore
from logitstore.trainer.data.source import Indices

_OTHER_NUMBERS = "or give --class-map FILE if only its classes are numbered otherwise"


class Aligned(NamedTuple):
    """A dataset of the store's length, order and classes.

    ``samples`` are the indices of those that have an image, ascending (None: all); any other has
    label -1, no key, and InputError for an image.  ``notes`` say what is not as in the store.
    """

    dataset: ImageDataset
    samples: Indices | None
    notes: list[str]


def align(
    dataset: ImageDataset,
    store: LogitStore,
    *,
    match_by: str = "index",
    class_map: ClassMap | None = None,
) -> Aligned:
    """Match a dataset's classes and samples with a store's; ``class_map`` as in ``renumbered``.

    By ``index``: as many samples in the same order.  By ``key``: each sample is looked up by its
    key; order and number may differ.  Labels must agree wherever both sides know them; what the
    dataset does not know (-1) stays unknown.  MismatchError names the first class, key or sample
    that does not fit.
    """
    if match_by not in _WAYS:
        raise UnknownName.among("way to match samples", match_by, _WAYS)
    if match_by == "key":
        _refuse_keyless(dataset, store)
    classes = Classes(owner=store.url, count=store.meta.classes, names=store.meta.class_names)
    aligned = renumbered(dataset, classes, class_map)
    notes = []
    if aligned.labels is not dataset.labels:
        way = "name" if class_map is None else "--class-map"
        notes.append(f"{dataset.name}: labels are renumbered into the store's classes, by {way}")
    aligned, samples, more = _WAYS[match_by](aligned, store)
    notes += more
    labels = aligned.labels if samples is None else aligned.labels[samples]
    unknown = int((labels < 0).sum())
    if unknown:
        notes.append(
            f"{dataset.name}: {unknown:,} of {len(labels):,} labels are unknown here: no "
            "cross-entropy there"
        )
    return Aligned(aligned, samples, notes)


def refuse_other_samples(store: LogitStore, *teachers: Teacher) -> None:
    """Refuse teachers of another store whose rows are not those of this store's samples."""
    for leaf in leaves(*teachers):
        difference = first_difference(store.meta, leaf.store_meta)
        if difference:
            field, expected, actual = difference
            raise MismatchError(
                f"{leaf.name} of {leaf.url} does not answer for the samples of {store.url}: "
                f"{field} is {expected!r} there and {actual!r} here: build both from one dataset"
            )


def _by_index(dataset: ImageDataset, store: LogitStore) -> Aligned:
    stored, card = store.meta.dataset, dataset.samples().card()
    if (stored.length, stored.sha256) == (card.length, card.sha256):
        return Aligned(dataset, None, [])
    with_keys = dataset.keys is not None and store.keys is not None
    if len(dataset) != len(store):
        by_key = "; --match-by key finds one by its keys" if with_keys else ""
        raise MismatchError(
            f"{_what(dataset, store)}: {len(store)} samples there, {len(dataset)} here: use the "
            f"store's dataset and split (a subset of it is chosen with --limit{by_key})"
        )
    differs = _disagree(store.labels, dataset.labels)
    if dataset.keys is not None and store.keys is not None:
        differs |= store.keys != np.array(dataset.keys, object)
    if differs.any():
        _refuse_order(dataset, store, int(differs.argmax()))
    notes = []
    if dataset.keys is None and store.keys is not None:
        notes = [f"{dataset.name} has no sample keys: its order is checked by labels, not by keys"]
    return Aligned(dataset, None, notes)


def _refuse_order(dataset: ImageDataset, store: LogitStore, first: int) -> None:
    """Raise MismatchError: the samples have another order, or the first that differs is named."""
    what = _what(dataset, store)
    stored, label = int(store.labels[first]), int(dataset.labels[first])
    if dataset.keys is None or store.keys is None:
        if np.array_equal(np.sort(store.labels), np.sort(dataset.labels)):
            raise MismatchError(
                f"{what}: it looks like the same samples in another order (label {stored} there "
                f"and {label} here at sample {first}): bring the dataset into the store's order"
            )
        raise MismatchError(
            f"{what}: sample {first} has label {stored} there and {label} here: use the store's "
            f"dataset, {_OTHER_NUMBERS}"
        )
    places = _places(store.keys, dataset.keys)
    if (places >= 0).all() and not _disagree(store.labels[places], dataset.labels).any():
        raise MismatchError(
            f"{what}: the same samples in another order: pass --match-by key, or bring the dataset "
            "into the store's order"
        )
    raise MismatchError(
        f"{what}: sample {first} is (key, label) {(store.keys[first], stored)} there and "
        f"{(dataset.keys[first], label)} here: use the store's dataset, {_OTHER_NUMBERS}"
    )


def _by_key(dataset: ImageDataset, store: LogitStore) -> Aligned:
    assert dataset.keys is not None
    assert store.keys is not None
    places = _places(store.keys, dataset.keys)
    _refuse_strangers(dataset, store, places)
    differs = _disagree(store.labels[places], dataset.labels)
    if differs.any():
        first = int(differs.argmax())
        raise MismatchError(
            f"{_what(dataset, store)}: sample {dataset.keys[first]!r} has label "
            f"{store.labels[places[first]]} there and {dataset.labels[first]} here: use the "
            f"store's dataset, {_OTHER_NUMBERS}"
        )
    rows = np.full(len(store), -1)
    rows[places] = np.arange(len(dataset))
    present = rows >= 0
    placed = replace(
        dataset,
        labels=np.where(present, dataset.labels[rows], np.int32(-1)),
        keys=np.where(present, store.keys, "").tolist(),
        load=partial(_load, dataset.name, dataset.load, rows),
    )
    if present.all():
        return Aligned(placed, None, [])
    note = f"{dataset.name}: {len(dataset):,} of {len(store):,} samples are here, matched by key"
    return Aligned(placed, np.flatnonzero(present), [note])


def _load(name: str, load: Callable[[int], Any], rows: Indices, index: int) -> Any:
    """Load item ``index`` of the store's order; a plain function, so that workers can have it."""
    if rows[index] < 0:
        raise InputError(f"{name}: sample {index} of the store is not here")
    return load(int(rows[index]))


def _refuse_keyless(dataset: ImageDataset, store: LogitStore) -> None:
    keyless = [dataset.name] if dataset.keys is None else []
    keyless += [store.url] if store.keys is None else []
    if keyless:
        raise InputError(
            f"--match-by key: {' and '.join(keyless)} has no sample keys (imagefolder has them, "
            "and what a factory returns with a list `keys`): use --match-by index"
        )


def _refuse_strangers(dataset: ImageDataset, store: LogitStore, places: Indices) -> None:
    """Refuse keys that the store does not have."""
    strangers = np.flatnonzero(places < 0)
    if len(strangers) == 0:
        return
    assert dataset.keys is not None
    assert store.keys is not None
    listed = ", ".join(repr(dataset.keys[int(index)]) for index in strangers[:3])
    raise MismatchError(
        f"{_what(dataset, store)}: {len(strangers):,} of {len(dataset):,} samples are not in the "
        f"store ({listed}{', …' if len(strangers) > 3 else ''}; its keys are like "
        f"{store.keys[0]!r}): leave them out of the dataset, or build a store that has them"
    )


def _places(known: NDArray[Any], keys: Sequence[str]) -> Indices:
    """Return where each of ``keys`` stands among the known ones, -1 for nowhere."""
    index = {key: place for place, key in enumerate(known.tolist())}
    places = list(map(index.get, keys))  # a third faster than with a default
    return np.array([-1 if place is None else place for place in places], np.int64)


def _disagree(stored: NDArray[np.int32], labels: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Return where both labels are known and differ."""
    differs: NDArray[np.bool_] = (stored != labels) & (stored >= 0) & (labels >= 0)
    return differs


def _what(dataset: ImageDataset, store: LogitStore) -> str:
    return f"{store.url} was built from {store.meta.dataset.name}, this is {dataset.name}"


_WAYS: dict[str, Callable[[ImageDataset, LogitStore], Aligned]] = {
    "index": _by_index,
    "key": _by_key,
}
