"""How many bytes a snapshot will have, from a sample of its logits.

Metadata, labels and the commit are made as the writer makes them and measured; only the encoded
rows are scaled from the sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numcodecs import zstd
from numpy.typing import NDArray

from logitstore import shards
from logitstore.encodings import Arrays, Encoding, Labels, Logits, encoding
from logitstore.fidelity import compare
from logitstore.resume import open_writer
from logitstore.schema import (
    ATTRIBUTE,
    Commit,
    Divergence,
    Fidelity,
    ObjectEntry,
    SnapshotMeta,
    SnapshotPlan,
    StoreMeta,
    build_folder,
    group_document,
    snapshot_folder,
)
from logitstore.storage import open_storage
from logitstore.writer import Samples
from logitstore.zarr_store import WriterStore, create_array

Objects = dict[str, ObjectEntry]
_CRC_BYTES, _INDEX_BYTES = 4, 16
_DRAWS = 8
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
        open_writer(storage, meta, samples, plan.model_copy(update={"views": 1}))
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
    arrays, fidelity = encoded(planned(plan), sample, labels, plan.temperatures)
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


def planned(plan: SnapshotPlan) -> Encoding:
    """The encoding that a plan names."""
    return encoding(plan.encoding.name, plan.classes, plan.encoding.parameters)


def encoded(
    entry: Encoding, logits: Logits, labels: Labels, temperatures: Sequence[float]
) -> tuple[Arrays, Fidelity]:
    """Rows float32 (n, C) as an encoding keeps them, and what that loses."""
    arrays = entry.encode(logits, labels)
    kl, agrees = compare(logits, entry.decode(arrays), temperatures)
    means, most = kl.sum(axis=0) / len(kl), kl.max(axis=0)
    divergence = tuple(
        Divergence(temperature=temperature, mean=float(mean), max=float(worst))
        for temperature, mean, worst in zip(temperatures, means, most, strict=True)
    )
    return arrays, Fidelity(divergence=divergence, top1_agreement=float(agrees.mean()))


def row_bytes(entry: Encoding, arrays: Arrays) -> float:
    """Compressed bytes of one row like these, without metadata."""
    rows = len(next(iter(arrays.values())))
    chunk = shards.chunk_rows(min(shards.shard_rows(entry.widest), _under(rows)), entry.widest)
    whole = rows - rows % chunk
    return sum(_payload(array[:whole], chunk) for array in arrays.values()) / whole


def _under(count: int) -> int:
    """The largest power of two up to ``count``."""
    return 1 << (count.bit_length() - 1)


def shard_bytes(sample: NDArray[Any], rows: int, plan: SnapshotPlan) -> int:
    """Bytes of one array's shard of ``rows`` rows that are like ``sample`` (n, K)."""
    chunk = shards.chunk_rows(plan.rows_per_shard, planned(plan).widest)
    whole, rest = divmod(rows, len(sample))
    payload = whole * _payload(sample, chunk) if whole else 0
    if rest:
        spread = np.arange(rest) * len(sample) // rest
        draws = range(min(len(sample) // rest, _DRAWS))
        payload += sum(_payload(sample[spread + i], chunk) for i in draws) // len(draws)
    return payload + _INDEX_BYTES * (plan.rows_per_shard // chunk) + _CRC_BYTES


def _payload(rows: NDArray[Any], chunk: int) -> int:
    """Bytes of the inner chunks that hold these rows; the last one is padded with zeros."""
    padding = np.zeros((-len(rows) % chunk, rows.shape[1]), rows.dtype)
    pieces = np.concatenate([rows, padding]).reshape(-1, chunk * rows.shape[1])
    return sum(len(zstd.compress(piece, shards.ZSTD_LEVEL, True)) + _CRC_BYTES for piece in pieces)


def _entries_bytes(prefix: str, views: int, lengths: Sequence[int]) -> int:
    """What one array's shards, of these lengths in each view, add to the commit."""
    fixed = _ENTRY_BYTES + len(f"{prefix}//0")
    of_a_view = sum(fixed + len(f"{number}{length}") for number, length in enumerate(lengths))
    return views * of_a_view + len(lengths) * sum(len(str(view)) for view in range(views))


def _array_documents(plan: SnapshotPlan) -> Objects:
    """The metadata of a snapshot's arrays, as the writer writes it."""
    entry, rows = planned(plan), plan.rows_per_shard
    chunk = shards.chunk_rows(rows, entry.widest)
    with TemporaryDirectory() as folder:
        store = WriterStore(open_storage(folder))
        for name, (dtype, width) in entry.layout.items():
            shape = (plan.views, plan.samples, width)
            create_array(store, f"{snapshot_folder(plan.name)}/{name}", dtype, shape, (rows, chunk))
        return store.entries
