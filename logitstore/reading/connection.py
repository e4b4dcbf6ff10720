"""One server: keep-alive connections, a token, and patience while it is away.

A request is repeated until it has a whole, undamaged answer: a server that is restarted in the
middle of an epoch is only a pause.  Repeating is safe because nothing that is asked here changes
anything.  What an answer means is the business of ``remote``.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn, TypeVar
from urllib.parse import urlsplit

import urllib3
from pydantic import TypeAdapter, ValidationError
from urllib3.exceptions import HTTPError, InvalidHeader

from logitstore.errors import (
    Damaged,
    Denied,
    InputError,
    MismatchError,
    PatienceExhausted,
    UnknownName,
    Unreachable,
)
from logitstore.format.wire import CRC_HEADER, DAMAGED, PROBLEM, PROBLEM_TYPE, Problem, crc32c

log = logging.getLogger(__name__)


FIRST_CONTACT_SECONDS = 5.0


CONNECT_SECONDS, READ_SECONDS = 5.0, 60.0


SLOWEST_RETRY_SECONDS = 5.0


LONGEST_RETRY_AFTER_SECONDS = 30.0


MOST_BYTES = 64 << 20
"""The longest answer that is read where its length is not known beforehand: commits, listings."""


DAMAGED_TRIES = 5
"""Answers damaged this often in a row are damaged at their source."""


_PROBLEM_BYTES = 64 << 10


_AWAY = {408, 429, 502, 503, 504}


_jitter = random.SystemRandom()  # the global generator belongs to the training run


Check = Callable[["Answer"], str | None]


Kind = TypeVar("Kind")


@dataclass(frozen=True)
class Answer:
    """A whole answer; header names are looked up without regard to case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def problem(self) -> Problem | None:
        """The problem document that this is, if it is one of a logitstore server."""
        if self.headers.get("content-type", "").split(";")[0] != PROBLEM_TYPE:
            return None
        try:
            found = Problem.parse("problem", self.body)
        except Damaged:
            return None
        return found if found.type.startswith(PROBLEM) else None


class _TooLong(HTTPError):
    """An answer longer than it can be; not read."""


@dataclass
class _Trouble:
    """Failures in a row of one request: since when, how many, how many of them damaged."""

    began: float = field(default_factory=time.monotonic)
    tries: int = 0
    damaged: int = 0


