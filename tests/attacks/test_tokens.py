"""C16: a token is what its line says, ends when it says, and its file is its owner's alone."""

from __future__ import annotations

import os
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.attacks.running import TOKEN, Served, logitstore, problem, served, token_file


def status(server: Served, token: str) -> int:
    return server.ask("/v1/stores", {"authorization": f"Bearer {token}"})[0]


def test_a_hash_inside_a_token_is_part_of_it(small: Path, tmp_path: Path) -> None:
    token = "correct-horse-#battery-staple"
    tokens = token_file(tmp_path / "tokens", f"# ours\n{token}  # first\n{TOKEN} #second")
    with served(small, "--token-file", tokens, cache=tmp_path / "cache") as server:
        assert status(server, token) == status(server, TOKEN) == 200
        assert status(server, token.split("#")[0]) == 401


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o602])
def test_a_file_that_others_can_read_or_write_is_refused(
    small: Path, tmp_path: Path, mode: int
) -> None:
    tokens = token_file(tmp_path / "tokens")
    tokens.chmod(mode)
    # The port is one that nobody may have, so that an older version ends, too.
    done = logitstore("serve", small, "--token-file", tokens, "--host", "192.0.2.1")
    assert done.returncode == 2
    assert "chmod 600" in done.stderr


def test_a_missing_a_wrong_and_an_expired_token_get_their_own_messages(
    small: Path, tmp_path: Path
) -> None:
    now = datetime.now(UTC)
    past, future = (now + timedelta(days=days) for days in (-1, 1))
    lines = [
        f"an-old-token-of-some-length expires={past:%Y-%m-%dT%H:%M:%SZ} name=old",
        f"a-new-token-of-some-length expires={future:%Y-%m-%d} name=new",
        f"{TOKEN}",
    ]
    tokens = token_file(tmp_path / "tokens", "\n".join(lines))
    with served(small, "--token-file", tokens, cache=tmp_path / "cache") as server:
        assert status(server, "a-new-token-of-some-length") == status(server, TOKEN) == 200
        details = []
        for headers in (
            {},
            {"authorization": "Bearer wrong-wrong-wrong-wrong"},
            {"authorization": "Bearer an-old-token-of-some-length"},
        ):
            answer = server.ask("/v1/stores", headers)
            assert answer[0] == 401
            details.append(problem(answer)["detail"])
        assert len(set(details)) == 3
        assert "expired" in details[2]
        url = f"http://127.0.0.1:{server.port}/c10"
        wrong = logitstore("inspect", url, LOGITSTORE_TOKEN="wrong-wrong-wrong-wrong")
        assert wrong.returncode == 2
        assert details[1] in wrong.stderr


def test_tokens_are_made_listed_replaced_and_revoked(small: Path, tmp_path: Path) -> None:
    file = tmp_path / "tokens"

    def run(*arguments: object) -> str:
        done = logitstore("token", *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    first = run("new", file, "--days", 90, "--name", "ci").strip()
    assert re.fullmatch(r"[\w-]{32,}", first)
    assert file.stat().st_mode & 0o777 == 0o600
    assert first not in file.read_text()
    listed = run("ls", file)
    assert "ci" in listed
    assert f"{datetime.now(UTC) + timedelta(days=90):%Y-%m-%d}" in listed
    number = next(line for line in listed.splitlines() if "ci" in line).split()[0]
    with served(small, "--token-file", file, cache=tmp_path / "cache") as server:
        assert status(server, first) == 200
        second = run("new", file, "--replaces", number, "--overlap-days", 7).strip()
        assert status(server, first) == status(server, second) == 200
        assert f"{datetime.now(UTC) + timedelta(days=7):%Y-%m-%d}" in run("ls", file)
        run("revoke", file, number)
        assert (status(server, first), status(server, second)) == (401, 200)
        run("new", file, "--days", 1)
        third = run("new", file, "--replaces", run("ls", file).splitlines()[-1].split()[0]).strip()
        assert status(server, third) == 200
    unknown = logitstore("token", "revoke", file, "abcdefabcdef")
    assert unknown.returncode == 2
    assert "known:" in unknown.stderr


def test_a_file_that_is_no_file_is_refused(small: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "tokens", 0o600)
    done = logitstore("serve", small, "--token-file", tmp_path / "tokens", "--host", "192.0.2.1")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
