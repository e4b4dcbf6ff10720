"""Write whole files that outlast a power cut, and translate the operating system's errors.

Every file that is written whole is written here: to a temporary sibling, which is synced and then
takes its name.  It does not know stores, keys or formats.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from logitstore.errors import Denied, InputError, NotFound, Unfinished

TEMPORARY = re.compile(r"^\..+\.(\d+)\.tmp$")
"""The name of a temporary file; it holds the number of the process that writes it."""

_TOKEN = secrets.token_hex(4)
"""Keeps writers apart that have one number: in containers every process may be number 1."""

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}

EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOMEM}
"""Errors that say that this process or machine has too much in use at the moment."""

_PASSING = {errno.EIO, errno.ESTALE, *EXHAUSTED}
"""Errors that may be gone when the same command is run again."""


@contextmanager
def os_errors_as_ours(url: str, key: str, what: str = "written") -> Iterator[None]:
    """Turn what the operating system refuses into errors that say what to do.

    ``what`` says what is done to the object: it is "read" or "written".
    """
    try:
        yield
    except OSError as error:
        if error.errno in _NO_SPACE:
            raise Unfinished(
                f"{url}: no space left while writing {key}; what is finished is kept: free some "
                "space and run the same command again"
            ) from error
        if error.errno in _PASSING:
            raise Unfinished(
                f"{url}: {key} could not be {what} ({error.strerror}); what is finished is kept: "
                "run the same command again"
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise Denied(f"{url}: {key} may not be accessed: {error.strerror}") from error
        if error.errno == errno.ENAMETOOLONG:
            raise InputError(f"{url[:200]}…: this path is too long for the file system") from error
        if isinstance(error, IsADirectoryError):
            raise InputError(f"{url}: a folder is in the way of {key}") from error
        if what == "written" and error.errno in (errno.EEXIST, errno.ENOTDIR):
            raise InputError(f"{url}: a file is in the way of {key}") from error
        if error.errno == errno.ENOENT:
            raise NotFound(f"{url}: no folder can be made here for {key}") from error
        raise


def refuse_place(path: Path) -> None:
    """Refuse to write a file where no folder is above it (NotFound) or a folder is (InputError)."""
    if not path.parent.is_dir():
        raise NotFound(f"{path.parent}: there is no such folder: make it, or choose another place")
    if path.is_dir():
        raise InputError(f"{path}: this is a folder; give a file's name")


def write_file(path: Path, data: bytes | memoryview) -> None:
    """Write a file whole or not at all, with the folders above it; replace the one that is there.

    Raises Unfinished where the disk is full, Denied or InputError where the place is not usable.
    """
    with os_errors_as_ours(str(path.parent), path.name), new_file(path) as file:
        file.write(data)


@contextmanager
def new_file(path: Path, place: Callable[[Path, Path], None] = os.replace) -> Iterator[BinaryIO]:
    """Open a temporary sibling to write; at the end it is synced and given to ``place``.

    ``place(temporary, path)`` puts it where it belongs.  After an error there is no trace of it.
    """
    temporary = path.with_name(f".{path.name}.{_TOKEN}.{os.getpid()}.tmp")
    make_folder(path.parent)
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        place(temporary, path)
    finally:
        with suppress(FileNotFoundError, NotADirectoryError):
            os.unlink(temporary)
    sync_folder(path.parent)


def make_folder(folder: Path) -> None:
    """Create a folder and its parents so that they outlast a power cut."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    with suppress(FileExistsError):
        folder.mkdir()
    if not folder.is_dir():
        raise FileExistsError(errno.EEXIST, "not a folder", str(folder))
    sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """Make what was created or renamed in a folder outlast a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
