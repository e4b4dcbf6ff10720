"""The service as a whole: what it answers, whom it refuses, and that damage never becomes data."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from logitstore import open_store
from logitstore.api.app import create_app
from logitstore.api.guard.auth import Tokens
from logitstore.api.routes.objects import open_object
from logitstore.api.served.catalog import find_stores
from logitstore.api.served.registry import Registry
from logitstore.api.settings import Settings
from logitstore.cache.cache import Cache
from logitstore.errors import Damaged, InputError
from logitstore.format.encodings.table import encoding, parse_encoding
from logitstore.format.wire import CRC_HEADER, ROOT_HEADER, crc32c, pack_indices, unpack

TOKEN = "correct-horse-battery-staple"
OTHER = "another-token-of-some-length"
AUTH = {"authorization": f"Bearer {TOKEN}"}
ROWS = "/v1/stores/c10/snapshots/teacher/rows"
OBJECTS = "/v1/stores/c10/snapshots/teacher/objects"
BINARY = {"content-type": "application/octet-stream"}


def write_private(path: Path, text: str) -> Path:
    path.touch(0o600)
    path.write_text(text)
    return path


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, tiny_store: Any) -> Path:
    root: Path = tmp_path_factory.mktemp("served")
    tiny_store(root / "c10.zarr", ("teacher", "late"), views=2, keys=True)
    tiny_store(root / "other", samples=40, seed=7)
    return root


@pytest.fixture(scope="module")
def server(root: Path, serve: Callable[..., Any]) -> Any:
    """No tokens, loopback."""
    return serve(root)


@pytest.fixture(scope="module")
def guarded(root: Path, serve: Callable[..., Any], tmp_path_factory: Any) -> Any:
    """Wants one of two tokens, of which the file names the second by its digest."""
    digest = hashlib.sha256(OTHER.encode()).hexdigest()
    text = f"# tokens\n{TOKEN}  # first\n\nsha256:{digest}\n"
    return serve(root, token_file=write_private(tmp_path_factory.mktemp("keys") / "tokens", text))


def problem(answer: tuple[int, dict[str, str], bytes]) -> dict[str, Any]:
    """The problem document of an answer, which must be one and must name its request."""
    status, headers, body = answer
    assert headers["content-type"] == "application/problem+json"
    document: dict[str, Any] = json.loads(body)
    assert document["status"] == status
    assert document["request_id"] == headers["x-request-id"]
    return document


def test_every_route_wants_a_token(guarded: Any, root: Path) -> None:
    """Enumerated, so that a route that is added later cannot be forgotten."""
    app = create_app(Settings(root=root, token_file=guarded.settings["token_file"]))
    paths = [route.path for route in app.routes]
    assert len(paths) >= 8
    names = {"store": "c10", "snapshot": "teacher", "key:path": "zarr.json"}
    for path in [*paths, "/", "/nothing", "//livez", "/livez/", "/%6Civez/x", "*"]:
        for name, value in names.items():
            path = path.replace("{" + name + "}", value)
        for method in ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"):
            if path in ("/livez", "/readyz"):
                continue
            status, headers, _ = guarded.get(path, method=method, body=b"")
            assert status == 401 or path == "*", (method, path, status)
            assert status != 401 or headers["www-authenticate"] == "Bearer"
    assert guarded.get("/livez")[0] == guarded.get("/readyz")[0] == 200


def test_a_websocket_handshake_wants_a_token(guarded: Any) -> None:
    handshake = {
        "connection": "Upgrade",
        "upgrade": "websocket",
        "sec-websocket-version": "13",
        "sec-websocket-key": "AAAAAAAAAAAAAAAAAAAAAA==",
    }
    assert guarded.get("/v1/stores", handshake)[0] == 401


@pytest.mark.parametrize(
    ("header", "status"),
    [
        (f"Bearer {TOKEN}", 200),
        (f"bearer  {OTHER}", 200),
        (f"Bearer {TOKEN}x", 401),
        (f"Bearer {TOKEN[:-1]}", 401),
        ("Bearer ", 401),
        (TOKEN, 401),
        (f"Basic {TOKEN}", 401),
        (f"Bearer sha256:{hashlib.sha256(OTHER.encode()).hexdigest()}", 401),
    ],
)
def test_only_a_known_token_opens(guarded: Any, header: str, status: int) -> None:
    assert guarded.get("/v1/stores", {"authorization": header})[0] == status


def test_a_new_token_file_rotates_and_a_missing_one_locks_out(tmp_path: Path) -> None:
    file = write_private(tmp_path / "tokens", TOKEN)
    tokens = Tokens(file)

    def accepted() -> list[bool]:
        return [tokens.accept(token.encode()) for token in (TOKEN, OTHER)]

    assert accepted() == [True, False]
    os.replace(write_private(tmp_path / "new", OTHER), file)
    assert accepted() == [False, True]
    os.replace(write_private(tmp_path / "new", f"{TOKEN}\n{OTHER}"), file)
    assert accepted() == [True, True]
    file.chmod(0o644)
    assert accepted() == [False, False]
    file.chmod(0o600)
    assert accepted() == [True, True]
    file.unlink()
    assert accepted() == [False, False]


def test_no_token_is_ever_logged(guarded: Any) -> None:
    guarded.get(f"/v1/stores/{OTHER[:3]}", AUTH)
    guarded.get("/v1/stores", {"authorization": "Bearer a-token-that-is-wrong"})
    log = guarded.log()
    assert "answered 401" in log
    assert "answered 404" in log
    for token in (TOKEN, OTHER, "a-token-that-is-wrong"):
        assert token not in log


def test_the_listings_say_what_the_reader_says(server: Any, root: Path) -> None:
    local = open_store(root / "c10.zarr")
    listed = {entry["name"]: entry for entry in json.loads(server.get("/v1/stores")[2])}
    assert sorted(listed) == ["c10", "other"]
    assert listed["c10"]["snapshots"] == ["late", "teacher"]
    assert (listed["c10"]["samples"], listed["other"]["samples"]) == (100, 40)
    store = json.loads(server.get("/v1/stores/c10")[2])
    assert store["meta"] == local.meta.model_dump(mode="json")
    for entry in store["snapshots"]:
        snapshot = local.snapshots[entry["name"]]
        assert (entry["root"], entry["bytes"]) == (snapshot.root, snapshot.stored_bytes())
        document = json.loads(server.get(f"/v1/stores/c10/snapshots/{entry['name']}")[2])
        expected = {"root": snapshot.root, "meta": snapshot.meta.model_dump(mode="json")}
        assert document == expected


def test_both_forms_of_a_rows_request_give_the_readers_rows(server: Any, root: Path) -> None:
    snapshot = open_store(root / "c10.zarr").snapshots["teacher"]
    indices = [99, 0, 31, 32, 99]
    text = json.dumps({"view": 1, "indices": indices}).encode()
    answers = [
        server.get(ROWS, {"content-type": "application/json"}, "POST", text),
        server.get(f"{ROWS}?view=1", BINARY, "POST", pack_indices(np.array(indices))),
    ]
    for status, headers, body in answers:
        assert status == 200
        assert headers[CRC_HEADER] == crc32c(body)
        assert headers[ROOT_HEADER] == snapshot.root
        rows = unpack(body, encoding("float16", 10), count=5)
        np.testing.assert_array_equal(rows.logits(), snapshot.logits(indices, view=1))
    assert answers[0][2] == answers[1][2]


def test_the_protocols_example_gives_the_readers_logits(server: Any, root: Path) -> None:
    page = (Path(__file__).parents[2] / "api/HTTP.md").read_text()
    code = page.split("```python\n")[1].split("```")[0]
    names: dict[str, Any] = {}
    code = code.replace("localhost:8000", f"localhost:{server.port}").replace("resnet56", "teacher")
    exec(code, names)
    snapshot = open_store(root / "c10.zarr").snapshots["teacher"]
    np.testing.assert_array_equal(names["logits"], snapshot.logits([3, 1, 4]))


@pytest.mark.parametrize(
    ("query", "kind", "body", "status"),
    [
        ("", "application/json", b'{"view":0,"indices":[100]}', 422),
        ("", "application/json", b'{"view":0,"indices":[-1]}', 422),
        ("", "application/json", b'{"view":2,"indices":[1]}', 422),
        ("", "application/json", b'{"view":-1,"indices":[1]}', 422),
        ("", "application/json", b'{"indices":[1.5]}', 422),
        ("", "application/json", b'{"indices":["1"]}', 422),
        ("", "application/json", b'{"indices":[true]}', 422),
        ("", "application/json", b'{"indices":[99999999999999999999999]}', 422),
        ("", "application/json", b'{"indices":[1],"more":1}', 422),
        ("", "application/json", b"[" * 5000, 422),
        ("", "application/json", b"\xff\xfe", 422),
        ("", "application/json", b"", 422),
        ("", "application/octet-stream", b"\0\0\0", 422),
        ("?view=2", "application/octet-stream", b"\0\0\0\0", 422),
        ("?view=x", "application/octet-stream", b"\0\0\0\0", 422),
        ("?view=%C2%B2", "application/octet-stream", b"\0\0\0\0", 422),
        ("?view=1&view=0", "application/octet-stream", b"\0\0\0\0", 422),
        ("?veiw=1", "application/octet-stream", b"\0\0\0\0", 422),
        ("?view=1", "application/json", b'{"indices":[1]}', 422),
        ("?view=0", "application/json", b'{"view":0,"indices":[1]}', 422),
        ("", "text/plain", b"1", 415),
    ],
)
def test_a_bad_rows_request_is_explained(
    server: Any, query: str, kind: str, body: bytes, status: int
) -> None:
    answer = server.get(ROWS + query, {"content-type": kind}, "POST", body)
    assert answer[0] == status
    assert problem(answer)["detail"]


@pytest.mark.parametrize(
    "path", ["", "/rows", "/objects/zarr.json", "/objects/snapshots/teacher/commit.json"]
)
def test_all_about_a_snapshot_is_refused_to_those_who_mean_another_build(
    server: Any, root: Path, path: str
) -> None:
    right = open_store(root / "c10.zarr").snapshots["teacher"].root
    place = f"/v1/stores/c10/snapshots/teacher{path}"
    request = ("POST", pack_indices(np.array([1]))) if path == "/rows" else ("GET", None)

    def ask(*roots: str) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
        connection.putrequest(request[0], place)
        for name, value in [*BINARY.items(), *((ROOT_HEADER, root) for root in roots)]:
            connection.putheader(name, value)
        connection.putheader("content-length", str(len(request[1] or b"")))
        connection.endheaders(request[1])
        answer = connection.getresponse()
        headers = {name.lower(): value for name, value in answer.getheaders()}
        found = answer.status, headers, answer.read()
        connection.close()
        return found

    for roots in ((), (right,)):
        status, headers, _ = ask(*roots)
        assert (status, headers[ROOT_HEADER]) == (200, right)
    for roots in (("0" * 64,), (right.upper(),), ("",), (right, "0" * 64), ("0" * 64, right)):
        answer = ask(*roots)
        assert (answer[0], problem(answer)["type"]) == (412, "urn:logitstore:another-build")


def test_a_query_that_nobody_reads_is_refused(server: Any) -> None:
    for path in ("/v1/stores", "/v1/stores/c10", ROWS[:-5], f"{OBJECTS}/zarr.json"):
        answer = server.get(f"{path}?view=1")
        assert (answer[0], problem(answer)["type"]) == (422, "urn:logitstore:bad-request")
    assert server.get("/livez?x=1")[0] == server.get("/readyz?x=1")[0] == 200


def test_json_and_rows_carry_a_checksum_and_objects_their_digest(server: Any) -> None:
    for path in ("/v1/stores", "/v1/stores/c10", ROWS[:-5]):
        _, headers, body = server.get(path)
        assert headers[CRC_HEADER] == crc32c(body)
    _, headers, body = server.get(ROWS, BINARY, "POST", pack_indices(np.array([1])))
    assert headers[CRC_HEADER] == crc32c(body)
    _, headers, body = server.get(f"{OBJECTS}/zarr.json")
    assert headers["etag"] == f'"{hashlib.sha256(body).hexdigest()}"'
    for path in (f"{OBJECTS}/zarr.json", "/livez", "/readyz", "/openapi.json", "/v1/stores/none"):
        assert CRC_HEADER not in server.get(path)[1]


@pytest.mark.parametrize(
    ("form", "arrays"),
    [
        ("float32", {"codes": ("F32", 10)}),
        ("float16", {"codes": ("F16", 10), "scalars": ("F32", 2)}),
        ("uint8:64", {"codes": ("U8", 10), "scalars": ("F32", 2)}),
        ("topk:3", {"codes": ("F16", 4), "indices": ("U16", 4), "scalars": ("F32", 2)}),
    ],
)
def test_the_arrays_of_an_answer_are_those_that_the_protocol_names(
    serve: Callable[..., Any],
    tiny_store: Any,
    tmp_path: Path,
    form: str,
    arrays: dict[str, tuple[str, int]],
) -> None:
    server = serve(tiny_store(tmp_path / "c10.zarr", form=form))
    body = server.get(ROWS, BINARY, "POST", pack_indices(np.array([5, 2, 5])))[2]
    length = int.from_bytes(body[:8], "little")
    header = json.loads(body[8 : 8 + length])
    assert {n: (a["dtype"], a["shape"]) for n, a in header.items()} == {
        name: (kind, [3, width]) for name, (kind, width) in arrays.items()
    }
    sizes = {"F32": 4, "F16": 2, "U16": 2, "U8": 1}
    per_row = sum(sizes[kind] * width for kind, width in arrays.values())
    assert len(body) == 8 + length + 3 * per_row
    none = server.get(ROWS, BINARY, "POST", b"")
    assert none[0] == 200
    assert len(unpack(none[2], parse_encoding(form, 10), count=0).arrays["codes"]) == 0


def test_the_bytes_of_all_arrays_limit_a_request(
    serve: Callable[..., Any], tiny_store: Any, tmp_path: Path
) -> None:
    """5,000 classes of float16 are 10,000 bytes of codes a row, and 8 of scalars."""
    server = serve(tiny_store(tmp_path / "c10.zarr", samples=2, classes=5000, form="float16"))
    most = (16 << 20) // (2 * 5000 + 8)
    for count, status in ((most, 200), (most + 1, 422)):
        body = pack_indices(np.zeros(count, np.int64))
        assert server.get(ROWS, BINARY, "POST", body)[0] == status


SEGMENTS = [
    "..", ".", "%2e%2e", "%2E%2E%2F", "%252e%252e", "..%2f..%2fetc%2fpasswd", "..%5c..%5c", "..\\",
    "%00", "c10%00", "c10.zarr", "%2fetc%2fpasswd", "/etc/passwd", "..;", ";", "c10;x", "c10/..",
    "%c0%ae%c0%ae", "%ef%bc%8e%ef%bc%8e", "%e2%80%ae", "~root", "C:%5C", "%0d%0aX-Evil:1", ".build",
    "snapshots", "zarr.json", "commit.json", "c10%20", "C10", "file:%2f%2f%2fetc%2fpasswd", "%",
]  # fmt: skip


@pytest.mark.parametrize("segment", SEGMENTS)
def test_no_name_leads_out_of_the_tables(server: Any, root: Path, segment: str) -> None:
    """Every place where a client's string is a name gets every trick; all are just unknown."""
    places = [
        f"/v1/stores/{segment}",
        f"/v1/stores/{segment}/snapshots/teacher",
        f"/v1/stores/c10/snapshots/{segment}",
        f"/v1/stores/c10/snapshots/{segment}/objects/zarr.json",
        f"/v1/stores/{segment}/snapshots/teacher/objects/zarr.json",
        f"{OBJECTS}/{segment}",
        f"{OBJECTS}/{segment}/{segment}/etc/passwd",
        f"{OBJECTS}/snapshots/teacher/{segment}/zarr.json",
    ]
    for place in places:
        if place == f"{OBJECTS}/zarr.json":
            continue
        status, body = raw_get(server.port, place)
        assert 400 <= status < 500, (place, status)
        assert b"root:" not in body
        assert str(root).encode() not in body
        assert b"Traceback" not in body
    assert server.get(f"{ROWS}/../rows", BINARY, "POST", b"")[0] == 404


