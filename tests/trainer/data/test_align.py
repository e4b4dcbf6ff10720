"""A dataset in another order, or a part of it, gets its own logits; any other is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from logitstore.errors import InputError, LogitstoreError, MismatchError, UnknownName
from logitstore.precompute.data.images import ImageDataset
from logitstore.precompute.data.sources import open_dataset
from logitstore.precompute.networks.factory import build_model
from logitstore.precompute.views import Views
from logitstore.reading.opening import open_store
from logitstore.reading.store import LogitStore
from logitstore.trainer import TrainConfig, evaluate, train
from logitstore.trainer.data.align import align
from logitstore.trainer.data.bind import bind
from logitstore.trainer.data.samples import chosen_samples
from logitstore.trainer.data.source import Source
from logitstore.trainer.measure.network import Network
from logitstore.trainer.metrics import accuracy, kd_error

COUNT, CLASSES = 60, 10
FACTORIES = """
from pathlib import Path
from PIL import Image

ROOT = Path(__file__).parent / "images"
PATHS = sorted(ROOT.glob("*/*.png"))

class Files:
    def __init__(self, paths):
        self.paths = paths
        self.classes = sorted({path.parent.name for path in PATHS})
        self.keys = [path.relative_to(ROOT).as_posix() for path in paths]
        self.targets = [self.classes.index(path.parent.name) for path in paths]

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        return Image.open(self.paths[index]).convert("L"), self.targets[index]

def whole(): return Files(PATHS)
def turned(): return Files(PATHS[25:][::-1] + PATHS[:25])
def third(): return Files(PATHS[::3][::-1])
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``data.py`` with factories over 60 digits, kept as images/CLASS/NUMBER.png."""
    folder = tmp_path_factory.mktemp("files")
    digits = open_dataset(f"digits?samples=0:{COUNT}")
    for index, label in enumerate(digits.labels):
        path = folder / f"images/class{label}/{index:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.asarray(digits.image(index))).save(path)
    (folder / "data.py").write_text(FACTORIES)
    return folder / "data.py"


@pytest.fixture(scope="module")
def taught(files: Path, bound_store: Callable[..., Path]) -> Path:
    """A store over the whole of them, in sorted order, whose teacher knows the labels."""
    logits = np.random.default_rng(0).standard_normal((1, COUNT, CLASSES))
    logits[0] += 8 * np.eye(CLASSES)[open_dataset(f"{files}:whole").labels]
    return bound_store(files.parent / "s.zarr", f"{files}:whole", logits.astype(np.float32))


@pytest.fixture(scope="module")
def keyed(tiny_store: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> LogitStore:
    """100 samples img/00000.png …, labels sample % 10."""
    return open_store(tiny_store(tmp_path_factory.mktemp("keyed") / "keyed.zarr", keys=True))


@pytest.fixture(scope="module")
def keyless(
    tiny_store: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> LogitStore:
    return open_store(tiny_store(tmp_path_factory.mktemp("keyless") / "keyless.zarr"))


def here(order: Any, *, keys: bool = True, labels: Any = None) -> ImageDataset:
    """Some of ``keyed``'s samples in some order; the item of each is its number there."""
    wanted = np.array(order)
    return ImageDataset(
        name="here",
        labels=np.asarray(wanted % 10 if labels is None else labels, np.int32),
        load=lambda index: int(wanted[index]),
        classes=10,
        keys=[f"img/{number:05d}.png" for number in wanted] if keys else None,
    )


def run(files: Path, store: Path, out: Path, factory: str, **changes: Any) -> TrainConfig:
    settings: dict[str, Any] = {
        "data": f"{files}:{factory}",
        "student": "mlp?hidden=16",
        "store": str(store),
        "method": "kd",
        "epochs": 2,
        "batch_size": 16,
        "device": "cpu",
        "workers": 0,
    }
    return TrainConfig(**{**settings, **changes}, out=str(out))


