"""The store that a build writes to: it is read once and then asked for every snapshot.

A store grows snapshot by snapshot under one dataset card; an unfinished build goes on only with a
plan that is equal but for the version of logitstore; a committed snapshot is never changed.
Refusals come before anything is written.  Another build may work on the store after it was read:
what must not be lost is created only if it is absent, and where that fails the store is read again.
"""

from __future__ import annotations

from logitstore.errors import InputError, MismatchError
from logitstore.format.cards import Samples, SnapshotMeta, SnapshotPlan, StoreMeta, ViewCard
from logitstore.format.commits import (
    ATTRIBUTE,
    ObjectEntry,
    commit_key,
    group_attributes,
    group_document,
    plan_key,
)
from logitstore.format.documents import Document, first_difference
from logitstore.reading.snapshot import Snapshot
from logitstore.storage import Storage, get_or_none
from logitstore.storage.local import is_temporary
from logitstore.writing.shared import shared_of, write_shared

_OURSELVES = "logitstore"
"""Name of this package in a plan's ``packages``."""


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
        self._document = get_or_none(self.storage, "zarr.json")
        if self._document is None:
            self._refuse_other_files()
        snapshots, builds = self.storage.names("snapshots/"), self.storage.names(".build/")
        self._names = {*snapshots, *builds}
        self.commits = self._objects({name: commit_key(name) for name in snapshots})
        self.plans = self._objects({name: plan_key(name) for name in builds})

    def _objects(self, keys: dict[str, str]) -> dict[str, bytes]:
        """Return the objects at these keys that the store has, by name."""
        objects = {name: get_or_none(self.storage, key) for name, key in keys.items()}
        return {name: data for name, data in objects.items() if data is not None}

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
            self._refuse_other_commit(self.going_on(plan))
        elif not fresh:
            self._refuse_other_plan(self.going_on(plan))

    def going_on(self, plan: SnapshotPlan) -> SnapshotPlan:
        """Return the plan with the version of logitstore that began this snapshot, if one did.

        Versions that write the same plan write the same bytes, so that each goes on with what
        another began; the finished snapshot names the one that began it.  It has row digests if
        that version gave it any: versions before 0.4.0 know none.
        """
        begun = self._begun(plan.name)
        if begun is None or not {_OURSELVES} <= begun.packages.keys() & plan.packages.keys():
            return plan
        if begun.packages[_OURSELVES] == plan.packages[_OURSELVES]:
            return plan
        packages = {**plan.packages, _OURSELVES: begun.packages[_OURSELVES]}
        return plan.model_copy(update={"packages": packages, "row_digests": begun.row_digests})

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
            if self.commits:
                name = next(iter(self.commits))
                self._entries = shared_of(self.storage, name, self.commits[name])
            else:
                self._entries = write_shared(self.storage, document, self.samples)
        return self._entries

    def read_again(self, plan: SnapshotPlan) -> None:
        """Read the store once more, after another build has changed it, and refuse as before."""
        self._read()
        self.refuse(plan)

    def _snapshot(self, name: str) -> Snapshot:
        if name not in self._snapshots:
            self._snapshots[name] = Snapshot(self.storage, name, self.commits[name])
        return self._snapshots[name]

    def _begun(self, name: str) -> SnapshotPlan | None:
        """Return the plan of a finished or an unfinished snapshot, if the store has one."""
        if name in self.commits:
            return self._snapshot(name).meta.plan()
        data = self.plans.get(name)
        where = f"{self.storage.url}: {plan_key(name)} (--fresh forgets it)"
        return None if data is None else SnapshotPlan.parse(where, data)

    def _refuse_other_files(self) -> None:
        other = next((key for key in self.storage.keys("") if not is_temporary(key)), None)
        if other is None:
            return
        # Another build may have just begun it.
        self._document = get_or_none(self.storage, "zarr.json")
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
        built, where = self._snapshot(plan.name).meta.plan(), self.storage.url
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
        begun = self._begun(plan.name)
        if begun is None:
            return
        if begun.to_bytes() != self.plans[plan.name]:
            raise MismatchError(
                f"{self.storage.url}: {plan_key(plan.name)} was begun by another version of "
                "logitstore, whose rows may have other bytes: finish it with that version, or "
                "start over with --fresh"
            )
        _refuse_difference(
            begun,
            plan,
            f"{self.storage.url}: an unfinished build of {plan.name!r} was begun differently",
            f"give the same arguments, start over with --fresh, or use another "
            f"{_name_option(plan)}",
        )


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
