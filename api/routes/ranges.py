"""Choose the bytes of an object that an answer holds, by RFC 9110, sections 13 and 14.

Knows the object's length and entity tag, and no store.
"""

from __future__ import annotations

import re

from logitstore.api.guard.problems import Refusal
from logitstore.errors import MismatchError

_RANGE = re.compile(r"bytes=(?:([0-9]{1,18})-([0-9]{0,18})|-([0-9]{1,18}))", re.IGNORECASE)


def choose_range(
    method: str, headers: dict[bytes, bytes], etag: str, length: int
) -> tuple[int, dict[str, str], int, int]:
    """Return status and headers of the answer, and the bytes ``start .. stop-1`` that it holds.

    MismatchError if ``If-Match`` names other entity tags, Refusal if a range lies outside.
    """
    if not _is_named(headers.get(b"if-match", b"*"), etag):
        raise MismatchError(f"the object's entity tag is {etag}, If-Match names others")
    if _is_named(headers.get(b"if-none-match", b"").replace(b"W/", b""), etag):
        return 304, {}, 0, 0
    status, start, stop, content = 200, 0, length, {"content-type": "application/octet-stream"}
    if method == "GET" and headers.get(b"if-range", etag.encode()) == etag.encode():
        span = _parse_range(headers.get(b"range", b"").decode("latin-1"), length)
        if span is not None:
            status, (start, stop) = 206, span
            content["content-range"] = f"bytes {start}-{stop - 1}/{length}"
    content["content-length"] = str(stop - start)
    return status, content, start, stop


def _is_named(field: bytes, etag: str) -> bool:
    """Say whether a list of entity tags, or ``*``, names this one."""
    tags = [tag.strip() for tag in field.decode("latin-1").split(",")]
    return "*" in tags or etag in tags


def _parse_range(value: str, length: int) -> tuple[int, int] | None:
    """Return ``start, stop`` of a single valid range; None if the header is to be ignored."""
    match = _RANGE.fullmatch(value)
    if match is None:
        return None
    first, last, suffix = match.groups()
    if suffix is not None:
        start, stop = max(0, length - int(suffix)), length
    elif last and int(last) < int(first):
        return None
    else:
        start, stop = int(first), min(length, int(last) + 1) if last else length
    if start >= stop:
        outside = {"content-range": f"bytes */{length}"}
        raise Refusal(416, "range", f"the object has {length} bytes", outside)
    return start, stop
