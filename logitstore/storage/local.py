"""Keep a store's objects as files under one folder, by durable and atomic writes.

A key is a relative posix path.  ``put`` replaces an object whole or not at all, also through a
power cut; ``create`` writes it only if there is none, which is what a commit relies on.  Every read
goes through ``LocalStorage.open``, which opens plain files below the root and nothing else.
Nothing here knows zarr, encodings or what a key means.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from logitstore.errors import Damaged, LogitstoreError, NotFound
from logitstore.storage.durable import TEMPORARY, new_file, os_errors_as_ours, sync_folder

MAX_OBJECT_BYTES = 512 << 20
"""Bytes of the largest object that is read; format v1's largest shard has fewer."""

_FOLDER = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_CLOEXEC
"""Flags that open a folder to pass through it."""

_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
"""Flags that open an object: no link is followed, and no pipe or device is waited for."""

_ATTEMPTS = 100
"""Attempts at a change that another writer's sweep disturbs."""


class LocalStorage:
    """A ``Storage`` of files; every change is synced, with its folder, before it counts."""

    def __init__(self, root: Path) -> None:
        self.root = Path(os.path.abspath(root))
        self.url = str(root)

    def open(self, key: str) -> tuple[int, int]:
        """Open an object to read, and return its descriptor and its length in bytes.

        NotFound if there is none.  Damaged if it is no plain file, or lies behind a link.
        """
        with self._errors_of(key), self._folder_of(key) as (folder, name):
            descriptor = os.open(name, _FILE, dir_fd=folder)
            status = os.fstat(descriptor)
            if stat.S_ISREG(status.st_mode):
                return descriptor, status.st_size
            os.close(descriptor)
        raise self._not_plain(key)

    def get(self, key: str, most_bytes: int = MAX_OBJECT_BYTES) -> bytes:
        descriptor, length = self.open(key)
        with open(descriptor, "rb") as file, os_errors_as_ours(self.url, key, "read"):
            if length > most_bytes:
                raise Damaged(
                    f"{self.url}: {key} has {length} bytes: it is larger than any object of its "
                    f"kind, which has {most_bytes} at most"
                )
            return file.read(length)

    def size(self, key: str) -> int | None:
        try:
            with self._errors_of(key), self._folder_of(key) as (folder, name):
                return os.stat(name, dir_fd=folder, follow_symlinks=False).st_size
        except NotFound:
            return None

    @contextmanager
    def _folder_of(self, key: str) -> Iterator[tuple[int, str]]:
        """Open the folder of an object, part by part and through no link; yield the name in it."""
        *folders, name = key.split("/")
        if not {"", ".", ".."}.isdisjoint([*folders, name]):
            raise Damaged(f"{self.url}: {key!r} is not the key of an object")
        descriptor = os.open(self.root, _FOLDER)
        try:
            for folder in folders:
                inner = os.open(folder, _FOLDER | os.O_NOFOLLOW, dir_fd=descriptor)
                os.close(descriptor)
                descriptor = inner
            yield descriptor, name
        finally:
            os.close(descriptor)

    @contextmanager
    def _errors_of(self, key: str) -> Iterator[None]:
        """Say what is wrong where a read finds no plain file."""
        try:
            with os_errors_as_ours(self.url, key, "read"):
                yield
        except LogitstoreError:
            raise
        except FileNotFoundError:
            raise NotFound(f"{self.url}: there is no object {key}") from None
        except OSError as error:
            if error.errno == errno.ENOTDIR and not self._passes_link(key):
                raise NotFound(f"{self.url}: there is no object {key}") from None
            if error.errno in (errno.ENOTDIR, errno.ELOOP, errno.ENXIO, errno.ENODEV):
                raise self._not_plain(key) from None
            raise

    def _not_plain(self, key: str) -> Damaged:
        if self._passes_link(key):
            return Damaged(
                f"{self.url}: {key} is or passes through a link; stores hold plain files"
            )
        return Damaged(f"{self.url}: {key} is no plain file")

    def _passes_link(self, key: str) -> bool:
        """Return whether a link leads a key elsewhere; only for the words of an error."""
        path = self.root
        return any(os.path.islink(path := path / part) for part in key.split("/"))

    def put(self, key: str, data: bytes | memoryview) -> None:
        self._write(key, data, os.replace)

    def create(self, key: str, data: bytes) -> bool:
        created = True

        def link(temporary: Path, path: Path) -> None:
            nonlocal created
            try:
                os.link(temporary, path)
            except FileExistsError:
                created = False

        self._write(key, data, link)
        return created

    def _write(
        self, key: str, data: bytes | memoryview, place: Callable[[Path, Path], None]
    ) -> None:
        path = self.path(key)
        for attempt in range(_ATTEMPTS):
            try:
                with os_errors_as_ours(self.url, key), new_file(path, place) as file:
                    file.write(data)
                return
            except FileNotFoundError:  # another writer's sweep took the file or the empty folder
                if attempt == _ATTEMPTS - 1:
                    raise

    def delete(self, key: str) -> None:
        path = self.path(key)
        with suppress(FileNotFoundError), os_errors_as_ours(self.url, key):
            path.unlink()
            sync_folder(path.parent)

    def keys(self, prefix: str = "") -> Iterator[str]:
        for folder, folders, files in os.walk(self.root / prefix):
            # A link to a folder is not followed: it is an object that belongs to nobody.
            links = [name for name in folders if os.path.islink(os.path.join(folder, name))]
            for name in files + links:
                yield (Path(folder) / name).relative_to(self.root).as_posix()

    def names(self, prefix: str) -> list[str]:
        try:
            with os.scandir(self.root / prefix) as entries:
                return sorted(e.name for e in entries if e.is_dir(follow_symlinks=False))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def sweep(self, emptied: str) -> None:
        top = os.path.normpath(self.root / emptied)
        for folder, _, files in os.walk(self.root, topdown=False):
            for name in files:
                temporary = TEMPORARY.match(name)
                if temporary and not _alive_elsewhere(int(temporary[1])):
                    with suppress(FileNotFoundError):
                        os.unlink(os.path.join(folder, name))
            if folder == top or folder.startswith(top + os.sep):
                with suppress(OSError):  # not empty
                    os.rmdir(folder)

    def path(self, key: str) -> Path:
        """Return the path to write an object to; one that a link leads elsewhere is refused."""
        path = self.root / key
        if os.path.realpath(path) != os.path.join(os.path.realpath(self.root), *key.split("/")):
            raise Damaged(f"{self.url}: {key} is or passes through a link; stores hold plain files")
        return path


def _alive_elsewhere(pid: int) -> bool:
    """Return whether another process of this number lives; one that we may not signal does."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return pid != os.getpid()


def is_temporary(key: str) -> bool:
    """Return whether a key names a writer's temporary file."""
    return TEMPORARY.match(key.rsplit("/", 1)[-1]) is not None
