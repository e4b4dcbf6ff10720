"""Read files that a user or a run's folder names: plain files of a sensible size, and no others.

A pipe is not waited for, and nothing is read before its size is known.  A store's objects are read
by ``local``, which follows no link; these paths may be links.
"""

from __future__ import annotations

import json
import os
import stat
import tomllib
from pathlib import Path
from typing import Any, BinaryIO

from logitstore.errors import Denied, InputError, NotFound

MOST_TOML_BYTES = 32 << 10
"""Bytes of the longest TOML file: the time to read a dotted key grows with its length squared."""

MOST_JSON_BYTES = 8 << 20
"""Bytes of the longest JSON file that is read whole."""


def open_plain(path: Path) -> BinaryIO:
    """Open a plain file to read.

    NotFound if there is none, Denied if it may not be read, InputError if it is a folder, a pipe
    or a device.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        raise NotFound(f"{path}: there is no such file") from None
    except PermissionError as error:
        raise Denied(f"{path}: may not be read: {error.strerror}") from None
    except (OSError, ValueError) as error:  # a loop of links, a socket, a name with a NUL
        raise InputError(f"{path}: cannot be opened: {error}") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise InputError(f"{path}: not a plain file, but a folder, a pipe or a device")
    return open(descriptor, "rb")


def read_plain(path: Path, most_bytes: int) -> bytes:
    """Return a plain file's bytes; InputError if it has more than ``most_bytes``."""
    with open_plain(path) as file:
        length = os.fstat(file.fileno()).st_size
        if length > most_bytes:
            raise InputError(f"{path}: has {length:,} bytes, expected at most {most_bytes:,}")
        try:
            return file.read(length)
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {error}") from None


def read_toml(path: Path) -> dict[str, Any]:
    """Return what a TOML file holds; InputError if it is none, or a very large one."""
    data = read_plain(path, MOST_TOML_BYTES)
    try:
        return tomllib.loads(data.decode())
    except (ValueError, RecursionError) as error:  # the former of a number of 5,000 digits, too
        raise InputError(f"{path}: not a readable TOML file: {error}") from None


def read_json(path: Path, most_bytes: int = MOST_JSON_BYTES) -> Any:
    """Return what a JSON file holds; InputError if it is none, or a very large one."""
    data = read_plain(path, most_bytes)
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not a readable JSON file: {error}") from None