def test_a_run_on_files_in_another_order_is_the_same_run_bit_for_bit(
    files: Path, taught: Path, tmp_path: Path
) -> None:
    whole, turned = (
        run(files, taught, tmp_path / name, name, match_by="key", limit=40)
        for name in ("whole", "turned")
    )
    with pytest.raises(MismatchError, match="same samples in another order: pass --match-by key"):
        train(replace(turned, match_by="index"))
    assert not Path(turned.out).exists()
    assert train(whole).metrics == train(turned).metrics
    first, second = (Path(config.out) / "model.safetensors" for config in (whole, turned))
    assert first.read_bytes() == second.read_bytes()
    other = replace(turned, limit_seed=1, out=str(tmp_path / "other"))
    train(other)
    assert (tmp_path / "other/model.safetensors").read_bytes() != first.read_bytes()


def test_a_part_of_the_samples_is_trained_on_in_the_store_s_order(
    files: Path, taught: Path, tmp_path: Path
) -> None:
    store = open_store(taught)
    snapshot = store.snapshots["teacher"]
    source, notes = bind(store, snapshot, open_dataset(f"{files}:third"), match_by="key")
    assert source.subset is not None
    assert np.array_equal(source.subset, np.arange(0, COUNT, 3))
    assert any("20 of 60 samples are here, matched by key" in note for note in notes)
    whole = open_dataset(f"{files}:whole")
    for sample in source.subset:
        assert source.dataset.labels[sample] == whole.labels[sample]
        assert np.array_equal(source.dataset.image(int(sample)), whole.image(int(sample)))
    config = run(files, taught, tmp_path / "run", "third", match_by="key", epochs=20, lr=0.2)
    train(config)
    with pytest.raises(InputError, match="--limit 21 is more than the 20 samples"):
        train(replace(config, limit=21, out=str(tmp_path / "more")))
    # The same figures by another way: from the whole set, without the store's order.
    model = build_model("mlp?hidden=16", classes=CLASSES, shape=(1, 8, 8))
    model.load_state_dict(load_file(tmp_path / "run/model.safetensors"))
    plain = Source(dataset=whole, views=Views(()), classes=CLASSES, view_count=1)
    logits = Network(model, None, torch.device("cpu"), 7).logits(plain)[::3]
    error = kd_error(logits, snapshot.logits(np.arange(0, COUNT, 3)))
    measured = evaluate(config.out, config.data, store=str(taught), match_by="key", device="cpu")
    assert (measured["kd_error"], measured["samples"]) == (error, 20)
    assert measured["top1"] == accuracy(logits, whole.labels[::3]) > 0.5
    assert error < 0.5
    with pytest.raises(InputError, match="--match-by without a store"):
        evaluate(config.out, config.data, match_by="key", device="cpu")


def test_each_key_leads_to_its_image_and_its_label(keyed: LogitStore) -> None:
    order = np.random.default_rng(0).permutation(100)
    aligned = align(here(order), keyed, match_by="key")
    assert aligned.samples is None
    assert aligned.notes == []
    assert [aligned.dataset.load(sample) for sample in range(100)] == list(range(100))
    assert np.array_equal(aligned.dataset.labels, keyed.labels)
    assert aligned.dataset.samples().card().sha256 == keyed.meta.dataset.sha256


def test_what_is_not_here_has_no_image_no_label_and_is_never_chosen(keyed: LogitStore) -> None:
    aligned = align(here([42, 7, 99]), keyed, match_by="key")
    assert aligned.notes == ["here: 3 of 100 samples are here, matched by key"]
    assert aligned.samples is not None
    assert aligned.samples.tolist() == [7, 42, 99]
    assert aligned.dataset.labels[[7, 8, 42, 99]].tolist() == [7, -1, 2, 9]
    assert aligned.dataset.item(42) == 42
    with pytest.raises(InputError, match="sample 8 of the store is not here"):
        aligned.dataset.item(8)
    assert set(chosen_samples(aligned.samples, 2, 0).tolist()) < {7, 42, 99}


