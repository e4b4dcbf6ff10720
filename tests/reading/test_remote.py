"""A served store is the same noun as a local one; its server may fail in every way but silently."""

from __future__ import annotations

import multiprocessing
import pickle
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from logitstore import LogitStore, open_store
from logitstore.errors import (
    Damaged,
    Denied,
    InputError,
    MismatchError,
    PatienceExhausted,
    UnknownName,
    Unreachable,
)
from logitstore.reading.remote import list_stores, split_url
from tests.support.impostor import Impostor

TOKEN = "correct-horse-battery-staple"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, tiny_store: Any) -> Path:
    root: Path = tmp_path_factory.mktemp("remote")
    tiny_store(root / "c10.zarr", ("teacher", "late"), views=2, keys=True, row_digests=True)
    tiny_store(root / "wide", samples=5000, classes=4, rows_per_shard=1024, row_digests=True)
    return root


@pytest.fixture(scope="module")
def server(root: Path, serve: Callable[..., Any]) -> Any:
    return serve(root)


@pytest.fixture(params=["local", "remote"])
def store(request: pytest.FixtureRequest, root: Path, server: Any) -> LogitStore:
    return open_store(root / "c10.zarr" if request.param == "local" else f"{server.url}/c10")


def test_a_store_is_the_same_wherever_it_is(store: LogitStore, root: Path) -> None:
    truth = open_store(root / "c10.zarr")
    assert store.meta == truth.meta
    assert len(store) == 100
    np.testing.assert_array_equal(store.labels, np.arange(100) % 10)
    assert store.keys is not None
    assert list(store.keys[:2]) == ["img/00000.png", "img/00001.png"]
    assert list(store.snapshots) == ["late", "teacher"]
    assert len(store.snapshots) == 2
    for name, snapshot in store.snapshots.items():
        expected = truth.snapshots[name]
        assert (snapshot.root, snapshot.meta) == (expected.root, expected.meta)
        assert snapshot.stored_bytes() == expected.stored_bytes()
        assert snapshot.grid == expected.grid
        for indices in ([5], [99, 0, 99, 31, 32], range(100), [], np.array([3], np.uint8)):
            for view in (0, 1):
                rows, same = snapshot.rows(indices, view), expected.rows(indices, view)
                assert rows.arrays.keys() == same.arrays.keys()
                for array in same.arrays:
                    assert rows.arrays[array].dtype == same.arrays[array].dtype
                    np.testing.assert_array_equal(rows.arrays[array], same.arrays[array])
                logits = snapshot.logits(indices, view)
                assert (logits.dtype, logits.shape) == (np.float32, (len(indices), 10))


def test_a_wrong_request_is_the_same_error_wherever_the_store_is(store: LogitStore) -> None:
    snapshot = store.snapshots["teacher"]
    with pytest.raises(InputError, match=r"sample 100 is outside 0\.\.99"):
        snapshot.rows([0, 100])
    with pytest.raises(InputError, match="sample -1"):
        snapshot.rows([-1])
    with pytest.raises(InputError, match=r"view 2 is outside 0\.\.1"):
        snapshot.rows([0], view=2)
    for bad in ([[1]], [1.5], ["1"], [True]):
        with pytest.raises(InputError, match="indices"):
            snapshot.rows(bad)
    with pytest.raises(UnknownName, match="did you mean 'teacher'"):
        store.snapshots["teachr"]
    for name in ("../late", "", "a/b", "late\n"):
        with pytest.raises(UnknownName):
            store.snapshots[name]
    assert pickle.loads(pickle.dumps(store)).snapshots["late"].root == store.snapshots["late"].root


def test_more_rows_than_one_request_holds_come_in_order(server: Any, root: Path) -> None:
    remote, local = open_store(f"{server.url}/wide"), open_store(root / "wide")
    indices = np.random.default_rng(0).integers(0, 5000, 9001)
    np.testing.assert_array_equal(
        remote.snapshots["teacher"].logits(indices), local.snapshots["teacher"].logits(indices)
    )


