"""Bearer tokens for every path but the two probes.

The token file is read again when it changes.  While it is missing, open to others or empty no token
is accepted, so that deleting it locks out instead of opening up.  While it cannot be read for a
reason that passes, such as too many open files, the tokens that were read last stay in force.
"""

from __future__ import annotations

import errno
import hashlib
import hmac
import logging
import os
from pathlib import Path

from starlette.types import ASGIApp, Receive, Scope, Send

from logitstore.api.guard.headers import Headers
from logitstore.api.guard.problems import Refusal
from logitstore.api.guard.token_file import (
    Signature,
    Token,
    check_token_file,
    read_token_file,
    signature_of,
)
from logitstore.errors import InputError

log = logging.getLogger(__name__)

OPEN_PATHS = frozenset({"/livez", "/readyz"})
"""The probes, which need no token and are never too many."""

_GONE = {errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.ELOOP}
"""Errors that say that the file may not be used; others pass."""


class Tokens:
    """The tokens that one file holds now."""

    def __init__(self, path: Path) -> None:
        self._path = path
        check_token_file(path)
        self._signature: Signature | None = None
        self._tokens: tuple[Token, ...] = ()
        self._reload(None)

    def find(self, token: bytes) -> Token | None:
        """Return the line of ``token``, in the same time whichever it is; None if there is none."""
        try:
            signature: Signature | None = signature_of(os.stat(self._path))
        except OSError as error:
            signature = None if error.errno in _GONE else self._signature
        if signature != self._signature:
            self._reload(signature)
        presented = hashlib.sha256(token).digest()
        same = [known for known in self._tokens if hmac.compare_digest(presented, known.digest)]
        return same[0] if same else None

    def _reload(self, signature: Signature | None) -> None:
        try:
            self._signature, self._tokens = read_token_file(self._path)
            log.info("the token file was read: %d tokens are accepted", len(self._tokens))
        except (InputError, OSError) as error:
            if isinstance(error, OSError) and error.errno not in _GONE:
                log.error("the token file cannot be read now, the old one counts: %s", error)
                return
            self._signature, self._tokens = signature, ()
            log.error("%s; until that is repaired no token is accepted", error)


def identify(headers: Headers, tokens: Tokens | None) -> bytes:
    """Return the digest of the token that a request brings, empty where none is wanted.

    Refusal if there is none, or if it is not accepted.
    """
    if tokens is None:
        return b""
    values = [value for name, value in headers if name == b"authorization"]
    scheme, _, text = values[0].partition(b" ") if len(values) == 1 else (b"", b"", b"")
    if scheme.lower() != b"bearer" or not text.strip():
        raise _unauthorized("no token came: send one header 'Authorization: Bearer TOKEN'")
    token = tokens.find(text.strip())
    if token is None:
        raise _unauthorized("the token is none of this server's: is it whole, and not revoked?")
    if token.expired:
        raise _unauthorized(f"the token expired at {token.expires}: ask for a new one")
    return token.digest


def _unauthorized(detail: str) -> Refusal:
    return Refusal(401, "unauthorized", detail, {"www-authenticate": "Bearer"})


class BearerAuth:
    """Answers 401 to every request without an accepted token, before anything else reads it."""

    def __init__(self, app: ASGIApp, tokens: Tokens | None) -> None:
        self.app, self.tokens = app, tokens

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":  # the service has none
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] == "http" and scope["path"] not in OPEN_PATHS:
            scope["logitstore.token"] = identify(scope["headers"], self.tokens)
        await self.app(scope, receive, send)
