"""``POST …/rows``: sample indices in, encoded rows out.  The training path, so plain ASGI.

Rows are gathered from the snapshot's mapped copy straight into the body that is sent.  That takes
microseconds, less than handing it to a thread, unless the copy is not in memory: after a gather
that needed the disk, and for large answers, a thread does it.  Until there is a copy a request
waits for a second and is then asked to come back.
"""

from __future__ import annotations

import asyncio
import re
from concurrent.futures import Executor
from typing import Any
from urllib.parse import parse_qs

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError
from starlette.types import Receive, Scope, Send

from logitstore.api.guard.headers import Headers, by_name
from logitstore.api.guard.limits import Bodies, read_body
from logitstore.api.guard.problems import Refusal
from logitstore.api.routes.requests import check_root
from logitstore.api.served.decoding import Decoding
from logitstore.api.served.registry import Registry
from logitstore.errors import InputError
from logitstore.format.wire import (
    CRC_HEADER,
    INDICES_TYPE,
    MAX_INDICES,
    ROOT_HEADER,
    ROWS_TYPE,
    RowsRequest,
    crc32c,
    rows_per_request,
    template,
    unpack_indices,
)
from logitstore.reading.snapshot import Snapshot

WAIT_SECONDS = 1.0
"""How long a request waits for the copy that it, or one before it, asked for."""


AT_ONCE_BYTES = 1 << 20
"""Larger answers are gathered in a thread: this much takes about 0.2 ms."""


_VIEW = re.compile(rb"view=([0-9]{1,18})")


Asked = tuple[dict[bytes, bytes], bytes, bytes]
"""A request's headers, query and body."""


Made = tuple[str, str, NDArray[np.uint8]]
"""The root of the snapshot that was read, the body's CRC-32C, and the body."""


class RowsEndpoint:
    """The ASGI endpoint; ``store`` and ``snapshot`` are path parameters."""

    def __init__(self, registry: Registry, threads: Executor, bodies: Bodies) -> None:
        self._registry, self._threads, self._bodies = registry, threads, bodies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = await read_body(receive)
        asked = by_name(scope["headers"]), scope["query_string"], request
        root, checksum, body = await self._rows(scope["path_params"], asked)
        headers = rows_headers(root, len(body), checksum)
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body.data})

    def at_once(
        self, store: str, name: str, root: str | None, view: int, request: bytes
    ) -> Made | None:
        """Rows, if gathering them needs no disk and no wait; an error, or None, if that is not so.

        For the event loop.  What has no answer here has one, or the right error, from a call.
        """
        opened = self._registry.recent(store, name)
        if opened is None or opened.decoding is None or not opened.decoding.calm:
            return None
        snapshot, indices = opened.snapshot, unpack_indices(request)
        if root not in (None, snapshot.root) or not len(indices) or view >= snapshot.meta.views:
            return None
        large = template(snapshot.encoding, len(indices)).length > AT_ONCE_BYTES
        if large or indices.max() >= snapshot.meta.samples:
            return None
        return self._made(snapshot, opened.decoding, view, indices)

    async def _rows(self, names: dict[str, str], asked: Asked) -> Made:
        loop = asyncio.get_running_loop()
        snapshot, decoding, view, indices = await loop.run_in_executor(
            self._threads, self._understood, names["store"], names["snapshot"], asked
        )
        if not decoding.ended.done():
            await asyncio.wait([asyncio.wrap_future(decoding.ended)], timeout=WAIT_SECONDS)
            if not decoding.ended.done():
                raise Refusal(503, "materialising", decoding.told(), {"retry-after": "1"})
        return await loop.run_in_executor(
            self._threads, self._made, snapshot, decoding, view, indices
        )

    def _understood(
        self, store: str, name: str, asked: Asked
    ) -> tuple[Snapshot, Decoding, int, NDArray[np.int64]]:
        opened = self._registry.open(store, name)
        snapshot = opened.snapshot
        check_root(snapshot, store, asked[0])
        view, indices = parse_request(*asked)
        most = rows_per_request(snapshot.encoding)
        if len(indices) > most:
            raise InputError(f"{len(indices)} indices; one request has at most {most}")
        indices = snapshot.checked(indices, view)
        return snapshot, self._registry.decoding(opened), view, indices

    def _made(
        self, snapshot: Snapshot, decoding: Decoding, view: int, indices: NDArray[np.int64]
    ) -> Made:
        form = template(snapshot.encoding, len(indices))
        body = self._bodies.empty(form.length)
        decoding.gather(view, indices, form.arrays(body))
        return snapshot.root, crc32c(body), body


def rows_headers(root: str, length: int, checksum: str) -> Headers:
    """What is said beside the rows of the snapshot with this root."""
    return [
        (b"content-type", ROWS_TYPE.encode()),
        (b"content-length", str(length).encode()),
        (CRC_HEADER.encode(), checksum.encode()),
        (ROOT_HEADER.encode(), root.encode()),
        (b"cache-control", b"no-store"),
    ]


def parse_request(
    headers: dict[bytes, bytes], query: bytes, body: bytes
) -> tuple[int, NDArray[np.int64]]:
    """View and indices (N,) of a request in either of its two forms; InputError or Refusal."""
    kind = headers.get(b"content-type", b"").split(b";")[0].strip().lower()
    if kind == b"application/json":
        if query:
            raise InputError("the JSON form takes the view from its body: drop the query")
        return _parse_json(body)
    if kind == INDICES_TYPE.encode():
        if len(body) > 4 * MAX_INDICES:
            raise InputError(f"{len(body) // 4} indices; one request has at most {MAX_INDICES}")
        return parse_view(query), unpack_indices(body)
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


def parse_view(query: bytes) -> int:
    """The view that ``?view=`` names, 0 without; InputError if the query says anything else."""
    if not query:
        return 0
    if plain := _VIEW.fullmatch(query):
        return int(plain[1])
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
