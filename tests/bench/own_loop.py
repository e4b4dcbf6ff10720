"""Measure what ``LogitDataset`` and ``with_logits`` add to an own loop, and a view to a sample."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from logitstore.cache.readers import TeacherReader
from logitstore.precompute.networks.factory import build_model
from logitstore.precompute.networks.pixels import to_input
from logitstore.precompute.views import Views, parse_views
from logitstore.trainer import LogitDataset, losses, with_logits
from tests.bench.harness import Side, Sides, seconds
from tests.bench.images import STUDENT, make_noise
from tests.bench.steps import opened
from tests.bench.workplace import Workplace

BATCH, STEPS = 128, 4

Stream = Iterator[tuple[Tensor, Tensor, Tensor]]


@contextmanager
def own_step(place: Workplace, by: str) -> Iterator[Sides]:
    """Compare steps over ``with_logits`` with the same steps and logits in memory."""
    data = place.once(make_noise).data
    with opened(place, by) as (_, reader):
        dataset = LogitDataset(data, reader.teacher)
        memory = torch.from_numpy(reader.logits(np.arange(len(dataset))))
        ours, bare = _own(dataset, reader), _bare(dataset, memory)
        for part, other in zip(next(ours), next(bare), strict=True):
            assert torch.equal(part, other)
        yield Sides(
            ours=seconds(_stepping(dataset, ours), STEPS),
            theirs=seconds(_stepping(dataset, bare), STEPS),
            repeats=place.sizes.step_repeats,
            facts={"batch": BATCH},
        )


def _loader(dataset: LogitDataset) -> DataLoader[Any]:
    return DataLoader(dataset, BATCH, shuffle=True, generator=torch.Generator().manual_seed(0))


def _own(dataset: LogitDataset, reader: TeacherReader) -> Stream:
    loader = with_logits(_loader(dataset), reader)
    while True:
        for batch in loader:
            yield batch.image, batch.label, batch.teacher


def _bare(dataset: LogitDataset, memory: Tensor) -> Stream:
    loader = _loader(dataset)
    while True:
        for image, label, index, _ in loader:
            yield image, label, memory[index]


def _stepping(dataset: LogitDataset, stream: Stream) -> Callable[[], None]:
    torch.manual_seed(0)
    shape = dataset[0].image.shape
    model = build_model(STUDENT, classes=dataset.classes, shape=(shape[0], shape[1], shape[2]))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

    def run() -> None:
        for image, label, teacher in islice(stream, STEPS):
            logits = model(to_input(image, None))
            soft = losses.kd(logits, teacher, temperature=4)
            loss = (0.1 * losses.cross_entropy(logits, label) + 0.9 * soft).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return run


@contextmanager
def replay(place: Workplace, preset: str) -> Iterator[Sides]:
    """Compare making a view of a preset with decoding the image; there is no target."""
    load, count = _images()[preset]

    def shown(by: Views) -> Side:
        def run() -> None:
            for sample in range(count):
                by(load(), sample=sample, view=1)

        return seconds(run, count)

    yield Sides(
        ours=shown(parse_views(preset, None)),
        theirs=shown(Views(())),
        repeats=place.sizes.repeats,
    )


def _images() -> dict[str, tuple[Callable[[], Any], int]]:
    """Return an image for a preset, and the number of views that are made of it in a turn."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
    coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
    jpeg = io.BytesIO()
    coarse.resize((500, 375), Image.Resampling.BICUBIC).save(jpeg, "JPEG", quality=90)
    return {
        "cifar-train": (lambda: small, 1000),
        "cifar-strong": (lambda: small, 1000),
        "imagenet-train": (lambda: Image.open(jpeg).convert("RGB"), 50),
    }
