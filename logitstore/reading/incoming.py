"""Bound what a server sends: an answer that drips, or does not end, is given up.

urllib3's timeouts are for one wait each, which a server that sends a byte now and then never meets.
Here a head has a time to be whole, and a body a slowest rate; what is sent beside them (interim
answers, trailers, the frames of chunks) counts, too.
"""

from __future__ import annotations

import io
import time
from http.client import HTTPException, HTTPResponse
from math import inf
from typing import Any

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection

SLOWEST_BYTES = 16 << 10
"""Bytes a second that a body has at least, once the time of its head has passed again."""

_HEAD_BYTES = 256 << 10
"""Bytes of the longest head, with the interim answers before it."""


class Endless(HTTPException):
    """An answer goes on after all that it can hold."""


class Incoming(io.RawIOBase):
    """Reads one answer from a socket: ``seconds`` for its head, then a body of a slowest rate.

    TimeoutError if it takes longer, Endless if it is longer.
    """

    def __init__(self, sock: Any, seconds: float) -> None:
        self._sock, self._raw = sock, sock.makefile("rb", buffering=0)
        self._seconds = seconds
        self._began, self._received = time.monotonic(), 0
        self._most, self._rate = _HEAD_BYTES, inf

    def begin_body(self, most_bytes: int) -> None:
        """Expect a body of ``most_bytes`` and the frames around it."""
        self._began, self._received = time.monotonic(), 0
        self._most, self._rate = 2 * most_bytes + _HEAD_BYTES, SLOWEST_BYTES

    def makefile(self, *_: Any) -> io.BufferedReader:
        """Return the file that ``HTTPResponse`` reads."""
        return io.BufferedReader(self)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Read what there is; a wait ends with the time that is left."""
        left = self._began + self._seconds + self._received / self._rate - time.monotonic()
        if left <= 0:
            raise TimeoutError("the answer takes too long")
        self._sock.settimeout(min(left, self._seconds))
        count: int = self._raw.readinto(buffer)
        self._received += count
        if self._received > self._most:
            raise Endless("the answer does not end")
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Bounded:
    """Makes a connection read its answers through ``Incoming``; its timeout is that of a head."""

    timeout: Any
    incoming: Incoming

    def response_class(self, sock: Any, **options: Any) -> HTTPResponse:
        """Return the response that a connection is about to read; it needs ``makefile`` alone."""
        self.incoming = Incoming(sock, self.timeout)
        source: Any = self.incoming
        return HTTPResponse(source, **options)


class _HTTPConnection(_Bounded, HTTPConnection):  # type: ignore[misc]  # a method for the class
    """A plain connection."""


class _HTTPSConnection(_Bounded, HTTPSConnection):  # type: ignore[misc]  # as above
    """An encrypted connection."""


class _HTTPPool(urllib3.HTTPConnectionPool):
    ConnectionCls = _HTTPConnection


class _HTTPSPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _HTTPSConnection


def bounded_pools(maxsize: int) -> urllib3.PoolManager:
    """Return connection pools whose answers are bounded."""
    pools = urllib3.PoolManager(maxsize=maxsize)
    pools.pool_classes_by_scheme = {"http": _HTTPPool, "https": _HTTPSPool}
    return pools


def begin_body(response: urllib3.BaseHTTPResponse, most_bytes: int) -> None:
    """Bound the body of an answer whose head was read."""
    connection = response.connection
    if isinstance(connection, _Bounded):
        connection.incoming.begin_body(most_bytes)
