"""What shape a network gets of a source's images, and whether it runs on them: before any work."""

from __future__ import annotations

import torch
from torch import nn

from logitstore.errors import InputError, MismatchError
from logitstore.precompute.feed import image_batches
from logitstore.precompute.images import to_input
from logitstore.schema import Normalize
from trainer.data import Source


def first_shape(source: Source) -> tuple[int, int, int]:
    """Shape (C, H, W) of a sample as the network gets it."""
    item = [(source.first_view, int(source.there()[0]))]
    images = next(image_batches(source.dataset, source.views, [item], workers=0))
    return images.shape[1], images.shape[2], images.shape[3]


def check_runs(
    model: nn.Module, source: Source, normalize: Normalize | None, device: torch.device
) -> None:
    """Run the network on one sample: InputError or MismatchError if it does not fit."""
    item = [(source.first_view, int(source.there()[0]))]
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
