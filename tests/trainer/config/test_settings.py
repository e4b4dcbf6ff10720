"""A run's configuration: refused where it contradicts itself, and the same through TOML."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from logitstore.errors import InputError, LogitstoreError, NotFound, UnknownName
from logitstore.trainer import TrainConfig

BASE = TrainConfig(data="digits", student="mlp", out="run")
TAUGHT = replace(BASE, store="s.zarr", method="kd")


@pytest.mark.parametrize(
    ("start", "change", "says"),
    [
        (BASE, {"method": "kd"}, r"give --store STORE .*, or use --method ce"),
        (BASE, {"temperature": 4.0}, r"drop --temperature, or use --method kd or dkd or tckd"),
        (BASE, {"snapshot": "a"}, r"give --store STORE, or drop --snapshot"),
        (BASE, {"expect_root": "ab"}, r"give --store STORE, or drop --expect-root"),
        (BASE, {"allow_unbound": True}, r"give --store STORE, or drop --allow-unbound"),
        (BASE, {"allow_mismatch": True}, r"give --store STORE, or drop --allow-mismatch"),
        (BASE, {"nesterov": True, "momentum": 0.0}, r"--momentum above 0: give both or drop it"),
        (BASE, {"nesterov": True, "optimizer": "adamw"}, r"nesterov needs --optimizer sgd"),
        (BASE, {"schedule": "step"}, r"needs --milestones.* or use --schedule constant"),
        (BASE, {"milestones": (5,)}, r"change the schedule or drop --milestones"),
        (BASE, {"schedule": "step", "milestones": (9, 5)}, r"must rise and lie inside 1\.\.29"),
        (BASE, {"schedule": "step", "milestones": (30,)}, r"must rise and lie inside 1\.\.29"),
        (BASE, {"warmup_epochs": 30}, r"fewer --warmup-epochs or more --epochs"),
        (BASE, {"snapshots": (1, 31)}, r"no epoch 31 in a run of 30"),
        (BASE, {"device": "cpu", "precision": "bf16"}, r"use --device cuda or --precision fp32"),
        (BASE, {"device": "mps"}, r"use cpu, cuda or cuda:N"),
        (BASE, {"epochs": 0}, r"epochs must be at least 1"),
        (BASE, {"limit": 0}, r"limit must be at least 1"),
        (BASE, {"lr": 0.0}, r"lr must be above 0, not 0.0"),
        (BASE, {"momentum": 1.0}, r"momentum must be below 1, not 1.0"),
        (BASE, {"weight_decay": -1.0}, r"weight_decay must be at least 0, not -1.0"),
        (BASE, {"epochs": "3"}, r"epochs = '3': input should be a valid integer"),
        (BASE, {"nesterov": "no"}, r"nesterov = 'no': input should be a valid boolean"),
        (BASE, {"lr": float("nan")}, r"lr = nan: input should be a finite number"),
        (BASE, {"optimizer": "adam"}, r"optimizer = 'adam': input should be 'sgd' or 'adamw'"),
    ],
)
def test_a_contradiction_is_refused_with_the_ways_out(
    start: TrainConfig, change: dict[str, Any], says: str
) -> None:
    with pytest.raises(InputError, match=says):
        replace(start, **change)


def test_an_unknown_method_is_answered_with_the_known_ones() -> None:
    with pytest.raises(UnknownName, match=r"did you mean 'dist'\? known: ce, dist, dkd"):
        replace(BASE, method="distil")


def test_the_resolved_run_names_every_default_of_its_method() -> None:
    run = replace(TAUGHT, temperature=2.0).resolved()
    assert (run.temperature, run.ce_weight, run.kd_weight, run.lr) == (2.0, 0.1, 0.9, 0.05)
    assert BASE.resolved().temperature is None
    assert replace(BASE, optimizer="adamw").resolved().lr == 0.001


@pytest.mark.parametrize(
    "config",
    [
        BASE,
        replace(TAUGHT, snapshots=(1, 5), schedule="step", milestones=(3, 9), lr=1, limit=100),
        replace(BASE, snapshots="every-epoch", nesterov=True, normalize="0.5/0.25"),
    ],
)
def test_a_run_survives_being_written_as_toml(config: TrainConfig, tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(config.to_toml())
    assert TrainConfig.from_toml(tmp_path / "run.toml") == config.resolved()


def test_overrides_go_before_the_file(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text('data = "digits"\nstudent = "mlp"\nepochs = 3\n')
    config = TrainConfig.from_toml(tmp_path / "run.toml", {"epochs": 5, "out": "run"})
    assert (config.epochs, config.out) == (5, "run")


@pytest.mark.parametrize(
    ("text", "error", "says"),
    [
        ('data="d"\nstudent="m"\nout="o"\nepoch=3', UnknownName, "did you mean 'epochs'"),
        ('data="d"\nout="o"', InputError, "'student' is missing: add it there or give --student"),
        ("data = ", InputError, "not a readable TOML file"),
        ('data="d"\nstudent="m"\nout="o"\nmethod="kd"', InputError, "give --store"),
    ],
)
def test_a_file_that_cannot_be_used_says_why(
    text: str, error: type[LogitstoreError], says: str, tmp_path: Path
) -> None:
    (tmp_path / "run.toml").write_text(text)
    with pytest.raises(error, match=says):
        TrainConfig.from_toml(tmp_path / "run.toml")


def test_a_file_that_is_not_there_is_named() -> None:
    with pytest.raises(NotFound, match=r"nowhere\.toml: there is no such file"):
        TrainConfig.from_toml("nowhere.toml")


def test_a_store_means_distillation_unless_another_method_is_named(tmp_path: Path) -> None:
    shared = {"data": "digits", "student": "mlp", "out": "run"}
    taught = TrainConfig(**shared, store="s.zarr")
    assert (taught.method, taught.method_by_store) == ("kd", True)
    assert TrainConfig(**shared).method == "ce"
    plain = TrainConfig(**shared, store="s.zarr", method="ce")
    assert (plain.method, plain.method_by_store) == ("ce", False)
    file = tmp_path / "run.toml"
    file.write_text('data = "digits"\nstudent = "mlp"\nout = "run"\ntemperature = 2.0\n')
    assert TrainConfig.from_toml(file, {"store": "s.zarr"}).method == "kd"
    file.write_text(taught.to_toml())
    assert TrainConfig.from_toml(file).method_by_store is False
