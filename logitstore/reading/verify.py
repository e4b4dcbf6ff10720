"""Check a whole store against its commits: every object's length and sha256, and no others.

What is called whole can be read by any zarr client, too: the checksums inside the shards are
computed, which reads of ours leave to the sha256.  This needs no teacher and no torch;
``precompute.building.recompute`` computes samples again through the teacher.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from logitstore.errors import Damaged, InputError, NotFound, UnknownName
from logitstore.format.arrays import ArrayLayout, check_checksums, decode_shard
from logitstore.format.cards import Samples
from logitstore.format.commits import build_folder, commit_key, plan_key, snapshot_folder
from logitstore.format.encodings.rows import Rows
from logitstore.format.grid import Span
from logitstore.format.row_digests import ROW_DIGESTS, digests_of
from logitstore.progress import Progress, Silent
from logitstore.reading.opening import open_store
from logitstore.reading.snapshot import Snapshot
from logitstore.storage import Storage, is_url, open_storage
from logitstore.storage.local import is_temporary


@dataclass
class Report:
    """Holds a verification's result; ``breaches`` say which object or row is wrong, and how."""

    store: str
    objects: int = 0
    bytes: int = 0
    rows_recomputed: int = 0
    breaches: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.breaches

    def add(self, breach: str) -> None:
        """Keep a breach; the same one of several snapshots is kept once."""
        if breach not in self.breaches:
            self.breaches.append(breach)

    @contextmanager
    def add_damage(self, prefix: str = "") -> Iterator[None]:
        """Keep as a breach, instead of raising, that something is damaged."""
        try:
            yield
        except Damaged as error:
            self.add(f"{prefix}{error}")


def verify_store(
    location: str,
    *,
    snapshots: Sequence[str] = (),
    token: str | None = None,
    progress: Progress | None = None,
) -> Report:
    """Verify every object of all, or the named, snapshots of a local or served store.

    Local stores are also searched for objects that no commit lists.  Raises NotFound or UnknownName
    when there is nothing to verify.
    """
    progress = progress or Silent()
    report = Report(location)
    remote = is_url(location)
    try:
        store = open_store(location, token)
    except Damaged as error:
        report.add(str(error))
        return report
    except NotFound as error:
        if remote or not open_storage(location).names("snapshots/"):
            raise
        report.add(str(error))
        return report
    if not remote:
        report.breaches += _lost_commits(open_storage(location))
    committed = list(store.snapshots)
    names = list(snapshots) or committed
    for name in names:
        if name not in committed:
            raise UnknownName.among(f"snapshot in {location}", name, committed)
    if not names and not report.breaches:
        raise InputError(f"{location}: no committed snapshot to verify")
    known: set[str] = set()
    for name in names:
        with report.add_damage():
            snapshot = store.snapshots[name]
            known |= set(snapshot.commit.objects) | {commit_key(name)}
            _SnapshotCheck(snapshot, report, progress).run()
    if not remote and not snapshots:
        _find_foreign(open_storage(location), known, names, report)
    return report


