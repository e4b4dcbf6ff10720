"""Run the commands as processes and talk to the server over sockets.

Nothing here or in the tests of this folder imports more than the names that people may use, so that
every test can be run against an older version, too.
"""

from __future__ import annotations

import http.client
import json
import os
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from tests.support.ports import free_port

TOKEN = "correct-horse-battery-staple"
Answer = tuple[int, dict[str, str], bytes]


def logitstore(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    command = [sys.executable, "-m", "logitstore", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=120, env={**os.environ, **environment}
    )


def make_store(path: Path, samples: int = 100, classes: int = 10, name: str = "logits") -> Path:
    """Make a store of random logits, out of a file of this name, with one snapshot, ``teacher``."""
    random = np.random.default_rng(0)
    logits = random.standard_normal((samples, classes), np.float32)
    beside = path.parent / f"{path.name}-files"
    beside.mkdir(parents=True)
    np.save(beside / f"{name}.npy", logits)
    np.save(beside / "labels.npy", np.arange(samples, dtype=np.int32) % classes)
    done = logitstore(
        *("import", beside / f"{name}.npy", "--labels", beside / "labels.npy", "--out", path),
        *("--snapshot", "teacher", "--encoding", "float32"),
    )
    assert done.returncode == 0, done.stderr
    return path


def token_file(path: Path, text: str = TOKEN) -> Path:
    path.touch(0o600)
    path.write_text(f"{text}\n")
    return path


FAULTS = """
import errno, os, sys
fault = os.environ["FAULT"]  # a file that holds an error's name and the name of the file it hits
def hook(event, arguments):
    if event != "open" or not isinstance(arguments[0], str) or not os.path.exists(fault):
        return
    if arguments[0] == fault:
        return
    number, name = open(fault).read().split()
    if os.path.basename(arguments[0]) == name:
        raise OSError(getattr(errno, number), os.strerror(getattr(errno, number)), arguments[0])
sys.addaudithook(hook)
"""


class Faults:
    """Makes opening a file fail in the processes that get this environment."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        (folder / "sitecustomize.py").write_text(FAULTS)
        self._file = folder / "fault"
        path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
        self.environment = {"PYTHONPATH": path, "FAULT": str(self._file)}

    def begin(self, error: str, name: str) -> None:
        self._file.write_text(f"{error} {name}")

    def end(self) -> None:
        self._file.unlink()


class Served:
    """``logitstore serve`` as its own process, and what it wrote so far."""

    def __init__(self, root: Path, *options: object, cache: Path, **environment: str) -> None:
        self.port = free_port()
        self._log = cache.with_suffix(".log")
        command = [sys.executable, "-m", "logitstore", "serve", root, "--port", self.port, *options]
        with open(self._log, "wb") as log:
            self.process = subprocess.Popen(
                [*map(str, command), "--cache", str(cache)],
                stderr=log,
                stdout=log,
                env={**os.environ, **environment},
            )

    def until_ready(self) -> None:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                if self.ask("/readyz")[0] == 200:
                    return
            except (OSError, http.client.HTTPException):  # a probe may even meet itself
                time.sleep(0.05)
        raise AssertionError(f"the server does not start: {self.log()}")

    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def connect(self, address: str = "127.0.0.1", buffer: int = 0) -> socket.socket:
        connection = socket.socket()
        if buffer:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        connection.settimeout(20)
        connection.bind((address, 0))
        connection.connect(("127.0.0.1", self.port))
        return connection

    def ask(
        self,
        path: str,
        headers: dict[str, str] | None = None,
        body: bytes | None = None,
        address: str = "127.0.0.1",
    ) -> Answer:
        """Send one request on a new connection, from this address."""
        connection = http.client.HTTPConnection(
            "127.0.0.1", self.port, timeout=20, source_address=(address, 0)
        )
        try:
            method = "GET" if body is None else "POST"
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            names = {name.lower(): value for name, value in answer.getheaders()}
            return answer.status, names, answer.read()
        finally:
            connection.close()

    def rss(self) -> int:
        """Bytes of memory that the server has had at most."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) << 10

    def processor_seconds(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def served(root: Path, *options: object, cache: Path, **environment: str) -> Iterator[Served]:
    """Start the server, wait until it is ready, and kill it at the end."""
    server = Served(root, *options, cache=cache, **environment)
    try:
        server.until_ready()
        yield server
    finally:
        server.process.kill()
        server.process.wait()


def until_closed(connection: socket.socket) -> bytes:
    """Return all that still comes."""
    received = b""
    try:
        while part := connection.recv(1 << 16):
            received += part
    except ConnectionResetError:
        pass
    return received


def statuses(received: bytes) -> list[int]:
    """Return the status of each answer in what a connection received."""
    return [int(part[:3]) for part in received.split(b"HTTP/1.1 ")[1:]]


def problem(answer: Answer) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(answer[2])
    return document


def allow_files(count: int) -> None:
    """Let this process have so many open files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, count)), hard))
