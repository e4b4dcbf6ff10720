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
from torch import Tensor

from logitstore.errors import InputError, MismatchError, NonFinite
from logitstore.format.encodings.base import Logits
from logitstore.format.grid import Span
from logitstore.precompute.building.config import BuildConfig
from logitstore.precompute.building.prepare import prepare
from logitstore.precompute.building.prepared import Prepared, split_rows
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
    # A batch never spans two shards: a resumed build forwards the same ones and gets the same bits.
    size = prepared.config.batch_size
    images = prepared.images(batch for shard in shards for batch in split_rows(shard.pairs, size))
    labels = prepared.dataset.labels
    queue: deque[Future[None]] = deque()
    progress.start("build", sum(shard.rows for shard in shards), "rows")
    # One thread writes: zarr, zstd and fsync release the GIL, so the next forward runs meanwhile.
    with ThreadPoolExecutor(1, "logitstore-write") as pool:
        try:
            for shard in shards:
                numbers = [i for i, todo in enumerate(missing) if shard in todo]
                logits = _forward_shard(prepared, numbers, shard.rows, images, progress)
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
    rows: int,
    images: Iterator[Tensor],
    progress: Progress,
) -> list[Logits]:
    """Return the logits float32 (rows, C) of one shard of the teachers of these numbers."""
    logits = [np.empty((rows, prepared.target.meta.classes), np.float32) for _ in numbers]
    done = 0
    while done < rows:
        batch = next(images).to(prepared.device, non_blocking=True)
        for number, of_teacher in zip(numbers, logits, strict=True):
            of_teacher[done : done + len(batch)] = prepared.forward(
                prepared.teachers[number], batch
            )
        done += len(batch)
        progress.advance(len(batch))
    return logits
