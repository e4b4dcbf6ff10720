"""Bind a dataset to a store's rows, or refuse it where the teacher did not see these images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from logitstore.errors import InputError, MismatchError
from logitstore.format.cards import SnapshotMeta, ViewCard
from logitstore.precompute.data.classes import (
    MAP_IT,
    Classes,
    ClassMap,
    map_for,
    read_class_map,
    renumbered,
)
from logitstore.precompute.data.images import ImageDataset
from logitstore.precompute.data.sources import open_dataset
from logitstore.precompute.views import Views, parse_views, views_of
from logitstore.precompute.views.canaries import check_canaries
from logitstore.reading.ensemble import Teacher
from logitstore.reading.opening import open_store
from logitstore.reading.store import LogitStore
from logitstore.trainer.config.settings import TrainConfig
from logitstore.trainer.config.specs import split_share
from logitstore.trainer.data.align import align
from logitstore.trainer.data.requirements import open_suitable_teachers, refuse_share
from logitstore.trainer.data.samples import held_out
from logitstore.trainer.data.source import Indices, Source
from logitstore.trainer.data.specialist import specialised
from logitstore.trainer.data.teaching import TeachingSchedule


def open_source(config: TrainConfig, token: str | None) -> tuple[Source, list[str]]:
    """Open the dataset and, if there is one, the store, and check that they belong together.

    The second value holds warnings.  Raises MismatchError naming what differs, InputError,
    NotFound, Denied, Unreachable or Damaged.
    """
    dataset = open_dataset(config.data)
    views = parse_views(config.augment or "eval", config.size, config.seed)
    if config.store is None:
        class_map = None
        if config.specialist is not None:
            dataset, class_map = specialised(dataset, config.specialist)
        source = Source(
            dataset=dataset,
            views=views,
            classes=dataset.class_count,
            fresh=True,
            class_map=class_map,
        )
        return source, []
    store = open_store(config.store, token, patience=config.patience)
    teaching = open_suitable_teachers(store, config, token)
    source, notes = bind(
        store,
        teaching.first,
        dataset,
        unbound=views if config.allow_unbound else None,
        allow_mismatch=config.allow_mismatch,
        match_by=config.match_by,
        class_map=read_class_map(config.class_map),
    )
    source = replace(source, teaching=teaching)
    card = teaching.first.meta.view
    if card is None or (config.augment is None and config.size is None):
        return source, notes
    return _with_own_views(source, card, config), notes


def _with_own_views(source: Source, card: ViewCard, config: TrainConfig) -> Source:
    """Return the source with the student's own size or augmentation."""
    if config.augment is None:
        return replace(source, views=views_of(card, config.size))
    if source.views.random:
        raise InputError(
            f"snapshot {config.snapshot or ''!r} holds the teacher's answers to random views: with "
            "another --augment they would be answers to other images; drop --augment to see the "
            "teacher's views, or use a snapshot built with --view-spec eval"
        )
    views = parse_views(config.augment, config.size or card.size, config.seed)
    return replace(source, views=views, fresh=True)


def bind(
    store: LogitStore,
    snapshot: Teacher,
    dataset: ImageDataset,
    *,
    unbound: Views | None = None,
    allow_mismatch: bool = False,
    match_by: str = "index",
    class_map: ClassMap | None = None,
) -> tuple[Source, list[str]]:
    """Check a dataset against a snapshot; ``unbound`` are the views to use if it records none.

    MismatchError names what differs first: length, order, labels, keys, classes or images;
    ``allow_mismatch`` makes the last one a note.
    """
    dataset, samples, notes = align(dataset, store, match_by=match_by, class_map=class_map)
    card = snapshot.meta.view
    if card is not None:
        views = views_of(card)
        if samples is not None and views.mix is not None:
            raise MismatchError(
                f"{dataset.name} lacks {len(dataset) - len(samples):,} of the {len(dataset):,} "
                f"samples, and snapshot {snapshot.name!r} blends each with another one: give the "
                "whole dataset (a part of it is chosen with --limit)"
            )
        warnings = _checked_images(snapshot.meta, card, dataset, views, samples, allow_mismatch)
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
        fresh=card is None,
        subset=samples,
        class_map=class_map,
        teaching=TeachingSchedule((snapshot,)),
    )
    return source, notes + warnings


def _checked_images(
    meta: SnapshotMeta,
    card: ViewCard,
    dataset: ImageDataset,
    views: Views,
    samples: Indices | None,
    allow: bool,
) -> list[str]:
    try:
        return check_canaries(card, dataset, views, packages=meta.packages, samples=samples)
    except MismatchError as error:
        if not allow:
            raise MismatchError(
                f"{error}; --allow-mismatch trains nevertheless, and writes that down"
            ) from None
        return [f"allowed mismatch: {error}"]


def open_validation(spec: str, like: Source, *, flag: str = "--val") -> Source:
    """Open data to measure on, prepared as the training images are but for what is random.

    Their classes are numbered as the training data's.
    """
    classes = Classes(owner=like.dataset.name, count=like.classes, names=like.dataset.class_names)
    remedy = MAP_IT if like.snapshot is not None else "validate on data that have them"
    dataset = open_dataset(spec)
    class_map = map_for(dataset, like.class_map)
    dataset = renumbered(dataset, classes, class_map, remedy=remedy)
    if not (dataset.labels >= 0).any():
        raise InputError(f"{flag} {spec}: no sample has a label; drop {flag} or use labelled data")
    return Source(dataset=dataset, views=like.views.evaluation(), classes=like.classes)


def open_held_out(
    run: Path, config: TrainConfig, val: str, untyped: Path | None = None
) -> tuple[ImageDataset, Indices]:
    """Open the dataset of a run that held a share of it out, and say which samples these are.

    ``untyped`` is the file that names the data, None if it is trusted.  InputError if the run held
    nothing out, or another share, or samples in another order.
    """
    if config.val != val:
        raise InputError(
            f"{val}: {run} was validated on {config.val or 'nothing'}: give that, or DATA"
        )
    if config.match_by != "index":
        raise InputError(
            f"{val}: {run} held samples out of its store's order, and its data come in another "
            "(--match-by key): give DATA"
        )
    dataset = open_dataset(config.data, untyped, f"DATA instead of {val}")
    share = split_share(val)
    assert share is not None
    training, held = held_out(np.arange(len(dataset)), share, config.limit_seed)
    refuse_share(val, training, held)
    return dataset, held


def refuse_other_names(store: LogitStore, names: Sequence[str] | None, owner: str) -> None:
    """Refuse a store that numbers its classes otherwise: its logits could not be compared."""
    theirs = store.meta.class_names
    if names is not None and theirs is not None and tuple(names) != tuple(theirs):
        raise MismatchError(
            f"{store.url} and {owner} number their classes differently: give a store with the "
            "classes of the run's"
        )


def refuse_other_root(root: str, teacher: Teacher) -> None:
    """Refuse the rows of another teacher than the one that a dataset was bound to."""
    if root != teacher.root:
        raise MismatchError(
            f"the loader's LogitDataset belongs to the snapshot with root {root}, "
            f"{teacher.name!r} has root {teacher.root}: give both the same snapshot"
        )
