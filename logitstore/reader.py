"""Open a store, verify each object on first touch, and give rows of logits by sample index.

An object's length and sha256 are checked against the commit before a byte of it is decoded, and the
decoder gets those same bytes.  A missing object is an error, never zeros.  The reader opens nothing
for writing.  ``remote`` has the same nouns over HTTP.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from logitstore.encodings import Logits, Rows, encoding
from logitstore.errors import Damaged, InputError, MismatchError, NotFound, UnknownName
from logitstore.schema import (
    Commit,
    ObjectEntry,
    SnapshotMeta,
    StoreMeta,
    group_attributes,
    root_of,
    snapshot_folder,
)
from logitstore.shards import ArrayLayout, decode_shard
from logitstore.storage import Storage, is_temporary, open_storage

DECODED_CACHE_BYTES = 512 << 20


class ObjectSource(Protocol):
    """Where a snapshot's bytes come from: a Storage, or a server's ``objects`` route."""

    url: str

    def get(self, key: str) -> bytes:
        """The object's bytes; NotFound if there is none."""


class Snapshot:
    """One teacher state's logits for all samples and views, (V, N, C).

    ``commit`` is the bytes of ``commit.json``; everything else is checked against it.
    """

    def __init__(self, source: ObjectSource, name: str, commit: bytes) -> None:
        self.name, self.root = name, root_of(commit)
        self._source = source
        where = f"{source.url}: {snapshot_folder(name)}"
        self.commit = Commit.open(f"{where}/commit.json", commit, name)
        self.object("snapshots/zarr.json")  # no read of ours needs it, but other zarr clients do
        document = self.object(f"{snapshot_folder(name)}/zarr.json")
        self.meta = SnapshotMeta.parse(f"{where}/zarr.json", group_attributes(where, document))
        if self.meta.name != name:
            raise Damaged(f"{where}: its metadata is that of {self.meta.name!r}")
        self.encoding = encoding(self.meta.encoding.name)
        self._layouts = {array: self._layout(array) for array in self.encoding.layout(1)}
        self._decoded: OrderedDict[tuple[int, int], dict[str, NDArray[Any]]] = OrderedDict()
        self._lock = Lock()

    def __repr__(self) -> str:
        shape = f"{self.meta.views} x {self.meta.samples} x {self.meta.classes}"
        return f"<Snapshot {self.name} of {self._source.url}: {shape}>"

    def __getstate__(self) -> dict[str, Any]:
        """What a spawned DataLoader worker gets: neither the lock nor the decoded shards."""
        state = {**self.__dict__, "encoding": self.encoding.name}
        return {key: value for key, value in state.items() if key not in ("_lock", "_decoded")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, encoding=encoding(state["encoding"]))
        self._decoded, self._lock = OrderedDict(), Lock()

    def object(self, key: str) -> bytes:
        """An object's bytes, checked against the commit; Damaged says what is wrong and where."""
        entry = self.commit.objects.get(key)
        if entry is None:
            raise Damaged(f"{self._source.url}: {key} is not in the commit of {self.name!r}")
        try:
            data = self._source.get(key)
        except NotFound:
            raise Damaged(f"{self._source.url}: {key}{self._rows_of(key)} is missing") from None
        if len(data) != entry.length:
            raise Damaged(
                f"{self._source.url}: {key}{self._rows_of(key)} has {len(data)} bytes, "
                f"the commit lists {entry.length}"
            )
        if ObjectEntry.of(data) != entry:
            raise Damaged(
                f"{self._source.url}: {key}{self._rows_of(key)} has other bytes than the commit "
                "lists (sha256 differs)"
            )
        return data

    def rows(self, indices: ArrayLike, view: int = 0) -> Rows:
        """Encoded rows of these samples, (N,) integers; order kept, duplicates allowed."""
        wanted = self._checked(indices, view)
        width = {name: layout.width for name, layout in self._layouts.items()}
        arrays = {
            name: np.empty((len(wanted), width[name]), layout.dtype)
            for name, layout in self._layouts.items()
        }
        shard_of = wanted // self.meta.rows_per_shard
        for number in np.unique(shard_of):
            chosen = np.flatnonzero(shard_of == number)
            inside = wanted[chosen] - number * self.meta.rows_per_shard
            for name, decoded in self._shard(view, int(number)).items():
                arrays[name][chosen] = decoded[inside]
        return Rows(self.encoding, arrays)

    def logits(self, indices: ArrayLike, view: int = 0) -> Logits:
        """Decoded logits of these samples: float32 (len(indices), C)."""
        return self.rows(indices, view).logits()

    def shards(self) -> Iterator[tuple[int, int, int]]:
        """(view, start, stop) of every shard, in the order in which they lie."""
        step, samples = self.meta.rows_per_shard, self.meta.samples
        for view in range(self.meta.views):
            for start in range(0, samples, step):
                yield view, start, min(start + step, samples)

    def stored_bytes(self) -> int:
        """Bytes of this snapshot's own objects."""
        prefix = f"{snapshot_folder(self.name)}/"
        return sum(e.length for key, e in self.commit.objects.items() if key.startswith(prefix))

    def _checked(self, indices: ArrayLike, view: int) -> NDArray[np.int64]:
        wanted = np.asarray(indices)
        if wanted.size == 0:
            wanted = wanted.astype(np.int64)
        if wanted.ndim != 1 or wanted.dtype.kind not in "iu":
            raise InputError(
                f"indices must be a list of integers, not {wanted.dtype} of shape {wanted.shape}"
            )
        outside = wanted[(wanted < 0) | (wanted >= self.meta.samples)]
        if len(outside):
            raise InputError(
                f"{self.name}: sample {outside[0]} is outside 0..{self.meta.samples - 1}"
            )
        if not 0 <= view < self.meta.views:
            raise InputError(f"{self.name}: view {view} is outside 0..{self.meta.views - 1}")
        return wanted.astype(np.int64)

    def _layout(self, array: str) -> ArrayLayout:
        key = f"{snapshot_folder(self.name)}/{array}/zarr.json"
        where = f"{self._source.url}: {key}"
        layout = ArrayLayout.parse(where, self.object(key))
        dtype, width = self.encoding.layout(self.meta.classes)[array]
        expected = ((self.meta.views, self.meta.samples, width), self.meta.rows_per_shard)
        if (layout.shape, layout.rows_per_shard) != expected or layout.dtype != dtype:
            raise Damaged(
                f"{where}: shape, shard or dtype are not those of the snapshot's metadata"
            )
        return layout

    def _shard(self, view: int, number: int) -> dict[str, NDArray[Any]]:
        with self._lock:
            if (view, number) in self._decoded:
                self._decoded.move_to_end((view, number))
                return self._decoded[view, number]
        start = number * self.meta.rows_per_shard
        rows = min(self.meta.rows_per_shard, self.meta.samples - start)
        decoded = {}
        for name, layout in self._layouts.items():
            key = f"{snapshot_folder(self.name)}/{name}/{layout.shard_key(view, start)}"
            where = f"{self._source.url}: {key}"
            decoded[name] = decode_shard(where, layout, self.object(key), rows)
        with self._lock:
            self._decoded[view, number] = decoded
            while len(self._decoded) > 1 and self._cached_bytes() > DECODED_CACHE_BYTES:
                self._decoded.popitem(last=False)
        return decoded

    def _cached_bytes(self) -> int:
        return sum(a.nbytes for shard in self._decoded.values() for a in shard.values())

    def _rows_of(self, key: str) -> str:
        """ " (view v, samples a..b)" if ``key`` is a shard of codes, else nothing."""
        parts = key.removeprefix(f"{snapshot_folder(self.name)}/").split("/")
        if len(parts) != 5 or parts[1] != "c":
            return ""
        start = int(parts[3]) * self.meta.rows_per_shard
        stop = min(start + self.meta.rows_per_shard, self.meta.samples)
        return f" (view {parts[2]}, samples {start}..{stop - 1})"


