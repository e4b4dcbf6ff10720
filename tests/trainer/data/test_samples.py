"""Noisy labels, teaching on half of the samples, and the flags of the methods."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from logitstore.errors import InputError
from logitstore.precompute.data.sources import open_dataset
from logitstore.precompute.views import Views
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


def test_a_file_s_hyper_parameters_go_with_its_method_alone(tmp_path: Path) -> None:
    taught = {"data": DATA, "student": "mlp", "store": "s.zarr"}
    kd = TrainConfig(**taught, method="kd", kd_weight=0.5, out="kd")
    (tmp_path / "kd.toml").write_text(kd.to_toml())
    again = TrainConfig.from_toml(tmp_path / "kd.toml", {"method": "kd", "seed": 1, "out": "x"})
    assert again.kd_weight == 0.5
    dkd = TrainConfig.from_toml(tmp_path / "kd.toml", {"method": "dkd", "beta": 2.0, "out": "x"})
    assert (dkd.resolved().ce_weight, dkd.resolved().kd_weight, dkd.beta) == (1.0, 1.0, 2.0)
    (tmp_path / "any.toml").write_text('data="d"\nstudent="m"\nstore="s"\ntemperature=2.0\n')
    told = TrainConfig.from_toml(tmp_path / "any.toml", {"method": "kd", "out": "x"})
    assert told.resolved().temperature == 2.0
    plain = TrainConfig.from_toml(tmp_path / "kd.toml", {"method": "ce", "out": "x"})
    assert plain.kd_weight is None


def test_what_a_run_is_too_short_for_is_said() -> None:
    taught = TrainConfig(data=DATA, student="mlp", store="s.zarr", out="run", method="dkd")
    (said,) = taught.method_object.remarks(10)
    assert "kd_warmup 20 is longer than the run's 10 epochs" in said
    assert "50%" in said
    assert taught.method_object.remarks(20) == []
    with pytest.raises(InputError, match="--stop-kd-at 30 never comes in a run of 30 epochs"):
        replace(taught, stop_kd_at=30)


def test_defaults_of_a_file_give_way_where_what_is_given_changes_them(tmp_path: Path) -> None:
    taught = {"data": DATA, "student": "mlp", "store": "s.zarr", "method": "kd", "out": "x"}
    (tmp_path / "kd.toml").write_text(TrainConfig(**taught).to_toml())

    def with_(**given: object) -> dict[str, object]:
        found = TrainConfig.from_toml(tmp_path / "kd.toml", {"out": "y", **given}).resolved()
        return {name: getattr(found, name) for name in ("temperature", "kd_weight", "lr")}

    assert with_() == {"temperature": 4.0, "kd_weight": 0.9, "lr": 0.05}
    assert with_(standardize=True) == {"temperature": 2.0, "kd_weight": 9.0, "lr": 0.05}
    told = with_(standardize=True, temperature=3.0)
    assert told == {"temperature": 3.0, "kd_weight": 9.0, "lr": 0.05}
    assert with_(optimizer="adamw")["lr"] == 0.001
    (tmp_path / "kd.toml").write_text(TrainConfig(**taught, temperature=5.0, lr=0.1).to_toml())
    assert with_(standardize=True, optimizer="adamw")["temperature"] == 5.0
    assert with_(optimizer="adamw")["lr"] == 0.1
