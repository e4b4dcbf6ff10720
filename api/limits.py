"""What one client may cost: the numbers, and the layer that holds requests to them.

Deadlines and header sizes are below ASGI, in ``protocol``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.auth import OPEN_PATHS
from api.problems import Refusal

_HOST = re.compile(rb"^(\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._-]{1,253})(:[0-9]{1,5})?$")
_LOOPBACK = re.compile(rb"^(localhost|127(\.[0-9]{1,3}){3}|\[::1\])(:[0-9]{1,5})?$", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bytes, seconds and counts; ``in_flight`` and ``connections`` are per worker process."""

    body_bytes: int = 1 << 20
    header_bytes: int = 8 << 10
    header_seconds: float = 10.0
    body_seconds: float = 30.0
    stall_seconds: float = 30.0
    idle_seconds: int = 75
    in_flight: int = 64
    connections: int = 1024


class Guard:
    """Refuses requests that are too large, encoded, misaddressed or too many at once.

    ``loopback_only`` refuses host names that are not this machine's: without tokens nothing else
    keeps a web page from reading the server through DNS rebinding.
    """

    def __init__(self, app: ASGIApp, limits: Limits, *, loopback_only: bool) -> None:
        self.app, self.limits = app, limits
        self.hosts = _LOOPBACK if loopback_only else _HOST
        self.active = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS:
            await self.app(scope, receive, send)
            return
        self._check_headers(scope)
        if self.active >= self.limits.in_flight:
            raise Refusal(503, "busy", "too many requests at once; try again", {"retry-after": "1"})
        self.active += 1
        try:
            await self.app(scope, self._counted(receive), send)
        finally:
            self.active -= 1

    def _check_headers(self, scope: Scope) -> None:
        hosts = [value for name, value in scope["headers"] if name == b"host"]
        if len(hosts) != 1 or not self.hosts.match(hosts[0]):
            raise Refusal(
                400,
                "host",
                "the Host header is not a name of this server; one without tokens answers to "
                "localhost only: start it with a token file to use another name",
            )
        headers = dict(scope["headers"])
        if headers.get(b"content-encoding", b"identity").lower() != b"identity":
            raise Refusal(415, "content-encoding", "request bodies are taken as they are only")
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self.limits.body_bytes:
            raise self._too_large()

    def _counted(self, receive: Receive) -> Receive:
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.limits.body_bytes:
                raise self._too_large()
            return message

        return counted

    def _too_large(self) -> Refusal:
        return Refusal(413, "too-large", f"a body has at most {self.limits.body_bytes} bytes")


async def read_body(receive: Receive) -> bytes:
    """The whole request body; ClientDisconnect if the client left before its end."""
    parts: list[bytes] = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return parts[0] if len(parts) == 1 else b"".join(parts)
