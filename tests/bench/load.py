"""``python -m tests.bench.load URL …``: a client that repeats the same requests.

One thread keeps several connections busy, each with one request at a time.  It reads bodies in
large pieces into one buffer, which makes it about twice as fast as wrk; wrk's pieces of 8 KiB would
slow nginx down.  It prints JSON: the number of answers, answers per second, the client's own share
of a processor, and the seconds.  Any answer but 200 with a Content-Length is an error.
"""

from __future__ import annotations

import argparse
import json
import socket
import time
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from selectors import EVENT_READ, DefaultSelector
from urllib.parse import urlsplit

_BUFFER = bytearray(1 << 20)
_HEAD_BYTES = 2048


class Connection:
    """One connection; ``answers`` counts the complete ones."""

    def __init__(self, host: str, port: int, requests: Iterator[bytes]) -> None:
        self.socket = socket.create_connection((host, port))
        self.answers = 0
        self._requests, self._head, self._missing = requests, b"", 0

    def ask(self) -> None:
        self.socket.sendall(next(self._requests))

    def read(self) -> None:
        """Read what has arrived, and send the next request when the answer is complete."""
        if self._missing:
            got = self.socket.recv_into(_BUFFER, min(self._missing, len(_BUFFER)))
            self._missing -= got
        else:
            data = self.socket.recv(_HEAD_BYTES)
            got = len(data)
            self._head += data
            head, end, body = self._head.partition(b"\r\n\r\n")
            if end:
                self._missing, self._head = _length(head) - len(body), b""
        if not got:
            raise ConnectionError("the server closed the connection")
        if not self._missing and not self._head:
            self.answers += 1
            self.ask()


def load(
    url: str, bodies: list[bytes], kind: str, connections: int, seconds: float
) -> dict[str, float]:
    """Return what ``main`` prints; the clock stops at the last complete answer."""
    parts = urlsplit(url)
    host, port = str(parts.hostname), parts.port or 80
    requests = cycle(_requests(parts.netloc, f"{parts.path}?{parts.query}", bodies, kind))
    opened = [Connection(host, port, requests) for _ in range(connections)]
    with DefaultSelector() as selector:
        for connection in opened:
            selector.register(connection.socket, EVENT_READ, connection)
        begun, used = time.perf_counter(), time.process_time()
        answers, last = 0, begun
        for connection in opened:
            connection.ask()
        while (now := time.perf_counter()) < begun + seconds or not answers:
            for key, _ in selector.select():
                key.data.read()
            count = sum(connection.answers for connection in opened)
            if count > answers:
                answers, last = count, now
        spent, wall = time.process_time() - used, time.perf_counter() - begun
    for connection in opened:
        connection.socket.close()
    rate, cpu = answers / (last - begun), spent / wall
    return {"answers": answers, "rate": rate, "cpu": cpu, "seconds": wall}


def _requests(host: str, target: str, bodies: list[bytes], kind: str) -> list[bytes]:
    """Return the bytes of a GET request, or of one POST request per body."""
    if not bodies:
        return [f"GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()]
    return [
        f"POST {target} HTTP/1.1\r\nHost: {host}\r\nContent-Type: {kind}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n".encode()
        + body
        for body in bodies
    ]


def _length(head: bytes) -> int:
    status, *fields = head.decode("latin-1").split("\r\n")
    if status.split()[1] != "200":
        raise ConnectionError(f"the server answered {status}")
    named = dict(field.lower().split(": ", 1) for field in fields)
    return int(named["content-length"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--connections", type=int, default=4)
    parser.add_argument("--bodies", type=Path, help="requests to POST, one after another")
    parser.add_argument("--length", type=int, help="bytes of each of them")
    parser.add_argument("--type", default="application/octet-stream", help="their Content-Type")
    options = parser.parse_args()
    whole = options.bodies.read_bytes() if options.bodies else b""
    step = options.length or 1
    bodies = [whole[start : start + step] for start in range(0, len(whole), step)]
    print(json.dumps(load(options.url, bodies, options.type, options.connections, options.seconds)))


if __name__ == "__main__":
    main()
