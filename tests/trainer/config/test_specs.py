"""Settings of a file beside those of a command: which of them hold, and what is said of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from logitstore.errors import InputError
from logitstore.trainer import TrainConfig

DATA = "digits?train=true&samples=0:400"


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
