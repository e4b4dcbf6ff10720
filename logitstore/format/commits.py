"""List a snapshot's objects with their digests in a commit, and name the keys of all objects.

A root is the digest of a commit.  This file does not know where objects lie or who writes them.
"""

from __future__ import annotations

import hashlib
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from logitstore.errors import Damaged, InputError
from logitstore.format.documents import Document, Key, Name, OrStop, Sha256, canonical

ATTRIBUTE = "logitstore"
"""Name of our attributes in the ``zarr.json`` of a group."""

MAX_ENTRIES, MAX_COMMIT_BYTES = 1 << 18, 64 << 20
"""Most objects that a commit lists, and the bytes of the largest commit."""


class ObjectEntry(Document):
    """Holds the length in bytes and the sha256 of one object."""

    length: Annotated[int, Field(ge=0)]
    sha256: Sha256

    @classmethod
    def of(cls, data: bytes | memoryview) -> ObjectEntry:
        """Return the entry of these bytes."""
        return cls(length=len(data), sha256=hashlib.sha256(data).hexdigest())


class ShardMark(Document):
    """Lists a finished shard's objects and its part of the statistics: ``.build/NAME/SHARD.json``.

    ``kl_sum`` and ``kl_max`` (nats) have one entry per temperature of the plan.
    """

    view: int
    start: int
    stop: int
    objects: dict[Key, ObjectEntry]
    kl_sum: tuple[float, ...]
    kl_max: tuple[float, ...]
    agreeing: int
    labelled: int
    correct: int


class Commit(Document):
    """Lists every object of a snapshot and of its store: ``snapshots/NAME/commit.json``.

    ``sha256`` covers the rest of the document, so that damage to the commit is seen when it is
    opened and not only when the damaged entry is used.
    """

    most_bytes: ClassVar[int] = MAX_COMMIT_BYTES
    format_version: Literal[1] = 1
    snapshot: Name
    objects: dict[Annotated[Key, OrStop], Annotated[ObjectEntry, OrStop]]
    sha256: Sha256

    @classmethod
    def seal(cls, snapshot: str, objects: dict[str, ObjectEntry]) -> Commit:
        """Make a commit with its own digest filled in."""
        if len(objects) > MAX_ENTRIES:
            raise InputError(
                f"snapshot {snapshot!r} has {len(objects):,} objects; a commit lists at most "
                f"{MAX_ENTRIES:,}: build its views as several snapshots"
            )
        draft = cls(snapshot=snapshot, objects=objects, sha256="0" * 64)
        return draft.model_copy(update={"sha256": draft._digest(draft.to_bytes())})

    def _digest(self, whole: bytes) -> str:
        """Return the digest of this document's bytes without their member ``sha256``."""
        before, _, after = whole.rpartition(f'"sha256":"{self.sha256}",'.encode())
        return hashlib.sha256(before + after).hexdigest()

    @classmethod
    def open(cls, where: str, data: bytes, snapshot: str) -> Commit:
        """Parse a commit and check that it is whole, canonical and about ``snapshot``."""
        # An entry has two commas, and what a parser makes of a comma takes up to 100 bytes.
        if data.count(b",") > 2 * MAX_ENTRIES + 3:
            raise Damaged(f"{where}: the commit lists more than {MAX_ENTRIES:,} objects")
        commit = cls.parse(where, data)
        if commit.to_bytes() != data or commit._digest(data) != commit.sha256:
            raise Damaged(f"{where}: the commit's bytes are not what its own digest covers")
        if commit.snapshot != snapshot:
            raise Damaged(f"{where}: this is the commit of {commit.snapshot!r}, not {snapshot!r}")
        return commit


def root_of(commit: bytes) -> str:
    """Return a snapshot's root: the sha256 of its commit's bytes, as hex."""
    return hashlib.sha256(commit).hexdigest()


class _Group(Document):
    attributes: dict[str, Any]
    node_type: Literal["group"]
    zarr_format: Literal[3]


def snapshot_folder(name: str) -> str:
    """Return the folder of a snapshot, relative to its store."""
    return f"snapshots/{name}"


def commit_key(name: str) -> str:
    """Return the key of a snapshot's commit."""
    return f"{snapshot_folder(name)}/commit.json"


def build_folder(name: str) -> str:
    """Return the folder in which an unfinished build keeps its plan and marks."""
    return f".build/{name}"


def plan_key(name: str) -> str:
    """Return the key of an unfinished build's plan."""
    return f"{build_folder(name)}/plan.json"


def mark_key(name: str, view: int, number: int) -> str:
    """Return the key of the mark that a shard of an unfinished build is finished."""
    return f"{build_folder(name)}/{view}-{number}.json"


def group_document(attributes: dict[str, Any]) -> bytes:
    """Return the ``zarr.json`` of a zarr v3 group."""
    return canonical({"attributes": attributes, "node_type": "group", "zarr_format": 3})


def group_attributes(where: str, data: bytes) -> dict[str, Any]:
    """Return our attributes in a group's ``zarr.json``; attributes of others are ignored."""
    attributes = check_group(where, data)
    if not isinstance(attributes.get(ATTRIBUTE), dict):
        raise Damaged(f"{where}: no {ATTRIBUTE!r} attribute: this group is not a logit store")
    ours: dict[str, Any] = attributes[ATTRIBUTE]
    return ours


def check_group(where: str, data: bytes) -> dict[str, Any]:
    """Return all attributes of a group's ``zarr.json``; Damaged if it is none."""
    return _Group.parse(where, data).attributes
