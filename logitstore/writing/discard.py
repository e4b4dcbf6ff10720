"""Delete what an unfinished build has written; a committed snapshot is never touched."""

from __future__ import annotations

from logitstore.errors import InputError, UnknownName
from logitstore.format.commits import build_folder, commit_key, snapshot_folder
from logitstore.storage import Storage, open_storage


def discard(storage: Storage, name: str) -> None:
    """Delete an unfinished build; a committed snapshot is refused with InputError.

    The store goes too if nothing else is in it.
    """
    if storage.size(commit_key(name)) is not None:
        raise InputError(
            f"{storage.url}: snapshot {name!r} is committed; only unfinished builds are discarded"
        )
    doomed = [*storage.keys(f"{snapshot_folder(name)}/"), *storage.keys(f"{build_folder(name)}/")]
    if {*storage.names("snapshots/"), *storage.names(".build/")} <= {name}:
        doomed += [*storage.keys("labels/"), *storage.keys("keys/")]
        doomed += ["snapshots/zarr.json", "zarr.json"]
    for key in doomed:
        storage.delete(key)
    storage.sweep(emptied="")


def discard_unfinished(location: str, name: str) -> None:
    """Discard the unfinished build of a snapshot in the store at a path.

    Raises UnknownName where no such build is unfinished, InputError for a committed snapshot.
    """
    storage = open_storage(location)
    unfinished = sorted(storage.names(".build/"))
    if name not in unfinished and storage.size(commit_key(name)) is None:
        raise UnknownName.among(f"unfinished build in {storage.url}", name, unfinished)
    discard(storage, name)
