"""Open a store: one dataset's snapshots, with its labels and keys."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from logitstore.errors import Damaged, NotFound, UnknownName
from logitstore.format.arrays import ArrayLayout, decode_shard
from logitstore.format.cards import Samples, StoreMeta
from logitstore.format.commits import (
    MAX_COMMIT_BYTES,
    ObjectEntry,
    commit_key,
    group_attributes,
    snapshot_folder,
)
from logitstore.format.documents import MAX_DOCUMENT_BYTES
from logitstore.reading.snapshot import Snapshot
from logitstore.storage import Storage
from logitstore.storage.local import is_temporary


class LogitStore:
    """Holds a dataset's ``meta``, ``labels`` int32 (N,), ``keys`` and ``snapshots`` by name.

    It does not know where its bytes lie: each snapshot reads its own.
    """

    def __init__(self, url: str, meta: StoreMeta, snapshots: Mapping[str, Snapshot]) -> None:
        self.url, self.meta, self.snapshots = url, meta, snapshots

    @classmethod
    def of(cls, snapshot: Snapshot) -> LogitStore:
        """Return the store of one snapshot, as if it held no other."""
        return cls(snapshot.url, snapshot.store_meta, {snapshot.name: snapshot})

    def __repr__(self) -> str:
        return f"<LogitStore {self.url}: {self.meta.dataset.name}, {len(self)} samples>"

    def __len__(self) -> int:
        return self.meta.dataset.length

    @cached_property
    def labels(self) -> NDArray[np.int32]:
        """The labels with which the store was built, int32 (N,); -1 where there is none."""
        labels: NDArray[np.int32] | None = self._flat("labels")
        if labels is None or labels.dtype != np.int32:
            raise Damaged(f"{self.url}: the store has no int32 labels")
        if labels.min() < -1 or labels.max() >= self.meta.classes:
            outside = int(np.flatnonzero((labels < -1) | (labels >= self.meta.classes))[0])
            raise Damaged(
                f"{self.url}: sample {outside} has label {labels[outside]}, expected -1 or one of "
                f"{self.meta.classes} classes"
            )
        return labels

    @cached_property
    def keys(self) -> NDArray[Any] | None:
        """Stable sample keys, str (N,), or None."""
        return self._flat("keys")

    def samples(self) -> Samples:
        """Return the samples as they are recorded here: labels, keys and the dataset's name."""
        keys = None if self.keys is None else [str(key) for key in self.keys]
        return Samples(self.meta.dataset.name, self.labels, keys)

    def _flat(self, array: str) -> NDArray[Any] | None:
        name = next(iter(self.snapshots), None)
        if name is None:
            raise NotFound(f"{self.url}: the store has no committed snapshot yet")
        snapshot = self.snapshots[name]
        if f"{array}/zarr.json" not in snapshot.commit.objects:
            return None
        where = f"{self.url}: {array}"
        layout = ArrayLayout.parse(where, snapshot.object(f"{array}/zarr.json"))
        if layout.shape != (len(self),):
            raise Damaged(f"{where}: {layout.shape} values for {len(self)} samples")
        parts = []
        for span in layout.grid.shards():
            key = f"{array}/{layout.grid.flat_key(span)}"
            where = f"{self.url}: {key}"
            parts.append(decode_shard(where, layout, snapshot.object(key), span.rows))
        return np.concatenate(parts)


class Snapshots(Mapping[str, Snapshot]):
    """Opens each snapshot of the store at ``url`` when it is first used."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._opened: dict[str, Snapshot] = {}

    @abstractmethod
    def _names(self) -> list[str]:
        """List the snapshots that there are now, sorted."""

    @abstractmethod
    def _open(self, name: str) -> Snapshot:
        """Open one of them."""

    def __iter__(self) -> Iterator[str]:
        return iter(self._names())

    def __len__(self) -> int:
        return len(self._names())

    def __getitem__(self, name: str) -> Snapshot:
        if name not in self._opened:
            names = self._names()
            if name not in names:
                raise UnknownName.among(f"snapshot in {self.url}", name, names)
            self._opened[name] = self._open(name)
        return self._opened[name]


class _LocalSnapshots(Snapshots):
    def __init__(self, storage: Storage, meta: bytes) -> None:
        super().__init__(storage.url)
        self._storage, self._meta = storage, meta

    def _names(self) -> list[str]:
        names = self._storage.names("snapshots/")
        return [name for name in names if self._may_be_committed(name)]

    def _may_be_committed(self, name: str) -> bool:
        """Say whether a commit is there, or cannot be looked at: opening it says what is wrong."""
        try:
            return self._storage.size(commit_key(name)) is not None
        except OSError:
            return True

    def _open(self, name: str) -> Snapshot:
        """Refuse a snapshot whose store-level metadata is another, or that has foreign objects."""
        commit = self._storage.get(commit_key(name), MAX_COMMIT_BYTES)
        snapshot = Snapshot(self._storage, name, commit)
        if ObjectEntry.of(self._meta) != snapshot.commit.objects.get("zarr.json"):
            raise Damaged(f"{self.url}: zarr.json is not what the commit of {name!r} lists")
        known = {*snapshot.commit.objects, commit_key(name)}
        for prefix in (f"{snapshot_folder(name)}/", "labels/", "keys/"):
            for key in self._storage.keys(prefix):
                if key not in known and not is_temporary(key):
                    raise Damaged(
                        f"{self.url}: {key} was added: the commit of {name!r} does not list it; "
                        "remove it"
                    )
        return snapshot


def open_stored(storage: Storage) -> LogitStore:
    """Open the store whose objects ``storage`` holds; raises NotFound or Damaged."""
    try:
        document = storage.get("zarr.json", MAX_DOCUMENT_BYTES)
    except NotFound:
        raise NotFound(
            f"{storage.url}: no logit store is here (no zarr.json); `logitstore ls FOLDER` lists "
            "the stores under a folder"
        ) from None
    where = f"{storage.url}: zarr.json"
    meta = StoreMeta.parse(where, group_attributes(where, document))
    return LogitStore(storage.url, meta, _LocalSnapshots(storage, document))
