"""The limits of what clients may cost, and the middleware that keeps them.

Deadlines and the size of headers are enforced below ASGI, in ``server.protocol``.
"""

from __future__ import annotations

import re
import weakref
from dataclasses import dataclass
from threading import RLock

import numpy as np
from numpy.typing import NDArray
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from logitstore.api.guard.auth import OPEN_PATHS
from logitstore.api.guard.headers import Headers, by_name
from logitstore.api.guard.problems import Refusal

_HOST = re.compile(rb"^(\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._-]{1,253})(:[0-9]{1,5})?$")
_LOOPBACK = re.compile(rb"^(localhost|127(\.[0-9]{1,3}){3}|\[::1\])(:[0-9]{1,5})?$", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of a request, a connection and, from ``in_flight`` on, a worker process."""

    body_bytes: int = 1 << 20
    """Bytes of a request's body."""
    header_bytes: int = 8 << 10
    """Bytes of request line and headers together."""
    header_seconds: float = 10.0
    """Seconds in which the headers have to arrive."""
    body_seconds: float = 30.0
    """Seconds in which the body has to arrive."""
    stall_seconds: float = 30.0
    """Seconds after which a client that reads nothing is cut."""
    idle_seconds: int = 75
    """Seconds after which a connection without a request is closed."""
    in_flight: int = 64
    """Requests that are being answered."""
    connections: int = 1024
    """Open connections."""
    rows_bytes: int = 128 << 20
    """Bytes of the bodies of ``rows`` that are being made or sent."""


class BodyMemory:
    """Memory for the bodies of answers, at most ``limit`` bytes at once.

    A body counts until it is freed: the transport keeps what a slow client has not read yet.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.bytes = limit, 0
        self._lock = RLock()
        self._alive: dict[int, tuple[weakref.ref[NDArray[np.uint8]], int]] = {}

    def allocate(self, length: int) -> NDArray[np.uint8]:
        """Return an uninitialised body of ``length`` bytes; Refusal if others leave no room."""
        with self._lock:
            if self.bytes and self.bytes + length > self.limit:
                raise too_busy()
            self.bytes += length
        body = np.empty(length, np.uint8)
        reference = weakref.ref(body, self._freed)
        self._alive[id(reference)] = reference, length
        return body

    def _freed(self, reference: weakref.ref[NDArray[np.uint8]]) -> None:
        with self._lock:
            self.bytes -= self._alive.pop(id(reference))[1]


def too_busy() -> Refusal:
    """Return the answer to a request beyond what is handled at once."""
    return Refusal(503, "busy", "too many requests at once; try again", {"retry-after": "1"})


def check_headers(headers: Headers, limits: Limits, *, loopback_only: bool) -> None:
    """Refuse a request for another host, with an encoded body, or with one that is too large.

    ``loopback_only`` allows only names of this machine.  Without tokens nothing else keeps a web
    page from reading the server through DNS rebinding.
    """
    hosts = [value for name, value in headers if name == b"host"]
    if len(hosts) != 1 or not (_LOOPBACK if loopback_only else _HOST).match(hosts[0]):
        raise Refusal(
            400,
            "host",
            "the Host header is not a name of this server; one without tokens answers to "
            "localhost only: start it with a token file to use another name",
        )
    fields = by_name(headers)
    if fields.get(b"content-encoding", b"identity").lower() != b"identity":
        raise Refusal(415, "content-encoding", "a request body must not be compressed")
    length = fields.get(b"content-length", b"0")
    if length.isdigit() and int(length) > limits.body_bytes:
        raise _too_large(limits)


def _too_large(limits: Limits) -> Refusal:
    return Refusal(413, "too-large", f"a body has at most {limits.body_bytes} bytes")


class LimitsMiddleware:
    """Refuses what ``check_headers`` refuses, longer bodies, and too many requests at once."""

    def __init__(self, app: ASGIApp, limits: Limits, *, loopback_only: bool) -> None:
        self.app, self.limits = app, limits
        self.loopback_only = loopback_only
        self.active = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS:
            await self.app(scope, receive, send)
            return
        check_headers(scope["headers"], self.limits, loopback_only=self.loopback_only)
        if self.active >= self.limits.in_flight:
            raise too_busy()
        self.active += 1
        try:
            await self.app(scope, self._limited(receive), send)
        finally:
            self.active -= 1

    def _limited(self, receive: Receive) -> Receive:
        received = 0

        async def receive_limited() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.limits.body_bytes:
                raise _too_large(self.limits)
            return message

        return receive_limited


async def read_body(receive: Receive) -> bytes:
    """Return the whole request body; ClientDisconnect if the client left before its end."""
    parts: list[bytes] = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return parts[0] if len(parts) == 1 else b"".join(parts)
