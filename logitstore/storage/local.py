"""Keep a store's objects as files under one folder, by durable and atomic writes.

A key is a relative posix path.  ``put`` replaces an object whole or not at all, also through a
power cut; ``create`` writes it only if there is none, which is what a commit relies on.  Nothing
here knows zarr, encodings or what a key means.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from logitstore.errors import Damaged, NotFound
from logitstore.storage.durable import TEMPORARY, new_file, os_errors_as_ours, sync_folder

MAX_OBJECT_BYTES = 512 << 20
"""Bytes of the largest object that is read; format v1's largest shard has fewer."""

_ATTEMPTS = 100
"""How often a change is tried that another writer's sweep disturbs."""


class LocalStorage:
    """A ``Storage`` of files; every change is synced, with its folder, before it counts."""

    def __init__(self, root: Path) -> None:
        self.root = Path(os.path.abspath(root))
        self.url = str(root)

    def get(self, key: str) -> bytes:
        try:
            with os_errors_as_ours(self.url, key), open(self.path(key), "rb") as file:
                if os.fstat(file.fileno()).st_size > MAX_OBJECT_BYTES:
                    raise Damaged(f"{self.url}: {key} is larger than any object of a store")
                return file.read()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise NotFound(f"{self.url}: there is no object {key}") from None

    def size(self, key: str) -> int | None:
        try:
            with os_errors_as_ours(self.url, key):
                return os.stat(self.path(key)).st_size
        except (FileNotFoundError, NotADirectoryError):
            return None

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
        for folder, _, files in os.walk(self.root / prefix):
            for name in files:
                yield (Path(folder) / name).relative_to(self.root).as_posix()

    def names(self, prefix: str) -> list[str]:
        try:
            with os.scandir(self.root / prefix) as entries:
                return sorted(entry.name for entry in entries if entry.is_dir())
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
        """Return the object's path; a key that a link leads elsewhere is refused."""
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
