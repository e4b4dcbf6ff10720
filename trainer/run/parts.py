"""Split a batch into micro-batches, and adapt BatchNorm's momentum to them.

The gradients of the parts add up to the whole batch's (to rounding), so that the size of a part is
a matter of memory alone, but for BatchNorm: each part is normalised by its own statistics, and its
running averages move once per part.  ``batchnorm_momentum`` gives them, in a step of k parts, the
momentum 1 - (1 - m)^(1/k), so that the step as a whole forgets as much as one of the whole batch.

Measured (resnet20, 1,000 CIFAR-10 images, batch 128, 48 steps, means of 3 seeds): parts of 32 and 8
raise the last training loss from 1.60 to 1.67 and 1.77; validation accuracy, 0.33, 0.32 and 0.32,
differs by less than the seeds do.  The running means lie 0.033, 0.028 and 0.028 standard deviations
from those of the final weights; with m kept it is 0.006 and 0.009, as fewer of the quickly changing
steps are remembered.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

from torch import nn

from logitstore.trainer.data.batches import Batch

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def split_batch(batch: Batch, size: int | None) -> list[Batch]:
    """Split a batch into the fewest parts, of nearly equal length and at most ``size`` samples.

    ``size`` None: the batch is the only part.
    """
    count = len(batch.labels)
    if size is None or count <= size:
        return [batch]
    number = -(-count // size)
    edges = [-(-count * i // number) for i in range(number + 1)]
    return [_part(batch, slice(*span)) for span in pairwise(edges)]


def first_samples(batch: Batch, count: int) -> Batch:
    """Return the first samples of a batch, as a batch."""
    first: Batch = _part(batch, slice(count))
    return first


def _part(value: Any, span: slice) -> Any:
    """Slice a batch, or anything in it: what has a row per sample is sliced, all else is kept."""
    if value is None or isinstance(value, int):
        return value
    if hasattr(value, "part"):
        return value.part(span)
    if isinstance(value, tuple):
        return type(value)(*(_part(entry, span) for entry in value))
    return value[span]


def has_batchnorm(model: nn.Module) -> bool:
    """Return whether the size of a part changes what this network computes."""
    return any(isinstance(module, _BATCH_NORMS) for module in model.modules())


@contextmanager
def batchnorm_momentum(model: nn.Module, parts: int) -> Iterator[None]:
    """Set BatchNorm's momentum for a step of so many parts; cumulative averages (None) stay so."""
    norms = [] if parts == 1 else [m for m in model.modules() if isinstance(m, _BATCH_NORMS)]
    before = [(norm, norm.momentum) for norm in norms if norm.momentum is not None]
    for norm, momentum in before:
        norm.momentum = 1 - (1 - momentum) ** (1 / parts)
    try:
        yield
    finally:
        for norm, momentum in before:
            norm.momentum = momentum
