"""The grid: every row lies in one shard, under one key, at one place."""

import numpy as np
import pytest

from logitstore.format.grid import Grid, Span


@pytest.mark.parametrize(("samples", "views", "rows"), [(100, 2, 32), (64, 1, 32), (5, 3, 8)])
def test_the_shards_hold_every_row_once_and_in_order(samples: int, views: int, rows: int) -> None:
    grid = Grid(samples, views, rows)
    places = [grid.rows_of(shard) for shard in grid.shards()]
    assert [row for place in places for row in range(place.start, place.stop)] == list(
        range(samples * views)
    )
    assert all(0 < shard.rows <= rows for shard in grid.shards())


def test_a_key_leads_back_to_its_shard() -> None:
    grid = Grid(100, 2, 32)
    assert [grid.key(shard) for shard in grid.shards()[3:5]] == ["c/0/3/0", "c/1/0/0"]
    assert [grid.span_of(grid.key(shard)) for shard in grid.shards()] == grid.shards()
    assert grid.flat_key(Span(0, 64, 96)) == "c/2"


@pytest.mark.parametrize("key", ["c/1", "c/0/1", "c/0/01/0", "c/0/1/0/0", "zarr.json", "c/0/-1/0"])
def test_what_is_no_shards_key_names_no_shard(key: str) -> None:
    assert Grid(100, 2, 32).span_of(key) is None


def test_samples_in_any_order_are_found_in_their_shards() -> None:
    grid, indices = Grid(100, 2, 32), np.array([99, 0, 31, 32, 0])
    parts = {
        span: (positions.tolist(), inside.tolist())
        for span, positions, inside in grid.split(1, indices)
    }
    assert parts == {
        Span(1, 0, 32): ([1, 2, 4], [0, 31, 0]),
        Span(1, 32, 64): ([3], [0]),
        Span(1, 96, 100): ([0], [3]),
    }
