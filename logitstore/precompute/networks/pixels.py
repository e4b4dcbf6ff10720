"""Turn uint8 images into what a network reads: scaled and normalised, on their device."""

from __future__ import annotations

import torch
from torch import Tensor

from logitstore.errors import InputError
from logitstore.format.cards import Normalize

_PRESETS = {
    "imagenet": Normalize(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
    "cifar10": Normalize(mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616)),
}


def parse_normalize(text: str | None, channels: int) -> Normalize | None:
    """Read ``imagenet``, ``cifar10``, ``none`` or ``MEAN/STD`` (``0.5,0.5,0.5/0.2,0.2,0.2``).

    None means pixels in [0, 1] as they are.  InputError if the channels do not fit.
    """
    if text is None or text == "none":
        return None
    if text in _PRESETS:
        chosen = _PRESETS[text]
    else:
        try:
            mean, std = (
                tuple(float(number) for number in half.split(",")) for half in text.split("/")
            )
        except ValueError:
            raise InputError(
                f"--normalize {text!r}: expected {', '.join(_PRESETS)}, none or MEAN/STD such as "
                "0.5,0.5,0.5/0.25,0.25,0.25"
            ) from None
        if len(mean) != len(std) or min(std) <= 0:
            raise InputError(
                f"--normalize {text!r}: as many positive std values as means are needed"
            )
        chosen = Normalize(mean=mean, std=std)
    if len(chosen.mean) != channels:
        raise InputError(
            f"--normalize {text!r} is for {len(chosen.mean)} channels, the images have {channels}"
        )
    return chosen


def to_input(images: Tensor, normalize: Normalize | None) -> Tensor:
    """Scale uint8 (N, C, H, W) to float32 in [0, 1] and normalise, on the same device."""
    scaled = images.to(torch.float32).div_(255)
    if normalize is None:
        return scaled
    shape = (1, -1, 1, 1)
    mean = torch.tensor(normalize.mean, device=images.device).view(shape)
    std = torch.tensor(normalize.std, device=images.device).view(shape)
    return scaled.sub_(mean).div_(std)
