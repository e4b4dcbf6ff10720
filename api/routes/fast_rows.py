"""``rows`` answered inside the HTTP protocol, without ASGI: the training path on the event loop.

ASGI's task, scope, layers and awaited sends cost more than gathering 256 rows does.  A request is
answered here only if the ASGI endpoint would answer it with 200 and the same bytes at once: a
mapped copy in memory, a known token, nothing unusual.  Every other request goes to the endpoint.
"""

from __future__ import annotations

import logging
import os
import re
import time
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from logitstore.api.guard.auth import Tokens, identify
from logitstore.api.guard.clients import Addresses, Client
from logitstore.api.guard.headers import Headers
from logitstore.api.guard.limits import Limits, check_headers
from logitstore.api.guard.problems import ACCESS, Refusal, common_headers, log_access
from logitstore.api.routes.rows import RowsEndpoint, parse_view, rows_headers
from logitstore.errors import InputError
from logitstore.format.wire import INDICES_TYPE, MAX_INDICES, ROOT_HEADER

_TARGET = re.compile(rb"/v1/stores/([\w.-]+)/snapshots/([\w.-]+)/rows(?:\?([\w=&]*))?", re.ASCII)
_ROOT = ROOT_HEADER.encode()

_FRAMING = {b"expect", b"transfer-encoding", b"upgrade"}
"""Headers that change how a request or its answer is framed."""

_BLANK_CRC, _BLANK_ID = "--crc---", "--request-id----"


@dataclass(frozen=True, slots=True)
class FastRequest:
    """A request for rows of which only token and body are still unchecked."""

    store: str
    snapshot: str
    view: int
    root: str | None


class FastRows:
    """Reads a request's head with ``parse`` and makes its ``answer``."""

    def __init__(
        self,
        rows: RowsEndpoint,
        tokens: Tokens | None,
        limits: Limits,
        addresses: Addresses,
        *,
        loopback_only: bool,
    ) -> None:
        self._rows, self._tokens, self._limits = rows, tokens, limits
        self._addresses, self._loopback_only = addresses, loopback_only
        self._parse_cached = lru_cache(maxsize=256)(self._parse)

    def parse(self, target: bytes, headers: Headers) -> FastRequest | None:
        """Return what a request asks for; None if the endpoint has to answer it.

        Clients repeat their heads, so each is parsed once, without the token in it.
        """
        if not target.startswith(b"/v1/stores/"):
            return None
        return self._parse_cached(target, tuple([h for h in headers if h[0] != b"authorization"]))

    def _parse(self, target: bytes, headers: tuple[tuple[bytes, bytes], ...]) -> FastRequest | None:
        match, fields = _TARGET.fullmatch(target), dict(headers)
        length = fields.get(b"content-length", b"")
        if match is None or not length.isdigit() or int(length) > 4 * MAX_INDICES:
            return None
        if fields.get(b"content-type") != INDICES_TYPE.encode() or len(fields) < len(headers):
            return None
        stays = fields.get(b"connection", b"keep-alive").lower() == b"keep-alive"
        if not stays or not _FRAMING.isdisjoint(fields):
            return None
        try:
            check_headers(list(headers), self._limits, loopback_only=self._loopback_only)
            view = parse_view(match[3] or b"")
        except (Refusal, InputError):
            return None
        root = fields[_ROOT].decode("latin-1") if _ROOT in fields else None
        return FastRequest(match[1].decode(), match[2].decode(), view, root)

    def answer(
        self, request: FastRequest, headers: Headers, body: bytes, peer: str
    ) -> tuple[bytes, NDArray[np.uint8]] | None:
        """Return header lines and body of a 200; None if the endpoint has to answer."""
        began = time.monotonic()
        try:
            token = identify(headers, self._tokens)
            client = Client(self._addresses.of(peer, headers), token)
            answer = self._rows.without_waiting(
                request.store, request.snapshot, request.root, request.view, body, client
            )
        except Exception:  # the endpoint meets it again, and says it
            return None
        if answer is None:
            return None
        request_id = os.urandom(8).hex()
        lines = _lines(answer.root, len(answer.body))
        lines = lines.replace(_BLANK_CRC.encode(), answer.checksum.encode(), 1)
        if ACCESS.isEnabledFor(logging.INFO):
            path = f"POST '/v1/stores/{request.store}/snapshots/{request.snapshot}/rows'"
            length, seconds = len(answer.body), time.monotonic() - began
            log_access(request_id, client.address, path, 200, length, seconds)
        return lines.replace(_BLANK_ID.encode(), request_id.encode(), 1), answer.body


@lru_cache(maxsize=256)
def _lines(root: str, length: int) -> bytes:
    """Return the header lines of an answer, with blanks where each differs."""
    headers = [*rows_headers(root, length, _BLANK_CRC), *common_headers(_BLANK_ID)]
    return b"".join([b"%b: %b\r\n" % field for field in headers])