class LogitStore:
    """One dataset's snapshots: ``meta``, ``labels`` int32 (N,), ``keys``, ``snapshots`` by name."""

    def __init__(self, url: str, meta: StoreMeta, snapshots: Mapping[str, Snapshot]) -> None:
        self.url, self.meta, self.snapshots = url, meta, snapshots

    def __repr__(self) -> str:
        return f"<LogitStore {self.url}: {self.meta.dataset.name}, {len(self)} samples>"

    def __len__(self) -> int:
        return self.meta.dataset.length

    @cached_property
    def labels(self) -> NDArray[np.int32]:
        """Ground truth as the builder saw it, int32 (N,); -1 where there is none."""
        labels: NDArray[np.int32] | None = self._flat("labels")
        if labels is None:
            raise Damaged(f"{self.url}: the store has no labels")
        return labels

    @cached_property
    def keys(self) -> NDArray[Any] | None:
        """Stable sample keys, str (N,), or None."""
        return self._flat("keys")

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
        for start in range(0, len(self), layout.rows_per_shard):
            key = f"{array}/{layout.shard_key(0, start)}"
            rows = min(layout.rows_per_shard, len(self) - start)
            parts.append(decode_shard(f"{self.url}: {key}", layout, snapshot.object(key), rows))
        return np.concatenate(parts)


