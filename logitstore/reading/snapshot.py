"""Open a snapshot, verify each of its objects, and read rows of logits by sample index.

An object's length and sha256 are checked against the commit before a byte of it is decoded, and the
decoder gets those same bytes.  A missing object is an error, never zeros.  Nothing is opened for
writing.  ``remote`` does the same over HTTP.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from operator import attrgetter
from threading import Lock
from typing import Any, Protocol

import numpy as np
from cachetools import LRUCache, cachedmethod
from numpy.typing import ArrayLike, NDArray

from logitstore.errors import Damaged, InputError, NotFound, UnknownName
from logitstore.format.arrays import ArrayLayout, decode_shard
from logitstore.format.cards import SnapshotMeta, StoreMeta
from logitstore.format.commits import (
    Commit,
    ObjectEntry,
    check_group,
    commit_key,
    group_attributes,
    root_of,
    snapshot_folder,
)
from logitstore.format.documents import MAX_DOCUMENT_BYTES
from logitstore.format.encodings.base import Arrays, Encoding, Logits
from logitstore.format.encodings.rows import Rows
from logitstore.format.encodings.table import encoding_of
from logitstore.format.grid import FLAT_SHARD_ROWS, Grid, Span
from logitstore.format.row_digests import stored_layout
from logitstore.storage.local import MAX_OBJECT_BYTES
from logitstore.threads import ByteBudget
from logitstore.version import __version__

DECODED_CACHE_BYTES = 512 << 20
"""Bytes of decoded shards that a snapshot keeps in memory, those read last."""


DECODING = ByteBudget(512 << 20)
"""Bounds the shards that all threads of this process decode at once: a small object may be long."""


class ObjectSource(Protocol):
    """Gives a snapshot's bytes: a Storage, or a server's ``objects`` route."""

    url: str

    def get(self, key: str, most_bytes: int = MAX_OBJECT_BYTES) -> bytes:
        """Return the object's bytes; NotFound if there is none, Damaged if it has more."""


