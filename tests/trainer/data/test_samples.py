"""The samples of a run: noisy labels, teaching on half of them, classes left out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from logitstore.errors import InputError, LogitstoreError, UnknownName
from logitstore.precompute.data.images import ImageDataset
from logitstore.precompute.data.sources import open_dataset
from logitstore.precompute.views import Views, parse_views
from logitstore.reading.opening import open_store
from logitstore.trainer import TrainConfig, train
from logitstore.trainer.data.requirements import refuse_samples
from logitstore.trainer.data.samples import choose_samples, taught_half, with_noise
from logitstore.trainer.data.source import Source
from logitstore.trainer.methods.base import Outputs
from logitstore.trainer.methods.table import make_method

DATA = "digits?train=true&samples=0:400"
ALL = np.arange(400)


def source() -> Source:
    return Source(dataset=open_dataset(DATA), views=Views(()), classes=10, view_count=1)


def test_noise_gives_exactly_that_share_of_the_labels_other_values() -> None:
    before, after = source().dataset.labels, with_noise(source(), ALL, 0.25, 7).dataset.labels
    assert (before != after).sum() == 100
    assert set(after) <= set(range(10))
    moves = (after - before)[before != after] % 10
    assert set(moves) == set(range(1, 10))


def test_noise_follows_from_its_seed_alone() -> None:
    first, again, other = (
        with_noise(source(), ALL, 0.5, seed).dataset.labels for seed in (1, 1, 2)
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_noise_is_a_share_of_the_samples_trained_on_and_gives_no_omitted_class() -> None:
    clean = source().dataset.labels
    samples = np.flatnonzero(~np.isin(clean, [3, 7]))[:100]
    noisy = with_noise(source(), samples, 0.4, 0, omitted=[3, 7]).dataset.labels
    changed = np.flatnonzero(noisy != clean)
    assert len(changed) == 40
    assert set(changed) <= set(samples)
    assert set(noisy[changed]) == {0, 1, 2, 4, 5, 6, 8, 9}


def test_noise_leaves_unknown_labels_unknown() -> None:
    clean = source()
    labels = clean.dataset.labels.copy()
    labels[:100] = -1
    noisy = with_noise(replace(clean, dataset=replace(clean.dataset, labels=labels)), ALL, 1.0, 0)
    assert (noisy.dataset.labels[:100] == -1).all()
    assert (noisy.dataset.labels[100:] != labels[100:]).all()


def test_the_store_is_bound_to_the_true_labels_and_the_student_learns_the_noisy_ones(
    bound_store: Callable[..., Path], tmp_path: Path
) -> None:
    logits = 9 * np.eye(10, dtype=np.float32)[open_dataset(DATA).labels][None]
    store = bound_store(tmp_path / "s.zarr", DATA, logits)
    config = TrainConfig(
        data=DATA,
        student="mlp?hidden=32",
        store=str(store),
        method="kd",
        ce_weight=0.0,
        kd_weight=1.0,
        temperature=1.0,
        epochs=8,
        lr=0.3,
        label_noise=0.5,
        device="cpu",
        out=str(tmp_path / "run"),
    )
    measured = train(config).metrics
    assert measured["train_kd_error"] < 0.15  # it follows the teacher, who knows the true labels
    assert 0.4 < measured["train_accuracy"] < 0.6  # against labels of which half are wrong


def test_the_confident_half_is_where_the_teacher_gives_the_label_most(
    tiny_store: Callable[..., Path], tmp_path: Path
) -> None:
    teacher = open_store(tiny_store(tmp_path / "s.zarr")).snapshots["teacher"]
    labels = np.arange(100) % 10
    rows = torch.from_numpy(teacher.logits(np.arange(100))).double().log_softmax(1)
    sure = rows[torch.arange(100), torch.from_numpy(labels)].numpy()
    dataset = replace(open_dataset("digits?samples=0:100"), labels=labels.astype(np.int32))
    shown = replace(source(), dataset=dataset)
    chosen = np.arange(0, 100, 2)
    confident = taught_half(shown, chosen, teacher, "confident")
    unsure = taught_half(shown, chosen, teacher, "unsure")
    assert taught_half(shown, chosen, teacher, "all") is None
    assert confident is not None
    assert unsure is not None
    assert confident.sum() == unsure.sum() == 25
    assert not (confident & unsure).any()
    assert not (confident | unsure)[1::2].any()
    assert sure[confident.numpy()].min() >= sure[unsure.numpy()].max()


def test_the_teachers_term_counts_where_it_is_told_to() -> None:
    drawn = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(4, 5, generator=drawn) for _ in range(2))
    taught = torch.tensor([True, False, False, True])
    batch = Outputs(student, torch.arange(4), teacher)
    method = make_method("nckd", {"kd_warmup": 0})
    everywhere, somewhere = method.terms(batch, 0), method.terms(batch._replace(taught=taught), 0)
    assert torch.equal(somewhere["kd"], everywhere["kd"] * taught)
    assert torch.equal(somewhere["ce"], everywhere["ce"])


def test_halves_without_a_teacher_or_labels_are_refused() -> None:
    base = TrainConfig(data=DATA, student="mlp", out="run")
    with pytest.raises(InputError, match=r"--teach confident .*'ce' has none"):
        replace(base, teach="confident")
    with pytest.raises(InputError, match=r"label_noise must be at most 1, not 1.5"):
        replace(base, label_noise=1.5)
    taught = replace(base, method="kd", store="s.zarr", teach="unsure", limit=100)
    dataset = open_dataset(DATA)
    unlabelled = replace(dataset, labels=np.full(400, -1, np.int32))
    shown = replace(source(), dataset=unlabelled)
    with pytest.raises(InputError, match=r"100 labels .* are unknown"):
        refuse_samples(taught, shown, choose_samples(taught, shown))


def labelled(labels: list[int], view_spec: str = "eval", **more: Any) -> Source:
    dataset = ImageDataset(
        name="here",
        labels=np.array(labels, np.int32),
        load=lambda index: index,
        classes=4,
        class_names=("ant", "bee", "cat", "dog"),
    )
    views = parse_views(view_spec, None, **more)
    return Source(dataset=dataset, views=views, classes=4, view_count=1)


def omitting(*classes: str | int) -> TrainConfig:
    return TrainConfig(data="d", student="mlp", out="run", omit_classes=classes)


def refused(source: Source, config: TrainConfig) -> None:
    refuse_samples(config, source, choose_samples(config, source))


def test_omitted_samples_go_and_the_others_stay_in_order() -> None:
    source = labelled([0, 3, 1, -1, 3, 2, 0])
    some = replace(source, subset=np.arange(1, 7))
    assert choose_samples(omitting("dog", 0), some).samples.tolist() == [2, 3, 5]
    assert choose_samples(omitting(), source).samples.tolist() == list(range(7))


@pytest.mark.parametrize(
    ("omitted", "error", "says"),
    [
        (["dgo"], UnknownName, "did you mean 'dog'"),
        ([4], UnknownName, "unknown class of here '4'"),
        (["ant", 1, "2", "dog"], InputError, "these are all classes"),
        (["ant", "dog"], InputError, "no sample of here is left"),
    ],
)
def test_an_omission_that_cannot_be_is_refused(
    omitted: list[str | int], error: type[LogitstoreError], says: str
) -> None:
    with pytest.raises(error, match=says):
        refused(labelled([0, 3, 3]), omitting(*omitted))


def test_blended_views_would_show_the_omitted_class() -> None:
    source = labelled([0, 1, 2, 3], mix={"mixup": 0.2})
    with pytest.raises(InputError, match="use a snapshot built without --mix"):
        refused(source, omitting("dog"))