class Connection:
    """``base`` is ``scheme://host:port`` and perhaps a path; ``patience`` is in seconds.

    Thread-safe; a forked or unpickled copy opens its own sockets.
    """

    def __init__(self, base: str, token: str | None, patience: float) -> None:
        self.base, self.patience = base, patience
        self._headers = {"user-agent": "logitstore", "accept-encoding": "identity"}
        token = token or os.environ.get("LOGITSTORE_TOKEN")
        if token:
            if not token.isascii() or not token.isprintable() or " " in token:
                raise InputError("the token holds spaces or characters that a header cannot carry")
            self._headers["authorization"] = f"Bearer {token}"
            if base.startswith("http://") and not _is_loopback(urlsplit(base).hostname or ""):
                log.warning("%s: the token is sent unencrypted; prefer https://", base)
        self._met = False
        self._pools: dict[int, urllib3.PoolManager] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pools": {}}

    def json(self, path: str, kind: TypeAdapter[Kind]) -> Kind:
        """GET a JSON document; Unreachable if it is not one of a logitstore server."""

        def check(answer: Answer) -> str | None:
            if CRC_HEADER not in answer.headers and not self._met:
                raise self._stranger(f"its answer to {path} has no {CRC_HEADER} header")
            return same_checksum(answer)

        answer = self.request("GET", path, check=check)
        try:
            return kind.validate_json(answer.body)
        except ValidationError:
            raise self._stranger(f"its answer to {path} cannot be understood") from None

    def request(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        check: Check | None = None,
        most_bytes: int = MOST_BYTES,
    ) -> Answer:
        """Send until there is an answer of status 200 that ``check`` finds nothing wrong with.

        ``check`` returns what is damaged, or None; an answer of more than ``most_bytes`` is damaged
        and not read (a problem may always have 64 KiB).  Raises Unreachable if the server never
        answered, PatienceExhausted if it stayed away too long, Denied, UnknownName, MismatchError
        (it serves another build), InputError, or Damaged (it says so, or each answer came damaged).
        """
        trouble: _Trouble | None = None
        while True:
            wait, damaged = 0.0, False
            try:
                answer = self._send(
                    method, path, body, {**self._headers, **(headers or {})}, most_bytes
                )
            except _TooLong as error:
                reason, damaged = str(error), True
            except HTTPError as error:
                reason = _reason(error)
            else:
                problem = answer.problem()
                if answer.status == 200:
                    wrong = check(answer) if check else None
                    if wrong is None:
                        self._met = True
                        return answer
                    reason, damaged = wrong, True
                elif answer.status in _AWAY and (problem is None or problem.type != DAMAGED):
                    reason = f"it answers {answer.status}" + (
                        f": {problem.detail}" if problem else ""
                    )
                    wait = _retry_after(answer.headers)
                else:
                    self._refused(answer, problem)
            trouble = trouble or _Trouble()
            self._pause(trouble, reason, wait, damaged=damaged)

    def _send(
        self, method: str, path: str, body: bytes | None, headers: dict[str, str], most_bytes: int
    ) -> Answer:
        read = READ_SECONDS if self._met else FIRST_CONTACT_SECONDS
        answer = self._pool().request(
            method,
            self.base + path,
            body=body,
            headers=headers,
            timeout=urllib3.Timeout(connect=CONNECT_SECONDS, read=read),
            retries=False,
            redirect=False,
            decode_content=False,
            preload_content=False,
        )
        return Answer(answer.status, answer.headers, _read(answer, most_bytes))

    def _pool(self) -> urllib3.PoolManager:
        pid = os.getpid()
        if pid not in self._pools:
            self._pools = {pid: urllib3.PoolManager(maxsize=16)}
        return self._pools[pid]

    def _pause(self, trouble: _Trouble, reason: str, wait: float, *, damaged: bool) -> None:
        """Wait before the next try, or raise if there is none."""
        trouble.tries += 1
        trouble.damaged = trouble.damaged + 1 if damaged else 0
        if trouble.damaged >= DAMAGED_TRIES:
            raise Damaged(
                f"{self.base}: the answer came damaged {trouble.damaged} times in a row "
                f"({reason}); `logitstore verify` on the server tells whether it is damaged there"
            )
        limit = self.patience if self._met else min(self.patience, FIRST_CONTACT_SECONDS)
        left = trouble.began + limit - time.monotonic()
        if left <= 0:
            if self._met:
                raise PatienceExhausted(
                    f"{self.base}: the server stayed away for {limit:.0f} s ({reason}); what is "
                    "done is kept: run the same command again when it is back"
                )
            raise Unreachable(
                f"{self.base}: no logitstore server answers ({reason}); is `logitstore serve` "
                "running there? Check host and port"
            )
        if trouble.tries == 1 and self._met:
            log.warning("%s: %s; trying again for up to %.0f s", self.base, reason, limit)
        backoff = min(SLOWEST_RETRY_SECONDS, 0.025 * 2.0 ** min(trouble.tries, 16))
        time.sleep(min(left, max(wait, backoff * _jitter.uniform(0.5, 1.0))))

    def _refused(self, answer: Answer, problem: Problem | None) -> NoReturn:
        if answer.status in (401, 403):
            raise Denied(
                f"{self.base}: the server refuses access ({answer.status}): give its token in "
                "LOGITSTORE_TOKEN or with --token-file"
            )
        if problem is None:
            raise self._stranger(f"it answers {answer.status}")
        said = f"{self.base}: {problem.detail}"
        if problem.type == PROBLEM + "unknown-name":
            raise UnknownName(said)
        if problem.type == DAMAGED:
            raise Damaged(f"{said}; `logitstore verify` on the server tells more")
        if answer.status == 412:
            raise MismatchError(f"{said}; another build is served under this name now")
        if answer.status < 500:
            raise InputError(f"{said} ({answer.status})")
        raise Unreachable(f"{said} ({answer.status}, request {problem.request_id})")

    def _stranger(self, what: str) -> Unreachable:
        return Unreachable(
            f"{self.base}: something answers, but it is no logitstore server ({what}); the address "
            "is that of `logitstore serve`, then / and a store's name"
        )


def _read(answer: urllib3.BaseHTTPResponse, most_bytes: int) -> bytes:
    """The whole body, if it is no longer than it can be; else the connection is given up."""
    most = most_bytes if answer.status == 200 else max(most_bytes, _PROBLEM_BYTES)
    declared = answer.headers.get("content-length", "")
    if declared.isdigit() and "transfer-encoding" not in answer.headers:
        body = answer.read() if int(declared) <= most else None
    else:
        body = answer.read(most + 1)
    if body is None or len(body) > most:
        answer.close()
        raise _TooLong(f"it sends more than the {most} bytes that there can be")
    answer.release_conn()
    return body


def same_checksum(answer: Answer) -> str | None:
    """What is damaged about an answer that says its CRC-32C, or None."""
    return None if answer.headers.get(CRC_HEADER) == crc32c(answer.body) else "crc32c differs"


def _reason(error: HTTPError) -> str:
    """What went wrong, in words; urllib3 wraps the cause in the names of its objects."""
    kind = type(error).__name__
    if kind == "NewConnectionError":
        cause = error.__cause__
        return (
            "connection refused" if isinstance(cause, ConnectionRefusedError) else "no connection"
        )
    return {
        "NameResolutionError": "its name is unknown",
        "ConnectTimeoutError": f"no connection within {CONNECT_SECONDS:.0f} s",
        "ReadTimeoutError": "connected, but no answer in time",
        "ProtocolError": "the connection was cut",
        "SSLError": "no secure connection: is its certificate trusted, and is it https?",
    }.get(kind, kind)


def _retry_after(headers: Mapping[str, str]) -> float:
    try:
        seconds = urllib3.Retry().parse_retry_after(headers.get("retry-after", "0"))
    except InvalidHeader:
        return 0.0
    return min(LONGEST_RETRY_AFTER_SECONDS, float(seconds))


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
