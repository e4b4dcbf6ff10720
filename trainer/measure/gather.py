"""Run a network on a source's images: once to see that it fits, and for all logits in eval mode."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from logitstore.errors import InputError, MismatchError
from logitstore.format.cards import Normalize
from logitstore.precompute.networks.pixels import to_input
from logitstore.precompute.views.items import image_batches
from logitstore.trainer.data.source import Source

Logits = NDArray[np.float32]
Labels = NDArray[np.int32]


def labels_of(source: Source) -> Labels:
    """Return labels int32 (N,), -1 where unknown, in the order of ``gather_logits``."""
    labels: Labels = source.dataset.labels[source.samples()]
    return labels


def gather_logits(
    model: nn.Module,
    source: Source,
    normalize: Normalize | None,
    device: torch.device,
    *,
    batch_size: int,
    workers: int | None = None,
) -> Logits:
    """Return logits float32 (N, C) of every sample in the source's first view, in eval mode."""
    view, samples = source.first_view, source.samples()
    items = (
        [(view, int(sample)) for sample in samples[start : start + batch_size]]
        for start in range(0, len(samples), batch_size)
    )
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            parts = [
                model(to_input(images.to(device), normalize)).float().cpu()
                for images in image_batches(source.dataset, source.views, items, workers=workers)
            ]
    finally:
        model.train(was_training)
    gathered: Logits = torch.cat(parts).numpy()
    return gathered


def first_shape(source: Source) -> tuple[int, int, int]:
    """Return the shape (C, H, W) of a sample as the network gets it."""
    item = [(source.first_view, int(source.samples()[0]))]
    images = next(image_batches(source.dataset, source.views, [item], workers=0))
    return images.shape[1], images.shape[2], images.shape[3]


def check_forward(
    model: nn.Module, source: Source, normalize: Normalize | None, device: torch.device
) -> None:
    """Run the network on one sample; InputError or MismatchError if it does not fit."""
    item = [(source.first_view, int(source.samples()[0]))]
    images = next(image_batches(source.dataset, source.views, [item], workers=0))
    where = f"the student on {source.dataset.name}"
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            output = model(to_input(images.to(device), normalize))
    except Exception as error:  # whatever a network raises for images it is not made for
        raise InputError(
            f"{where}: it does not run on images of shape {tuple(images.shape[1:])}: "
            f"{(str(error).strip() or type(error).__name__).splitlines()[0]}; check --student, "
            f"--size and --normalize"
        ) from error
    finally:
        model.train(was_training)
    shape = tuple(getattr(output, "shape", ()))
    if shape != (1, source.classes):
        raise MismatchError(
            f"{where}: it gives {shape} for one image, expected (1, {source.classes}), one logit "
            "for each class: use a student with as many classes"
        )
