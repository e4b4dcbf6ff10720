"""Is this the dataset, in this order and preparation, that the teacher saw?  Else refuse.

A student that is shown sample 17 while it gets sample 18's logits trains, and trains badly; nothing
else would ever tell.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from logitstore.errors import InputError, MismatchError
from logitstore.opening import chosen_snapshot, expect_root, open_store
from logitstore.precompute.datasets import ImageDataset, check_labels, open_dataset
from logitstore.precompute.views import Views, check_canaries, parse_view_spec, views_of
from logitstore.reader import Snapshot
from logitstore.stores import LogitStore
from logitstore.writer import Samples
from trainer.config import TrainConfig
from trainer.data import Source


def open_source(config: TrainConfig, token: str | None) -> tuple[Source, list[str]]:
    """Open the dataset and, if there is one, the store, and check that they belong together.

    The second value holds warnings.  Raises MismatchError naming what differs, InputError,
    NotFound, Denied, Unreachable or Damaged.
    """
    dataset = open_dataset(config.data)
    views = Views(parse_view_spec(config.view_spec or "eval"), config.size, config.seed)
    if config.store is None:
        classes = dataset.classes or int(dataset.labels.max(initial=0)) + 1
        source = Source(dataset=dataset, views=views, classes=classes, view_count=config.epochs)
        return source, []
    store = open_store(config.store, token, patience=config.patience)
    snapshot = chosen_snapshot(store, config.snapshot)
    if config.expect_root is not None:
        expect_root(snapshot, config.expect_root)
    return bind(store, snapshot, dataset, unbound=views if config.allow_unbound else None)


def bind(
    store: LogitStore, snapshot: Snapshot, dataset: ImageDataset, *, unbound: Views | None = None
) -> tuple[Source, list[str]]:
    """Check a dataset against a snapshot; ``unbound`` are the views to use if it records none.

    MismatchError names what differs first: length, order, labels, keys, classes or images.
    """
    _check_samples(store, dataset)
    _check_classes(store, dataset)
    card = snapshot.meta.view
    if card is not None:
        views = views_of(card)
        warnings = check_canaries(card, dataset, views)
    elif unbound is not None:
        views = unbound
        warnings = [f"snapshot {snapshot.name!r} does not say what its images looked like"]
    else:
        raise MismatchError(
            f"snapshot {snapshot.name!r} of {store.url} was imported: nothing in it tells whether "
            "its logits belong to these images; if you know that they do, pass --allow-unbound"
        )
    source = Source(
        dataset=dataset,
        views=views,
        classes=store.meta.classes,
        view_count=snapshot.meta.views,
        first_view=0 if card is None else card.first_view,
        snapshot=snapshot,
        root=snapshot.root,
    )
    return source, warnings


def _check_samples(store: LogitStore, dataset: ImageDataset) -> None:
    there, here = store.meta.dataset, dataset.samples().card()
    if (there.length, there.sha256) == (here.length, here.sha256):
        return
    what = f"{store.url} was built from {there.name}, this is {here.name}"
    if there.length != here.length:
        raise MismatchError(
            f"{what}: {there.length} samples there, {here.length} here: use the store's dataset "
            "and split (a subset of it is chosen with --limit)"
        )
    if (store.keys is None) != (dataset.keys is None):
        # Logits computed elsewhere come with labels but without keys: then only labels can agree.
        labels_only = Samples(dataset.name, dataset.labels).card()
        if store.keys is None and labels_only.sha256 == there.sha256:
            return
        with_keys = "the store" if dataset.keys is None else "the dataset"
        raise MismatchError(f"{what}: only {with_keys} has sample keys, and the labels differ")
    ours, theirs = _identities(dataset.labels, dataset.keys), _identities(store.labels, store.keys)
    if sorted(ours) == sorted(theirs):
        raise MismatchError(
            f"{what}: the same samples in another order: bring the dataset into the store's order"
        )
    first = next(i for i, (a, b) in enumerate(zip(theirs, ours, strict=True)) if a != b)
    raise MismatchError(
        f"{what}: sample {first} is (key, label) {theirs[first]} there and {ours[first]} here: "
        "use the store's dataset"
    )


def _identities(labels: NDArray[np.int32], keys: Iterable[str] | None) -> list[tuple[str, int]]:
    """(key, label) of every sample; "" where there are no keys."""
    values = labels.tolist()
    names = [""] * len(values) if keys is None else [str(key) for key in keys]
    return list(zip(names, values, strict=True))


def _check_classes(store: LogitStore, dataset: ImageDataset) -> None:
    there = store.meta
    if dataset.classes is not None and dataset.classes != there.classes:
        raise MismatchError(
            f"{store.url} has {there.classes} classes, the dataset {dataset.name} has "
            f"{dataset.classes}: use the store's dataset"
        )
    check_labels(dataset, there.classes)
    theirs, ours = there.class_names, dataset.class_names
    if theirs is None or ours is None:
        return
    for number, (before, now) in enumerate(zip(theirs, ours, strict=True)):
        if before != now:
            raise MismatchError(
                f"{store.url}: class {number} is {before!r} there and {now!r} in {dataset.name}: "
                "use the store's dataset"
            )


def open_validation(spec: str, like: Source) -> Source:
    """The validation split, prepared as the training images are."""
    dataset = open_dataset(spec)
    check_labels(dataset, like.classes)
    if not (dataset.labels >= 0).any():
        raise InputError(f"--val {spec}: no sample has a label; drop --val or use a labelled split")
    return Source(dataset=dataset, views=like.views, classes=like.classes, view_count=1)
