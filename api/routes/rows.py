"""``POST …/rows``: sample indices in, encoded rows out.  The training path, so plain ASGI.

Rows are gathered from the snapshot's mapped copy straight into the body that is sent, in a thread;
``fast_rows`` does the same on the event loop where that needs no disk.  Until there is a copy a
request waits for a second and is then asked to come back.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import Executor
from typing import Any, NamedTuple
from urllib.parse import parse_qs

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError
from starlette.types import Receive, Scope, Send

from logitstore.api.guard.clients import Client
from logitstore.api.guard.headers import Headers, by_name
from logitstore.api.guard.limits import BodyMemory
from logitstore.api.guard.problems import Refusal
from logitstore.api.routes.requests import (
    BINARY,
    ROOT_PARAMETER,
    check_root,
    path_parameters,
    read_twice,
)
from logitstore.api.served.decoding import DecodeJob
from logitstore.api.served.registry import Opened, Registry
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

WAIT_SECONDS = 1.0
"""Seconds that a request waits for the copy, before it is asked to come back."""

FAST_BYTES = 1 << 20
"""Bytes of the largest answer that is gathered on the event loop: about 0.2 ms."""


class RowsAnswer(NamedTuple):
    """The root of the snapshot that was read, the body's CRC-32C, and the body."""

    root: str
    checksum: str
    body: NDArray[np.uint8]


class RowsEndpoint:
    """The ASGI endpoint; ``store`` and ``snapshot`` are path parameters."""

    def __init__(self, registry: Registry, threads: Executor, memory: BodyMemory) -> None:
        self._registry, self._threads, self._memory = registry, threads, memory

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = (await receive())["body"]  # all of it, by the middleware
        answer = await self._rows(scope, request)
        headers = rows_headers(answer.root, len(answer.body), answer.checksum)
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer.body.data})

    def without_waiting(
        self,
        store: str,
        name: str,
        root: str | None,
        view: int,
        request: bytes,
        client: Client | None = None,
    ) -> RowsAnswer | None:
        """Return rows if gathering them needs no disk and no wait; else None, or an error.

        For the event loop.  The endpoint answers all requests that this does not.
        """
        opened = self._registry.recent(store, name)
        if opened is None or opened.job is None or not opened.job.warm:
            return None
        snapshot, indices = opened.snapshot, unpack_indices(request)
        if root not in (None, snapshot.root) or not len(indices) or view >= snapshot.meta.views:
            return None
        large = template(snapshot.encoding, len(indices)).length > FAST_BYTES
        if large or indices.max() >= snapshot.meta.samples:
            return None
        return self._gather(opened, opened.job, view, indices, client)

    async def _rows(self, scope: Scope, request: bytes) -> RowsAnswer:
        loop = asyncio.get_running_loop()
        opened, job, view, indices = await loop.run_in_executor(
            self._threads, self._parse, scope, request
        )
        if not job.ended.done():
            await asyncio.wait([asyncio.wrap_future(job.ended)], timeout=WAIT_SECONDS)
            if not job.ended.done():
                raise Refusal(503, "materialising", job.status_text(), {"retry-after": "1"})
        client = scope["logitstore.client"]
        return await loop.run_in_executor(
            self._threads, self._gather, opened, job, view, indices, client
        )

    def _parse(
        self, scope: Scope, request: bytes
    ) -> tuple[Opened, DecodeJob, int, NDArray[np.int64]]:
        """Return what is read, and how; the copy is begun if there is none."""
        store, headers = scope["path_params"]["store"], by_name(scope["headers"])
        opened = self._registry.open(store, scope["path_params"]["snapshot"])
        snapshot = opened.snapshot
        check_root(snapshot, store, headers)
        view, indices = parse_request(headers, scope["query_string"], request)
        most = rows_per_request(snapshot.encoding)
        if len(indices) > most:
            raise InputError(f"{len(indices)} indices; one request has at most {most}")
        indices = snapshot.checked(indices, view)
        return opened, self._registry.job_of(opened), view, indices

    def _gather(
        self,
        opened: Opened,
        job: DecodeJob,
        view: int,
        indices: NDArray[np.int64],
        client: Client | None,
    ) -> RowsAnswer:
        form = template(opened.snapshot.encoding, len(indices))
        body = self._memory.allocate(form.length, client)
        arrays = form.arrays(body)
        read_twice(self._registry, opened, lambda: job.gather(indices, view, arrays))
        return RowsAnswer(opened.snapshot.root, crc32c(body), body)


def rows_headers(root: str, length: int, checksum: str) -> Headers:
    """Return the headers beside rows of the snapshot with this root."""
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
    """Return view and indices (N,) of a request in either of its forms; InputError or Refusal."""
    kind = headers.get(b"content-type", b"").split(b";")[0].strip().lower()
    if kind == b"application/json":
        if query:
            raise InputError("the JSON form takes the view from its body: drop the query")
        return _parse_json(body)
    if kind == INDICES_TYPE.encode():
        return parse_view(query), unpack_indices(body)
    raise Refusal(415, "content-type", f"a body is application/json or {INDICES_TYPE}")


def _parse_json(body: bytes) -> tuple[int, NDArray[np.int64]]:
    if body.count(b",") > MAX_INDICES:  # before a parser makes an object of each element
        raise InputError(f"indices: one request has at most {MAX_INDICES}")
    try:
        request = RowsRequest.model_validate_json(body, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(str(part) for part in first["loc"]) or "body"
        raise InputError(f"{field}: {first['msg']}") from None
    try:
        return request.view, np.array(request.indices, np.int64)
    except OverflowError:
        raise InputError("indices: a sample index has at most 63 bits") from None


def parse_view(query: bytes) -> int:
    """Return the view that ``?view=`` names, 0 without; InputError if the query says more."""
    fields: dict[str, list[str]] = parse_qs(query.decode("latin-1"), keep_blank_values=True)
    view, *more = fields.pop("view", ["0"])
    if more or fields or not view.isascii() or not view.isdigit():
        raise InputError("the query is ?view= and one whole number, or nothing")
    if len(view) > 18:
        raise InputError("view: too large")
    return int(view)


_ROWS_ANSWER: dict[str, Any] = {
    "description": "The encoding's arrays for these samples, in the request's order.",
    "headers": {
        CRC_HEADER: {"schema": {"type": "string"}, "description": "CRC-32C of the body, hex"},
        ROOT_HEADER: {"schema": {"type": "string"}, "description": "the snapshot's root, hex"},
    },
    "content": {ROWS_TYPE: BINARY},
}

OPENAPI: dict[str, Any] = {
    "post": {
        "summary": "Encoded rows of some samples",
        "operationId": "rows",
        "parameters": [
            *path_parameters("store", "snapshot"),
            {"name": "view", "in": "query", "schema": {"type": "integer", "default": 0}},
            ROOT_PARAMETER,
        ],
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": RowsRequest.model_json_schema()},
                INDICES_TYPE: BINARY,
            },
        },
        "responses": {"200": _ROWS_ANSWER},
    }
}
