from __future__ import annotations

import asyncio
import signal
import threading
from typing import Any

NOTICE_SECONDS = 1.0
"""How long /readyz says 503 before new connections are refused."""


class Drain:
    """SIGTERM in two steps: say so at /readyz, then, a moment later, let uvicorn stop."""

    def __init__(self) -> None:
        self.begun = False

    def watch(self) -> None:
        """Put this in front of the server's own handler of SIGTERM, if it can have one here."""
        if threading.current_thread() is not threading.main_thread():
            return
        loop, stop = asyncio.get_running_loop(), signal.getsignal(signal.SIGTERM)

        def begin(number: int, frame: Any) -> None:
            self.begun = True
            if callable(stop):
                loop.call_soon_threadsafe(loop.call_later, NOTICE_SECONDS, stop, number, None)

        signal.signal(signal.SIGTERM, begin)
