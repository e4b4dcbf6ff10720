"""A row's digest is that of its stored bytes; snapshots of wide rows have them unasked."""

import shutil
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pytest
import zarr

from logitstore.derive.files import import_logits
from logitstore.derive.transcode import transcode
from logitstore.errors import Damaged, MismatchError
from logitstore.format.cards import ImportCard, Samples, SnapshotPlan, StoreMeta
from logitstore.format.choice import EncodingRequest
from logitstore.format.encodings.rows import Rows
from logitstore.format.encodings.table import parse_encoding
from logitstore.format.row_digests import digests_of
from logitstore.reading.opening import open_store
from logitstore.reading.verify import verify_store
from logitstore.storage import open_storage
from logitstore.values import RowDigests
from logitstore.writing.opening import open_writer
from logitstore.writing.plan import encoded_as
from logitstore.writing.target import Target
from tests.support.recommit import commit_again

Build = Callable[..., Path]

CHOICES: tuple[RowDigests, ...] = ("auto", "yes", "no")


@pytest.mark.parametrize("form", ["float32", "float16", "uint8:7", "topk:3"])
def test_a_digest_is_that_of_the_row_s_arrays_one_after_the_other(
    tiny_store: Build, tmp_path: Path, form: str
) -> None:
    path = tiny_store(tmp_path / "s", views=2, form=form, row_digests=True)
    snapshot = open_store(path).snapshots["teacher"]
    names = ["codes"] if form == "float32" else ["codes", "scalars"]
    names = ["indices", *names] if form.startswith("topk") else names
    group = zarr.open_group(path / "snapshots/teacher", mode="r")
    stored = np.asarray(group["row_digests"][...])
    assert (stored.shape, stored.dtype) == ((2, 100, 16), np.uint8)
    for view in range(2):
        rows = snapshot.rows(np.arange(100), view)
        assert (digests_of(rows) == stored[view]).all()
        for sample in (0, 31, 32, 99):
            row = b"".join(np.asarray(group[name][view, sample]).tobytes() for name in names)
            assert blake2b(row, digest_size=16).digest() == stored[view, sample].tobytes()
    assert verify_store(str(path)).ok


def test_many_wide_rows_have_the_digests_that_they_have_alone() -> None:
    form = parse_encoding("float16", 3000)
    drawn = np.random.default_rng(0).standard_normal((500, 3000)).astype(np.float32)
    rows = Rows(form, form.encode(drawn, np.zeros(500, np.int32)))
    alone = [digests_of(rows.part(slice(i, i + 1))) for i in range(500)]
    assert (digests_of(rows) == np.concatenate(alone)).all()
    assert digests_of(rows.part(slice(0, 0))).shape == (0, 16)


def write(path: Path, classes: int, request: EncodingRequest) -> Path:
    """Import 20 rows."""
    files = path.parent / "logits.npy", path.parent / "labels.npy"
    np.save(files[0], np.random.default_rng(0).standard_normal((20, classes)))
    np.save(files[1], np.arange(20) % classes)
    import_logits(*map(str, files), str(path), "t", request=request)
    return path


def test_rows_of_128_bytes_get_digests_unless_told_otherwise(tmp_path: Path) -> None:
    for text, classes, unasked in (
        ("float32", 31, False),
        ("float32", 32, True),
        ("float16", 59, False),
        ("float16", 60, True),
        ("uint8", 119, False),
        ("uint8", 120, True),
    ):
        stores = {
            choice: open_store(
                write(
                    tmp_path / f"{text}{classes}{choice}",
                    classes,
                    EncodingRequest(text=text, row_digests=choice),
                )
            ).snapshots["t"]
            for choice in CHOICES
        }
        has = {choice: snapshot.meta.row_digests for choice, snapshot in stores.items()}
        assert has == {"auto": unasked, "yes": True, "no": False}
        assert stores["auto"].root == stores["yes" if unasked else "no"].root
        assert "row_digests" not in stores["no"].meta.model_dump()


def test_a_transcoded_snapshot_has_what_its_own_rows_ask_for(tmp_path: Path) -> None:
    source = open_store(write(tmp_path / "s", 40, EncodingRequest(text="float32")))
    for choice in CHOICES:
        out = tmp_path / choice
        request = EncodingRequest(text="float16", row_digests=choice)
        transcode(source, source.snapshots["t"], str(out), request)
        assert open_store(out).snapshots["t"].meta.row_digests == (choice == "yes")
        assert verify_store(str(out)).ok


def test_a_build_goes_on_only_with_the_same_choice(tmp_path: Path) -> None:
    path = write(tmp_path / "s", 40, EncodingRequest(text="float32"))
    with pytest.raises(MismatchError, match="row_digests is True there"):
        write(path, 40, EncodingRequest(text="float32", row_digests="no"))


def test_a_build_that_version_0_3_began_goes_on_without_digests(tmp_path: Path) -> None:
    samples = Samples("x", np.zeros(8, np.int32))
    meta = StoreMeta(classes=40, dataset=samples.card())
    plan = SnapshotPlan(
        name="t",
        views=1,
        samples=8,
        classes=40,
        imported=ImportCard(file="x", sha256="0" * 64),
        packages={"logitstore": "0.4.0"},
        **encoded_as(parse_encoding("float32", 40), 4),
    )
    assert plan.row_digests
    old = plan.model_copy(update={"packages": {"logitstore": "0.3.0"}, "row_digests": False})
    storage, rows = open_storage(tmp_path / "s"), np.eye(4, 40, dtype=np.float32)
    for version in (old, plan):
        writer = open_writer(Target.read(storage, meta, samples), version)
        shard = writer.missing()[0]
        writer.write(shard, rows, samples.labels[shard.samples])
    assert writer.missing() == []
    assert writer.commit() == open_store(tmp_path / "s").snapshots["t"].root
    assert not open_store(tmp_path / "s").snapshots["t"].meta.row_digests


def test_a_commit_lists_all_digests_or_none(tiny_store: Build, tmp_path: Path) -> None:
    with_them = tiny_store(tmp_path / "with", row_digests=True)
    without = tiny_store(tmp_path / "without")
    key = "snapshots/teacher/row_digests/c/0/1/0"
    (with_them / key).unlink()
    commit_again(with_them, dropped=(key,))
    with pytest.raises(Damaged, match=f"does not list {key}"):
        _ = open_store(with_them).snapshots["teacher"]
    more = tiny_store(tmp_path / "more", row_digests=True) / "snapshots/teacher/row_digests"
    shutil.copytree(more, without / "snapshots/teacher/row_digests")
    keys = [str(path.relative_to(without)) for path in without.rglob("row_digests/**/*")]
    commit_again(without, added=tuple(key for key in keys if (without / key).is_file()))
    with pytest.raises(Damaged, match="lists, and no store of format v1 has"):
        _ = open_store(without).snapshots["teacher"]


def test_a_read_of_whole_shards_takes_no_digests(tiny_store: Build, tmp_path: Path) -> None:
    path = tiny_store(tmp_path / "s", row_digests=True)
    for file in (path / "snapshots/teacher/row_digests/c").rglob("0"):
        if file.is_file():
            file.write_bytes(b"")
    snapshot = open_store(path).snapshots["teacher"]
    assert snapshot.logits(range(100)).shape == (100, 10)
    assert not verify_store(str(path)).ok
