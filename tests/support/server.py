"""Start the real server for tests, as a process of its own on a free port."""

from __future__ import annotations

import http.client
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from logitstore.cli.background_server import BackgroundServer, free_port
from logitstore.errors import Unreachable

ROOT = Path(__file__).parents[2]
SERVER = """
import sys
from pathlib import Path
from logitstore.api.server.process import serve
from logitstore.api.guard.limits import Limits
from logitstore.api.settings import Settings
serve(Settings({settings}))
print("torch" in sys.modules, flush=True)
"""


class Server:
    """``logitstore serve`` as a process of its own on a free loopback port.

    ``url``, ``port`` and ``process``; ``get(path)`` is one plain request; ``kill`` is kill -9;
    ``restart`` starts it again on the same port (with another root if given); ``stop`` is SIGTERM
    and returns the exit status.
    """

    def __init__(self, root: Path, **settings: Any) -> None:
        self.root, self.settings = root, settings
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (``close`` closes it)
        self._cache = tempfile.TemporaryDirectory()
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.restart()

    def restart(self, root: Path | None = None) -> None:
        self.root = root or self.root
        given = {"root": self.root, "port": self.port, **self.settings}
        arguments = ", ".join(
            f"{name}={f'Path({str(value)!r})' if isinstance(value, Path) else repr(value)}"
            for name, value in given.items()
        )
        environment = {
            "LOGITSTORE_CACHE": self._cache.name,
            **os.environ,
            "PYTHONPATH": str(ROOT),
        }
        command = [sys.executable, "-W", "error", "-c", SERVER.format(settings=arguments)]
        try:
            self._server = BackgroundServer(
                command, self.url, log=self._log, environment=environment
            )
        except Unreachable as error:
            raise AssertionError(f"{error}: {self.log()}") from error
        self.process = self._server.process

    def get(
        self,
        path: str,
        headers: dict[str, str] | None = None,
        method: str = "GET",
        body: Any = None,
    ) -> tuple[int, dict[str, str], bytes]:
        """(status, headers with lower-case names, body) of one request on a new connection.

        ``path`` is sent as it stands: nothing is quoted or normalised.
        """
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.putrequest(method, path, skip_accept_encoding=True)
            for name, value in (headers or {}).items():
                connection.putheader(name, value)
            if body is not None:
                connection.putheader("content-length", str(len(body)))
            connection.endheaders(body)
            answer = connection.getresponse()
            names = {name.lower(): value for name, value in answer.getheaders()}
            return answer.status, names, answer.read()
        finally:
            connection.close()

    def kill(self) -> None:
        self._server.kill()

    def stop(self) -> int:
        return self._server.shutdown()

    def close(self) -> None:
        self._log.close()
        self._cache.cleanup()

    def log(self) -> str:
        """All that the server and its predecessors on this port wrote."""
        self._log.seek(0)
        return self._log.read().decode()


@pytest.fixture(scope="session")
def serve() -> Iterator[Callable[..., Server]]:
    """``serve(root, **settings) -> Server``: the real server, answering; killed at the end."""
    started: list[Server] = []

    def start(root: Path, **settings: Any) -> Server:
        server = Server(root, **settings)
        started.append(server)
        return server

    yield start
    for server in started:
        if server.process.poll() is None:
            server.kill()
        server.close()