def test_two_parts_of_unlabelled_samples_are_two_datasets(keyed: LogitStore) -> None:
    cards = [
        align(here(part, labels=[-1, -1]), keyed, match_by="key").dataset.samples().card()
        for part in ([3, 4], [3, 5])
    ]
    assert cards[0] != cards[1]


LABELS = np.arange(100) % 10
WRONG = np.where(np.arange(100) == 17, 3, LABELS)
REFUSALS: dict[str, tuple[Any, str, type[LogitstoreError], str]] = {
    "order": (here(range(99, -1, -1)), "index", MismatchError, "pass --match-by key"),
    "order of labels": (
        here(range(100), keys=False, labels=LABELS[::-1]),
        "index",
        MismatchError,
        r"another order \(label 0 there and 9 here at sample 0\)",
    ),
    "length": (here(range(50)), "index", MismatchError, "100 samples there, 50 here.*by its keys"),
    "label": (
        here(range(100), labels=WRONG),
        "index",
        MismatchError,
        r"sample 17 is \(key, label\) \('img/00017.png', 7\) there and \('img/00017.png', 3\) here",
    ),
    "label without keys": (
        here(range(100), keys=False, labels=WRONG),
        "index",
        MismatchError,
        "sample 17 has label 7 there and 3 here: .* --class-map FILE",
    ),
    "key": (
        here([*range(99), 100], labels=LABELS),
        "index",
        MismatchError,
        r"sample 99 is .*'img/00099.png', 9\) there and \('img/00100.png', 9\) here",
    ),
    "label of a key": (
        here([5, 17], labels=[5, 3]),
        "key",
        MismatchError,
        "sample 'img/00017.png' has label 7 there and 3 here",
    ),
    "strangers": (
        here([98, 99, 100, 101, 102, 103]),
        "key",
        MismatchError,
        r"4 of 6 samples are not in the store \('img/00100.png', 'img/00101.png', "
        r"'img/00102.png', …; its keys are like 'img/00000.png'\): leave them out of the dataset, "
        "or build a store",
    ),
    "no keys": (here(range(100), keys=False), "key", InputError, "here has no sample keys"),
    "no such way": (here(range(100)), "name", UnknownName, "known: index, key"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_dataset_that_does_not_fit_is_refused_with_the_way_out(
    case: str, keyed: LogitStore
) -> None:
    dataset, way, error, says = REFUSALS[case]
    with pytest.raises(error, match=says):
        align(dataset, keyed, match_by=way)


def test_a_store_without_keys_cannot_be_searched(keyless: LogitStore) -> None:
    with pytest.raises(InputError, match=r"keyless\.zarr has no sample keys .*--match-by index"):
        align(here(range(100)), keyless, match_by="key")
    assert align(here(range(100)), keyless).notes == []
    with pytest.raises(MismatchError, match="looks like the same samples in another order"):
        align(here(range(99, -1, -1)), keyless)


def test_an_order_that_only_labels_can_prove_is_noted(keyed: LogitStore) -> None:
    (note,) = align(here(range(100), keys=False), keyed).notes
    assert "checked by labels, not by keys" in note


def test_unknown_labels_agree_with_any_and_stay_unknown(keyed: LogitStore) -> None:
    half = np.where(np.arange(100) % 2, LABELS, -1)
    aligned = align(here(range(100), labels=half), keyed)
    assert np.array_equal(aligned.dataset.labels, half)
    (note,) = aligned.notes
    assert note == "here: 50 of 100 labels are unknown here: no cross-entropy there"
    with pytest.raises(MismatchError, match=r"sample 17 .*'img/00017.png', 3\) here"):
        align(here(range(100), labels=np.where(np.arange(100) == 17, 3, half)), keyed)


def test_the_dataset_s_own_labels_are_used_where_the_store_has_none(
    files: Path, bound_store: Callable[..., Path], tmp_path: Path
) -> None:
    images = np.zeros((4, 8, 8), np.uint8)
    np.savez(tmp_path / "unlabelled.npz", x=images, y=np.full(4, -1))
    np.savez(tmp_path / "labelled.npz", x=images, y=np.arange(4))
    without, known = (
        f"npz:{tmp_path}/{name}.npz?classes=10" for name in ("unlabelled", "labelled")
    )
    store = open_store(bound_store(tmp_path / "s.zarr", without, np.zeros((1, 4, 10), np.float32)))
    aligned = align(open_dataset(known), store)
    assert aligned.dataset.labels.tolist() == [0, 1, 2, 3]
    assert aligned.notes == []


def test_cross_entropy_is_nothing_where_a_label_is_missing(
    files: Path, taught: Path, tmp_path: Path
) -> None:
    # At this learning rate the weights stay what they are, so the sums over parts must add up.
    dataset = open_dataset(f"{files}:whole")
    pixels = np.stack([np.asarray(dataset.image(index)) for index in range(COUNT)])
    odd = np.arange(COUNT) % 2 == 1
    losses = {}
    for name, known in {"all": odd | ~odd, "odd": odd, "even": ~odd, "no": odd & ~odd}.items():
        labels = np.where(known, dataset.labels, -1)
        np.savez(tmp_path / f"{name}.npz", x=pixels, y=labels)
        data = f"npz:{tmp_path}/{name}.npz?classes=10"
        out = tmp_path / name
        config = run(files, taught, out, "whole", epochs=1, lr=1e-12, weight_decay=0.0)
        losses[name] = train(replace(config, data=data)).metrics
    ce = {name: metrics["loss_ce"] for name, metrics in losses.items()}
    assert ce["no"] == 0
    assert ce["odd"] > 0.01
    assert ce["odd"] + ce["even"] == pytest.approx(ce["all"], rel=1e-5)
    assert len({metrics["loss_kd"] for metrics in losses.values()}) == 1
    assert "train_accuracy" not in losses["no"]


def test_images_of_a_part_are_checked_and_a_part_without_any_checked_one_is_noted(
    files: Path, taught: Path
) -> None:
    store = open_store(taught)
    snapshot = store.snapshots["teacher"]
    assert snapshot.meta.view is not None
    seen = {canary.sample for canary in snapshot.meta.view.canaries}
    whole = open_dataset(f"{files}:whole")
    assert whole.keys is not None
    for chosen, says in ((sorted(seen), None), (sorted(set(range(COUNT)) - seen), "key and label")):
        black = ImageDataset(
            name="black",
            labels=whole.labels[chosen],
            load=lambda index: np.zeros((8, 8), np.uint8),
            class_names=whole.class_names,
            classes=whole.classes,
            keys=[whole.keys[index] for index in chosen],
        )
        if says is None:
            with pytest.raises(MismatchError, match="is not the image that the teacher saw"):
                bind(store, snapshot, black, match_by="key")
        else:
            _, notes = bind(store, snapshot, black, match_by="key")
            assert any(says in note for note in notes)


def test_a_part_cannot_be_blended_with_what_is_not_here(files: Path, taught: Path) -> None:
    store = open_store(taught)
    snapshot = store.snapshots["teacher"]
    assert snapshot.meta.view is not None
    mixed = snapshot.meta.view.model_copy(update={"mix": {"mixup": 0.2}})
    snapshot.meta = snapshot.meta.model_copy(update={"view": mixed})
    with pytest.raises(MismatchError, match=r"lacks 40 of the 60 samples, .* give the whole"):
        bind(store, snapshot, open_dataset(f"{files}:third"), match_by="key")


def test_matching_without_a_store_is_refused() -> None:
    base = TrainConfig(data="digits", student="mlp", out="run")
    for change, flag in (({"match_by": "key"}, "match-by"), ({"class_map": "m"}, "class-map")):
        with pytest.raises(InputError, match=f"give --store STORE, or drop --{flag}"):
            replace(base, **change)
    with pytest.raises(InputError, match="match_by = 'name': input should be 'index' or 'key'"):
        replace(base, store="s", match_by="name")
