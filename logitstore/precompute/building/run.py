"""Run teachers over a dataset once and write their logits: ``logitstore build``.

One pass over the images feeds all teachers; encoding and writing overlap with the next forward
pass.  Everything that can be refused is refused before the first byte is written.  Running the same
build again goes on where it stopped, and the finished store has the same bytes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from logitstore.errors import InputError, MismatchError, NonFinite
from logitstore.format.grid import Span
from logitstore.precompute.building.batches import read_views, split_shards
from logitstore.precompute.building.config import BuildConfig
from logitstore.precompute.building.prepare import Prepared, prepare
from logitstore.precompute.networks.forward import forward
from logitstore.progress import Progress, Silent
from logitstore.writing.opening import discard, open_writer
from logitstore.writing.writer import SnapshotWriter

_QUEUED_SHARDS = 2
"""Shards of each teacher that may wait to be written."""


@dataclass(frozen=True)
class Built:
    """One snapshot that a build wrote, or found finished (``rows_written`` 0)."""

    name: str
    root: str
    rows_written: int


def build(config: BuildConfig, progress: Progress | None = None) -> list[Built]:
    """Write one snapshot per teacher and commit them; raises what ``prepare`` raises.

    NonFinite and InputError name samples that cannot be used and leave nothing of what began
    here; Unfinished (a full disk, …) keeps what is done for the same command.
    """
    return write(prepare(config, progress), progress)


def write(prepared: Prepared, progress: Progress | None = None) -> list[Built]:
    """Run a prepared build to its end."""
    progress = progress or Silent()
    writers = [
        open_writer(prepared.target, teacher.plan, fresh=prepared.config.fresh)
        for teacher in prepared.teachers
    ]
    missing = [set(writer.missing()) for writer in writers]
    begun_here = [
        len(todo) == len(w.grid.shards()) for todo, w in zip(missing, writers, strict=True)
    ]
    try:
        _run(prepared, writers, missing, progress)
    except MismatchError:  # another build is at work here: what lies there may be its own
        raise
    except (NonFinite, InputError):  # running it again cannot help: leave nothing behind
        for writer, begun in zip(writers, begun_here, strict=True):
            if begun and writer.root is None:
                discard(prepared.target.storage, writer.plan.name)
        raise
    return [
        Built(writer.plan.name, writer.commit(), sum(shard.rows for shard in todo))
        for writer, todo in zip(writers, missing, strict=True)
    ]


def _run(
    prepared: Prepared,
    writers: Sequence[SnapshotWriter],
    missing: Sequence[set[Span]],
    progress: Progress,
) -> None:
    """Forward every batch that some teacher lacks; finished shards go to the writing thread."""
    shards = [
        s for s in (writers[0].grid.shards() if writers else []) if any(s in m for m in missing)
    ]
    batches = split_shards(shards, prepared.config.batch_size)
    first = prepared.config.first_view
    images = read_views(
        prepared.dataset,
        prepared.views,
        [Span(first + batch.view, batch.start, batch.stop) for batch in batches],
        workers=prepared.config.workers,
        pin=prepared.device.type == "cuda",
    )
    labels = prepared.dataset.labels
    position = iter(batches)
    queue: deque[Future[None]] = deque()
    progress.start("build", sum(shard.rows for shard in shards), "rows")
    # One thread writes: zarr, zstd and fsync release the GIL, so the next forward runs meanwhile.
    with ThreadPoolExecutor(1, "logitstore-write") as pool:
        try:
            for shard in shards:
                numbers = [i for i, todo in enumerate(missing) if shard in todo]
                logits = _forward_shard(prepared, numbers, shard, images, position, progress)
                for number, rows in zip(numbers, logits, strict=True):
                    while len(queue) >= _QUEUED_SHARDS * len(writers):
                        queue.popleft().result()
                    known = labels[shard.samples]
                    queue.append(pool.submit(writers[number].write, shard, rows, known))
            while queue:
                queue.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _forward_shard(
    prepared: Prepared,
    numbers: Sequence[int],
    shard: Span,
    images: Iterator[Tensor],
    position: Iterator[Span],
    progress: Progress,
) -> list[NDArray[np.float32]]:
    """Return the logits float32 (rows, C) of one shard of the teachers of these numbers."""
    rows = shard.rows
    classes = prepared.target.meta.classes
    logits = [np.empty((rows, classes), np.float32) for _ in numbers]
    done = 0
    while done < rows:
        batch = next(position)
        moved = next(images).to(prepared.device, non_blocking=True)
        for number, target in zip(numbers, logits, strict=True):
            teacher = prepared.teachers[number]
            output = forward(teacher.model, moved, teacher.normalize, prepared.config.precision)
            target[done : done + len(moved)] = output.numpy()
        done += batch.rows
        progress.advance(batch.rows)
    return logits
