"""Find ports for servers that tests start; this file imports nothing of ours.

The tests under ``attacks`` use it, and can be run against an earlier version.
"""

from __future__ import annotations

import socket
from contextlib import suppress
from random import SystemRandom


def free_port() -> int:
    """Return a loopback port at which nobody listens.

    It is below the ports that systems give to outgoing connections: a client of another test could
    take one of those before the server binds it.
    """
    while True:
        port = SystemRandom().randrange(20_000, 32_000)
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
