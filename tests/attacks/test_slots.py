"""B10: slow clients, and clients that only connect, keep nobody else out."""

from __future__ import annotations

import socket
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from tests.attacks.running import TOKEN, Served, allow_files, served, token_file

BIG = "/v1/stores/big/snapshots/teacher"
OBJECT = f"{BIG}/objects/snapshots/teacher/codes/c/0/0/0"
ELSEWHERE = "127.0.0.2"


def get(path: str, *headers: str) -> bytes:
    fields = "".join(f"{header}\r\n" for header in ("host: localhost", *headers))
    return f"GET {path} HTTP/1.1\r\n{fields}\r\n".encode()


def rows(*headers: str) -> bytes:
    """Ask for 16 MiB of rows."""
    indices = np.arange(4096, dtype="<u4").tobytes()
    fields = ("content-type: application/octet-stream", f"content-length: {len(indices)}")
    return get(f"{BIG}/rows", *fields, *headers).replace(b"GET", b"POST", 1) + indices


def slow_readers(stack: ExitStack, server: Served, request: bytes, count: int) -> None:
    """Ask and read nothing; the buffers hold a few kilobytes."""
    for _ in range(count):
        connection = stack.enter_context(server.connect(buffer=16 << 10))
        connection.sendall(request)
    time.sleep(0.5)


def probes(server: Served) -> None:
    assert server.ask("/livez")[0] == server.ask("/readyz")[0] == 200


def test_slow_bodies_hold_no_slots(open_server: Served) -> None:
    with ExitStack() as stack:
        for _ in range(200):
            connection = stack.enter_context(open_server.connect())
            connection.sendall(
                b"POST /v1/stores/c10/snapshots/teacher/rows HTTP/1.1\r\nhost: localhost\r\n"
                b"content-type: application/json\r\ncontent-length: 1000\r\n\r\n{"
            )
        time.sleep(0.5)
        assert open_server.ask("/v1/stores")[0] == 200
        probes(open_server)


def test_slow_readers_of_objects_keep_no_other_address_out(large_server: Served) -> None:
    with ExitStack() as stack:
        slow_readers(stack, large_server, get(OBJECT), 150)
        probes(large_server)
        assert large_server.ask("/v1/stores", address=ELSEWHERE)[0] == 200


def test_slow_readers_of_rows_keep_no_other_address_out(large_server: Served) -> None:
    many = np.arange(4096, dtype="<u4").tobytes()
    binary = {"content-type": "application/octet-stream"}
    while large_server.ask(f"{BIG}/rows", binary, many)[0] != 200:
        time.sleep(0.2)
    with ExitStack() as stack:
        slow_readers(stack, large_server, rows(), 12)
        probes(large_server)
        assert large_server.ask(f"{BIG}/rows", binary, many, address=ELSEWHERE)[0] == 200


def test_a_token_at_many_addresses_keeps_no_other_token_out(large: Path, tmp_path: Path) -> None:
    other = "another-token-of-some-length"
    tokens = token_file(tmp_path / "tokens", f"{TOKEN}\n{other}")
    with (
        served(large, "--token-file", tokens, cache=tmp_path / "cache") as server,
        ExitStack() as stack,
    ):
        request = get(OBJECT, f"authorization: Bearer {TOKEN}")
        for number in range(2, 9):
            for _ in range(20):
                connection = stack.enter_context(
                    server.connect(f"127.0.0.{number}", buffer=16 << 10)
                )
                connection.sendall(request)
        time.sleep(1)
        probes(server)
        assert server.ask("/v1/stores", {"authorization": f"Bearer {other}"})[0] == 200


@pytest.mark.parametrize("trusted", [True, False])
def test_behind_a_trusted_proxy_addresses_are_the_forwarded_ones(
    large: Path, tmp_path: Path, trusted: bool
) -> None:
    options = ("--trusted-proxy", "127.0.0.0/8") if trusted else ()
    with served(large, *options, cache=tmp_path / "cache") as server, ExitStack() as stack:
        # The client wrote the first address, the proxy the second.
        slow_readers(stack, server, get(OBJECT, "x-forwarded-for: 192.0.2.9, 192.0.2.1"), 100)
        for address, status in (("192.0.2.1", 503), ("192.0.2.9", 200 if trusted else 503)):
            forwarded = {"x-forwarded-for": f"junk, {address}"}
            assert server.ask("/v1/stores", forwarded)[0] == status
        probes(server)


def test_idle_connections_keep_nobody_out(open_server: Served) -> None:
    allow_files(4096)
    with ExitStack() as stack:
        for _ in range(1100):
            stack.enter_context(open_server.connect())
        for address in ("127.0.0.1", ELSEWHERE):
            assert open_server.ask("/livez", address=address)[0] == 200
            assert open_server.ask("/v1/stores", address=address)[0] == 200


def test_a_client_with_few_connections_keeps_them(open_server: Served) -> None:
    allow_files(4096)
    with ExitStack() as stack:
        kept = stack.enter_context(open_server.connect(ELSEWHERE))
        for _ in range(1100):
            stack.enter_context(open_server.connect())
        kept.sendall(get("/v1/stores"))
        assert kept.recv(12) == b"HTTP/1.1 200"


def test_an_aborted_download_is_not_read_to_its_end(large_server: Served) -> None:
    def read() -> int:
        counts = Path(f"/proc/{large_server.process.pid}/io").read_text()
        return int(counts.split("rchar: ")[1].split()[0])

    size = len(large_server.ask(OBJECT)[2])
    assert size > 16 << 20
    before = read()
    for _ in range(4):
        with large_server.connect(buffer=16 << 10) as connection:
            connection.sendall(get(OBJECT))
            connection.recv(1000)
            linger = (1).to_bytes(4, "little") + bytes(4)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)  # a reset
    time.sleep(0.5)
    assert read() - before < 2 * size
