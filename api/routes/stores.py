"""Adds all routes to the application, in one list, and answers those about stores in JSON."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from fastapi import Depends, FastAPI, Request
from pydantic import TypeAdapter
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from logitstore.api.guard.headers import by_name
from logitstore.api.routes.requests import ROOT_PARAMETER, check_root, refuse_query
from logitstore.api.served.registry import Registry
from logitstore.api.served.warm import Warming
from logitstore.format.wire import (
    CRC_HEADER,
    ROOT_HEADER,
    SnapshotReply,
    StoreEntry,
    StoreReply,
    crc32c,
)

SNAPSHOT_PATH = "/v1/stores/{store}/snapshots/{snapshot}"
ROWS_PATH = SNAPSHOT_PATH + "/rows"
OBJECTS_PATH = SNAPSHOT_PATH + "/objects/{key}"
DISK_SECONDS = 2.0
"""Seconds that /readyz waits for the disk."""

_STORE_ENTRIES = TypeAdapter(list[StoreEntry])


async def _check_query(request: Request) -> None:
    refuse_query(request.scope["query_string"])


NO_QUERY = [Depends(_check_query)]
"""Dependencies of a route that takes no query."""


def add_routes(
    app: FastAPI,
    registry: Registry,
    rows: ASGIApp,
    objects: ASGIApp,
    warming: Warming | None,
    stopping: Callable[[], bool],
) -> None:
    """Add every route of the service to ``app``.

    ``stopping`` says whether the server has been told to stop.
    """

    @app.get("/livez", summary="Is the process alive?")
    async def livez() -> dict[str, str]:
        return {"status": "alive"}

    probes = ThreadPoolExecutor(1, thread_name_prefix="logitstore-probe")

    @app.get("/readyz", summary="Should requests be sent here?")
    async def readyz() -> JSONResponse:
        if stopping():
            return JSONResponse({"status": "stopping"}, 503)
        if warming is not None and not warming.over:
            return JSONResponse({"status": "warming", "detail": warming.status_text()}, 503)
        # In a thread of its own: those of requests may all be in use.
        looking = asyncio.get_running_loop().run_in_executor(probes, registry.stores)
        try:
            ready = bool(await asyncio.wait_for(looking, DISK_SECONDS))
        except TimeoutError:
            return JSONResponse({"status": "waiting for the disk"}, 503)
        return JSONResponse({"status": "ready" if ready else "no store"}, 200 if ready else 503)

    @app.get(
        "/v1/stores",
        summary="The stores served here",
        response_model=list[StoreEntry],
        dependencies=NO_QUERY,
    )
    def stores() -> Response:
        return json_answer(_STORE_ENTRIES.dump_json(registry.entries()))

    @app.get(
        "/v1/stores/{store}",
        summary="A store and its snapshots",
        response_model=StoreReply,
        dependencies=NO_QUERY,
    )
    def store(store: str) -> Response:
        return json_answer(registry.store(store).reply().to_bytes())

    @app.get(
        SNAPSHOT_PATH,
        summary="A snapshot's metadata",
        response_model=SnapshotReply,
        dependencies=NO_QUERY,
        openapi_extra={"parameters": [ROOT_PARAMETER]},
    )
    def snapshot(store: str, snapshot: str, request: Request) -> Response:
        opened = registry.open(store, snapshot).snapshot
        check_root(opened, store, by_name(request.scope["headers"]))
        answer = json_answer(SnapshotReply(root=opened.root, meta=opened.meta).to_bytes())
        answer.headers[ROOT_HEADER] = opened.root
        return answer

    app.router.routes += [
        Route(ROWS_PATH, rows, methods=["POST"], name="rows"),
        Route(
            OBJECTS_PATH.replace("{key}", "{key:path}"), objects, methods=["GET"], name="objects"
        ),
    ]


def json_answer(document: bytes) -> Response:
    """Return an answer with its checksum, so that a client sees damage on the way."""
    return Response(document, 200, {CRC_HEADER: crc32c(document)}, "application/json")
