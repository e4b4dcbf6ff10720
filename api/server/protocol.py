"""A connection with limits and deadlines, on which ``FastRows`` may answer without ASGI.

One timer per connection checks how long the head or body of a request has taken, and how fast the
client reads.
"""

from __future__ import annotations

import asyncio
from typing import Any, Literal

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE
from uvicorn.server import ServerState

from logitstore.api.guard.limits import Limits
from logitstore.api.guard.problems import Refusal
from logitstore.api.routes.fast_rows import FastRequest, FastRows
from logitstore.api.server.pace import Pace
from logitstore.api.server.pipelined import PipelinedProtocol
from logitstore.api.server.room import make_room

FRAMING = 8
"""Bytes of chunk sizes and trailers that a body may have for each of its own, above a head's."""

LATE = Refusal(408, "late", "the request did not arrive in time")
TOO_MANY = Refusal(503, "busy", "too many connections; try again", {"retry-after": "1"})


class LimitedProtocol(PipelinedProtocol):
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
        self._overhead = 0
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # TCP only
        super().connection_made(transport)
        self._pace = Pace(self.transport, self.limits.stall_seconds, self.limits.rate_bytes)
        self._tick()
        others = [one for one in self.connections if isinstance(one, LimitedProtocol)]
        make_room(others, self, self.limits.connections)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)

    @property
    def waiting(self) -> bool:
        """Say whether all whole requests are answered, and the answers are sent."""
        arriving = self.arriving in self.unanswered
        return len(self.unanswered) == arriving and not self.transport.get_write_buffer_size()

    @property
    def peer(self) -> str:
        """Return the address of the other end, which may be a proxy's."""
        return self.client[0] if self.client else ""

    def send_away(self) -> None:
        """Close a connection that waits for its client, because there are too many."""
        self.refuse(TOO_MANY, silently=not self._begun)

    # Sizes

    def feed(self, piece: memoryview) -> None:
        if self.awaits == "nothing":
            self.await_next("head")
        stage = self.stage
        super().feed(piece)
        # The parser does not show unfinished headers and trailers, so what it got is counted.
        if self.stage == stage and self.awaits != "nothing":
            self._overhead += len(piece)
            if self._overhead > self.limits.header_bytes:
                self.refuse(self._too_large())

    def await_next(self, what: Literal["head", "body", "nothing"]) -> None:
        super().await_next(what)
        self._overhead = 0

    def on_headers_complete(self) -> None:
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if size > self.limits.header_bytes:
            self.malformed = self._too_large()
            raise ValueError("headers too large")  # the parser stops, and ``feed`` refuses
        self._fast_request, self._fast_body = self._parse_fast(), b""
        super().on_headers_complete()

    def _too_large(self) -> Refusal:
        detail = f"request line and headers have at most {self.limits.header_bytes} bytes"
        return Refusal(431, "headers", detail)

    # Rows that need no application

    def _parse_fast(self) -> FastRequest | None:
        """Return the request if ``FastRows`` may answer it: the connection is idle and stays."""
        if self.unanswered or self.flow.write_paused or not self.parser.should_keep_alive():
            return None
        post = self.parser.get_method() == b"POST"
        return self.fast_rows.parse(self.url, self.headers) if post else None

    def begin(self) -> None:
        if self._fast_request is None:
            super().begin()

    def take(self, body: bytes) -> None:
        self._overhead -= len(body) * (1 + FRAMING)
        if self._fast_request is None:
            super().take(body)
        else:
            self._fast_body += body

    def on_message_complete(self) -> None:
        if self._fast_request is not None and self._answer_fast(self._fast_request):
            self._fast_request = None
            self.await_next("nothing")
            return
        self._hand_over()
        super().on_message_complete()

    def _answer_fast(self, request: FastRequest) -> bool:
        """Send the answer of ``FastRows``; False if it has none."""
        answer = self.fast_rows.answer(request, self.headers, self._fast_body, self.peer)
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
            self.begin()
            super().take(self._fast_body)

    def shutdown(self) -> None:
        if not self.ending:
            self._hand_over()  # uvicorn waits only for requests that it has seen begin
        super().shutdown()

    # Times

    def _tick(self) -> None:
        """Cut or refuse a client that is too slow, and look again a moment later."""
        now, limits = self.loop.time(), self.limits
        if self.backlog or self.flow.read_paused:
            self.since = now  # the client cannot be late with what is not read
        waited = now - self.since
        if self._pace.too_slow(now):
            self.transport.abort()
        elif self.awaits == "nothing":
            if not self.unanswered and waited > limits.idle_seconds:
                self.transport.close()
        elif waited > (limits.header_seconds if self.awaits == "head" else limits.body_seconds):
            self.refuse(LATE, silently=not self._begun)
        seconds = min(limits.header_seconds, limits.body_seconds, limits.stall_seconds)
        self._timer = self.loop.call_later(min(1.0, seconds / 4), self._tick)

    @property
    def _begun(self) -> bool:
        """Say whether anything of a request has come."""
        return self.awaits == "body" or bool(self._overhead)
