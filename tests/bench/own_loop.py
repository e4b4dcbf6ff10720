"""What ``LogitDataset`` and ``with_logits`` cost a loop of one's own, and a view one sample."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from logitstore.precompute.images import to_input
from logitstore.precompute.models import build_model
from logitstore.precompute.views import Views, parse_views
from logitstore.reader import Snapshot
from tests.bench.harness import Ratio, compare
from trainer import LogitDataset, losses, with_logits

BATCH, STEPS = 128, 4


def own_steps(data: str, student: str, snapshots: dict[str, Snapshot]) -> list[Ratio]:
    """Steps over ``with_logits`` against the same loader, views and loss with logits in memory."""
    found = []
    for name, snapshot in snapshots.items():
        dataset = LogitDataset(data, snapshot)
        memory = torch.from_numpy(snapshot.logits(np.arange(len(dataset))))
        ours = _stepping(student, dataset, _own(dataset, snapshot))
        bare = _stepping(student, dataset, _bare(dataset, memory))
        what = f"an own step with_logits, store by {name}"
        found.append(compare(what, "the same, logits in memory", "<= 1.03", ours, bare, repeats=15))
    return found


def _loader(dataset: LogitDataset) -> DataLoader[Any]:
    return DataLoader(dataset, BATCH, shuffle=True, generator=torch.Generator().manual_seed(0))


def _own(dataset: LogitDataset, snapshot: Snapshot) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    loader = with_logits(_loader(dataset), snapshot)
    while True:
        for batch in loader:
            yield batch.image, batch.label, batch.teacher


def _bare(dataset: LogitDataset, memory: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    loader = _loader(dataset)
    while True:
        for image, label, index, _ in loader:
            yield image, label, memory[index]


def _stepping(
    student: str, dataset: LogitDataset, stream: Iterator[tuple[Tensor, Tensor, Tensor]]
) -> Callable[[], None]:
    torch.manual_seed(0)
    shape = dataset[0].image.shape
    model = build_model(student, classes=dataset.classes, shape=(shape[0], shape[1], shape[2]))
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


def replays() -> list[Ratio]:
    """A view of each preset against decoding the image; the last column is for 1,000 samples."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
    coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
    jpeg = io.BytesIO()
    coarse.resize((500, 375), Image.Resampling.BICUBIC).save(jpeg, "JPEG", quality=90)
    sources: dict[str, tuple[Callable[[], Any], int]] = {
        "cifar-train": (lambda: small, 1000),
        "cifar-strong": (lambda: small, 1000),
        "imagenet-train": (lambda: Image.open(jpeg).convert("RGB"), 50),
    }
    return [_replay(preset, *source) for preset, source in sources.items()]


def _replay(preset: str, load: Callable[[], Any], count: int) -> Ratio:
    views, plain = parse_views(preset, None), Views(())

    def made(by: Views) -> Callable[[], None]:
        def run() -> None:
            for sample in range(count):
                by(load(), sample=sample, view=1)

        return run

    what = f"a view of {preset}, x 1,000"
    ratio = compare(what, "the image as it is, decoded", "", made(views), made(plain))
    return replace(ratio, seconds=ratio.seconds * 1000 / count)
