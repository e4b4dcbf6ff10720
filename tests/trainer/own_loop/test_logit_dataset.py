"""Own training loops: every batch holds the images and the logits of one and the same view."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.data_loader import prepare_data_loader
from numpy.typing import NDArray
from torch.utils.data import ConcatDataset, DataLoader, DistributedSampler, Subset, default_collate

from logitstore.errors import Damaged, InputError, MismatchError
from logitstore.precompute.building.config import BuildConfig
from logitstore.precompute.building.run import build
from logitstore.precompute.networks.factory import build_model
from logitstore.precompute.views import views_of
from logitstore.reading.continued import Continued
from logitstore.reading.opening import open_store
from logitstore.reading.snapshot import Snapshot
from logitstore.trainer import LogitDataset, losses, with_logits
from logitstore.trainer.own_loop.dataset import BindingWarning, LogitItem
from logitstore.trainer.own_loop.loader import LogitBatch, LogitLoader

SAMPLES, CLASSES, VIEWS = 42, 10, 3
SPEC = [{"name": "RandomCrop", "size": 8, "padding": 2}, {"name": "RandomHorizontalFlip"}]


@dataclass(frozen=True)
class World:
    """Noise images with labels, their spec, and the snapshot of random logits over three views."""

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]
    data: str
    snapshot: Snapshot

    def check(self, batch: Any) -> None:
        """Image, label and logits of each sample are those of its own index and view."""
        assert self.snapshot.meta.view is not None
        views = views_of(self.snapshot.meta.view)
        for image, label, index, view, teacher in zip(*batch, strict=True):
            shown = views(self.pixels[index], sample=int(index), view=int(view))
            assert torch.equal(image, shown)
            assert label == self.labels[index]
            there = self.snapshot.logits([int(index)], int(view))[0]
            assert np.array_equal(teacher.numpy(), there)

    def epochs(self, loader: LogitLoader, count: int) -> list[tuple[list[int], list[int]]]:
        """(samples in order, views that occur) of some epochs whose every batch is right."""
        found = []
        for _ in range(count):
            batches = list(loader)
            assert len(batches) == len(loader)
            for batch in batches:
                assert isinstance(batch, LogitBatch)
                self.check(batch)
            indices, views = (torch.cat([b[field] for b in batches]) for field in (2, 3))
            found.append((indices.tolist(), sorted(set(views.tolist()))))
        return found


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, bound_store: Callable[..., Path]) -> World:
    top, rng = tmp_path_factory.mktemp("own"), np.random.default_rng(0)
    pixels = rng.integers(0, 256, (SAMPLES, 10, 10, 3), dtype=np.uint8)
    labels = np.arange(SAMPLES) % CLASSES
    labels[5] = -1
    np.savez(top / "d.npz", x=pixels, y=labels)
    (top / "views.json").write_text(json.dumps(SPEC))
    logits = rng.standard_normal((VIEWS, SAMPLES, CLASSES)).astype(np.float32)
    data, spec = f"npz:{top}/d.npz?classes={CLASSES}", str(top / "views.json")
    path = bound_store(top / "s.zarr", data, logits, view_spec=spec)
    return World(pixels, labels, data, open_store(path).snapshots["teacher"])


@pytest.fixture
def dataset(world: World) -> LogitDataset:
    with pytest.warns(BindingWarning, match="1 of 42 labels are unknown here"):
        return LogitDataset(world.data, world.snapshot)


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
@pytest.mark.parametrize(
    ("workers", "ahead"), [(0, 0), (0, 2), (0, 50), (1, 2), (2, 0), (2, 2), (4, 2)]
)
def test_batches_hold_the_logits_of_their_own_view(
    world: World, dataset: LogitDataset, workers: int, ahead: int
) -> None:
    loader = DataLoader(dataset, 8, shuffle=True, num_workers=workers)
    epochs = world.epochs(with_logits(loader, world.snapshot, ahead=ahead), 4)
    assert [views for _, views in epochs] == [[0], [1], [2], [0]]
    orders = [order for order, _ in epochs]
    assert all(sorted(order) == list(range(SAMPLES)) for order in orders)
    assert orders[0] != orders[1]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_that_live_on_see_each_epoch_also_after_an_early_end(
    world: World, dataset: LogitDataset, method: str
) -> None:
    """What such workers prefetched when the first epoch was left is never joined wrongly."""
    loader = with_logits(
        DataLoader(
            dataset,
            4,
            shuffle=True,
            num_workers=1,
            persistent_workers=True,
            prefetch_factor=4,
            multiprocessing_context=method,
        ),
        world.snapshot,
    )
    for batch in loader:
        world.check(batch)
        break
    assert [views for _, views in world.epochs(loader, 3)] == [[1], [2], [0]]


def test_ranks_of_a_distributed_sampler_share_each_epoch_s_samples(
    world: World, dataset: LogitDataset
) -> None:
    ranks = []
    for rank in range(2):
        sampler = DistributedSampler(dataset, num_replicas=2, rank=rank, seed=3)
        loader = DataLoader(dataset, 5, sampler=sampler)
        dataset.set_epoch(0)  # each rank would have a dataset of its own
        ranks.append(world.epochs(with_logits(loader, world.snapshot), 2))
    for (first, views), (second, same) in zip(*ranks, strict=True):
        assert sorted(first + second) == list(range(SAMPLES))
        assert views == same
    assert [views for _, views in ranks[0]] == [[0], [1]]
    assert ranks[0][0][0] != ranks[0][1][0]


def test_an_epoch_may_be_set_on_the_loader_the_dataset_or_the_sampler(
    world: World, dataset: LogitDataset
) -> None:
    sampler = DistributedSampler(dataset, num_replicas=1, rank=0)
    loader = with_logits(DataLoader(dataset, 16, sampler=sampler), world.snapshot)

    def view() -> tuple[list[int], int]:
        (_, views) = world.epochs(loader, 1)[0]
        return views, sampler.epoch

    loader.set_epoch(1)
    assert (view(), view()) == (([1], 1), ([2], 2))
    loader.set_epoch(2)
    assert view() == ([2], 2)
    dataset.set_epoch(7)
    assert (view(), view()) == (([1], 7), ([2], 8))
    sampler.set_epoch(10)  # as Lightning and many loops do
    assert view() == ([1], 10)
    iter(loader), iter(loader)  # nothing was taken from these
    assert view() == ([2], 11)


def test_a_subset_and_a_concatenation_keep_their_samples_indices(
    world: World, dataset: LogitDataset
) -> None:
    parts = ConcatDataset([Subset(dataset, range(30, 40)), Subset(dataset, [5, 3])])
    loader = with_logits(DataLoader(parts, 7), world.snapshot)
    assert world.epochs(loader, 2) == [([*range(30, 40), 5, 3], [view]) for view in (0, 1)]


class Turning(Subset[LogitItem]):
    """Another epoch is set before each item."""

    def __getitems__(self, indices: list[int]) -> list[LogitItem]:
        items = []
        for index in indices:
            self.dataset.set_epoch(index * index)  # type: ignore[attr-defined]
            items.append(self.dataset[index])
        return items


def test_a_batch_of_several_views_gets_each_one_s_rows(world: World, dataset: LogitDataset) -> None:
    turning = Turning(dataset, range(SAMPLES))
    for batch in with_logits(DataLoader(turning, 8), world.snapshot):
        assert batch.view.tolist() == [index**2 % VIEWS for index in batch.index.tolist()]
        world.check(batch)


def test_a_collate_fn_may_give_mappings_but_must_keep_index_and_view(
    world: World, dataset: LogitDataset
) -> None:
    def named(items: list[LogitItem]) -> dict[str, Any]:
        fields = default_collate(items)
        return {"pixels": fields.image, "labels": fields.label, **fields._asdict()}

    (batch,) = with_logits(DataLoader(dataset, SAMPLES, collate_fn=named), world.snapshot)
    assert list(batch) == ["pixels", "labels", *LogitItem._fields, "teacher"]
    world.check([batch[field] for field in LogitBatch._fields])

    def nameless(items: list[LogitItem]) -> tuple[Any, ...]:
        return tuple(default_collate(items))

    broken = with_logits(DataLoader(dataset, 8, collate_fn=nameless), world.snapshot)
    with pytest.raises(
        InputError, match=r"a batch is a tuple .* let collate_fn return a LogitItem"
    ):
        next(iter(broken))


def test_accelerate_s_loader_is_wrapped_after_it_was_prepared(
    world: World, dataset: LogitDataset
) -> None:
    plain = DataLoader(dataset, 8, shuffle=True)
    prepared = prepare_data_loader(plain, num_processes=1, process_index=0, put_on_device=True)
    loader = with_logits(prepared, world.snapshot)
    assert [views for _, views in world.epochs(loader, 2)] == [[0], [1]]
    loader.set_epoch(4)  # the prepared loader counts too, and would say 2
    assert [views for _, views in world.epochs(loader, 2)] == [[1], [2]]


def test_logits_lie_where_they_are_wanted(world: World, dataset: LogitDataset) -> None:
    loader = with_logits(DataLoader(dataset, 8), world.snapshot, device="meta")
    assert {batch.teacher.device.type for batch in loader} == {"meta"}


def test_the_loader_tells_what_frameworks_ask(world: World, dataset: LogitDataset) -> None:
    plain = DataLoader(dataset, 5, shuffle=True, drop_last=True)
    loader = with_logits(plain, world.snapshot)
    for name in ("dataset", "sampler", "batch_sampler", "batch_size", "drop_last", "num_workers"):
        assert getattr(loader, name) is getattr(plain, name)
    assert len(loader) == SAMPLES // 5
    assert not hasattr(loader, "collate_fn")


def test_only_the_snapshot_of_the_dataset_is_accepted(
    world: World, dataset: LogitDataset, bound_store: Callable[..., Path], tmp_path: Path
) -> None:
    path = bound_store(tmp_path / "o.zarr", world.data, np.zeros((1, SAMPLES, CLASSES), np.float32))
    other = open_store(path).snapshots["teacher"]
    with pytest.raises(MismatchError, match=f"root {world.snapshot.root}, .* root {other.root}"):
        with_logits(DataLoader(dataset), other)
    with pytest.raises(InputError, match=r"dataset is a list.*LogitDataset\(dataset, snapshot\)"):
        with_logits(DataLoader([1, 2]), world.snapshot)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="dataset is a list"):
        with_logits(DataLoader(ConcatDataset([dataset, [1]])), world.snapshot)  # type: ignore[list-item]


class Twins(list[Any]):
    """Samples that all have the same key."""

    keys = ("twin",) * SAMPLES


@pytest.mark.filterwarnings("ignore::logitstore.trainer.own_loop.dataset.BindingWarning")
def test_any_map_style_dataset_of_the_same_images_will_do(world: World) -> None:
    pairs = list(zip(world.pixels, world.labels.tolist(), strict=True))
    dataset = LogitDataset(pairs, world.snapshot)
    assert len(world.epochs(with_logits(DataLoader(dataset, 20), world.snapshot), 1)[0][0]) == 42
    with pytest.raises(MismatchError, match="42 samples there, 41 here"):
        LogitDataset(pairs[1:], world.snapshot)
    inverted = [(255 - image, label) for image, label in pairs]
    with pytest.raises(MismatchError, match="sample 0, view 0"):
        LogitDataset(inverted, world.snapshot)
    with pytest.warns(BindingWarning, match="allowed mismatch: list: sample 0, view 0"):
        LogitDataset(inverted, world.snapshot, allow_mismatch=True)
    with pytest.raises(InputError, match="list: labels are float64"):
        LogitDataset([(image, float(label)) for image, label in pairs], world.snapshot)
    with pytest.raises(InputError, match="keys are not one for each sample, or not unique"):
        LogitDataset(Twins(pairs), world.snapshot)
    floats = [(image / 255, label) for image, label in pairs]
    with pytest.raises(InputError, match="before any conversion to float"):
        LogitDataset(floats, world.snapshot)


def test_missing_labels_have_no_cross_entropy(world: World, dataset: LogitDataset) -> None:
    (batch,) = with_logits(DataLoader(dataset, SAMPLES), world.snapshot)
    loss = losses.cross_entropy(batch.teacher, batch.label)
    assert [i for i, value in enumerate(loss.tolist()) if value == 0] == [5]
    assert (losses.kd(-batch.teacher, batch.teacher, temperature=4) > 0).all()


KEYED = """
from pathlib import Path
import numpy as np

