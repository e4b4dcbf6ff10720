"""Run the teachers of a build on some of its rows, as the build would, and time it.

Nothing is written to the store.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import islice
from tempfile import TemporaryDirectory
from time import perf_counter, thread_time

import numpy as np
from torch import Tensor

from logitstore.errors import Damaged, InputError, NotFound
from logitstore.format.cards import Samples, SnapshotPlan
from logitstore.format.choice import Pair, sample_pairs
from logitstore.format.commits import ShardMark, build_folder
from logitstore.format.encodings.base import Logits
from logitstore.format.encodings.table import encoding_of
from logitstore.format.fidelity import encoded
from logitstore.format.grid import chunk_rows
from logitstore.format.sizes import chunked_bytes
from logitstore.precompute.building.config import BuildConfig
from logitstore.precompute.building.prepare import prepare
from logitstore.precompute.building.prepared import Prepared, split_rows
from logitstore.precompute.views.items import default_workers, stacked
from logitstore.progress import Progress, Silent
from logitstore.storage import open_storage
from logitstore.writing.estimate import Estimate, Trial, predict
from logitstore.writing.opening import open_writer
from logitstore.writing.target import Target

SAMPLE_ROWS = 512
"""Rows that a trial runs, at most."""

_PORTIONS_PER_WORKER = 16
"""Portions of the trial that each worker reads, at least."""

_PUTS = 4
"""Shards that are written to find out what one takes."""


def estimate(
    config: BuildConfig, *, epochs: int = 30, progress: Progress | None = None
) -> Estimate:
    """Estimate what ``build(config)`` will cost from 512 of its rows; the store is not written to.

    ``epochs`` are those of a student that would have the teacher beside it.  Raises what
    ``prepare`` raises, InputError for ``epochs`` below 1, and NonFinite.
    """
    if epochs < 1:
        raise InputError(f"--epochs must be at least 1, not {epochs}")
    prepared = prepare(config, progress)
    plans = [teacher.plan for teacher in prepared.teachers]
    return predict(
        prepared.target.meta,
        prepared.target.samples,
        plans,
        run_trial(prepared, progress),
        epochs=epochs,
        rows_per_shard=config.shard_rows,
        row_digests=config.row_digests,
        rows_done=sum(_rows_done(prepared, plan) for plan in plans),
    )


def run_trial(prepared: Prepared, progress: Progress | None = None) -> Trial:
    """Read and forward a sample of the rows; the first batch warms up and is not timed."""
    progress = progress or Silent()
    pairs = sample_pairs(len(prepared.dataset), prepared.config.views, SAMPLE_ROWS)
    read = _reading_seconds(prepared, pairs, progress)
    batches = split_rows(pairs, prepared.config.batch_size)
    images = _views(prepared, [batches[0], *batches])
    names = [teacher.plan.name for teacher in prepared.teachers]
    logits: dict[str, list[Logits]] = {name: [] for name in names}
    spent = dict.fromkeys(names, 0.0)
    encodings = []
    progress.start("trial of the teachers", len(pairs), "images")
    # As in a build, one thread encodes what came before while the next batch is forwarded.
    with ThreadPoolExecutor(1, "logitstore-write") as pool:
        before, _ = _forward(prepared, batches[0], next(images))
        begun = perf_counter()
        for batch in batches:
            for teacher, rows in zip(prepared.teachers, before, strict=True):
                encodings.append(pool.submit(_encoding_seconds, teacher.plan, rows))
            before, seconds = _forward(prepared, batch, next(images))
            for name, rows, duration in zip(names, before, seconds, strict=True):
                logits[name].append(rows)
                spent[name] += duration
            progress.advance(len(batch))
        together = perf_counter() - begun
    encoded_rows = len(names) * (len(batches[0]) + sum(map(len, batches[:-1])))
    return Trial(
        labels=prepared.dataset.labels[[sample for _, sample in pairs]],
        logits={name: np.concatenate(parts) for name, parts in logits.items()},
        read=read / len(pairs),
        forward={name: seconds / len(pairs) for name, seconds in spent.items()},
        together=together / len(pairs),
        encode=sum(future.result() for future in encodings) / encoded_rows,
        put=_put_seconds(prepared, before[0][:1]),
    )


def _reading_seconds(prepared: Prepared, pairs: Sequence[Pair], progress: Progress) -> float:
    parts = split_rows(pairs, _portion_size(prepared, len(pairs)))
    progress.start("trial of reading", len(pairs), "images")
    stream = _views(prepared, [parts[0], *parts])
    next(stream)
    begun = perf_counter()
    for images in stream:
        progress.advance(len(images))
    return perf_counter() - begun


def _views(prepared: Prepared, batches: Sequence[Sequence[Pair]]) -> Iterator[Tensor]:
    """Yield uint8 (N, C, H, W) of each batch, through the build's reading path."""
    step = _portion_size(prepared, sum(map(len, batches)))
    pieces = [split_rows(batch, step) for batch in batches]
    stream = prepared.images(piece for of_a_batch in pieces for piece in of_a_batch)
    for of_a_batch in pieces:
        parts = list(islice(stream, len(of_a_batch)))
        yield parts[0] if len(parts) == 1 else stacked(image for part in parts for image in part)


