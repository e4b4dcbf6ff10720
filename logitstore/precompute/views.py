"""Views: what exactly a network saw of a sample, reproducible bit for bit, and its fingerprints.

A view spec is a list of ``{"name": TRANSFORM, …arguments}`` from an allow-list of
``torchvision.transforms.v2``; the output size is kept apart from it, so that networks of different
input sizes see the same region.  Images are PIL images until the end: tensor paths give other bits
on other CPUs.  A view is uint8; scaling and normalisation belong to the network (``images``).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from logitstore.errors import InputError, MismatchError, UnknownName
from logitstore.precompute.datasets import ImageDataset, as_image
from logitstore.schema import THUMBNAIL_TOLERANCE, Canary, ViewCard

Spec = tuple[dict[str, Any], ...]

ALLOWED: dict[str, tuple[str, ...]] = {
    "Resize": ("size",),
    "CenterCrop": ("size",),
    "Pad": ("padding", "fill", "padding_mode"),
    "Grayscale": ("num_output_channels",),
}
PRESETS: dict[str, Spec] = {
    "eval": (),
    "imagenet-eval": ({"name": "Resize", "size": 256}, {"name": "CenterCrop", "size": 224}),
}
MAX_CANARY_VIEWS, CANARIES, THUMBNAIL = 16, 16, 8


def parse_view_spec(text: str) -> Spec:
    """A preset's name or a JSON file's path -> a checked spec."""
    if text in PRESETS:
        return PRESETS[text]
    if not text.endswith(".json"):
        raise UnknownName.among("view preset (or FILE.json)", text, PRESETS)
    try:
        loaded = json.loads(Path(text).read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{text}: not a readable view spec: {error}") from None
    if not isinstance(loaded, list):
        raise InputError(f'{text}: expected a list such as [{{"name": "CenterCrop", "size": 224}}]')
    return tuple(loaded)


class Views:
    """``views(image, sample=i, view=v)`` -> uint8 (C, H, W): the same call for teacher and student.

    ``size`` is the side of the result: shorter side resized to it, centre cut out; None keeps what
    the spec gives.  Raises InputError or UnknownName for a transform that is not allowed.
    """

    def __init__(self, spec: Iterable[Mapping[str, Any]], size: int | None = None, seed: int = 0):
        self.spec: Spec = tuple(dict(step) for step in spec)
        self.size, self.seed = size, seed
        steps = [_transform(step, position) for position, step in enumerate(self.spec)]
        if size is not None:
            if size < 1:
                raise InputError(f"--size must be at least 1, not {size}")
            steps += [v2.Resize(size), v2.CenterCrop(size)]
        self._apply = v2.Compose(steps) if steps else None

    def __call__(self, image: Any, *, sample: int, view: int) -> Tensor:
        """One deterministic view; ``sample`` and ``view`` are all that a draw may depend on.

        ``image`` is whatever ``as_image`` accepts.
        """
        if self._apply is None and _is_plain(image):
            return _pixels(image)  # what the way through PIL gives, at a tenth of its time
        image = as_image(image, f"sample {sample}")
        result: Tensor = F.pil_to_tensor(self._apply(image) if self._apply else image)
        return result


def _is_plain(image: Any) -> bool:
    return (
        isinstance(image, np.ndarray)
        and image.dtype == np.uint8
        and (image.ndim == 2 or (image.ndim == 3 and image.shape[2] in (1, 3)))
    )


def _pixels(image: NDArray[np.uint8]) -> Tensor:
    """uint8 (H, W) or (H, W, C) -> (C, H, W)."""
    planes = image[:, :, None] if image.ndim == 2 else image
    return torch.from_numpy(planes.transpose(2, 0, 1).copy())


def _transform(step: Mapping[str, Any], position: int) -> Any:
    arguments = dict(step)
    name = arguments.pop("name", None)
    if name not in ALLOWED:
        raise UnknownName.among(f"transform at position {position}:", str(name), ALLOWED)
    for argument in arguments:
        if argument not in ALLOWED[name]:
            raise UnknownName.among(f"argument of {name}", argument, ALLOWED[name])
    try:
        return getattr(v2, name)(**arguments)
    except (TypeError, ValueError) as error:
        raise InputError(f"transform {name} at position {position}: {error}") from None


def views_of(card: ViewCard) -> Views:
    """The views that a snapshot was built from."""
    return Views(card.spec, card.size, card.seed)


def make_view_card(dataset: ImageDataset, views: Views, count: int) -> ViewCard:
    """Describe ``count`` views of a dataset, with a canary for 16 evenly spaced samples of each."""
    canaries = tuple(
        _canary(dataset, views, sample, view)
        for view in range(min(count, MAX_CANARY_VIEWS))
        for sample in canary_samples(len(dataset))
    )
    return ViewCard(spec=views.spec, size=views.size, seed=views.seed, canaries=canaries)


def canary_samples(samples: int) -> list[int]:
    """At most 16 evenly spaced sample indices, first and last among them."""
    spaced = np.linspace(0, samples - 1, min(CANARIES, samples))
    return [int(index) for index in np.unique(spaced.round())]


def check_canaries(card: ViewCard, dataset: ImageDataset, views: Views) -> list[str]:
    """Compare this dataset's views with the ones that the teacher saw.

    Equal digest: pass.  Thumbnails within 2/255 (another JPEG decoder): pass, with one warning in
    the list returned.  Else MismatchError names the first sample and how far off it is.
    """
    near = 0
    for canary in card.canaries:
        found = _canary(dataset, views, canary.sample, canary.view)
        if found.sha256 == canary.sha256:
            continue
        where = f"{dataset.name}: sample {canary.sample}, view {canary.view}"
        if found.shape != canary.shape:
            raise MismatchError(
                f"{where} is {found.shape} here and was {canary.shape} (channels, height, width) "
                "for the teacher: use the dataset and view settings of the store"
            )
        there, here = (np.frombuffer(bytes.fromhex(c.thumbnail), np.uint8) for c in (canary, found))
        distance = int(np.abs(there.astype(int) - here.astype(int)).max())
        if distance > THUMBNAIL_TOLERANCE:
            raise MismatchError(
                f"{where} is not the image that the teacher saw (thumbnails differ by "
                f"{distance}/255): "
                "the dataset is another one or comes in another order than the store's"
            )
        near += 1
    if not near:
        return []
    return [
        f"{near} of {len(card.canaries)} checked views differ from the teacher's by at most "
        f"{THUMBNAIL_TOLERANCE}/255, as another image decoder makes them; accepted"
    ]


def _canary(dataset: ImageDataset, views: Views, sample: int, view: int) -> Canary:
    pixels = views(dataset.item(sample), sample=sample, view=view).numpy()
    small = [
        np.asarray(Image.fromarray(plane).resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX))
        for plane in pixels
    ]
    channels, height, width = pixels.shape
    return Canary(
        view=view,
        sample=sample,
        shape=(channels, height, width),
        sha256=hashlib.sha256(pixels.tobytes()).hexdigest(),
        thumbnail=np.stack(small).tobytes().hex(),
    )