PIXELS = np.load(Path(__file__).parent / "d.npz")["x"]

class Keyed:
    def __init__(self, samples, classes):
        self.samples, self.classes = samples, classes
        self.keys = [f"{sample:03d}.png" for sample in samples]
        self.targets = [self.number(sample) for sample in samples]

    def number(self, sample):
        return "".join(self.classes).upper().index("ABCDEFGHIJ"[sample % 10])

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, item):
        return PIXELS[self.samples[item]], self.targets[item]

def whole(): return Keyed(range(42), list("ABCDEFGHIJ"))
def part(): return Keyed(range(40, 0, -3), list("JIHGFEDCBA"))
def renamed(): return Keyed(range(40, 0, -3), list("jihgfedcba"))
"""


@pytest.mark.filterwarnings("ignore::logitstore.trainer.own_loop.dataset.BindingWarning")
def test_samples_are_matched_by_key_and_classes_by_name_or_map(
    world: World, bound_store: Callable[..., Path], tmp_path: Path
) -> None:
    np.savez(tmp_path / "d.npz", x=world.pixels)
    (tmp_path / "data.py").write_text(KEYED)
    logits = np.random.default_rng(1).standard_normal((1, SAMPLES, CLASSES)).astype(np.float32)
    path = bound_store(tmp_path / "k.zarr", f"{tmp_path}/data.py:whole", logits)
    snapshot = open_store(path).snapshots["teacher"]
    part = f"{tmp_path}/data.py:part"
    with pytest.raises(MismatchError, match="--match-by key finds one by its keys"):
        LogitDataset(part, snapshot)
    by_name = LogitDataset(part, snapshot, match_by="key")
    with pytest.raises(MismatchError, match=r"renamed has a class .j., .* none of that name"):
        LogitDataset(f"{tmp_path}/data.py:renamed", snapshot, match_by="key")
    letters = {letter: letter.upper() for letter in "abcdefghij"}
    by_map = LogitDataset(
        f"{tmp_path}/data.py:renamed", snapshot, match_by="key", class_map=letters
    )
    there = list(range(1, 41, 3))
    for dataset in (by_name, by_map):
        (batch,) = with_logits(DataLoader(dataset, SAMPLES), snapshot)
        assert batch.index.tolist() == there  # the store's order and numbers
        assert batch.label.tolist() == [index % CLASSES for index in there]
        assert np.array_equal(batch.teacher.numpy(), logits[0, there])
        assert np.array_equal(batch.image.numpy().transpose(0, 2, 3, 1), world.pixels[there])


def test_views_of_several_snapshots_continue_each_other(tmp_path: Path) -> None:
    (tmp_path / "views.json").write_text(json.dumps([{"name": "RandomHorizontalFlip"}]))
    torch.save(
        build_model("mlp?hidden=4", classes=10, shape=(1, 8, 8)).state_dict(), tmp_path / "t.pt"
    )
    data = "digits?samples=0:30"
    for first, name in ((0, "a"), (2, "b")):
        build(
            BuildConfig(
                teachers=[str(tmp_path / "t.pt")],
                arch=["mlp?hidden=4"],
                data=data,
                out=str(tmp_path / "s.zarr"),
                snapshots=[name],
                view_spec=str(tmp_path / "views.json"),
                views=2,
                mix="cutmix:1.0",
                first_view=first,
                device="cpu",
            )
        )
    store = open_store(tmp_path / "s.zarr")
    both = Continued([store.snapshots["a"], store.snapshots["b"]])
    loader = with_logits(DataLoader(LogitDataset(data, both), 30), both)
    batches = [next(iter(loader)) for _ in range(5)]
    assert [batch.view.unique().tolist() for batch in batches] == [[0], [1], [2], [3], [0]]
    for batch, name, view in zip(batches, "aabb", (0, 1, 0, 1), strict=False):
        there = store.snapshots[name].logits(batch.index.numpy(), view)
        assert np.array_equal(batch.teacher.numpy(), there)
    assert len({batch.image.numpy().tobytes() for batch in batches}) == 4
    second = LogitDataset(data, store.snapshots["b"])  # its view 0 is the sequence's view 2
    assert torch.equal(torch.stack([item.image for item in second]), batches[2].image)


def test_a_served_store_gives_the_same_batches(
    world: World, dataset: LogitDataset, serve: Callable[..., Any]
) -> None:
    server = serve(Path(world.snapshot.url))
    remote = open_store(f"{server.url}/s").snapshots["teacher"]
    with pytest.warns(BindingWarning):
        twin = LogitDataset(world.data, remote)
    assert len(world.epochs(with_logits(DataLoader(twin, 8, num_workers=1), remote), 2)) == 2
    # The same root is the same snapshot, wherever its bytes come from.
    assert world.epochs(with_logits(DataLoader(dataset, 40), remote), 1)


def test_damaged_rows_end_the_epoch_with_their_error(
    world: World, bound_store: Callable[..., Path], tmp_path: Path
) -> None:
    path = bound_store(tmp_path / "d.zarr", world.data, np.zeros((1, SAMPLES, CLASSES), np.float32))
    snapshot = open_store(path).snapshots["teacher"]
    with pytest.warns(BindingWarning):
        dataset = LogitDataset(world.data, snapshot)
    loader = with_logits(DataLoader(dataset, 8), snapshot, read="direct")
    (path / "snapshots/teacher/codes/c/0/0/0").unlink()
    with pytest.raises(Damaged, match=r"samples 0\.\.41\) is missing"):
        list(loader)


def test_no_thread_outlives_the_epoch_that_started_it(world: World, dataset: LogitDataset) -> None:
    for batch in with_logits(DataLoader(dataset, 4), world.snapshot):
        assert len(batch.teacher) == 4
        break
    deadline = time.monotonic() + 10
    while any(thread.name == "logitstore-read-ahead" for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.filterwarnings("ignore::logitstore.trainer.own_loop.dataset.BindingWarning")
def test_imported_logits_are_taken_only_when_told(
    world: World, tiny_store: Callable[..., Path], tmp_path: Path
) -> None:
    snapshot = open_store(tiny_store(tmp_path / "i.zarr", samples=SAMPLES)).snapshots["teacher"]
    with pytest.raises(MismatchError, match="was imported"):
        LogitDataset(world.data, snapshot)
    dataset = LogitDataset(world.data, snapshot, allow_unbound=True)
    item = dataset[7]
    assert np.array_equal(item.image.numpy().transpose(1, 2, 0), world.pixels[7])
    assert item[1:] == (7, 7, 0)
