"""A server that drips, never ends or says absurd things ends in an error of ours, and in time.

Only HTTP and public names are used here.
"""

import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from threading import Event, Thread

import google_crc32c

from logitstore import open_store
from logitstore.errors import LogitstoreError

OK = b"HTTP/1.1 200 OK\r\n"
GIVES_UP = 20.0
"""Seconds after which a liar stops: a client that is still there has waited too long."""


class Liar:
    """Answers each request with what ``answers`` yields; ``outlasted`` once it had to stop."""

    def __init__(self, *answers: Callable[[], Iterator[bytes]]) -> None:
        self.outlasted = Event()
        self._answers = answers
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._began = time.monotonic()
        Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        number = 0
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with client, suppress(OSError):
                client.settimeout(GIVES_UP)
                while self._read_head(client):
                    answer = self._answers[min(number, len(self._answers) - 1)]
                    number += 1
                    for part in answer():
                        client.sendall(part)
                        if time.monotonic() > self._began + GIVES_UP:
                            self.outlasted.set()
                            self.close()
                            return

    def _read_head(self, client: socket.socket) -> bool:
        head = b""
        while b"\r\n\r\n" not in head:
            more = client.recv(4096)
            if not more:
                return False
            head += more
        return True

    def close(self) -> None:
        self._listener.close()


def slowly(part: bytes) -> Iterator[bytes]:
    while True:
        yield part
        time.sleep(0.2)


def quickly(part: bytes) -> Iterator[bytes]:
    while True:
        yield part


def after(
    head: bytes, rest: Callable[[bytes], Iterator[bytes]] | None = None, part: bytes = b""
) -> Callable[[], Iterator[bytes]]:
    def answer() -> Iterator[bytes]:
        yield head
        if rest is not None:
            yield from rest(part)

    return answer


CHUNKED = OK + b"transfer-encoding: chunked\r\n\r\n"
BUSY = b"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\nretry-after: "
LIES: dict[str, Callable[[], Iterator[bytes]]] = {
    "a status line that drips": after(b"HTTP/1.1 200 O", slowly, b"K"),
    "headers that drip": after(OK, slowly, b"a: b\r\n"),
    "a header that drips": after(OK + b"a: ", slowly, b"b"),
    "interim answers that drip": after(b"", slowly, b"HTTP/1.1 100 Continue\r\n\r\n"),
    "interim answers without end": after(b"", quickly, b"HTTP/1.1 100 Continue\r\n\r\n" * 999),
    "a body that drips": after(OK + b"content-length: 1000\r\n\r\n", slowly, b"x"),
    "chunks that drip": after(CHUNKED, slowly, b"1\r\nx\r\n"),
    "chunks without end": after(CHUNKED, quickly, b"1\r\nx\r\n" * 9999),
    "trailers that drip": after(CHUNKED + b"2\r\n[]\r\n0\r\n", slowly, b"a: b\r\n"),
    "trailers without end": after(CHUNKED + b"2\r\n[]\r\n0\r\n", quickly, b"a: b\r\n" * 9999),
    "a chunk of less than nothing": after(CHUNKED + b"-5\r\n", quickly, b"x" * 9999),
    "a chunk of minus one": after(CHUNKED + b"-1\r\n", quickly, b"x" * 9999),
    "a chunk of 4000 digits": after(CHUNKED + b"f" * 4000 + b"\r\n", quickly, b"x" * 9999),
    "a body without a length": after(OK + b"\r\n", quickly, b"x" * 9999),
    "a length that is no number": after(OK + "content-length: ²\r\n\r\n[]".encode("latin-1")),
    "a length of 5000 digits": after(OK + b"content-length: " + b"9" * 5000 + b"\r\n\r\n[]"),
    "two lengths": after(OK + b"content-length: 2\r\ncontent-length: 3\r\n\r\n[]"),
    "a status of 5000 digits": after(b"HTTP/1.1 " + b"9" * 5000 + b" OK\r\n\r\n"),
    "retry after no number": after(BUSY + "²\r\n\r\n".encode("latin-1")),
    "retry after 5000 digits": after(BUSY + b"9" * 5000 + b"\r\n\r\n"),
    "retry after 4000 digits": after(BUSY + b"9" * 4000 + b"\r\n\r\n"),
    "retry after a day of no calendar": after(BUSY + b"Mon, 99 Jan 999999999 99:99:99\r\n\r\n"),
    "retry after infinity": after(BUSY + b"inf\r\n\r\n"),
}


def opened(url: str, patience: float) -> str:
    """Return the name of what opening a store raises, or its whole text if it is not ours."""
    try:
        open_store(url, patience=patience)
    except LogitstoreError as error:
        return type(error).__name__
    except Exception as error:
        return repr(error)
    return "a store"


def test_no_first_answer_outlasts_its_time_or_is_more_than_an_error() -> None:
    liars = {name: Liar(answer) for name, answer in LIES.items()}
    with ThreadPoolExecutor(len(liars)) as threads:
        outcomes = dict(
            zip(liars, threads.map(lambda liar: opened(liar.url, 1.0), liars.values()), strict=True)
        )
    outlasted = [name for name, liar in liars.items() if liar.outlasted.is_set()]
    for liar in liars.values():
        liar.close()
    assert outlasted == []
    assert outcomes == {
        name: "Damaged" if outcome == "Damaged" else "Unreachable"
        for name, outcome in outcomes.items()
    }


LISTING = b'[{"name":"s","classes":2,"samples":4,"dataset":"d","snapshots":["t"]}]'
CRC = google_crc32c.value(LISTING).to_bytes(4, "big").hex()
MET = (
    OK
    + f"content-type: application/json\r\nx-logitstore-crc32c: {CRC}\r\n".encode()
    + f"content-length: {len(LISTING)}\r\n\r\n".encode()
    + LISTING
)


def test_a_server_that_answered_before_drips_no_longer_than_the_patience() -> None:
    drips = ("headers that drip", "interim answers that drip", "a body that drips")
    liars = [Liar(after(MET), LIES[name]) for name in drips]
    with ThreadPoolExecutor(len(liars)) as threads:
        outcomes = list(threads.map(lambda liar: opened(liar.url, 1.0), liars))
    outlasted = [liar.outlasted.is_set() for liar in liars]
    for liar in liars:
        liar.close()
    assert outlasted == [False] * len(drips)
    assert outcomes == ["PatienceExhausted"] * len(drips)
