"""Describe stores and snapshots as JSON-ready documents, which ``ls`` and ``inspect`` print.

It reads metadata only, never rows, and does not know how a terminal shows them (``cli.show``).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from logitstore.errors import InputError, LogitstoreError, NotFound
from logitstore.format.encodings.table import encoding, spelled
from logitstore.reading.opening import open_store
from logitstore.reading.scan import Scan
from logitstore.reading.snapshot import Snapshot
from logitstore.reading.store import LogitStore
from logitstore.storage import is_url


def describe_snapshot(snapshot: Snapshot) -> dict[str, Any]:
    """Return a snapshot's metadata, without canaries, with its root and size; JSON-ready."""
    meta, stored = snapshot.meta, snapshot.stored_bytes()
    optional = {"combined": None, "row_digests": False}
    document = {**optional, **meta.model_dump(mode="json", exclude={"view": {"canaries"}})}
    for internal in ("format_version", "rows_per_shard", "temperatures"):
        del document[internal]
    return {
        **document,
        "root": snapshot.root,
        "bytes": stored,
        "bytes_per_row": stored / (meta.views * meta.samples),
    }


def describe_store(store: LogitStore, names: list[str] | None = None) -> dict[str, Any]:
    """Return a store and its (or the named) snapshots, JSON-ready."""
    chosen = list(store.snapshots) if names is None else names
    return {
        "store": store.url,
        **store.meta.model_dump(mode="json"),
        "snapshots": [describe_snapshot(store.snapshots[name]) for name in chosen],
    }


def encoding_text(snapshot: dict[str, Any]) -> str:
    """Return what ``--encoding`` takes for the encoding of a described snapshot: "uint8:64"."""
    card = snapshot["encoding"]
    return spelled(encoding(card["name"], snapshot["classes"], card["parameters"]))


def list_location(location: str, token: str | None) -> list[dict[str, Any]]:
    """Return one JSON-ready row for each snapshot at a path, under a folder or on a server.

    A store that cannot be read, or has no snapshot, is a row with a ``problem``.
    """
    if is_url(location):
        return _list_remote(location, token)
    path = Path(location)
    if not path.is_dir():
        raise NotFound(f"{location}: there is no such folder")
    rows: list[dict[str, Any]] = []
    for folder, problem in Scan(path).places():
        if folder == path:
            return _rows_of(location, None)
        unreadable = [{"store": str(folder), "problem": problem}]
        rows += unreadable if problem else _list_store(str(folder))
    if not rows:
        raise InputError(f"{location}: no logit stores here; `logitstore build --out …` makes one")
    return rows


def _list_store(location: str, token: str | None = None) -> list[dict[str, Any]]:
    """Return the rows of one of several stores; its faults must not hide the others."""
    try:
        return _rows_of(location, token)
    except (LogitstoreError, OSError) as error:
        return [{"store": location, "problem": str(error)}]


def _rows_of(location: str, token: str | None) -> list[dict[str, Any]]:
    rows = [
        {
            "store": location,
            "snapshot": name,
            **snapshot.meta.model_dump(include={"views", "samples", "classes", "top1"}),
            "encoding": snapshot.meta.encoding.name,
            "parameters": snapshot.meta.encoding.parameters,
            "bytes": snapshot.stored_bytes(),
            "root": snapshot.root,
        }
        for name, snapshot in open_store(location, token).snapshots.items()
    ]
    return rows or [{"store": location, "problem": "no committed snapshot yet"}]


def _list_remote(location: str, token: str | None) -> list[dict[str, Any]]:
    from logitstore.reading.remote import list_stores  # imports urllib3

    if urlsplit(location).path.strip("/"):
        return _rows_of(location, token)
    rows: list[dict[str, Any]] = []
    for entry in list_stores(location, token):
        rows += _list_store(f"{location.rstrip('/')}/{entry.name}", token)
    return rows
