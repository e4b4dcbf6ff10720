"""Predict the bytes of a snapshot from a sample of its logits: within about 2 %.

Rows times the sample's bytes per row, and what each shard and each snapshot takes besides.
"""

from __future__ import annotations

from tempfile import TemporaryDirectory
from typing import NamedTuple

from logitstore.format.cards import Fidelity, Samples, SnapshotMeta, SnapshotPlan, StoreMeta
from logitstore.format.commits import ATTRIBUTE, group_document, snapshot_folder
from logitstore.format.encodings.base import Labels, Logits
from logitstore.format.encodings.rows import Rows
from logitstore.format.encodings.table import encoding_of
from logitstore.format.fidelity import encoded
from logitstore.format.grid import chunk_rows
from logitstore.format.row_digests import ROW_DIGESTS, digests_of
from logitstore.format.sizes import CRC_BYTES, INDEX_BYTES, chunked_bytes
from logitstore.storage import open_storage
from logitstore.writing.shared import write_shared

_ARRAY_BYTES = 1340
"""Bytes of the metadata of an array, with its entry in the commit."""

_COMMIT_BYTES = 690
"""Bytes of a commit's frame, with the entries of what the snapshots of a store share."""

_ENTRY_BYTES = len('"":{"length":12345,"sha256":""},') + 64
"""Bytes of a shard's entry in the commit, without its key."""


class Footprint(NamedTuple):
    """The bytes of a snapshot's objects, its commit included, and what the encoding loses."""

    bytes: int
    fidelity: Fidelity


def shared_bytes(meta: StoreMeta, samples: Samples) -> int:
    """Return the bytes of what a store has beside its snapshots: labels, keys, metadata."""
    document = group_document({ATTRIBUTE: meta.model_dump(mode="json")})
    with TemporaryDirectory() as folder:
        entries = write_shared(open_storage(folder), document, samples)
    return sum(entry.length for entry in entries.values())


def footprint(plan: SnapshotPlan, sample: Logits, labels: Labels, top1: float | None) -> Footprint:
    """Predict a snapshot from n of its rows, float32 (n, C), and labels (n,), -1 where unknown."""
    entry = encoding_of(plan.encoding, plan.classes)
    arrays, fidelity = encoded(entry, sample, labels, plan.temperatures)
    if plan.row_digests:
        arrays = {**arrays, ROW_DIGESTS: digests_of(Rows(entry, arrays))}
    meta = SnapshotMeta(**plan.model_dump(), fidelity=fidelity, top1=top1)
    chunk = chunk_rows(plan.rows_per_shard, entry.widest)
    per_row = chunked_bytes(arrays, min(chunk, plan.samples, len(sample)))
    chunks = plan.rows_per_shard // chunk
    key = len(f"{snapshot_folder(plan.name)}/codes/c/0/0/0")
    per_shard = INDEX_BYTES * chunks + CRC_BYTES + _ENTRY_BYTES + key
    total = plan.views * plan.samples * per_row
    total += len(plan.grid.shards()) * len(arrays) * per_shard
    total += len(group_document({ATTRIBUTE: meta.model_dump(mode="json")}))
    total += len(arrays) * _ARRAY_BYTES + _COMMIT_BYTES
    return Footprint(round(total), fidelity)
