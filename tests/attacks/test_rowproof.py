"""A server that lies about rows, with right checksums and the right root, teaches nobody.

Only commands, HTTP and public names are used here.
"""

import hashlib
import http.client
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import google_crc32c
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load, save
from typer.testing import CliRunner, Result

import logitstore
from logitstore.cli import app
from tests.support.ports import free_port

SAMPLES, CLASSES, VIEWS = 300, 40, 2
Arrays = dict[str, NDArray[Any]]


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def drawn(seed: int, classes: int) -> NDArray[np.float32]:
    values = np.random.default_rng(seed).standard_normal((VIEWS, SAMPLES, classes)) * 3
    return values.astype(np.float32)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stores new, old (other logits under the same names) and small, whose rows have 40 bytes."""
    root = tmp_path_factory.mktemp("root")
    for name, seed, classes in (("new", 1, CLASSES), ("old", 2, CLASSES), ("small", 3, 10)):
        labels = np.arange(SAMPLES) % classes
        np.save(root / "labels.npy", labels)
        np.save(root / "logits.npy", drawn(seed, classes))
        images = np.random.default_rng(seed).integers(0, 255, (SAMPLES, 4, 4, 1), np.uint8)
        np.savez(root / f"{name}.npz", x=images, y=labels)
        done = run(
            *("import", root / "logits.npy", "--labels", root / "labels.npy", "--snapshot", "t"),
            *("--encoding", "float32", "--out", root / f"{name}.zarr"),
        )
        assert done.exit_code == 0, done.output
    return root


@pytest.fixture(scope="module")
def honest(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of ``logitstore serve``."""
    port = free_port()
    cache = {"LOGITSTORE_CACHE": str(tmp_path_factory.mktemp("cache"))}
    command = [sys.executable, "-m", "logitstore", "serve", str(root), "--port", str(port)]
    server = subprocess.Popen(command, env={**os.environ, **cache}, stderr=subprocess.DEVNULL)
    try:
        for _ in range(300):
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except ConnectionRefusedError:
                time.sleep(0.1)
        yield port
    finally:
        server.terminate()
        server.wait()


class Liar(ThreadingHTTPServer):
    """Stands before an honest server, and changes what it answers.

    ``place`` says where a request goes instead.  ``rows`` changes the arrays of rows, ``body`` any
    other bytes: the rows' once more, and those of objects by their key.  All headers are made to
    fit: the checksums, the length and the root that the client expects.
    """

    daemon_threads = True

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream, self.url = port, f"http://127.0.0.1:{self.server_port}"
        self.place: Callable[[str], str] = lambda path: path
        self.rows: Callable[[Arrays], Arrays] = lambda arrays: arrays
        self.body: Callable[[str, bytes], bytes] = lambda path, body: body
        Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()


class _Handler(BaseHTTPRequestHandler):
    server: Liar
    protocol_version, wbufsize = "HTTP/1.1", -1  # small writes would wait for each other

    def _answer(self) -> None:
        sent = self.rfile.read(int(self.headers.get("content-length", 0)))
        headers = {
            name: value
            for name, value in self.headers.items()
            if name.lower() in ("content-type", "x-logitstore-root")
        }
        place = self.server.place(self.path)
        root = headers.pop("x-logitstore-root", None) if place != self.path else None
        connection = http.client.HTTPConnection("127.0.0.1", self.server.upstream, timeout=20)
        connection.request(self.command, place, sent, headers)
        answer = connection.getresponse()
        body, given = answer.read(), {n.lower(): v for n, v in answer.getheaders()}
        connection.close()
        if answer.status == 200 and "/rows" in self.path:
            body = save(self.server.rows(load(body)))
        if answer.status == 200:
            body = self.server.body(self.path, body)
        if "x-logitstore-crc32c" in given:
            given["x-logitstore-crc32c"] = f"{google_crc32c.value(body):08x}"
        if "etag" in given:
            given["etag"] = f'"{hashlib.sha256(body).hexdigest()}"'
        if root is not None:
            given["x-logitstore-root"] = root
        self.send_response(answer.status)
        for name, value in {**given, "content-length": str(len(body))}.items():
            if name not in ("date", "server", "connection"):
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = _answer

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@pytest.fixture
def liar(honest: int) -> Iterator[Liar]:
    server = Liar(honest)
    yield server
    server.shutdown()
    server.server_close()


def with_flipped_signs(liar: Liar) -> None:
    liar.rows = lambda arrays: {name: -array for name, array in arrays.items()}


