"""A reader that was written from FORMAT.md alone reads every store as ours does, to the bit."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import logitstore
from logitstore.format.cards import EncodingCard, ImportCard, Samples, SnapshotPlan, StoreMeta
from logitstore.format.encodings.table import parse_encoding
from logitstore.storage import open_storage
from logitstore.writing.opening import open_writer
from logitstore.writing.target import Target
from tests.support.recommit import commit_again
from tests.support.second_reader import Reader, Refused

Build = Callable[..., Path]

SIZES = [
    # samples, classes, views, rows of a shard
    (1, 10, 1, 32),
    (100, 10, 2, 32),
    (1300, 7, 1, 1024),  # two chunks of a shard, and a shard whose last chunk is beyond N
    (1025, 3, 1, 2048),
]


def assert_same(path: Path, name: str) -> None:
    store = logitstore.open_store(path)
    snapshot, reader = store.snapshots[name], Reader(path, name)
    assert reader.root == snapshot.root
    assert (reader.labels == store.labels).all()
    assert reader.keys == (None if store.keys is None else [str(key) for key in store.keys])
    for view in range(snapshot.meta.views):
        ours = snapshot.logits(np.arange(snapshot.meta.samples), view)
        assert reader.logits(view).tobytes() == ours.tobytes()


@pytest.mark.parametrize("form", ["float32", "float16", "uint8", "uint8:3", "topk:1", "topk:2"])
@pytest.mark.parametrize(("samples", "classes", "views", "rows"), SIZES)
def test_every_encoding_is_read_to_the_bit(
    tiny_store: Build, tmp_path: Path, form: str, samples: int, classes: int, views: int, rows: int
) -> None:
    path = tiny_store(
        tmp_path / "s",
        samples=samples,
        classes=classes,
        views=views,
        form=form,
        rows_per_shard=rows,
        keys=samples == 100,
        row_digests=views == 2,
    )
    assert_same(path, "teacher")


def write_rows(path: Path, form: str, logits: np.ndarray, keys: list[str] | None = None) -> Path:
    """A store of these rows (N, C), all in one shard, of which no label is known."""
    samples, classes = logits.shape
    stored = Samples("rows", np.full(samples, -1, np.int32), keys)
    meta = StoreMeta(classes=classes, dataset=stored.card())
    kind = parse_encoding(form, classes)
    plan = SnapshotPlan(
        name="rows",
        views=1,
        samples=samples,
        classes=classes,
        rows_per_shard=64,
        imported=ImportCard(file="x", sha256="0" * 64),
        encoding=EncodingCard(name=kind.name, parameters=kind.parameters),
        packages={},
    )
    writer = open_writer(Target.read(open_storage(path), meta, stored), plan)
    for shard in writer.missing():
        writer.write(shard, logits[shard.start : shard.stop], stored.labels[shard.samples])
    writer.commit()
    return path


@pytest.mark.parametrize("form", ["float32", "float16", "uint8", "uint8:2", "topk:1", "topk:7"])
def test_rows_at_the_edges_are_read_to_the_bit(tmp_path: Path, form: str) -> None:
    edge = np.zeros((7, 8), np.float32)
    edge[1] = 3.7  # a range of 0
    edge[2, 3] = 2**38
    edge[3] = -(2.0**38)
    edge[3, 5] = -(2.0**126)
    edge[4, 1] = np.nextafter(np.float32(0), np.float32(1))
    edge[5] = [5, 5, 5, 4, 5, 5, 5, 5]
    edge[6] = np.linspace(-70_000, 0, 8)
    path = write_rows(tmp_path / "s", form, edge)
    assert_same(path, "rows")
    decoded, m = Reader(path, "rows").logits(0), edge[1, 0]
    assert (decoded.argmax(1) == edge.argmax(1)).all()
    assert np.isfinite(decoded).all()
    if form != "topk:1":  # whose tail decodes to less
        assert (decoded[1] == m).all()


def test_equal_maxima_without_a_slot_decode_to_less(tmp_path: Path) -> None:
    rows = np.array([[1, 5, 5, 5, 5]], np.float32)
    for form in ("float32", "float16", "uint8"):
        decoded = Reader(write_rows(tmp_path / form, form, rows), "rows").logits(0)[0]
        assert np.flatnonzero(decoded == decoded.max()).tolist() == [1, 2, 3, 4]
    decoded = Reader(write_rows(tmp_path / "topk", "topk:1", rows), "rows").logits(0)[0]
    assert np.flatnonzero(decoded == decoded.max()).tolist() == [1, 2]


def test_more_classes_than_two_bytes_can_number_are_read_to_the_bit(tmp_path: Path) -> None:
    drawn = np.random.default_rng(0).standard_normal((3, 70_000)).astype(np.float32)
    assert_same(write_rows(tmp_path / "s", "topk:5", drawn), "rows")


def test_keys_of_any_text_are_read_to_the_bit(tmp_path: Path) -> None:
    keys = ["", "é/ü.png", "\U0001f600", "a b\tc", "x" * 5000]
    assert_same(write_rows(tmp_path / "s", "float16", np.eye(5, 3, dtype=np.float32), keys), "rows")


def test_what_it_must_refuse_it_refuses_as_ours_does(tiny_store: Build, tmp_path: Path) -> None:
    path = tiny_store(tmp_path / "s", keys=True)
    extra = Path(shutil.copytree(path, tmp_path / "extra"))
    (extra / "notes.txt").write_text("more")
    commit_again(extra, added=("notes.txt",))
    member = Path(shutil.copytree(path, tmp_path / "member"))
    document = member / "labels/zarr.json"
    document.write_text(
        document.read_text().replace('"zarr_format": 3', '"zarr_format": 3, "x": 1')
    )
    commit_again(member)
    for store in (extra, member):
        with pytest.raises(Refused):
            Reader(store, "teacher")
        with pytest.raises(logitstore.LogitstoreError):
            logitstore.open_store(store).labels.sum()
