"""May this build begin or go on here?  Refuses before anything is written, and discards.

A store grows snapshot by snapshot under one dataset card; an unfinished build goes on only with an
equal plan; a committed snapshot is never changed.
"""

from __future__ import annotations

import numpy as np

from logitstore.errors import Damaged, InputError, MismatchError, NotFound, UnknownName
from logitstore.format.cards import SnapshotMeta, SnapshotPlan, StoreMeta, ViewCard
from logitstore.format.commits import (
    ATTRIBUTE,
    Commit,
    ObjectEntry,
    build_folder,
    commit_key,
    group_attributes,
    group_document,
    plan_key,
    root_of,
    snapshot_folder,
)
from logitstore.format.documents import Document, first_difference
from logitstore.format.grid import FLAT_CHUNK_ROWS, FLAT_SHARD_ROWS
from logitstore.format.samples import Samples
from logitstore.reading.snapshot import Snapshot
from logitstore.storage import Storage, open_storage
from logitstore.storage.local import is_temporary
from logitstore.writing.writer import SnapshotWriter
from logitstore.writing.zarr_writer import WriterStore, create_array


def check_target(storage: Storage, meta: StoreMeta, plan: SnapshotPlan, *, fresh: bool) -> None:
    """Refuse, before anything is written, what this build could not lawfully continue.

    MismatchError names the field and both values when the store holds another dataset, or a
    finished or unfinished snapshot of that name was built from something else.  Where a dataset
    lies, its name, may differ.
    """
    where = storage.url
    if storage.size("zarr.json") is None:
        other = next(filter(lambda key: not is_temporary(key), storage.keys()), None)
        if other is None:
            return
        if storage.size("zarr.json") is None:  # else another build has just begun it
            raise InputError(
                f"{where}: not a logit store, but not empty either ({other}); use another --out"
            )
    only_this = {*storage.names("snapshots/"), *storage.names(".build/")} <= {plan.name}
    commit = _commit_of(storage, plan.name)
    if not (fresh and only_this and commit is None):
        renamed = meta.dataset.model_copy(update={"name": _stored_meta(storage).dataset.name})
        _refuse_difference(
            _stored_meta(storage),
            meta.model_copy(update={"dataset": renamed}),
            f"{where} holds another dataset",
            "use another --out",
        )
        _refuse_other_images(storage, plan)
    if commit is not None:
        done = Snapshot(storage, plan.name, commit).meta
        built = SnapshotPlan(**done.model_dump(exclude={"fidelity", "top1"}))
        _refuse_more_views(where, built, plan)
        _refuse_difference(
            built,
            plan,
            f"{where}: snapshot {plan.name!r} is committed and was built differently",
            f"a committed snapshot is never changed: use another {_name_flag(plan)}",
        )
    elif not fresh:
        unfinished = _unfinished_plan(storage, plan.name)
        if unfinished is not None:
            _refuse_difference(
                unfinished,
                plan,
                f"{where}: an unfinished build of {plan.name!r} was begun differently",
                "give the same arguments, start over with --fresh, or use another "
                f"{_name_flag(plan)}",
            )


def continued_by(storage: Storage, plan: SnapshotPlan) -> SnapshotMeta | None:
    """The committed snapshot whose views end where those of a plan, of the same teacher, begin."""
    for name in storage.names("snapshots/"):
        commit = _commit_of(storage, name)
        meta = None if commit is None else Snapshot(storage, name, commit).meta
        if (
            meta is not None
            and meta.view is not None
            and plan.view is not None
            and (meta.teacher, meta.transcoded, meta.combined) == (plan.teacher, None, None)
            and _sequence(meta.view) == _sequence(plan.view)
            and meta.view.first_view + meta.views == plan.view.first_view
        ):
            return meta
    return None


def _refuse_more_views(where: str, built: SnapshotPlan, plan: SnapshotPlan) -> None:
    """A committed snapshot does not grow: its further views become a snapshot beside it."""
    if built.view is None or plan.view is None or plan.views <= built.views:
        return
    first = built.view.first_view + built.views
    raise MismatchError(
        f"{where}: snapshot {plan.name!r} is committed with {built.views} views and never changed; "
        f"build the other {plan.views - built.views} beside it: --first-view {first} "
        f"--views {plan.views - built.views}, and train on --snapshot "
        f"{plan.name}+{plan.name}-view{first}"
    )


def _refuse_other_images(storage: Storage, plan: SnapshotPlan) -> None:
    """Labels may agree where images do not: committed snapshots of the same views tell."""
    if plan.view is None:
        return
    for name in storage.names("snapshots/"):
        commit = _commit_of(storage, name)
        card = None if commit is None else Snapshot(storage, name, commit).meta.view
        if card is None or _sequence(card) != _sequence(plan.view):
            continue
        there = {(canary.view, canary.sample): canary for canary in card.canaries}
        for canary in plan.view.canaries:
            other = there.get((canary.view, canary.sample))
            if other is not None and not canary.resembles(other):
                raise MismatchError(
                    f"{storage.url}: sample {canary.sample} is another image than the one that "
                    f"snapshot {name!r} was built from: use that dataset, or another --out"
                )


