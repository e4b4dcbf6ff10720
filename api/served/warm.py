"""``--warm``: decode every committed snapshot before the server says that it is ready."""

from __future__ import annotations

import logging
from threading import Thread

from logitstore.api.served.registry import Registry
from logitstore.errors import LogitstoreError

log = logging.getLogger(__name__)


class Warming:
    """Decodes the newest snapshot first, and ends where the cache holds no more."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self.over = False
        self.decoded, self.total = 0, 0

    def start(self) -> None:
        """Begin to decode, in a thread of its own."""
        Thread(target=self._run, name="logitstore-warm", daemon=True).start()

    def status_text(self) -> str:
        """Tell how far it is, without a name: /readyz asks for no token."""
        return f"{self.decoded} of {self.total} snapshots are decoded"

    def _run(self) -> None:
        try:
            names = self._registry.committed()
            self.total = len(names)
            for store, name in names:
                if not self._fits(store, name):
                    log.warning("not decoded ahead: %d snapshots", self.total - self.decoded)
                    break
        except OSError:
            log.exception("nothing more is decoded ahead")
        self.over = True

    def _fits(self, store: str, name: str) -> bool:
        """Decode one; False if the cache cannot hold it.  A damaged one is only reported."""
        try:
            opened = self._registry.open(store, name)
        except (LogitstoreError, OSError) as error:
            log.error("%s", error)
            return True
        job = self._registry.job_of(opened)
        job.ended.result()
        self.decoded += job.copied
        return job.copied or job.error is not None
