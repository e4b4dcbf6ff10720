"""The store: what is written is read, by us and by zarr, and two builds are one."""

import json
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import zarr

import logitstore
from logitstore.errors import Damaged, InputError, MismatchError, NotFound, Unfinished, UnknownName
from logitstore.format.arrays import ArrayLayout
from logitstore.format.cards import EncodingCard, ImportCard, Samples, SnapshotPlan, StoreMeta
from logitstore.format.documents import canonical
from logitstore.format.grid import chunk_rows, shard_rows
from logitstore.reading.opening import expect_root
from logitstore.reading.verify import verify_store
from logitstore.storage import open_storage
from logitstore.writing.opening import discard, discard_unfinished, open_writer
from logitstore.writing.target import Target
from logitstore.writing.writer import SnapshotWriter
from tests.support.stores import tree

Build = Callable[..., Path]
LABELS = np.arange(100, dtype=np.int32) % 10


def writer_for(path: Path, name: str = "a", **changes: object) -> SnapshotWriter:
    """A writer over 100 samples, 10 classes, 2 views, shards of 32 rows."""
    samples = Samples("tiny", LABELS)
    plan = SnapshotPlan(
        **{
            "name": name,
            "views": 2,
            "samples": 100,
            "classes": 10,
            "rows_per_shard": 32,
            "imported": ImportCard(file="x.npy", sha256="0" * 64),
            "encoding": EncodingCard(name="float16"),
            "packages": {},
            **changes,
        }
    )
    meta = StoreMeta(classes=10, dataset=samples.card())
    return open_writer(Target.read(open_storage(path), meta, samples), plan)


def drawn(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(2, 100, 10)).astype(np.float32) * 5


def fill(writer: SnapshotWriter, logits: np.ndarray) -> None:
    for shard in writer.missing():
        span = slice(shard.start, shard.stop)
        writer.write(shard, logits[shard.view, span], LABELS[span])


def test_rows_come_back_in_the_order_asked_for_with_duplicates(tmp_path: Path) -> None:
    writer, logits = writer_for(tmp_path / "s"), drawn()
    fill(writer, logits)
    root = writer.commit()
    store = logitstore.open_store(tmp_path / "s")
    snapshot = store.snapshots["a"]
    wanted = [99, 0, 31, 32, 0, 63]
    error = np.abs(snapshot.logits(wanted, view=1) - logits[1, wanted])
    assert (error.max(axis=1) <= snapshot.encoding.bound(logits[1, wanted])).all()
    assert snapshot.root == root
    assert (store.labels == LABELS).all()
    assert store.keys is None
    assert len(snapshot.rows([])) == 0


def test_zarr_reads_the_same_values_without_us(tmp_path: Path) -> None:
    writer, logits = writer_for(tmp_path / "s"), drawn()
    fill(writer, logits)
    writer.commit()
    group = zarr.open_group(tmp_path / "s", mode="r")
    codes, scalars = group["snapshots/a/codes"][:], group["snapshots/a/scalars"][:]
    ours = logitstore.open_store(tmp_path / "s").snapshots["a"]
    for view in range(2):
        theirs = codes[view].astype(np.float32) + scalars[view, :, :1]
        assert (theirs == ours.logits(np.arange(100), view)).all()
    assert (group["labels"][:] == LABELS).all()
    assert group.attrs["logitstore"]["dataset"]["length"] == 100


def test_string_keys_survive(tiny_store: Build, tmp_path: Path) -> None:
    path = tiny_store(tmp_path / "s", keys=True)
    keys = logitstore.open_store(path).keys
    assert keys is not None
    assert list(keys) == [f"img/{i:05d}.png" for i in range(100)]


def test_the_commit_lists_every_object_and_its_digest_is_the_root(tmp_path: Path) -> None:
    writer = writer_for(tmp_path / "s")
    fill(writer, drawn())
    root = writer.commit()
    commit = (tmp_path / "s/snapshots/a/commit.json").read_bytes()
    document = json.loads(commit)
    assert sha256(commit).hexdigest() == root
    assert canonical(document) == commit
    on_disk = tree(tmp_path / "s")
    del on_disk["snapshots/a/commit.json"]
    assert {key: entry["sha256"] for key, entry in document["objects"].items()} == on_disk
    for key, entry in document["objects"].items():
        assert (tmp_path / "s" / key).stat().st_size == entry["length"]


