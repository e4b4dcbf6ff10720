"""Objects: those that the commit lists and no other file, ranges of them, and damage."""

from __future__ import annotations

import hashlib
import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from logitstore import open_store
from logitstore.api.routes.objects import open_object
from logitstore.api.served.catalog import find_stores
from logitstore.api.served.registry import Registry
from logitstore.cache.cache import Cache
from logitstore.errors import Damaged
from logitstore.format.wire import ROOT_HEADER, pack_indices
from logitstore.reading.scan import Scan
from tests.support.service import BINARY, OBJECTS, ROWS, problem

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
    store = tiny_store(tmp_path / "c10.zarr", row_digests=True)
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
    assert list(find_stores(Scan(tmp_path / "root"))) == ["c10"]
