"""Write, or check, what all snapshots of a store share: labels, keys and the groups' metadata."""

from __future__ import annotations

import numpy as np

from logitstore.errors import Damaged
from logitstore.format.cards import Samples
from logitstore.format.commits import Commit, ObjectEntry, group_document, snapshot_folder
from logitstore.format.grid import FLAT_CHUNK_ROWS, FLAT_SHARD_ROWS
from logitstore.storage import Storage
from logitstore.writing.zarr_writer import WriterStore, create_array


def write_shared(storage: Storage, root: bytes, samples: Samples) -> dict[str, ObjectEntry]:
    """Write labels, keys and the snapshots' group; return their entries and that of ``root``.

    ``root`` is the store's ``zarr.json``, which its creator has written.
    """
    store = WriterStore(storage)
    rows, shape = (FLAT_SHARD_ROWS, FLAT_CHUNK_ROWS), (len(samples.labels),)
    create_array(store, "labels", "<i4", shape, rows)[:] = samples.labels
    if samples.keys is not None:
        create_array(store, "keys", None, shape, rows)[:] = np.array(samples.keys, "T")
    group = group_document({})
    storage.put("snapshots/zarr.json", group)
    return {
        "zarr.json": ObjectEntry.of(root),
        "snapshots/zarr.json": ObjectEntry.of(group),
        **store.entries,
    }


def shared_of(storage: Storage, name: str, commit: bytes) -> dict[str, ObjectEntry]:
    """Return the entries that a commit lists outside its snapshot; Damaged if one is not stored."""
    inside = f"{snapshot_folder(name)}/"
    objects = Commit.open(name, commit, name).objects
    entries = {key: entry for key, entry in objects.items() if not key.startswith(inside)}
    for key, entry in entries.items():
        if ObjectEntry.of(storage.get(key)) != entry:
            raise Damaged(f"{storage.url}: {key} is not what the commit of {name!r} lists")
    return entries
