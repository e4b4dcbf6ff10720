"""Read a server's answer whole, and check that it is undamaged.

It does not know requests, nor what an answer is about.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import urllib3
from urllib3.exceptions import HTTPError, InvalidHeader, ProtocolError

from logitstore.errors import Damaged
from logitstore.format.wire import CRC_HEADER, PROBLEM, PROBLEM_TYPE, Problem, crc32c
from logitstore.reading.incoming import begin_body
from logitstore.text import printable

MOST_RETRY_AFTER_SECONDS = 30.0
"""Most seconds that a server's Retry-After is followed."""

_PROBLEM_BYTES = 64 << 10
"""Bytes of the longest problem document that is read."""


class TooLong(HTTPError):
    """An answer is longer than it can be, and is not read."""


@dataclass(frozen=True)
class Answer:
    """Holds a whole answer of a server; header names ignore case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @classmethod
    def read(cls, response: urllib3.BaseHTTPResponse, most_bytes: int) -> Answer:
        """Read the whole body.

        TooLong if it is longer, and the connection is given up; other HTTPErrors if it comes too
        slowly, does not end or is no HTTP.
        """
        most = most_bytes if response.status == 200 else max(most_bytes, _PROBLEM_BYTES)
        begin_body(response, most)
        body: bytes | None
        try:
            if "transfer-encoding" in response.headers or response.length_remaining is None:
                body = response.read(most + 1)
            else:
                body = response.read() if response.length_remaining <= most else None
        except (ValueError, OverflowError) as error:  # of the length of a chunk
            raise ProtocolError(f"no HTTP: {error}") from error
        if body is None or len(body) > most:
            response.close()
            raise TooLong(f"it sends more than the {most} bytes that there can be")
        response.release_conn()
        return cls(response.status, response.headers, body)

    def damage(self) -> str | None:
        """Compare the body with its CRC-32C, or an object with the SHA-256 in its entity tag."""
        if CRC_HEADER in self.headers:
            return None if self.headers[CRC_HEADER] == crc32c(self.body) else "crc32c differs"
        tag = f'"{hashlib.sha256(self.body).hexdigest()}"'
        return None if self.headers.get("etag") == tag else "sha256 differs"

    def problem(self) -> Problem | None:
        """Return the problem document of a logitstore server that this is, or None."""
        if self.headers.get("content-type", "").split(";")[0] != PROBLEM_TYPE:
            return None
        try:
            problem = Problem.parse("problem", self.body)
        except Damaged:
            return None
        if not problem.type.startswith(PROBLEM):
            return None
        return problem.model_copy(update={"detail": printable(problem.detail)})

    def retry_after(self) -> float:
        """Return the seconds to wait that the answer names, at most 30."""
        text = self.headers.get("retry-after", "0").strip()
        if text.isascii() and text.isdigit():
            return min(MOST_RETRY_AFTER_SECONDS, float(text[:9]))
        try:
            seconds = urllib3.Retry().parse_retry_after(text)
        except (InvalidHeader, ValueError, OverflowError):  # the latter of a date of no calendar
            return 0.0
        return min(MOST_RETRY_AFTER_SECONDS, max(0.0, float(seconds)))
