"""The only place that touches a store's bytes: durable, atomic and write-once puts by key.

A key is a relative posix path.  ``put`` replaces an object whole or not at all, also through a
power cut; ``create`` writes it only if there is none (the commit's guarantee).  Nothing here knows
zarr, encodings or what a key means.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from logitstore.errors import Damaged, NotFound
from logitstore.storage.durable import make_folder, os_errors_as_ours, sync_folder

_TEMPORARY = re.compile(r"^\..+\.(\d+)\.tmp$")


_TOKEN = secrets.token_hex(4)
"""In containers every process may be number 1: the number alone would not keep writers apart."""


_ATTEMPTS = 100


MAX_OBJECT_BYTES = 512 << 20
"""More than format v1's largest shard can have: what is longer is not read into memory."""


T = TypeVar("T")


class LocalStorage:
    """Objects as files; every change is fsynced, with its folder, before it counts."""

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
        self._retried(lambda: self._put(key, data))

    def create(self, key: str, data: bytes) -> bool:
        return self._retried(lambda: self._create(key, data))

    def _put(self, key: str, data: bytes | memoryview) -> None:
        with self._temporary(key, data) as (temporary, path):
            os.replace(temporary, path)

    def _create(self, key: str, data: bytes) -> bool:
        with self._temporary(key, data) as (temporary, path):
            try:
                os.link(temporary, path)
            except FileExistsError:
                return False
        return True

    def _retried(self, change: Callable[[], T]) -> T:
        """Do it again if another writer's sweep took the temporary file or the empty folder."""
        for _ in range(_ATTEMPTS - 1):
            with suppress(FileNotFoundError):
                return change()
        return change()

    def delete(self, key: str) -> None:
        path = self.path(key)
        with suppress(FileNotFoundError), os_errors_as_ours(self.url, key):
            path.unlink()
            sync_folder(path.parent)

    def keys(self, prefix: str = "") -> Iterator[str]:
        top = self.root / prefix
        for folder, _, files in os.walk(top):
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
                left = _TEMPORARY.match(name)
                if left and not _alive_elsewhere(int(left[1])):
                    with suppress(FileNotFoundError):
                        os.unlink(os.path.join(folder, name))
            if folder == top or folder.startswith(top + os.sep):
                with suppress(OSError):  # not empty
                    os.rmdir(folder)

    def path(self, key: str) -> Path:
        """Where an object lies; a key that a link leads elsewhere is refused."""
        path = self.root / key
        if os.path.realpath(path) != os.path.join(os.path.realpath(self.root), *key.split("/")):
            raise Damaged(f"{self.url}: {key} is or passes through a link; stores hold plain files")
        return path

    @contextmanager
    def _temporary(self, key: str, data: bytes | memoryview) -> Iterator[tuple[Path, Path]]:
        """A synced sibling file holding ``data``; gone afterwards, its folder synced."""
        path = self.path(key)
        temporary = path.with_name(f".{path.name}.{_TOKEN}.{os.getpid()}.tmp")
        with os_errors_as_ours(self.url, key):
            try:
                make_folder(path.parent)
                with open(temporary, "wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                yield temporary, path
            finally:
                with suppress(FileNotFoundError, NotADirectoryError):
                    os.unlink(temporary)
            sync_folder(path.parent)


def _alive_elsewhere(pid: int) -> bool:
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def is_temporary(key: str) -> bool:
    """Whether a key names a writer's temporary file."""
    return _TEMPORARY.match(key.rsplit("/", 1)[-1]) is not None
