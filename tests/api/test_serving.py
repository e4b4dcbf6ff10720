"""Rows come from a mapped copy that workers share: asked back until it is there, never other bytes.

Copies are held up by holding the cache's own lock, as another process that makes one would.
"""

from __future__ import annotations

import fcntl
import http.client
import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from logitstore import open_store
from logitstore.api.guard.auth import Tokens
from logitstore.api.guard.clients import Addresses
from logitstore.api.guard.limits import BodyMemory, Limits
from logitstore.api.guard.problems import Refusal
from logitstore.api.routes.fast_rows import FastRows
from logitstore.api.routes.rows import RowsEndpoint
from logitstore.api.served.decoding import WARM_GATHERS, DecodeJob
from logitstore.api.served.registry import Registry
from logitstore.cache.cache import Cache
from logitstore.cache.folder import digest_of
from logitstore.errors import Damaged
from logitstore.format.wire import CRC_HEADER, ROOT_HEADER, crc32c, pack, pack_indices
from logitstore.reading.connection import Connection
from tests.support.impostor import Impostor
from tests.support.ports import free_port

ROWS = "/v1/stores/c10/snapshots/teacher/rows"
BINARY = {"content-type": "application/octet-stream"}
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
ONE = pack_indices(np.array([1]))
Asked = tuple[int, dict[str, str], bytes]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, tiny_store: Any) -> Path:
    root: Path = tmp_path_factory.mktemp("serving")
    tiny_store(root / "c10.zarr", ("teacher", "late"), views=2, row_digests=True)
    return root


