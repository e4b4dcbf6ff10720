"""Forward some rows of a build before it begins, to choose an encoding by them or to time it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from logitstore.errors import NonFinite
from logitstore.format.choice import Pair
from logitstore.format.encodings.base import LIMITS, Logits, unusable
from logitstore.precompute.data.images import ImageDataset
from logitstore.precompute.networks.forward import Teacher, forward
from logitstore.precompute.views import Views
from logitstore.precompute.views.items import image_batches
from logitstore.progress import Progress
from logitstore.values import Precision


def pair_batches(pairs: Sequence[Pair], size: int) -> list[list[Pair]]:
    """Return the pairs in batches of ``size``."""
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
    """Return each teacher's logits float32 (n, C) of n pairs.

    Their views count from the start of the sequence that spec, size, mix and seed define.
    """
    logits: list[list[Logits]] = [[] for _ in teachers]
    batches = pair_batches(pairs, batch_size)
    progress.start("sample for the encoding", len(pairs), "images")
    stream = image_batches(dataset, views, iter(batches), workers=workers)
    for batch, images in zip(batches, stream, strict=True):
        moved = images.to(device)
        for teacher, parts in zip(teachers, logits, strict=True):
            parts.append(forward_batch(teacher, moved, batch, precision))
        progress.advance(len(batch))
    return [np.concatenate(parts) for parts in logits]


def forward_batch(
    teacher: Teacher, images: Tensor, batch: Sequence[Pair], precision: Precision
) -> Logits:
    """Return the logits (n, C) of uint8 images (n, C, H, W); NonFinite names the first bad one."""
    output: Logits = forward(teacher.model, images, teacher.normalize, precision).numpy()
    broken = unusable(output)
    if len(broken):
        view, sample = batch[broken[0]]
        raise NonFinite(
            f"{teacher.plan.name}: the logits of {len(broken)} of {len(batch)} images tried are "
            f"NaN, infinite or too large (sample {sample}, view {view}, …); {LIMITS}: check the "
            "checkpoint, --normalize and --precision"
        )
    return output
