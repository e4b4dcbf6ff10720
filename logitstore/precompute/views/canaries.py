"""Canaries: fingerprints of a few views, which tell a student that it sees what the teacher saw.

A canary is the sha256 of a view's uint8 pixels and an 8x8 thumbnail.  There is one for each of 16
evenly spaced samples in each of the first 16 views.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from importlib.metadata import version

import numpy as np
from PIL import Image

from logitstore.errors import InputError, MismatchError
from logitstore.format.cards import THUMBNAIL_SIDE, THUMBNAIL_TOLERANCE, Canary, ViewCard
from logitstore.precompute.data.images import ImageDataset
from logitstore.precompute.views import Views
from logitstore.precompute.views.items import ViewItems

MAX_CANARY_VIEWS, CANARIES = 16, 16
"""Views that have canaries, and canaries in a view."""

_DECODER_DISTANCE = 16
"""Largest difference, of 255, between thumbnails of one image by other decoders or resizers."""

_DRAWING = ("pillow", "torch", "torchvision")
"""Packages whose version may change what a view looks like."""


def make_view_card(
    dataset: ImageDataset, views: Views, count: int, first_view: int = 0
) -> ViewCard:
    """Describe ``count`` views of a dataset from number ``first_view`` of their sequence on.

    InputError if an image is not the same when it is read again.
    """
    items = ViewItems(dataset, views)
    chosen = canary_samples(len(dataset))
    canaries = tuple(
        _canary(items, view, sample)
        for view in range(first_view, first_view + min(count, MAX_CANARY_VIEWS))
        for sample in chosen
    )
    for canary in canaries[: len(chosen)]:
        _refuse_unstable(items, canary)
    return ViewCard(
        spec=views.spec,
        size=views.size,
        mix=views.mix,
        seed=views.seed,
        first_view=first_view,
        canaries=canaries,
    )


def canary_samples(samples: int) -> list[int]:
    """Return at most 16 evenly spaced sample indices, first and last among them."""
    spaced = np.linspace(0, samples - 1, min(CANARIES, samples))
    return [int(index) for index in np.unique(spaced.round())]


def check_canaries(
    card: ViewCard,
    dataset: ImageDataset,
    views: Views,
    *,
    packages: Mapping[str, str] | None = None,
    samples: Sequence[int] | np.ndarray[tuple[int], np.dtype[np.int64]] | None = None,
) -> list[str]:
    """Compare this dataset's views with the ones that the teacher saw.

    Equal digest: pass.  Thumbnails within 2/255 (another JPEG decoder): pass, with one note in the
    list returned.  Else MismatchError names the first sample, how far off it is and what differs;
    ``packages`` are the teacher's library versions.  Only ``samples`` (None: all) are looked at.
    """
    present = None if samples is None else {int(sample) for sample in samples}
    if present is not None and views.mix is not None:
        present = set()  # a partner may be missing
    chosen = [c for c in card.canaries if present is None or c.sample in present]
    if not card.canaries:
        raise MismatchError(
            f"{dataset.name}: the snapshot holds no fingerprint of any view: nothing tells whether "
            "the teacher saw these images"
        )
    if not chosen:
        return ["none of the checked views is of a sample that is here: matched by key and label"]
    items, near = ViewItems(dataset, views), 0
    for canary in chosen:
        if canary.sample >= len(dataset):
            raise MismatchError(
                f"{dataset.name}: the snapshot has a fingerprint of sample {canary.sample}, of "
                f"{len(dataset)}"
            )
        ours = _canary(items, canary.view, canary.sample)
        if ours.sha256 == canary.sha256:
            continue
        if not ours.resembles(canary):
            _refuse_unstable(items, ours)
            where = f"{dataset.name}: sample {canary.sample}, view {canary.view}"
            raise MismatchError(f"{where} {_difference(canary, ours, packages or {})}")
        near += 1
    if not near:
        return []
    return [
        f"{near} of {len(chosen)} checked views differ from the teacher's by at most "
        f"{THUMBNAIL_TOLERANCE}/255, as another image decoder makes them; accepted"
    ]


def _refuse_unstable(items: ViewItems, canary: Canary) -> None:
    """Refuse a sample that is another image when it is read again."""
    if _canary(items, canary.view, canary.sample).sha256 != canary.sha256:
        raise InputError(
            f"{items.dataset.name}: sample {canary.sample} is another image each time it is read, "
            "as if a random or stateful transform were at work inside the dataset: give the images "
            "as they are, and augment with --view-spec"
        )


def _difference(teachers: Canary, ours: Canary, packages: Mapping[str, str]) -> str:
    """Return what differs: the size, the image decoder, a library's version, or the dataset."""
    if ours.shape != teachers.shape:
        return (
            f"is {ours.shape} here and was {teachers.shape} (channels, height, width) for the "
            "teacher: use the dataset and view settings of the store"
        )
    before, now = (np.frombuffer(bytes.fromhex(c.thumbnail), np.uint8) for c in (teachers, ours))
    if before.shape != now.shape:
        return (
            "is not the image that the teacher saw, and the store's thumbnail is none of its size: "
            "the store was not written by logitstore"
        )
    distance = int(np.abs(before.astype(int) - now.astype(int)).max())
    what = f"is not the image that the teacher saw (thumbnails differ by {distance}/255)"
    versions = _other_versions(packages)
    if distance <= _DECODER_DISTANCE:
        return f"{what}: another image decoder or resizer is at work{versions}"
    if versions:
        return (
            f"{what}: either a library draws or paints it otherwise{versions}, or the dataset is "
            "another one or comes in another order than the store's"
        )
    return f"{what}: the dataset is another one or comes in another order than the store's"


def _other_versions(packages: Mapping[str, str]) -> str:
    """Return " (pillow 11.0 there, 12.1 here)", or nothing."""
    others = [
        f"{name} {packages[name]} there, {here} here"
        for name, here in ((name, version(name)) for name in _DRAWING)
        if packages.get(name, here) != here
    ]
    return f" ({'; '.join(others)})" if others else ""


def _canary(items: ViewItems, view: int, sample: int) -> Canary:
    pixels = items.show(view, sample).numpy()
    small = [
        np.asarray(
            Image.fromarray(plane).resize((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.BOX)
        )
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
