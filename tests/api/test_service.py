"""The service as a whole: its lists, what all answers have in common, and its end."""

from __future__ import annotations

import hashlib
import http.client
import json
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from logitstore import open_store
from logitstore.api.app import create_app
from logitstore.api.settings import Settings
from logitstore.format.wire import CRC_HEADER, ROOT_HEADER, crc32c, pack_indices
from tests.support.service import BINARY, OBJECTS, ROWS, problem


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
