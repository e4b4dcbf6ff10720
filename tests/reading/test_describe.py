"""What ``ls`` and ``inspect`` say of a store."""

from collections.abc import Callable
from pathlib import Path

import pytest

from logitstore.cli.show.stores import listing_lines
from logitstore.reading.describe import list_location

Build = Callable[..., Path]


@pytest.mark.parametrize(
    ("form", "name", "parameters", "shown"),
    [
        ("float16", "float16", {}, " float16 "),
        ("uint8", "uint8", {"levels": 256}, " uint8:256 "),
        ("uint8:62", "uint8", {"levels": 62}, " uint8:62 "),
        ("topk:3", "topk", {"k": 3}, " topk:3 "),
        ("topk:10", "topk", {"k": 10}, " topk:10 "),
    ],
)
def test_a_listing_shows_levels_and_k_of_an_encoding(
    tiny_store: Build,
    tmp_path: Path,
    form: str,
    name: str,
    parameters: dict[str, int],
    shown: str,
) -> None:
    tiny_store(tmp_path / "s", form=form, classes=12)
    (row,) = list_location(str(tmp_path), None)
    assert (row["encoding"], row["parameters"]) == (name, parameters)
    line = listing_lines([row])[-1]
    assert shown in line


def test_a_store_that_cannot_be_read_does_not_hide_the_others(
    tiny_store: Build, tmp_path: Path
) -> None:
    tiny_store(tmp_path / "whole")
    tiny_store(tmp_path / "broken")
    (tmp_path / "broken/labels/c/9").write_bytes(b"more")
    broken, whole = list_location(str(tmp_path), None)
    assert "labels/c/9 was added" in broken["problem"]
    assert whole["snapshot"] == "teacher"
