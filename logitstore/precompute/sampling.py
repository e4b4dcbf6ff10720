"""Some rows of a build, forwarded before it begins: to choose an encoding by, or to time it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from logitstore.encodings import Logits
from logitstore.errors import NonFinite
from logitstore.precompute.datasets import ImageDataset
from logitstore.precompute.feed import image_batches
from logitstore.precompute.inference import Teacher, forward
from logitstore.precompute.views import Views
from logitstore.progress import Progress
from logitstore.schema import Precision

Pair = tuple[int, int]
"""(view, sample)."""


def sample_pairs(samples: int, views: int, most: int) -> list[Pair]:
    """At most ``most`` different pairs, evenly spaced over the samples, in turn over the views.

    Not the first ones: many datasets come in the order of their classes.
    """
    count = min(most, samples * views)
    return [(i % views, i * samples // count) for i in range(count)]


def portions(pairs: Sequence[Pair], size: int) -> list[list[Pair]]:
    """The pairs in batches of ``size``."""
    return [list(pairs[start : start + size]) for start in range(0, len(pairs), size)]


def sample_logits(
    teachers: Sequence[Teacher],
    dataset: ImageDataset,
    views: Views,
    pairs: Sequence[Pair],
    *,
    batch_size: int,
    workers: int | None,
    device: torch.device,
    precision: Precision,
    progress: Progress,
) -> list[Logits]:
    """Each teacher's logits float32 (n, C) of n pairs, whose views count as the sequence does."""
    found: list[list[Logits]] = [[] for _ in teachers]
    batches = portions(pairs, batch_size)
    progress.start("sample for the encoding", len(pairs), "images")
    stream = image_batches(dataset, views, iter(batches), workers=workers)
    for batch, images in zip(batches, stream, strict=True):
        moved = images.to(device)
        for teacher, parts in zip(teachers, found, strict=True):
            parts.append(forward_batch(teacher, moved, batch, precision))
        progress.advance(len(batch))
    return [np.concatenate(parts) for parts in found]


def forward_batch(
    teacher: Teacher, images: Tensor, batch: Sequence[Pair], precision: Precision
) -> Logits:
    """Logits float32 (n, C) of uint8 images (n, C, H, W); NonFinite names the first bad one."""
    output: Logits = forward(teacher.model, images, teacher.normalize, precision).numpy()
    broken = np.flatnonzero(~np.isfinite(output).all(axis=1))
    if len(broken):
        view, sample = batch[broken[0]]
        raise NonFinite(
            f"{teacher.plan.name}: the logits of {len(broken)} of {len(batch)} images tried are "
            f"NaN or infinite (sample {sample}, view {view}, …); check the checkpoint, --normalize "
            "and --precision"
        )
    return output
