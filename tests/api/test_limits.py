"""What one client may cost: sizes to the byte, deadlines, and caps on how much happens at once."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from select import select
from typing import Any

import numpy as np
import pytest

from logitstore.api.guard.limits import Limits
from logitstore.api.served.decoding import WARM_GATHERS
from logitstore.format.wire import MAX_INDICES, PROBLEM_TYPE, pack_indices
from tests.support.service import BINARY, ROWS

JSON = {"content-type": "application/json"}
HEAD = b"GET /v1/stores HTTP/1.1\r\nhost: localhost\r\n"
QUICK = Limits(
    header_seconds=1.0,
    body_seconds=1.0,
    stall_seconds=1.0,
    in_flight=3,
    connections=20,
    rows_bytes=40 << 20,  # of which one address has the half
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: Any, tiny_store: Any) -> Path:
    """4 MB of codes a shard, so that answers fill a socket's buffers."""
    path: Path = tiny_store(
        tmp_path_factory.mktemp("limits") / "c10.zarr",
        samples=8192,
        classes=2000,
        rows_per_shard=4096,
    )
    return path


@pytest.fixture(scope="module")
def server(store: Path, serve: Callable[..., Any]) -> Any:
    """The sizes that users get; shorter deadlines and lower caps."""
    return serve(store, limits=QUICK)


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=15)


def until_closed(connection: socket.socket) -> tuple[bytes, float]:
    """All that the server still sends, and after how many seconds it hung up."""
    began, answer = time.monotonic(), b""
    try:
        while part := connection.recv(65536):
            answer += part
    except ConnectionResetError:
        pass
    return answer, time.monotonic() - began


def test_a_body_has_at_most_a_mebibyte(server: Any) -> None:
    """JSON may be padded with spaces, so that only its size differs."""
    for size, status in ((1 << 20, 200), ((1 << 20) + 1, 413)):
        body = b'{"indices":[1]}'.rjust(size)
        answer = server.get(ROWS, JSON, "POST", body)
        assert (size, answer[0]) == (size, status)


def test_a_body_of_undeclared_length_is_counted(server: Any) -> None:
    for size, status in ((1 << 20, b"200"), ((1 << 20) + 1, b"413")):
        body = b'{"indices":[1]}'.rjust(size)
        with connect(server.port) as connection:
            connection.sendall(
                f"POST {ROWS} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
                f"transfer-encoding: chunked\r\nconnection: close\r\n\r\n{size:x}\r\n".encode()
            )
            connection.sendall(body + b"\r\n0\r\n\r\n")
            assert until_closed(connection)[0].split(b" ")[1] == status


def test_a_request_has_at_most_4096_indices(server: Any) -> None:
    for count, status in ((MAX_INDICES, 200), (MAX_INDICES + 1, 422)):
        indices = np.arange(count) % 8192
        text = json.dumps({"indices": indices.tolist()}).encode()
        assert server.get(ROWS, BINARY, "POST", pack_indices(indices))[0] == status
        assert server.get(ROWS, JSON, "POST", text)[0] == status


def test_headers_have_at_most_8_kib(server: Any) -> None:
    """Names, values, the target and 4 bytes a line (colon, space, CR, LF) count."""
    fixed = len("/v1/stores") + len("host") + len("localhost") + 4 + len("x-pad") + 4
    for size, status in ((8192, b"200"), (8193, b"431")):
        with connect(server.port) as connection:
            pad = b"x-pad: " + b"a" * (size - fixed) + b"\r\n"
            connection.sendall(HEAD + pad + b"\r\n")
            assert connection.recv(65536).split(b" ")[1] == status


def test_headers_that_never_end_are_cut_at_8_kib(server: Any) -> None:
    with connect(server.port) as connection:
        connection.sendall(HEAD + b"x-pad: ")
        answer = b""
        try:
            for _ in range(200):
                connection.sendall(b"a" * 1000)
                time.sleep(0.001)
        except OSError:
            pass
        answer = until_closed(connection)[0]
        assert answer[:12] in (b"HTTP/1.1 431", b"")  # a reset may overtake the answer