def raw_get(port: int, target: str) -> tuple[int, bytes]:
    """One GET whose target is sent byte by byte as it stands."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        head = f"GET {target} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
        connection.sendall(head.encode("latin-1"))
        answer = b""
        while part := connection.recv(65536):
            answer += part
    return int(answer.split(b" ", 2)[1]), answer


def test_all_committed_objects_are_served_and_nothing_else(server: Any, root: Path) -> None:
    store = root / "c10.zarr"
    snapshot = open_store(store).snapshots["teacher"]
    keys = [*snapshot.commit.objects, "snapshots/teacher/commit.json"]
    for key in keys:
        data = (store / key).read_bytes()
        status, headers, body = server.get(f"{OBJECTS}/{key}")
        assert (status, body) == (200, data)
        assert headers["etag"] == f'"{hashlib.sha256(data).hexdigest()}"'
        assert headers[ROOT_HEADER] == snapshot.root
        assert "immutable" in headers["cache-control"]
        status, head, body = server.get(f"{OBJECTS}/{key}", method="HEAD")
        assert (status, body, head["content-length"]) == (200, b"", str(len(data)))
    on_disk = {str(path.relative_to(store)) for path in store.rglob("*") if path.is_file()}
    unlisted = on_disk - set(keys)
    assert "snapshots/late/commit.json" in unlisted
    assert {server.get(f"{OBJECTS}/{key}")[0] for key in unlisted} == {404}
    assert server.get(f"{OBJECTS}/zarr.json", method="DELETE")[0] == 405


def test_one_range_of_an_object_can_be_asked_for(server: Any, root: Path) -> None:
    key = "snapshots/teacher/codes/c/0/0/0"
    data = (root / "c10.zarr" / key).read_bytes()
    etag = f'"{hashlib.sha256(data).hexdigest()}"'

    def ranged(value: str, **more: str) -> tuple[int, dict[str, str], bytes]:
        answer: tuple[int, dict[str, str], bytes] = server.get(
            f"{OBJECTS}/{key}", {"range": value, **more}
        )
        return answer

    for value, part in (("bytes=5-9", data[5:10]), ("bytes=7-", data[7:]), ("bytes=-3", data[-3:])):
        status, headers, body = ranged(value)
        assert (status, body) == (206, part)
        start = data.index(part)
        assert headers["content-range"] == f"bytes {start}-{start + len(part) - 1}/{len(data)}"
    assert ranged(f"bytes=0-{10**9}")[2] == data
    assert ranged("Bytes=5-9")[2] == data[5:10]
    for ignored in ("bytes=1-2,4-5", "bytes=x", "lines=1-2", "bytes=-", "bytes=1", "bytes=9-5"):
        assert ranged(ignored)[::2] == (200, data)
    for outside in (f"bytes={len(data)}-", "bytes=-0"):
        answer = ranged(outside)
        assert answer[1]["content-range"] == f"bytes */{len(data)}"
        assert problem(answer)["status"] == 416
    assert ranged("bytes=0-1", **{"if-range": '"stale"'})[::2] == (200, data)
    assert ranged("bytes=0-1", **{"if-range": etag})[0] == 206
    status, headers, body = server.get(f"{OBJECTS}/{key}", {"if-none-match": f'"x", {etag}'})
    assert (status, body, headers["etag"]) == (304, b"", etag)
    status, headers, _ = server.get(f"{OBJECTS}/{key}", {"range": "bytes=5-9"}, "HEAD")
    assert (status, headers["content-length"]) == (200, str(len(data))), "a range is of GET only"
    for tags, status in ((f'"x", {etag}', 200), ("*", 200), ('"x"', 412), (f"W/{etag}", 412)):
        assert server.get(f"{OBJECTS}/{key}", {"if-match": tags})[0] == status


def test_a_damaged_store_gives_an_error_and_never_rows(
    serve: Callable[..., Any], tiny_store: Any, tmp_path: Path
) -> None:
    store = tiny_store(tmp_path / "c10.zarr")
    shard = store / "snapshots/teacher/codes/c/0/1/0"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    server = serve(store)
    remote = open_store(server.url).snapshots["teacher"]
    answer = server.get(ROWS, BINARY, "POST", pack_indices(np.array([0, 40])))
    assert problem(answer)["type"] == "urn:logitstore:damaged"
    assert answer[0] == 503
    assert "samples 32..63" in problem(answer)["detail"]
    assert str(tmp_path) not in answer[2].decode()
    for indices in ([0, 40], [0]):  # the snapshot as a whole is not to be trusted
        with pytest.raises(Damaged, match="samples 32"):
            remote.rows(indices)
    with pytest.raises(Damaged):
        remote.object("snapshots/teacher/codes/c/0/1/0")
    shard.write_bytes(data[:-1])
    answer = server.get(f"{OBJECTS}/snapshots/teacher/codes/c/0/1/0")
    assert (answer[0], problem(answer)["type"]) == (503, "urn:logitstore:damaged")
    shard.unlink()
    assert server.get(f"{OBJECTS}/snapshots/teacher/codes/c/0/1/0")[0] == 503
    (store / "snapshots/teacher/commit.json").write_text("{}")
    (line,) = json.loads(server.get("/v1/stores")[2])
    for listed in (line, json.loads(server.get("/v1/stores/c10")[2])):
        assert (listed["snapshots"], listed["damaged"]) == ([], ["teacher"])
    assert server.get("/v1/stores/c10/snapshots/teacher")[0] == 503
    assert "ERROR" in server.log()


def test_a_link_out_of_the_store_is_not_followed(tiny_store: Any, tmp_path: Path) -> None:
    store = tiny_store(tmp_path / "root/c10.zarr")
    key = "snapshots/teacher/codes/c/0/1/0"
    registry = Registry(tmp_path / "root", Cache(tmp_path / "cache"))
    open_object(registry.open("c10", "teacher"), key).close()
    (store / key).rename(tmp_path / "outside")
    (store / key).symlink_to(tmp_path / "outside")
    (tmp_path / "root/linked").symlink_to(store)
    with pytest.raises(Damaged, match="link"):
        open_object(registry.open("c10", "teacher"), key)
    assert list(find_stores(tmp_path / "root")) == ["c10"]


def test_what_is_built_while_it_serves_is_served(
    serve: Callable[..., Any], tiny_store: Any, tmp_path: Path
) -> None:
    """A new snapshot, a new store, and another store under an old name; no restart."""
    tiny_store(tmp_path / "c10.zarr")
    server = serve(tmp_path)
    first = server.get(ROWS, BINARY, "POST", pack_indices(np.array([3])))
    tiny_store(tmp_path / "c10.zarr", ("late",))
    assert server.get("/v1/stores/c10/snapshots/late")[0] == 200
    tiny_store(tmp_path / "second")
    time.sleep(1.1)
    assert server.get("/v1/stores/second")[0] == 200
    shutil.rmtree(tmp_path / "c10.zarr")
    tiny_store(tmp_path / "c10.zarr", seed=5)
    again = server.get(ROWS, BINARY, "POST", pack_indices(np.array([3])))
    assert again[1][ROOT_HEADER] == open_store(tmp_path / "c10.zarr").snapshots["teacher"].root
    assert again[2] != first[2]


def test_sigterm_says_not_ready_first_and_lets_answers_finish(
    root: Path, serve: Callable[..., Any]
) -> None:
    server = serve(root)
    slow = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    slow.putrequest("POST", ROWS)
    slow.putheader("content-type", "application/octet-stream")
    slow.putheader("content-length", "8")
    slow.endheaders(b"\1\0\0\0")
    statuses = []
    stopper = threading.Thread(target=lambda: statuses.append(server.stop()))
    began = time.monotonic()
    stopper.start()
    while server.get("/readyz")[0] != 503:
        assert time.monotonic() - began < 1
    assert server.get("/livez")[0] == 200
    time.sleep(1.3)
    slow.send(b"\2\0\0\0")
    answer = slow.getresponse()
    body = answer.read()
    slow.close()
    assert (answer.status, answer.getheader(CRC_HEADER)) == (200, crc32c(body))
    stopper.join()
    assert time.monotonic() - began < 10
    assert statuses == [0]
    assert server.log().rstrip().endswith("False"), "torch was imported by the server process"


@pytest.mark.slow
def test_several_workers_serve_one_port(root: Path, serve: Callable[..., Any]) -> None:
    server = serve(root, workers=2)
    for _ in range(8):
        assert server.get(ROWS, BINARY, "POST", pack_indices(np.array([3, 1])))[0] == 200
    assert server.stop() == 0


def test_without_tokens_only_local_names_are_answered(server: Any, guarded: Any) -> None:
    """A web page that makes its own name point here (DNS rebinding) must not read the stores."""
    for host in ("localhost:1", "127.0.0.1", "[::1]:80"):
        assert host_status(server.port, host) == 200
    for host in ("evil.example", "localhost.evil.example", "127.0.0.1.nip.io", "a b", ""):
        assert host_status(server.port, host) == 400
    assert guarded.get("/v1/stores", AUTH)[0] == 200


def host_status(port: int, host: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.putrequest("GET", "/v1/stores", skip_host=True)
    connection.putheader("host", host)
    connection.endheaders()
    status = connection.getresponse().status
    connection.close()
    return status


def test_the_description_names_every_route(server: Any, root: Path) -> None:
    described = json.loads(server.get("/openapi.json")[2])["paths"]
    served = {route.path.replace(":path", "") for route in create_app(Settings(root=root)).routes}
    assert described.keys() == served - {"/openapi.json"}
    assert server.get("/docs")[0] == server.get("/redoc")[0] == 404
    for path, methods in described.items():
        for method in methods.values():
            named = [p["name"] for p in method.get("parameters", [])]
            assert (ROOT_HEADER in named) == ("{snapshot}" in path), path
            assert ("view" in named) == path.endswith("/rows")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "logits.example"])
def test_a_public_address_without_tokens_is_refused(root: Path, host: str) -> None:
    with pytest.raises(InputError, match=r"--token-file.*--insecure-no-auth"):
        Settings(root=root, host=host)
    Settings(root=root, host=host, insecure_no_auth=True)


def test_contradictions_are_refused_before_anything_is_bound(root: Path, tmp_path: Path) -> None:
    good = write_private(tmp_path / "good", TOKEN)
    Settings(root=root, host="0.0.0.0", token_file=good)
    with pytest.raises(InputError, match="contradict"):
        Settings(root=root, token_file=good, insecure_no_auth=True)
    for text, reason in (("", "no token"), ("# none\n", "no token"), ("short\n", "line 1")):
        with pytest.raises(InputError, match=reason):
            Settings(root=root, token_file=write_private(tmp_path / "bad", text))
    with pytest.raises(InputError, match="cannot be read"):
        Settings(root=root, token_file=tmp_path / "missing")
    good.chmod(0o644)
    with pytest.raises(InputError, match="chmod 600"):
        Settings(root=root, token_file=good)
    (tmp_path / "empty").mkdir()
    for place, reason in ((tmp_path / "empty", "neither"), (tmp_path / "gone", "not a folder")):
        with pytest.raises(InputError, match=reason):
            Settings(root=place)
    with pytest.raises(InputError, match="port"):
        Settings(root=root, port=65536)
