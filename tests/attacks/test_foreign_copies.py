"""A decoded copy is believed only if this user made it (row A7)."""

import json
import os
import shutil
import stat
from pathlib import Path

import google_crc32c
import numpy as np
import pytest

from tests.attacks.forging import logits_of, make_store, served

STRANGER = 12345


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return make_store(tmp_path / "s")


def rows(store: Path, cache: Path) -> bytes:
    """The body of rows 0, 1 and 2 as a server with this cache sends them."""
    with served(store, cache) as server:
        status, _, body = server.rows("s", [0, 1, 2])
        assert status == 200, body
        return body


def right(body: bytes) -> bool:
    return body.endswith(logits_of(100, 10)[:3].tobytes())


def forge(copy: Path) -> None:
    """Turn the signs of a copy's rows, and compute every checksum again that needs no secret."""
    codes = copy / "codes.bin"
    data = (-np.fromfile(codes, np.float32)).tobytes()
    codes.write_bytes(data)
    index = json.loads((copy / "index.json").read_bytes())
    if "crc32c" in index["arrays"]["codes"]:
        index["arrays"]["codes"]["crc32c"] = [google_crc32c.value(data)]
    text = json.dumps(index, sort_keys=True, separators=(",", ":"))
    (copy / "index.json").write_text(f"{text}\n")


def copy_in(cache: Path) -> Path:
    [index] = cache.rglob("index.json")
    return index.parent


@pytest.mark.parametrize("mode", [0o700, 0o755, 0o1777])
def test_copies_are_closed_to_all_others(store: Path, tmp_path: Path, mode: int) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    cache.chmod(mode)
    umask = os.umask(0)
    try:
        assert right(rows(store, cache))
    finally:
        os.umask(umask)
    copy = copy_in(cache)
    assert stat.S_IMODE(copy.stat().st_mode) == 0o700
    for path in [*copy.iterdir(), *cache.rglob("*lock")]:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    if mode == 0o1777:
        assert stat.S_IMODE(copy.parent.stat().st_mode) == 0o700


@pytest.mark.skipif(os.getuid() != 0, reason="giving files away needs root")
def test_a_copy_that_belongs_to_another_user_is_not_believed(store: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    assert right(rows(store, cache))
    copy = copy_in(cache)
    forge(copy)
    for path in [copy, *copy.iterdir()]:
        os.chown(path, STRANGER, STRANGER)
    assert right(rows(store, cache))


def test_a_copy_with_every_checksum_made_anew_is_not_believed(store: Path, tmp_path: Path) -> None:
    """As where a file system says of every file that it is this user's."""
    cache = tmp_path / "cache"
    assert right(rows(store, cache))
    forge(copy_in(cache))
    assert right(rows(store, cache))


@pytest.mark.parametrize("planted", ["lock", "DIGEST.lock", "DIGEST"])
def test_a_link_in_the_place_of_a_lock_or_a_copy_is_not_followed(
    store: Path, tmp_path: Path, planted: str
) -> None:
    cache, victim = tmp_path / "cache", tmp_path / "victim"
    assert right(rows(store, cache))
    copy = copy_in(cache)
    shutil.move(copy, tmp_path / "moved")
    forge(tmp_path / "moved")
    victim.write_text("precious")
    link = copy.parent / planted.replace("DIGEST", copy.name)
    link.unlink(missing_ok=True)
    link.symlink_to(tmp_path / "moved" if planted == "DIGEST" else victim)
    assert right(rows(store, cache))
    assert victim.read_text() == "precious"
    assert (tmp_path / "moved/codes.bin").exists()


def test_a_pipe_in_the_place_of_a_copys_file_holds_nobody_up(store: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    assert right(rows(store, cache))
    place = copy_in(cache) / "index.json"
    place.unlink()
    os.mkfifo(place, 0o600)
    assert right(rows(store, cache))