def test_an_address_without_a_store_lists_them(server: Any) -> None:
    with pytest.raises(InputError, match=r"serves 2 stores \(c10, wide\)"):
        open_store(server.url)
    with pytest.raises(UnknownName, match="did you mean 'c10'"):
        open_store(f"{server.url}/c1O")
    assert [entry.name for entry in list_stores(server.url)] == ["c10", "wide"]
    assert [entry.samples for entry in list_stores(f"{server.url}/wide")] == [5000]
    with pytest.raises(UnknownName, match="known: c10, wide"):
        list_stores(f"{server.url}/nothing")


def test_an_address_is_taken_apart_or_refused() -> None:
    assert split_url("http://h:8000/c10/") == ("http://h:8000", "c10")
    assert split_url("https://h/behind/a/proxy/c10") == ("https://h/behind/a/proxy", "c10")
    assert split_url("http://[::1]:8000") == ("http://[::1]:8000", None)
    for bad in ("http://", "http://h:x/c", "http://h:99999/c", "http://h/c?x=1", "http://h/c#x"):
        with pytest.raises(InputError, match="no address"):
            split_url(bad)
    with pytest.raises(InputError, match="LOGITSTORE_TOKEN") as caught:
        split_url(f"http://user:{TOKEN}@h/c")
    assert TOKEN not in str(caught.value)


