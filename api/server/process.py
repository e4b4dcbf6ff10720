"""``serve(settings)``: the listening socket, uvicorn or several workers of it, and a quiet end."""

from __future__ import annotations

import logging
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial

import uvicorn
from fastapi import FastAPI
from uvicorn.supervisors import Multiprocess

from logitstore.api.app import create_app
from logitstore.api.server.protocol import LimitedProtocol
from logitstore.api.settings import Settings
from logitstore.errors import InputError

log = logging.getLogger(__name__)

DRAIN_SECONDS = 8
"""Seconds that answers in progress have left when the server stops listening."""


def serve(settings: Settings) -> None:
    """Serve until SIGTERM or Ctrl-C, then finish answers in progress, for at most 10 s.

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
            http=LimitedProtocol,
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
    """Return the application in a spawned worker, which inherits no logging configuration."""
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
    """Swallow the signal that stopped uvicorn, which raises it again: stopping is a normal end."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda number, frame: None)
    try:
        with suppress(KeyboardInterrupt):
            yield
    finally:
        signal.signal(signal.SIGTERM, before)
