"""Check what all routes check in a request: the build that it means, and that it has no query.

A part of a request that could change its answer is obeyed or refused, never ignored.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeVar

from logitstore.api.guard.problems import Refusal
from logitstore.api.served.decoding import MOMENT_SECONDS
from logitstore.api.served.registry import Opened, Registry
from logitstore.errors import Damaged, InputError, MismatchError
from logitstore.format.wire import ROOT_HEADER
from logitstore.reading.snapshot import Snapshot

Read = TypeVar("Read")


def check_root(snapshot: Snapshot, store: str, headers: dict[bytes, bytes]) -> None:
    """Refuse a request whose ``x-logitstore-root`` names another build of this snapshot."""
    expected = headers.get(ROOT_HEADER.encode(), snapshot.root.encode()).decode("latin-1")
    if expected != snapshot.root:
        raise MismatchError(
            f"snapshot {snapshot.name!r} of store {store!r} has root {snapshot.root}, "
            f"the request means {expected[:64]}"
        )


def read_twice(registry: Registry, opened: Opened, read: Callable[[], Read]) -> Read:
    """Read something of a snapshot, and call that damaged only if it still is a moment later.

    Refusal if another build lies there by then: a store that is replaced looks damaged meanwhile.
    """
    try:
        return read()
    except Damaged:
        time.sleep(MOMENT_SECONDS)
    if not registry.is_current(opened):
        detail = "the store was replaced while it was read; try again"
        raise Refusal(503, "unreadable", detail, {"retry-after": "1"})
    return read()


def refuse_query(query: bytes) -> None:
    """Refuse any query on a path that has none."""
    if query:
        raise InputError(f"this path takes no query: drop ?{query[:64].decode('latin-1')}")


def path_parameters(*names: str) -> list[dict[str, Any]]:
    """Return the OpenAPI of parameters in a path."""
    text = {"type": "string"}
    return [{"name": name, "in": "path", "required": True, "schema": text} for name in names]


BINARY: dict[str, Any] = {"schema": {"type": "string", "format": "binary"}}
"""OpenAPI of a body that is no text."""

ROOT_PARAMETER: dict[str, Any] = {
    "name": ROOT_HEADER,
    "in": "header",
    "description": "The root that the request means; 412 if the snapshot has another.",
    "schema": {"type": "string"},
}
"""OpenAPI of the header that ``check_root`` reads."""
