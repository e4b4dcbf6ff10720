"""A server of a process of its own: it answers when the block begins, and is gone at its end."""

from __future__ import annotations

import socket
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from logitstore.cli.background_server import BackgroundServer, free_port
from logitstore.errors import Unreachable


def test_it_serves_a_store_inside_the_block_and_ends_well_after_it(
    tiny_store: Callable[..., Path], tmp_path: Path
) -> None:
    port = free_port()
    store = tiny_store(tmp_path / "c10.zarr")
    command = [sys.executable, "-m", "logitstore", "serve", str(store), "--port", str(port)]
    with (
        BackgroundServer(command, f"http://127.0.0.1:{port}") as server,
        urllib.request.urlopen(f"{server.url}/v1/stores") as answer,
    ):
        assert b'"c10"' in answer.read()
    assert server.process.returncode == 0
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=1)


def test_a_server_that_ends_at_once_is_unreachable_and_its_words_are_kept(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "raise SystemExit('no such store')"]
    with (tmp_path / "log").open("wb") as log, pytest.raises(Unreachable, match="it ended with 1"):
        BackgroundServer(command, f"http://127.0.0.1:{free_port()}", log=log)
    assert "no such store" in (tmp_path / "log").read_text()
