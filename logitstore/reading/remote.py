"""Open a store over HTTP: the same store and snapshots, from ``logitstore serve``.

Commit, metadata, labels and every object are verified by the code that reads a disk; only ``rows``
asks the server to gather.  The server is not believed: each row is compared with its committed
digest, and a snapshot without digests is read by whole shards.  If the server begins to serve
another build under the same name, that is an error, never other logits.
"""

from __future__ import annotations

import re
from operator import attrgetter
from urllib.parse import quote, urlsplit

import numpy as np
from cachetools import cachedmethod
from numpy.typing import NDArray
from pydantic import TypeAdapter

from logitstore.errors import Damaged, InputError, MismatchError, NotFound, UnknownName
from logitstore.format.cards import StoreMeta
from logitstore.format.commits import MAX_COMMIT_BYTES, commit_key, root_of
from logitstore.format.documents import NAME_PATTERN
from logitstore.format.encodings.base import Arrays
from logitstore.format.encodings.rows import Rows
from logitstore.format.grid import Span
from logitstore.format.row_digests import ROW_DIGESTS, digests_of
from logitstore.format.wire import (
    INDICES_TYPE,
    ROOT_HEADER,
    StoreEntry,
    StoreReply,
    pack_indices,
    rows_per_request,
    template,
    unpack,
)
from logitstore.reading.answer import Answer
from logitstore.reading.connection import FIRST_CONTACT_SECONDS, Connection
from logitstore.reading.snapshot import Snapshot
from logitstore.reading.store import LogitStore, Snapshots
from logitstore.threads import parallel

_DIGEST_CONNECTIONS = 4
"""Shards of digests that are fetched at once."""

_STORES = TypeAdapter(list[StoreEntry])
_STORE = TypeAdapter(StoreReply)


def open_remote(url: str, *, token: str | None, patience: float) -> LogitStore:
    """Open ``http(s)://host:port/name``, or ``http(s)://host:port`` if one store is served there.

    A server that does not answer within 5 s is Unreachable; one that did may stay away for
    ``patience`` seconds.  Raises Denied and UnknownName too.
    """
    base, name = split_url(url)
    connection = Connection(base, token, patience)
    if name is None or not re.fullmatch(NAME_PATTERN, name):
        entries = connection.json("/v1/stores", _STORES)
        names = [entry.name for entry in entries if not entry.unreadable]
        if name is not None:
            raise UnknownName.among(f"store at {base}:", name, names)
        if len(names) != 1:
            raise InputError(
                f"{base} serves {len(names)} stores ({', '.join(names[:20]) or 'none'}): add one's "
                f"name, like {base}/{names[0] if names else 'NAME'}"
            )
        name = names[0]
    reply = connection.json(f"/v1/stores/{quote(name)}", _STORE)
    return LogitStore(f"{base}/{name}", reply.meta, _RemoteSnapshots(connection, name, reply.meta))


def list_stores(url: str, token: str | None = None) -> list[StoreEntry]:
    """List what ``http(s)://host:port`` serves, or only the store named at the end of ``url``."""
    base, name = split_url(url)
    entries = Connection(base, token, FIRST_CONTACT_SECONDS).json("/v1/stores", _STORES)
    chosen = [entry for entry in entries if name in (None, entry.name)]
    if name is not None and not chosen:
        raise UnknownName.among(f"store at {base}:", name, [entry.name for entry in entries])
    return chosen


def split_url(url: str) -> tuple[str, str | None]:
    """Split a URL into ``scheme://host:port[/path]`` and the store's name, the path's last part."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    try:
        usable = bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        usable = False
    if not usable or parts.query or parts.fragment:
        raise InputError(
            f"{parts.scheme}://{host}{parts.path} is no address of a store: http://host:port/name"
        )
    if "@" in parts.netloc:
        raise InputError(
            f"an address holds no user or token: {host} takes one from "
            "LOGITSTORE_TOKEN or --token-file"
        )
    path, _, name = parts.path.rstrip("/").rpartition("/")
    return f"{parts.scheme}://{parts.netloc}{path}", name or None


class RemoteObjects:
    """Fetches a snapshot's objects from a server; ``root`` is None until the commit is read."""

    def __init__(self, connection: Connection, store: str, snapshot: str) -> None:
        self.connection = connection
        self.url = f"{connection.base}/{store}"
        self.path = f"/v1/stores/{quote(store)}/snapshots/{quote(snapshot)}"
        self.root: str | None = None
        self.lengths: dict[str, int] = {}

    def get(self, key: str, most_bytes: int = MAX_COMMIT_BYTES) -> bytes:
        """Return the object's bytes as the server sent them; NotFound if it has no such object."""
        path = f"{self.path}/objects/{quote(key)}"
        most = min(self.lengths.get(key, most_bytes), most_bytes)
        try:
            answer = self.connection.request(
                "GET", path, headers=self.root_header(), most_bytes=most
            )
        except UnknownName:
            raise NotFound(f"{self.url}: there is no object {key}") from None
        self.confirm(answer)
        return answer.body

    def root_header(self) -> dict[str, str]:
        """Return the header by which the server refuses if it serves another build by now."""
        return {ROOT_HEADER: self.root} if self.root else {}

    def confirm(self, answer: Answer) -> None:
        """Raise MismatchError if the answer is about another build than the one opened."""
        root = answer.headers.get(ROOT_HEADER)
        if self.root is not None and root != self.root:
            raise MismatchError(
                f"{self.url}: the snapshot that was opened has root {self.root}, the server now "
                f"serves {root}: another build under the same name; start again with this one, or "
                "serve the old one"
            )


