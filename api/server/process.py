"""``serve(settings)``: the listening socket, uvicorn or several workers of it, and a quiet end."""

from __future__ import annotations

import ipaddress
import logging
import multiprocessing
import multiprocessing.connection
import os
import resource
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from threading import Thread

import uvicorn
from fastapi import FastAPI
from uvicorn.supervisors import Multiprocess

from logitstore.api.app import create_app
from logitstore.api.served.catalog import find_stores
from logitstore.api.server.logs import configure_logs
from logitstore.api.server.protocol import LimitedProtocol
from logitstore.api.settings import Settings
from logitstore.errors import InputError
from logitstore.reading.scan import Scan

log = logging.getLogger(__name__)

DRAIN_SECONDS = 8
"""Seconds that answers in progress have left when the server stops listening."""

MOST_ANNOUNCED = 20
"""Stores whose URLs are logged at the start."""


def serve(settings: Settings) -> None:
    """Serve until SIGTERM or Ctrl-C, then finish answers in progress, for at most 10 s.

    InputError if the address cannot be bound.
    """
    configure_logs(access=settings.access_log)
    _allow_many_files()
    with _listen(settings) as listener, _quiet_end():
        _announce(settings, listener)
        several = settings.workers > 1
        config = uvicorn.Config(
            partial(_worker_app, settings) if several else partial(create_app, settings),
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


def _worker_app(settings: Settings) -> FastAPI:
    """Return the application in a spawned worker, which inherits nothing and ends with its parent.

    Without its parent nobody would stop or restart it, and it would keep the port.
    """
    configure_logs(access=settings.access_log)
    parent = multiprocessing.parent_process()
    if parent is not None:
        Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()
    return create_app(settings)


def _end_with(sentinel: int) -> None:
    """Wait until the parent is gone, and end at once: every request may be repeated."""
    multiprocessing.connection.wait([sentinel])
    log.error("the parent process is gone: this worker ends")
    os._exit(1)


def _allow_many_files() -> None:
    """Raise the number of open files to what the system allows: connections, objects, copies."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = hard if hard != resource.RLIM_INFINITY else 1 << 16
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(most, 1 << 16)), hard))


def _announce(settings: Settings, listener: socket.socket) -> None:
    """Log the URL of every store, now that the port is bound."""
    host, port = listener.getsockname()[:2]
    if ipaddress.ip_address(host).is_unspecified:
        host = socket.gethostname()
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    stores = sorted(find_stores(Scan(settings.root)))
    for name in stores[:MOST_ANNOUNCED]:
        log.info("serving %s/%s", url, name)
    if len(stores) > MOST_ANNOUNCED:
        log.info("serving %d stores, which %s/v1/stores lists", len(stores), url)


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
