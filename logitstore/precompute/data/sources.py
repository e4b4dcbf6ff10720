"""Open a dataset from its spec: images by index, labels, names and keys.

    npz:FILE?x=x_train&y=y_train      uint8 images (N,H,W[,C]) and integer labels in one .npz
    torchvision:NAME?root=R&train=true   any torchvision.datasets class with (image, label) items
    imagefolder:PATH                  PATH/<class>/<image>, classes in sorted order; ?links=true
                                      follows links that lead out of PATH
    digits?train=true                 scikit-learn's 1,797 digits, 1,200 to train and 597 to test
    package.module:factory            a callable that returns a map-style dataset of (image, label)
    path/to/file.py:factory           the same from a file

``samples=START:STOP`` after any of them takes a slice.  Nothing here augments or normalises.
A spec that a user typed may be any of them; one out of a file runs no code and fetches nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from logitstore.errors import InputError, NotFound, UnknownName
from logitstore.precompute.data.folders import find_images, read_image
from logitstore.precompute.data.images import (
    ImageDataset,
    as_labels,
    check_dataset,
    from_map_style,
)
from logitstore.specs import Spec, is_factory, load_factory, not_typed, value_of
from logitstore.storage.archives import npz_header, npz_names

_COMMON = "samples"
"""The option that every kind of dataset has."""


_UNTYPED_OPTIONS = frozenset(
    {*("x", "y", "classes", "root", "train", "split", "partition", "fold", "background", _COMMON)}
)
"""Options of a dataset that a file may set; ``download`` is dropped, so that nothing is fetched."""

_ARRAYS = frozenset(
    {
        *("MNIST", "FashionMNIST", "KMNIST", "EMNIST", "QMNIST", "USPS", "SVHN", "STL10"),
        *("CIFAR10", "CIFAR100", "FakeData"),
    }
)
"""Datasets of torchvision that hold arrays; they unpickle nothing but files of a known sum."""

_FILES = frozenset(
    {
        *("ImageNet", "Imagenette", "Food101", "DTD", "Flowers102", "FGVCAircraft", "EuroSAT"),
        *("StanfordCars", "SUN397", "Country211", "RenderedSST2", "Places365"),
    }
)
"""Datasets of torchvision whose images are files, which ``read_image`` reads for them."""


def open_dataset(
    text: str, untyped: Path | None = None, remedy: str = "--data DATA"
) -> ImageDataset:
    """Open the dataset that a spec names.

    ``untyped`` is the file that the spec stands in, None if a user typed it or trusts that file;
    ``remedy`` is what a user may give instead.
    Raises UnknownName for a scheme, NotFound for a path, InputError for an empty dataset, labels
    that are not integers in range, or a spec out of a file that could run code.
    """
    spec = Spec.parse(text)
    if untyped is not None:
        spec = _without_code(spec, untyped, remedy)
    scheme, _, rest = spec.head.partition(":")
    if scheme in SCHEMES:
        dataset = SCHEMES[scheme](spec, rest)
    elif is_factory(spec.head):
        dataset = _factory(spec)
    else:
        raise UnknownName.among("kind of dataset", scheme, [*SCHEMES, "module:factory"])
    if _COMMON in spec.options:
        dataset = _slice(dataset, spec)
    check_dataset(dataset, text)
    return dataset


def _without_code(spec: Spec, file: Path, remedy: str) -> Spec:
    """Return a spec out of a file, which fetches nothing; InputError if it could run code."""
    scheme, _, rest = spec.head.partition(":")
    if scheme not in SCHEMES:
        raise not_typed(spec.text, file, "opening it runs code", remedy)
    if scheme == "torchvision" and rest not in _ARRAYS | _FILES:
        raise not_typed(spec.text, file, f"torchvision's {rest} may run code", remedy)
    options = {key: value for key, value in spec.options.items() if key != "download"}
    for key in options:
        if key not in _UNTYPED_OPTIONS:
            raise not_typed(spec.text, file, f"its option {key!r} is not always safe", remedy)
    return replace(spec, options=options)


def _npz(spec: Spec, rest: str) -> ImageDataset:
    spec.only("x", "y", "classes", _COMMON)
    path = Path(rest)
    names = (spec.options.get("x", "x"), spec.options.get("y", "y"))
    known = npz_names(path)
    for name in names:
        if name not in known:
            raise InputError(
                f"{path}: no array {name!r}; it has {', '.join(sorted(known)) or 'nothing'}"
            )
    images, labels = (npz_header(path, name) for name in names)
    if images.dtype != np.uint8 or len(images.shape) not in (3, 4):
        raise InputError(
            f"{path}: {names[0]} is {images.dtype} {images.shape}, expected uint8 (N,H,W[,C])"
        )
    if images.shape[:1] != labels.shape[:1]:
        raise InputError(
            f"{path}: {images.shape[0]} images in {names[0]}, {names[1]} has shape {labels.shape}"
        )
    x, y = _read_npz(path, names)
    return ImageDataset(
        name=spec.portable(f"npz:{path.name}"),
        labels=as_labels(y, str(path)),
        load=x.__getitem__,
        classes=_integer(spec, "classes"),
        in_memory=True,
    )


def _read_npz(path: Path, names: Sequence[str]) -> list[NDArray[Any]]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return [archive[name] for name in names]
    except Exception as error:  # a damaged file makes the parsers raise anything
        raise InputError(f"{path}: not a readable .npz file of plain arrays ({error})") from None


def _torchvision(spec: Spec, rest: str) -> ImageDataset:
    import torchvision

    known = {name for name in torchvision.datasets.__all__ if name[0].isupper()}
    if rest not in known:
        raise UnknownName.among("torchvision dataset", rest, known)
    options = {key: value_of(value) for key, value in spec.options.items() if key != _COMMON}
    options.setdefault("root", ".")
    if rest in _FILES or rest == "ImageFolder":
        loader: Any = read_image
        options["loader"] = loader
    try:
        dataset = getattr(torchvision.datasets, rest)(**options)
    except (RuntimeError, TypeError, ValueError, OSError) as error:
        raise InputError(f"{spec.text!r}: torchvision cannot open it: {error}") from error
    wrapped = from_map_style(dataset, spec.portable(f"torchvision:{rest}"), spec.text)
    # MNIST's and CIFAR's images are one array: processes that read them cost more than they save.
    return replace(wrapped, in_memory=getattr(getattr(dataset, "data", None), "ndim", 0) >= 3)


def _imagefolder(spec: Spec, rest: str) -> ImageDataset:
    spec.only("links", _COMMON)
    root, links = Path(rest), value_of(spec.options.get("links", "false"))
    if not isinstance(links, bool):
        raise InputError(f"{spec.text!r}: expected links=true or links=false")
    if not root.is_dir():
        raise NotFound(f"{root}: there is no such folder")
    try:
        classes, images = find_images(root, links=links)
    except OSError as error:
        raise InputError(f"{root}: not a folder that can be read: {error}") from None
    paths = [path for path, _ in images]
    return ImageDataset(
        name=spec.portable(f"imagefolder:{root.resolve().name}"),
        labels=np.array([number for _, number in images], np.int32),
        load=partial(_read_of, paths),
        classes=len(classes),
        class_names=tuple(classes),
        keys=[Path(path).relative_to(root).as_posix() for path in paths],
    )


def _read_of(paths: Sequence[str], index: int) -> Image.Image:
    return read_image(paths[index])


def _digits(spec: Spec, rest: str) -> ImageDataset:
    from sklearn.datasets import load_digits

    spec.only("train", _COMMON)
    train = value_of(spec.options.get("train", "true"))
    if rest or not isinstance(train, bool):
        raise InputError(f"{spec.text!r}: expected digits?train=true or digits?train=false")
    bunch = load_digits()
    order = np.random.default_rng(0).permutation(len(bunch.target))
    chosen = order[:1200] if train else order[1200:]
    images = np.rint(bunch.images[chosen] * (255 / 16)).astype(np.uint8)
    return ImageDataset(
        name=f"digits?train={str(train).lower()}",
        labels=bunch.target[chosen].astype(np.int32),
        load=images.__getitem__,
        classes=10,
        class_names=tuple("0123456789"),
        in_memory=True,
    )


def _factory(spec: Spec) -> ImageDataset:
    factory, path = load_factory(spec.head)
    spec.only(_COMMON)
    head = f"{path.name}:{spec.head.rpartition(':')[2]}" if path else spec.head
    try:
        dataset = factory()
    except Exception as error:
        raise InputError(
            f"{spec.text!r}: the factory failed: {type(error).__name__}: {error}"
        ) from error
    return from_map_style(dataset, spec.portable(head), spec.text)


def _integer(spec: Spec, key: str) -> int | None:
    if key not in spec.options:
        return None
    if not (spec.options[key].isascii() and spec.options[key].isdigit()):
        raise InputError(f"{spec.text!r}: {key} must be a whole number")
    return int(spec.options[key])


def _shifted(load: Callable[[int], Any], start: int, index: int) -> Any:
    return load(start + index)


def _slice(dataset: ImageDataset, spec: Spec) -> ImageDataset:
    start, colon, stop = spec.options[_COMMON].partition(":")
    if not colon or not re.fullmatch(r"[0-9]*:[0-9]*", f"{start}:{stop}"):
        raise InputError(f"{spec.text!r}: expected samples=START:STOP")
    span = range(len(dataset))[int(start or 0) : int(stop) if stop else None]
    if len(span) == 0:
        raise InputError(f"{spec.text!r}: no samples are left of {len(dataset)}")
    part = slice(span.start, span.stop)
    joint = "&" if "?" in dataset.name else "?"
    return replace(
        dataset,
        name=f"{dataset.name}{joint}{_COMMON}={span.start}:{span.stop}",
        labels=dataset.labels[part],
        keys=None if dataset.keys is None else dataset.keys[part],
        load=partial(_shifted, dataset.load, span.start),
    )


SCHEMES: dict[str, Callable[[Spec, str], ImageDataset]] = {
    "npz": _npz,
    "torchvision": _torchvision,
    "imagefolder": _imagefolder,
    "digits": _digits,
}
