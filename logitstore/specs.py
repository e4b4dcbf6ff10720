"""Spec strings: ``scheme:rest?key=value&…`` for data and ``name?key=value`` for networks.

Parsing only; what the parts mean is decided by the tables in ``precompute``.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import file_digest, sha256
from pathlib import Path
from types import ModuleType
from typing import Any

from logitstore.errors import InputError, NotFound


@dataclass(frozen=True)
class Spec:
    """A parsed spec; ``head`` is what stands before the ``?``."""

    text: str
    head: str
    options: dict[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> Spec:
        head, _, query = text.partition("?")
        # As typed: a path may hold '+' and '%', which URL rules would change.
        pairs = [part.partition("=") for part in query.split("&")] if query else []
        if not all(key and equals for key, equals, _ in pairs):
            raise InputError(f"{text!r}: after '?' expected key=value pairs joined by '&'")
        return cls(text, head, {key: value for key, _, value in pairs})

    def portable(self, head: str) -> str:
        """Return this spec, the same on every machine: with another head, no folders, no slice."""
        options = "&".join(
            f"{key}={value}"
            for key, value in self.options.items()
            if key not in ("root", "download", "links", "samples")
        )
        return f"{head}?{options}" if options else head

    def only(self, *known: str) -> None:
        """Refuse options that this spec does not have."""
        for key in self.options:
            if key not in known:
                allowed = ", ".join(known) or "none"
                raise InputError(f"{self.text!r}: unknown option {key!r}; known: {allowed}")


def value_of(text: str) -> bool | int | float | str:
    """Return an option's value: true/false, an integer, a number, or the text itself."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def is_factory(head: str) -> bool:
    """Return whether this is ``package.module:factory`` or ``path/to/file.py:factory``.

    A single word that is no module is not: it is a misspelt scheme.
    """
    place, _, name = head.rpartition(":")
    if not name.isidentifier():
        return False
    if "." in place:
        return True
    _search_current_folder()
    return place.isidentifier() and importlib.util.find_spec(place) is not None


def _search_current_folder() -> None:
    """Let modules be found in the current folder, as `python -m` does; a console script does not.

    Only for a name that a user typed, or out of a file that the user trusts.
    """
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())


def load_factory(head: str) -> tuple[Callable[[], Any], Path | None]:
    """Import a factory; the second value is the file when it was given as ``file.py:factory``."""
    place, _, name = head.rpartition(":")
    path = Path(place) if place.endswith(".py") else None
    module = _import_file(path) if path else _import_module(place, head)
    factory = getattr(module, name, None)
    if not callable(factory):
        offered = sorted(
            key
            for key in vars(module)
            if not key.startswith("_") and callable(getattr(module, key))
        )
        raise InputError(
            f"{head!r}: {place} has no callable {name!r}; it has "
            f"{', '.join(offered[:15]) or 'none'}"
        )
    return factory, path


def not_typed(text: str, file: Path, why: str, remedy: str) -> InputError:
    """Return the error for a name that stands in a file and may do more than a file's name may."""
    return InputError(
        f"{file} names {text!r}: {why}, and no user typed this name: give {remedy}, or --trust-run "
        "if you know who wrote this file"
    )


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file's bytes, as hex."""
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


def _import_module(name: str, head: str) -> ModuleType:
    _search_current_folder()
    try:
        return importlib.import_module(name)
    except Exception as error:  # whatever a user's module raises
        raise InputError(
            f"{head!r}: module {name!r} cannot be imported: {type(error).__name__}: {error}"
        ) from error


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise NotFound(f"{path}: there is no such file")
    name = f"_logitstore_{path.stem}_{sha256(str(path.resolve()).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # DataLoader workers and pickle look classes up by module name
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise InputError(f"{path}: running it failed: {type(error).__name__}: {error}") from error
    return module
