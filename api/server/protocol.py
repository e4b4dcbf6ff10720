"""uvicorn's HTTP/1.1 protocol with deadlines: it alone would wait for ever for a slow client.

A connection is always in one of three states: its next request's head is awaited, its body is, or
nothing is.  One clock per connection looks at how long that has lasted, and at whether bytes that
wait to be sent are getting fewer.
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
from logitstore.api.routes.fast_rows import Lane, Plain
from logitstore.format.wire import PROBLEM_TYPE

_MALFORMED = Refusal(400, "malformed", "this is not HTTP/1.1")


_LATE = Refusal(408, "late", "the request did not arrive in time")


_CROWDED = Refusal(503, "busy", "too many connections; try again", {"retry-after": "1"})


class GuardedProtocol(HttpToolsProtocol):
    """One connection, held to the Limits that the application's lifespan put into ``app_state``."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.limits: Limits = app_state["limits"]
        self.lane: Lane = app_state["lane"]
        self._plain: Plain | None = None
        self._request = b""
        self._awaits: Literal["head", "body", "nothing"] = "head"
        self._since = self._progress = self.loop.time()
        self._head_bytes = self._requests = self._unsent = 0
        self._refusal = _MALFORMED
        self._clock: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # TCP only
        super().connection_made(transport)
        self._tick()
        if len(self.connections) > self.limits.connections:
            self._refuse(_CROWDED)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._clock is not None:
            self._clock.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._awaits == "nothing":
            self._await("head")
            self._head_bytes = 0
        request = self._requests
        super().data_received(data)
        # The parser keeps an unfinished header to itself, so what it was fed is counted instead.
        if self._awaits == "head" and self._requests == request:
            self._head_bytes += len(data)
            if self._head_bytes > self.limits.header_bytes and not self.transport.is_closing():
                self._refuse(self._too_large())

    def on_headers_complete(self) -> None:
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if size > self.limits.header_bytes:
            self._refusal = self._too_large()
            raise ValueError("headers too large")  # the parser stops and send_400_response answers
        self._requests += 1
        self._await("body")
        self._plain, self._request = self._for_lane(), b""
        if self._plain is None:
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if self._plain is None:
            super().on_body(body)
        else:
            self._request += body

    def on_message_complete(self) -> None:
        if self._plain is None or not self._answered(self._plain):
            self._leave_lane()
            super().on_message_complete()
        self._plain = None
        self._await("nothing")

    def shutdown(self) -> None:
        self._leave_lane()  # only outside it is a request that has begun seen, and waited for
        super().shutdown()

    def _for_lane(self) -> Plain | None:
        """The request, if nothing is being answered or sent on this connection and it stays."""
        free = self.cycle is None or self.cycle.response_complete
        if not free or self.flow.write_paused or not self.parser.should_keep_alive():
            return None
        post = self.parser.get_method() == b"POST"
        return self.lane.plain(self.url, self.headers) if post else None

    def _answered(self, plain: Plain) -> bool:
        answer = self.lane.answer(plain, self.headers, self._request)
        if answer is None:
            return False
        lines, body = answer
        usual = [b"%b: %b\r\n" % field for field in self.server_state.default_headers]
        head = b"".join([STATUS_LINE[200], *usual, lines, b"\r\n"])
        self.transport.writelines((head, body.data))  # one system call wakes the client once
        self.server_state.total_requests += 1
        return True

    def _leave_lane(self) -> None:
        """Hand a request that has begun in the lane to the application."""
        if self._plain is not None:
            self._plain = None
            super().on_headers_complete()
            super().on_body(self._request)

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
        self._clock = self.loop.call_later(min(1.0, seconds / 4), self._tick)

    def _refuse(self, refusal: Refusal) -> None:
        """Answer in place of the application and close; never into the middle of an answer."""
        cycle = None if self._plain is not None else self.cycle  # else it is an earlier request's
        answered = False
        if cycle is not None and cycle.response_complete:
            answered = self._awaits == "body"
        elif cycle is not None and (cycle.response_started or self._awaits != "body"):
            self.transport.abort()
            return
        unborn = self._awaits == "head" and not self._head_bytes and refusal is _LATE
        if not answered and not unborn:
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
    """Bytes that the peer has not acknowledged, 0 where that cannot be known.

    A socket counts as writable only when a third of its buffer is free, megabytes that a slow but
    honest client may need longer for than a deadline.
    """
    try:
        queued = fcntl.ioctl(
            transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, bytes(4)
        )
    except OSError:
        return 0
    return int.from_bytes(queued, sys.byteorder)
