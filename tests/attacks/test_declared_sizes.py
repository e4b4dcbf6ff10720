"""What a store says of its own size is met before it costs anything (row A6)."""

import json
import os
import signal
import time
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from tests.attacks.forging import (
    MEMORY,
    attributes,
    change,
    commit_again,
    logits_of,
    make_store,
    python,
    sealed,
    served,
    shard_of,
)

SNAPSHOT = "snapshots/teacher"
CLASSES, ROWS = 1000, 16384
OPEN = f"""
import sys
import logitstore
try:
    logitstore.open_store(sys.argv[1]).snapshots["teacher"].logits([0])
except logitstore.LogitstoreError as error:
    print("refused", error)
{MEMORY}
"""


def declare(store: Path, samples: int, rows: int) -> None:
    """Let a store of float32 rows say that it has so many samples, and rows in a shard."""

    def shape(document: Any) -> None:
        width = document["shape"][2]
        document["shape"] = [1, samples, width]
        document["chunk_grid"]["configuration"]["chunk_shape"] = [1, rows, width]
        chunk = document["codecs"][0]["configuration"]["chunk_shape"]
        chunk[1] = min(rows, chunk[1])

    change(store / "zarr.json", lambda d: attributes(d)["dataset"].update(length=samples))
    numbers = {"samples": samples, "rows_per_shard": rows}
    change(store / SNAPSHOT / "zarr.json", lambda d: attributes(d).update(numbers))
    change(store / SNAPSHOT / "codes/zarr.json", shape)
    change(store / "labels/zarr.json", lambda d: d.update(shape=[samples]))
    commit_again(store)


def zeros(store: Path, shards: int) -> Path:
    """Make a store of ``shards`` times 16,384 rows of 1,000 zeros: 65 MB in 3 kB each."""
    make_store(store, samples=10, classes=CLASSES)
    document = json.loads((store / SNAPSHOT / "codes/zarr.json").read_bytes())
    rows = document["codecs"][0]["configuration"]["chunk_shape"][1]
    data = shard_of([bytes(4 * CLASSES * rows)] * (ROWS // rows))
    for number in range(shards):
        place = store / SNAPSHOT / f"codes/c/0/{number}/0"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)
    declare(store, shards * ROWS, ROWS)
    return store


def copies(cache: Path) -> dict[str, int]:
    """The bytes on disk of each file of a copy."""
    return {str(p): 512 * p.stat().st_blocks for p in cache.rglob("*.bin")}


def test_millions_of_shards_that_the_commit_does_not_list_are_never_listed(tmp_path: Path) -> None:
    store = make_store(tmp_path / "stores/evil")
    make_store(tmp_path / "stores/good")
    declare(store, samples=20_000_000, rows=1)
    refusal, memory = python(OPEN, store).splitlines()
    assert refusal.startswith("refused")
    assert int(memory) < 300 << 10
    with served(tmp_path / "stores", tmp_path / "cache") as server:
        assert server.rows("evil", [0])[0] in (404, 503)
        assert server.rows("good", [0])[0] == 200
        assert server.most_memory() < 400


def test_rows_stored_in_next_to_nothing_take_neither_the_disk_nor_the_room_of_others(
    tmp_path: Path,
) -> None:
    make_store(tmp_path / "stores/good")
    zeros(tmp_path / "stores/evil", 4)
    cache, room = tmp_path / "cache", str(4 * ROWS * CLASSES * 4 + 1000)
    with served(tmp_path / "stores", cache, LOGITSTORE_CACHE_BYTES=room) as server:
        assert server.rows("good", [0])[0] == 200
    before = copies(cache)
    assert before
    with served(tmp_path / "stores", cache, LOGITSTORE_CACHE_BYTES=room) as server:
        status, _, body = server.rows("evil", [0, 40000])
        assert (status, body[-8000:]) == (200, bytes(8000))  # they are right, and read directly
    assert copies(cache) == before


def test_objects_that_are_only_promised_evict_nobody(tmp_path: Path) -> None:
    make_store(tmp_path / "stores/good")
    evil = zeros(tmp_path / "stores/evil", 4)
    commit = json.loads((evil / SNAPSHOT / "commit.json").read_bytes())
    for number in range(4):  # 30 MB each, of random bytes as it were
        commit["objects"][f"{SNAPSHOT}/codes/c/0/{number}/0"]["length"] = 30_000_000
    (evil / SNAPSHOT / "commit.json").write_bytes(sealed(commit["objects"]))
    cache, room = tmp_path / "cache", str(4 * ROWS * CLASSES * 4 + 1000)
    with served(tmp_path / "stores", cache, LOGITSTORE_CACHE_BYTES=room) as server:
        assert server.rows("good", [0])[0] == 200
    before = copies(cache)
    with served(tmp_path / "stores", cache, LOGITSTORE_CACHE_BYTES=room) as server:
        assert server.rows("evil", [0])[0] == 503
    assert copies(cache) == before


def test_a_store_that_is_decoded_for_ever_does_not_keep_others_waiting(tmp_path: Path) -> None:
    """Another process began with its copy, and stopped."""
    make_store(tmp_path / "stores/good")
    make_store(tmp_path / "stores/large", samples=65536, classes=200)
    cache = tmp_path / "cache"
    with served(tmp_path / "stores", cache) as first, served(tmp_path / "stores", cache) as second:
        asking = Thread(target=first.rows, args=("large", [0], 0))
        asking.start()
        deadline = time.monotonic() + 20
        while not [*cache.glob("**/.*.tmp/*.bin")] and time.monotonic() < deadline:
            time.sleep(0.001)
        os.kill(first.process.pid, signal.SIGSTOP)
        try:
            if not [*cache.glob("**/.*.tmp/*.bin")]:
                pytest.skip("the copy was made too fast to stop it")
            assert second.rows("large", [0], seconds=0)[0] == 503
            status, _, body = second.rows("good", [7], seconds=10)
            assert status == 200
            assert body.endswith(logits_of(100, 10)[7].tobytes())
        finally:
            os.kill(first.process.pid, signal.SIGCONT)
            asking.join()


def test_labels_in_other_shards_than_the_format_has_are_refused(tmp_path: Path) -> None:
    """One-row shards of labels would be listed one by one."""
    store = make_store(tmp_path / "s")

    def cut(document: Any) -> None:
        document["chunk_grid"]["configuration"]["chunk_shape"] = [1]
        document["codecs"][0]["configuration"]["chunk_shape"] = [1]

    change(store / "labels/zarr.json", cut)
    commit_again(store)
    said = python("import sys, logitstore\nprint(logitstore.open_store(sys.argv[1]).labels)", store)
    assert "labels/zarr.json" in said or "labels: " in said
    assert "format v1" in said
