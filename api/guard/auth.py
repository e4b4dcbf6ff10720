"""Bearer tokens for every path but the two probes; memory keeps only their SHA-256.

A token file has one token per line: at least 16 characters, or ``sha256:`` and 64 hex digits; ``#``
begins a comment.  The file is read again when it changes.  While it is missing, unreadable or empty
no token is accepted, so that deleting it locks out instead of opening up.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import re
from pathlib import Path

from starlette.types import ASGIApp, Receive, Scope, Send

from logitstore.api.guard.headers import Headers
from logitstore.api.guard.problems import Refusal
from logitstore.errors import InputError

log = logging.getLogger(__name__)

OPEN_PATHS = frozenset({"/livez", "/readyz"})
"""The probes, which need no token and are never too many."""

MIN_TOKEN = 16
"""Characters of the shortest token."""

_HASHED = re.compile(r"^sha256:([0-9a-fA-F]{64})$")


def parse_tokens(text: str) -> tuple[tuple[bytes, ...], list[int]]:
    """Return the digests of a file's tokens, and the numbers of its unusable lines."""
    digests, bad = [], []
    for number, line in enumerate(text.splitlines(), 1):
        token = line.split("#", 1)[0].strip()
        hashed = _HASHED.match(token)
        if hashed:
            digests.append(bytes.fromhex(hashed[1]))
        elif len(token) >= MIN_TOKEN and token.isascii() and " " not in token:
            digests.append(hashlib.sha256(token.encode()).digest())
        elif token:
            bad.append(number)
    return tuple(digests), bad


def read_tokens(path: Path) -> tuple[bytes, ...]:
    """Return the digests of a token file; InputError if it is unusable or open to others."""
    try:
        mode = path.stat().st_mode
        digests, bad = parse_tokens(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise InputError(f"token file {path} cannot be read: {reason}") from None
    if mode & 0o007:
        raise InputError(f"token file {path} is open to all users: chmod 600 {path}")
    if bad:
        raise InputError(
            f"token file {path}, line {bad[0]}: a token is {MIN_TOKEN} or more characters without "
            "spaces, or sha256: and 64 hex digits; `openssl rand -hex 24` makes one"
        )
    if not digests:
        raise InputError(f"token file {path} holds no token; `openssl rand -hex 24` makes one")
    return digests


class Tokens:
    """The tokens that one file holds now."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._signature = self._file_signature()
        self._digests = read_tokens(path)

    def accept(self, token: bytes) -> bool:
        """Say whether the file holds ``token``, in the same time whichever line it is on."""
        signature = self._file_signature()
        if signature != self._signature:
            self._signature = signature
            self._reload()
        presented = hashlib.sha256(token).digest()
        matches = [hmac.compare_digest(presented, digest) for digest in self._digests]
        return any(matches)

    def _reload(self) -> None:
        try:
            self._digests = read_tokens(self._path)
            log.info("the token file changed: %d tokens are accepted", len(self._digests))
        except InputError as error:
            self._digests = ()
            log.error("%s; until that is repaired no token is accepted", error)

    def _file_signature(self) -> tuple[int, int, int, int] | None:
        """Return what changes when the file is replaced or edited; None if there is none."""
        try:
            status = os.stat(self._path)
        except OSError:
            return None
        return status.st_ino, status.st_mtime_ns, status.st_size, status.st_mode


def is_authorized(headers: Headers, tokens: Tokens | None) -> bool:
    """Say whether a request brings one of the tokens; without tokens every request may pass."""
    if tokens is None:
        return True
    values = [value for name, value in headers if name == b"authorization"]
    scheme, _, token = values[0].partition(b" ") if len(values) == 1 else (b"", b"", b"")
    return scheme.lower() == b"bearer" and tokens.accept(token.strip())


class BearerAuth:
    """Answers 401 to every request without an accepted token, before anything else reads it."""

    def __init__(self, app: ASGIApp, tokens: Tokens | None) -> None:
        self.app, self.tokens = app, tokens

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":  # the service has none
            await send({"type": "websocket.close", "code": 1008})
            return
        guarded = scope["type"] == "http" and scope["path"] not in OPEN_PATHS
        if guarded and not is_authorized(scope["headers"], self.tokens):
            detail = "the header 'Authorization: Bearer TOKEN' is missing or names no known token"
            raise Refusal(401, "unauthorized", detail, {"www-authenticate": "Bearer"})
        await self.app(scope, receive, send)