class Snapshot:
    """Reads one teacher's logits for all samples and views, (V, N, C).

    ``commit`` is the bytes of ``commit.json``; everything else is checked against it.  ``layouts``
    are those of the stored arrays.  ``rows`` decodes whole shards; a served snapshot (``remote``)
    asks the server for the rows instead if it has their digests.  ``logitstore.prepare_reading``
    gives readers of other kinds.
    """

    def __init__(self, source: ObjectSource, name: str, commit: bytes) -> None:
        self.name, self.root = name, root_of(commit)
        self._source = source
        where = f"{source.url}: {snapshot_folder(name)}"
        self.commit = Commit.open(f"{source.url}: {commit_key(name)}", commit, name)
        above = f"{source.url}: zarr.json"
        self.store_meta = StoreMeta.parse(above, group_attributes(above, self.object("zarr.json")))
        # No read of ours needs it, but other zarr clients do.
        check_group(f"{source.url}: snapshots/zarr.json", self.object("snapshots/zarr.json"))
        document = self.object(f"{snapshot_folder(name)}/zarr.json")
        self.meta = SnapshotMeta.parse(f"{where}/zarr.json", group_attributes(where, document))
        if self.meta.name != name:
            raise Damaged(f"{where}: its metadata is that of {self.meta.name!r}")
        store = (self.store_meta.dataset.length, self.store_meta.classes)
        if store != (self.meta.samples, self.meta.classes):
            raise Damaged(
                f"{where}: {self.meta.samples} samples of {self.meta.classes} classes, in a store "
                f"for {store[0]} of {store[1]}"
            )
        self.grid = self.meta.grid
        self.encoding = self._known_encoding(where)
        stored = stored_layout(self.encoding, digests=self.meta.row_digests)
        self._check_listing(stored)
        self.layouts = {name: self._layout(name, *kind) for name, kind in stored.items()}
        self._shards, self._lock = _no_shards(), Lock()

    def __repr__(self) -> str:
        shape = f"{self.meta.views} x {self.meta.samples} x {self.meta.classes}"
        return f"<Snapshot {self.name} of {self._source.url}: {shape}>"

    def __getstate__(self) -> dict[str, Any]:
        """Return what a spawned DataLoader worker gets: neither lock nor decoded shards."""
        return {k: v for k, v in self.__dict__.items() if k not in ("_lock", "_shards")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._shards, self._lock = _no_shards(), Lock()

    @property
    def url(self) -> str:
        """Path or URL of the store that holds this snapshot."""
        return self._source.url

    def object(self, key: str) -> bytes:
        """Return an object's bytes, checked; Damaged says what is wrong and where."""
        entry = self.commit.objects.get(key)
        if entry is None:
            raise Damaged(f"{self.url}: {key} is not in the commit of {self.name!r}")
        where = f"{self.url}: {key}{self._rows_of(key)}"
        most_bytes = MAX_DOCUMENT_BYTES if key.endswith("zarr.json") else MAX_OBJECT_BYTES
        if entry.length > most_bytes:
            raise Damaged(f"{where}: the commit lists {entry.length} bytes, more than there can be")
        try:
            data = self._source.get(key, most_bytes)
        except NotFound:
            raise Damaged(f"{where} is missing") from None
        if len(data) != entry.length:
            raise Damaged(f"{where} has {len(data)} bytes, the commit lists {entry.length}")
        if ObjectEntry.of(data) != entry:
            raise Damaged(f"{where} has other bytes than the commit lists (sha256 differs)")
        return data

    def rows(self, indices: ArrayLike, view: int = 0) -> Rows:
        """Return encoded rows of these samples, (N,); order kept, duplicates allowed."""
        samples = self.checked(indices, view)
        arrays = self.encoding.empty(len(samples))
        self.gather(samples, view, arrays)
        return Rows(self.encoding, arrays)

    def gather(self, samples: NDArray[np.int64], view: int, out: Arrays) -> None:
        """Write the rows of checked samples into the arrays of ``out``, (len(samples), width)."""
        for span, positions, inside in self.grid.split(view, samples):
            for name, decoded in self._shard(span).items():
                out[name][positions] = decoded[inside]

    def close(self) -> None:
        """Let go of the decoded shards; the snapshot stays usable."""
        with self._lock:
            self._shards.clear()

    def logits(self, indices: ArrayLike, view: int = 0) -> Logits:
        """Return the decoded logits of these samples: float32 (len(indices), C)."""
        return self.rows(indices, view).logits()

    def read_shard(self, shard: Span) -> dict[str, NDArray[Any]]:
        """Verify and decode a shard's rows: (rows, width) of each array."""
        decoded = {name: self.read_array(name, shard) for name in self.encoding.layout}
        self.refuse_faulty(decoded, shard.view, range(shard.start, shard.stop))
        return decoded

    def read_array(self, name: str, shard: Span) -> NDArray[Any]:
        """Verify and decode a shard's rows of one array: (rows, width)."""
        key = f"{snapshot_folder(self.name)}/{name}/{self.grid.key(shard)}"
        where = f"{self._source.url}: {key}"
        return decode_shard(where, self.layouts[name], self.object(key), shard.rows)

    def refuse_faulty(self, arrays: Arrays, view: int, samples: Sequence[int]) -> None:
        """Refuse rows of these samples that no writer writes: the digests cover them all the same.

        Rows are looked at once, when they come from the store, and not at each batch.
        """
        fault = self.encoding.fault(arrays)
        if fault is not None:
            row, what = fault
            raise Damaged(f"{self.url}: {self.name}: view {view}, sample {samples[row]}: {what}")

    @property
    def decoded_shard_bytes(self) -> int:
        """Bytes of a whole shard's rows, decoded."""
        return self.meta.rows_per_shard * self.encoding.bytes_per_row

    def stored_bytes(self) -> int:
        """Return the bytes of this snapshot's own objects together."""
        prefix = f"{snapshot_folder(self.name)}/"
        return sum(e.length for key, e in self.commit.objects.items() if key.startswith(prefix))

    def checked(self, indices: ArrayLike, view: int = 0) -> NDArray[np.int64]:
        """Return these samples as int64 (N,); InputError if there is no such sample or view."""
        numbers = np.asarray(indices)
        if numbers.size == 0:
            numbers = numbers.astype(np.int64)
        if numbers.ndim != 1 or numbers.dtype.kind not in "iu":
            raise InputError(
                f"indices must be a list of integers, not {numbers.dtype} of shape {numbers.shape}"
            )
        samples = numbers.astype(np.int64, copy=False)
        # As unsigned numbers the negative ones are the largest: one pass instead of two.
        if len(samples) and samples.view(np.uint64).max() >= self.meta.samples:
            outside = numbers[(samples < 0) | (samples >= self.meta.samples)]
            raise InputError(
                f"{self.name}: sample {outside[0]} is outside 0..{self.meta.samples - 1}"
            )
        if not 0 <= view < self.meta.views:
            raise InputError(f"{self.name}: view {view} is outside 0..{self.meta.views - 1}")
        return samples

    def _known_encoding(self, where: str) -> Encoding:
        """Make the encoding that the metadata names; UnknownName if this version has none such."""
        card = self.meta.encoding
        try:
            return encoding_of(card, self.meta.classes)
        except (UnknownName, InputError) as error:
            writer = self.meta.packages.get("logitstore", "another version")
            raise type(error)(
                f"{where}: this logitstore ({__version__}) cannot read its rows: {error}; it was "
                f"written by logitstore {writer}: install that version or a later one"
            ) from None

    def _check_listing(self, arrays: Iterable[str]) -> None:
        """Refuse a commit that lists other objects than this snapshot and its store have.

        Shape and shard size may declare more shards than memory holds: one more than there are
        entries in the commit is enough to see that they differ.
        """
        listed = self.commit.objects.keys()
        keys = set(islice(self._object_keys(arrays), len(listed) + 1))
        for key in sorted(keys - listed) + sorted(listed - keys):
            fault = "lists, and no store of format v1 has," if key in listed else "does not list"
            raise Damaged(f"{self.url}: {commit_key(self.name)}: the commit {fault} {key}")

    def _object_keys(self, arrays: Iterable[str]) -> Iterator[str]:
        """Yield the key of every object that this snapshot and its store have."""
        folder, flat = snapshot_folder(self.name), Grid(self.meta.samples, 1, FLAT_SHARD_ROWS)
        yield from ("zarr.json", "snapshots/zarr.json", f"{folder}/zarr.json")
        with_keys = any(key.startswith("keys/") for key in self.commit.objects)
        for array in ("labels", "keys") if with_keys else ("labels",):
            yield f"{array}/zarr.json"
            yield from (f"{array}/{flat.flat_key(shard)}" for shard in flat)
        for array in arrays:
            yield f"{folder}/{array}/zarr.json"
            yield from (f"{folder}/{array}/{self.grid.key(shard)}" for shard in self.grid)

    def _layout(self, array: str, dtype: str, width: int) -> ArrayLayout:
        key = f"{snapshot_folder(self.name)}/{array}/zarr.json"
        where = f"{self._source.url}: {key}"
        layout = ArrayLayout.parse(where, self.object(key))
        expected = ((self.meta.views, self.meta.samples, width), self.meta.rows_per_shard)
        if (layout.shape, layout.rows_per_shard) != expected or layout.dtype != dtype:
            raise Damaged(
                f"{where}: shape, shard or dtype are not those of the snapshot's metadata"
            )
        return layout

    @cachedmethod(attrgetter("_shards"), lock=attrgetter("_lock"))
    def _shard(self, shard: Span) -> dict[str, NDArray[Any]]:
        with DECODING.hold(self.decoded_shard_bytes):
            return self.read_shard(shard)

    def _rows_of(self, key: str) -> str:
        """Return " (view v, samples a..b)" if ``key`` is a shard of codes, else nothing."""
        _, _, inside = key.removeprefix(f"{snapshot_folder(self.name)}/").partition("/")
        # Before the metadata is read there is no grid, but no shard is read then either.
        shard = self.grid.span_of(inside) if inside.startswith("c/") else None
        return f" (view {shard.view}, samples {shard.start}..{shard.stop - 1})" if shard else ""


def _no_shards() -> LRUCache[Any, dict[str, NDArray[Any]]]:
    """Return an empty cache of decoded shards; the last one read is kept however large it is."""

    def size(shard: dict[str, NDArray[Any]]) -> int:
        return min(DECODED_CACHE_BYTES, sum(array.nbytes for array in shard.values()))

    return LRUCache(DECODED_CACHE_BYTES, getsizeof=size)
