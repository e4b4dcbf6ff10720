"""Compare steps of distillation from a store with logits in memory, and with cross-entropy.

By path the rows come from a mapped copy.  By URL they are streamed, which is the harder case: a
copy that was made from a URL is read like any other.
"""

from __future__ import annotations

import timeit
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import torch

from logitstore.cache.cache import Cache
from logitstore.cache.prepare import prepare_reading
from logitstore.cache.readers import CopyReader, TeacherReader, UnprovenReader
from logitstore.format.encodings.rows import Rows
from logitstore.format.row_digests import digests_of
from logitstore.precompute.data.sources import open_dataset
from logitstore.precompute.networks.factory import build_model
from logitstore.reading.opening import open_store
from logitstore.reading.remote import RemoteSnapshot
from logitstore.trainer.config.settings import TrainConfig
from logitstore.trainer.data.batches import Batch, batches
from logitstore.trainer.data.bind import bind
from logitstore.trainer.data.order import BatchOrder
from logitstore.trainer.data.source import Source
from logitstore.trainer.data.teaching import TeachingSchedule
from logitstore.trainer.run.learner import make_learner
from logitstore.trainer.run.step import TrainingStep
from tests.bench.harness import Sides, seconds
from tests.bench.images import SIDE, STUDENT, make_built, make_noise
from tests.bench.processes import serve
from tests.bench.workplace import CLASSES, Workplace

BATCH, STEPS = 128, 2


@contextmanager
def distillation(place: Workplace, by: str, side: str) -> Iterator[Sides]:
    """Compare steps from a store ``by`` path or url with the ``side`` memory, ce or unproven."""
    dataset = open_dataset(place.once(make_noise).data)
    with opened(place, by) as (location, reader):
        source, _ = bind(open_store(location), reader.teacher, dataset)
        schedule = TeachingSchedule((reader.teacher,), readers=(reader,))
        source = replace(source, teaching=schedule)
        order = BatchOrder(
            samples=np.arange(len(dataset)), seed=0, batch_size=BATCH, view_count=1, epochs=10**6
        )
        other = _in_memory(source, reader, order)
        ours = iter(batches(source, order))
        _check_equal(next(ours), next(other))
        facts: dict[str, Any] = {"batch": BATCH}
        if side == "ce":
            other = iter(batches(replace(source, teaching=None), order))
        elif side == "unproven":
            other = iter(batches(replace(source, teaching=_unproven(location)), order))
            facts |= {"digests, us/row": _digest_microseconds(reader)}
        yield Sides(
            ours=seconds(_stepping("kd", ours), STEPS),
            theirs=seconds(_stepping("ce" if side == "ce" else "kd", other), STEPS),
            repeats=place.sizes.step_repeats,
            facts=facts,
        )


@contextmanager
def opened(place: Workplace, by: str) -> Iterator[tuple[str, TeacherReader]]:
    """Yield the noise store's location and a reader: by path decoded, by URL streamed."""
    store = place.once(make_built)
    if by == "path":
        snapshot = open_store(store).snapshots["teacher"]
        copy = Cache(place.new_folder("cache"), 1 << 30).copy_of(snapshot, in_memory=False)
        yield (
            str(store),
            TeacherReader(snapshot, {snapshot: CopyReader(snapshot, copy)}, "materialise", ""),
        )
        return
    with serve(place, store) as server:
        url = f"{server.url}/noise"
        snapshot = open_store(url).snapshots["teacher"]
        yield url, prepare_reading(snapshot, "stream")


def _unproven(url: str) -> TeachingSchedule:
    """Return the teacher of a streamed store, whose rows are believed as the server sends them."""
    snapshot = open_store(url).snapshots["teacher"]
    assert isinstance(snapshot, RemoteSnapshot)
    reader = TeacherReader(snapshot, {snapshot: UnprovenReader(snapshot)}, "stream", "")
    return TeachingSchedule((snapshot,), readers=(reader,))


def _digest_microseconds(reader: TeacherReader) -> float:
    """Return the time that the digest of a row takes, the best of a few batches."""
    rows = reader.rows(np.arange(BATCH))
    assert isinstance(rows, Rows)
    return 1e6 * min(timeit.repeat(lambda: digests_of(rows), number=1, repeat=50)) / BATCH


def _in_memory(source: Source, reader: TeacherReader, order: BatchOrder) -> Iterator[Batch]:
    whole = reader.rows(np.arange(len(source.dataset)))
    assert isinstance(whole, Rows)
    for batch in batches(replace(source, teaching=None), order):
        chosen = {name: array[batch.request.indices] for name, array in whole.arrays.items()}
        yield batch._replace(teacher=Rows(whole.encoding, chosen))


def _check_equal(ours: Batch, theirs: Batch) -> None:
    assert ours.teacher is not None
    assert theirs.teacher is not None
    for name, array in ours.teacher.arrays.items():
        assert np.array_equal(array, theirs.teacher.arrays[name])
    assert torch.equal(ours.images, theirs.images)


def _stepping(method: str, stream: Iterator[Batch]) -> Callable[[], object]:
    config = TrainConfig(
        data="unused",
        student=STUDENT,
        out="unused",
        store="unused" if method == "kd" else None,
        method=method,
        device="cpu",
    ).resolved()
    torch.manual_seed(0)
    model = build_model(STUDENT, classes=CLASSES, shape=(3, SIDE, SIDE))
    learner = make_learner(config, model, torch.device("cpu"))
    step = TrainingStep(method=config.method_object)

    def run() -> None:
        for batch in islice(stream, STEPS):
            step.take(learner, batch, 0.01)

    return run
