"""All routes, on the application itself, so that one list shows every path that is served."""

from __future__ import annotations

from concurrent.futures import Executor
from typing import Any, Protocol

from fastapi import FastAPI
from pydantic import TypeAdapter
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from api import objects, rows
from api.registry import Registry
from logitstore.wire import CRC_HEADER, SnapshotReply, StoreEntry, StoreReply, crc32c

SNAPSHOT_PATH = "/v1/stores/{store}/snapshots/{snapshot}"
ROWS_PATH = SNAPSHOT_PATH + "/rows"
OBJECTS_PATH = SNAPSHOT_PATH + "/objects/{key}"
BY_HAND: dict[str, dict[str, Any]] = {ROWS_PATH: rows.OPENAPI, OBJECTS_PATH: objects.OPENAPI}
"""OpenAPI of the two routes that are plain ASGI."""


STORES = TypeAdapter(list[StoreEntry])


class Drain(Protocol):
    """Whether the server has been told to stop."""

    begun: bool


def add_routes(app: FastAPI, registry: Registry, threads: Executor, drain: Drain) -> None:
    """Add every route of the service to ``app``."""

    @app.get("/livez", summary="Is the process alive?")
    async def livez() -> dict[str, str]:
        return {"status": "alive"}

    @app.get("/readyz", summary="Should requests be sent here?")
    def readyz() -> JSONResponse:
        ready = not drain.begun and bool(registry.stores())
        status = "ready" if ready else "stopping" if drain.begun else "no store"
        return JSONResponse({"status": status}, 200 if ready else 503)

    @app.get("/v1/stores", summary="The stores served here", response_model=list[StoreEntry])
    def stores() -> Response:
        return checked(STORES.dump_json(registry.entries()))

    @app.get("/v1/stores/{store}", summary="A store and its snapshots", response_model=StoreReply)
    def store(store: str) -> Response:
        return checked(registry.store(store).reply().to_bytes())

    @app.get(SNAPSHOT_PATH, summary="A snapshot's metadata", response_model=SnapshotReply)
    def snapshot(store: str, snapshot: str) -> Response:
        _, opened = registry.snapshot(store, snapshot)
        return checked(SnapshotReply(root=opened.root, meta=opened.meta).to_bytes())

    app.router.routes += [
        Route(ROWS_PATH, rows.RowsEndpoint(registry, threads), methods=["POST"], name="rows"),
        Route(
            OBJECTS_PATH.replace("{key}", "{key:path}"),
            objects.ObjectsEndpoint(registry, threads),
            methods=["GET"],
            name="objects",
        ),
    ]


def checked(document: bytes) -> Response:
    """A JSON answer whose damage on the way a client can see."""
    return Response(document, 200, {CRC_HEADER: crc32c(document)}, "application/json")
