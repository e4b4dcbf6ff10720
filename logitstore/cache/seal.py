"""Seal the blocks of copies with a key that only this user has.

A copy holds decoded rows, of which no commit has a digest.  So each block is bound to the
snapshot's root, its array and its place by a keyed BLAKE2b: a copy that anybody else made or
changed is not believed, also on a file system that does not say whose a file is.  The key lies in
the user's home folder, or among the copies if there is none.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from logitstore.cache.locks import OpenFile, make_private
from logitstore.format.grid import Span

KEY_FOLDER = "~/.cache/logitstore"
"""Folder of the key, in the home of the user."""

_KEY_BYTES = 32


class Seal:
    """Makes the seals of one user's copies."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    @classmethod
    def own(cls, copies: Path) -> Seal:
        """Read this user's key, or make it; ``copies`` is the folder to use without a home."""
        home = Path(os.path.expanduser(KEY_FOLDER))
        if home.is_absolute():
            with suppress(OSError):
                return cls(_key_in(home))
        return cls(_key_in(copies))

    def of(self, root: str, array: str, span: Span, pieces: Iterable[bytes | memoryview]) -> str:
        """Return the seal of a block, whose bytes come in pieces, as hex."""
        place = f"{root} {array} {span.view} {span.start} {span.stop}\n"
        digest = hashlib.blake2b(place.encode(), digest_size=16, key=self._key)
        for piece in pieces:
            digest.update(piece)
        return digest.hexdigest()


def _key_in(folder: Path) -> bytes:
    path = folder / "key"
    with suppress(FileNotFoundError):
        return _read(path)
    make_private(folder)
    draft = folder / f".key.{secrets.token_hex(8)}.tmp"
    try:
        file = OpenFile(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        os.write(file.fd, secrets.token_bytes(_KEY_BYTES))
        os.fsync(file.fd)
        with suppress(FileExistsError):
            _place(draft, path)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(draft)
    return _read(path)  # another process may have been first


def _place(draft: Path, path: Path) -> None:
    try:
        os.link(draft, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without links
        os.rename(draft, path)


def _read(path: Path) -> bytes:
    file = OpenFile(path, os.O_RDONLY)
    key = os.pread(file.fd, _KEY_BYTES, 0)
    if len(key) < _KEY_BYTES:
        os.unlink(path)
        raise FileNotFoundError(path)
    return key
