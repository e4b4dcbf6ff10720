"""Compare a build with the bare forward of its teacher over the same loader.

The checks before a build's first batch cost the same for any dataset and are left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from logitstore.format.grid import Span
from logitstore.precompute.building.prepare import prepare
from logitstore.precompute.building.prepared import split_rows
from logitstore.precompute.building.run import write
from logitstore.precompute.data.sources import open_dataset
from logitstore.precompute.networks.factory import build_model
from logitstore.precompute.networks.forward import forward
from logitstore.precompute.views import Views
from logitstore.precompute.views.items import image_batches
from tests.bench.harness import Sides, seconds
from tests.bench.images import SIDE, Task, make_cifar, make_noise
from tests.bench.workplace import CLASSES, Workplace


@contextmanager
def noise(place: Workplace) -> Iterator[Sides]:
    """Compare with many classes and a small network, where rows cost the largest share."""
    yield _sides(place, place.once(make_noise), CLASSES)


@contextmanager
def cifar(place: Workplace) -> Iterator[Sides]:
    """Compare with ten classes, as in CIFAR."""
    yield _sides(place, place.once(make_cifar), 10)


def _sides(place: Workplace, task: Task, classes: int) -> Sides:
    dataset = open_dataset(task.data)
    model = build_model(task.arch, classes=classes, shape=(3, SIDE, SIDE))
    model.load_state_dict(torch.load(task.checkpoint, weights_only=True))
    model.eval().to(memory_format=torch.channels_last)
    batches = split_rows(Span(0, 0, len(dataset)).pairs, 256)

    def bare() -> None:
        for images in image_batches(dataset, Views(()), batches, workers=0):
            forward(model, images, None, "fp32")

    repeats = max(5, place.sizes.few_repeats)
    prepared = [
        prepare(task.config(place.new_folder("build") / "b.zarr")) for _ in range(repeats + 1)
    ]
    turn = iter(prepared)
    return Sides(
        ours=seconds(lambda: write(next(turn))),
        theirs=seconds(bare),
        repeats=repeats,
        facts={"images": len(dataset)},
    )