def test_a_wrong_token_is_refused_at_once_and_a_right_one_comes_from_the_environment(
    root: Path, serve: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = tmp_path / "tokens"
    tokens.touch(0o600)
    tokens.write_text(TOKEN)
    server = serve(root / "wide", token_file=tokens)
    monkeypatch.delenv("LOGITSTORE_TOKEN", raising=False)
    for token in (None, "wrong-token-that-is-long"):
        began = time.monotonic()
        with pytest.raises(Denied, match=r"LOGITSTORE_TOKEN.*--token-file") as caught:
            open_store(server.url, token)
        assert time.monotonic() - began < 2
        assert "wrong-token" not in str(caught.value)
    monkeypatch.setenv("LOGITSTORE_TOKEN", TOKEN)
    store = open_store(server.url + "/")  # one store only: it needs no name
    assert store.url == f"{server.url}/wide"
    assert len(store.snapshots["teacher"].rows([1])) == 1
    assert TOKEN not in repr(store) + repr(store.snapshots["teacher"]) + repr(vars(store).keys())
    with pytest.raises(InputError, match="token") as caught_input:
        open_store(server.url, "two words\r\nx: y")
    assert "words" not in str(caught_input.value)


def test_a_server_killed_and_restarted_in_an_epoch_is_only_a_pause(root: Path, serve: Any) -> None:
    server = serve(root)
    remote = open_store(f"{server.url}/c10", patience=30).snapshots["teacher"]
    local = open_store(root / "c10.zarr").snapshots["teacher"]
    batches = np.random.default_rng(0).integers(0, 100, (240, 16))
    received = []

    def outage() -> None:
        time.sleep(0.2)
        server.kill()
        server.restart()

    thread = threading.Thread(target=outage)
    thread.start()
    for batch in batches:
        received.append(remote.logits(batch))
        time.sleep(0.003)  # so that the outage falls into the middle
    thread.join()
    received += [remote.logits(batch) for batch in batches[:5]]
    expected = [local.logits(batch) for batch in [*batches, *batches[:5]]]
    np.testing.assert_array_equal(received, expected)


def test_another_build_under_the_same_name_is_an_error(
    serve: Any, tiny_store: Any, tmp_path: Path
) -> None:
    first = tiny_store(tmp_path / "one/c10.zarr", row_digests=True)
    second = tiny_store(tmp_path / "two/c10.zarr", seed=9, row_digests=True)
    server = serve(first)
    remote = open_store(server.url).snapshots["teacher"]
    remote.rows([1, 2])
    server.kill()
    server.restart(second)
    for touch in (lambda: remote.rows([1, 2]), lambda: remote.object("labels/c/0")):
        with pytest.raises(MismatchError, match="another build") as caught:
            touch()
        assert remote.root in str(caught.value)
        assert open_store(second).snapshots["teacher"].root in str(caught.value)


def test_a_server_that_never_was_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("logitstore.reading.connection.FIRST_CONTACT_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    for host, reason in ((f"127.0.0.1:{port}", "connection refused"), ("no.invalid:1", "unknown")):
        with pytest.raises(Unreachable, match=reason) as caught:
            open_store(f"http://{host}/c10")
        assert host in str(caught.value)
        assert "logitstore serve" in str(caught.value)
        assert not isinstance(caught.value, PatienceExhausted)


class Proxy(Impostor):
    """A TCP proxy in front of a server that spoils answers: ``spoil(number, answer) -> bytes``.

    It reads one request and its whole answer per connection, passes on what ``spoil`` makes of it
    and hangs up; ``number`` counts the answers.
    """

    def __init__(self, port: int, spoil: Callable[[int, bytes], bytes]) -> None:
        self.target, self.spoil, self.served = port, spoil, 0
        super().__init__()

    def answer(self, client: socket.socket) -> None:
        request = read_message(client)
        if not request:
            return
        answer = b""
        if self.target:
            with socket.create_connection(("127.0.0.1", self.target)) as server:
                server.sendall(request)
                answer = read_message(server)
        number, self.served = self.served, self.served + 1
        client.sendall(self.spoil(number, answer))


def read_message(connection: socket.socket) -> bytes:
    """One HTTP message with a Content-Length or no body."""
    data = b""
    while b"\r\n\r\n" not in data:
        part = connection.recv(65536)
        if not part:
            return b""
        data += part
    head = data.index(b"\r\n\r\n") + 4
    lower = data[:head].lower()
    length = (
        int(lower.split(b"content-length: ")[1].split(b"\r")[0])
        if b"content-length" in lower
        else 0
    )
    while len(data) < head + length:
        data += connection.recv(65536)
    return data


@pytest.fixture
def proxy(server: Any) -> Iterator[Callable[..., Proxy]]:
    started: list[Proxy] = []

    def start(spoil: Callable[[int, bytes], bytes], port: int | None = None) -> Proxy:
        started.append(Proxy(server.port if port is None else port, spoil))
        return started[-1]

    yield start
    for running in started:
        running.close()


def flip(answer: bytes) -> bytes:
    return answer[:-5] + bytes([answer[-5] ^ 4]) + answer[-4:]


BUSY = b"HTTP/1.1 503 Busy\r\nretry-after: 0\r\ncontent-length: 0\r\n\r\n"
FAULTS: dict[str, Callable[[bytes], bytes]] = {
    "a flipped bit": flip,
    "a cut body": lambda answer: answer[:-7],
    "a cut head": lambda answer: answer[:20],
    "nothing": lambda answer: b"",
    "a busy gateway": lambda answer: BUSY,
    "a bad gateway": lambda answer: BUSY.replace(b"503", b"502"),
    "too many requests": lambda answer: BUSY.replace(b"503", b"429"),
    "no checksum": lambda answer: answer.replace(b"x-logitstore-crc32c", b"x-logitstore-crc32d"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_spoiled_answer_is_asked_for_again(proxy: Any, root: Path, fault: str) -> None:
    """Every second answer is spoiled, those that open the store included."""
    line = proxy(lambda number, answer: FAULTS[fault](answer) if number % 2 else answer)
    local = open_store(root / "c10.zarr").snapshots["teacher"]
    store = open_store(f"{line.url}/c10", patience=10)
    remote = store.snapshots["teacher"]
    for indices in ([1, 2, 3], [99], [50, 50]):
        np.testing.assert_array_equal(remote.logits(indices), local.logits(indices))
    np.testing.assert_array_equal(store.labels, np.arange(100) % 10)
    assert line.served > 10


def test_retry_after_is_honoured(proxy: Any) -> None:
    slow = BUSY.replace(b"after: 0", b"after: 1")
    line = proxy(lambda number, answer: slow if number == 1 else answer)
    store = open_store(f"{line.url}/c10")
    began = time.monotonic()
    assert len(store.snapshots) == 2
    assert 1.0 <= time.monotonic() - began < 2


def test_an_answer_that_is_always_damaged_is_damage_and_not_data(proxy: Any) -> None:
    spoiling: list[bool] = []
    line = proxy(lambda number, answer: flip(answer) if spoiling else answer)
    snapshot = open_store(f"{line.url}/c10", patience=600).snapshots["teacher"]
    snapshot.rows([1])  # which fetches the digests
    spoiling.append(True)
    with pytest.raises(Damaged, match="crc32c differs"):
        snapshot.rows([1])
    with pytest.raises(Damaged, match="sha256 differs"):
        snapshot.object("labels/c/0")


def test_a_server_that_stays_away_ends_patience_with_its_own_exit_code(proxy: Any) -> None:
    line = proxy(lambda number, answer: answer)
    remote = open_store(f"{line.url}/c10", patience=0.7).snapshots["teacher"]
    line.close()
    began = time.monotonic()
    with pytest.raises(PatienceExhausted, match="run the same command again") as caught:
        remote.rows([1])
    assert 0.6 < time.monotonic() - began < 3
    assert caught.value.exit_code == 3


STRANGERS = {
    "a web page": b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\n<html>",
    "another API": b'HTTP/1.1 200 OK\r\ncontent-length: 11\r\n\r\n{"name": 1}',
    "not found": b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n",
    "a redirect": b"HTTP/1.1 307 X\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n",
    "a failure": b"HTTP/1.1 500 X\r\ncontent-length: 0\r\n\r\n",
    "another problem": b"HTTP/1.1 404 X\r\ncontent-type: application/problem+json\r\n"
    b"content-length: 2\r\n\r\n{}",
}


@pytest.mark.parametrize("stranger", STRANGERS)
def test_what_is_no_logitstore_server_is_called_so(proxy: Any, stranger: str) -> None:
    line = proxy(lambda number, answer: STRANGERS[stranger], port=0)
    with pytest.raises(Unreachable, match="no logitstore server"):
        open_store(f"{line.url}/c10")
    assert line.served == 1, "it must be asked once only, and a redirect not followed"


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_worker_process_has_its_own_connections(server: Any, method: str) -> None:
    """Two processes that talked over one socket would read each other's answers."""
    snapshot = open_store(f"{server.url}/c10").snapshots["teacher"]
    expected = snapshot.logits([4, 2])
    with ProcessPoolExecutor(1, multiprocessing.get_context(method)) as workers:
        answers = [workers.submit(snapshot.logits, [4, 2]) for _ in range(5)]
        for _ in range(20):
            np.testing.assert_array_equal(snapshot.logits([4, 2]), expected)
        for answer in answers:
            np.testing.assert_array_equal(answer.result(30), expected)


def test_threads_may_share_a_snapshot(server: Any, root: Path) -> None:
    remote = open_store(f"{server.url}/c10").snapshots["teacher"]
    local = open_store(root / "c10.zarr").snapshots["teacher"]
    wrong: list[int] = []

    def ask(start: int) -> None:
        for sample in range(start, 100, 8):
            if (remote.logits([sample]) != local.logits([sample])).any():
                wrong.append(sample)

    threads = [threading.Thread(target=ask, args=(start,)) for start in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_the_global_random_state_is_left_alone(proxy: Any) -> None:
    """Waiting between tries is random, but a training run's generator must not notice."""
    import random

    line = proxy(lambda number, answer: BUSY if number % 2 else answer)
    random.seed(1)
    state = random.getstate()
    open_store(f"{line.url}/c10").snapshots["teacher"].rows([1])
    assert random.getstate() == state