class _SnapshotCheck:
    """Reads every object of one snapshot once, and decodes every shard, into a report."""

    def __init__(self, snapshot: Snapshot, report: Report, progress: Progress) -> None:
        self.snapshot, self.report, self.progress = snapshot, report, progress

    def run(self) -> None:
        snapshot = self.snapshot
        entries = snapshot.commit.objects
        total = sum(entry.length for entry in entries.values())
        self.progress.start(f"verify {snapshot.name}", total, "bytes")
        shards = {span: self._keys(span) for span in snapshot.grid.shards()}
        decoded = {key for keys in shards.values() for key in keys.values()}
        for key in sorted(entries.keys() - decoded):
            if not key.startswith(("labels/", "keys/")):
                self._object(key)
        self._check_samples()
        for span, keys in shards.items():
            self._check_rows(span, keys)

    def _keys(self, span: Span) -> dict[str, str]:
        """Return the key of a shard by array."""
        folder, shard = snapshot_folder(self.snapshot.name), self.snapshot.grid.key(span)
        return {name: f"{folder}/{name}/{shard}" for name in self.snapshot.layouts}

    def _object(self, key: str) -> bytes | None:
        """Return an object's bytes if they are the committed ones."""
        length = self.snapshot.commit.objects[key].length
        self.report.objects += 1
        self.report.bytes += length
        data = None
        with self.report.add_damage():
            data = self.snapshot.object(key)
        self.progress.advance(length)
        return data

    def _shard(self, layout: ArrayLayout, key: str, rows: int) -> NDArray[Any] | None:
        """Return a shard's rows if its bytes, checksums and index are right."""
        data = self._object(key)
        if data is None:
            return None
        where = f"{self.snapshot.url}: {key}"
        with self.report.add_damage():
            check_checksums(where, layout, data)
            return decode_shard(where, layout, data, rows)
        return None

    def _check_samples(self) -> None:
        """Check labels against the classes, and both against the digest in the metadata."""
        card = self.snapshot.store_meta.dataset
        labels, keys = self._flat("labels"), self._flat("keys")
        if labels is None or keys is None:
            return
        outside = np.flatnonzero((labels < -1) | (labels >= self.snapshot.meta.classes))
        if len(outside):
            self.report.add(
                f"{self.snapshot.url}: sample {outside[0]} has label {labels[outside[0]]}, "
                f"expected -1 or one of {self.snapshot.meta.classes} classes"
            )
        texts = [str(key) for key in keys] if len(keys) else None
        if Samples(card.name, labels, texts).card() != card:
            self.report.add(f"{self.snapshot.url}: labels and keys are not the dataset card's")

    def _flat(self, array: str) -> NDArray[Any] | None:
        """Return labels or keys, (N,); None if they are damaged, (0,) if there are none."""
        if f"{array}/zarr.json" not in self.snapshot.commit.objects:
            return np.empty(0)
        document, layout = self._object(f"{array}/zarr.json"), None
        where, samples = f"{self.snapshot.url}: {array}", self.snapshot.meta.samples
        with self.report.add_damage():
            layout = None if document is None else ArrayLayout.parse(where, document)
        if layout is None:
            return None
        if layout.shape != (samples,) or layout.dtype != {"labels": "<i4", "keys": None}[array]:
            self.report.add(f"{where}: not the {array} of {samples} samples")
            return None
        parts = [
            self._shard(layout, f"{array}/{layout.grid.flat_key(span)}", span.rows)
            for span in layout.grid.shards()
        ]
        whole = [part for part in parts if part is not None]
        return np.concatenate(whole) if len(whole) == len(parts) else None

    def _check_rows(self, span: Span, keys: dict[str, str]) -> None:
        """Check that one shard's rows have their digests, and logits that are finite."""
        snapshot = self.snapshot
        arrays = {
            name: self._shard(snapshot.layouts[name], key, span.rows) for name, key in keys.items()
        }
        whole = {name: array for name, array in arrays.items() if array is not None}
        if len(whole) < len(arrays):
            return
        digests = whole.pop(ROW_DIGESTS, None)
        if digests is not None:
            self._check_digests(span, Rows(snapshot.encoding, whole), digests)
        with self.report.add_damage():
            snapshot.refuse_faulty(whole, span.view, range(span.start, span.stop))

    def _check_digests(self, span: Span, rows: Rows, digests: NDArray[np.uint8]) -> None:
        wrong = np.flatnonzero((digests_of(rows) != digests).any(axis=1))
        if len(wrong):
            self.report.add(
                f"{self.snapshot.name}: view {span.view}, sample {span.start + wrong[0]}: its "
                f"digest is that of another row ({len(wrong)} rows of this shard)"
            )


def _lost_commits(storage: Storage) -> list[str]:
    """Describe the snapshots that are neither committed nor being built."""
    return [
        f"{storage.url}: {commit_key(name)} is missing: the snapshot is lost"
        for name in storage.names("snapshots/")
        if storage.size(commit_key(name)) is None and storage.size(plan_key(name)) is None
    ]


def _find_foreign(storage: Storage, known: set[str], names: Sequence[str], report: Report) -> None:
    """Report objects that no commit lists; those of an unfinished build are not foreign."""
    unfinished = [name for name in storage.names(".build/") if name not in names]
    allowed = tuple(f"{snapshot_folder(name)}/" for name in unfinished)
    allowed += tuple(f"{build_folder(name)}/" for name in storage.names(".build/"))
    damaged = {name for name in names if commit_key(name) not in known}
    for key in sorted(storage.keys()):
        parts = key.split("/")
        damaged_too = len(parts) > 1 and parts[0] == "snapshots" and parts[1] in damaged
        if key in known or key.startswith(allowed) or damaged_too or is_temporary(key):
            continue
        if damaged and len(damaged) == len(names):
            continue  # no commit could be read, so nothing tells which objects belong
        report.add(f"{storage.url}: {key} was added: no commit lists it; remove it")
