"""Run a network on a source's images in eval mode: for all logits, or once to see that it fits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from logitstore.errors import InputError, MismatchError
from logitstore.format.cards import Normalize
from logitstore.precompute.networks.pixels import to_input
from logitstore.precompute.views.items import image_batches
from logitstore.trainer.data.source import Source

Logits = NDArray[np.float32]
Labels = NDArray[np.int32]


@dataclass(frozen=True)
class Network:
    """A network on a device, with what it needs to take images."""

    model: nn.Module
    normalize: Normalize | None
    device: torch.device
    batch_size: int
    workers: int | None = None

    def logits(self, source: Source) -> Logits:
        """Return logits float32 (N, C) of every sample that has an image, in the first view."""
        samples, size = source.samples(), self.batch_size
        items = (
            [(source.first_view, int(sample)) for sample in samples[start : start + size]]
            for start in range(0, len(samples), size)
        )
        images = image_batches(source.dataset, source.views, items, workers=self.workers)
        logits: Logits = torch.cat([self._run(batch).float().cpu() for batch in images]).numpy()
        return logits

    def check(self, source: Source) -> None:
        """Run the network on one sample; InputError or MismatchError if it does not fit."""
        image = _first_image(source)
        where = f"the student on {source.dataset.name}"
        try:
            output = self._run(image)
        except Exception as error:  # whatever a network raises for images it is not made for
            raise InputError(
                f"{where}: it does not run on images of shape {tuple(image.shape[1:])}: "
                f"{(str(error).strip() or type(error).__name__).splitlines()[0]}; check --student, "
                f"--size and --normalize"
            ) from error
        shape = tuple(getattr(output, "shape", ()))
        if shape != (1, source.classes):
            raise MismatchError(
                f"{where}: it gives {shape} for one image, expected (1, {source.classes}), one "
                "logit for each class: use a student with as many classes"
            )

    def _run(self, images: Tensor) -> Any:
        was_training = self.model.training
        self.model.eval()
        try:
            with torch.inference_mode():
                return self.model(to_input(images.to(self.device), self.normalize))
        finally:
            self.model.train(was_training)


def labels_of(source: Source) -> Labels:
    """Return labels int32 (N,), -1 where unknown, in the order of a network's logits."""
    labels: Labels = source.dataset.labels[source.samples()]
    return labels


def first_shape(source: Source) -> tuple[int, int, int]:
    """Return the shape (C, H, W) of a sample as the network gets it."""
    _, channels, height, width = _first_image(source).shape
    return channels, height, width


def _first_image(source: Source) -> Tensor:
    item = [(source.first_view, int(source.samples()[0]))]
    return next(image_batches(source.dataset, source.views, [item], workers=0))
