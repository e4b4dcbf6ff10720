"""Whatever happens to a store's bytes, verification and reading notice, and name the place."""

import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import logitstore
from logitstore.errors import LogitstoreError
from logitstore.reading.verify import verify_store

Build = Callable[..., Path]


@pytest.fixture(scope="module")
def whole(tiny_store: Build, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two snapshots with keys: the store that every test here damages a copy of."""
    return tiny_store(tmp_path_factory.mktemp("whole") / "s", ("one", "two"), keys=True, views=2)


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "s"))


def objects(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_file())


def read_all(path: Path) -> Iterator[bytes]:
    """Everything that a user can read from a store."""
    store = logitstore.open_store(path)
    yield store.meta.to_bytes()
    for snapshot in store.snapshots.values():
        yield snapshot.meta.to_bytes()
        for view in range(snapshot.meta.views):
            yield snapshot.logits(np.arange(snapshot.meta.samples), view).tobytes()
    yield store.labels.tobytes()
    yield repr(store.keys).encode()


def assert_noticed(path: Path, *names: str) -> None:
    with pytest.raises(LogitstoreError) as read:
        list(read_all(path))
    report = verify_store(str(path))
    assert not report.ok
    for name in names:
        assert any(name in breach for breach in report.breaches), (name, report.breaches)
    assert read.value.exit_code == 1


def test_a_whole_store_passes(whole: Path) -> None:
    report = verify_store(str(whole))
    assert report.ok
    assert report.objects > 30


def test_a_flipped_bit_anywhere_is_noticed(copy: Path) -> None:
    draw = random.Random(0)
    for path in objects(copy):
        before = path.read_bytes()
        for _ in range(6):
            bit = draw.randrange(8 * len(before))
            damaged = bytearray(before)
            damaged[bit // 8] ^= 1 << bit % 8
            path.write_bytes(damaged)
            assert_noticed(copy)
        path.write_bytes(before)
    assert verify_store(str(copy)).ok


def test_a_deleted_object_is_noticed_and_never_read_as_zeros(copy: Path) -> None:
    for path in objects(copy):
        before = path.read_bytes()
        path.unlink()
        if path.name == "commit.json":  # without its commit a snapshot is not there at all
            assert path.parent.name not in logitstore.open_store(copy).snapshots
            assert not verify_store(str(copy)).ok
        elif path == copy / "zarr.json":
            with pytest.raises(LogitstoreError, match="no logit store is here"):
                logitstore.open_store(copy)
            assert not verify_store(str(copy)).ok
        else:
            assert_noticed(copy, "is missing")
        path.write_bytes(before)


@pytest.mark.parametrize("keep", [0.0, 0.5, 1.0])
def test_a_truncated_object_is_noticed(copy: Path, keep: float) -> None:
    for path in objects(copy):
        before = path.read_bytes()
        path.write_bytes(before[: min(int(keep * len(before)), len(before) - 1)])
        assert_noticed(copy)
        path.write_bytes(before)


def test_two_shards_that_changed_places_are_noticed_with_their_rows(copy: Path) -> None:
    first = copy / "snapshots/one/codes/c/0/0/0"
    second = copy / "snapshots/one/codes/c/0/1/0"
    one, two = first.read_bytes(), second.read_bytes()
    first.write_bytes(two)
    second.write_bytes(one)
    assert_noticed(copy, "view 0, samples 0..31", "view 0, samples 32..63")


def test_a_shard_of_another_snapshot_is_noticed(copy: Path) -> None:
    shutil.copy(copy / "snapshots/two/codes/c/1/0/0", copy / "snapshots/one/codes/c/1/0/0")
    assert_noticed(copy, "view 1, samples 0..31")


def test_a_whole_snapshot_under_another_name_is_noticed(copy: Path) -> None:
    shutil.rmtree(copy / "snapshots/two")
    (copy / "snapshots/one").rename(copy / "snapshots/two")
    assert_noticed(copy, "this is the commit of 'one', not 'two'")


@pytest.mark.parametrize(
    "place",
    [
        "snapshots/one/codes/c/0/9/0",
        "snapshots/one/extra.bin",
        "labels/c/1",
        "labels/commit.json",
    ],
)
def test_an_added_object_is_noticed_by_reads_too(copy: Path, place: str) -> None:
    (copy / place).parent.mkdir(parents=True, exist_ok=True)
    (copy / place).write_bytes(b"more")
    assert_noticed(copy, f"{place} was added")


@pytest.mark.parametrize("place", ["notes.txt", "snapshots/three/codes/c/0/0/0", ".build/x.json"])
def test_an_object_that_no_read_could_touch_is_noticed_by_verify(copy: Path, place: str) -> None:
    (copy / place).parent.mkdir(parents=True, exist_ok=True)
    (copy / place).write_bytes(b"more")
    report = verify_store(str(copy))
    assert [breach for breach in report.breaches if place in breach]


def test_an_unfinished_build_beside_a_whole_snapshot_is_no_breach(
    copy: Path, tmp_path: Path
) -> None:
    (copy / ".build/three").mkdir(parents=True)
    (copy / ".build/three/plan.json").write_text("{}")
    (copy / "snapshots/three/codes").mkdir(parents=True)
    (copy / "snapshots/three/codes/zarr.json").write_text("{}")
    assert verify_store(str(copy)).ok


def test_a_link_out_of_the_store_is_refused(copy: Path, tmp_path: Path) -> None:
    victim = copy / "snapshots/one/codes/c/0/0/0"
    victim.rename(tmp_path / "elsewhere")
    victim.symlink_to(tmp_path / "elsewhere")
    assert_noticed(copy, "passes through a link")


def test_a_frame_that_declares_more_than_its_chunk_is_refused_unopened(copy: Path) -> None:
    from numcodecs import zstd

    from logitstore.errors import Damaged
    from logitstore.format.arrays import ArrayLayout, decode_shard

    layout = ArrayLayout.parse("x", (copy / "snapshots/one/codes/zarr.json").read_bytes())
    bomb = zstd.compress(bytes(1 << 26), 1)  # a few kilobytes that ask for 64 MiB
    index = np.array([[0, len(bomb) + 4]], "<u8").tobytes()
    with pytest.raises(Damaged, match="does not declare its 640 bytes"):
        decode_shard("x", layout, bomb + bytes(4) + index + bytes(4), 32)


def test_text_that_promises_more_strings_than_its_chunk_is_refused_undecoded(copy: Path) -> None:
    """2^31 strings would be allocated before the decoder noticed that there are none."""
    from numcodecs import zstd

    from logitstore.errors import Damaged
    from logitstore.format.arrays import ArrayLayout, decode_shard

    layout = ArrayLayout.parse("x", (copy / "keys/zarr.json").read_bytes())
    chunk = zstd.compress((2**31 - 1).to_bytes(4, "little"), 1) + bytes(4)
    chunks = layout.rows_per_shard // layout.rows_per_chunk
    index = np.full((chunks, 2), 2**64 - 1, "<u8")
    index[0] = 0, len(chunk)
    with pytest.raises(Damaged, match="does not hold 16384 strings"):
        decode_shard("x", layout, chunk + index.tobytes() + bytes(4), 100)


def test_a_store_whose_only_commit_is_lost_is_a_breach(copy: Path) -> None:
    for name in ("one", "two"):
        (copy / f"snapshots/{name}/commit.json").unlink()
    report = verify_store(str(copy))
    assert [breach for breach in report.breaches if "one/commit.json is missing" in breach]


def test_a_file_that_grew_beyond_any_object_is_not_read(copy: Path) -> None:
    with (copy / "snapshots/one/codes/c/0/0/0").open("r+b") as file:
        file.truncate(30 << 30)  # sparse: it takes no disk, but would take the memory
    assert_noticed(copy, "larger than any object")


def test_metadata_that_contradicts_itself_is_a_breach(copy: Path) -> None:
    """A consistent commit over a store-level document that says another number of classes."""
    import json

    from logitstore.format.commits import Commit, ObjectEntry
    from logitstore.format.documents import canonical

    document = json.loads((copy / "zarr.json").read_bytes())
    document["attributes"]["logitstore"]["classes"] = 12
    (copy / "zarr.json").write_bytes(canonical(document))
    for name in ("one", "two"):
        path = copy / f"snapshots/{name}/commit.json"
        objects = dict(Commit.parse("x", path.read_bytes()).objects)
        objects["zarr.json"] = ObjectEntry.of(canonical(document))
        path.write_bytes(Commit.seal(name, objects).to_bytes())
    assert_noticed(copy, "in a store for 100 of 12")