def test_order_of_shards_and_interruptions_leave_no_trace(tmp_path: Path) -> None:
    straight = writer_for(tmp_path / "straight")
    fill(straight, drawn())
    straight.commit()
    for shard in reversed(writer_for(tmp_path / "other").missing()):
        writer = writer_for(tmp_path / "other")  # a new process would see the same
        assert shard in writer.missing()
        span = slice(shard.start, shard.stop)
        writer.write(shard, drawn()[shard.view, span], LABELS[span])
        assert shard not in writer_for(tmp_path / "other").missing()
    writer_for(tmp_path / "other").commit()
    assert tree(tmp_path / "other") == tree(tmp_path / "straight")


def test_a_finished_shard_that_changed_its_length_is_written_again(tmp_path: Path) -> None:
    writer = writer_for(tmp_path / "s")
    fill(writer, drawn())
    victim = tmp_path / "s/snapshots/a/codes/c/1/2/0"
    victim.write_bytes(victim.read_bytes()[:-1])
    (again,) = writer_for(tmp_path / "s").missing()
    assert (again.view, again.start) == (1, 64)


def test_a_committed_snapshot_is_found_finished(tmp_path: Path) -> None:
    writer = writer_for(tmp_path / "s")
    fill(writer, drawn())
    root, before = writer.commit(), tree(tmp_path / "s")
    again = writer_for(tmp_path / "s")
    assert again.missing() == []
    assert again.commit() == root
    assert tree(tmp_path / "s") == before


def test_a_commit_needs_every_shard(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="8 shards are not written"):
        writer_for(tmp_path / "s").commit()
    assert list(logitstore.open_store(tmp_path / "s").snapshots) == []


def test_two_builds_that_differ_cannot_both_commit(tmp_path: Path) -> None:
    first, second = writer_for(tmp_path / "s"), writer_for(tmp_path / "s")
    fill(first, drawn(0))
    fill(second, drawn(1))
    for shard in first.grid.shards():  # the first one's bytes are back on disk before it commits
        span = slice(shard.start, shard.stop)
        first.write(shard, drawn(0)[shard.view, span], LABELS[span])
    root = first.commit()
    with pytest.raises(MismatchError, match=root):
        second.commit()


def test_a_build_notices_that_a_fresh_one_took_its_place(tmp_path: Path) -> None:
    """The first process still runs when --fresh begins another build under its name."""
    first, samples = writer_for(tmp_path / "s"), Samples("tiny", LABELS)
    shards = first.missing()
    first.write(shards[0], drawn()[0, :32], LABELS[:32])
    other = first.plan.model_copy(update={"packages": {"numpy": "9"}})
    meta = StoreMeta(classes=10, dataset=samples.card())
    second = open_writer(
        Target.read(open_storage(tmp_path / "s"), meta, samples), other, fresh=True
    )
    assert len(second.missing()) == len(shards)
    with pytest.raises(MismatchError, match="has taken this one's place"):
        first.write(shards[1], drawn()[0, 32:64], LABELS[32:64])
    fill(second, drawn(1))
    second.commit()
    assert verify_store(str(tmp_path / "s")).ok


def test_what_another_version_began_is_not_gone_on_with(tmp_path: Path) -> None:
    """Its plan says the same, but lacks a field; its rows may have other bytes."""
    writer_for(tmp_path / "s")
    plan = tmp_path / "s/.build/a/plan.json"
    said = json.loads(plan.read_bytes())
    del said["transcoded"]
    plan.write_bytes(canonical(said))
    with pytest.raises(MismatchError, match=r"another version of logitstore.* --fresh"):
        writer_for(tmp_path / "s")


def test_the_slower_of_two_equal_builds_stops_when_the_other_is_done(tmp_path: Path) -> None:
    slow, fast = writer_for(tmp_path / "s"), writer_for(tmp_path / "s")
    shards = slow.missing()
    slow.write(shards[0], drawn()[0, :32], LABELS[:32])
    fill(fast, drawn())
    root = fast.commit()
    slow.write(shards[1], drawn()[0, 32:64], LABELS[32:64])
    assert slow.missing() == []
    assert slow.commit() == root
    assert verify_store(str(tmp_path / "s")).ok


