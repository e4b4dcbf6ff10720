"""The store that a build writes to: it is read once and then asked for every snapshot.

A store grows snapshot by snapshot under one dataset card; an unfinished build goes on only with an
equal plan; a committed snapshot is never changed.  Refusals come before anything is written.
Another build may work on the store after it was read: what must not be lost is created only if it
is absent, and where that fails the store is read again.
"""

from __future__ import annotations

import numpy as np

from logitstore.errors import Damaged, InputError, MismatchError, NotFound
from logitstore.format.cards import Samples, SnapshotMeta, SnapshotPlan, StoreMeta, ViewCard
from logitstore.format.commits import (
    ATTRIBUTE,
    Commit,
    ObjectEntry,
    commit_key,
    group_attributes,
    group_document,
    plan_key,
    root_of,
    snapshot_folder,
)
from logitstore.format.documents import Document, first_difference
from logitstore.format.grid import FLAT_CHUNK_ROWS, FLAT_SHARD_ROWS
from logitstore.reading.snapshot import Snapshot
from logitstore.storage import Storage
from logitstore.storage.local import is_temporary
from logitstore.writing.discard import discard
from logitstore.writing.writer import SnapshotWriter
from logitstore.writing.zarr_writer import WriterStore, create_array


class Target:
    """A store, new or not, as it was when it was read, and the dataset that a build has for it.

    ``meta`` and ``samples`` are the build's.  ``commits`` and ``plans`` are the bytes of the
    store's commits and of its unfinished builds' plans, by snapshot name.
    """

    def __init__(self, storage: Storage, meta: StoreMeta, samples: Samples) -> None:
        self.storage, self.meta, self.samples = storage, meta, samples
        self.commits: dict[str, bytes] = {}
        self.plans: dict[str, bytes] = {}
        self._document: bytes | None = None
        self._names: set[str] = set()
        self._snapshots: dict[str, Snapshot] = {}
        self._entries: dict[str, ObjectEntry] | None = None

    @classmethod
    def read(cls, storage: Storage, meta: StoreMeta, samples: Samples) -> Target:
        """Read what the store holds; InputError if the folder has files but is no store."""
        target = cls(storage, meta, samples)
        target._read()
        return target

    def _read(self) -> None:
        self._snapshots, self._entries = {}, None
        self._document = _get(self.storage, "zarr.json")
        if self._document is None:
            self._refuse_other_files()
        snapshots, builds = self.storage.names("snapshots/"), self.storage.names(".build/")
        self._names = {*snapshots, *builds}
        self.commits = _present({name: _get(self.storage, commit_key(name)) for name in snapshots})
        self.plans = _present({name: _get(self.storage, plan_key(name)) for name in builds})

    def refuse(self, plan: SnapshotPlan, *, fresh: bool = False) -> None:
        """Refuse a snapshot that could not be begun, or gone on with, in this store.

        MismatchError names the field and both values when the store holds another dataset, or a
        finished or unfinished snapshot of that name was built from something else.  Where a dataset
        lies, its name, may differ.  ``fresh`` is for a build that forgets the unfinished one.
        """
        if self._document is None:
            return
        committed = plan.name in self.commits
        if committed or not (fresh and self._names <= {plan.name}):
            self._refuse_other_dataset(self._document)
            self._refuse_other_images(plan)
        if committed:
            self._refuse_other_commit(plan)
        elif not fresh:
            self._refuse_other_plan(plan)

    def continued_by(self, plan: SnapshotPlan) -> SnapshotMeta | None:
        """Return the committed snapshot whose views end where those of a plan begin, if any.

        It is of the same teacher and of the same sequence of views.
        """
        for name in self.commits:
            meta = self._snapshot(name).meta
            if (
                meta.view is not None
                and plan.view is not None
                and (meta.teacher, meta.transcoded, meta.combined) == (plan.teacher, None, None)
                and _sequence(meta.view) == _sequence(plan.view)
                and meta.view.first_view + meta.views == plan.view.first_view
            ):
                return meta
        return None

    def begin(self, plan: SnapshotPlan) -> dict[str, ObjectEntry]:
        """Create the store if there is none; return the entries of what its snapshots share."""
        if self._entries is None:
            document = group_document({ATTRIBUTE: self.meta.model_dump(mode="json")})
            if not self.storage.create("zarr.json", document):
                # The dataset may have been found in a folder of another name: the first one stands.
                document = self.storage.get("zarr.json")
                if document != self._document:
                    self.read_again(plan)
            self._document = document
            self._entries = self._shared(document)
        return self._entries

    def read_again(self, plan: SnapshotPlan) -> None:
        """Read the store once more, after another build has changed it, and refuse as before."""
        self._read()
        self.refuse(plan)

    def _snapshot(self, name: str) -> Snapshot:
        if name not in self._snapshots:
            self._snapshots[name] = Snapshot(self.storage, name, self.commits[name])
        return self._snapshots[name]

    def _refuse_other_files(self) -> None:
        other = next((key for key in self.storage.keys("") if not is_temporary(key)), None)
        if other is None:
            return
        self._document = _get(self.storage, "zarr.json")  # another build may have just begun it
        if self._document is None:
            raise InputError(
                f"{self.storage.url}: not a logit store, but not empty either ({other}); use "
                "another --out"
            )

    def _refuse_other_dataset(self, document: bytes) -> None:
        where = f"{self.storage.url}/zarr.json"
        stored = StoreMeta.parse(where, group_attributes(where, document))
        renamed = self.meta.dataset.model_copy(update={"name": stored.dataset.name})
        _refuse_difference(
            stored,
            self.meta.model_copy(update={"dataset": renamed}),
            f"{self.storage.url} holds another dataset",
            "use another --out",
        )

    def _refuse_other_images(self, plan: SnapshotPlan) -> None:
        """Refuse other images under the same labels: committed snapshots of these views tell."""
        if plan.view is None:
            return
        for name in self.commits:
            card = self._snapshot(name).meta.view
            if card is None or _sequence(card) != _sequence(plan.view):
                continue
            known = {(canary.view, canary.sample): canary for canary in card.canaries}
            for canary in plan.view.canaries:
                other = known.get((canary.view, canary.sample))
                if other is not None and not canary.resembles(other):
                    raise MismatchError(
                        f"{self.storage.url}: sample {canary.sample} is another image than the one "
                        f"that snapshot {name!r} was built from: use that dataset, or another --out"
                    )

    def _refuse_other_commit(self, plan: SnapshotPlan) -> None:
        meta, where = self._snapshot(plan.name).meta, self.storage.url
        built = SnapshotPlan(**meta.model_dump(exclude={"fidelity", "top1"}))
        if built.view is not None and plan.view is not None and plan.views > built.views:
            first, more = built.view.first_view + built.views, plan.views - built.views
            raise MismatchError(
                f"{where}: snapshot {plan.name!r} is committed with {built.views} views and never "
                f"changed; build the other {more} beside it: --first-view {first} --views {more}, "
                f"and train on --snapshot {plan.name}+{plan.name}-view{first}"
            )
        _refuse_difference(
            built,
            plan,
            f"{where}: snapshot {plan.name!r} is committed and was built differently",
            f"a committed snapshot is never changed: use another {_name_option(plan)}",
        )

    def _refuse_other_plan(self, plan: SnapshotPlan) -> None:
        data = self.plans.get(plan.name)
        if data is None:
            return
        where = f"{self.storage.url}: {plan_key(plan.name)}"
        begun = SnapshotPlan.parse(f"{where} (--fresh forgets it)", data)
        if begun.to_bytes() != data:
            raise MismatchError(
                f"{where} was begun by another version of logitstore, whose rows may have other "
                "bytes: finish it with that version, or start over with --fresh"
            )
        _refuse_difference(
            begun,
            plan,
            f"{self.storage.url}: an unfinished build of {plan.name!r} was begun differently",
            f"give the same arguments, start over with --fresh, or use another "
            f"{_name_option(plan)}",
        )

    def _shared(self, document: bytes) -> dict[str, ObjectEntry]:
        """Return the entries of what snapshots share; it is written if no commit lists it."""
        for name in self.commits:
            own = f"{snapshot_folder(name)}/"
            objects = Commit.open(name, self.commits[name], name).objects.items()
            entries = {key: entry for key, entry in objects if not key.startswith(own)}
            for key, entry in entries.items():
                if ObjectEntry.of(self.storage.get(key)) != entry:
                    raise Damaged(
                        f"{self.storage.url}: {key} is not what the commit of {name!r} lists"
                    )
            return entries
        store = WriterStore(self.storage)
        rows = (FLAT_SHARD_ROWS, FLAT_CHUNK_ROWS)
        shape = (len(self.samples.labels),)
        create_array(store, "labels", "<i4", shape, rows)[:] = self.samples.labels
        if self.samples.keys is not None:
            create_array(store, "keys", None, shape, rows)[:] = np.array(self.samples.keys, "T")
        group = group_document({})
        self.storage.put("snapshots/zarr.json", group)
        return {
            "zarr.json": ObjectEntry.of(document),
            "snapshots/zarr.json": ObjectEntry.of(group),
            **store.entries,
        }


