"""What feeds a training step: batches of images, labels and the teacher's rows, in one fixed order.

The order and the bytes of the batches follow from (seed, epoch) alone: not from workers, reading
ahead, the kind of store, or where a resumed run goes on.  No global random state is read or set.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from hashlib import sha256
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from logitstore.encodings import Rows
from logitstore.errors import InputError
from logitstore.precompute.datasets import ImageDataset
from logitstore.precompute.feed import image_batches
from logitstore.precompute.views import Views
from logitstore.reader import Snapshot
from trainer.ahead import read_ahead

Indices = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Source:
    """What a student is shown: a dataset in ``view_count`` views, and perhaps a teacher's rows.

    ``first_view`` is the number, in the view spec's sequence, of the snapshot's view 0.
    """

    dataset: ImageDataset
    views: Views
    classes: int
    view_count: int
    first_view: int = 0
    snapshot: Snapshot | None = None
    root: str | None = None


class Request(NamedTuple):
    """Which samples a step takes, in which view of the snapshot; epoch and step count from 0."""

    epoch: int
    step: int
    view: int
    indices: Indices


class Batch(NamedTuple):
    """Images uint8 (N, C, H, W) on the CPU, labels int64 (N,), and the teacher's encoded rows."""

    request: Request
    images: Tensor
    labels: Tensor
    teacher: Rows | None


def shuffled(count: int, *purpose: object) -> Indices:
    """A permutation of 0..count-1 that depends on ``purpose`` alone, on every machine."""
    key = sha256(" ".join(map(str, purpose)).encode()).digest()[:16]
    # Philox's raw stream is fixed for good; NumPy may change how ``permutation`` draws from it.
    draws = np.random.Philox(key=int.from_bytes(key, "little")).random_raw(count)
    return np.argsort(draws, kind="stable")


def chosen_samples(count: int, limit: int | None, limit_seed: int) -> Indices:
    """All samples, or a fixed random subset of ``limit`` of them, ascending."""
    if limit is None:
        return np.arange(count)
    if limit > count:
        raise InputError(f"--limit {limit} is more than the {count} samples there are")
    return np.sort(shuffled(count, "limit", limit_seed)[:limit])


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Every request of a run from (first_epoch, first_step) on; iterate it as often as you like.

    The last batch of an epoch may be smaller.
    """

    samples: Indices
    seed: int
    batch_size: int
    view_count: int
    epochs: int
    first_epoch: int = 0
    first_step: int = 0

    @property
    def steps(self) -> int:
        """Steps of one epoch."""
        return -(-len(self.samples) // self.batch_size)

    def __iter__(self) -> Iterator[Request]:
        for epoch in range(self.first_epoch, self.epochs):
            order = self.samples[shuffled(len(self.samples), "order", self.seed, epoch)]
            first = self.first_step if epoch == self.first_epoch else 0
            for step in range(first, self.steps):
                part = order[step * self.batch_size : (step + 1) * self.batch_size]
                yield Request(epoch, step, epoch % self.view_count, part)


def batches(
    source: Source, plan: Plan, *, workers: int | None = None, pin: bool = False
) -> Generator[Batch]:
    """Yield the batch of each request.

    Images come from ``workers`` processes (None: from none for a dataset in memory), the teacher's
    rows from one thread that reads ahead, also across the end of an epoch.
    """
    # Images, rows and this loop each iterate the plan for themselves: at different speeds, in three
    # threads, and nothing of a long run's plan is ever held in memory.
    items = ([(source.first_view + r.view, int(i)) for i in r.indices] for r in plan)
    images = image_batches(source.dataset, source.views, items, workers=workers, pin=pin)
    snapshot = source.snapshot
    rows: Iterator[Rows | None] = (
        (None for _ in plan)
        if snapshot is None
        else read_ahead(plan, lambda request: snapshot.rows(request.indices, request.view))
    )
    for request, shown, row in zip(plan, images, rows, strict=True):
        labels = torch.from_numpy(source.dataset.labels[request.indices].astype(np.int64))
        yield Batch(request, shown, labels, row)
