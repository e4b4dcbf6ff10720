"""The file of a server's tokens: read, checked, and changed by ``logitstore token``.

A line is a token, at least 16 characters, or ``sha256:`` and the 64 hex digits of its digest;
``expires=2027-02-24`` and ``name=alice`` may follow.  ``#`` begins a comment at the start of a line
or after a space.  Nobody but its owner may read the file.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import stat
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from logitstore.errors import InputError, UnknownName

MIN_TOKEN = 16
"""Characters of the shortest token."""

MOST_BYTES = 1 << 20
"""Bytes of the longest token file."""

Signature = tuple[int, int, int, int]
"""Inode, time of modification, length and mode: another one after a file was replaced or edited."""

_HASHED = re.compile(r"^sha256:([0-9a-fA-F]{64})$")
_COMMENT = re.compile(r"(^|\s)#.*")
_NAME = re.compile(r"[\w.@+-]{1,64}", re.ASCII)


@dataclass(frozen=True)
class Token:
    """A line of the file; memory keeps only the token's SHA-256."""

    digest: bytes
    expires: datetime | None = None
    name: str = ""

    @property
    def id(self) -> str:
        """Return what people call it by: the beginning of its digest."""
        return self.digest.hex()[:12]

    @property
    def expired(self) -> bool:
        """Say whether it is no longer accepted."""
        return self.expires is not None and datetime.now(UTC) >= self.expires

    def line(self) -> str:
        """Return the line that stands for it in a file."""
        expires = f" expires={self.expires:%Y-%m-%dT%H:%M:%SZ}" if self.expires else ""
        return f"sha256:{self.digest.hex()}{expires}" + (f" name={self.name}" if self.name else "")


def parse_line(line: str) -> Token | None:
    """Return the token of a line, None of an empty one; ValueError if it is not usable."""
    fields = _COMMENT.sub("", line).split()
    if not fields:
        return None
    text, *options = fields
    hashed = _HASHED.match(text)
    if not hashed and (
        len(text) < MIN_TOKEN or not text.isascii() or text.startswith(("expires=", "name="))
    ):
        raise ValueError
    digest = bytes.fromhex(hashed[1]) if hashed else hashlib.sha256(text.encode()).digest()
    expires, name = None, ""
    for option in options:
        key, _, value = option.partition("=")
        if key == "expires":
            expires = datetime.fromisoformat(value)
            expires = expires if expires.tzinfo else expires.replace(tzinfo=UTC)
        elif key == "name" and _NAME.fullmatch(value):
            name = value
        else:
            raise ValueError
    return Token(digest, expires, name)


def parse_tokens(path: Path, text: str) -> tuple[Token, ...]:
    """Return the tokens of a file; InputError names a line that is not usable."""
    tokens = []
    for number, line in enumerate(text.splitlines(), 1):
        try:
            tokens.append(parse_line(line))
        except ValueError:
            raise InputError(
                f"token file {path}, line {number}: expected a token of {MIN_TOKEN} or more "
                "characters without spaces, or sha256: and 64 hex digits, and after it nothing "
                "but expires=DATE and name=NAME; `logitstore token new` makes one"
            ) from None
    return tuple(token for token in tokens if token is not None)


def read_token_file(path: Path) -> tuple[Signature, tuple[Token, ...]]:
    """Return a file's signature and its tokens.

    InputError if it is unusable or open to others, OSError if it cannot be read.
    """
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode) or status.st_size > MOST_BYTES:
            raise InputError(f"token file {path} is no file of at most {MOST_BYTES >> 20} MiB")
        content = file.read(MOST_BYTES)
    if status.st_mode & 0o077:
        raise InputError(f"token file {path} is open to other users: chmod 600 {path}")
    try:
        tokens = parse_tokens(path, content.decode())
    except UnicodeDecodeError:
        raise InputError(f"token file {path} cannot be read: it is not text") from None
    if not tokens:
        raise InputError(f"token file {path} holds no token; `logitstore token new` makes one")
    return signature_of(status), tokens


def signature_of(status: os.stat_result) -> Signature:
    """Return the signature of a file with this status."""
    return status.st_ino, status.st_mtime_ns, status.st_size, status.st_mode


def check_token_file(path: Path) -> tuple[Token, ...]:
    """Return the tokens of a file; InputError if there is anything that keeps it from use."""
    try:
        return read_token_file(path)[1]
    except OSError as error:
        raise InputError(f"token file {path} cannot be read: {error.strerror}") from None


def add_token(
    path: Path, *, expires: datetime | None, name: str, replaces: str | None, until: datetime
) -> str:
    """Add a new random token to a file, which may be new, and return it.

    The token with the id ``replaces``, if any, expires at ``until``, or earlier if it does so.
    """
    if name and not _NAME.fullmatch(name):
        raise InputError(f"{name!r} cannot be a token's name: letters, digits and any of . @ + - _")
    lines = _lines(path) if path.exists() or replaces else {}
    if replaces is not None:
        old = _known(path, lines, replaces)
        soonest = until if old.expires is None else min(until, old.expires)
        lines = {
            line: replace(old, expires=soonest) if t == old else t for line, t in lines.items()
        }
    text = secrets.token_hex(24)
    _write(path, lines, Token(hashlib.sha256(text.encode()).digest(), expires, name))
    return text


def revoke_token(path: Path, id_: str) -> None:
    """Drop a token from a file; UnknownName if there is none of that id."""
    lines = _lines(path)
    old = _known(path, lines, id_)
    _write(path, {line: token for line, token in lines.items() if token != old})


def _lines(path: Path) -> dict[str, Token | None]:
    """Return the lines of a usable file with their tokens, None of a comment."""
    check_token_file(path)
    return {line: parse_line(line) for line in path.read_text().splitlines()}


def _known(path: Path, lines: dict[str, Token | None], id_: str) -> Token:
    known = {token.id: token for token in lines.values() if token is not None}
    if id_ not in known:
        raise UnknownName.among(f"token of {path}:", id_, known)
    return known[id_]


def _write(path: Path, lines: dict[str, Token | None], added: Token | None = None) -> None:
    """Put a file of these lines in place; one whose token has changed is written anew."""
    texts = [
        line if token is None or parse_line(line) == token else token.line()
        for line, token in lines.items()
    ]
    texts += [added.line()] if added else []
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write("".join(f"{text}\n" for text in texts))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise InputError(f"token file {path} cannot be written: {error.strerror}") from None
