"""``create_app(settings)`` puts the service together: registry, routes, and what guards them.

Reads nothing from the environment; the process around it is in ``server``.
"""

from __future__ import annotations

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
from logitstore.api.guard.clients import Addresses, parse_networks
from logitstore.api.guard.limits import BodyMemory, LimitsMiddleware
from logitstore.api.guard.problems import ProblemMiddleware
from logitstore.api.routes import objects
from logitstore.api.routes import rows as rows_route
from logitstore.api.routes.fast_rows import FastRows
from logitstore.api.routes.objects import ObjectsEndpoint
from logitstore.api.routes.rows import RowsEndpoint
from logitstore.api.routes.stores import OBJECTS_PATH, ROWS_PATH, add_routes
from logitstore.api.served.registry import Registry
from logitstore.api.served.warm import Warming
from logitstore.api.server.drain import Drain
from logitstore.api.settings import Settings
from logitstore.cache.cache import Cache
from logitstore.version import __version__

THREADS = min(8, (os.cpu_count() or 1) + 2)
"""Threads that wait for the disk, per worker process."""


class Service(FastAPI):
    """FastAPI whose description also names the two routes that are plain ASGI."""

    def openapi(self) -> dict[str, Any]:
        schema = super().openapi()
        schema["paths"].update({ROWS_PATH: rows_route.OPENAPI, OBJECTS_PATH: objects.OPENAPI})
        return schema


def create_app(settings: Settings) -> FastAPI:
    """Return the service over ``settings.root``."""
    registry, drain = Registry(settings.root, Cache.default(settings.cache)), Drain()
    warming = Warming(registry) if settings.warm else None
    tokens = Tokens(settings.token_file) if settings.token_file else None
    threads = ThreadPoolExecutor(THREADS, thread_name_prefix="logitstore")
    rows = RowsEndpoint(registry, threads, BodyMemory(settings.limits.rows_bytes))
    loopback_only = settings.loopback and tokens is None
    limits = settings.limits
    addresses = Addresses(parse_networks(settings.trusted_proxies))
    fast_rows = FastRows(rows, tokens, limits, addresses, loopback_only=loopback_only)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
        drain.watch()
        if warming is not None:
            warming.start()
        yield {"limits": limits, "fast_rows": fast_rows}
        threads.shutdown(wait=False, cancel_futures=True)

    app = Service(
        title="logitstore",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        redirect_slashes=False,
        middleware=[
            Middleware(ProblemMiddleware),
            Middleware(BearerAuth, tokens=tokens),
            Middleware(LimitsMiddleware, limits, addresses, loopback_only=loopback_only),
        ],
        exception_handlers={HTTPException: _reraise},
    )
    objects_route = ObjectsEndpoint(registry, threads)
    add_routes(app, registry, rows, objects_route, warming, lambda: drain.begun)
    return app


async def _reraise(request: Request, error: Exception) -> Response:
    """Leave an unknown path or method to ``ProblemMiddleware``, like every other error."""
    raise error
