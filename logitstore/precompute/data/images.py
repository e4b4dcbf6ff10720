"""Images by index with their labels: the one form in which every dataset is used.

Nothing here augments, resizes or normalises.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from logitstore.errors import InputError, LogitstoreError
from logitstore.format.cards import Samples

MOST_PIXELS = 89_478_485
"""Pixels of the largest image that is decoded or made: Pillow's own bound."""


@dataclass(frozen=True)
class ImageDataset:
    """Images by index with their labels int32 (N,), -1 where unknown.

    ``classes`` is None when nothing but the labels tells how many there are; ``keys`` are stable
    names such as relative paths; ``in_memory`` says that loading an image costs next to nothing.
    """

    name: str
    labels: NDArray[np.int32]
    load: Callable[[int], Any]
    classes: int | None = None
    class_names: tuple[str, ...] | None = None
    keys: Sequence[str] | None = None
    in_memory: bool = False

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def class_count(self) -> int:
        """The number of classes; if nothing tells it, one more than the largest label."""
        return self.classes or int(self.labels.max(initial=0)) + 1

    def image(self, index: int) -> Image.Image:
        """Return the image, mode RGB or L; InputError if the item is no image."""
        return as_image(self.item(index), f"{self.name}: sample {index}")

    def item(self, index: int) -> Any:
        """Return the image as the dataset gives it; InputError for whatever the dataset raises."""
        try:
            return self.load(index)
        except LogitstoreError:
            raise
        except Exception as error:
            raise InputError(
                f"{self.name}: sample {index} cannot be read: {type(error).__name__}: {error}"
            ) from None

    def samples(self) -> Samples:
        """Return what a store records of this dataset."""
        return Samples(self.name, self.labels, self.keys)


def as_image(item: Any, where: str) -> Image.Image:
    """Make a PIL image (RGB or L) of one, of a uint8 array (H,W[,C]) or of a tensor (C,H,W)."""
    if isinstance(item, Image.Image):
        if item.mode in ("RGB", "L"):
            return item
        if item.mode.startswith(("I", "F")):
            raise InputError(f"{where} has more than 8 bits a channel: convert the images first")
        return item.convert("L" if item.mode in ("1", "LA") else "RGB")
    if hasattr(item, "detach"):
        item = item.detach().cpu().numpy()
        if item.ndim == 3:
            item = item.transpose(1, 2, 0)
    if isinstance(item, np.ndarray) and item.dtype == np.uint8:
        if item.ndim == 3 and item.shape[2] == 1:
            item = item[:, :, 0]
        if item.ndim == 2 or (item.ndim == 3 and item.shape[2] == 3):
            return Image.fromarray(np.ascontiguousarray(item))
    kind = f"{item.dtype} array of shape {item.shape}" if hasattr(item, "dtype") else type(item)
    raise InputError(
        f"{where} is a {kind}, not an image: give PIL images or uint8 arrays (H,W) or (H,W,3), "
        "before any conversion to float"
    )


def from_map_style(dataset: Any, name: str, text: str | None = None) -> ImageDataset:
    """Wrap anything with ``len`` and ``[i] -> (image, label)``, images before any transform.

    Its ``classes`` (names), ``targets`` and ``keys`` are used if it has them.  InputError, which
    begins with ``text`` (None: the name), for anything else, labels that are not integers in range
    and keys that are not unique.
    """
    text = name if text is None else text
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        raise InputError(f"{text!r}: expected a map-style dataset, not {type(dataset).__name__}")
    classes = getattr(dataset, "classes", None)
    names = tuple(str(entry) for entry in classes) if isinstance(classes, list | tuple) else None
    keys = getattr(dataset, "keys", None)
    wrapped = ImageDataset(
        name=name,
        labels=_labels_of(dataset, text),
        load=partial(first_of, dataset),
        classes=len(names) if names else None,
        class_names=names,
        keys=list(keys) if isinstance(keys, list | tuple) else None,
    )
    check_dataset(wrapped, text)
    return wrapped


def _labels_of(dataset: Any, text: str) -> NDArray[np.int32]:
    """Return all labels: ``targets`` if a few items agree with it, else those of every item."""
    size = len(dataset)
    if size == 0:
        raise InputError(f"{text!r}: the dataset is empty")
    targets = getattr(dataset, "targets", None)
    if targets is not None and len(targets) == size:
        labels = as_labels(np.asarray(targets), text)
        probes = np.unique(np.linspace(0, size - 1, 8).astype(int))
        if all(int(_item(dataset, int(i), text)[1]) == labels[i] for i in probes):
            return labels
    return as_labels(np.array([_item(dataset, i, text)[1] for i in range(size)]), text)


def _item(dataset: Any, index: int, text: str) -> tuple[Any, Any]:
    try:
        item = dataset[index]
    except Exception as error:
        raise InputError(
            f"{text!r}: sample {index} cannot be read: {type(error).__name__}: {error}"
        ) from None
    if not isinstance(item, tuple | list) or len(item) != 2:
        raise InputError(f"{text!r}: sample {index} is a {type(item).__name__}, not (image, label)")
    return item[0], item[1]


def as_labels(values: NDArray[Any], where: str) -> NDArray[np.int32]:
    """Return labels as int32 (N,); InputError if they are not integers from -1 on."""
    if values.ndim != 1 or values.dtype.kind not in "iu":
        raise InputError(
            f"{where}: labels are {values.dtype} of shape {values.shape}, expected integers (N,)"
        )
    outside = np.flatnonzero((values < -1) | (values >= 2**31))
    if len(outside):
        raise InputError(f"{where}: sample {outside[0]} has label {values[outside[0]]}")
    return values.astype(np.int32)


def first_of(dataset: Any, index: int) -> Any:
    """Return the image of an item (image, label); processes that read images can be sent this."""
    return dataset[index][0]


def check_dataset(dataset: ImageDataset, text: str) -> None:
    """Refuse a dataset that is empty, or whose keys or labels cannot be stored."""
    if len(dataset) == 0:
        raise InputError(f"{text!r}: the dataset is empty")
    if dataset.keys is not None and len(set(dataset.keys)) != len(dataset):
        raise InputError(f"{text!r}: its keys are not one for each sample, or not unique")
    for index, key in enumerate(dataset.keys or ()):
        try:
            key.encode()
        except UnicodeEncodeError:
            raise InputError(
                f"{text!r}: the name of sample {index}, {key!r}, is not UTF-8"
            ) from None
    if dataset.classes is not None:
        check_labels(dataset, dataset.classes)


def check_labels(dataset: ImageDataset, classes: int) -> None:
    """Refuse labels outside -1..C-1, naming the first sample."""
    outside = np.flatnonzero(dataset.labels >= classes)
    if len(outside):
        raise InputError(
            f"{dataset.name}: sample {outside[0]} has label {dataset.labels[outside[0]]}, but "
            f"there are {classes} classes (0..{classes - 1}); {len(outside)} labels are out of "
            "range"
        )
