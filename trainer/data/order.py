"""Decide which samples each step of a run takes, in which view, by (seed, epoch) alone.

The order does not depend on the machine, the number of ranks or where a resumed run goes on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256

import numpy as np

from logitstore.precompute.processes.ranks import ALONE, Ranks
from logitstore.trainer.data.source import Indices, Request, Source


def shuffled(count: int, *purpose: object) -> Indices:
    """Return a permutation of 0..count-1 that depends on ``purpose`` alone, on every machine."""
    key = sha256(" ".join(map(str, purpose)).encode()).digest()[:16]
    # Philox's raw stream is fixed for good; NumPy may change how ``permutation`` draws from it.
    draws = np.random.Philox(key=int.from_bytes(key, "little")).random_raw(count)
    return np.argsort(draws, kind="stable")


def views_seen(source: Source, epochs: int) -> tuple[int, ...]:
    """Return in how many epochs each of the snapshot's views teaches, (V,); () without one."""
    if source.snapshot is None:
        return ()
    rounds, rest = divmod(epochs, source.view_count)
    return tuple(rounds + (view < rest) for view in range(source.view_count))


def unseen_views(source: Source, epochs: int) -> list[str]:
    """Return a note if some of the snapshot's views are never shown."""
    counts = views_seen(source, epochs)
    if all(counts):
        return []
    return [
        f"{epochs} epochs show views 0..{epochs - 1}; the other {counts.count(0)} of the store's "
        f"{len(counts)} are never seen"
    ]


@dataclass(frozen=True, kw_only=True)
class BatchOrder:
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
    def epoch_samples(self) -> int:
        """The number of samples that one epoch shows."""
        return len(self.samples) * (1 if self.others is None else 2)

    @property
    def steps(self) -> int:
        """The number of steps of one epoch."""
        return -(-self.epoch_samples // self.batch_size)

    def batch_samples(self, step: int) -> int:
        """Return how many samples all ranks together take in a step of an epoch."""
        return min(self.batch_size, self.epoch_samples - step * self.batch_size)

    def all_samples(self) -> Indices:
        """Return all samples that an epoch may show, ascending."""
        if self.others is None:
            return self.samples
        return np.union1d(self.samples, self.others)

    def of_epoch(self, epoch: int) -> Indices:
        """Return the samples of an epoch, before they are shuffled."""
        if self.others is None:
            return self.samples
        drawn = self.others[shuffled(len(self.others), "others", self.seed, epoch)]
        return np.concatenate([self.samples, np.resize(drawn, len(self.samples))])

    def __iter__(self) -> Iterator[Request]:
        for epoch in range(self.first_epoch, self.epochs):
            samples = self.of_epoch(epoch)[shuffled(self.epoch_samples, "order", self.seed, epoch)]
            first = self.first_step if epoch == self.first_epoch else 0
            for step in range(first, self.steps):
                batch = samples[step * self.batch_size : (step + 1) * self.batch_size]
                part = batch[self.ranks.part(len(batch))]
                yield Request(epoch, step, epoch % self.view_count, part)
