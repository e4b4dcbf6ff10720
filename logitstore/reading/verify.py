"""Check a whole store against its commits: every object's length and sha256, and no others.

This needs no teacher and no torch; ``precompute.verify`` recomputes samples through the teacher.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from logitstore.errors import Damaged, InputError, NotFound, UnknownName
from logitstore.format.commits import build_folder, commit_key, plan_key, snapshot_folder
from logitstore.format.samples import Samples
from logitstore.progress import Progress, Silent
from logitstore.reading.opening import open_store
from logitstore.reading.snapshot import Snapshot
from logitstore.reading.store import LogitStore
from logitstore.storage import Storage, open_storage
from logitstore.storage.local import is_temporary


@dataclass
class Report:
    """What a verification found; ``breaches`` say which object or row is wrong, and how."""

    store: str
    objects: int = 0
    bytes: int = 0
    rows_recomputed: int = 0
    breaches: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.breaches


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
    remote = location.startswith(("http://", "https://"))
    try:
        store = open_store(location, token)
    except Damaged as error:
        report.breaches.append(str(error))
        return report
    except NotFound as error:
        if remote or not open_storage(location).names("snapshots/"):
            raise
        report.breaches.append(str(error))
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
        snapshot = _open(store, name, report)
        if snapshot is not None:
            known |= set(snapshot.commit.objects) | {commit_key(name)}
            _check_objects(snapshot, report, progress)
            _check_decoding(store, snapshot, report)
    if not remote and not snapshots:
        _find_foreign(open_storage(location), known, names, report)
    return report


def _open(store: LogitStore, name: str, report: Report) -> Snapshot | None:
    try:
        return store.snapshots[name]
    except Damaged as error:
        report.breaches.append(str(error))
        return None


def _check_objects(snapshot: Snapshot, report: Report, progress: Progress) -> None:
    total = sum(entry.length for entry in snapshot.commit.objects.values())
    progress.start(f"verify {snapshot.name}", total, "bytes")
    for key, entry in sorted(snapshot.commit.objects.items()):
        try:
            snapshot.object(key)
        except Damaged as error:
            if str(error) not in report.breaches:
                report.breaches.append(str(error))
        report.objects += 1
        report.bytes += entry.length
        progress.advance(entry.length)


def _check_decoding(store: LogitStore, snapshot: Snapshot, report: Report) -> None:
    """The bytes are the committed ones: are they also shards of this format, and finite?"""
    if report.breaches:
        return
    try:
        keys = None if store.keys is None else [str(key) for key in store.keys]
        card = store.meta.dataset
        if Samples(card.name, store.labels, keys).card() != card:
            report.breaches.append(f"{store.url}: labels and keys are not the dataset card's")
        for view, start, stop in snapshot.grid.shards():
            logits = snapshot.logits(np.arange(start, stop), view)
            broken = np.flatnonzero(~np.isfinite(logits).all(axis=1))
            if len(broken):
                report.breaches.append(
                    f"{snapshot.name}: view {view}, sample {start + broken[0]}: logits are not "
                    f"finite ({len(broken)} rows of this shard)"
                )
    except Damaged as error:
        report.breaches.append(str(error))


def _lost_commits(storage: Storage) -> list[str]:
    """Snapshots that are neither committed nor being built."""
    return [
        f"{storage.url}: {commit_key(name)} is missing: the snapshot is lost"
        for name in storage.names("snapshots/")
        if storage.size(commit_key(name)) is None and storage.size(plan_key(name)) is None
    ]


def _find_foreign(storage: Storage, known: set[str], names: Sequence[str], report: Report) -> None:
    """Objects that no commit lists; those of an unfinished build are not foreign."""
    unfinished = [name for name in storage.names(".build/") if name not in names]
    allowed = tuple(f"{snapshot_folder(name)}/" for name in unfinished)
    allowed += tuple(f"{build_folder(name)}/" for name in storage.names(".build/"))
    damaged = {name for name in names if commit_key(name) not in known}
    for key in sorted(storage.keys()):
        parts = key.split("/")
        own = len(parts) > 1 and parts[0] == "snapshots" and parts[1] in damaged
        if key in known or key.startswith(allowed) or own or is_temporary(key):
            continue
        if damaged and len(damaged) == len(names):
            continue  # no commit could be read, so nothing tells which objects belong
        text = f"{storage.url}: {key} was added: no commit lists it; remove it"
        report.breaches.append(text)
