"""Find the stores under a folder, for ``logitstore ls`` and for the server.

Whatever lies beside a store, a damaged one or a pipe in the place of a file, hides no other store:
what cannot be looked at is a place with a problem.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from logitstore.errors import Damaged, InputError, LogitstoreError, NotFound
from logitstore.format.commits import ATTRIBUTE
from logitstore.format.documents import MAX_DOCUMENT_BYTES, parse_json
from logitstore.storage.local import LocalStorage


class Place(NamedTuple):
    """A folder that holds a store, or one that may and cannot be looked at: ``problem``."""

    folder: Path
    problem: str | None = None


class Scan:
    """Looks for stores at ``root`` and in its direct child folders, again and again.

    A ``zarr.json`` that did not change is not read again.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._known: dict[Path, tuple[tuple[int, ...], Place | None]] = {}

    def places(self) -> list[Place]:
        """Return the root, if it holds a store, else its child folders that do, sorted.

        Links and other zarr data are left out.  InputError if the root is no folder.
        """
        try:
            with os.scandir(self.root) as entries:
                names = sorted(e.name for e in entries if e.is_dir(follow_symlinks=False))
        except (FileNotFoundError, NotADirectoryError, PermissionError) as error:
            reason = f"{self.root} is not a folder that can be read: {error.strerror}"
            raise InputError(reason) from None
        whole = self._look(self.root)
        if whole is not None and whole.problem is None:
            return [whole]
        places = [self._look(self.root / name) for name in names]
        current = {self.root, *(self.root / name for name in names)}
        self._known = {path: known for path, known in self._known.items() if path in current}
        stores = [place for place in places if place is not None]
        return stores or ([] if whole is None else [whole])

    def _look(self, folder: Path) -> Place | None:
        """Return the folder if it holds a logit store, even a damaged one; else None."""
        try:
            status = os.lstat(folder / "zarr.json")
        except FileNotFoundError:
            return None
        except OSError as error:
            return Place(folder, f"{folder}: cannot be looked into: {error.strerror}")
        signature = (status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size)
        if self._known.get(folder, (None,))[0] == signature:
            return self._known[folder][1]
        try:
            place = Place(folder) if _is_store(folder) else None
        except Damaged as error:
            place = Place(folder, str(error))
        except (LogitstoreError, OSError) as error:  # it may be gone the next time
            return Place(folder, str(error))
        self._known[folder] = signature, place
        return place


def _is_store(folder: Path) -> bool:
    """Return whether the group in a folder is a logit store's."""
    try:
        document = LocalStorage(folder).get("zarr.json", MAX_DOCUMENT_BYTES)
    except NotFound:
        return False
    group = parse_json(f"{folder}: zarr.json", document)
    attributes = group.get("attributes") if isinstance(group, dict) else None
    return isinstance(attributes, dict) and ATTRIBUTE in attributes
