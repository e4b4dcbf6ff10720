"""A4: what follows a body says nothing, and has no more room than a head."""

from __future__ import annotations

import pytest

from tests.attacks.running import TOKEN, Served, until_closed

CHUNKED = b"host: localhost\r\ntransfer-encoding: chunked\r\n"


@pytest.mark.parametrize(
    "trailer", [b"a:b\r\n", b"a", b"a: " + b"b" * 500], ids=["many", "name", "value"]
)
def test_trailers_that_never_end_cost_no_memory(token_server: Served, trailer: bytes) -> None:
    before = token_server.rss()
    with token_server.connect() as connection:
        connection.sendall(b"POST /livez HTTP/1.1\r\n" + CHUNKED + b"\r\n0\r\n")
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            connection.sendall(trailer * (30_000_000 // len(trailer)))
    assert token_server.rss() - before < 64 << 20
    assert token_server.ask("/livez")[0] == 200


def test_chunk_extensions_that_never_end_are_cut(token_server: Served) -> None:
    with token_server.connect() as connection:
        connection.sendall(b"POST /livez HTTP/1.1\r\n" + CHUNKED + b"\r\n1;a=")
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            connection.sendall(b"b" * 30_000_000)


def test_a_token_in_a_trailer_opens_nothing(token_server: Served) -> None:
    request = b"GET /v1/stores HTTP/1.1\r\nconnection: close\r\n" + CHUNKED
    trailer = f"authorization: Bearer {TOKEN}\r\n".encode()
    for head, end, status in (
        (b"", trailer, b"401"),
        (trailer, trailer, b"200"),
        (trailer, b"authorization: Bearer wrong\r\n", b"200"),
        (trailer, b"host: evil.example\r\ncontent-encoding: gzip\r\n", b"200"),
    ):
        with token_server.connect() as connection:
            connection.sendall(request + head + b"\r\n0\r\n" + end + b"\r\n")
            answer = until_closed(connection)
        assert answer.split(b" ")[1] == status, (head, end)


def test_a_body_in_tiny_chunks_is_still_read(open_server: Served) -> None:
    rows = b"/v1/stores/c10/snapshots/teacher/rows"
    body = b'{"indices":[%b]}' % b",".join([b"1"] * 2000)
    with open_server.connect() as connection:
        connection.sendall(
            b"POST " + rows + b" HTTP/1.1\r\ncontent-type: application/json\r\n"
            b"connection: close\r\n" + CHUNKED + b"\r\n"
        )
        connection.sendall(b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n")
        assert until_closed(connection).startswith(b"HTTP/1.1 200")
