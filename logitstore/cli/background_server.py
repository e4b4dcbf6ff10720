"""Run a server in a process of its own, for as long as a block of code needs it.

The demo, the tests and the benchmarks start their servers with it.  It knows a command and the URL
at which the server answers, and nothing of what is served.
"""

from __future__ import annotations

import http.client
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from random import SystemRandom
from typing import IO
from urllib.parse import urlsplit

from logitstore.errors import Unreachable

_STARTS_WITHIN_SECONDS = 60
_ENDS_WITHIN_SECONDS = 20


class BackgroundServer:
    """Start a server and wait until it answers; at the end of the block it gets SIGTERM.

    ``url`` is where it answers and ``process`` what runs.  ``log`` gets what it writes.
    Raises Unreachable if it ends, or does not answer ``ready`` with 200 within a minute.

    >>> with BackgroundServer(["logitstore", "serve", "c10.zarr", "--port", "8001"],
    ...                       "http://127.0.0.1:8001") as server:       # doctest: +SKIP
    ...     store = open_store(f"{server.url}/c10")
    """

    def __init__(
        self,
        command: Sequence[str],
        url: str,
        *,
        ready: str = "/readyz",
        log: IO[bytes] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.url = url
        output = subprocess.DEVNULL if log is None else log
        self.process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
        try:
            self._wait_for(ready)
        except BaseException:
            self.kill()
            raise

    def __enter__(self) -> BackgroundServer:
        return self

    def __exit__(self, *error: object) -> None:
        self.shutdown()

    def shutdown(self) -> int:
        """Stop it as a service manager does, by SIGTERM, and return its exit status."""
        self.process.terminate()
        try:
            return self.process.wait(_ENDS_WITHIN_SECONDS)
        except subprocess.TimeoutExpired:
            return self.kill()

    def kill(self) -> int:
        """End it at once, by SIGKILL, and return its exit status."""
        self.process.kill()
        return self.process.wait()

    def _wait_for(self, ready: str) -> None:
        deadline = time.monotonic() + _STARTS_WITHIN_SECONDS
        while self.process.poll() is None and time.monotonic() < deadline:
            if self._answers(ready):
                return
            time.sleep(0.02)
        status = self.process.poll()
        reason = "it does not answer" if status is None else f"it ended with {status}"
        raise Unreachable(f"{self.url}: the server did not start: {reason}")

    def _answers(self, path: str) -> bool:
        address = urlsplit(self.url)
        connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=5)
        try:
            connection.request("GET", path)
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()


def free_port() -> int:
    """Return a loopback port at which nobody listens.

    It is below the ports that systems give to outgoing connections: one of those could be taken
    by any client before the server binds it.
    """
    while True:
        port = SystemRandom().randrange(20_000, 32_000)
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