def _name_flag(plan: SnapshotPlan) -> str:
    return "--snapshot name" if plan.transcoded is None else "--name"


def _sequence(card: ViewCard) -> tuple[object, ...]:
    """What defines the sequence of views that a card's views are part of."""
    return card.spec, card.size, card.seed, card.mix


def _stored_meta(storage: Storage) -> StoreMeta:
    where = f"{storage.url}/zarr.json"
    return StoreMeta.parse(where, group_attributes(where, storage.get("zarr.json")))


def _commit_of(storage: Storage, name: str) -> bytes | None:
    try:
        return storage.get(commit_key(name))
    except NotFound:
        return None


def _unfinished_plan(storage: Storage, name: str) -> SnapshotPlan | None:
    where = f"{storage.url}: {plan_key(name)}"
    try:
        data = storage.get(plan_key(name))
    except NotFound:
        return None
    plan = SnapshotPlan.parse(f"{where} (--fresh forgets it)", data)
    if plan.to_bytes() != data:
        raise MismatchError(
            f"{where} was begun by another version of logitstore, whose rows may have other bytes: "
            "finish it with that version, or start over with --fresh"
        )
    return plan


def _refuse_difference(old: Document, new: Document, what: str, remedy: str) -> None:
    difference = first_difference(old, new)
    if difference:
        field, before, now = difference
        raise MismatchError(f"{what}: {field} is {before!r} there and {now!r} here; {remedy}")


def open_writer(
    storage: Storage, meta: StoreMeta, samples: Samples, plan: SnapshotPlan, *, fresh: bool = False
) -> SnapshotWriter:
    """Create or resume a snapshot in a new or existing store.

    The same plan goes on where it stopped; ``fresh`` forgets an unfinished build first.  Raises
    what ``check_target`` raises, before anything is written.
    """
    check_target(storage, meta, plan, fresh=fresh)
    commit = _commit_of(storage, plan.name)
    if commit is not None:
        writer = SnapshotWriter(storage, plan, {})
        writer.root = root_of(commit)
        return writer
    if fresh:
        discard(storage, plan.name)
    document = group_document({ATTRIBUTE: meta.model_dump(mode="json")})
    if not storage.create("zarr.json", document):
        # The dataset may have been found in a folder of another name: the first one stands.
        check_target(storage, meta, plan, fresh=False)
        document = storage.get("zarr.json")
    writer = SnapshotWriter(storage, plan, _store_entries(storage, document, samples))
    writer.start()
    return writer


def _store_entries(storage: Storage, document: bytes, samples: Samples) -> dict[str, ObjectEntry]:
    """Entries of the store-level objects: from a commit if there is one, else written now."""
    for name in storage.names("snapshots/"):
        data = _commit_of(storage, name)
        if data is None:
            continue
        commit = Commit.open(name, data, name)
        entries = {
            key: entry
            for key, entry in commit.objects.items()
            if not key.startswith(f"{snapshot_folder(name)}/")
        }
        for key, entry in entries.items():
            if ObjectEntry.of(storage.get(key)) != entry:
                raise Damaged(f"{storage.url}: {key} is not what the commit of {name!r} lists")
        return entries
    store = WriterStore(storage)
    rows = (FLAT_SHARD_ROWS, FLAT_CHUNK_ROWS)
    shape = (len(samples.labels),)
    create_array(store, "labels", "<i4", shape, rows)[:] = samples.labels
    if samples.keys is not None:
        create_array(store, "keys", None, shape, rows)[:] = np.array(samples.keys, dtype="T")
    group = group_document({})
    storage.put("snapshots/zarr.json", group)
    return {
        "zarr.json": ObjectEntry.of(document),
        "snapshots/zarr.json": ObjectEntry.of(group),
        **store.entries,
    }


def discard(storage: Storage, name: str) -> None:
    """Delete an unfinished build; a committed snapshot is refused with InputError.

    The store goes too if nothing else is in it.
    """
    if storage.size(commit_key(name)) is not None:
        raise InputError(
            f"{storage.url}: snapshot {name!r} is committed; only unfinished builds are discarded"
        )
    doomed = list(storage.keys(f"{snapshot_folder(name)}/"))
    doomed += storage.keys(f"{build_folder(name)}/")
    if {*storage.names("snapshots/"), *storage.names(".build/")} <= {name}:
        doomed += [*storage.keys("labels/"), *storage.keys("keys/")]
        doomed += ["snapshots/zarr.json", "zarr.json"]
    for key in doomed:
        storage.delete(key)
    storage.sweep(emptied="")


def abandon(location: str, name: str) -> None:
    """Discard the unfinished build of a snapshot in the store at a path.

    Raises UnknownName where no such build is unfinished, InputError for a committed snapshot.
    """
    storage = open_storage(location)
    unfinished = sorted(storage.names(".build/"))
    committed = storage.size(commit_key(name)) is not None
    if name not in unfinished and not committed:
        raise UnknownName.among(f"unfinished build in {storage.url}", name, unfinished)
    discard(storage, name)
