"""Add the teacher's logits to the batches of a user's own training loop.

Only the thread that iterates calls the loader, because samplers and views draw from torch's global
generator; one other thread reads rows ahead.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import closing
from queue import SimpleQueue
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from logitstore.cache.cache import Cache
from logitstore.cache.modes import ReadMode
from logitstore.cache.prepare import prepare_reading
from logitstore.cache.readers import RowReader, TeacherReader
from logitstore.errors import InputError
from logitstore.format.encodings.rows import Rows
from logitstore.reading.ensemble import Blend, Teacher
from logitstore.threads import read_ahead
from logitstore.trainer.data.bind import refuse_other_root
from logitstore.trainer.own_loop.dataset import LogitDataset, LogitItem

log = logging.getLogger(__name__)

_FORWARDED = ("dataset", "sampler", "batch_sampler", "batch_size", "drop_last", "num_workers")
"""Attributes of the loader that the wrapped loader answers, for frameworks that look at them."""


class LogitBatch(NamedTuple):
    """A collated ``LogitItem`` with the teacher's logits, float32 (N, C)."""

    image: Tensor
    label: Tensor
    index: Any
    view: Tensor
    teacher: Tensor


def with_logits(
    loader: Any,
    snapshot: Teacher | TeacherReader,
    *,
    read: ReadMode = "auto",
    cache: Cache | None = None,
    device: Any = None,
    ahead: int = 2,
) -> LogitLoader:
    """Add the teacher's logits, float32 (N, C), to each batch of a loader over a ``LogitDataset``.

    A ``LogitItem`` becomes a ``LogitBatch``; a mapping from a ``collate_fn`` that keeps ``index``
    and ``view`` gains ``teacher``.  The logits lie on ``device`` (None: where the batch's first
    tensor lies).  A thread reads the rows of the next ``ahead`` batches, so that a URL costs no
    waiting; 0 for accelerate's ``accumulate``, which watches the loader for its last batch.

    ``read`` and ``cache`` say where the snapshot's rows come from (``logitstore.prepare_reading``,
    called here): by default they are decoded once, into memory or a cache on the disk, which takes
    a while for a large snapshot and is logged.  A reader that ``prepare_reading``
    returned may be given instead of the snapshot: then nothing is prepared here.

    The snapshot may be an ``Ensemble``, if the dataset was made with it.

    Each iteration is the next epoch, unless ``set_epoch`` of the result, of the dataset or of a
    DistributedSampler set another one; the sampler's epoch is set, too.  Loaders over one dataset
    share its epoch.  Wrap last: call what makes a new loader of a loader (``accelerator.prepare``,
    ``fabric.setup_dataloaders``) before.  Raises InputError if the loader has another dataset,
    MismatchError if that belongs to another snapshot.

    >>> loader = DataLoader(LogitDataset(data, snapshot), 128, shuffle=True)   # doctest: +SKIP
    >>> for image, label, index, view, teacher in with_logits(loader, snapshot):  # doctest: +SKIP
    ...     loss = losses.kd(student(to_input(image, None)), teacher, temperature=4)
    """
    if ahead < 0:
        raise InputError(f"ahead must not be negative, not {ahead}")
    teacher = snapshot.teacher if isinstance(snapshot, TeacherReader) else snapshot
    datasets = _logit_datasets(loader.dataset)
    for dataset in datasets:
        refuse_other_root(dataset.root, teacher)
    clocks = [*datasets, *_samplers(loader)]
    if not isinstance(snapshot, TeacherReader):
        snapshot = prepare_reading(snapshot, read, cache)
        log.info("%s", snapshot.note)
    return LogitLoader(loader, snapshot, clocks, device, ahead)


