"""Is this the dataset, in this order and preparation, that the teacher saw?  Else refuse.

A student that is shown sample 17 while it gets sample 18's logits trains, and trains badly; nothing
else would ever tell.
"""

from __future__ import annotations

from dataclasses import replace

from logitstore.choice import MAX_KL
from logitstore.continued import Continued
from logitstore.encodings import TopK
from logitstore.errors import InputError, MismatchError
from logitstore.opening import chosen_views, expect_root, open_store
from logitstore.precompute.canaries import check_canaries
from logitstore.precompute.datasets import ImageDataset, open_dataset
from logitstore.precompute.views import Views, parse_views, views_of
from logitstore.reader import Snapshot
from logitstore.schema import SnapshotMeta, ViewCard
from logitstore.stores import LogitStore
from trainer.classes import MAP_IT, Classes, ClassMap, map_for, read_class_map, renumbered
from trainer.config import TrainConfig
from trainer.data import Indices, Source
from trainer.matching import align


def open_source(config: TrainConfig, token: str | None) -> tuple[Source, list[str]]:
    """Open the dataset and, if there is one, the store, and check that they belong together.

    The second value holds warnings.  Raises MismatchError naming what differs, InputError,
    NotFound, Denied, Unreachable or Damaged.
    """
    dataset = open_dataset(config.data)
    own = parse_views(config.augment or "eval", config.size, config.seed)
    if config.store is None:
        classes = dataset.classes or int(dataset.labels.max(initial=0)) + 1
        source = Source(dataset=dataset, views=own, classes=classes, view_count=1, fresh=True)
        return source, []
    store = open_store(config.store, token, patience=config.patience)
    snapshot = chosen_views(store, config.snapshot)
    if config.expect_root is not None:
        expect_root(snapshot, config.expect_root)
    _refuse_missing_tail(snapshot, config)
    source, notes = bind(
        store,
        snapshot,
        dataset,
        unbound=own if config.allow_unbound else None,
        allow_mismatch=config.allow_mismatch,
        match_by=config.match_by,
        class_map=read_class_map(config.class_map),
    )
    if snapshot.meta.view is None or (config.augment is None and config.size is None):
        return source, notes
    return _shown_otherwise(source, snapshot.meta.view, config), notes


def _refuse_missing_tail(snapshot: Snapshot | Continued, config: TrainConfig) -> None:
    """A topk row knows its tail's mass at T=1 only; at T=4 the tail may be most of the mass."""
    temperature = config.resolved().temperature
    if snapshot.meta.encoding.name != TopK.name or temperature in (None, 1):
        return
    measured = {d.temperature: d.mean for d in snapshot.meta.fidelity.divergence}
    lost = measured.get(temperature)
    if lost is None or lost > MAX_KL:
        said = "was not measured" if lost is None else f"is {lost:.2g} nats"
        raise InputError(
            f"snapshot {snapshot.name!r} keeps {snapshot.meta.encoding.parameters['k']} of "
            f"{snapshot.meta.classes} classes: its loss at temperature {temperature:g} {said}, at "
            f"most {MAX_KL:g} is usable; use --temperature 1, or a snapshot built with "
            f"--encoding auto --at-temperature {temperature:g}"
        )


def _shown_otherwise(source: Source, card: ViewCard, config: TrainConfig) -> Source:
    """The source with the student's own size or augmentation."""
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
    snapshot: Snapshot | Continued,
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
    aligned = align(dataset, store, match_by=match_by, class_map=class_map)
    dataset, samples = aligned.dataset, aligned.samples
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
        samples=samples,
        class_map=class_map,
        snapshot=snapshot,
        root=snapshot.root,
    )
    return source, aligned.notes + warnings


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


def open_validation(spec: str, like: Source) -> Source:
    """The validation split, prepared as the training images are but for what is random.

    Its classes are numbered as the training data's.
    """
    classes = Classes(owner=like.dataset.name, count=like.classes, names=like.dataset.class_names)
    remedy = MAP_IT if like.snapshot is not None else "validate on data that have them"
    dataset = open_dataset(spec)
    class_map = map_for(dataset, like.class_map)
    dataset = renumbered(dataset, classes, class_map, remedy=remedy)
    if not (dataset.labels >= 0).any():
        raise InputError(f"--val {spec}: no sample has a label; drop --val or use a labelled split")
    views = like.views.evaluation()
    return Source(dataset=dataset, views=views, classes=like.classes, view_count=1)
