"""B11: what fails for a moment is tried again, and said as it is."""

from __future__ import annotations

import errno
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.attacks.running import TOKEN, Faults, Served, make_store, problem, served, token_file

ROWS = "/v1/stores/c10/snapshots/teacher/rows"
OBJECT = "/v1/stores/c10/snapshots/teacher/objects/snapshots/teacher/codes/c/0/0/0"
BINARY = {"content-type": "application/octet-stream"}


def until_rows(server: Served) -> None:
    deadline = time.monotonic() + 20
    while server.ask(ROWS, BINARY, bytes(4))[0] != 200:
        assert time.monotonic() < deadline, server.log()
        time.sleep(0.2)


@pytest.mark.parametrize("error", ["EIO", "ESTALE", "EMFILE", "EACCES", "ENOMEM"])
def test_an_error_while_decoding_is_a_503_until_it_is_over(
    small: Path, tmp_path: Path, error: str
) -> None:
    faults = Faults(tmp_path / "faults")
    with served(small, cache=tmp_path / "cache", **faults.environment) as server:
        faults.begin(error, "0")  # the name of an object
        for path, headers, body in ((ROWS, BINARY, bytes(4)), (OBJECT, {}, None)):
            answer = server.ask(path, headers, body)
            assert (answer[0], problem(answer)["type"]) == (503, "urn:logitstore:unreadable")
            assert int(answer[1]["retry-after"]) <= 5
        assert os.strerror(getattr(errno, error)) in server.log()
        assert "hold decoded copies" not in server.log(), "the cache's folder is not to blame"
        faults.end()
        until_rows(server)
        assert server.ask(OBJECT)[0] == 200


def test_a_token_file_that_cannot_be_read_now_locks_nobody_out(small: Path, tmp_path: Path) -> None:
    faults, tokens = Faults(tmp_path / "faults"), token_file(tmp_path / "tokens")
    other = "another-token-of-some-length"
    options = ("--token-file", tokens)
    with served(small, *options, cache=tmp_path / "cache", **faults.environment) as server:

        def status(token: str) -> int:
            return server.ask("/v1/stores", {"authorization": f"Bearer {token}"})[0]

        faults.begin("EMFILE", "tokens")
        token_file(tokens, f"{TOKEN}\n{other}")
        assert [status(TOKEN), status(other)] == [200, 401]
        faults.end()
        assert [status(TOKEN), status(other)] == [200, 200]
        faults.begin("EACCES", "tokens")
        token_file(tokens, f"{TOKEN}\n{other}\n")
        assert [status(TOKEN), status(other)] == [401, 401], "closed on purpose"


def test_a_store_that_is_replaced_is_not_called_damaged(tmp_path: Path) -> None:
    """Moved away and another one in its place, again and again, while clients read it."""
    root = tmp_path / "stores"
    root.mkdir()
    served_store, other = make_store(root / "c10.zarr"), make_store(tmp_path / "other", 200, 20)
    problems: set[str] = set()
    with served(root, cache=tmp_path / "cache") as server:
        stop = time.monotonic() + 4

        def read() -> None:
            while time.monotonic() < stop:
                for path, headers, body in ((OBJECT, {}, None), (ROWS, BINARY, bytes(4))):
                    answer = server.ask(path, headers, body)
                    if answer[0] == 503:
                        problems.add(problem(answer)["type"])

        with ThreadPoolExecutor(4) as clients:
            reading = [clients.submit(read) for _ in range(4)]
            while time.monotonic() < stop:
                served_store.rename(tmp_path / "away")
                other.rename(served_store)
                (tmp_path / "away").rename(other)
                time.sleep(0.2)
            for done in reading:
                done.result()
        assert "urn:logitstore:damaged" not in problems
        until_rows(server)


@pytest.mark.parametrize("instead", ["file", "link"])
def test_what_lies_in_the_place_of_a_folder_is_no_fault_of_the_request(
    tmp_path: Path, instead: str
) -> None:
    store = make_store(tmp_path / "c10.zarr")
    codes = store / "snapshots" / "teacher" / "codes"
    with served(store, cache=tmp_path / "cache") as server:
        codes.rename(tmp_path / "away")
        if instead == "file":
            codes.write_bytes(b"")
        else:
            codes.symlink_to(tmp_path / "away")
        answer = server.ask(OBJECT)
        assert (answer[0], problem(answer)["type"]) == (503, "urn:logitstore:damaged")
        assert "Traceback" not in server.log()
