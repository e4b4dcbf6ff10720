"""The limits of what clients may cost, and the middleware that keeps them.

Deadlines and the size of headers are enforced below ASGI, in ``server.protocol``.
"""

from __future__ import annotations

import re
import weakref
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from logitstore.api.guard.auth import OPEN_PATHS
from logitstore.api.guard.clients import Addresses, Client, Shares
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
    """Seconds over which a client's rate of reading is measured."""
    rate_bytes: int = 32 << 10
    """Bytes a second that a client reads at least while there is an answer to read, or is cut."""
    idle_seconds: int = 75
    """Seconds after which a connection without a request is closed."""
    in_flight: int = 128
    """Requests that are being answered."""
    connections: int = 1024
    """Open connections; above that those that wait for a request are closed."""
    rows_bytes: int = 128 << 20
    """Bytes of the bodies of ``rows`` that are being made or sent."""
    received_bytes: int = 64 << 20
    """Bytes of the bodies of requests that have not been answered."""


class BodyMemory:
    """Memory for the bodies of answers, at most ``limit`` bytes at once.

    A body counts until it is freed: the transport keeps what a slow client has not read yet.
    """

    def __init__(self, limit: int) -> None:
        self.shares = Shares(limit)
        self._alive: dict[int, tuple[weakref.ref[NDArray[np.uint8]], Client | None, int]] = {}

    def allocate(self, length: int, client: Client | None = None) -> NDArray[np.uint8]:
        """Return an uninitialised body of ``length`` bytes; Refusal if there is no room for it."""
        if not self.shares.take(client, length):
            raise too_busy()
        body = np.empty(length, np.uint8)
        reference = weakref.ref(body, self._freed)
        self._alive[id(reference)] = reference, client, length
        return body

    def _freed(self, reference: weakref.ref[NDArray[np.uint8]]) -> None:
        _, client, length = self._alive.pop(id(reference))
        self.shares.give_back(client, length)


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
    """Refuses what ``check_headers`` refuses, longer bodies, and too many requests at once.

    A request takes its slot when its body is whole, so that slow clients hold none.
    """

    def __init__(
        self, app: ASGIApp, limits: Limits, addresses: Addresses, *, loopback_only: bool
    ) -> None:
        self.app, self.limits, self.addresses = app, limits, addresses
        self.loopback_only = loopback_only
        self.slots, self.received = Shares(limits.in_flight), Shares(limits.received_bytes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS:
            await self.app(scope, receive, send)
            return
        check_headers(scope["headers"], self.limits, loopback_only=self.loopback_only)
        peer = scope["client"][0] if scope["client"] else ""
        client = Client(self.addresses.of(peer, scope["headers"]), scope["logitstore.token"])
        scope["logitstore.client"] = client
        with _Body(self.received, client, self.limits) as body:
            await body.read(receive)
            if not self.slots.take(client):
                raise too_busy()
            try:
                await self.app(scope, body.replayed(receive), send)
            finally:
                self.slots.give_back(client)


class _Body:
    """The body of a request, which counts among those received until the request is answered."""

    def __init__(self, received: Shares, client: Client, limits: Limits) -> None:
        self._received, self._client, self._limits = received, client, limits
        self._parts: list[bytes] = []
        self._length = 0

    def __enter__(self) -> _Body:
        return self

    def __exit__(self, *error: object) -> None:
        self._received.give_back(self._client, self._length)

    async def read(self, receive: Receive) -> None:
        """Read all of it; Refusal if it is too large, ClientDisconnect if the client left."""
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            part = message.get("body", b"")
            if self._length + len(part) > self._limits.body_bytes:
                raise _too_large(self._limits)
            if part and not self._received.take(self._client, len(part)):
                raise too_busy()
            self._parts.append(part)
            self._length += len(part)
            more = message.get("more_body", False)

    def replayed(self, receive: Receive) -> Receive:
        """Return a ``receive`` that begins with the whole body, then tells of the client's end."""
        messages: list[Message] = [{"type": "http.request", "body": b"".join(self._parts)}]

        async def receive_again() -> Message:
            return messages.pop() if messages else await receive()

        return receive_again
