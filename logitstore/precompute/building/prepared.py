"""A build whose inputs are all checked: it reads the images of rows and forwards them.

A row is (view, sample); its view counts from the build's first.  Nothing is written here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from logitstore.errors import NonFinite
from logitstore.format.choice import Pair
from logitstore.format.encodings.base import LIMITS, Logits, unusable
from logitstore.precompute.building.config import BuildConfig
from logitstore.precompute.data.images import ImageDataset
from logitstore.precompute.networks.forward import Teacher, forward
from logitstore.precompute.views import Views
from logitstore.precompute.views.items import image_batches
from logitstore.writing.target import Target


@dataclass(frozen=True)
class Prepared:
    """The inputs of a build, and the store that it writes to."""

    config: BuildConfig
    dataset: ImageDataset
    views: Views
    target: Target
    teachers: tuple[Teacher, ...]
    device: torch.device

    def images(self, batches: Iterable[Sequence[Pair]]) -> Iterator[Tensor]:
        """Yield the images of each batch of rows, uint8 (n, C, H, W); they are read lazily."""
        first = self.config.first_view
        return image_batches(
            self.dataset,
            self.views,
            ([(first + view, sample) for view, sample in batch] for batch in batches),
            workers=self.config.workers,
            pin=self.device.type == "cuda",
        )

    def forward(self, teacher: Teacher, images: Tensor) -> Logits:
        """Return a teacher's logits float32 (n, C) of images uint8 (n, C, H, W) on the device."""
        precision = self.config.precision
        logits: Logits = forward(teacher.model, images, teacher.normalize, precision).numpy()
        return logits

    def try_forward(self, teacher: Teacher, images: Tensor, batch: Sequence[Pair]) -> Logits:
        """Return the logits of a batch of rows; NonFinite names the first that is not usable."""
        logits = self.forward(teacher, images)
        broken = unusable(logits)
        if len(broken):
            view, sample = batch[broken[0]]
            raise NonFinite(
                f"{teacher.plan.name}: the logits of {len(broken)} of {len(batch)} images tried "
                f"are NaN, infinite or too large (sample {sample}, view {view}, …); {LIMITS}: "
                "check the checkpoint, --normalize and --precision"
            )
        return logits


def split_rows(rows: Sequence[Pair], size: int) -> list[Sequence[Pair]]:
    """Return rows in batches of at most ``size``."""
    return [rows[start : start + size] for start in range(0, len(rows), size)]
