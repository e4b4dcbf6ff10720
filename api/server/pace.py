"""Measures how fast a client reads, and tells if that is fast enough."""

from __future__ import annotations

import asyncio
import fcntl
import sys
import termios
from collections.abc import Sequence
from typing import Any


class CountingTransport:
    """A transport that also counts the bytes that were written to it."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self.written = 0

    def write(self, data: bytes | memoryview) -> None:
        self.written += len(data)
        self._transport.write(data)

    def writelines(self, parts: Sequence[bytes | memoryview]) -> None:
        self.written += sum(map(len, parts))
        self._transport.writelines(parts)

    def unread(self) -> int:
        """Return the bytes that the peer has not acknowledged."""
        waiting = self._transport.get_write_buffer_size()
        return waiting + _queued_in_kernel(self._transport) if waiting else 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class Pace:
    """The bytes that a client read since the window of ``seconds`` began.

    The window begins anew whenever the client has read all that there is.
    """

    def __init__(self, transport: CountingTransport, seconds: float, rate: int) -> None:
        self._transport, self._seconds, self._rate = transport, seconds, rate
        self._began, self._read = 0.0, 0

    def too_slow(self, now: float) -> bool:
        """Say whether a whole window is over in which the client read less than it has to."""
        unread = self._transport.unread()
        read = self._transport.written - unread
        slow = unread > 0 and read - self._read < self._rate * self._seconds
        if not unread or now - self._began > self._seconds:
            over, self._began, self._read = unread > 0, now, read
            return over and slow
        return False


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
