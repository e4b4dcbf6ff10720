"""The application and the process around it: ``create_app(settings)`` and ``serve(settings)``."""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response

from logitstore.api.guard.auth import BearerAuth, Tokens
from logitstore.api.guard.limits import Bodies, Guard
from logitstore.api.guard.problems import Frame
from logitstore.api.routes import objects
from logitstore.api.routes import rows as rows_route
from logitstore.api.routes.fast_rows import Lane
from logitstore.api.routes.objects import ObjectsEndpoint
from logitstore.api.routes.rows import RowsEndpoint
from logitstore.api.routes.stores import OBJECTS_PATH, ROWS_PATH, add_routes
from logitstore.api.served.registry import Registry
from logitstore.api.served.warm import Warming
from logitstore.api.server.drain import Drain
from logitstore.api.settings import Settings
from logitstore.cache.cache import Cache
from logitstore.version import __version__

log = logging.getLogger(__name__)


THREADS = min(8, (os.cpu_count() or 1) + 2)


class Service(FastAPI):
    """FastAPI, with the two plain ASGI routes in its description."""

    def openapi(self) -> dict[str, Any]:
        schema = super().openapi()
        schema["paths"].update(BY_HAND)
        return schema


def create_app(settings: Settings) -> FastAPI:
    """The service over ``settings.root``; reads nothing from the environment."""
    registry, drain = Registry(settings.root, Cache.default(settings.cache)), Drain()
    warming = Warming(registry) if settings.warm else None
    tokens = Tokens(settings.token_file) if settings.token_file else None
    threads = ThreadPoolExecutor(THREADS, thread_name_prefix="logitstore")
    rows = RowsEndpoint(registry, threads, Bodies(settings.limits.rows_bytes))
    loopback_only = settings.loopback and tokens is None
    lane = Lane(rows, tokens, settings.limits, loopback_only=loopback_only)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
        drain.watch()
        if warming is not None:
            warming.start()
        yield {"limits": settings.limits, "lane": lane}
        threads.shutdown(wait=False, cancel_futures=True)

    app = Service(
        title="logitstore",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        redirect_slashes=False,
        middleware=[
            Middleware(Frame),
            Middleware(BearerAuth, tokens=tokens),
            Middleware(Guard, limits=settings.limits, loopback_only=loopback_only),
        ],
        exception_handlers={HTTPException: _rise},
    )
    objects_route = ObjectsEndpoint(registry, threads)
    add_routes(app, registry, rows, objects_route, warming, lambda: drain.begun)
    return app


async def _rise(request: Request, error: Exception) -> Response:
    """Leave unknown paths and methods to ``Frame``, like every other error."""
    raise error


BY_HAND: dict[str, dict[str, Any]] = {
    ROWS_PATH: rows_route.OPENAPI,
    OBJECTS_PATH: objects.OPENAPI,
}
"""OpenAPI of the two routes that are plain ASGI."""
