from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from torch import Tensor

from logitstore.format.grid import Span
from logitstore.precompute.data.images import ImageDataset
from logitstore.precompute.views import Views
from logitstore.precompute.views.items import image_batches


def cut(shards: Sequence[Span], batch_size: int) -> list[Span]:
    """The batches of some shards: spans of at most ``batch_size`` rows that stay inside a shard."""
    return [
        Span(shard.view, start, min(start + batch_size, shard.stop))
        for shard in shards
        for start in range(shard.start, shard.stop, batch_size)
    ]


def feed(
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
