"""Encode a snapshot's rows again, without the teacher: ``logitstore transcode``.

The new snapshot keeps the teacher's and the views' cards, so it is bound to the same images, and
says which snapshot it was made from and what that one's encoding had lost.  What else makes a
snapshot from a snapshot (``combine``) chooses, plans and writes its rows here, too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from logitstore.errors import InputError
from logitstore.format.cards import EncodingCard, TranscodeCard
from logitstore.format.choice import SAMPLE_ROWS, EncodingRequest, choose_encoding, sample_pairs
from logitstore.format.documents import check_name
from logitstore.format.encodings.base import Encoding, Logits
from logitstore.format.encodings.table import spelled
from logitstore.progress import Progress
from logitstore.reading.snapshot import Snapshot
from logitstore.reading.store import LogitStore
from logitstore.storage import open_storage
from logitstore.writing.opening import write_snapshot
from logitstore.writing.plan import encoded_as, package_versions
from logitstore.writing.target import Target

Answers = Callable[[NDArray[np.int64], int], Logits]
"""A function (samples (n,), view) -> logits float32 (n, C), like ``Snapshot.logits``."""


def transcode(
    store: LogitStore,
    snapshot: Snapshot,
    out: str,
    request: EncodingRequest,
    *,
    name: str | None = None,
    fresh: bool = False,
    progress: Progress | None = None,
) -> str:
    """Write ``snapshot`` of ``store`` to the store ``out`` in another encoding; return its root.

    ``name`` is the new snapshot's (default: the old one's).  Fidelity is measured against the old
    rows.  Running it again resumes.  Raises InputError, also if the requested bound is not met, and
    MismatchError if ``out`` holds something else.
    """
    name, meta = check_name("snapshot", name or snapshot.name), snapshot.meta
    if meta.transcoded is not None:
        raise InputError(
            f"{snapshot.url}: snapshot {snapshot.name!r} was itself transcoded, and losses would "
            f"add up: transcode the one that it was made from, root {meta.transcoded.root}"
        )
    entry = chosen_for(store, snapshot, request, snapshot.logits)
    if EncodingCard.of(entry) == meta.encoding:
        raise InputError(
            f"{snapshot.url}: snapshot {snapshot.name!r} is kept as {spelled(entry)} already: "
            "choose another --encoding, or copy the store"
        )
    made_from = TranscodeCard(root=snapshot.root, encoding=meta.encoding, fidelity=meta.fidelity)
    return write_from(
        store,
        snapshot,
        out,
        snapshot.logits,
        request,
        entry,
        {"name": name, "transcoded": made_from},
        task="transcode",
        fresh=fresh,
        progress=progress,
    )


def chosen_for(
    store: LogitStore, snapshot: Snapshot, request: EncodingRequest, answers: Answers
) -> Encoding:
    """Choose the encoding for new rows of a snapshot's samples and views.

    It is measured if there is a bound.  Raises InputError if the requested one is not within it.
    """
    if request.bound is None:
        return request.unmeasured(snapshot.meta.classes)
    pairs = np.array(sample_pairs(snapshot.meta.samples, snapshot.meta.views, SAMPLE_ROWS))
    logits = np.empty((len(pairs), snapshot.meta.classes), np.float32)
    for view in range(snapshot.meta.views):
        of_view = pairs[:, 0] == view
        logits[of_view] = answers(pairs[of_view, 1], view)
    return choose_encoding(request, [logits], store.labels[pairs[:, 1]], snapshot.name)


def write_from(
    store: LogitStore,
    snapshot: Snapshot,
    out: str,
    answers: Answers,
    request: EncodingRequest,
    entry: Encoding,
    changes: Mapping[str, object],
    *,
    task: str,
    fresh: bool = False,
    progress: Progress | None = None,
) -> str:
    """Write, or go on writing, new rows of a snapshot's samples and views; return the new root.

    ``changes`` are fields of the plan that differ from those of ``snapshot``, its name among them.
    MismatchError if ``out`` holds something else.
    """
    plan = snapshot.meta.plan().model_copy(
        update={
            **encoded_as(entry, row_digests=request.row_digests),
            "temperatures": request.temperatures,
            "packages": {**snapshot.meta.packages, **package_versions()},
            **changes,
        }
    )
    return write_snapshot(
        Target.read(open_storage(out), store.meta, store.samples()),
        plan,
        lambda shard: answers(np.arange(shard.start, shard.stop), shard.view),
        task,
        fresh=fresh,
        progress=progress,
    )
