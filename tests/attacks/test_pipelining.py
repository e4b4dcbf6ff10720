"""B8: many requests at once on a connection wait their turn, and what is whole is answered."""

from __future__ import annotations

import socket
import time
from contextlib import ExitStack

import pytest

from tests.attacks.running import Served, statuses, until_closed

GET = b"GET /v1/stores HTTP/1.1\r\nhost: localhost\r\n\r\n"


def test_pipelined_requests_cost_no_memory(open_server: Served) -> None:
    """Forty connections with 13,000 requests each, of which nobody reads the answers."""
    before = open_server.rss()
    with ExitStack() as stack:
        for _ in range(40):
            connection = stack.enter_context(open_server.connect())
            connection.setblocking(False)
            connection.send(b"GET / HTTP/1.1\r\n\r\n" * 13_000)
        time.sleep(1)
        assert open_server.ask("/livez")[0] == 200
        assert open_server.rss() - before < 100 << 20


def test_all_pipelined_requests_are_answered_in_order(open_server: Served) -> None:
    with open_server.connect() as connection:
        connection.sendall((GET + GET.replace(b"stores", b"nothing")) * 200)
        connection.sendall(GET.replace(b"\r\nhost", b"\r\nconnection: close\r\nhost"))
        assert statuses(until_closed(connection)) == [200, 404] * 200 + [200]


@pytest.mark.parametrize("count", [1, 5, 40])
def test_what_comes_before_garbage_is_answered(open_server: Served, count: int) -> None:
    with open_server.connect() as connection:
        connection.sendall(GET * count + b"\0garbage\r\n\r\n")
        assert statuses(until_closed(connection)) == [200] * count + [400]
    assert "Traceback" not in open_server.log()


@pytest.mark.parametrize(
    "rest",
    [b"", b"GET /v1", b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9\r\n\r\n1"],
)
def test_a_client_that_closes_its_half_gets_its_answers(open_server: Served, rest: bytes) -> None:
    for count in (1, 5, 40):
        with open_server.connect() as connection:
            connection.sendall(GET * count + rest)
            connection.shutdown(socket.SHUT_WR)
            assert statuses(until_closed(connection)) == [200] * count


def test_a_client_that_leaves_with_requests_pending_is_no_error(open_server: Served) -> None:
    for rest in (
        b"",
        b"\0garbage\r\n\r\n",
        b"POST /v1/stores HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9\r\n\r\n1",
    ):
        for _ in range(20):
            with open_server.connect() as connection:
                connection.sendall(GET * 12 + rest)
    time.sleep(0.5)
    assert open_server.ask("/v1/stores")[0] == 200
    assert "Traceback" not in open_server.log()
    assert "answered 500" not in open_server.log()