class _LocalSnapshots(Mapping[str, Snapshot]):
    """Committed snapshots under a store's root, opened when first asked for."""

    def __init__(self, storage: Any, meta: bytes) -> None:
        self._storage, self._meta = storage, meta
        self._open: dict[str, Snapshot] = {}

    def _names(self) -> list[str]:
        return [
            name
            for name in self._storage.names("snapshots/")
            if self._storage.size(f"{snapshot_folder(name)}/commit.json") is not None
        ]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names())

    def __len__(self) -> int:
        return len(self._names())

    def __getitem__(self, name: str) -> Snapshot:
        if name not in self._open:
            if name not in self._names():
                raise UnknownName.among(f"snapshot in {self._storage.url}", name, self)
            commit = self._storage.get(f"{snapshot_folder(name)}/commit.json")
            snapshot = Snapshot(self._storage, name, commit)
            self._check_surroundings(snapshot)
            self._open[name] = snapshot
        return self._open[name]

    def _check_surroundings(self, snapshot: Snapshot) -> None:
        """Refuse a snapshot whose store-level metadata is another, or that has foreign objects."""
        if ObjectEntry.of(self._meta) != snapshot.commit.objects.get("zarr.json"):
            raise Damaged(
                f"{self._storage.url}: zarr.json is not what the commit of {snapshot.name!r} lists"
            )
        for prefix in (f"{snapshot_folder(snapshot.name)}/", "labels/", "keys/"):
            for key in self._storage.keys(prefix):
                known = key in snapshot.commit.objects or key == f"{prefix}commit.json"
                if not known and not is_temporary(key):
                    raise Damaged(
                        f"{self._storage.url}: {key} was added: the commit of {snapshot.name!r} "
                        "does not list it; remove it"
                    )


def open_store(
    location: str | Path, token: str | None = None, *, patience: float = 600.0
) -> LogitStore:
    """Open a store: a path, or ``http(s)://host:port/name`` of ``logitstore serve``.

    ``token`` is the server's bearer token (default: the environment's LOGITSTORE_TOKEN).
    ``patience`` is how many seconds a server that answered once may stay away.  Raises NotFound,
    Damaged, Unreachable or Denied.
    """
    if str(location).startswith(("http://", "https://")):
        from logitstore.remote import open_remote

        return open_remote(str(location), token=token, patience=patience)
    return open_stored(open_storage(location))


def open_stored(storage: Storage) -> LogitStore:
    """Open the store whose objects ``storage`` holds; raises NotFound or Damaged."""
    try:
        document = storage.get("zarr.json")
    except NotFound:
        raise NotFound(
            f"{storage.url}: no logit store is here (no zarr.json); `logitstore ls FOLDER` lists "
            "the stores under a folder"
        ) from None
    where = f"{storage.url}: zarr.json"
    meta = StoreMeta.parse(where, group_attributes(where, document))
    return LogitStore(storage.url, meta, _LocalSnapshots(storage, document))


def expect_root(snapshot: Snapshot, root: str) -> None:
    """Refuse a snapshot that is not the one meant: ``root`` in hex, with or without "sha256:"."""
    if root.removeprefix("sha256:").lower() != snapshot.root:
        raise MismatchError(
            f"snapshot {snapshot.name!r} has root {snapshot.root}, expected {root}: this is "
            f"another "
            "build; check the store's location or the expected root"
        )


def chosen_snapshot(store: LogitStore, name: str | None) -> Snapshot:
    """The named snapshot, or the only one there is."""
    names: Sequence[str] = list(store.snapshots)
    if name is None and len(names) == 1:
        name = names[0]
    if name is None:
        raise InputError(
            f"{store.url} has {len(names)} snapshots "
            f"({', '.join(names[:10]) or 'none committed'}): "
            "say which with --snapshot"
        )
    return store.snapshots[name]
