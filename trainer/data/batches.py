"""Make batches of images, labels and the teacher's rows, in one fixed order.

The order and the bytes of the batches follow from (seed, epoch) alone: not from workers, reading
ahead, the kind of store, or where a resumed run goes on.  No global random state is read or set.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from logitstore.format.encodings.rows import Rows
from logitstore.precompute.views.items import image_batches
from logitstore.precompute.views.mix import Mix
from logitstore.reading.ensemble import Blend
from logitstore.threads import read_ahead
from logitstore.trainer.data.order import BatchOrder
from logitstore.trainer.data.source import Indices, Request, Source
from logitstore.trainer.methods.base import Mixed


class Batch(NamedTuple):
    """Images uint8 (N, C, H, W) on the CPU, labels int64 (N,), and the teacher's encoded rows.

    ``mixed`` is None unless the images are mixed with others.
    """

    request: Request
    images: Tensor
    labels: Tensor
    teacher: Rows | Blend | None
    mixed: Mixed | None = None


def batches(
    source: Source, order: BatchOrder, *, workers: int | None = None, pin: bool = False
) -> Generator[Batch]:
    """Yield the batch of each request.

    Images come from ``workers`` processes (None: from none for a dataset in memory), the teacher's
    rows from one thread that reads ahead, also across the end of an epoch.
    """
    # Images, rows and this loop iterate the order independently, at different speeds, in three
    # threads: a long run's order is never held in memory.
    items = ([(source.shown_view(r.epoch, r.view), int(i)) for i in r.indices] for r in order)
    images = image_batches(source.dataset, source.views, items, workers=workers, pin=pin)
    teaching = source.teaching
    rows: Iterator[Rows | Blend | None] = (
        (None for _ in order)
        if teaching is None
        else read_ahead(order, lambda r: teaching.reader(r.epoch).rows(r.indices, r.view))
    )
    views = source.views
    mix = None if views.mix is None else Mix(views.mix, views.seed, len(source.dataset))
    for request, pixels, row in zip(order, images, rows, strict=True):
        mixed = None if mix is None else _mixed(source, mix, request)
        yield Batch(request, pixels, _labels(source, request.indices), row, mixed)


def _mixed(source: Source, mix: Mix, request: Request) -> Mixed:
    view = source.shown_view(request.epoch, request.view)
    plans = [mix.plan(int(sample), view) for sample in request.indices]
    weights = torch.tensor([plan.weight for plan in plans], dtype=torch.float32)
    return Mixed(_labels(source, np.array([plan.partner for plan in plans])), weights)


def _labels(source: Source, indices: Indices) -> Tensor:
    return torch.from_numpy(source.dataset.labels[indices].astype(np.int64))
