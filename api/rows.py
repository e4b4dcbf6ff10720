"""``POST …/rows``: sample indices in, encoded rows out.  The training path, so plain ASGI.

FastAPI's layers alone would halve its rate.  Gathering runs in a thread; the event loop only moves
bytes.  An object that differs from the commit gives a problem document, never rows.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import Executor
from typing import Any
from urllib.parse import parse_qs

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError
from starlette.types import Receive, Scope, Send

from api.limits import read_body
from api.problems import Refusal
from api.registry import Registry
from logitstore.errors import InputError, MismatchError
from logitstore.reader import Snapshot
from logitstore.wire import (
    CRC_HEADER,
    INDICES_TYPE,
    MAX_INDICES,
    ROOT_HEADER,
    ROWS_TYPE,
    RowsRequest,
    crc32c,
    pack,
    rows_per_request,
    unpack_indices,
)

Headers = list[tuple[bytes, bytes]]


class RowsEndpoint:
    """The ASGI endpoint; ``store`` and ``snapshot`` are path parameters."""

    def __init__(self, registry: Registry, threads: Executor) -> None:
        self._registry, self._threads = registry, threads

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = await read_body(receive)
        loop = asyncio.get_running_loop()
        headers, body = await loop.run_in_executor(self._threads, self._answer, scope, request)
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def _answer(self, scope: Scope, request: bytes) -> tuple[Headers, bytes]:
        names = scope["path_params"]
        headers = dict(scope["headers"])
        _, snapshot = self._registry.snapshot(names["store"], names["snapshot"])
        check_root(snapshot, names["store"], headers)
        view, indices = parse_request(headers, scope["query_string"], request)
        most = rows_per_request(snapshot.encoding, snapshot.meta.classes)
        if len(indices) > most:
            raise InputError(f"{len(indices)} indices; one request has at most {most}")
        body = pack(snapshot.rows(indices, view))
        answer = [
            (b"content-type", ROWS_TYPE.encode()),
            (b"content-length", str(len(body)).encode()),
            (CRC_HEADER.encode(), crc32c(body).encode()),
            (ROOT_HEADER.encode(), snapshot.root.encode()),
            (b"cache-control", b"no-store"),
        ]
        return answer, body


def check_root(snapshot: Snapshot, store: str, headers: dict[bytes, bytes]) -> None:
    """Refuse a request that says it means another build of this snapshot."""
    expected = headers.get(ROOT_HEADER.encode(), snapshot.root.encode()).decode("latin-1")
    if expected != snapshot.root:
        raise MismatchError(
            f"snapshot {snapshot.name!r} of store {store!r} has root {snapshot.root}, "
            f"the request means {expected[:64]}"
        )


def parse_request(
    headers: dict[bytes, bytes], query: bytes, body: bytes
) -> tuple[int, NDArray[np.int64]]:
    """View and indices (N,) of a request in either of its two forms; InputError or Refusal."""
    kind = headers.get(b"content-type", b"").split(b";")[0].strip().lower()
    if kind == b"application/json":
        return _parse_json(body)
    if kind == INDICES_TYPE.encode():
        if len(body) > 4 * MAX_INDICES:
            raise InputError(f"{len(body) // 4} indices; one request has at most {MAX_INDICES}")
        return _parse_view(query), unpack_indices(body)
    raise Refusal(415, "content-type", f"a body is application/json or {INDICES_TYPE}")


def _parse_json(body: bytes) -> tuple[int, NDArray[np.int64]]:
    try:
        request = RowsRequest.model_validate_json(body, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(str(part) for part in first["loc"]) or "body"
        raise InputError(f"{field}: {first['msg']}") from None
    if len(request.indices) > MAX_INDICES:
        raise InputError(f"{len(request.indices)} indices; one request has at most {MAX_INDICES}")
    try:
        return request.view, np.array(request.indices, np.int64)
    except OverflowError:
        raise InputError("indices: a sample index has at most 63 bits") from None


def _parse_view(query: bytes) -> int:
    values: dict[str, list[str]] = parse_qs(query.decode("latin-1"), keep_blank_values=True)
    given = values.get("view", ["0"])
    unknown = values.keys() - {"view"}
    if len(given) != 1 or not given[0].isascii() or not given[0].isdigit() or unknown:
        raise InputError("the query is ?view= and one whole number, or nothing")
    if len(given[0]) > 18:
        raise InputError("view: too large")
    return int(given[0])


_ROWS_ANSWER: dict[str, Any] = {
    "description": "The encoding's arrays for these samples, in the order asked for.",
    "headers": {
        CRC_HEADER: {"schema": {"type": "string"}, "description": "CRC-32C of the body, hex"},
        ROOT_HEADER: {"schema": {"type": "string"}, "description": "the snapshot's root, hex"},
    },
    "content": {ROWS_TYPE: {"schema": {"type": "string", "format": "binary"}}},
}
OPENAPI: dict[str, Any] = {
    "post": {
        "summary": "Encoded rows of some samples",
        "operationId": "rows",
        "parameters": [
            {"name": "store", "in": "path", "required": True, "schema": {"type": "string"}},
            {"name": "snapshot", "in": "path", "required": True, "schema": {"type": "string"}},
            {"name": "view", "in": "query", "schema": {"type": "integer", "default": 0}},
        ],
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": RowsRequest.model_json_schema()},
                INDICES_TYPE: {"schema": {"type": "string", "format": "binary"}},
            },
        },
        "responses": {"200": _ROWS_ANSWER},
    }
}
