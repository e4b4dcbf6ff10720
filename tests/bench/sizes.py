"""Measure bytes per row and KL of every encoding, in a real store and on all rows.

Bytes are those of the snapshot's chunks, row scalars and checksums included; row digests, 16 bytes
a row whatever the encoding, are not.  They do not vary, so one turn is enough.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from logitstore.format.choice import EncodingRequest, candidates
from logitstore.format.encodings.table import spelled
from logitstore.reading.opening import open_store
from logitstore.reading.snapshot import Snapshot
from tests.bench.harness import NotRun, Sides
from tests.bench.workplace import Workplace, import_store, synthetic

MOST_KL, AT_TEMPERATURE = 1e-4, 4.0
_FP16_BYTES = 2


@contextmanager
def synthetic_curve(place: Workplace) -> Iterator[Sides]:
    """Measure logits like those of an ImageNet classifier (``workplace``)."""
    logits, labels = synthetic(place.sizes.curve_rows, seed=1)
    yield _sides(place, logits, labels)


@contextmanager
def real_curve(place: Workplace, file: Path | None) -> Iterator[Sides]:
    """Measure logits (N, C) from a file; labels are not needed."""
    if file is None:
        raise NotRun("LOGITSTORE_BENCH_DATA names no folder with .npy files of logits")
    logits = np.load(file, mmap_mode="r")[: place.sizes.curve_rows]
    yield _sides(place, logits, np.full(len(logits), -1, np.int32))


def _sides(place: Workplace, logits: NDArray[Any], labels: NDArray[np.int32]) -> Sides:
    requests = [
        EncodingRequest(text=spelled(entry), row_digests="no")
        for entry in candidates(logits.shape[1])
    ]
    requests.append(
        EncodingRequest(
            text="auto", max_kl=MOST_KL, at_temperature=AT_TEMPERATURE, row_digests="no"
        )
    )
    curve = [_point(place, request, logits, labels) for request in requests]
    within = [point for point in curve if point["KL T=4"] <= MOST_KL]
    best = min(within, key=lambda point: point["B/row"])
    return Sides(
        ours=lambda: best["B/row"],
        theirs=lambda: float(_FP16_BYTES * logits.shape[1]),
        repeats=1,
        facts={"smallest": best["encoding"], "rows": len(logits), "curve": curve},
        warm=False,
    )


def _point(
    place: Workplace, request: EncodingRequest, logits: NDArray[Any], labels: NDArray[np.int32]
) -> dict[str, Any]:
    """Return an encoding's bytes and loss."""
    store = open_store(import_store(place, "curve", logits, labels, request))
    snapshot = store.snapshots["teacher"]
    losses = {entry.temperature: entry for entry in snapshot.meta.fidelity.divergence}
    return {
        "encoding": spelled(snapshot.encoding),
        "B/row": _chunk_bytes(snapshot) / len(logits),
        "KL T=1": losses[1.0].mean,
        "KL T=4": losses[AT_TEMPERATURE].mean,
        "worst KL T=4": losses[AT_TEMPERATURE].max,
        "same top-1": snapshot.meta.fidelity.top1_agreement,
    }


def _chunk_bytes(snapshot: Snapshot) -> int:
    prefix = f"snapshots/{snapshot.name}/"
    entries = snapshot.commit.objects.items()
    return sum(e.length for key, e in entries if key.startswith(prefix) and "/c/" in key)