def _portion_size(prepared: Prepared, count: int) -> int:
    """Return how many images are read at a time: too few for workers to read all of them ahead."""
    workers = prepared.config.workers
    if workers is None:
        workers = default_workers(prepared.dataset)
    share = count // (_PORTIONS_PER_WORKER * workers) if workers else count
    return max(1, min(share, prepared.config.batch_size))


def _forward(
    prepared: Prepared, batch: Sequence[Pair], images: Tensor
) -> tuple[list[Logits], list[float]]:
    """Return each teacher's logits (N, C) of a batch, and its seconds."""
    moved = images.to(prepared.device, non_blocking=True)
    logits, seconds = [], []
    for teacher in prepared.teachers:
        begun = perf_counter()
        logits.append(prepared.try_forward(teacher, moved, batch))
        seconds.append(perf_counter() - begun)
    return logits, seconds


def _encoding_seconds(plan: SnapshotPlan, logits: Logits) -> float:
    """Return the seconds in which one thread encodes, measures and compresses these rows."""
    begun = thread_time()
    entry, unknown = encoding_of(plan.encoding, plan.classes), np.full(len(logits), -1, np.int32)
    arrays, _ = encoded(entry, logits, unknown, plan.temperatures)
    chunked_bytes(arrays, min(len(logits), chunk_rows(plan.rows_per_shard, entry.widest)))
    return thread_time() - begun


def _put_seconds(prepared: Prepared, row: Logits) -> float:
    """Return the seconds in which a shard of one row is written, in a temporary folder."""
    labels = prepared.dataset.labels[:1]
    samples = Samples(prepared.dataset.name, labels)
    meta = prepared.target.meta.model_copy(update={"dataset": samples.card()})
    plan = prepared.teachers[0].plan.model_copy(update={"views": _PUTS + 1, "samples": 1})
    with TemporaryDirectory() as folder:
        writer = open_writer(Target.read(open_storage(folder), meta, samples), plan)
        first, *others = writer.missing()
        writer.write(first, row, labels)
        begun = perf_counter()
        for shard in others:
            writer.write(shard, row, labels)
        return (perf_counter() - begun) / _PUTS


def _rows_done(prepared: Prepared, plan: SnapshotPlan) -> int:
    """Return the rows that are there: of a committed snapshot, or of an unfinished one's shards."""
    storage = prepared.target.storage
    if plan.name in prepared.target.commits:
        return plan.views * plan.samples
    done = 0
    for key in storage.keys(f"{build_folder(plan.name)}/") if not prepared.config.fresh else ():
        with suppress(Damaged, NotFound):  # the plan, or a mark that the build will not trust
            mark = ShardMark.parse(key, storage.get(key))
            done += mark.stop - mark.start
    return done
