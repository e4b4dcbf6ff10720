"""The token goes to the server whose address the user typed; other addresses are not asked.

Only commands and HTTP are used here.
"""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from threading import Thread
from urllib.request import urlopen

import pytest
from typer.testing import CliRunner, Result

from logitstore.cli import app
from tests.support.ports import free_port

TRAIN, TEST = "digits?train=true&samples=0:120", "digits?train=false&samples=0:60"
TOKEN = "a-secret-that-is-long-enough-0123456789"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


class Elsewhere:
    """A server of somebody else: keeps the heads of all requests, and answers 404."""

    def __init__(self) -> None:
        self.heads = list[str]()
        self.connections = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = Thread(target=self._answer)
        self._thread.start()

    def _answer(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            with client, suppress(OSError):
                client.settimeout(5)
                head = b""
                while b"\r\n\r\n" not in head and (more := client.recv(4096)):
                    head += more
                self.heads.append(head.decode("latin-1").lower())
                client.sendall(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n")

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()


@pytest.fixture
def elsewhere() -> Iterator[Elsewhere]:
    server = Elsewhere()
    yield server
    server.close()


@pytest.fixture(autouse=True)
def _token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGITSTORE_TOKEN", TOKEN)


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a teacher's run, its store, and a student's run from that store."""
    folder = tmp_path_factory.mktemp("honest")
    common = ("--epochs", 1, "--device", "cpu", "--student", "mlp?hidden=8")
    for arguments in (
        ("train", "--data", TRAIN, "--test", TEST, *common, "--out", folder / "teacher"),
        (
            *("build", "--teacher", folder / "teacher/model.safetensors", "--data", TRAIN),
            *("--snapshot", "t", "--out", folder / "stores/s.zarr", "--device", "cpu"),
        ),
        (
            *("train", "--data", TRAIN, "--test", TEST, *common, "--method", "kd"),
            *("--store", folder / "stores/s.zarr", "--snapshot", "t", "--out", folder / "run"),
        ),
    ):
        result = run(*arguments)
        assert result.exit_code == 0, result.output
    return folder


@pytest.fixture
def got(honest: Path, tmp_path: Path) -> Path:
    shutil.copytree(honest, tmp_path / "got")
    return tmp_path / "got"


def rewrite(folder: Path, key: str, value: str) -> None:
    file = folder / "run/config.toml"
    lines = [line for line in file.read_text().splitlines() if not line.startswith(f"{key} =")]
    file.write_text("\n".join([*lines, f'{key} = "{value}"']) + "\n")


def test_a_report_asks_no_server_that_only_the_run_s_file_names(
    got: Path, elsewhere: Elsewhere
) -> None:
    rewrite(got, "store", f"{elsewhere.url}/x")
    result = run("report", got / "run", "--out", got / "r.html")
    assert result.exit_code == 0, result.output
    assert elsewhere.connections == 0
    page = (got / "r.html").read_text()
    assert "a server that was not asked" in page
    assert "--store" in page


@pytest.mark.parametrize("snapshot", ["mean(t,{url}/x::t)", "{url}/x::t", "t,{url}/x::t@2"])
def test_nor_does_it_ask_one_that_is_hidden_in_the_name_of_a_snapshot(
    snapshot: str, got: Path, elsewhere: Elsewhere
) -> None:
    rewrite(got, "store", str(got / "stores/s.zarr"))
    rewrite(got, "epochs", "")  # a schedule needs two
    file = got / "run/config.toml"
    file.write_text(file.read_text().replace('epochs = ""', "epochs = 2"))
    rewrite(got, "snapshot", snapshot.format(url=elsewhere.url))
    for store in ((), ("--store", got / "stores/s.zarr")):
        result = run("report", got / "run", "--out", got / "r.html", *store)
        assert result.exit_code == 0, result.output
        assert elsewhere.connections == 0


def test_a_trusted_file_s_server_is_asked_without_the_token(
    got: Path, elsewhere: Elsewhere
) -> None:
    rewrite(got, "store", f"{elsewhere.url}/x")
    result = run("report", got / "run", "--out", got / "r.html", "--trust-run")
    assert result.exit_code == 0, result.output
    assert elsewhere.heads
    assert TOKEN not in "".join(elsewhere.heads)
    assert "authorization" not in "".join(elsewhere.heads)


def test_a_server_that_the_user_types_gets_the_token(got: Path, elsewhere: Elsewhere) -> None:
    rewrite(got, "store", f"{elsewhere.url}/x")
    run("report", got / "run", "--out", got / "r.html", "--store", f"{elsewhere.url}/x")
    assert f"authorization: bearer {TOKEN}" in elsewhere.heads[0]


@pytest.fixture(scope="module")
def typed(honest: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server that demands the token."""
    file = tmp_path_factory.mktemp("server") / "tokens"
    file.touch(0o600)
    file.write_text(f"{TOKEN}\n")
    port = free_port()
    server = subprocess.Popen(
        [
            *(sys.executable, "-m", "logitstore", "serve", str(honest / "stores")),
            *("--port", str(port), "--token-file", str(file)),
        ],
        env={**os.environ, "LOGITSTORE_CACHE": str(file.parent / "cache")},
    )
    try:
        for _ in range(200):
            with suppress(OSError), urlopen(f"http://127.0.0.1:{port}/livez", timeout=5):
                break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()


def test_a_second_server_of_an_ensemble_does_not_get_the_first_one_s_token(
    typed: str, got: Path, elsewhere: Elsewhere
) -> None:
    result = run(
        *("train", "--data", TRAIN, "--student", "mlp?hidden=8", "--method", "kd"),
        *("--store", f"{typed}/s", "--snapshot", f"mean(t,{elsewhere.url}/x::t)"),
        *("--epochs", 1, "--out", got / "new", "--device", "cpu"),
    )
    assert result.exit_code == 2, result.output
    assert elsewhere.heads, result.output
    assert "authorization" not in "".join(elsewhere.heads)


def test_a_sweep_asks_no_server_that_a_run_in_its_folder_names(
    got: Path, elsewhere: Elsewhere
) -> None:
    """A student without a teacher sees the views of the snapshot with which its run began."""
    planted = got / "sweep/ce-seed0"
    shutil.copytree(got / "run", planted)
    config = (planted / "config.toml").read_text()
    config = config.replace('snapshot = "t"', f'snapshot = "{elsewhere.url}/x::t"')
    (planted / "config.toml").write_text(config)
    result = run(
        *("sweep", "--data", TRAIN, "--val", TEST, "--student", "mlp?hidden=8", "--epochs", 1),
        *("--store", got / "stores/s.zarr", "--seeds", "0", "--out", got / "sweep"),
        *("--device", "cpu"),
    )
    assert result.exit_code == 2, result.output
    assert elsewhere.connections == 0
