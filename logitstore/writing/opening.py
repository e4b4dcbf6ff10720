"""Begin the build of a snapshot, go on with it, run it to its end, or discard it.

A committed snapshot is never touched.
"""

from __future__ import annotations

from collections.abc import Callable

from logitstore.errors import InputError, UnknownName
from logitstore.format.cards import SnapshotPlan
from logitstore.format.commits import build_folder, commit_key, root_of, snapshot_folder
from logitstore.format.encodings.base import Logits
from logitstore.format.grid import Span
from logitstore.progress import Progress, Silent
from logitstore.storage import Storage, open_storage
from logitstore.writing.target import Target
from logitstore.writing.writer import SnapshotWriter


def open_writer(target: Target, plan: SnapshotPlan, *, fresh: bool = False) -> SnapshotWriter:
    """Create or resume a snapshot in a new or existing store.

    The same plan goes on where it stopped, also if another version of logitstore began it;
    ``fresh`` forgets an unfinished build first.  Raises what ``Target.refuse`` raises, before
    anything is written.
    """
    target.refuse(plan, fresh=fresh)
    commit = target.commits.get(plan.name)
    if commit is not None:
        writer = SnapshotWriter(target.storage, plan, {})
        writer.root = root_of(commit)
        return writer
    if fresh:
        discard(target.storage, plan.name)
    else:
        plan = target.going_on(plan)
    writer = SnapshotWriter(target.storage, plan, target.begin(plan))
    if writer.start():
        return writer
    target.read_again(plan)
    return open_writer(target, plan)


def write_snapshot(
    target: Target,
    plan: SnapshotPlan,
    logits_of: Callable[[Span], Logits],
    task: str,
    *,
    fresh: bool = False,
    progress: Progress | None = None,
) -> str:
    """Write the shards that a snapshot lacks, commit it and return its root.

    ``logits_of`` returns float32 (rows, C) of a shard; ``task`` names the work to ``progress``.
    Raises what ``open_writer`` and ``SnapshotWriter.write`` raise.
    """
    progress = progress or Silent()
    writer = open_writer(target, plan, fresh=fresh)
    missing = writer.missing()
    progress.start(task, sum(shard.rows for shard in missing), "rows")
    for shard in missing:
        writer.write(shard, logits_of(shard), target.samples.labels[shard.samples])
        progress.advance(shard.rows)
    return writer.commit()


def discard(storage: Storage, name: str) -> None:
    """Delete an unfinished build; a committed snapshot is refused with InputError.

    The store goes too if nothing else is in it.
    """
    if storage.size(commit_key(name)) is not None:
        raise InputError(
            f"{storage.url}: snapshot {name!r} is committed; only unfinished builds are discarded"
        )
    keys = [*storage.keys(f"{snapshot_folder(name)}/"), *storage.keys(f"{build_folder(name)}/")]
    if {*storage.names("snapshots/"), *storage.names(".build/")} <= {name}:
        keys += [*storage.keys("labels/"), *storage.keys("keys/")]
        keys += ["snapshots/zarr.json", "zarr.json"]
    for key in keys:
        storage.delete(key)
    storage.sweep(emptied="")


def discard_unfinished(location: str, name: str) -> None:
    """Discard the unfinished build of a snapshot in the store at a path.

    Raises UnknownName where no such build is unfinished, InputError for a committed snapshot.
    """
    storage = open_storage(location)
    unfinished = sorted(storage.names(".build/"))
    if name not in unfinished and storage.size(commit_key(name)) is None:
        if not unfinished:
            raise UnknownName(f"{storage.url}: no build is unfinished there")
        raise UnknownName.among(f"unfinished build in {storage.url}", name, unfinished)
    discard(storage, name)
