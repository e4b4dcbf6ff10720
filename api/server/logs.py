"""Log one line for each event on stderr, with time and level."""

from __future__ import annotations

import logging
import time

from logitstore.api.guard.problems import ACCESS
from logitstore.text import printable


class _Lines(logging.Formatter):
    """Writes a record on one line, whatever names and paths of others are in it."""

    converter = staticmethod(time.gmtime)
    default_msec_format = "%s.%03dZ"
    default_time_format = "%Y-%m-%dT%H:%M:%S"

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = printable(record.message)
        return super().formatMessage(record)

    def formatException(self, ei: object) -> str:
        text = super().formatException(ei)  # type: ignore[arg-type]  # as its caller gives it
        return "\n".join(f"  {printable(line)}" for line in text.splitlines())


def configure_logs(*, access: bool) -> None:
    """Send all logs of this process to stderr; with ``access`` one of every request, too."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Lines("%(asctime)s %(levelname)s %(message)s"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    ACCESS.setLevel(logging.INFO if access else logging.WARNING)
