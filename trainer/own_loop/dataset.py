"""Show a user's own training loop the images that a snapshot's teacher saw, by sample.

An item carries the number of its view, so that it is joined with that view's logits and no others,
however many workers a loader has and however much it prefetches (``loader``).
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from logitstore.cache.readers import TeacherReader
from logitstore.precompute.data.classes import ClassMap
from logitstore.precompute.data.images import ImageDataset, from_map_style
from logitstore.precompute.data.sources import open_dataset
from logitstore.precompute.views import Views
from logitstore.precompute.views.items import ViewItems
from logitstore.reading.ensemble import Teacher, leaves
from logitstore.reading.store import LogitStore
from logitstore.trainer.data.bind import bind, open_validation
from logitstore.trainer.data.source import Source


class BindingWarning(UserWarning):
    """A note on how a dataset fits its store; a training run prints it."""


class LogitItem(NamedTuple):
    """One sample: image uint8 (C, H, W), label (-1: unknown), index in the store, snapshot's view.

    Collated, its fields are tensors: uint8 (N, C, H, W) and three times int64 (N,).
    """

    image: Tensor
    label: Any
    index: Any
    view: Any


class LogitDataset(Dataset[LogitItem]):
    """The samples of a dataset as the teacher of a snapshot saw them, each a ``LogitItem``.

    ``dataset`` is a DATA spec, an ``ImageDataset`` or any map-style dataset of (image, label) with
    PIL or uint8 images.  It must be the store's, as in a training run: MismatchError says what
    differs; ``match_by="key"`` re-aligns, ``class_map`` renumbers, ``allow_mismatch`` and
    ``allow_unbound`` (imported logits, images as they are) accept.  The length is the number of
    samples that have an image.  The label of a mixed image is that of the sample itself.

    What is accepted is a BindingWarning, not a line of the log: it is about the line that made the
    dataset, and a filter can silence it or make it an error.

    Epoch e shows view e mod V.  ``with_logits`` counts the epochs.  The epoch lies in shared
    memory, so that workers that outlive an epoch see it change.
    """

    def __init__(
        self,
        dataset: Any,
        snapshot: Teacher | TeacherReader,
        *,
        match_by: str = "index",
        class_map: ClassMap | None = None,
        allow_mismatch: bool = False,
        allow_unbound: bool = False,
    ) -> None:
        teacher = snapshot.teacher if isinstance(snapshot, TeacherReader) else snapshot
        source, notes = bind(
            LogitStore.of(leaves(teacher)[0]),
            teacher,
            _as_images(dataset),
            unbound=Views(()) if allow_unbound else None,
            allow_mismatch=allow_mismatch,
            match_by=match_by,
            class_map=class_map,
        )
        for note in notes:
            warnings.warn(note, BindingWarning, stacklevel=2)
        self.root, self.classes, self.views = teacher.root, source.classes, source.view_count
        self._source = replace(source, teaching=None)  # else every worker would get a copy of it
        self._samples = source.samples()
        self._items = ViewItems(source.dataset, source.views)
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, item: int) -> LogitItem:
        source, epoch, sample = self._source, self.epoch, int(self._samples[item])
        view = epoch % self.views
        image = self._items.show(source.shown_view(epoch, view), sample)
        return LogitItem(image, int(source.dataset.labels[sample]), sample, view)

    @property
    def epoch(self) -> int:
        """The epoch whose view is shown, from 0."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Show the view of this epoch from the next item on, in every worker."""
        self._epoch.fill_(epoch)

    def validation(self, data: str) -> ValidationDataset:
        """Open another split, prepared and numbered as this but for what is random."""
        return ValidationDataset(open_validation(data, self._source))


class ValidationItem(NamedTuple):
    """One sample to measure on: image uint8 (C, H, W) and label (-1: unknown)."""

    image: Tensor
    label: Any


class ValidationDataset(Dataset[ValidationItem]):
    """Every sample of another split as a ``ValidationItem``: see ``LogitDataset.validation``."""

    def __init__(self, source: Source) -> None:
        self._labels = source.dataset.labels
        self._items = ViewItems(source.dataset, source.views)

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, item: int) -> ValidationItem:
        return ValidationItem(self._items.show(0, item), int(self._labels[item]))


def _as_images(dataset: Any) -> ImageDataset:
    if isinstance(dataset, ImageDataset):
        return dataset
    if isinstance(dataset, str):
        return open_dataset(dataset)
    return from_map_style(dataset, type(dataset).__name__)
