"""A build reads its target once; what another build does meanwhile is neither lost nor hidden."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from logitstore.errors import MismatchError
from logitstore.format.cards import (
    EncodingCard,
    ImportCard,
    Samples,
    SnapshotPlan,
    StoreMeta,
    ViewCard,
)
from logitstore.reading.verify import verify_store
from logitstore.storage.local import MAX_OBJECT_BYTES, LocalStorage
from logitstore.writing.opening import open_writer
from logitstore.writing.target import Target
from logitstore.writing.writer import SnapshotWriter
from tests.support.stores import tree

Build = Callable[..., Path]
LABELS = np.arange(100, dtype=np.int32) % 10
SAMPLES = Samples("tiny", LABELS)
META = StoreMeta(classes=10, dataset=SAMPLES.card())


class Counting(LocalStorage):
    """A storage that counts what is asked of it."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.calls: Counter[str] = Counter()

    def get(self, key: str, most_bytes: int = MAX_OBJECT_BYTES) -> bytes:
        self.calls["reads"] += 1
        return super().get(key, most_bytes)

    def size(self, key: str) -> int | None:
        self.calls["reads"] += 1
        return super().size(key)

    def names(self, prefix: str) -> list[str]:
        self.calls["lists"] += 1
        return super().names(prefix)


def plan(name: str, **changes: object) -> SnapshotPlan:
    return SnapshotPlan(
        **{
            "name": name,
            "views": 1,
            "samples": 100,
            "classes": 10,
            "rows_per_shard": 64,
            "imported": ImportCard(file="x.npy", sha256="0" * 64),
            "encoding": EncodingCard(name="float16"),
            "packages": {},
            **changes,
        }
    )


def fill(writer: SnapshotWriter, seed: int = 0) -> str:
    logits = np.random.default_rng(seed).normal(size=(100, 10)).astype(np.float32)
    for shard in writer.missing():
        writer.write(shard, logits[shard.samples], LABELS[shard.samples])
    return writer.commit()


def test_what_a_build_reads_grows_with_snapshots_not_with_teachers_times_snapshots(
    tmp_path: Path,
) -> None:
    card = ViewCard(spec=(), size=None, seed=0, canaries=())  # same views: their canaries are met

    def calls(teachers: int, snapshots: int) -> tuple[int, int]:
        storage = Counting(tmp_path / f"{teachers}-{snapshots}")
        before = Target.read(storage, META, SAMPLES)
        for number in range(snapshots):
            fill(open_writer(before, plan(f"s{number}", view=card)))
        storage.calls.clear()
        target = Target.read(storage, META, SAMPLES)
        plans = [plan(f"t{number}", view=card) for number in range(teachers)]
        for each in plans:
            target.refuse(each)
        for writer in [open_writer(target, each) for each in plans]:
            fill(writer)
        return storage.calls["reads"], storage.calls["lists"]

    few, many = 2, 6
    (reads, lists), (more_reads, more_lists) = calls(1, few), calls(1, many)
    assert 0 < more_reads - reads <= 6 * (many - few)
    assert more_lists == lists
    beside_few, beside_many = calls(5, few), calls(5, many)
    assert beside_many[0] - beside_few[0] == more_reads - reads
    assert beside_many[1] == beside_few[1]


@pytest.mark.parametrize("seed", [0, 1])
def test_a_snapshot_that_is_committed_after_the_store_was_read_is_left_as_it_is(
    tmp_path: Path, seed: int
) -> None:
    """The same build has finished it, or another one has: this one writes nothing over it."""
    storage = LocalStorage(tmp_path / "s")
    stale = Target.read(storage, META, SAMPLES)
    packages = {} if seed == 0 else {"numpy": "9"}
    root = fill(open_writer(Target.read(storage, META, SAMPLES), plan("a", packages=packages)))
    before = tree(tmp_path / "s")
    if seed == 0:
        writer = open_writer(stale, plan("a"))
        assert (writer.missing(), writer.commit()) == ([], root)
    else:
        with pytest.raises(MismatchError, match=r"committed and was built differently"):
            open_writer(stale, plan("a"))
    assert tree(tmp_path / "s") == before
    assert verify_store(str(tmp_path / "s")).ok


def test_a_store_of_another_dataset_that_begins_meanwhile_is_refused(
    tmp_path: Path, tiny_store: Build
) -> None:
    stale = Target.read(LocalStorage(tmp_path / "s"), META, SAMPLES)
    before = tree(tiny_store(tmp_path / "s", ("other",), samples=99))
    with pytest.raises(MismatchError, match=r"dataset.length is 99 there and 100 here"):
        open_writer(stale, plan("a"))
    assert tree(tmp_path / "s") == before


def test_another_build_of_the_name_that_begins_meanwhile_keeps_its_place(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path / "s")
    fill(open_writer(Target.read(storage, META, SAMPLES), plan("first")))
    stale = Target.read(storage, META, SAMPLES)
    other = open_writer(Target.read(storage, META, SAMPLES), plan("a", packages={"numpy": "9"}))
    with pytest.raises(MismatchError, match="another build of 'a' has taken this one's place"):
        open_writer(stale, plan("a"))
    fill(other)
    assert verify_store(str(tmp_path / "s")).ok


def test_snapshots_that_are_committed_meanwhile_do_not_disturb_a_build(
    tmp_path: Path, tiny_store: Build
) -> None:
    path = tiny_store(tmp_path / "s", ("one",))
    target = Target.read(LocalStorage(path), META, SAMPLES)
    tiny_store(path, ("two",), seed=1)
    fill(open_writer(target, plan("three")))
    assert verify_store(str(path)).ok
