"""A small store and a large one, and servers of them with and without tokens."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.attacks.running import Served, make_store, served, token_file


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """100 samples of 10 classes."""
    return make_store(tmp_path_factory.mktemp("small") / "c10.zarr")


@pytest.fixture(scope="session")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """64 MiB: more than a socket's buffers take, and 4,096 rows are 16 MiB."""
    return make_store(tmp_path_factory.mktemp("large") / "big.zarr", 16384, 1024)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("server")


@pytest.fixture(scope="module")
def open_server(small: Path, place: Path) -> Iterator[Served]:
    with served(small, cache=place / "open") as server:
        yield server


@pytest.fixture(scope="module")
def token_server(small: Path, place: Path) -> Iterator[Served]:
    options = ("--token-file", token_file(place / "tokens"))
    with served(small, *options, cache=place / "guarded") as server:
        yield server


@pytest.fixture(scope="module")
def large_server(large: Path, place: Path) -> Iterator[Served]:
    with served(large, cache=place / "large") as server:
        yield server
