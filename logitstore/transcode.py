"""Encode a snapshot's rows again, without the teacher: ``logitstore transcode``.

The new snapshot keeps the teacher's and the views' cards, so it is bound to the same images, and
says which snapshot it was made from and what that one's encoding had lost.
"""

from __future__ import annotations

from importlib.metadata import version

import numpy as np

from logitstore.choice import SAMPLE_ROWS, EncodingWish, choose_encoding, sample_pairs
from logitstore.encodings import Encoding, spelled
from logitstore.errors import InputError
from logitstore.progress import Progress, Silent
from logitstore.reader import Snapshot
from logitstore.resume import check_target, open_writer
from logitstore.schema import EncodingCard, SnapshotPlan, TranscodeCard, check_name
from logitstore.shards import shard_rows
from logitstore.storage import open_storage
from logitstore.stores import LogitStore
from logitstore.writer import Samples


def transcode(
    store: LogitStore,
    snapshot: Snapshot,
    out: str,
    wish: EncodingWish,
    *,
    name: str | None = None,
    fresh: bool = False,
    progress: Progress | None = None,
) -> str:
    """Write ``snapshot`` of ``store`` to the store ``out`` in another encoding; returns its root.

    ``name`` is the new snapshot's (default: the old one's).  Fidelity is measured against the old
    rows.  Running it again resumes.  Raises InputError, also if the wished bound is not met, and
    MismatchError if ``out`` holds something else.
    """
    progress = progress or Silent()
    name = check_name("snapshot", name or snapshot.name)
    plan = _plan(snapshot, name, wish, _chosen(store, snapshot, wish))
    storage = open_storage(out)
    keys = None if store.keys is None else [str(key) for key in store.keys]
    samples = Samples(store.meta.dataset.name, store.labels, keys)
    check_target(storage, store.meta, plan, fresh=fresh)
    writer = open_writer(storage, store.meta, samples, plan, fresh=fresh)
    missing = writer.missing()
    progress.start("transcode", sum(shard.stop - shard.start for shard in missing), "rows")
    for shard in missing:
        logits = snapshot.logits(np.arange(shard.start, shard.stop), shard.view)
        writer.write(shard, logits, samples.labels[shard.start : shard.stop])
        progress.advance(len(logits))
    return writer.commit()


def _chosen(store: LogitStore, snapshot: Snapshot, wish: EncodingWish) -> Encoding:
    if wish.bound is None:
        return wish.unmeasured(snapshot.meta.classes)
    pairs = np.array(sample_pairs(snapshot.meta.samples, snapshot.meta.views, SAMPLE_ROWS))
    logits = np.empty((len(pairs), snapshot.meta.classes), np.float32)
    for view in range(snapshot.meta.views):
        of_view = pairs[:, 0] == view
        logits[of_view] = snapshot.logits(pairs[of_view, 1], view)
    return choose_encoding(wish, [logits], store.labels[pairs[:, 1]], snapshot.name)


def _plan(snapshot: Snapshot, name: str, wish: EncodingWish, entry: Encoding) -> SnapshotPlan:
    meta = snapshot.meta
    card = EncodingCard(name=entry.name, parameters=entry.parameters)
    if meta.transcoded is not None:
        raise InputError(
            f"{snapshot.url}: snapshot {snapshot.name!r} was itself transcoded, and losses would "
            f"add up: transcode the one that it was made from, root {meta.transcoded.root}"
        )
    if card == meta.encoding:
        raise InputError(
            f"{snapshot.url}: snapshot {snapshot.name!r} is kept as {spelled(entry)} already: "
            "choose another --encoding, or copy the store"
        )
    here = {each: version(each) for each in ("logitstore", "numcodecs", "numpy", "zarr")}
    changed = {
        "name": name,
        "encoding": card,
        "rows_per_shard": shard_rows(entry.widest),
        "temperatures": wish.temperatures,
        "packages": {**meta.packages, **here},
        "transcoded": TranscodeCard(
            root=snapshot.root, encoding=meta.encoding, fidelity=meta.fidelity
        ),
    }
    built = SnapshotPlan(**meta.model_dump(exclude={"fidelity", "top1"}))
    return built.model_copy(update=changed)