def test_encoded_bodies_are_refused(server: Any) -> None:
    for encoding, status in (("gzip", 415), ("identity", 200), ("zstd", 415)):
        headers = {**BINARY, "content-encoding": encoding}
        assert server.get(ROWS, headers, "POST", pack_indices(np.array([1])))[0] == status


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x16\x03\x01\x02\x00",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"\0" * 64,
        b"GET / HTTP/1.1\r\nx\r\n\r\n",
    ],
)
def test_what_is_not_http_gets_a_problem_and_is_cut(server: Any, garbage: bytes) -> None:
    with connect(server.port) as connection:
        connection.sendall(garbage)
        answer = until_closed(connection)[0]
    assert answer.startswith(b"HTTP/1.1 400")
    assert PROBLEM_TYPE.encode() in answer


@pytest.mark.parametrize(
    ("beginning", "more"),
    [(HEAD, b"x"), (b"", b""), (b"\r\n", b"\r\n"), (b"GET /", b"x")],
    ids=["trickled headers", "silence", "empty lines", "trickled target"],
)
def test_a_client_slow_with_its_headers_is_cut(server: Any, beginning: bytes, more: bytes) -> None:
    with connect(server.port) as connection:
        began = time.monotonic()
        connection.sendall(beginning)
        stop = threading.Event()

        def trickle() -> None:
            while not stop.wait(0.1):
                try:
                    connection.sendall(more)
                except OSError:
                    return

        thread = threading.Thread(target=trickle)
        thread.start()
        answer, _ = until_closed(connection)
        stop.set()
        thread.join()
        assert 0.9 < time.monotonic() - began < 12
        assert answer[:12] in (b"HTTP/1.1 408", b"")


def test_a_client_slow_with_its_body_is_cut(server: Any) -> None:
    head = f"POST {ROWS} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/octet-stream\r\n"
    for first in (b"", HEAD + b"\r\n"):
        with connect(server.port) as connection:
            connection.sendall(first)
            while first and not connection.recv(65536).endswith(b"]"):
                pass
            connection.sendall(head.encode() + b"content-length: 8\r\n\r\n\1")
            answer, seconds = until_closed(connection)
            assert answer.startswith(b"HTTP/1.1 408")
            assert 0.9 < seconds < 12


def test_the_deadline_counts_anew_for_each_request_of_a_connection(server: Any) -> None:
    with connect(server.port) as connection:
        for _ in range(3):
            connection.sendall(HEAD)
            time.sleep(0.3)
            connection.sendall(b"\r\n")
            answer = b""
            while not answer.endswith(b"]"):  # head and body may come in two packets
                answer += connection.recv(65536)
            assert answer.startswith(b"HTTP/1.1 200")
            time.sleep(0.4)
        connection.sendall(b"GET /v1")
        assert until_closed(connection)[1] < 12


