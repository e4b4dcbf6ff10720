"""Look into zip archives (``.npz``, checkpoints of torch) before anything in them is unpacked.

A few kilobytes of deflated zeros unpack to gigabytes; what an archive declares is compared with its
size first.  Nothing here knows networks or datasets.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from logitstore.errors import InputError
from logitstore.storage.plain_files import open_plain

_FREE_BYTES = 256 << 20
"""Bytes that an entry may always unpack to."""

_MOST_RATIO = 100
"""Largest ratio of unpacked to packed bytes of a large entry: images and logits stay below."""

_NPY = ".npy"


@dataclass(frozen=True)
class Header:
    """Holds the shape and the type of an array in an .npz."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]


def zip_entries(path: Path) -> list[zipfile.ZipInfo]:
    """Return the entries of a zip archive, none if the file is no such archive.

    NotFound or InputError if it cannot be read.
    """
    with open_plain(path) as file:
        if not zipfile.is_zipfile(file):
            return []
        try:
            with zipfile.ZipFile(file) as archive:
                return archive.infolist()
        except Exception as error:  # a damaged file makes the parser raise anything
            raise InputError(f"{path}: not a readable archive ({error})") from None


def npz_names(path: Path) -> list[str]:
    """Return the names of the arrays of an .npz file; NotFound or InputError if it is none."""
    with _npz(path) as archive:
        names = archive.namelist()
        return [name.removesuffix(_NPY) for name in names if name.endswith(_NPY)]


def npz_header(path: Path, name: str) -> Header:
    """Return the header of an array of an .npz file.

    InputError if the array would unpack to something much larger, or to other than its header says.
    """
    with _npz(path) as archive:
        entry = archive.getinfo(name + _NPY)
        with archive.open(entry) as member:
            return _header(member, entry)


@contextmanager
def _npz(path: Path) -> Iterator[zipfile.ZipFile]:
    with open_plain(path) as file:
        try:
            with zipfile.ZipFile(file) as archive:
                yield archive
        except Exception as error:  # a damaged file makes the parsers raise anything
            raise InputError(
                f"{path}: not a readable .npz file of plain arrays ({error})"
            ) from None


def _header(member: Any, entry: zipfile.ZipInfo) -> Header:
    version = np.lib.format.read_magic(member)
    read = np.lib.format.read_array_header_1_0
    shape, _, dtype = (read if version == (1, 0) else np.lib.format.read_array_header_2_0)(member)
    if dtype.hasobject:
        raise ValueError(f"{entry.filename} holds Python objects")
    declared = member.tell() + dtype.itemsize * math.prod(shape)
    if declared != entry.file_size:
        raise ValueError(
            f"{entry.filename}: its header declares {declared} bytes, it has {entry.file_size}"
        )
    if declared > max(_FREE_BYTES, _MOST_RATIO * entry.compress_size):
        raise ValueError(
            f"{entry.filename}: {entry.compress_size:,} bytes would unpack to {declared:,}"
        )
    return Header(shape, dtype)