def test_what_changed_on_disk_is_never_committed(tmp_path: Path) -> None:
    """Same length, other bytes: the mark of an earlier run does not notice, the commit does."""
    writer = writer_for(tmp_path / "s")
    fill(writer, drawn())
    victim = tmp_path / "s/snapshots/a/codes/c/1/2/0"
    victim.write_bytes(bytes(len(victim.read_bytes())))
    with pytest.raises(Unfinished, match="run the same command again"):
        writer_for(tmp_path / "s").commit()
    again = writer_for(tmp_path / "s")
    (shard,) = again.missing()
    assert (shard.view, shard.start) == (1, 64)
    fill(again, drawn())
    again.commit()
    assert verify_store(str(tmp_path / "s")).ok


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"rows_per_shard": 64}, "rows_per_shard is 32 there and 64 here"),
        ({"encoding": EncodingCard(name="float32")}, "encoding.name is 'float16' there"),
        ({"packages": {"numpy": "9"}}, "packages.numpy is None there and '9' here"),
    ],
)
@pytest.mark.parametrize("finished", [True, False])
def test_another_build_of_the_same_name_is_refused_with_the_field(
    tmp_path: Path, changes: dict[str, object], field: str, finished: bool
) -> None:
    writer = writer_for(tmp_path / "s")
    if finished:
        fill(writer, drawn())
        writer.commit()
    before = tree(tmp_path / "s")
    with pytest.raises(MismatchError, match=field):
        writer_for(tmp_path / "s", **changes)
    assert tree(tmp_path / "s") == before


@pytest.mark.parametrize("finished", [True, False])
def test_another_version_of_logitstore_goes_on_with_what_one_began(
    tmp_path: Path, finished: bool
) -> None:
    begun, ours = {"logitstore": "1", "numpy": "9"}, {"logitstore": "2", "numpy": "9"}
    straight = writer_for(tmp_path / "straight", packages=begun)
    fill(straight, drawn())
    root = straight.commit()
    writer = writer_for(tmp_path / "s", packages=begun)
    if finished:
        fill(writer, drawn())
        writer.commit()
    again = writer_for(tmp_path / "s", packages=ours)
    fill(again, drawn())
    assert again.commit() == root
    assert tree(tmp_path / "s") == tree(tmp_path / "straight")
    with pytest.raises(MismatchError, match=r"packages\.numpy is '9' there and '8' here"):
        writer_for(tmp_path / "s", packages={**ours, "numpy": "8"})


def test_a_store_grows_and_keeps_what_it_had(tiny_store: Build, tmp_path: Path) -> None:
    path = tiny_store(tmp_path / "s", ("one",))
    before = tree(path)
    tiny_store(path, ("two",), seed=1)
    assert {key: digest for key, digest in tree(path).items() if key in before} == before
    assert list(logitstore.open_store(path).snapshots) == ["one", "two"]


def test_another_dataset_is_refused(tiny_store: Build, tmp_path: Path) -> None:
    path = tiny_store(tmp_path / "s")
    with pytest.raises(MismatchError, match=r"dataset.length is 100 there and 99 here"):
        tiny_store(path, ("two",), samples=99)


def test_a_folder_with_other_files_is_not_taken_for_a_new_store(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"not empty either \(notes.txt\)"):
        writer_for(tmp_path)
    assert tree(tmp_path).keys() == {"notes.txt"}


def test_discarding_the_only_build_leaves_nothing(tmp_path: Path) -> None:
    fill(writer_for(tmp_path / "s"), drawn())
    discard(open_storage(tmp_path / "s"), "a")
    assert not (tmp_path / "s").exists()


def test_discarding_spares_the_other_snapshots(tiny_store: Build, tmp_path: Path) -> None:
    path = tiny_store(tmp_path / "s", views=2)
    before = tree(path)
    samples = Samples("tiny", LABELS)
    meta = StoreMeta(classes=10, dataset=samples.card())
    plan = (
        logitstore.open_store(path)
        .snapshots["teacher"]
        .meta.model_dump(exclude={"fidelity", "top1", "name"})
    )
    storage = open_storage(path)
    target = Target.read(storage, meta, samples)
    fill(open_writer(target, SnapshotPlan(name="b", **plan)), drawn())
    discard(storage, "b")
    assert tree(path) == before
    with pytest.raises(InputError, match="is committed"):
        discard(storage, "teacher")