def greedy(port: int) -> socket.socket:
    """A client that asks for megabytes and reads none; its buffer holds but 16 KiB of them."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 << 10)
    connection.connect(("127.0.0.1", port))
    connection.settimeout(15)
    path = ROWS.replace("rows", "objects/snapshots/teacher/codes/c/0/0/0")
    connection.sendall(f"GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n".encode())
    return connection


def test_a_client_that_stops_reading_is_cut(server: Any) -> None:
    with greedy(server.port) as connection:
        time.sleep(2.5)
        answer, _ = until_closed(connection)
        length = int(answer.split(b"content-length: ")[1].split(b"\r")[0])
        assert len(answer) < length


def test_a_slow_reader_that_goes_on_gets_everything(server: Any) -> None:
    with greedy(server.port) as connection:
        answer = b""
        began = time.monotonic()
        while time.monotonic() - began < 1.8 * QUICK.stall_seconds:
            answer += connection.recv(4096)
            time.sleep(0.02)
        length = int(answer.split(b"content-length: ")[1].split(b"\r")[0])
        start = answer.index(b"\r\n\r\n") + 4
        while len(answer) - start < length:
            part = connection.recv(1 << 20)
            assert part, "cut although it went on reading"
            answer += part


def test_too_many_requests_at_once_are_sent_away_but_probes_are_not(server: Any) -> None:
    with ExitStack() as stack:
        for _ in range(QUICK.in_flight):
            stack.enter_context(greedy(server.port))
        time.sleep(0.3)
        status, headers, body = server.get("/v1/stores")
        assert (status, headers["retry-after"]) == (503, "1")
        assert json.loads(body)["type"] == "urn:logitstore:busy"
        assert server.get("/livez")[0] == server.get("/readyz")[0] == 200
    time.sleep(0.3)
    assert server.get("/v1/stores")[0] == 200


def test_rows_that_are_answered_at_once_are_never_too_many(server: Any) -> None:
    """They are answered even where nothing else is, unless the copy was paged out."""
    few = pack_indices(np.arange(4))

    def got_through() -> bool:
        for _ in range(WARM_GATHERS + 4):
            assert server.get(ROWS, BINARY, "POST", few)[0] == 200
        time.sleep(1.1)
        assert server.get(ROWS, BINARY, "POST", few)[0] == 200  # looks at the disk, for a second
        with ExitStack() as stack:
            for _ in range(QUICK.in_flight):
                stack.enter_context(greedy(server.port))
            time.sleep(0.3)
            status: int = server.get(ROWS, BINARY, "POST", few)[0]
        time.sleep(0.3)
        return status == 200

    assert any(got_through() for _ in range(5))


def test_rows_that_nobody_reads_do_not_pile_up(server: Any) -> None:
    """16 MiB each: more than a socket's buffers take; the rest is the server's memory."""
    most, few = pack_indices(np.arange(4096)), pack_indices(np.arange(4))
    assert server.get(ROWS, BINARY, "POST", most)[0] == 200
    with greedy_for_rows(server.port) as connection:
        time.sleep(0.3)
        status, headers, body = server.get(ROWS, BINARY, "POST", most)
        assert (status, headers["retry-after"]) == (503, "1")
        assert json.loads(body)["type"] == "urn:logitstore:busy"
        assert server.get(ROWS, BINARY, "POST", few)[0] == 200
        time.sleep(2.5)
        assert until_closed(connection)[0].startswith(b"HTTP/1.1 200")
        assert server.get(ROWS, BINARY, "POST", most)[0] == 200, "what was cut no longer counts"


def greedy_for_rows(port: int) -> socket.socket:
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 << 10)
    connection.connect(("127.0.0.1", port))
    connection.settimeout(15)
    indices = pack_indices(np.arange(4096))
    head = f"POST {ROWS} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/octet-stream\r\n"
    connection.sendall(f"{head}content-length: {len(indices)}\r\n\r\n".encode() + indices)
    return connection


def test_of_too_many_connections_those_that_wait_longest_are_closed(server: Any) -> None:
    time.sleep(0.3)  # those of the tests before are gone
    with ExitStack() as stack:
        first = [stack.enter_context(connect(server.port)) for _ in range(QUICK.connections // 2)]
        time.sleep(0.1)
        later = [stack.enter_context(connect(server.port)) for _ in range(QUICK.connections // 2)]
        assert server.get("/livez")[0] == server.get("/v1/stores")[0] == 200
        closed = select(first, [], [], 0.5)[0]
        assert closed
        assert all(connection.recv(1) == b"" for connection in closed)
        assert not select(later, [], [], 0)[0]
    time.sleep(0.3)
    assert server.get("/v1/stores")[0] == 200
