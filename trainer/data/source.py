"""Hold what a student is taught from: a dataset as its teachers saw it, and a batch's request.

Nothing is opened or checked here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from logitstore.precompute.data.classes import ClassMap
from logitstore.precompute.data.images import ImageDataset
from logitstore.precompute.views import Views
from logitstore.reading.ensemble import Teacher
from logitstore.trainer.data.teaching import TeachingSchedule

Indices = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Source:
    """A dataset in ``view_count`` views, and the schedule of its teachers if it has any.

    The dataset has the store's length and order; ``subset`` are the samples that have an image,
    ascending (None: all).  Its classes are numbered as the store's, by ``class_map`` if one was
    given.  ``first_view`` is the number, in the view spec's sequence, of the teachers' view 0.
    ``fresh``: the images come in a view of their own in each epoch, whatever the rows' view is.
    """

    dataset: ImageDataset
    views: Views
    classes: int
    view_count: int = 1
    first_view: int = 0
    fresh: bool = False
    subset: Indices | None = None
    class_map: ClassMap | None = None
    teaching: TeachingSchedule | None = None

    @property
    def snapshot(self) -> Teacher | None:
        """The first epoch's teacher; all teachers saw the same images."""
        return None if self.teaching is None else self.teaching.first

    def samples(self) -> Indices:
        """Return the samples that have an image, ascending."""
        return np.arange(len(self.dataset)) if self.subset is None else self.subset

    def teacher_logits(self) -> NDArray[np.float32]:
        """Return the first epoch's teacher's logits (N, C) of all samples, in its first view."""
        assert self.snapshot is not None
        return self.snapshot.logits(self.samples())

    def evaluation(self, subset: Indices | None) -> Source:
        """Return other samples of the dataset, without teachers and without what is random."""
        return Source(
            dataset=self.dataset,
            views=self.views.evaluation(),
            classes=self.classes,
            subset=subset,
            class_map=self.class_map,
        )

    def shown_view(self, epoch: int, view: int) -> int:
        """Return the number, in the view spec's sequence, of the images beside a view's rows."""
        return epoch if self.fresh else self.first_view + view


class Request(NamedTuple):
    """The samples of one step, and their view of the snapshot; epoch and step count from 0."""

    epoch: int
    step: int
    view: int
    indices: Indices
