"""Bearer tokens in front of every path but the two probes; only their sha256 is kept in memory.

A token file has one token per line, at least 16 characters or ``sha256:`` and 64 hex digits; ``#``
begins a comment.  Replacing the file rotates the tokens: it is read again when it changes.  A file
that became unreadable or empty accepts nobody: deleting it must lock out, not open up.
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


MIN_TOKEN = 16


_HASHED = re.compile(r"^sha256:([0-9a-fA-F]{64})$")


def parse_tokens(text: str) -> tuple[tuple[bytes, ...], list[int]]:
    """Digests of the tokens in a token file's text, and the numbers of its unusable lines."""
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
    """Digests of a token file that is whole and private; InputError names what is not."""
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
    """The accepted tokens of one file, as of now."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen = self._signature()
        self._digests = read_tokens(path)

    def accept(self, token: bytes) -> bool:
        """Whether ``token`` is in the file; takes the same time whichever line it is on."""
        signature = self._signature()
        if signature != self._seen:
            self._seen = signature
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

    def _signature(self) -> tuple[int, int, int, int] | None:
        try:
            found = os.stat(self._path)
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns, found.st_size, found.st_mode


def admitted(headers: Headers, tokens: Tokens | None) -> bool:
    """Whether a request brings one of the tokens, or none are wanted."""
    if tokens is None:
        return True
    given = [value for name, value in headers if name == b"authorization"]
    scheme, _, token = given[0].partition(b" ") if len(given) == 1 else (b"", b"", b"")
    return scheme.lower() == b"bearer" and tokens.accept(token.strip())


class BearerAuth:
    """Answers 401 to all that comes without an accepted token, before anything else looks at it."""

    def __init__(self, app: ASGIApp, tokens: Tokens | None) -> None:
        self.app, self.tokens = app, tokens

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":  # there are none to open, with or without a token
            await send({"type": "websocket.close", "code": 1008})
            return
        guarded = scope["type"] == "http" and scope["path"] not in OPEN_PATHS
        if guarded and not admitted(scope["headers"], self.tokens):
            detail = "the header 'Authorization: Bearer TOKEN' is missing or names no known token"
            raise Refusal(401, "unauthorized", detail, {"www-authenticate": "Bearer"})
        await self.app(scope, receive, send)
