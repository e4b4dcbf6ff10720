"""SIGTERM in two steps: /readyz says so at once, and a moment later uvicorn stops.

A load balancer that asks /readyz so learns it before connections are refused.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from types import FrameType

NOTICE_SECONDS = 1.0
"""Seconds between the first 503 of /readyz and the first refused connection."""


class Drain:
    """Knows whether the server has been told to stop."""

    def __init__(self) -> None:
        self.begun = False

    def watch(self) -> None:
        """Handle SIGTERM before the server's own handler does, if this is the main thread."""
        if threading.current_thread() is not threading.main_thread():
            return
        loop, stop = asyncio.get_running_loop(), signal.getsignal(signal.SIGTERM)

        def begin(number: int, frame: FrameType | None) -> None:
            self.begun = True
            if callable(stop):
                loop.call_soon_threadsafe(loop.call_later, NOTICE_SECONDS, stop, number, None)

        signal.signal(signal.SIGTERM, begin)
