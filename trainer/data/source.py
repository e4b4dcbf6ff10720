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
    """What a student is shown: a dataset in ``view_count`` views, and perhaps a teacher's rows.

    The dataset comes in the store's order; ``samples`` are those that are there, ascending (None:
    all).  Its classes are numbered as the store's, by ``class_map`` if one was given.
    ``first_view`` is the number, in the view spec's sequence, of the teachers' view 0.
    ``fresh``: the images come in a view of their own in each epoch, whatever the rows' view is.
    """

    dataset: ImageDataset
    views: Views
    classes: int
    view_count: int
    first_view: int = 0
    fresh: bool = False
    samples: Indices | None = None
    class_map: ClassMap | None = None
    teaching: TeachingSchedule | None = None

    @property
    def snapshot(self) -> Teacher | None:
        """Who teaches in the first epoch; all that teach saw the same images."""
        return None if self.teaching is None else self.teaching.first

    @property
    def root(self) -> str | None:
        """What identifies all that teaches."""
        return None if self.teaching is None else self.teaching.root

    def there(self) -> Indices:
        """The samples that can be trained on, ascending."""
        return np.arange(len(self.dataset)) if self.samples is None else self.samples

    def shown_view(self, request: Request) -> int:
        """Which view of the spec's sequence the images of a request come in."""
        return request.epoch if self.fresh else self.first_view + request.view


class Request(NamedTuple):
    """Which samples a step takes, in which view of the snapshot; epoch and step count from 0."""

    epoch: int
    step: int
    view: int
    indices: Indices
