"""Whom the service answers: tokens, host names, and settings that would let in everybody."""

from __future__ import annotations

import hashlib
import http.client
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from logitstore.api.app import create_app
from logitstore.api.guard.auth import Tokens
from logitstore.api.settings import Settings
from logitstore.errors import InputError
from tests.support.service import write_private

TOKEN = "correct-horse-battery-staple"


OTHER = "another-token-of-some-length"


AUTH = {"authorization": f"Bearer {TOKEN}"}


@pytest.fixture(scope="module")
def guarded(root: Path, serve: Callable[..., Any], tmp_path_factory: Any) -> Any:
    """Wants one of two tokens, of which the file names the second by its digest."""
    digest = hashlib.sha256(OTHER.encode()).hexdigest()
    text = f"# tokens\n{TOKEN}  # first\n\nsha256:{digest}\n"
    return serve(root, token_file=write_private(tmp_path_factory.mktemp("keys") / "tokens", text))


def test_every_route_wants_a_token(guarded: Any, root: Path) -> None:
    """Enumerated, so that a route that is added later cannot be forgotten."""
    app = create_app(Settings(root=root, token_file=guarded.settings["token_file"]))
    paths = [route.path for route in app.routes]
    assert len(paths) >= 8
    names = {"store": "c10", "snapshot": "teacher", "key:path": "zarr.json"}
    for path in [*paths, "/", "/nothing", "//livez", "/livez/", "/%6Civez/x", "*"]:
        for name, value in names.items():
            path = path.replace("{" + name + "}", value)
        for method in ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"):
            if path in ("/livez", "/readyz"):
                continue
            status, headers, _ = guarded.get(path, method=method, body=b"")
            assert status == 401 or path == "*", (method, path, status)
            assert status != 401 or headers["www-authenticate"] == "Bearer"
    assert guarded.get("/livez")[0] == guarded.get("/readyz")[0] == 200


def test_a_websocket_handshake_wants_a_token(guarded: Any) -> None:
    handshake = {
        "connection": "Upgrade",
        "upgrade": "websocket",
        "sec-websocket-version": "13",
        "sec-websocket-key": "AAAAAAAAAAAAAAAAAAAAAA==",
    }
    assert guarded.get("/v1/stores", handshake)[0] == 401


@pytest.mark.parametrize(
    ("header", "status"),
    [
        (f"Bearer {TOKEN}", 200),
        (f"bearer  {OTHER}", 200),
        (f"Bearer {TOKEN}x", 401),
        (f"Bearer {TOKEN[:-1]}", 401),
        ("Bearer ", 401),
        (TOKEN, 401),
        (f"Basic {TOKEN}", 401),
        (f"Bearer sha256:{hashlib.sha256(OTHER.encode()).hexdigest()}", 401),
    ],
)
def test_only_a_known_token_opens(guarded: Any, header: str, status: int) -> None:
    assert guarded.get("/v1/stores", {"authorization": header})[0] == status


def test_a_new_token_file_rotates_and_a_missing_one_locks_out(tmp_path: Path) -> None:
    file = write_private(tmp_path / "tokens", TOKEN)
    tokens = Tokens(file)

    def accepted() -> list[bool]:
        return [tokens.find(token.encode()) is not None for token in (TOKEN, OTHER)]

    assert accepted() == [True, False]
    os.replace(write_private(tmp_path / "new", OTHER), file)
    assert accepted() == [False, True]
    os.replace(write_private(tmp_path / "new", f"{TOKEN}\n{OTHER}"), file)
    assert accepted() == [True, True]
    file.chmod(0o644)
    assert accepted() == [False, False]
    file.chmod(0o600)
    assert accepted() == [True, True]
    file.unlink()
    assert accepted() == [False, False]


def test_no_token_is_ever_logged(guarded: Any) -> None:
    guarded.get(f"/v1/stores/{OTHER[:3]}", AUTH)
    guarded.get("/v1/stores", {"authorization": "Bearer a-token-that-is-wrong"})
    log = guarded.log()
    assert "answered 401" in log
    assert "answered 404" in log
    for token in (TOKEN, OTHER, "a-token-that-is-wrong"):
        assert token not in log


def test_without_tokens_only_local_names_are_answered(server: Any, guarded: Any) -> None:
    """A web page that makes its own name point here (DNS rebinding) must not read the stores."""
    for host in ("localhost:1", "127.0.0.1", "[::1]:80"):
        assert host_status(server.port, host) == 200
    for host in ("evil.example", "localhost.evil.example", "127.0.0.1.nip.io", "a b", ""):
        assert host_status(server.port, host) == 400
    assert guarded.get("/v1/stores", AUTH)[0] == 200


def host_status(port: int, host: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.putrequest("GET", "/v1/stores", skip_host=True)
    connection.putheader("host", host)
    connection.endheaders()
    status = connection.getresponse().status
    connection.close()
    return status


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "logits.example"])
def test_a_public_address_without_tokens_is_refused(root: Path, host: str) -> None:
    with pytest.raises(InputError, match=r"--token-file.*--insecure-no-auth"):
        Settings(root=root, host=host)
    Settings(root=root, host=host, insecure_no_auth=True)


def test_contradictions_are_refused_before_anything_is_bound(root: Path, tmp_path: Path) -> None:
    good = write_private(tmp_path / "good", TOKEN)
    Settings(root=root, host="0.0.0.0", token_file=good)
    with pytest.raises(InputError, match="contradict"):
        Settings(root=root, token_file=good, insecure_no_auth=True)
    for text, reason in (("", "no token"), ("# none\n", "no token"), ("short\n", "line 1")):
        with pytest.raises(InputError, match=reason):
            Settings(root=root, token_file=write_private(tmp_path / "bad", text))
    with pytest.raises(InputError, match="cannot be read"):
        Settings(root=root, token_file=tmp_path / "missing")
    good.chmod(0o644)
    with pytest.raises(InputError, match="chmod 600"):
        Settings(root=root, token_file=good)
    (tmp_path / "empty").mkdir()
    for place, reason in ((tmp_path / "empty", "neither"), (tmp_path / "gone", "not a folder")):
        with pytest.raises(InputError, match=reason):
            Settings(root=place)
    with pytest.raises(InputError, match="port"):
        Settings(root=root, port=65536)