def with_one_bit(liar: Liar) -> None:
    def change(arrays: Arrays) -> Arrays:
        codes = arrays["codes"].copy()
        codes.view(np.uint32)[-1, -1] ^= 1
        return {"codes": codes}

    liar.rows = change


def with_swapped_samples(liar: Liar) -> None:
    liar.rows = lambda arrays: {name: array[::-1].copy() for name, array in arrays.items()}


def with_another_view(liar: Liar) -> None:
    liar.place = lambda path: path.replace("view=1", "view=0")


def with_an_older_snapshot(liar: Liar) -> None:
    liar.place = lambda path: path.replace("/new/", "/old/") if "/rows" in path else path


def with_fewer_rows(liar: Liar) -> None:
    liar.rows = lambda arrays: {name: array[:-1].copy() for name, array in arrays.items()}


def with_fewer_bytes(liar: Liar) -> None:
    liar.body = lambda path, body: body[:-16] if "/rows" in path else body


def with_other_objects(liar: Liar) -> None:
    """Serve another snapshot's shards, digests included, and rows that fit to them."""
    liar.place = lambda path: (
        path.replace("/new/", "/old/") if "/rows" in path or "/c/" in path else path
    )


def with_changed_objects(liar: Liar) -> None:
    liar.body = lambda path, body: (
        body[:40] + bytes([body[40] ^ 1]) + body[41:] if "/c/" in path or "/rows" in path else body
    )


def without_digests(liar: Liar) -> None:
    """Deny that there are digests, so that the client would take rows without."""
    with_flipped_signs(liar)
    liar.body = lambda path, body: (
        re.sub(rb'"row_digests":true,', b"", body) if path.endswith("/t/zarr.json") else body
    )


LIES = {
    lie.__name__: lie
    for lie in (
        with_flipped_signs,
        with_one_bit,
        with_swapped_samples,
        with_another_view,
        with_an_older_snapshot,
        with_fewer_rows,
        with_fewer_bytes,
        with_other_objects,
        with_changed_objects,
        without_digests,
    )
}
SHARDS_TOO = ("with_other_objects", "with_changed_objects", "without_digests")
"""The lies that reach a reader of whole shards."""

ASKED = [7, 0, 299, 7, 150]


def truth(seed: int, classes: int = CLASSES) -> NDArray[np.float32]:
    """What ``logits(ASKED, 1)`` is; float32 keeps every bit."""
    logits: NDArray[np.float32] = drawn(seed, classes)[1, ASKED]
    return logits


@pytest.mark.parametrize("lie", LIES)
def test_a_snapshot_by_url_gives_its_rows_or_none(liar: Liar, lie: str) -> None:
    LIES[lie](liar)
    with pytest.raises(logitstore.LogitstoreError):
        logitstore.open_store(liar.url + "/new").snapshots["t"].logits(ASKED, 1)


@pytest.mark.parametrize("mode", ["stream", "direct", "materialise", "auto"])
@pytest.mark.parametrize("lie", LIES)
def test_every_mode_gives_the_committed_rows_or_none(
    liar: Liar, tmp_path: Path, lie: str, mode: str
) -> None:
    LIES[lie](liar)
    cache, refused = logitstore.Cache(tmp_path), mode == "stream" or lie in SHARDS_TOO
    try:
        snapshot = logitstore.open_store(liar.url + "/new").snapshots["t"]
        reader = logitstore.prepare_reading(snapshot, mode, cache)
        assert reader.proven
        logits = reader.logits(ASKED, 1)
    except logitstore.LogitstoreError:
        assert refused
    else:
        assert not refused
        np.testing.assert_array_equal(logits, truth(1))


def test_the_same_server_without_a_lie_is_believed(liar: Liar, tmp_path: Path) -> None:
    for name, seed, classes in (("new", 1, CLASSES), ("small", 3, 10)):
        snapshot = logitstore.open_store(f"{liar.url}/{name}").snapshots["t"]
        np.testing.assert_array_equal(snapshot.logits(ASKED, 1), truth(seed, classes))
        for mode in ("stream", "direct", "materialise"):
            reader = logitstore.prepare_reading(snapshot, mode, logitstore.Cache(tmp_path))
            assert reader.proven == (mode != "stream" or name == "new")
            np.testing.assert_array_equal(reader.logits(ASKED, 1), truth(seed, classes))


def train(
    root: Path, url: str, out: Path, *more: object, name: str = "new"
) -> tuple[Result, dict[str, Any] | None]:
    """Train a student from a URL; return what is printed and result.json, if there is one."""
    done = run(
        *("train", "--data", f"npz:{root / name}.npz?x=x&y=y", "--student", "mlp?hidden=4"),
        *("--store", f"{url}/{name}", "--method", "kd", "--epochs", 2, "--allow-unbound"),
        *("--device", "cpu", "--out", out, *more),
    )
    result = out / "result.json"
    return done, json.loads(result.read_text()) if result.exists() else None