def test_only_an_unfinished_build_is_discarded(tiny_store: Build, tmp_path: Path) -> None:
    fill(writer_for(tmp_path / "s"), drawn())
    with pytest.raises(UnknownName, match=r"unknown unfinished build .*'b'.* known: a"):
        discard_unfinished(str(tmp_path / "s"), "b")
    discard_unfinished(str(tmp_path / "s"), "a")
    assert not (tmp_path / "s").exists()
    with pytest.raises(UnknownName, match="no build is unfinished there"):
        discard_unfinished(str(tmp_path / "s"), "a")
    with pytest.raises(InputError, match="is committed"):
        discard_unfinished(str(tiny_store(tmp_path / "t")), "teacher")


def test_nan_logits_are_refused_with_their_samples(tmp_path: Path) -> None:
    writer, logits = writer_for(tmp_path / "s"), drawn()
    logits[0, [33, 40], 2] = np.nan, np.inf
    shard = writer.missing()[1]
    with pytest.raises(logitstore.LogitstoreError, match="samples 33, 40"):
        writer.write(shard, logits[0, 32:64], LABELS[32:64])
    assert shard in writer_for(tmp_path / "s").missing()


@pytest.mark.parametrize("indices", [[100], [-1], [0.5], [[0]]])
def test_impossible_indices_are_refused(tiny_store: Build, tmp_path: Path, indices: object) -> None:
    snapshot = logitstore.open_store(tiny_store(tmp_path / "s")).snapshots["teacher"]
    with pytest.raises(InputError):
        snapshot.rows(indices)
    with pytest.raises(InputError, match="view 1 is outside"):
        snapshot.rows([0], view=1)


def test_names_that_are_not_there_are_answered_with_near_ones(
    tiny_store: Build, tmp_path: Path
) -> None:
    store = logitstore.open_store(tiny_store(tmp_path / "s", ("resnet56", "resnet20")))
    with pytest.raises(UnknownName, match="did you mean 'resnet56'"):
        store.snapshots["resnet65"]
    with pytest.raises(NotFound, match="no logit store is here"):
        logitstore.open_store(tmp_path / "nowhere")


def test_the_expected_root_is_compared(tiny_store: Build, tmp_path: Path) -> None:
    snapshot = logitstore.open_store(tiny_store(tmp_path / "s")).snapshots["teacher"]
    expect_root("teacher", snapshot.root, f"sha256:{snapshot.root}")
    with pytest.raises(MismatchError, match=snapshot.root):
        expect_root("teacher", snapshot.root, "0" * 64)


def test_figures_in_a_snapshot_are_those_of_its_rows(tmp_path: Path) -> None:
    writer, logits = writer_for(tmp_path / "s"), drawn()
    fill(writer, logits)
    writer.commit()
    snapshot = logitstore.open_store(tmp_path / "s").snapshots["a"]
    hits = np.mean([(logits[view].argmax(1) == LABELS).mean() for view in range(2)])
    assert snapshot.meta.top1 == pytest.approx(hits)
    decoded = np.stack([snapshot.logits(np.arange(100), view) for view in range(2)])
    p, q = (np.exp(z / 4) / np.exp(z / 4).sum(-1, keepdims=True) for z in (logits, decoded))
    kl = (p * np.log(p / q)).sum(-1)
    at_four = snapshot.meta.fidelity.divergence[1]
    assert at_four.temperature == 4
    assert at_four.mean == pytest.approx(kl.mean(), abs=1e-7)


def test_shards_and_chunks_have_the_sizes_of_the_format() -> None:
    assert shard_rows(20) == 16_384
    assert shard_rows(2000) == 16_384
    assert shard_rows(4000) == 8_192
    assert chunk_rows(16_384, 2000) == 512
    assert chunk_rows(16_384, 4000) == 256
    assert chunk_rows(32, 20) == 32


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("shape", [1, 10**15, 10]),
        ("data_type", "complex64"),
        ("codecs", []),
        ("chunk_key_encoding", {"name": "v2"}),
    ],
)
def test_metadata_that_lies_is_refused_before_anything_is_allocated(
    tiny_store: Build, tmp_path: Path, field: str, value: object
) -> None:
    path = tiny_store(tmp_path / "s") / "snapshots/teacher/codes/zarr.json"
    document = json.loads(path.read_text())
    document[field] = value
    with pytest.raises(Damaged):
        ArrayLayout.parse("x", json.dumps(document).encode())
