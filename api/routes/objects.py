"""``GET …/objects/{key}``: an object that the snapshot's commit lists, as it lies on disk.

Sent in 1 MiB pieces read from one open descriptor, whose length must be the committed one.  The
digest is the client's to check (it is the ETag).  If a read fails half-way the connection is cut.
"""

from __future__ import annotations

import asyncio
import os
import re
import stat
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

import numpy as np
from starlette.types import Receive, Scope, Send

from logitstore.api.guard.headers import Headers, by_name
from logitstore.api.guard.problems import Refusal
from logitstore.api.routes.requests import check_root, refuse_query
from logitstore.api.served.registry import Opened, Registry
from logitstore.errors import Damaged, MismatchError, NotFound, UnknownName
from logitstore.format.commits import ObjectEntry, commit_key
from logitstore.format.wire import ROOT_HEADER

PIECE_BYTES = 1 << 20
"""In pieces of 256 KiB a download reaches an eighth less of nginx's rate."""


_RANGE = re.compile(r"bytes=(?:([0-9]{1,18})-([0-9]{0,18})|-([0-9]{1,18}))", re.IGNORECASE)


@dataclass(frozen=True)
class Sending:
    """An object ready to be sent: bytes in memory (the commit) or an open descriptor."""

    entry: ObjectEntry
    root: str
    content: bytes | int

    def read(self, count: int, offset: int) -> bytes:
        """``count`` bytes from ``offset`` on; Damaged if the file has become shorter."""
        if isinstance(self.content, bytes):
            return self.content[offset : offset + count]
        data = os.pread(self.content, count, offset)
        if len(data) != count:
            raise Damaged(f"an object ended {count - len(data)} bytes early while it was sent")
        return data

    def read_cached(self, count: int, offset: int) -> bytes | memoryview | None:
        """The same if that needs no disk, else None; a thread costs a third of the rate."""
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
        sending = await loop.run_in_executor(self._threads, self._open, scope)
        try:
            status, headers, start, stop = choose_range(sending, scope)
            await send({"type": "http.response.start", "status": status, "headers": headers})
            if scope["method"] == "HEAD" or start == stop:
                await send({"type": "http.response.body"})
                return
            for offset in range(start, stop, PIECE_BYTES):
                count = min(PIECE_BYTES, stop - offset)
                piece: bytes | memoryview | None = sending.read_cached(count, offset)
                if piece is None:
                    piece = await loop.run_in_executor(self._threads, sending.read, count, offset)
                more = offset + count < stop
                await send({"type": "http.response.body", "body": piece, "more_body": more})
        finally:
            sending.close()

    def _open(self, scope: Scope) -> Sending:
        names = scope["path_params"]
        refuse_query(scope["query_string"])
        opened = self._registry.open(names["store"], names["snapshot"])
        check_root(opened.snapshot, opened.store.name, by_name(scope["headers"]))
        return open_object(opened, names["key"])


def open_object(opened: Opened, key: str) -> Sending:
    """Open an object for sending; UnknownName if the commit does not list it, Damaged if it is not
    a plain file of the committed length."""
    served, snapshot = opened.store, opened.snapshot
    if key == commit_key(snapshot.name):
        commit = snapshot.commit.to_bytes()
        return Sending(ObjectEntry.of(commit), snapshot.root, commit)
    entry = snapshot.commit.objects.get(key)
    if entry is None:
        raise UnknownName(f"the commit of snapshot {snapshot.name!r} lists no such object")
    try:
        descriptor = os.open(served.storage.path(key), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except (FileNotFoundError, NotFound):
        raise Damaged(f"{served.name}: {key} is missing") from None
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode) or found.st_size != entry.length:
        os.close(descriptor)
        raise Damaged(
            f"{served.name}: {key} has {found.st_size} bytes, the commit lists {entry.length}"
        )
    return Sending(entry, snapshot.root, descriptor)


def choose_range(sending: Sending, scope: Scope) -> tuple[int, Headers, int, int]:
    """Return status, headers, and the bytes ``start .. stop-1`` to send (RFC 9110, 13 and 14).

    MismatchError if no entity tag of ``If-Match`` is the object's.
    """
    headers = by_name(scope["headers"])
    length, etag = sending.entry.length, f'"{sending.entry.sha256}"'
    common = {
        "etag": etag,
        "cache-control": "public, max-age=31536000, immutable",
        "accept-ranges": "bytes",
        ROOT_HEADER: sending.root,
    }
    if not _names(headers.get(b"if-match", b"*"), etag):
        raise MismatchError(f"the object is {etag}, none that If-Match names")
    if _names(headers.get(b"if-none-match", b""), etag, weak=True):
        return 304, _encoded(common), 0, 0
    status, start, stop = 200, 0, length
    if scope["method"] == "GET" and headers.get(b"if-range", etag.encode()) == etag.encode():
        chosen = _parse_range(headers.get(b"range", b"").decode("latin-1"), length)
        if chosen is not None:
            status, (start, stop) = 206, chosen
            common["content-range"] = f"bytes {start}-{stop - 1}/{length}"
    common["content-type"] = "application/octet-stream"
    common["content-length"] = str(stop - start)
    return status, _encoded(common), start, stop


def _names(field: bytes, etag: str, *, weak: bool = False) -> bool:
    """Whether a list of entity tags, or ``*``, names this one; ``weak`` ones too if allowed."""
    tags = [tag.strip() for tag in field.decode("latin-1").split(",")]
    return "*" in tags or etag in tags or (weak and f"W/{etag}" in tags)


def _parse_range(value: str, length: int) -> tuple[int, int] | None:
    """Return ``start, stop`` of one valid range; None if it is to be ignored (RFC 9110, 14.2).

    Refusal if the range lies outside the object.
    """
    match = _RANGE.fullmatch(value)
    if match is None:
        return None
    first, last, suffix = match.groups()
    if suffix is not None:
        start, stop = max(0, length - int(suffix)), length
    elif last and int(last) < int(first):
        return None
    else:
        start, stop = int(first), min(length, int(last) + 1) if last else length
    if start >= stop:
        outside = {"content-range": f"bytes */{length}"}
        raise Refusal(416, "range", f"the object has {length} bytes", outside)
    return start, stop


def _encoded(headers: dict[str, str]) -> Headers:
    return [(name.encode(), value.encode()) for name, value in headers.items()]


_PARAMETERS: list[dict[str, Any]] = [
    {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
    for name in ("store", "snapshot", "key")
]


_BINARY: dict[str, Any] = {
    "application/octet-stream": {"schema": {"type": "string", "format": "binary"}}
}


OPENAPI: dict[str, Any] = {
    method: {
        "summary": "An object that the snapshot's commit lists",
        "operationId": f"object_{method}",
        "parameters": _PARAMETERS,
        "responses": {
            "200": {"description": "The whole object; its ETag is its sha256.", "content": _BINARY},
            "206": {"description": "One range of it.", "content": _BINARY},
            "304": {"description": "The client has it."},
        },
    }
    for method in ("get", "head")
}
