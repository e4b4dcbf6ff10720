"""A store that verification calls whole can be read by any zarr client, with the same values.

Every store here has consistent commits: lengths and SHA-256 are right, whatever is wrong besides.
"""

import copy as copies
import json
import shutil
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
import zarr

import logitstore
from logitstore.errors import Damaged
from logitstore.reading.verify import verify_store
from tests.support.recommit import commit_again

Build = Callable[..., Path]

SHARDS = [
    "labels/c/0",
    "keys/c/0",
    "snapshots/one/codes/c/0/0/0",
    "snapshots/one/codes/c/1/3/0",
    "snapshots/one/scalars/c/1/1/0",
]


@pytest.fixture(scope="module")
def whole(tiny_store: Build, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with several shards, keys and two views: 3 shards of 32 rows and one of 4."""
    path = tmp_path_factory.mktemp("whole") / "s"
    return tiny_store(path, ("one",), keys=True, views=2, form="uint8")


@pytest.fixture
def store(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "s"))


def read_by_zarr(path: Path) -> dict[str, Any]:
    """All arrays of a store, as zarr-python reads them."""
    group = zarr.open_group(path, mode="r")
    assert isinstance(group["snapshots"], zarr.Group)
    names = ["labels", "keys", "snapshots/one/codes", "snapshots/one/scalars"]
    return {name: np.asarray(group[name][...]) for name in names}


def change_byte(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def test_committing_again_what_nobody_changed_changes_no_byte(whole: Path, store: Path) -> None:
    commit_again(store)
    name = "snapshots/one/commit.json"
    assert (store / name).read_bytes() == (whole / name).read_bytes()


@pytest.mark.parametrize("key", SHARDS)
def test_a_wrong_checksum_of_a_chunk_is_noticed_where_a_zarr_client_fails(
    store: Path, key: str
) -> None:
    data = (store / key).read_bytes()
    layout = json.loads((store / key.partition("/c/")[0] / "zarr.json").read_bytes())
    in_shard = layout["chunk_grid"]["configuration"]["chunk_shape"]
    in_chunk = layout["codecs"][0]["configuration"]["chunk_shape"]
    index = 16 * (np.prod(in_shard) // np.prod(in_chunk)) + 4
    change_byte(store / key, len(data) - int(index) - 1)  # the last byte of the last chunk
    commit_again(store)
    with pytest.raises(ValueError, match="checksum"):
        read_by_zarr(store)
    (breach,) = verify_store(str(store)).breaches
    assert f"{key}: the CRC-32C of chunk 0 is wrong" in breach
    logitstore.open_store(store).snapshots["one"].logits(range(100))  # covered by the SHA-256


@pytest.mark.parametrize("key", SHARDS)
def test_a_wrong_checksum_of_an_index_is_noticed_where_a_zarr_client_fails(
    store: Path, key: str
) -> None:
    change_byte(store / key, -1)
    commit_again(store)
    with pytest.raises(ValueError, match="checksum"):
        read_by_zarr(store)
    (breach,) = verify_store(str(store)).breaches
    assert f"{key}: the CRC-32C of its index is wrong" in breach


def changed(document: Any) -> Iterator[Any]:
    """The document without one of its parts, with a part of another kind, or with one more."""
    if isinstance(document, dict):
        yield {**document, "more": {"name": "more"}}
    for place in document if isinstance(document, dict) else range(len(document)):
        whole = copies.deepcopy(document)
        del whole[place]
        yield whole
        part = document[place]
        if isinstance(part, dict | list):
            parts = list(changed(part))
        elif isinstance(part, bool):
            parts = [not part, None]
        elif isinstance(part, int | float):
            parts = [part + 1, str(part), float(part), None, -1, 10**9]
        else:
            parts = [part + "x", 7, None]
        for part in parts:
            whole = copies.deepcopy(document)
            whole[place] = part
            yield whole


@pytest.mark.parametrize(
    "key",
    [
        *("snapshots/one/codes/zarr.json", "snapshots/one/scalars/zarr.json"),
        *("labels/zarr.json", "keys/zarr.json", "snapshots/zarr.json"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_metadata_that_is_called_whole_gives_a_zarr_client_the_same_values(
    whole: Path, store: Path, key: str
) -> None:
    expected = read_by_zarr(whole)
    refused = 0
    for document in changed(json.loads((whole / key).read_bytes())):
        (store / key).write_text(json.dumps(document))
        commit_again(store)
        if not verify_store(str(store)).ok:
            refused += 1
            continue
        for name, values in read_by_zarr(store).items():
            assert values.dtype == expected[name].dtype, document
            assert (values == expected[name]).all(), document
    assert refused >= 6


@pytest.mark.parametrize(
    "key",
    [
        "notes.txt",
        "labels/c/1",
        "snapshots/other/zarr.json",
        "snapshots/one/more/zarr.json",
        "snapshots/one/codes/c/0/4/0",
        "snapshots/one/codes/c/2/0/0",
        "snapshots/one/commit",
    ],
)
def test_a_commit_that_lists_an_object_of_no_store_is_refused(store: Path, key: str) -> None:
    (store / key).parent.mkdir(parents=True, exist_ok=True)
    (store / key).write_bytes(b"more")
    commit_again(store, added=(key,))
    with pytest.raises(Damaged, match=f"lists, and no store of format v1 has, {key}"):
        logitstore.open_store(store).snapshots["one"]
    assert not verify_store(str(store)).ok


@pytest.mark.parametrize(
    "key",
    ["snapshots/one/codes/c/1/2/0", "labels/c/0", "labels/zarr.json", "keys/c/0", "keys/zarr.json"],
)
def test_a_commit_that_leaves_an_object_out_is_refused(store: Path, key: str) -> None:
    (store / key).unlink()
    commit_again(store, dropped=(key,))
    with pytest.raises(Damaged, match=f"does not list {key}"):
        logitstore.open_store(store).snapshots["one"]


@pytest.mark.parametrize("key", ["../outside", "/etc/passwd", "snapshots//one", "labels/./c", ""])
def test_a_commit_with_a_key_that_is_no_path_in_the_store_is_refused(store: Path, key: str) -> None:
    from logitstore.format.documents import canonical

    path = store / "snapshots/one/commit.json"
    document = json.loads(path.read_bytes())
    document["objects"][key] = {"length": 0, "sha256": "0" * 64}
    path.write_bytes(canonical(document))
    with pytest.raises(Damaged, match="should match pattern"):
        logitstore.open_store(store).snapshots["one"]


def test_a_label_that_is_no_class_is_noticed(store: Path) -> None:
    from numcodecs import zstd

    from logitstore.format.arrays import ArrayLayout, decode_shard

    path = store / "labels/c/0"
    layout = ArrayLayout.parse("x", (store / "labels/zarr.json").read_bytes())
    labels = np.zeros(layout.rows_per_chunk, "<i4")
    labels[:100] = decode_shard("x", layout, path.read_bytes(), 100)
    labels[7] = 10
    frame = zstd.compress(labels.tobytes(), 3, True)
    chunk = frame + google_crc32c.value(frame).to_bytes(4, "little")
    index = np.full((layout.rows_per_shard // layout.rows_per_chunk, 2), 2**64 - 1, "<u8")
    index[0] = 0, len(chunk)
    end = google_crc32c.value(index.tobytes()).to_bytes(4, "little")
    path.write_bytes(chunk + index.tobytes() + end)
    commit_again(store)
    breaches = verify_store(str(store)).breaches
    assert any("sample 7 has label 10, expected -1 or one of 10" in each for each in breaches)


def test_attributes_of_others_are_ignored_and_unknown_fields_of_ours_refused(store: Path) -> None:
    path = store / "zarr.json"
    document = json.loads(path.read_bytes())
    document["attributes"]["theirs"] = 7
    path.write_text(json.dumps(document))
    commit_again(store)
    assert verify_store(str(store)).ok
    document["attributes"]["logitstore"]["more"] = 7
    path.write_text(json.dumps(document))
    commit_again(store)
    with pytest.raises(Damaged, match="field more"):
        logitstore.open_store(store)


def test_verifying_decodes_many_classes_in_blocks(tiny_store: Build, tmp_path: Path) -> None:
    """One shard of ``topk`` rows over a vocabulary would decode to gigabytes; here to 51 MB."""
    path = tiny_store(
        tmp_path / "s", samples=256, classes=50_000, form="topk:2", rows_per_shard=256
    )
    tracemalloc.start()
    try:
        assert verify_store(str(path)).ok
        assert tracemalloc.get_traced_memory()[1] < 32 << 20
    finally:
        tracemalloc.stop()