@contextmanager
def making(cache: Path, root: Path) -> Iterator[None]:
    """Be the process that makes the copy of ``teacher``, and take long over it."""
    digest = digest_of(open_store(root / "c10.zarr").snapshots["teacher"].root)
    cache.mkdir(parents=True, exist_ok=True)
    with open(cache / f"{digest}.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write("somebody")
        file.flush()
        yield


def maps(pid: int) -> set[tuple[str, str]]:
    """(inode, path) of the store copies that a process has mapped."""
    lines = [line.split(maxsplit=5) for line in Path(f"/proc/{pid}/maps").read_text().splitlines()]
    return {(line[4], line[5]) for line in lines if len(line) == 6 and ".bin" in line[5]}


def test_a_request_waits_a_second_for_the_copy_and_is_then_asked_back(
    serve: Any, root: Path, tmp_path: Path
) -> None:
    server = serve(root, cache=tmp_path / "cache")
    with making(tmp_path / "cache", root), ThreadPoolExecutor(12) as clients:
        began = time.monotonic()
        asked = [clients.submit(server.get, ROWS, BINARY, "POST", ONE) for _ in range(12)]
        assert server.get("/livez")[0] == server.get("/v1/stores/c10")[0] == 200
        assert time.monotonic() - began < 0.9, "waiting requests must not keep others waiting"
        for answer in asked:
            status, headers, body = answer.result()
            problem = json.loads(body)
            assert (status, headers["retry-after"]) == (503, "1")
            assert problem["type"] == "urn:logitstore:materialising"
            assert "'teacher' is being decoded: by another worker" in problem["detail"]
        assert 0.9 < time.monotonic() - began < 10, "they wait together, not one after the other"
    assert server.get(ROWS, BINARY, "POST", ONE)[0] == 200
    assert "somebody" not in server.log()


def test_how_far_the_copy_is_is_told_in_percent_and_rows(root: Path) -> None:
    job = DecodeJob(open_store(root / "c10.zarr").snapshots["teacher"])
    job.start("decoding teacher", 200, "rows")
    job.advance(32)
    job.advance(54)
    assert "43 % (86 of 200 rows)" in job.status_text()


def test_a_student_rides_out_the_wait(serve: Any, root: Path, tmp_path: Path) -> None:
    server = serve(root, cache=tmp_path / "cache")
    local = open_store(root / "c10.zarr").snapshots["teacher"]
    remote = open_store(f"{server.url}/c10", patience=30).snapshots["teacher"]
    with ThreadPoolExecutor(1) as student:
        with making(tmp_path / "cache", root):
            rows = student.submit(remote.logits, [3, 99, 3], 1)
            time.sleep(2.2)
            assert not rows.done()
        np.testing.assert_array_equal(rows.result(20), local.logits([3, 99, 3], 1))


def test_two_workers_map_one_copy_that_one_of_them_made(
    serve: Any, root: Path, tmp_path: Path
) -> None:
    server = serve(root, workers=2, cache=tmp_path / "cache")
    deadline, mapped = time.monotonic() + 30, []
    while len(mapped) < 2:
        assert time.monotonic() < deadline, server.log()
        with ThreadPoolExecutor(8) as clients:
            asked = [clients.submit(server.get, ROWS, BINARY, "POST", ONE) for _ in range(16)]
        assert {answer.result()[0] for answer in asked} == {200}
        pid = server.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        mapped = [found for child in children if (found := maps(int(child)))]
    assert mapped[0] == mapped[1]
    assert {Path(path).name for _, path in mapped[0]} == {"codes.bin", "scalars.bin"}
    log = server.log()
    assert (log.count("teacher of c10: decoded in"), log.count("found decoded in")) == (1, 1)
    assert server.stop() == 0


def test_a_warm_server_is_ready_when_all_is_decoded(
    root: Path, tmp_path: Path, unused_port: int
) -> None:
    """Through the command line, whose flags these are; the newest snapshot comes first."""
    command = [sys.executable, "-m", "logitstore", "serve", str(root), "--port", str(unused_port)]
    with making(tmp_path / "cache", root):
        process = subprocess.Popen(
            [*command, "--warm", "--cache", str(tmp_path / "cache")], stderr=subprocess.DEVNULL
        )
        try:
            said = until(unused_port, lambda answer: b"1 of 2 snapshots" in answer[1])
            assert said == (503, said[1])
            assert json.loads(said[1])["status"] == "warming"
            assert [e.snapshot for e in Cache(tmp_path / "cache").entries()] == ["late"]
        except BaseException:
            process.kill()
            raise
    until(unused_port, lambda answer: answer[0] == 200)
    assert sorted(e.snapshot for e in Cache(tmp_path / "cache").entries()) == ["late", "teacher"]
    process.terminate()
    assert process.wait(20) == 0


def until(port: int, good: Callable[[tuple[int, bytes]], bool]) -> tuple[int, bytes]:
    """What /readyz says as soon as that is ``good``."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        try:
            connection.request("GET", "/readyz")
            answer = connection.getresponse()
            said = answer.status, answer.read()
            if good(said):
                return said
        except OSError:
            pass
        finally:
            connection.close()
        time.sleep(0.05)
    raise AssertionError("the server never said so")


@pytest.fixture
def unused_port() -> int:
    return free_port()


@pytest.mark.parametrize("trouble", ["too small", "no folder"])
def test_without_a_cache_rows_are_read_directly_and_that_is_said_once(
    serve: Any, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    (tmp_path / "file").touch()
    if trouble == "too small":
        monkeypatch.setenv("LOGITSTORE_CACHE_BYTES", "1000")
    server = serve(root, cache=tmp_path / ("file/cache" if trouble == "no folder" else "cache"))
    remote = open_store(f"{server.url}/c10").snapshots["teacher"]
    local = open_store(root / "c10.zarr").snapshots["teacher"]
    for indices in ([0, 99, 40], [7], range(100)):
        np.testing.assert_array_equal(remote.logits(indices, 1), local.logits(indices, 1))
    assert server.log().count("read directly") == 1
    assert maps(server.process.pid) == set()


def test_a_warm_server_with_a_small_cache_is_ready_too(
    serve: Any, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOGITSTORE_CACHE_BYTES", "6000")
    server = serve(root, cache=tmp_path / "cache", warm=True)
    assert [e.snapshot for e in Cache(tmp_path / "cache").entries()] == ["late"]
    assert "not decoded ahead: 1 snapshots" in server.log()


@pytest.mark.parametrize("idle", [True, False])
def test_a_copy_that_nobody_uses_makes_room_for_another(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, idle: bool
) -> None:
    if idle:
        monkeypatch.setattr("logitstore.api.served.registry.IDLE_SECONDS", 0.0)
    registry = Registry(root, Cache(tmp_path / "cache", 6000))  # one takes 5,600 bytes
    held = []
    for name in ("teacher", "late"):
        job = registry.job_of(registry.open("c10", name))
        job.ended.result(20)
        assert job.error is None
        held.append(job.copied)
        del job
    assert held == [True, idle]
    left = [entry.snapshot for entry in Cache(tmp_path / "cache").entries()]
    assert left == (["late"] if idle else ["teacher"])


def test_random_batches_of_many_threads_are_the_local_bytes(serve: Any, root: Path) -> None:
    server = serve(root)
    local = open_store(root / "c10.zarr").snapshots["teacher"]

    def client(seed: int) -> int:
        rng = np.random.default_rng(seed)
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
        for turn in range(40):
            indices, view = rng.integers(0, 100, rng.integers(1, 60)), int(rng.integers(2))
            if turn % 5 == 4:  # by the endpoint, not by FastRows
                text = json.dumps({"view": view, "indices": indices.tolist()})
                connection.request("POST", ROWS, text, {"content-type": "application/json"})
            else:
                connection.request("POST", f"{ROWS}?view={view}", pack_indices(indices), BINARY)
            answer = connection.getresponse()
            body = answer.read()
            assert (answer.status, answer.headers[ROOT_HEADER]) == (200, local.root)
            assert answer.headers[CRC_HEADER] == crc32c(body)
            assert body == pack(local.rows(indices, view))
        connection.close()
        return seed

    with ThreadPoolExecutor(8) as clients:
        assert list(clients.map(client, range(8))) == list(range(8))


def test_a_replaced_store_gets_a_new_copy_and_the_old_one_is_let_go(
    serve: Any, tiny_store: Any, tmp_path: Path
) -> None:
    store, cache = tiny_store(tmp_path / "c10.zarr"), Cache(tmp_path / "cache")
    server = serve(tmp_path, cache=cache.folder)
    first = server.get(ROWS, BINARY, "POST", ONE)
    old = open_store(store).snapshots["teacher"].root
    shutil.rmtree(store)
    new = open_store(tiny_store(store, seed=5)).snapshots["teacher"]
    time.sleep(1.1)
    second = server.get(ROWS, BINARY, "POST", ONE)
    assert (first[1][ROOT_HEADER], second[1][ROOT_HEADER]) == (old, new.root)
    assert second[2] == pack(new.rows([1]))
    assert {Path(path).parent.name for _, path in maps(server.process.pid)} == {digest_of(new.root)}
    removed, kept = cache.clear()
    assert ([e.root for e in removed], [e.root for e in kept]) == ([old], [new.root])


def test_a_repaired_store_is_served_again(
    tiny_store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tiny_store(tmp_path / "c10.zarr")
    shard = store / "snapshots/teacher/codes/c/0/1/0"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    registry = Registry(tmp_path, Cache(tmp_path / "cache"))
    opened = registry.open("c10", "teacher")
    job = registry.job_of(opened)
    job.ended.result(20)
    assert isinstance(job.error, Damaged)
    assert "codes/c/0/1/0 (view 0, samples 32..63)" in str(job.error)
    assert registry.job_of(opened) is job, "it is not tried again for each request"
    shard.write_bytes(whole)
    job.retry_after = 0.0  # ten seconds later
    again = registry.job_of(opened)
    again.ended.result(20)
    assert again.copied


class Whole:
    """FastRows and all behind it, in this process."""

    def __init__(self, root: Path, cache: Path, tokens: Tokens | None = None) -> None:
        self.registry = Registry(root, Cache(cache))
        self.threads = ThreadPoolExecutor(1)
        rows = RowsEndpoint(self.registry, self.threads, BodyMemory(1 << 30))
        local = tokens is None
        self.fast_rows = FastRows(rows, tokens, Limits(), Addresses(), loopback_only=local)
        self.opened = self.registry.open("c10", "teacher")
        self.seconds_ago = 0.0  # that the disk was looked at

    def ask(self, target: str = ROWS, body: bytes = ONE, **headers: str) -> Any:
        given = {"host": "localhost", **BINARY, "content-length": str(len(body)), **headers}
        fields = [(name.replace("_", "-").encode(), v.encode()) for name, v in given.items()]
        self.opened.checked = time.monotonic() - self.seconds_ago
        request = self.fast_rows.parse(target.encode(), fields)
        return (
            None if request is None else self.fast_rows.answer(request, fields, body, "127.0.0.1")
        )


def test_fast_rows_answer_requests_that_need_no_disk_and_are_in_order(
    root: Path, tmp_path: Path
) -> None:
    """Whatever else there is about a request, the endpoint has to say it."""
    whole = Whole(root, tmp_path / "cache")
    assert whole.ask() is None, "there is no copy yet"
    job = whole.registry.job_of(whole.opened)
    job.ended.result(20)
    out = whole.opened.snapshot.encoding.empty(1)
    assert whole.ask() is None, "it may not be in memory"
    for _ in range(WARM_GATHERS):
        job.gather(np.array([1]), 0, out)
    _, body = whole.ask()
    local = open_store(root / "c10.zarr").snapshots["teacher"]
    assert body.tobytes() == pack(local.rows([1]))
    assert whole.ask(f"{ROWS}?view=1")[1].tobytes() == pack(local.rows([1], 1))
    assert whole.ask(**{ROOT_HEADER: local.root}) is not None
    for refused in (
        whole.ask(ROWS.replace("c10", "c11")),
        whole.ask(ROWS.replace("teacher", "../teacher")),
        whole.ask(f"{ROWS}?view=2"),
        whole.ask(f"{ROWS}?view=0&view=0"),
        whole.ask(body=b""),
        whole.ask(body=b"\0\0\0"),
        whole.ask(body=pack_indices(np.array([100]))),
        whole.ask(body=pack_indices(np.zeros(4097, np.int64))),
        whole.ask(host="evil.example"),
        whole.ask(content_type="application/json"),
        whole.ask(content_encoding="gzip"),
        whole.ask(**{ROOT_HEADER: "0" * 64}),
    ):
        assert refused is None
    whole.seconds_ago = 1.1
    assert whole.ask() is None, "the store may be another one by now"
    whole.seconds_ago = 0.0
    assert whole.ask() is not None
    job.gathers = 0
    assert whole.ask() is None, "after a gather that needed the disk threads do it again"


def test_fast_rows_want_the_token_too(root: Path, tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.touch(0o600)
    file.write_text("correct-horse-battery-staple")
    whole = Whole(root, tmp_path / "cache", Tokens(file))
    job = whole.registry.job_of(whole.opened)
    job.ended.result(20)
    job.gathers = WARM_GATHERS
    assert whole.ask(authorization="Bearer correct-horse-battery-staple") is not None
    assert whole.ask() is whole.ask(authorization="Bearer correct-horse-battery") is None


def head(body: bytes, **headers: str) -> bytes:
    given = {"host": "localhost", **BINARY, "content-length": str(len(body)), **headers}
    fields = "".join(f"{name}: {value}\r\n" for name, value in given.items())
    return f"POST {ROWS} HTTP/1.1\r\n{fields}\r\n".encode()


def read_answer(connection: socket.socket) -> tuple[bytes, bytes]:
    """Head and body of the next answer; 100 Continue is none."""
    data = b""
    while b"\r\n\r\n" not in data.removeprefix(CONTINUE):
        data += connection.recv(65536) or pytest.fail(f"cut after {data!r}")
    start, _, body = data.removeprefix(CONTINUE).partition(b"\r\n\r\n")
    length = int(start.lower().split(b"content-length: ")[1].split(b"\r")[0])
    while len(body) < length:
        body += connection.recv(65536) or pytest.fail("cut")
    assert len(body) == length
    return start, body


def test_both_ways_say_the_same_however_a_request_arrives(serve: Any, root: Path) -> None:
    """In one piece, byte by byte, or several at once; right or wrong."""
    server = serve(root, limits=Limits(idle_seconds=1))
    for _ in range(WARM_GATHERS + 4):
        assert server.get(ROWS, BINARY, "POST", ONE)[0] == 200
    expected = pack(open_store(root / "c10.zarr").snapshots["teacher"].rows([1]))
    with socket.create_connection(("127.0.0.1", server.port), timeout=15) as connection:
        names = []
        for expect in ({}, {"expect": "100-continue"}):  # the endpoint answers the second
            connection.sendall(head(ONE, **expect) + ONE)
            start, body = read_answer(connection)
            assert start.startswith(b"HTTP/1.1 200 OK")
            assert body == expected
            names.append([line.split(b":")[0] for line in start.split(b"\r\n")])
        assert names[0] == names[1]
        for byte in head(ONE) + ONE:
            connection.sendall(bytes([byte]))
        assert read_answer(connection)[1] == expected
        connection.sendall(head(ONE) + ONE + head(b"abc") + b"abc" + (head(ONE) + ONE) * 3)
        received = b""
        while received.count(expected) < 4:
            received += connection.recv(65536) or pytest.fail(f"cut after {received!r}")
        assert received.count(b"not a whole number") == received.count(b"HTTP/1.1 422") == 1
        connection.sendall(head(ONE) + ONE)
        assert read_answer(connection)[1] == expected
        began = time.monotonic()
        assert connection.recv(1) == b"", "an idle connection is closed"
        assert 0.9 < time.monotonic() - began < 5


def test_bodies_count_until_nothing_refers_to_them() -> None:
    bodies = BodyMemory(100)
    first, second = bodies.allocate(60), bodies.allocate(40)
    with pytest.raises(Refusal, match="too many"):
        bodies.allocate(1)
    part = first.data[59:]
    del first
    assert bodies.shares.held == 100, "a part that is not sent yet keeps the whole"
    del part
    assert (bodies.shares.held, len(bodies.allocate(60)), len(second)) == (40, 60, 40)
    del second
    assert len(bodies.allocate(1000)) == 1000, "one body is always possible"


class Liar(Impostor):
    """A server that passes requests on, but answers those for ``target`` itself: with ``start``,
    and then zeros until the client has had enough; ``sent`` counts them."""

    def __init__(self, port: int, target: bytes, start: bytes) -> None:
        self.port, self.target, self.start, self.sent = port, target, start, 0
        super().__init__()

    def answer(self, client: socket.socket) -> None:
        request = client.recv(65536)
        if self.target not in request.split(b"\r\n")[0]:
            with socket.create_connection(("127.0.0.1", self.port)) as server:
                server.sendall(request.replace(b"\r\n", b"\r\nconnection: close\r\n", 1))
                while part := server.recv(65536):
                    client.sendall(part)
            return
        try:
            client.sendall(self.start)
            while True:
                self.sent += client.send(bytes(65536))
        except OSError:
            return


@pytest.fixture
def liar() -> Iterator[Callable[..., Liar]]:
    started: list[Liar] = []

    def start(*arguments: Any) -> Liar:
        started.append(Liar(*arguments))
        return started[-1]

    yield start
    for running in started:
        running.close()


DECLARED = b"HTTP/1.1 200 OK\r\ncontent-length: 99999999999\r\n\r\n"
ENDLESS = b"HTTP/1.1 200 OK\r\n\r\n"
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nfffffff\r\n"


@pytest.mark.parametrize(
    "start", [DECLARED, ENDLESS, CHUNKED], ids=["declared", "endless", "chunk"]
)
def test_an_answer_longer_than_it_can_be_is_not_read(
    serve: Any, root: Path, liar: Any, start: bytes
) -> None:
    """Rows and objects have a known length; what a socket's buffers take does not count as read."""
    server = serve(root)
    for target, touch in (
        (b"/rows", lambda snapshot: snapshot.rows([1])),
        (b"/objects/labels", lambda snapshot: snapshot.object("labels/c/0")),
    ):
        lying = liar(server.port, target, start)
        snapshot = open_store(f"{lying.url}/c10", patience=20).snapshots["teacher"]
        with pytest.raises(Damaged, match=r"more than the \d+ bytes that there can be"):
            touch(snapshot)
        assert lying.sent < 5 * (32 << 20)


def test_a_listing_has_a_limit_and_so_has_an_error(liar: Any) -> None:
    for start in (DECLARED, DECLARED.replace(b"200 OK", b"503 Away")):
        lying = liar(0, b"/", start)
        with pytest.raises(Damaged, match="there can be"):
            Connection(lying.url, None, 20).request("GET", "/v1/stores", most_bytes=1000)
        assert lying.sent < 5 * (32 << 20)
