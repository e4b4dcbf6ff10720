"""How many bytes a snapshot will have, from a sample of its logits.

Metadata, labels and the commit are made as the writer makes them and measured; only the encoded
rows are scaled from the sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from tempfile import TemporaryDirectory

from logitstore.format.cards import Fidelity, SnapshotMeta, SnapshotPlan, StoreMeta
from logitstore.format.commits import (
    ATTRIBUTE,
    Commit,
    ObjectEntry,
    build_folder,
    group_document,
    snapshot_folder,
)
from logitstore.format.encodings.base import Labels, Logits
from logitstore.format.encodings.table import encoding_of
from logitstore.format.fidelity import encoded
from logitstore.format.grid import chunk_rows
from logitstore.format.samples import Samples
from logitstore.format.sizes import shard_bytes
from logitstore.storage import open_storage
from logitstore.writing.target import Target
from logitstore.writing.zarr_writer import WriterStore, create_array

Objects = dict[str, ObjectEntry]


_ENTRY_BYTES = len('"":{"length":,"sha256":""},') + 64
"""Of one object in a commit, without its key and the digits of its length."""


@dataclass(frozen=True)
class Footprint:
    """Predicted bytes of a snapshot's objects, its commit included; the sample's fidelity."""

    bytes: int
    fidelity: Fidelity


def store_objects(meta: StoreMeta, samples: Samples, plan: SnapshotPlan) -> Objects:
    """What a store has beside its snapshots: labels, keys, the root's metadata."""
    with TemporaryDirectory() as folder:
        storage = open_storage(folder)
        Target.read(storage, meta, samples).begin(plan)
        own = (f"{build_folder(plan.name)}/", f"{snapshot_folder(plan.name)}/")
        keys = [key for key in storage.keys("") if not key.startswith(own)]
        return {key: ObjectEntry.of(storage.get(key)) for key in keys}


def footprint(
    plan: SnapshotPlan, sample: Logits, labels: Labels, top1: float | None, in_store: Objects
) -> Footprint:
    """Predict a snapshot from float32 (n, C) of its rows and their labels (n,), -1 where unknown.

    ``in_store`` is what its commit lists.

    n is a multiple of 512, or at least ``plan.samples``; a sample of all rows is met exactly if
    there is one view.
    """
    arrays, fidelity = encoded(
        encoding_of(plan.encoding, plan.classes), sample, labels, plan.temperatures
    )
    meta = SnapshotMeta(**plan.model_dump(), fidelity=fidelity, top1=top1)
    document = group_document({ATTRIBUTE: meta.model_dump(mode="json")})
    folder = snapshot_folder(plan.name)
    own = {f"{folder}/zarr.json": ObjectEntry.of(document), **_array_documents(plan)}
    total = sum(entry.length for entry in own.values())
    total += len(Commit.seal(plan.name, {**in_store, **own}).to_bytes())
    whole, rest = divmod(plan.samples, plan.rows_per_shard)
    for name, rows in arrays.items():
        lengths = [shard_bytes(rows, plan.rows_per_shard, plan)] * whole if whole else []
        lengths += [shard_bytes(rows, rest, plan)] if rest else []
        total += plan.views * sum(lengths)
        total += _entries_bytes(f"{folder}/{name}/c/", plan.views, lengths)
    return Footprint(total, fidelity)


def _entries_bytes(prefix: str, views: int, lengths: Sequence[int]) -> int:
    """What one array's shards, of these lengths in each view, add to the commit."""
    fixed = _ENTRY_BYTES + len(f"{prefix}//0")
    of_a_view = sum(fixed + len(f"{number}{length}") for number, length in enumerate(lengths))
    return views * of_a_view + len(lengths) * sum(len(str(view)) for view in range(views))


def _array_documents(plan: SnapshotPlan) -> Objects:
    """The metadata of a snapshot's arrays, as the writer writes it."""
    entry, rows = encoding_of(plan.encoding, plan.classes), plan.rows_per_shard
    chunk = chunk_rows(rows, entry.widest)
    with TemporaryDirectory() as folder:
        store = WriterStore(open_storage(folder))
        for name, (dtype, width) in entry.layout.items():
            shape = (plan.views, plan.samples, width)
            create_array(store, f"{snapshot_folder(plan.name)}/{name}", dtype, shape, (rows, chunk))
        return store.entries
