"""The application and the process around it: ``create_app(settings)`` and ``serve(settings)``."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from typing import Any

import uvicorn
from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from uvicorn.supervisors import Multiprocess

import logitstore
from api.auth import BearerAuth, Tokens
from api.lane import Lane
from api.limits import Bodies, Guard
from api.objects import ObjectsEndpoint
from api.problems import Frame
from api.protocol import GuardedProtocol
from api.registry import Registry
from api.routes import BY_HAND, add_routes
from api.rows import RowsEndpoint
from api.settings import Settings
from api.warm import Warming
from logitstore.cache import Cache
from logitstore.errors import InputError

log = logging.getLogger(__name__)

NOTICE_SECONDS = 1.0
"""How long /readyz says 503 before new connections are refused."""
DRAIN_SECONDS = 8
"""How long answers in progress may take after that."""
THREADS = min(8, (os.cpu_count() or 1) + 2)


class Service(FastAPI):
    """FastAPI, with the two plain ASGI routes in its description."""

    def openapi(self) -> dict[str, Any]:
        schema = super().openapi()
        schema["paths"].update(BY_HAND)
        return schema


class Drain:
    """SIGTERM in two steps: say so at /readyz, then, a moment later, let uvicorn stop."""

    def __init__(self) -> None:
        self.begun = False

    def watch(self) -> None:
        """Put this in front of the server's own handler of SIGTERM, if it can have one here."""
        if threading.current_thread() is not threading.main_thread():
            return
        loop, stop = asyncio.get_running_loop(), signal.getsignal(signal.SIGTERM)

        def begin(number: int, frame: Any) -> None:
            self.begun = True
            if callable(stop):
                loop.call_soon_threadsafe(loop.call_later, NOTICE_SECONDS, stop, number, None)

        signal.signal(signal.SIGTERM, begin)


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
        version=logitstore.__version__,
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
    add_routes(app, registry, rows, ObjectsEndpoint(registry, threads), drain, warming)
    return app


async def _rise(request: Request, error: Exception) -> Response:
    """Leave unknown paths and methods to ``Frame``, like every other error."""
    raise error


def serve(settings: Settings) -> None:
    """Serve until SIGTERM or Ctrl-C, then answer what is in progress, for at most 10 s, and return.

    InputError if the address cannot be bound.
    """
    with _listen(settings) as listener, _quiet_end():
        host, port = listener.getsockname()[:2]
        log.info("serving %s at http://%s:%d", settings.root, host, port)
        several = settings.workers > 1
        level = logging.getLogger().getEffectiveLevel()
        config = uvicorn.Config(
            partial(_worker_app, settings, level) if several else partial(create_app, settings),
            factory=True,
            http=GuardedProtocol,
            ws="none",
            lifespan="on",
            workers=settings.workers,
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=settings.limits.idle_seconds,
            timeout_graceful_shutdown=DRAIN_SECONDS,
        )
        if several:
            Multiprocess(config, sockets=[listener]).run()
        else:
            uvicorn.Server(config).run(sockets=[listener])


def _worker_app(settings: Settings, level: int) -> FastAPI:
    """``create_app`` in a spawned worker, which has inherited no logging configuration."""
    logging.basicConfig(level=level)
    return create_app(settings)


@contextmanager
def _listen(settings: Settings) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        listener = socket.create_server((settings.host, settings.port), family=family, backlog=1024)
    except OSError as error:
        reason = str(error.strerror).partition(" (")[0]
        raise InputError(
            f"cannot listen on {settings.host}:{settings.port}: {reason}; choose another "
            "--port or --host, or stop what is listening there"
        ) from None
    with listener:
        listener.set_inheritable(True)
        yield listener


@contextmanager
def _quiet_end() -> Iterator[None]:
    """uvicorn raises the signal that stopped it again; being told to stop is a normal end here."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda number, frame: None)
    try:
        with suppress(KeyboardInterrupt):
            yield
    finally:
        signal.signal(signal.SIGTERM, before)
