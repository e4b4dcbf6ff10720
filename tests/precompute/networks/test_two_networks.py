"""Several networks in one checkpoint: which one teaches is chosen by the user, never by chance."""

from pathlib import Path

import pytest
import torch

import logitstore
from logitstore.precompute.networks.factory import build_model
from tests.support.commands import refused, run

ARCH, DATA = "mlp?hidden=8", "digits?samples=0:40"


def state(seed: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return dict(build_model(ARCH, classes=10, shape=(1, 8, 8)).state_dict())


def both(one: str, other: str) -> dict[str, torch.Tensor]:
    """Two networks in one state dict: seed 1 under the first prefix, seed 2 under the other."""
    named = ((one, state(1)), (other, state(2)))
    return {f"{prefix}.{key}": value for prefix, values in named for key, value in values.items()}


def build(checkpoint: Path, out: Path, *more: str) -> list[object]:
    return ["build", "--teacher", checkpoint, "--arch", ARCH, "--data", DATA, "--out", out, *more]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("teacher", "student"),
        ("ema_model.module", "model"),
        ("module.encoder_q", "module.encoder_k"),
    ],
)
def test_two_networks_in_one_state_dict_are_listed_and_one_is_chosen(
    tmp_path: Path, one: str, other: str
) -> None:
    checkpoint = tmp_path / "kd.pth"
    torch.save({"state_dict": both(one, other), "epoch": 3}, checkpoint)
    message = refused(*build(checkpoint, tmp_path / "s.zarr"))
    assert f"--weights-key state_dict.{one}" in message
    assert f"--weights-key state_dict.{other}" in message
    assert not (tmp_path / "s.zarr").exists()
    stores = []
    for number, key in enumerate((one, other, f"state_dict.{one}")):
        out = tmp_path / f"{number}.zarr"
        assert run(*build(checkpoint, out, "--weights-key", key)).exit_code == 0
        stores.append(logitstore.open_store(out).snapshots["kd"])
    assert stores[0].meta.teacher.weights_key == f"state_dict.{one}"
    assert stores[1].meta.teacher.weights_key == f"state_dict.{other}"
    assert stores[0].root == stores[2].root != stores[1].root
    verified = run(
        *("verify", tmp_path / "1.zarr", "--teacher", checkpoint, "--arch", ARCH, "--data", DATA)
    )
    assert verified.exit_code == 0, verified.output


def test_of_two_equal_networks_none_needs_choosing(tmp_path: Path) -> None:
    twice = {f"{prefix}.{key}": v for prefix in ("net", "model") for key, v in state(1).items()}
    torch.save(twice, tmp_path / "t.pth")
    assert run(*build(tmp_path / "t.pth", tmp_path / "s.zarr")).exit_code == 0


def test_of_networks_of_other_shapes_the_one_that_fits_is_taken(tmp_path: Path) -> None:
    wide = build_model("mlp?hidden=9", classes=10, shape=(1, 8, 8)).state_dict()
    mixed = {f"student.{key}": v for key, v in wide.items()}
    torch.save(mixed | {f"t.{key}": v for key, v in state(1).items()}, tmp_path / "t.pth")
    torch.save(state(1), tmp_path / "alone.pth")
    for name in ("t", "alone"):
        built = run(*build(tmp_path / f"{name}.pth", tmp_path / "s.zarr"))
        assert built.exit_code == 0, built.output
    snapshots = logitstore.open_store(tmp_path / "s.zarr").snapshots
    assert (snapshots["t"].logits(range(40)) == snapshots["alone"].logits(range(40))).all()


def test_a_key_that_is_not_there_lists_entries_and_prefixes(tmp_path: Path) -> None:
    torch.save({"state_dict": both("teacher", "student"), "epoch": 3}, tmp_path / "t.pth")
    message = refused(*build(tmp_path / "t.pth", tmp_path / "s.zarr", "--weights-key", "techer"))
    assert "did you mean 'teacher'" in message
    assert "epoch, state_dict, student" in message


def test_which_of_two_entries_is_used_is_said_with_the_way_to_the_other(tmp_path: Path) -> None:
    torch.save({"state_dict": state(1), "state_dict_ema": state(2)}, tmp_path / "t.pth")
    built = run(*build(tmp_path / "t.pth", tmp_path / "s.zarr"))
    assert "the weights in 'state_dict' are used" in built.output
    assert "--weights-key state_dict_ema takes those" in built.output
