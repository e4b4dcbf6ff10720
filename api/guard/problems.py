"""Errors as RFC 9457 problem documents: one table from error to status, and a request id.

``ProblemMiddleware`` is the outermost layer: what is raised below it becomes a problem document.
If the answer has begun, the error rises to the server, which cuts the connection, so that nobody
takes a part for the whole.  No document names a path of this machine.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Mapping
from http import HTTPStatus

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from logitstore.errors import (
    Damaged,
    InputError,
    MismatchError,
    NoCache,
    NonFinite,
    NotFound,
    UnknownName,
)
from logitstore.format.wire import DAMAGED, PROBLEM, PROBLEM_TYPE, Problem

log = logging.getLogger(__name__)

ACCESS = logging.getLogger("logitstore.access")
"""Logs every answer, if the server is told to."""

TABLE: tuple[tuple[type[Exception], int, str], ...] = (
    (MismatchError, 412, PROBLEM + "another-build"),
    (NoCache, 503, PROBLEM + "busy"),
    (InputError, 422, PROBLEM + "bad-request"),
    (UnknownName, 404, PROBLEM + "unknown-name"),
    (NotFound, 404, PROBLEM + "unknown-name"),
    (Damaged, 503, DAMAGED),
    (NonFinite, 503, DAMAGED),
    (OSError, 503, PROBLEM + "unreadable"),
    (MemoryError, 503, PROBLEM + "busy"),
    (Exception, 500, PROBLEM + "internal"),
)
"""Status and problem type of each error; the first class that fits counts."""

_OWN_WORDS = {
    PROBLEM + "unreadable": "the store cannot be read at the moment; the server's log says why",
    PROBLEM + "busy": "the server has no memory or disk space left; its log says more",
    PROBLEM + "internal": "an error in the server; its log says more",
}
"""Details of problems whose errors speak of this machine, and so are for its log only."""

_RETRY_AFTER = {PROBLEM + "unreadable": "1", PROBLEM + "busy": "5"}
"""Seconds after which such a request may be repeated."""

_COMMON = {PROBLEM + "busy", PROBLEM + "materialising"}
"""Problems of 503 that say nothing bad about the server."""


class Refusal(Exception):
    """Ends a request with ``status`` and a problem of this ``kind``, which is one word."""

    def __init__(
        self, status: int, kind: str, detail: str, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(detail)
        self.status, self.kind, self.detail = status, PROBLEM + kind, detail
        self.headers = dict(headers or {})

    @classmethod
    def of(cls, error: Exception) -> Refusal:
        """Return the refusal for an error; only errors raised on purpose show their message."""
        if isinstance(error, Refusal):
            return error
        if isinstance(error, HTTPException):
            return cls(error.status_code, "http", str(error.detail), error.headers)
        status, kind = next(row[1:] for row in TABLE if isinstance(error, row[0]))
        retry = {"retry-after": _RETRY_AFTER[kind]} if kind in _RETRY_AFTER else None
        detail = _OWN_WORDS.get(kind, str(error))
        return cls(status, kind.removeprefix(PROBLEM), detail, retry)


def problem_document(refusal: Refusal, request_id: str) -> bytes:
    """Return a refusal as JSON."""
    return Problem(
        type=refusal.kind,
        title=HTTPStatus(refusal.status).phrase,
        status=refusal.status,
        detail=refusal.detail,
        request_id=request_id,
    ).to_bytes()


def common_headers(request_id: str) -> list[tuple[bytes, bytes]]:
    """Return the headers of every answer."""
    return [(b"x-request-id", request_id.encode()), (b"x-content-type-options", b"nosniff")]


class ProblemMiddleware:
    """Gives every answer a request id, and answers errors with problem documents."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id, has_begun, began = secrets.token_hex(8), False, time.monotonic()
        status, length = 0, 0

        async def send_with_id(message: Message) -> None:
            nonlocal has_begun, status, length
            if message["type"] == "http.response.start":
                has_begun, status = True, message["status"]
                message["headers"] = [*message["headers"], *common_headers(request_id)]
            else:
                length += len(message.get("body", b""))
            await send(message)

        try:
            await self.app(scope, receive, send_with_id)
        except ClientDisconnect:
            log.info("%s: the client of %s left", request_id, scope["method"])
        except Exception as error:
            refusal = Refusal.of(error)
            request = f"{scope['method']} {scope['path']!r}"
            log_refusal(request_id, client_of(scope), request, refusal, error)
            if has_begun:
                raise
            document = problem_document(refusal, request_id)
            answer = Response(document, refusal.status, refusal.headers, PROBLEM_TYPE)
            await answer(scope, receive, send_with_id)
        if ACCESS.isEnabledFor(logging.INFO):
            request = f"{scope['method']} {scope['path']!r}"
            seconds = time.monotonic() - began
            log_access(request_id, client_of(scope), request, status, length, seconds)


def client_of(scope: Scope) -> str:
    """Return the address of a request's client, or of the proxy that passes it on."""
    if "logitstore.client" in scope:
        return str(scope["logitstore.client"].address)
    return scope["client"][0] if scope["client"] else ""


def log_access(
    request_id: str, client: str, request: str, status: int, length: int, seconds: float
) -> None:
    """Log an answer; status 0 is that of a client that left before there was one."""
    milliseconds = 1000 * seconds
    ACCESS.info(
        "%s: %s from %s: %d, %d bytes, %.1f ms",
        *(request_id, request, client, status, length, milliseconds),
    )


def log_refusal(
    request_id: str, client: str, request: str, refusal: Refusal, error: Exception | None = None
) -> None:
    """Log an answer that is an error, under the id that the client got, and what the error says.

    Only a bug, which is a 500, is worth a traceback.
    """
    expected = refusal.status != 500
    said = "" if error is None else str(error)
    more = f" ({said})" if expected and said not in ("", refusal.detail) else ""
    log.log(
        logging.WARNING if refusal.status < 500 or refusal.kind in _COMMON else logging.ERROR,
        "%s: %s from %s answered %d: %s%s",
        *(request_id, request, client or "a socket", refusal.status, refusal.detail, more),
        exc_info=None if expected else error,
    )