def root_of(url: str, name: str) -> str:
    return logitstore.open_store(f"{url}/{name}").snapshots["t"].root


def test_no_student_is_taught_by_flipped_signs(liar: Liar, root: Path, tmp_path: Path) -> None:
    """With the expected root and without: the issue's case."""
    with_flipped_signs(liar)
    expected = ("--expect-root", root_of(liar.url, "new"))
    for number, more in enumerate(((), expected)):
        done, result = train(root, liar.url, tmp_path / str(number), "--read", "stream", *more)
        assert done.exit_code == 1, done.output
        assert "is not the committed one" in done.output
        assert result is None
    students = []
    for mode in ("materialise", "direct"):
        done, result = train(root, liar.url, tmp_path / mode, "--read", mode, *expected)
        assert done.exit_code == 0, done.output
        assert result is not None
        assert result["teacher_rows"] == "proven"
        students.append((tmp_path / mode / "model.safetensors").read_bytes())
    liar.rows = lambda arrays: arrays
    done, result = train(root, liar.url, tmp_path / "honest", "--read", "stream", *expected)
    assert done.exit_code == 0, done.output
    assert "each proven by its digest" in done.output
    assert result is not None
    assert result["teacher_rows"] == "proven"
    students.append((tmp_path / "honest" / "model.safetensors").read_bytes())
    assert len(set(students)) == 1


def test_rows_without_digests_are_streamed_only_where_no_root_is_expected(
    liar: Liar, root: Path, tmp_path: Path
) -> None:
    with_flipped_signs(liar)
    expected = ("--expect-root", root_of(liar.url, "small"))

    def trained(out: str, *more: object) -> tuple[Result, dict[str, Any] | None]:
        return train(root, liar.url, tmp_path / out, *more, name="small")

    done, _ = trained("refused", "--read", "stream", *expected)
    assert done.exit_code == 2, done.output
    assert "--read materialise or direct" in done.output
    assert not (tmp_path / "refused").exists()
    done, result = trained("believed", "--read", "stream")
    assert done.exit_code == 0, done.output
    assert "not proven" in done.output
    assert result is not None
    assert result["teacher_rows"] == "not proven"
    for more in ((), expected):
        done, result = trained(f"auto{len(more)}", *more)
        assert done.exit_code == 0, done.output
        assert "not proven" not in done.output
        assert result is not None
        assert result["teacher_rows"] == "proven"


def test_what_is_written_from_a_url_is_written_from_proven_rows(liar: Liar, tmp_path: Path) -> None:
    """transcode and export ask for rows, too."""
    with_flipped_signs(liar)
    for name, code in (("new", 1), ("small", 0)):
        out = tmp_path / f"{name}.npy"
        done = run("export", f"{liar.url}/{name}", "--out", out)
        assert done.exit_code == code, done.output
        assert out.exists() == (code == 0)
        copy = tmp_path / f"{name}.zarr"
        done = run("transcode", f"{liar.url}/{name}", "--encoding", "float16", "--out", copy)
        assert done.exit_code == code, done.output
    np.testing.assert_array_equal(np.load(tmp_path / "small.npy"), drawn(3, 10))


def test_a_row_that_is_not_its_digest_s_is_named_by_verify(root: Path, tmp_path: Path) -> None:
    """A store whose author commits digests of other rows is whole in every other respect."""
    assert run("verify", root / "new.zarr").exit_code == 0
    store = tmp_path / "mixed.zarr"
    subprocess.run(["cp", "-r", str(root / "new.zarr"), str(store)], check=True)
    key = "snapshots/t/row_digests/c/1/0/0"
    data = (root / "old.zarr" / key).read_bytes()
    (store / key).write_bytes(data)
    path = store / "snapshots/t/commit.json"
    commit = json.loads(path.read_bytes())
    commit["objects"][key] = {"length": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    del commit["sha256"]
    commit["sha256"] = hashlib.sha256(canonical(commit)).hexdigest()
    path.write_bytes(canonical(commit))
    done = run("verify", store)
    assert done.exit_code == 1
    assert f"view 1, sample 0: its digest is that of another row ({SAMPLES} rows" in done.output


def canonical(document: object) -> bytes:
    return (json.dumps(document, sort_keys=True, separators=(",", ":")) + "\n").encode()
