"""Batches of a build: shards are cut into spans of samples, whose views are read in order.

A batch never spans two shards, so a resumed build forwards the same batches and gets the same bits.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from torch import Tensor

from logitstore.format.grid import Span
from logitstore.precompute.data.images import ImageDataset
from logitstore.precompute.views import Views
from logitstore.precompute.views.items import image_batches


def split_shards(shards: Sequence[Span], batch_size: int) -> list[Span]:
    """Return the batches of some shards: spans of at most ``batch_size`` rows inside a shard."""
    return [
        Span(shard.view, start, min(start + batch_size, shard.stop))
        for shard in shards
        for start in range(shard.start, shard.stop, batch_size)
    ]


def read_views(
    dataset: ImageDataset,
    views: Views,
    batches: Iterable[Span],
    *,
    workers: int | None,
    pin: bool = False,
) -> Iterator[Tensor]:
    """Yield the views of each span of samples, uint8 (rows, C, H, W)."""
    items = ([(b.view, sample) for sample in range(b.start, b.stop)] for b in batches)
    return image_batches(dataset, views, items, workers=workers, pin=pin)
