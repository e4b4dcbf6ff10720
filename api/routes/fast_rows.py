"""A lane of its own for the training path: ``rows`` answered in the protocol, without ASGI.

A task, a scope, three layers and two awaited sends cost more than gathering 256 rows does.  What
takes this lane is only what the whole way would answer with 200 and the same bytes, at once: a
mapped copy in memory, a token that is known, nothing unusual.  Everything else goes the whole way.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from logitstore.api.guard.auth import Tokens, admitted
from logitstore.api.guard.headers import Headers
from logitstore.api.guard.limits import Limits, check_headers
from logitstore.api.guard.problems import Refusal, frame_headers
from logitstore.api.routes.rows import RowsEndpoint, parse_view, rows_headers
from logitstore.errors import InputError
from logitstore.format.wire import INDICES_TYPE, MAX_INDICES, ROOT_HEADER

_TARGET = re.compile(rb"/v1/stores/([\w.-]+)/snapshots/([\w.-]+)/rows(?:\?([\w=&]*))?", re.ASCII)


_ROOT = ROOT_HEADER.encode()


_ELSEWHERE = {b"expect", b"transfer-encoding", b"upgrade"}
"""Headers that change how a request or its answer is framed."""


_BLANK_CRC, _BLANK_ID = "--crc---", "--request-id----"


@dataclass(frozen=True, slots=True)
class Plain:
    """A request for rows of which all but body and token have been found in order."""

    store: str
    snapshot: str
    view: int
    root: str | None


class Lane:
    """Looks at a request's head, ``plain``, and gives its ``answer``."""

    def __init__(
        self, rows: RowsEndpoint, tokens: Tokens | None, limits: Limits, *, loopback_only: bool
    ) -> None:
        self._rows, self._tokens, self._limits = rows, tokens, limits
        self._loopback_only = loopback_only
        self._understood = lru_cache(maxsize=256)(self._understand)

    def plain(self, target: bytes, headers: Headers) -> Plain | None:
        """What a request asks for; None if that is nothing for the lane.

        Clients repeat their heads, so what one means is remembered, but for the token in it.
        """
        if not target.startswith(b"/v1/stores/"):
            return None
        return self._understood(target, tuple([h for h in headers if h[0] != b"authorization"]))

    def _understand(self, target: bytes, headers: tuple[tuple[bytes, bytes], ...]) -> Plain | None:
        found, fields = _TARGET.fullmatch(target), dict(headers)
        length = fields.get(b"content-length", b"")
        if found is None or not length.isdigit() or int(length) > 4 * MAX_INDICES:
            return None
        if fields.get(b"content-type") != INDICES_TYPE.encode() or len(fields) < len(headers):
            return None
        stays = fields.get(b"connection", b"keep-alive").lower() == b"keep-alive"
        if not stays or not _ELSEWHERE.isdisjoint(fields):
            return None
        try:
            check_headers(list(headers), self._limits, loopback_only=self._loopback_only)
            view = parse_view(found[3] or b"")
        except (Refusal, InputError):
            return None
        root = fields[_ROOT].decode("latin-1") if _ROOT in fields else None
        return Plain(found[1].decode(), found[2].decode(), view, root)

    def answer(
        self, plain: Plain, headers: Headers, body: bytes
    ) -> tuple[bytes, NDArray[np.uint8]] | None:
        """Header lines and body of status 200; None if the whole way must say what there is."""
        if not admitted(headers, self._tokens):
            return None
        try:
            made = self._rows.at_once(plain.store, plain.snapshot, plain.root, plain.view, body)
        except Exception:  # it will be met again, and answered, on the whole way
            return None
        if made is None:
            return None
        root, checksum, rows = made
        lines = _lines(root, len(rows)).replace(_BLANK_CRC.encode(), checksum.encode(), 1)
        return lines.replace(_BLANK_ID.encode(), os.urandom(8).hex().encode(), 1), rows


@lru_cache(maxsize=256)
def _lines(root: str, length: int) -> bytes:
    """The header lines of an answer, with blanks where each differs."""
    headers = [*rows_headers(root, length, _BLANK_CRC), *frame_headers(_BLANK_ID)]
    return b"".join([b"%b: %b\r\n" % field for field in headers])
