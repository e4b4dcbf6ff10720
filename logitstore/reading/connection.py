"""Talk to one server: keep-alive connections, a token, and patience while the server is away.

A request is repeated until it has a whole, undamaged answer: a server that is restarted in the
middle of an epoch is only a pause.  Repeating is safe because no request changes anything.  What an
answer contains is known to ``remote`` alone.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar
from urllib.parse import urlsplit

import urllib3
from pydantic import TypeAdapter, ValidationError
from urllib3.exceptions import HTTPError

from logitstore.errors import (
    Damaged,
    Denied,
    InputError,
    MismatchError,
    PatienceExhausted,
    UnknownName,
    Unreachable,
)
from logitstore.format.wire import CRC_HEADER, DAMAGED, PROBLEM, Problem
from logitstore.reading.answer import Answer, TooLong
from logitstore.reading.incoming import Endless, bounded_pools

log = logging.getLogger(__name__)

FIRST_CONTACT_SECONDS = 5.0
"""Seconds that a server has for its first answer; after that there is patience."""

CONNECT_SECONDS, READ_SECONDS = 5.0, 60.0
"""Seconds to wait for a connection, and for the whole head of an answer."""

MOST_BACKOFF_SECONDS = 5.0
"""Most seconds between two tries, unless the server names a longer time."""

MOST_JSON_BYTES = 8 << 20
"""Bytes of the longest JSON document that is read: a listing."""

MOST_BYTES = 64 << 20
"""Bytes of the longest answer of unknown length that is read: a commit, a listing."""

DAMAGED_TRIES = 5
"""Damaged answers in a row, after which the data must be damaged at the server."""

_AWAY = {408, 429, 502, 503, 504}
"""Statuses after which the request is repeated."""

_jitter = random.SystemRandom()  # the global generator belongs to the training run

Kind = TypeVar("Kind")


@dataclass
class _Failures:
    """Counts the failed tries of one request, and the damaged answers in a row."""

    began: float
    tries: int = 0
    damaged: int = 0


class Connection:
    """Sends requests to the server at ``base``: ``scheme://host:port``, perhaps with a path.

    A server that answered once may stay away for ``patience`` seconds.  Thread-safe; a forked or
    unpickled connection opens sockets of its own.
    """

    def __init__(self, base: str, token: str | None, patience: float) -> None:
        self.base, self.patience = base, patience
        self._headers = {"user-agent": "logitstore", "accept-encoding": "identity"}
        token = os.environ.get("LOGITSTORE_TOKEN") if token is None else token
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
        """Get a JSON document; Unreachable if the server is no logitstore server."""
        answer = self.request("GET", path, most_bytes=MOST_JSON_BYTES)
        try:
            return kind.validate_json(answer.body)
        except ValidationError:
            raise self._no_logitstore(f"its answer to {path} cannot be understood") from None

    def request(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        most_bytes: int = MOST_BYTES,
    ) -> Answer:
        """Send a request until it is answered with status 200 and an undamaged body.

        An answer of more than ``most_bytes`` counts as damaged and is not read (a problem document
        may always have 64 KiB).  Raises Unreachable if no logitstore server answers,
        PatienceExhausted if it stayed away too long, Denied, UnknownName, MismatchError (it serves
        another build), InputError, or Damaged (it says so, or each answer came damaged).
        """
        failures: _Failures | None = None
        first = time.monotonic()
        while True:
            wait, damaged = 0.0, False
            seconds = self._seconds_for_head(failures)
            try:
                answer = self._send(
                    method, path, body, {**self._headers, **(headers or {})}, most_bytes, seconds
                )
            except TooLong as error:
                reason, damaged = str(error), True
            except HTTPError as error:
                reason = _reason(error)
            else:
                problem = answer.problem()
                if answer.status == 200:
                    if not self._met and CRC_HEADER not in answer.headers:
                        what = f"its answer to {path} has no {CRC_HEADER} header"
                        raise self._no_logitstore(what)
                    damage = answer.damage()
                    if damage is None:
                        self._met = True
                        return answer
                    reason, damaged = damage, True
                elif answer.status in _AWAY and (problem is None or problem.type != DAMAGED):
                    detail = f": {problem.detail}" if problem else ""
                    reason = f"it answers {answer.status}{detail}"
                    wait = answer.retry_after()
                else:
                    self._refused(answer, problem)
            if failures is None:
                # A first answer has 5 s in all; patience begins when a server was found away.
                failures = _Failures(time.monotonic() if self._met else first)
            self._pause(failures, reason, wait, damaged=damaged)

    def _patience(self) -> float:
        """Return the seconds that the server may stay away."""
        return self.patience if self._met else min(self.patience, FIRST_CONTACT_SECONDS)

    def _seconds_for_head(self, failures: _Failures | None) -> float:
        """Return the seconds in which the next answer's head must be whole: no more than are left.

        A server that decodes the rows first needs some, whatever the patience.
        """
        if failures is None:
            return min(READ_SECONDS, max(self._patience(), FIRST_CONTACT_SECONDS))
        left = failures.began + self._patience() - time.monotonic()
        return min(READ_SECONDS, max(left, 1.0))

    def _send(
        self,
        method: str,
        path: str,
        body: bytes | None,
        headers: dict[str, str],
        most_bytes: int,
        seconds: float,
    ) -> Answer:
        response = self._pool().request(
            method,
            self.base + path,
            body=body,
            headers=headers,
            timeout=urllib3.Timeout(connect=CONNECT_SECONDS, read=seconds),
            retries=False,
            redirect=False,
            decode_content=False,
            preload_content=False,
        )
        return Answer.read(response, most_bytes)

    def _pool(self) -> urllib3.PoolManager:
        pid = os.getpid()
        if pid not in self._pools:
            self._pools = {pid: bounded_pools(maxsize=16)}
        return self._pools[pid]

    def _pause(self, failures: _Failures, reason: str, wait: float, *, damaged: bool) -> None:
        """Wait before the next try, or raise if there is none."""
        failures.tries += 1
        failures.damaged = failures.damaged + 1 if damaged else 0
        if failures.damaged >= DAMAGED_TRIES:
            raise Damaged(
                f"{self.base}: the answer came damaged {failures.damaged} times in a row "
                f"({reason}); `logitstore verify` on the server tells whether it is damaged there"
            )
        limit = self._patience()
        seconds_left = failures.began + limit - time.monotonic()
        if seconds_left <= 0:
            if self._met:
                raise PatienceExhausted(
                    f"{self.base}: the server stayed away for {limit:.0f} s ({reason}); what is "
                    "done is kept: run the same command again when it is back"
                )
            raise Unreachable(
                f"{self.base}: no logitstore server answers ({reason}); is `logitstore serve` "
                "running there? Check host and port"
            )
        if failures.tries == 1 and self._met:
            log.warning("%s: %s; trying again for up to %.0f s", self.base, reason, limit)
        backoff = min(MOST_BACKOFF_SECONDS, 0.025 * 2.0 ** min(failures.tries, 16))
        time.sleep(min(seconds_left, max(wait, backoff * _jitter.uniform(0.5, 1.0))))

    def _refused(self, answer: Answer, problem: Problem | None) -> NoReturn:
        if answer.status in (401, 403):
            detail = f": {problem.detail}" if problem else ""
            raise Denied(
                f"{self.base}: the server refuses access ({answer.status}){detail}; give its token "
                "in LOGITSTORE_TOKEN or with --token-file"
            )
        if problem is None:
            raise self._no_logitstore(f"it answers {answer.status}")
        detail = f"{self.base}: {problem.detail}"
        if problem.type == PROBLEM + "unknown-name":
            raise UnknownName(detail)
        if problem.type == DAMAGED:
            raise Damaged(f"{detail}; `logitstore verify` on the server tells more")
        if answer.status == 412:
            raise MismatchError(f"{detail}; another build is served under this name now")
        if answer.status < 500:
            raise InputError(f"{detail} ({answer.status})")
        raise Unreachable(f"{detail} ({answer.status}, request {problem.request_id})")

    def _no_logitstore(self, what: str) -> Unreachable:
        return Unreachable(
            f"{self.base}: something answers, but it is no logitstore server ({what}); the address "
            "is that of `logitstore serve`, then / and a store's name"
        )


def _reason(error: HTTPError) -> str:
    """Say what went wrong; urllib3's own text consists of the names of its objects."""
    kind = type(error).__name__
    if any(isinstance(cause, Endless) for cause in error.args):
        return "its answer does not end"
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


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