class RemoteSnapshot(Snapshot):
    """Lets the server gather rows that have digests; all else is as in ``Snapshot``."""

    def __init__(self, objects: RemoteObjects, name: str, commit: bytes) -> None:
        self._objects = objects
        objects.root = root_of(commit)
        super().__init__(objects, name, commit)

    def object(self, key: str) -> bytes:
        entry = self.commit.objects.get(key)
        if entry is not None:
            self._objects.lengths[key] = entry.length
        return super().object(key)

    def gather(self, samples: NDArray[np.int64], view: int, out: Arrays) -> None:
        """Write proven rows into ``out``: asked from the server, or by shards without digests."""
        if self.meta.row_digests:
            self.stream(samples, view, out)
        else:
            super().gather(samples, view, out)

    def stream(
        self, samples: NDArray[np.int64], view: int, out: Arrays, *, proven: bool = True
    ) -> None:
        """Ask the server for the rows, in several requests if one cannot carry them.

        If ``proven``, Damaged names the first row that has another digest than the committed one.
        """
        most = rows_per_request(self.encoding)
        for start in range(0, len(samples), most):
            part = samples[start : start + most]
            rows = self._fetch(part, view)
            if proven:
                self._refuse_other(rows, part, view)
            self.refuse_faulty(dict(rows.arrays), view, part.tolist())
            for name, array in rows.arrays.items():
                out[name][start : start + most] = array

    def _refuse_other(self, rows: Rows, samples: NDArray[np.int64], view: int) -> None:
        """Refuse rows that are not the committed ones of these samples."""
        committed = self._digests(view)[ROW_DIGESTS][samples]
        wrong = np.flatnonzero((digests_of(rows) != committed).any(axis=1))
        if len(wrong):
            raise Damaged(
                f"{self.url}: the server sent a row of view {view}, sample {samples[wrong[0]]} "
                f"that is not the committed one ({len(wrong)} of {len(rows)} rows: their digests "
                "differ): do not trust it; --read materialise reads committed shards instead"
            )

    @cachedmethod(attrgetter("_shards"), lock=attrgetter("_lock"))
    def _digests(self, view: int) -> dict[str, NDArray[np.uint8]]:
        """Return the committed digests of a view's rows, (N, 16), by the array's name."""
        shards = [shard for shard in self.grid.shards() if shard.view == view]
        parts: dict[Span, NDArray[np.uint8]] = {}

        def fetch(shard: Span) -> None:
            parts[shard] = self.read_array(ROW_DIGESTS, shard)

        for _ in parallel(fetch, shards, _DIGEST_CONNECTIONS):
            pass
        return {ROW_DIGESTS: np.concatenate([parts[shard] for shard in shards])}

    def _fetch(self, indices: NDArray[np.int64], view: int) -> Rows:
        objects = self._objects
        answer = objects.connection.request(
            "POST",
            f"{objects.path}/rows?view={int(view)}",
            body=pack_indices(indices),
            headers={"content-type": INDICES_TYPE, **objects.root_header()},
            most_bytes=template(self.encoding, len(indices)).length,
        )
        objects.confirm(answer)
        return unpack(answer.body, self.encoding, count=len(indices))


class _RemoteSnapshots(Snapshots):
    def __init__(self, connection: Connection, store: str, meta: StoreMeta) -> None:
        super().__init__(f"{connection.base}/{store}")
        self._connection, self._store, self._meta = connection, store, meta

    def _names(self) -> list[str]:
        reply = self._connection.json(f"/v1/stores/{quote(self._store)}", _STORE)
        return sorted([*(entry.name for entry in reply.snapshots), *reply.damaged])

    def _open(self, name: str) -> Snapshot:
        objects = RemoteObjects(self._connection, self._store, name)
        snapshot = RemoteSnapshot(objects, name, objects.get(commit_key(name)))
        if snapshot.store_meta != self._meta:
            raise MismatchError(
                f"{self.url}: zarr.json: the server described the store differently before"
            )
        return snapshot
