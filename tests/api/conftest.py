"""A folder of two stores, and a server of it without tokens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, tiny_store: Any) -> Path:
    root: Path = tmp_path_factory.mktemp("served")
    tiny_store(root / "c10.zarr", ("teacher", "late"), views=2, keys=True, row_digests=True)
    tiny_store(root / "other", samples=40, seed=7)
    return root


@pytest.fixture(scope="module")
def server(root: Path, serve: Callable[..., Any]) -> Any:
    """No tokens, loopback."""
    return serve(root)
