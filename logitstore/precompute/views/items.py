"""Read views in batches, in order and ahead of time, in worker processes.

Samples are mixed with their partners here.  It does not know shards or networks.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from logitstore.errors import InputError, LogitstoreError
from logitstore.precompute.data.images import ImageDataset
from logitstore.precompute.views import Views
from logitstore.precompute.views.mix import Mix, blend


class ViewItems(Dataset[Any]):
    """Items by (view, sample): uint8 (C, H, W), or the error that kept one from being made.

    Errors travel as values: re-raised by a DataLoader they would arrive as a foreign traceback.
    """

    def __init__(self, dataset: ImageDataset, views: Views) -> None:
        self.dataset, self.views = dataset, views
        self._mix = None if views.mix is None else Mix(views.mix, views.seed, len(dataset))

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, item: tuple[int, int]) -> Tensor | LogitstoreError:
        try:
            return self.show(*item)
        except InputError as error:
            return error

    def show(self, view: int, sample: int) -> Tensor:
        """Make what a network sees of a sample: uint8 (C, H, W), mixed with its partner if planned.

        InputError if an image cannot be read, or two that are to be mixed differ in shape.
        """
        image = self._alone(view, sample)
        if self._mix is None:
            return image
        plan = self._mix.plan(sample, view)
        if plan.weight == 1:
            return image
        try:
            return blend(image, self._alone(view, plan.partner), plan)
        except InputError as error:
            raise InputError(
                f"{self.dataset.name}: sample {sample} is mixed with sample {plan.partner} "
                f"(view {view}): {error}"
            ) from None

    def _alone(self, view: int, sample: int) -> Tensor:
        try:
            return self.views(self.dataset.item(sample), sample=sample, view=view)
        except InputError:
            raise
        except Exception as error:  # whatever a user's dataset or an image decoder raises
            raise InputError(
                f"{self.dataset.name}: sample {sample} (view {view}) cannot be read: "
                f"{type(error).__name__}: {error}"
            ) from error


def stacked(images: Iterable[Tensor]) -> Tensor:
    """Stack images to uint8 (N, C, H, W); InputError if they differ in shape."""
    images = list(images)
    shapes = {tuple(image.shape) for image in images}
    if len(shapes) > 1:
        raise InputError(
            f"the images of one batch differ in shape ({', '.join(map(str, sorted(shapes)))}): "
            "give --size, or a --view-spec that crops or resizes"
        )
    return torch.stack(images)


def _collate(items: Sequence[Tensor | LogitstoreError]) -> Tensor | LogitstoreError:
    """Stack the items of a batch, or return the first error."""
    errors = (item for item in items if isinstance(item, LogitstoreError))
    try:
        return next(errors, None) or stacked(item for item in items if isinstance(item, Tensor))
    except InputError as error:
        return error


def default_workers(dataset: ImageDataset) -> int:
    """Return how many processes read images: none if the images are in memory already."""
    return 0 if dataset.in_memory else min(8, os.cpu_count() or 1)


def image_batches(
    dataset: ImageDataset,
    views: Views,
    items: Iterable[list[tuple[int, int]]],
    *,
    workers: int | None,
    pin: bool = False,
) -> Iterator[Tensor]:
    """Yield uint8 (N, C, H, W) for each list of (view, sample); raises what spoilt an image.

    ``items`` is iterated lazily: a long run's plan is never held in memory.
    """
    count = default_workers(dataset) if workers is None else workers
    loader: DataLoader[Any] = DataLoader(
        ViewItems(dataset, views),
        batch_sampler=items,
        num_workers=count,
        collate_fn=_collate,
        pin_memory=pin,
        # A dataset from a user's file cannot be imported by a process that starts afresh.
        multiprocessing_context="fork" if count and sys.platform == "linux" else None,
        generator=torch.Generator(),  # else it draws from the global one, which dropout uses
    )
    for images in loader:
        if isinstance(images, LogitstoreError):
            raise images
        yield images
