from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from logitstore.errors import Denied, InputError, Unfinished


def sync_folder(folder: Path) -> None:
    """Make what was created or renamed in a folder outlast a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


_OUT_OF_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


_OUT_OF_LUCK = {errno.EIO, errno.EMFILE, errno.ENFILE, errno.ESTALE}


@contextmanager
def os_errors_as_ours(url: str, key: str) -> Iterator[None]:
    """Turn what the operating system refuses into errors that say what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in _OUT_OF_SPACE:
            raise Unfinished(
                f"{url}: no space left while writing {key}; what is finished is kept: free some "
                "space and run the same command again"
            ) from error
        if error.errno in _OUT_OF_LUCK:
            raise Unfinished(
                f"{url}: {key} could not be written ({error.strerror}); what is finished is kept: "
                "run the same command again"
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise Denied(f"{url}: {key} may not be accessed: {error.strerror}") from error
        if error.errno == errno.ENAMETOOLONG:
            raise InputError(f"{url[:200]}…: this path is too long for the file system") from error
        if isinstance(error, FileExistsError):
            raise InputError(f"{url}: a file is in the way of {key}") from error
        raise


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
