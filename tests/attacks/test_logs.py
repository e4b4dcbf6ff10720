"""C15: the log of the command names every error by its id, and nothing steers a terminal."""

from __future__ import annotations

import json
import re
import socket
from pathlib import Path
from threading import Thread

from tests.attacks.running import (
    TOKEN,
    Served,
    logitstore,
    make_store,
    served,
    until_closed,
)

LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (INFO|WARNING|ERROR) ")
AUTH = {"authorization": f"Bearer {TOKEN}"}


def test_every_error_is_logged_with_time_level_and_the_id_of_its_answer(
    token_server: Served,
) -> None:
    ids = []
    for path, headers, status in (
        ("/v1/stores", {}, 401),
        ("/v1/stores", {"authorization": "Bearer wrong-wrong-wrong"}, 401),
        ("/v1/stores/none", AUTH, 404),
        ("/v1/nothing", AUTH, 404),
        ("/v1/stores?x", AUTH, 422),
    ):
        answer = token_server.ask(path, headers)
        assert answer[0] == status
        ids.append(answer[1]["x-request-id"])
    for garbage in (b"\0\r\n\r\n", b"GET / HTTP/1.1\r\nx: " + b"a" * 9000):
        with token_server.connect() as connection:
            connection.sendall(garbage)
            ids.append(re.findall(rb"x-request-id: (\w+)", until_closed(connection))[0].decode())
    lines = token_server.log().splitlines()
    for request_id in ids:
        (line,) = [line for line in lines if request_id in line]
        assert LINE.match(line)
        assert " answered 4" in line
        assert "127.0.0.1" in line
    assert all(LINE.match(line) for line in lines), lines
    assert TOKEN not in token_server.log()


def test_requests_are_logged_if_that_is_wanted(small: Path, tmp_path: Path) -> None:
    rows = "/v1/stores/c10/snapshots/teacher/rows"
    binary = {"content-type": "application/octet-stream"}
    ids = []
    with served(small, "--access-log", cache=tmp_path / "cache") as server:
        for path, headers, body in (("/v1/stores", {}, None), *[(rows, binary, bytes(4))] * 40):
            answer = server.ask(path, headers, body)
            assert answer[0] == 200
            ids.append((answer[1]["x-request-id"], path))
        log = server.log()
    for request_id, path in ids:
        (line,) = [line for line in log.splitlines() if request_id in line]
        assert path in line
        assert ": 200, " in line


def test_the_urls_of_all_stores_are_said_once_the_port_is_bound(
    small: Path, tmp_path: Path
) -> None:
    root = tmp_path / "stores"
    root.mkdir()
    for name in ("a.zarr", "b"):
        make_store(root / name)
    with served(root, cache=tmp_path / "cache") as server:
        for name in ("a", "b"):
            assert f"http://127.0.0.1:{server.port}/{name}\n" in server.log()
        taken = logitstore("serve", root, "--port", server.port)
        assert taken.returncode == 2
        assert "http://" not in taken.stderr
        assert "cannot listen" in taken.stderr


def test_paths_cannot_steer_a_terminal_or_begin_a_line(open_server: Served) -> None:
    for path in (
        "/%1b[2Jx",
        "/a%0aERROR%20forged",
        "/v1/stores/%c2%9b31m",
        "/v1/stores/x%e2%80%aey",
    ):
        assert open_server.ask(f"/{path}")[0] == 404
    log = open_server.log()
    assert log.count("answered 404") == 4
    assert all(LINE.match(line) for line in log.splitlines())
    assert all(char.isprintable() for line in log.split("\n") for char in line)


def test_names_in_a_store_cannot_steer_a_terminal(tmp_path: Path) -> None:
    """A snapshot remembers the name of the file that it was made of."""
    store = make_store(tmp_path / "c10.zarr", name="e\x1b[2J\nforged \x9b31m\u202e")
    done = logitstore("inspect", store)
    assert done.returncode == 0, done.stderr
    assert "e\\x1b[2J\\nforged \\x9b31m\\u202e" in done.stdout
    assert all(line.isprintable() for line in done.stdout.split("\n"))


def test_a_name_in_an_error_cannot_steer_a_terminal(tmp_path: Path) -> None:
    for command in ("ls", "inspect", "verify"):
        done = logitstore(command, tmp_path / "a\x9b31m\nerror: forged")
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1
        assert done.stderr.strip().isprintable()


def test_a_server_cannot_steer_a_clients_terminal() -> None:
    document = json.dumps(
        {
            "type": "urn:logitstore:bad-request",
            "title": "x",
            "status": 422,
            "detail": "e\x1b[2J\nforged",
            "request_id": "1",
        }
    ).encode()
    kind = b"content-type: application/problem+json\r\n"
    head = b"HTTP/1.1 422 No\r\n" + kind + b"content-length: %d\r\n\r\n"
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(head % len(document) + document)

        Thread(target=answer, daemon=True).start()
        done = logitstore("inspect", f"http://127.0.0.1:{listener.getsockname()[1]}/c10")
    assert done.returncode == 2
    assert "\\x1b[2J\\nforged" in done.stderr