def open_writer(target: Target, plan: SnapshotPlan, *, fresh: bool = False) -> SnapshotWriter:
    """Create or resume a snapshot in a new or existing store.

    The same plan goes on where it stopped; ``fresh`` forgets an unfinished build first.  Raises
    what ``Target.refuse`` raises, before anything is written.
    """
    target.refuse(plan, fresh=fresh)
    commit = target.commits.get(plan.name)
    if commit is not None:
        writer = SnapshotWriter(target.storage, plan, {})
        writer.root = root_of(commit)
        return writer
    if fresh:
        discard(target.storage, plan.name)
    writer = SnapshotWriter(target.storage, plan, target.begin(plan))
    if writer.start():
        return writer
    target.read_again(plan)
    return open_writer(target, plan)


def _refuse_difference(old: Document, new: Document, what: str, remedy: str) -> None:
    difference = first_difference(old, new)
    if difference:
        field, before, now = difference
        raise MismatchError(f"{what}: {field} is {before!r} there and {now!r} here; {remedy}")


def _name_option(plan: SnapshotPlan) -> str:
    return "--snapshot name" if plan.transcoded is None else "--name"


def _sequence(card: ViewCard) -> tuple[object, ...]:
    """Return what defines the sequence of views that a card's views are part of."""
    return card.spec, card.size, card.seed, card.mix


def _get(storage: Storage, key: str) -> bytes | None:
    try:
        return storage.get(key)
    except NotFound:
        return None


def _present(objects: dict[str, bytes | None]) -> dict[str, bytes]:
    return {name: data for name, data in objects.items() if data is not None}
