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
from logitstore.ensemble import Blend, Teacher
from logitstore.errors import InputError
from logitstore.precompute.classes import ClassMap
from logitstore.precompute.datasets import ImageDataset
from logitstore.precompute.feed import image_batches
from logitstore.precompute.mix import Mix
from logitstore.precompute.views import Views
from trainer.ahead import read_ahead
from trainer.ranks import ALONE, Ranks
from trainer.teaching import Teaching

Indices = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Source:
    """What a student is shown: a dataset in ``view_count`` views, and perhaps a teacher's rows.

    The dataset comes in the store's order; ``samples`` are those that are there, ascending (None:
    all).  Its classes are numbered as the store's, by ``class_map`` if one was given.
    ``first_view`` is the number, in the view spec's sequence, of the teachers' view 0.
    ``fresh``: the images come in a view of their own in each epoch, whatever the rows' view is.
    """

    dataset: ImageDataset
    views: Views
    classes: int
    view_count: int
    first_view: int = 0
    fresh: bool = False
    samples: Indices | None = None
    class_map: ClassMap | None = None
    teaching: Teaching | None = None

    @property
    def snapshot(self) -> Teacher | None:
        """Who teaches in the first epoch; all that teach saw the same images."""
        return None if self.teaching is None else self.teaching.first

    @property
    def root(self) -> str | None:
        """What identifies all that teaches."""
        return None if self.teaching is None else self.teaching.root

    def there(self) -> Indices:
        """The samples that can be trained on, ascending."""
        return np.arange(len(self.dataset)) if self.samples is None else self.samples

    def shown_view(self, request: Request) -> int:
        """Which view of the spec's sequence the images of a request come in."""
        return request.epoch if self.fresh else self.first_view + request.view


class Request(NamedTuple):
    """Which samples a step takes, in which view of the snapshot; epoch and step count from 0."""

    epoch: int
    step: int
    view: int
    indices: Indices


class Mixed(NamedTuple):
    """Partners' labels int64 (N,), -1 for unknown, and the own share ``weight`` float32 (N,)."""

    labels: Tensor
    weight: Tensor


class Batch(NamedTuple):
    """Images uint8 (N, C, H, W) on the CPU, labels int64 (N,), and the teacher's encoded rows.

    ``mixed`` is None unless the images are mixed with others.
    """

    request: Request
    images: Tensor
    labels: Tensor
    teacher: Rows | Blend | None
    mixed: Mixed | None = None


def shuffled(count: int, *purpose: object) -> Indices:
    """A permutation of 0..count-1 that depends on ``purpose`` alone, on every machine."""
    key = sha256(" ".join(map(str, purpose)).encode()).digest()[:16]
    # Philox's raw stream is fixed for good; NumPy may change how ``permutation`` draws from it.
    draws = np.random.Philox(key=int.from_bytes(key, "little")).random_raw(count)
    return np.argsort(draws, kind="stable")


def chosen_samples(there: Indices, limit: int | None, limit_seed: int) -> Indices:
    """All of some samples, or a fixed random subset of ``limit`` of them, ascending."""
    if limit is None:
        return there
    if limit > len(there):
        raise InputError(f"--limit {limit} is more than the {len(there)} samples there are")
    return np.sort(there[shuffled(len(there), "limit", limit_seed)[:limit]])


def views_seen(source: Source, epochs: int) -> tuple[int, ...]:
    """In how many of the epochs each of the snapshot's views teaches, (V,); () without one."""
    if source.snapshot is None:
        return ()
    rounds, rest = divmod(epochs, source.view_count)
    return tuple(rounds + (view < rest) for view in range(source.view_count))


def unseen_views(source: Source, epochs: int) -> list[str]:
    """A note if some of the snapshot's views are never shown."""
    seen = views_seen(source, epochs)
    if all(seen):
        return []
    return [
        f"{epochs} epochs show views 0..{epochs - 1}; the other {seen.count(0)} of the store's "
        f"{len(seen)} are never seen"
    ]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Every request of a run from (first_epoch, first_step) on; iterate it as often as you like.

    The last batch of an epoch may be smaller.  With ``others`` an epoch shows as many of them as
    of ``samples``, drawn anew each time (all of them equally often, where there are too few).
    Of each batch this process gets the part that is its own among ``ranks``.
    """

    samples: Indices
    seed: int
    batch_size: int
    view_count: int
    epochs: int
    others: Indices | None = None
    ranks: Ranks = ALONE
    first_epoch: int = 0
    first_step: int = 0

    @property
    def shown(self) -> int:
        """How many samples one epoch shows."""
        return len(self.samples) * (1 if self.others is None else 2)

    @property
    def steps(self) -> int:
        """Steps of one epoch."""
        return -(-self.shown // self.batch_size)

    def whole(self, step: int) -> int:
        """How many samples all ranks take in a step of an epoch."""
        return min(self.batch_size, self.shown - step * self.batch_size)

    def every_sample(self) -> Indices:
        """All that may be shown, ascending."""
        if self.others is None:
            return self.samples
        return np.union1d(self.samples, self.others)

    def of_epoch(self, epoch: int) -> Indices:
        """The samples of an epoch, before they are shuffled."""
        if self.others is None:
            return self.samples
        drawn = self.others[shuffled(len(self.others), "others", self.seed, epoch)]
        return np.concatenate([self.samples, np.resize(drawn, len(self.samples))])

    def __iter__(self) -> Iterator[Request]:
        for epoch in range(self.first_epoch, self.epochs):
            order = self.of_epoch(epoch)[shuffled(self.shown, "order", self.seed, epoch)]
            first = self.first_step if epoch == self.first_epoch else 0
            for step in range(first, self.steps):
                batch = order[step * self.batch_size : (step + 1) * self.batch_size]
                part = batch[self.ranks.part(len(batch))]
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
    items = ([(source.shown_view(r), int(i)) for i in r.indices] for r in plan)
    images = image_batches(source.dataset, source.views, items, workers=workers, pin=pin)
    teaching = source.teaching
    rows: Iterator[Rows | Blend | None] = (
        (None for _ in plan)
        if teaching is None
        else read_ahead(plan, lambda r: teaching.at(r.epoch).rows(r.indices, r.view))
    )
    views = source.views
    mix = None if views.mix is None else Mix(views.mix, views.seed, len(source.dataset))
    for request, shown, row in zip(plan, images, rows, strict=True):
        mixed = None if mix is None else _mixed(source, mix, request)
        yield Batch(request, shown, _labels(source, request.indices), row, mixed)


def _mixed(source: Source, mix: Mix, request: Request) -> Mixed:
    view = source.shown_view(request)
    plans = [mix.plan(int(sample), view) for sample in request.indices]
    weights = torch.tensor([plan.weight for plan in plans], dtype=torch.float32)
    return Mixed(_labels(source, np.array([plan.partner for plan in plans])), weights)


def _labels(source: Source, indices: Indices) -> Tensor:
    return torch.from_numpy(source.dataset.labels[indices].astype(np.int64))
