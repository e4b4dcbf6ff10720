"""``GET …/objects/{key}``: an object that the snapshot's commit lists, as it lies on disk.

An object is read from one open file, whose length must be the committed one, and sent in pieces.
The client checks the digest, which is the ETag.  If a read fails half-way, the connection is cut.
"""

from __future__ import annotations

import asyncio
import os
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

import numpy as np
from starlette.types import Receive, Scope, Send

from logitstore.api.guard.headers import by_name
from logitstore.api.routes.ranges import choose_range
from logitstore.api.routes.requests import (
    BINARY,
    ROOT_PARAMETER,
    check_root,
    path_parameters,
    read_twice,
    refuse_query,
)
from logitstore.api.served.registry import Opened, Registry
from logitstore.errors import Damaged, NotFound, UnknownName
from logitstore.format.commits import ObjectEntry, commit_key
from logitstore.format.wire import ROOT_HEADER

PIECE_BYTES = 1 << 20
"""Bytes that are read and sent at once; 256 KiB make downloads an eighth slower."""

_CACHING = {"cache-control": "public, max-age=31536000, immutable", "accept-ranges": "bytes"}


@dataclass(frozen=True)
class OpenedObject:
    """An object ready to be sent: bytes in memory (the commit) or an open descriptor."""

    entry: ObjectEntry
    root: str
    content: bytes | int

    def read(self, count: int, offset: int) -> bytes:
        """Return ``count`` bytes from ``offset`` on; Damaged if the file has become shorter."""
        if isinstance(self.content, bytes):
            return self.content[offset : offset + count]
        data = os.pread(self.content, count, offset)
        if len(data) != count:
            raise Damaged(f"an object ended {count - len(data)} bytes early while it was sent")
        return data

    def read_cached(self, count: int, offset: int) -> bytes | memoryview | None:
        """Return the same if that needs no disk, else None: a thread costs a third of the rate."""
        if isinstance(self.content, bytes):
            return self.read(count, offset)
        piece = np.empty(count, np.uint8)  # a bytearray would be zeroed first
        try:
            read = os.preadv(self.content, [piece.data], offset, os.RWF_NOWAIT)
        except OSError:
            return None
        return piece.data if read == count else None

    def close(self) -> None:
        if isinstance(self.content, int):
            os.close(self.content)


class ObjectsEndpoint:
    """The ASGI endpoint; ``store``, ``snapshot`` and ``key`` are path parameters."""

    def __init__(self, registry: Registry, threads: Executor) -> None:
        self._registry, self._threads = registry, threads

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        loop = asyncio.get_running_loop()
        opened = await loop.run_in_executor(self._threads, self._open, scope)
        gone: asyncio.Future[None] | None = None
        try:
            etag = f'"{opened.entry.sha256}"'
            status, content, start, stop = choose_range(
                scope["method"], by_name(scope["headers"]), etag, opened.entry.length
            )
            common = {"etag": etag, ROOT_HEADER: opened.root, **_CACHING, **content}
            headers = [(name.encode(), value.encode()) for name, value in common.items()]
            await send({"type": "http.response.start", "status": status, "headers": headers})
            if scope["method"] == "HEAD" or start == stop:
                await send({"type": "http.response.body"})
                return
            gone = asyncio.ensure_future(_client_left(receive))
            for offset in range(start, stop, PIECE_BYTES):
                if gone.done():
                    return
                count = min(PIECE_BYTES, stop - offset)
                piece: bytes | memoryview | None = opened.read_cached(count, offset)
                if piece is None:
                    piece = await loop.run_in_executor(self._threads, opened.read, count, offset)
                more = offset + count < stop
                await send({"type": "http.response.body", "body": piece, "more_body": more})
                await asyncio.sleep(0)  # else nobody hears that the client left
        finally:
            if gone is not None:
                gone.cancel()
            opened.close()

    def _open(self, scope: Scope) -> OpenedObject:
        names = scope["path_params"]
        refuse_query(scope["query_string"])
        opened = self._registry.open(names["store"], names["snapshot"])
        check_root(opened.snapshot, opened.store.name, by_name(scope["headers"]))
        return read_twice(self._registry, opened, lambda: open_object(opened, names["key"]))


async def _client_left(receive: Receive) -> None:
    """Wait until nobody reads the answer any more."""
    while (await receive())["type"] != "http.disconnect":
        pass


def open_object(opened: Opened, key: str) -> OpenedObject:
    """Open an object for sending.

    UnknownName if the commit does not list it, Damaged if it is no plain file of the committed
    length.
    """
    store, snapshot = opened.store, opened.snapshot
    if key == commit_key(snapshot.name):
        commit = snapshot.commit.to_bytes()
        return OpenedObject(ObjectEntry.of(commit), snapshot.root, commit)
    entry = snapshot.commit.objects.get(key)
    if entry is None:
        raise UnknownName(f"the commit of snapshot {snapshot.name!r} lists no such object")
    try:
        descriptor, length = store.storage.open(key)
    except NotFound:
        raise Damaged(f"{store.name}: {key} is missing") from None
    if length != entry.length:
        os.close(descriptor)
        raise Damaged(f"{store.name}: {key} has {length} bytes, the commit lists {entry.length}")
    return OpenedObject(entry, snapshot.root, descriptor)


_CONTENT = {"application/octet-stream": BINARY}

OPENAPI: dict[str, Any] = {
    method: {
        "summary": "An object that the snapshot's commit lists",
        "operationId": f"object_{method}",
        "parameters": [*path_parameters("store", "snapshot", "key"), ROOT_PARAMETER],
        "responses": {
            "200": {
                "description": "The whole object; its ETag is its sha256.",
                "content": _CONTENT,
            },
            "206": {"description": "One range of it.", "content": _CONTENT},
            "304": {"description": "The client has it."},
        },
    }
    for method in ("get", "head")
}
