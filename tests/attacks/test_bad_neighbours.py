"""Whatever lies beside a store or inside one, the others are served and listed (row A5)."""

import json
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

import logitstore
from tests.attacks.forging import command, make_store, python, served


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("good") / "good.zarr")


@pytest.fixture
def stores(good: Path, tmp_path: Path) -> Path:
    shutil.copytree(good, tmp_path / "stores/good.zarr")
    return tmp_path / "stores"


def bind(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        here = os.getcwd()
        os.chdir(path.parent)  # a socket's path is short
        listener.bind(path.name)
        os.chdir(here)


NO_FILES: dict[str, Callable[[Path], object]] = {
    "nested": lambda place: place.write_text("[" * 200_000),
    "no end": lambda place: place.symlink_to("/dev/zero"),
    "folder": lambda place: place.mkdir(),
    "pipe": lambda place: os.mkfifo(place),
    "self": lambda place: place.symlink_to(place.name),
    "socket": bind,
    "huge": lambda place: os.truncate(place, 1 << 33) if place.touch() is None else None,
    "elsewhere": lambda place: place.symlink_to(place.parents[1] / "good.zarr/zarr.json"),
}


def test_neighbours_of_every_kind_are_listed_as_unreadable_and_hide_nobody(
    stores: Path, tmp_path: Path
) -> None:
    for name, spoil in NO_FILES.items():
        folder = stores / name.replace(" ", "-")
        folder.mkdir()
        spoil(folder / "zarr.json")
    unreadable = {name.replace(" ", "-") for name in NO_FILES}
    listing = command("ls", stores, "--json")
    assert listing.returncode == 0, listing.stderr
    rows = {Path(row["store"]).name: row for row in json.loads(listing.stdout)}
    assert set(rows) == {"good.zarr", *unreadable}
    assert {name for name, row in rows.items() if "problem" in row} == unreadable
    with served(stores, tmp_path / "cache") as server:
        assert server.ask("/readyz")[0] == 200
        status, _, body = server.ask("/v1/stores")
        entries = {entry["name"]: entry for entry in json.loads(body)}
        assert status == 200
        assert {name for name, entry in entries.items() if entry.get("unreadable")} == unreadable
        assert entries["good"]["snapshots"] == ["teacher"]
        for name in unreadable:
            assert server.ask(f"/v1/stores/{name}")[0] in (404, 503)
        assert server.rows("good", [3, 1])[0] == 200
        assert logitstore.open_store(server.url).snapshots["teacher"].root
        for name in unreadable:
            assert f"store {name} cannot be read" in server.log()
        assert server.log().count("store nested cannot be read") == 1  # not at each request


def test_a_link_beside_a_snapshot_hides_neither_it_nor_its_store(
    stores: Path, tmp_path: Path
) -> None:
    (stores / "good.zarr/snapshots/latest").symlink_to("teacher")
    assert list(logitstore.open_store(stores / "good.zarr").snapshots) == ["teacher"]
    with served(stores, tmp_path / "cache") as server:
        status, _, body = server.ask("/v1/stores")
        assert (status, json.loads(body)[0]["snapshots"]) == (200, ["teacher"])
        assert server.rows("good", [0])[0] == 200
    found = command("verify", stores / "good.zarr")
    assert found.returncode == 1
    assert "snapshots/latest was added" in found.stdout


@pytest.mark.parametrize(
    "key", ["commit.json", "zarr.json", "codes/zarr.json", "codes/c/0/0/0", "../../labels/c/0"]
)
def test_a_pipe_in_the_place_of_any_object_is_damage_and_holds_nobody_up(
    stores: Path, tmp_path: Path, key: str
) -> None:
    shutil.copytree(stores / "good.zarr", stores / "evil")
    place = stores / "evil/snapshots/teacher" / key
    place.unlink()
    os.mkfifo(place)
    done = command("verify", stores / "evil")
    assert done.returncode == 1
    assert "is no plain file" in done.stdout
    with served(stores, tmp_path / "cache") as server:
        for _ in range(12):  # more than there are threads
            assert server.rows("evil", [0], seconds=2)[0] in (404, 503, 200)
        assert server.ask("/v1/stores")[0] == 200
        assert server.rows("good", [3, 1])[0] == 200


CLOSED = """
import os, sys
import logitstore
from logitstore.reading.describe import list_location
os.setuid(65534)
for row in list_location(sys.argv[1], None):
    print(row["store"], row.get("problem"))
"""


@pytest.mark.skipif(os.getuid() != 0, reason="becoming another user needs root")
def test_a_store_that_may_not_be_read_hides_no_other(stores: Path, tmp_path: Path) -> None:
    shutil.copytree(stores / "good.zarr", stores / "closed")
    (stores / "closed").chmod(0)
    for folder in [*tmp_path.parents, tmp_path]:
        if folder.stat().st_mode & 0o055 != 0o055:
            folder.chmod(folder.stat().st_mode | 0o055)
    said = python(CLOSED, stores)
    assert "good.zarr None\n" in said
    assert "closed: cannot be looked into: Permission denied" in said
    assert "Traceback" not in said


def test_a_damaged_document_at_the_root_hides_no_store_below(stores: Path, tmp_path: Path) -> None:
    (stores / "zarr.json").write_text("[" * 200_000)
    with served(stores, tmp_path / "cache") as server:
        assert server.ask("/v1/stores/good")[0] == 200
