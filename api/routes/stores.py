"""All routes, on the application itself, so that one list shows every path that is served."""

from __future__ import annotations

from typing import Protocol

from fastapi import FastAPI
from pydantic import TypeAdapter
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from logitstore.api.served.registry import Registry
from logitstore.api.served.warm import Warming
from logitstore.format.wire import CRC_HEADER, SnapshotReply, StoreEntry, StoreReply, crc32c

SNAPSHOT_PATH = "/v1/stores/{store}/snapshots/{snapshot}"


ROWS_PATH = SNAPSHOT_PATH + "/rows"


OBJECTS_PATH = SNAPSHOT_PATH + "/objects/{key}"


STORES = TypeAdapter(list[StoreEntry])


class Drain(Protocol):
    """Whether the server has been told to stop."""

    begun: bool


def add_routes(
    app: FastAPI,
    registry: Registry,
    rows: ASGIApp,
    objects: ASGIApp,
    drain: Drain,
    warming: Warming | None,
) -> None:
    """Add every route of the service to ``app``."""

    @app.get("/livez", summary="Is the process alive?")
    async def livez() -> dict[str, str]:
        return {"status": "alive"}

    @app.get("/readyz", summary="Should requests be sent here?")
    def readyz() -> JSONResponse:
        if drain.begun:
            return JSONResponse({"status": "stopping"}, 503)
        if warming is not None and not warming.over:
            return JSONResponse({"status": "warming", "detail": warming.told()}, 503)
        ready = bool(registry.stores())
        return JSONResponse({"status": "ready" if ready else "no store"}, 200 if ready else 503)

    @app.get("/v1/stores", summary="The stores served here", response_model=list[StoreEntry])
    def stores() -> Response:
        return checked(STORES.dump_json(registry.entries()))

    @app.get("/v1/stores/{store}", summary="A store and its snapshots", response_model=StoreReply)
    def store(store: str) -> Response:
        return checked(registry.store(store).reply().to_bytes())

    @app.get(SNAPSHOT_PATH, summary="A snapshot's metadata", response_model=SnapshotReply)
    def snapshot(store: str, snapshot: str) -> Response:
        opened = registry.open(store, snapshot).snapshot
        return checked(SnapshotReply(root=opened.root, meta=opened.meta).to_bytes())

    app.router.routes += [
        Route(ROWS_PATH, rows, methods=["POST"], name="rows"),
        Route(
            OBJECTS_PATH.replace("{key}", "{key:path}"), objects, methods=["GET"], name="objects"
        ),
    ]


def checked(document: bytes) -> Response:
    """A JSON answer whose damage on the way a client can see."""
    return Response(document, 200, {CRC_HEADER: crc32c(document)}, "application/json")
