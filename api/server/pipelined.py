"""uvicorn's HTTP/1.1 protocol for clients that send several requests at once, and for its end.

What a connection receives is parsed piece by piece, and only while few of its requests are
unanswered.  Every request that came whole is answered, whatever came after it: garbage, a request
that never became whole, or the end of what the client sends.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from typing import Any, Literal

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)
from uvicorn.server import ServerState

from logitstore.api.guard.problems import Refusal, log_refusal, problem_document
from logitstore.api.server.pace import CountingTransport
from logitstore.format.wire import PROBLEM_TYPE

PIPELINED = 16
"""Requests of one connection that may be unanswered; what follows them is not read."""

SHORTEST = len(b"GET / HTTP/1.1\r\n\r\n")
"""Bytes of the shortest request: a piece of n times as many begins at most n requests."""

LINGER_SECONDS, LINGER_BYTES = 1.0, 1 << 20
"""Seconds, and bytes, for which a connection stays open after its last answer.

Closing it while something comes in would take from the client the answer that it has not read.
"""

MALFORMED = Refusal(400, "malformed", "this is not HTTP/1.1")


class _Flow(FlowControl):
    """Reading and writing of a connection; while it is held, reading stays paused."""

    _held = False

    def hold(self, held: bool) -> None:
        self._held = held
        if held:
            self.pause_reading()
        else:
            self.resume_reading()

    def resume_reading(self) -> None:
        if not self._held:
            super().resume_reading()


class PipelinedProtocol(HttpToolsProtocol):
    """One connection; ``awaits`` says what of a request has to come next, and ``since`` when."""

    transport: CountingTransport  # type: ignore[assignment]  # in all that uvicorn uses of it
    flow: _Flow

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.awaits: Literal["head", "body", "nothing"] = "head"
        self.since = self.loop.time()
        self.stage = 0  # another one whenever something else is awaited
        self._body_left = 0  # bytes of a body of declared length, in which no request begins
        self.backlog = memoryview(b"")
        self.unanswered: deque[RequestResponseCycle] = deque()
        self.arriving: RequestResponseCycle | None = None
        self.malformed = MALFORMED  # the answer to what the parser does not take
        self.ending = self._stopped = False
        self._last_words: Refusal | None = None
        self._requests = self._ignored = 0
        self._again: asyncio.Handle | None = None
        self._lingering: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # TCP only
        counting = CountingTransport(transport)
        super().connection_made(counting)  # type: ignore[arg-type]  # all that uvicorn uses of it
        self.flow = _Flow(counting)  # type: ignore[arg-type]

    def connection_lost(self, exc: Exception | None) -> None:
        for handle in (self._again, self._lingering):
            if handle is not None:
                handle.cancel()
        for cycle in self.unanswered:
            _forget(cycle)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if not self.ending:
            self.backlog = memoryview(bytes(self.backlog) + data if self.backlog else data)
            self._parse()
            return
        self._ignored += len(data)
        if self._ignored > LINGER_BYTES:
            self.transport.abort()

    def eof_received(self) -> bool:  # type: ignore[override]  # asyncio allows it
        """Answer what came before the client closed its half; True keeps ours open until then."""
        self.ending = True
        self._finish()
        return bool(self.unanswered or self.backlog)

    def _parse(self) -> None:
        """Parse what was received, as long as the connection has few unanswered requests."""
        self._again = None
        self._unset_keepalive_if_required()
        begun = self._requests
        while self.backlog:
            room = PIPELINED - max(len(self.unanswered), self._requests - begun)
            if room <= 0:
                break
            size = max(room * SHORTEST, self._body_left)
            piece, self.backlog = self.backlog[:size], self.backlog[size:]
            self.feed(piece)
        self.flow.hold(bool(self.backlog))
        if self.backlog and len(self.unanswered) < PIPELINED:
            self._again = self.loop.call_soon(self._parse)  # others come first
        self._finish()

    def feed(self, piece: memoryview) -> None:
        """Let the parser have a piece."""
        try:
            self.parser.feed_data(piece)
        except httptools.HttpParserUpgrade:  # no protocol but ours is spoken here
            self.cycle.keep_alive = False
            self._stop()
        except httptools.HttpParserError:
            self.refuse(self.malformed)

    def on_message_begin(self) -> None:
        if self._stopped:
            raise ValueError("no request may follow")  # the parser stops
        if self.awaits == "nothing":
            self.await_next("head")
        self.arriving = None
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.awaits == "head":  # what comes later is a trailer, which nobody reads
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._requests += 1
        self.await_next("body")
        length = dict(self.headers).get(b"content-length", b"")
        self._body_left = int(length) if length.isdigit() and len(length) < 16 else 0
        self.begin()

    def begin(self) -> None:
        """Let the application answer the request, after those before it."""
        super().on_headers_complete()
        self.arriving = self.cycle
        self.unanswered.append(self.cycle)

    def on_body(self, body: bytes) -> None:
        self._body_left = max(0, self._body_left - len(body))
        self.take(body)

    def take(self, body: bytes) -> None:
        """Hand a part of a body to the application."""
        super().on_body(body)

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self.arriving, self._body_left = None, 0
        self.await_next("nothing")
        if not self.parser.should_keep_alive():
            self._stop()

    def on_response_complete(self) -> None:
        self.unanswered.popleft()
        super().on_response_complete()
        if self.backlog and self._again is None:
            self._again = self.loop.call_soon(self._parse)
        self._finish()

    def shutdown(self) -> None:
        self.backlog = memoryview(b"")
        super().shutdown()

    def await_next(self, what: Literal["head", "body", "nothing"]) -> None:
        """Await the next part of a request."""
        self.awaits, self.since = what, self.loop.time()
        self.stage += 1

    def refuse(self, refusal: Refusal, *, silently: bool = False) -> None:
        """Answer in place of the request that arrives, after those before it, and close."""
        if self._stopped:
            return
        answered = self.arriving is not None and self.arriving.response_started
        if not answered and not silently:
            self._last_words = refusal
        self._stop()
        self._finish()

    def _stop(self) -> None:
        """Begin no other request."""
        self.ending = self._stopped = True
        self.backlog = memoryview(b"")

    def _finish(self) -> None:
        """Close the connection if nothing more comes and all that came whole is answered."""
        if not self.ending or self.backlog or self._lingering is not None:
            return
        self.abandon()
        if self.unanswered or self.transport.is_closing():
            return
        if self._last_words is None:
            self.transport.close()
            return
        self.transport.write(_answer(self._last_words, self.client))
        self.transport.write_eof()
        self._lingering = self.loop.call_later(LINGER_SECONDS, self.transport.close)

    def abandon(self) -> None:
        """Leave the request unanswered that will never be whole."""
        cycle, self.arriving = self.arriving, None
        if cycle is not None and cycle in self.unanswered and not cycle.response_started:
            self.unanswered.remove(cycle)
            self.pipeline = deque(item for item in self.pipeline if item[0] is not cycle)
            _forget(cycle)


def _forget(cycle: RequestResponseCycle) -> None:
    """Tell the application that nobody waits for its answer."""
    cycle.disconnected = True
    cycle.message_event.set()


def _answer(refusal: Refusal, client: tuple[str, int] | None) -> bytes:
    """Return a whole answer that says so, and log it."""
    request_id = secrets.token_hex(8)
    log_refusal(request_id, client[0] if client else "", "a request", refusal)
    document = problem_document(refusal, request_id)
    headers = {
        "content-type": PROBLEM_TYPE,
        "content-length": str(len(document)),
        "connection": "close",
        "x-request-id": request_id,
        **refusal.headers,
    }
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return STATUS_LINE[refusal.status] + lines.encode() + b"\r\n" + document