class LogitLoader:
    """A loader whose batches have the teacher's logits: see ``with_logits``.

    ``dataset``, ``sampler``, ``batch_sampler``, ``batch_size``, ``drop_last`` and ``num_workers``
    are the loader's; the epoch of all ``clocks`` is set before it begins.
    """

    def __init__(
        self,
        loader: Any,
        reader: RowReader,
        clocks: list[Any],
        device: Any,
        ahead: int,
    ) -> None:
        self._loader, self._reader, self._clocks = loader, reader, clocks
        self._device, self._ahead = device, ahead
        self._epoch, self._begun = 0, False

    def __len__(self) -> int:
        return len(self._loader)

    def __getattr__(self, name: str) -> Any:
        if name not in _FORWARDED:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self._loader, name)

    def set_epoch(self, epoch: int) -> None:
        """Make the next iteration this epoch, from 0."""
        self._epoch, self._begun = epoch, False
        for clock in self._clocks:
            clock.set_epoch(epoch)
        if hasattr(self._loader, "set_epoch"):  # accelerate's loaders tell the sampler themselves
            self._loader.set_epoch(epoch)

    def __iter__(self) -> Iterator[Any]:
        """Begin an epoch with its first batch: Lightning makes iterators that it never uses."""
        self.set_epoch(self._coming_epoch())
        self._begun = True
        requests: SimpleQueue[tuple[Any, Any] | None] = SimpleQueue()
        waiting: deque[Any] = deque()
        with closing(read_ahead(iter(requests.get, None), self._fetch)) as rows:
            try:
                for batch in self._loader:
                    fields = _fields(batch)
                    requests.put((fields["index"], fields["view"]))
                    waiting.append(batch)
                    if len(waiting) > self._ahead:
                        yield self._joined(waiting.popleft(), next(rows))
                while waiting:
                    yield self._joined(waiting.popleft(), next(rows))
            finally:
                requests.put(None)

    def _coming_epoch(self) -> int:
        """Return the epoch that a clock was set to since the last one began, else the next."""
        set_to = (getattr(clock, "epoch", self._epoch) for clock in self._clocks)
        return next((e for e in set_to if e != self._epoch), self._epoch + self._begun)

    def _fetch(self, request: tuple[Any, Any]) -> Rows | Blend:
        # In the reading thread, because a copy from a GPU waits for the step that is under way.
        indices, views = (np.asarray(torch.as_tensor(part).cpu()) for part in request)
        return _gather(self._reader, indices, views)

    def _joined(self, batch: Any, rows: Rows | Blend) -> Any:
        tensors = (part for part in _fields(batch).values() if isinstance(part, Tensor))
        place = next((t.device for t in tensors), "cpu") if self._device is None else self._device
        teacher = rows.tensor(place)
        if isinstance(batch, LogitItem):
            return LogitBatch(*batch, teacher)
        return {**batch, "teacher": teacher}


def _logit_datasets(dataset: Any) -> list[LogitDataset]:
    """Return the LogitDatasets under torch's Subset and ConcatDataset."""
    if isinstance(dataset, LogitDataset):
        return [dataset]
    inner = getattr(dataset, "datasets", None) or [getattr(dataset, "dataset", None)]
    if inner == [None]:
        raise InputError(
            f"the loader's dataset is a {type(dataset).__name__}, whose items tell neither their "
            "index nor their view: make it with LogitDataset(dataset, snapshot)"
        )
    return [leaf for part in inner for leaf in _logit_datasets(part)]


def _samplers(loader: Any) -> list[Any]:
    """Return the loader's samplers that have an epoch, each once."""
    batches = getattr(loader, "batch_sampler", None)
    samplers = [getattr(loader, "sampler", None), batches, getattr(batches, "sampler", None)]
    clocks = {id(sampler): sampler for sampler in samplers if hasattr(sampler, "set_epoch")}
    return list(clocks.values())


def _fields(batch: Any) -> Mapping[str, Any]:
    fields = batch._asdict() if isinstance(batch, LogitItem) else batch
    if not isinstance(fields, Mapping) or not {"index", "view"} <= fields.keys():
        raise InputError(
            f"a batch is a {type(batch).__name__} that does not tell the index and view of its "
            "samples: let collate_fn return a LogitItem, or a dict with 'index' and 'view'"
        )
    return fields


def _gather(
    reader: RowReader, indices: NDArray[np.int64], views: NDArray[np.int64]
) -> Rows | Blend:
    """Return the rows of each sample in its view, in this order: one gather per view."""
    present = np.unique(views)
    parts: list[Any] = [reader.rows(indices[views == view], int(view)) for view in present]
    if len(parts) == 1:
        only: Rows | Blend = parts[0]
        return only
    back = np.argsort(np.argsort(views, kind="stable"))
    joined: Rows | Blend = type(parts[0]).joined(parts, back)
    return joined
