"""Every error that a user can cause or meet; anything else that escapes is a bug.

    LogitstoreError                     exit code
    ├── InputError      (ValueError)        2     an argument, a spec or a file is not usable
    │   ├── MismatchError                   2     two things that must agree do not
    │   └── NoCache                         2     no decoded copy can be kept in this folder
    │       ├── CacheInUse                  2     … until copies in use are let go
    │       └── CacheFull   (Unfinished)    3     … until there is space
    ├── UnknownName     (KeyError)          2     no store, snapshot, method … of that name
    ├── NotFound        (FileNotFoundError) 2     a path does not exist
    ├── Denied          (PermissionError)   2     a token or a file permission
    ├── MissingExtra    (ImportError)       2     an optional package is not installed
    ├── Unreachable     (ConnectionError)   2     no answer from a server
    │   └── PatienceExhausted               3     it was there, went away and did not return in time
    ├── Damaged         (OSError)           1     stored bytes are not the committed ones
    ├── NonFinite       (ArithmeticError)   2     a teacher produced NaN or infinity
    └── Unfinished      (OSError)           3     out of disk …: run the same command again

A message says where (path, key, index), what was found against what was expected, and what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class LogitstoreError(Exception):
    """Base of all errors raised on purpose; ``exit_code`` is what the command line returns."""

    exit_code = 2

    def __str__(self) -> str:  # KeyError would print the repr of its message
        return str(self.args[0]) if self.args else ""


class InputError(LogitstoreError, ValueError):
    """An argument, a spec string or an input file cannot be used."""


class MismatchError(InputError):
    """Two things that must agree do not; the message names the field and both values."""


class UnknownName(LogitstoreError, KeyError):
    """A name that is not in its table."""

    @classmethod
    def among(cls, what: str, name: str, known: Iterable[str]) -> UnknownName:
        """Build "unknown X 'nmae': did you mean 'name'? Known: …"."""
        names = sorted(known)
        close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
        guess = f" did you mean {close[0]!r}?" if close else ""
        listed = ", ".join(names[:20]) + (f", … ({len(names)} in all)" if len(names) > 20 else "")
        return cls(f"unknown {what} {name!r}:{guess} known: {listed or 'none'}")


class NotFound(LogitstoreError, FileNotFoundError):
    """A path or an object does not exist."""


class Denied(LogitstoreError, PermissionError):
    """A token was refused or a file may not be read or written."""


class MissingExtra(LogitstoreError, ImportError):
    """An optional package is missing; the message names the command that installs it."""

    @classmethod
    def for_command(cls, error: ImportError, extra: str) -> MissingExtra:
        """Name the extra that brings the package which ``error`` missed."""
        return cls(
            f"this needs the package {error.name!r}, which is not installed: "
            f"pip install 'logitstore[{extra}]'"
        )


class Unreachable(LogitstoreError, ConnectionError):
    """A server does not answer, or does not answer as a logitstore server."""


class PatienceExhausted(Unreachable):
    """A server that answered before stayed away longer than the patience allows."""

    exit_code = 3


class Damaged(LogitstoreError, OSError):
    """Stored bytes differ from what the commit lists, or the commit itself is not whole."""

    exit_code = 1


class NonFinite(LogitstoreError, ArithmeticError):
    """A teacher produced NaN or infinite logits."""


class Unfinished(LogitstoreError, OSError):
    """Work stopped for an outside reason; what is done is kept and the same command goes on."""

    exit_code = 3


class NoCache(InputError):
    """The cache's folder, or its limit, does not allow a decoded copy of a snapshot."""


class CacheInUse(NoCache):
    """The copies in use leave no room for another one within the cache's limit."""


class CacheFull(NoCache, Unfinished):
    """There is no space for a decoded copy in the cache's folder."""

    exit_code = 3
