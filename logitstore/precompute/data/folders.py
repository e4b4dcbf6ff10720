"""Find and read the images of a folder with one folder for each class.

Only plain files are read, and only below the folder: a link that leads out of it is refused unless
a user asks for it.  The order is that of torchvision's ``ImageFolder``.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

from PIL import Image, UnidentifiedImageError

from logitstore.errors import InputError
from logitstore.precompute.data.images import MOST_PIXELS, as_image
from logitstore.storage.plain_files import open_plain

ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""Endings of the files that are images."""

_FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP", "GIF")
"""Formats that are decoded, whatever a file is called; EPS, for one, would start Ghostscript."""


def find_images(root: Path, *, links: bool = False) -> tuple[list[str], list[tuple[str, int]]]:
    """Return the classes of a folder, and its images as (path, number of the class).

    ``links``: follow links that lead out of the folder.  InputError for one that is not followed,
    for a link back to a folder above it, for what is no plain file, and for a class without images.
    """
    top = os.path.realpath(root)
    with os.scandir(root) as entries:
        classes = sorted(entry.name for entry in entries if entry.is_dir())
    if not classes:
        raise InputError(f"{root}: expected {root}/CLASS/IMAGE files: there is no folder in it")
    images: list[tuple[str, int]] = []
    for number, name in enumerate(classes):
        paths = _images_below(os.path.join(root, name), top, links)
        if not paths:
            raise InputError(
                f"{root}: expected {root}/CLASS/IMAGE files: no image ({', '.join(ENDINGS)}) is in "
                f"class {name!r}"
            )
        images += [(path, number) for path in paths]
    return classes, images


def _images_below(folder: str, top: str, links: bool) -> list[str]:
    """Return the paths of a class's images: folder by folder, and by name in each."""
    pending, seen = [folder], {top}
    by_folder: list[tuple[str, list[str]]] = []
    while pending:
        folder = pending.pop()
        real = os.path.realpath(folder)
        _refuse_outside(folder, real, top, links)
        if real in seen:
            raise InputError(f"{folder}: this link leads to a folder that was read: remove it")
        seen.add(real)
        files = []
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir():
                    pending.append(entry.path)
                elif entry.name.lower().endswith(ENDINGS):
                    if entry.is_symlink():
                        _refuse_outside(entry.path, os.path.realpath(entry.path), top, links)
                    if not entry.is_file():
                        raise InputError(f"{entry.path}: not a plain file: remove it")
                    files.append(entry.path)
        by_folder.append((folder, sorted(files)))
    return [path for _, files in sorted(by_folder) for path in files]


def _refuse_outside(path: str, real: str, top: str, links: bool) -> None:
    if not links and os.path.commonpath([real, top]) != top:
        raise InputError(
            f"{path}: this link leads out of the folder, to {real}: give "
            "imagefolder:PATH?links=true to follow such links"
        )


def read_image(path: str) -> Image.Image:
    """Read an image as RGB, as torchvision does, but refuse 16 bits instead of clipping them.

    What Pillow raises names the file, or InputError.
    """
    with open_plain(Path(path)) as file, _identified(file, path) as image:
        if image.width * image.height > MOST_PIXELS:
            raise Image.DecompressionBombError(
                f"{path}: {image.width}x{image.height} pixels; at most {MOST_PIXELS:,} are decoded"
            )
        return as_image(image, path).convert("RGB")


def _identified(file: BinaryIO, path: str) -> Image.Image:
    try:
        return Image.open(file, formats=_FORMATS)
    except UnidentifiedImageError:
        raise UnidentifiedImageError(f"{path}: not one of {', '.join(_FORMATS)}") from None
