"""uvicorn's HTTP/1.1 protocol with deadlines: without them it waits for ever for a slow client.

A connection always awaits the head of its next request, its body, or nothing.  One timer per
connection checks how long that has lasted, and whether the bytes that wait to be sent get fewer.
"""

from __future__ import annotations

import asyncio
import fcntl
import secrets
import sys
import termios
from typing import Any, Literal

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

from logitstore.api.guard.limits import Limits
from logitstore.api.guard.problems import Refusal, problem_document
from logitstore.api.routes.fast_rows import FastRequest, FastRows
from logitstore.format.wire import PROBLEM_TYPE

_MALFORMED = Refusal(400, "malformed", "this is not HTTP/1.1")
_LATE = Refusal(408, "late", "the request did not arrive in time")
_TOO_MANY = Refusal(503, "busy", "too many connections; try again", {"retry-after": "1"})


class LimitedProtocol(HttpToolsProtocol):
    """One connection under the limits that the application's lifespan put into ``app_state``."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.limits: Limits = app_state["limits"]
        self.fast_rows: FastRows = app_state["fast_rows"]
        self._fast_request: FastRequest | None = None
        self._fast_body = b""
        self._awaits: Literal["head", "body", "nothing"] = "head"
        self._since = self._progress = self.loop.time()
        self._head_bytes = self._requests = self._unsent = 0
        self._refusal = _MALFORMED
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # TCP only
        super().connection_made(transport)
        self._tick()
        if len(self.connections) > self.limits.connections:
            self._refuse(_TOO_MANY)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._awaits == "nothing":
            self._await("head")
            self._head_bytes = 0
        request = self._requests
        super().data_received(data)
        # The parser does not show an unfinished header, so the bytes that it got are counted.
        if self._awaits == "head" and self._requests == request:
            self._head_bytes += len(data)
            if self._head_bytes > self.limits.header_bytes and not self.transport.is_closing():
                self._refuse(self._too_large())

    def on_headers_complete(self) -> None:
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if size > self.limits.header_bytes:
            self._refusal = self._too_large()
            raise ValueError("headers too large")  # the parser stops; send_400_response answers
        self._requests += 1
        self._await("body")
        self._fast_request, self._fast_body = self._parse_fast(), b""
        if self._fast_request is None:
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if self._fast_request is None:
            super().on_body(body)
        else:
            self._fast_body += body

    def on_message_complete(self) -> None:
        if self._fast_request is None or not self._answer_fast(self._fast_request):
            self._hand_over()
            super().on_message_complete()
        self._fast_request = None
        self._await("nothing")

    def shutdown(self) -> None:
        self._hand_over()  # uvicorn waits only for requests that it has seen begin
        super().shutdown()

    def _parse_fast(self) -> FastRequest | None:
        """Return the request if ``FastRows`` may answer it: the connection is idle and stays."""
        free = self.cycle is None or self.cycle.response_complete
        if not free or self.flow.write_paused or not self.parser.should_keep_alive():
            return None
        post = self.parser.get_method() == b"POST"
        return self.fast_rows.parse(self.url, self.headers) if post else None

    def _answer_fast(self, request: FastRequest) -> bool:
        """Send the answer of ``FastRows``; False if it has none."""
        answer = self.fast_rows.answer(request, self.headers, self._fast_body)
        if answer is None:
            return False
        lines, body = answer
        default = [b"%b: %b\r\n" % field for field in self.server_state.default_headers]
        head = b"".join([STATUS_LINE[200], *default, lines, b"\r\n"])
        self.transport.writelines((head, body.data))  # one system call wakes the client once
        self.server_state.total_requests += 1
        return True

    def _hand_over(self) -> None:
        """Hand a request that ``FastRows`` does not answer to the application."""
        if self._fast_request is not None:
            self._fast_request = None
            super().on_headers_complete()
            super().on_body(self._fast_body)

    def resume_writing(self) -> None:
        self._progress = self.loop.time()
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        self._refuse(self._refusal)

    def _too_large(self) -> Refusal:
        detail = f"request line and headers have at most {self.limits.header_bytes} bytes"
        return Refusal(431, "headers", detail)

    def _await(self, what: Literal["head", "body", "nothing"]) -> None:
        self._awaits, self._since = what, self.loop.time()

    def _tick(self) -> None:
        """Cut or refuse a client that is past a deadline, and look again a moment later."""
        now = self.loop.time()
        unsent = self.transport.get_write_buffer_size()
        if unsent:
            unsent += _queued_in_kernel(self.transport)
        if not unsent or unsent < self._unsent:
            self._progress = now
        self._unsent = unsent
        if now - self._progress > self.limits.stall_seconds:
            self.transport.abort()
        elif not self.transport.is_closing():
            waited = now - self._since
            idle = self.cycle is None or self.cycle.response_complete
            if self._awaits == "nothing" and idle and waited > self.limits.idle_seconds:
                self.transport.close()
            elif (self._awaits == "head" and waited > self.limits.header_seconds) or (
                self._awaits == "body" and waited > self.limits.body_seconds
            ):
                self._refuse(_LATE)
        seconds = min(
            self.limits.header_seconds, self.limits.body_seconds, self.limits.stall_seconds
        )
        self._timer = self.loop.call_later(min(1.0, seconds / 4), self._tick)

    def _refuse(self, refusal: Refusal) -> None:
        """Answer in place of the application and close; never in the middle of an answer."""
        # During a fast request ``cycle`` is an earlier request's.
        cycle = self.cycle if self._fast_request is None else None
        answered = False
        if cycle is not None and cycle.response_complete:
            answered = self._awaits == "body"
        elif cycle is not None and (cycle.response_started or self._awaits != "body"):
            self.transport.abort()
            return
        silent = self._awaits == "head" and not self._head_bytes and refusal is _LATE
        if not answered and not silent:
            request_id = secrets.token_hex(8)
            document = problem_document(refusal, request_id)
            headers = {
                "content-type": PROBLEM_TYPE,
                "content-length": str(len(document)),
                "connection": "close",
                "x-request-id": request_id,
                **refusal.headers,
            }
            lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
            self.transport.write(STATUS_LINE[refusal.status] + lines.encode() + b"\r\n" + document)
        self.transport.close()


def _queued_in_kernel(transport: asyncio.Transport) -> int:
    """Return the bytes that the peer has not acknowledged, 0 where the kernel does not say.

    A socket counts as writable only when a third of its buffer is free.  That may be megabytes,
    for which a slow but honest client needs longer than a deadline.
    """
    try:
        queued = fcntl.ioctl(
            transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, bytes(4)
        )
    except OSError:
        return 0
    return int.from_bytes(queued, sys.byteorder)
