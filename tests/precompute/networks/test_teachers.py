"""Checkpoints: every common wrapping loads, everything else is refused with what does not fit."""

import pickle
import sys
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from logitstore.errors import InputError, MissingExtra, NotFound, UnknownName
from logitstore.precompute.networks.checkpoints import load_weights
from logitstore.precompute.networks.factory import NETWORKS, build_model
from logitstore.precompute.networks.state_dicts import load_into
from logitstore.precompute.networks.teachers import find_teachers

SHAPE = (1, 8, 8)


def network() -> nn.Module:
    torch.manual_seed(0)
    return build_model("cnn5?width=4", classes=3, shape=SHAPE)


def prefixed(prefix: str, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {prefix + key: value for key, value in state.items()}


STATE = network().state_dict()
WRAPPINGS = {
    "plain": STATE,
    "state_dict": {"state_dict": STATE, "epoch": 3, "best_prec1": 0.9},
    "model": {"model": STATE, "optimizer": {"state": {}, "param_groups": []}},
    "nested names": {"model_state_dict": STATE, "args": {"lr": 0.1}},
    "data parallel": {"state_dict": prefixed("module.", STATE)},
    "compiled": prefixed("_orig_mod.", STATE),
    "both": {"model": prefixed("module._orig_mod.", STATE)},
    "sharded": prefixed("_fsdp_wrapped_module.", STATE),
    "averaged": {**prefixed("module.", STATE), "n_averaged": torch.tensor(5)},
    "lightning": {"state_dict": prefixed("model.", STATE), "hyper_parameters": {"width": 4}},
    "ema only": {"state_dict_ema": STATE},
    "ordered": OrderedDict(state_dict=OrderedDict(STATE)),
    "without counters": {k: v for k, v in STATE.items() if not k.endswith("num_batches_tracked")},
}


@pytest.mark.parametrize("name", WRAPPINGS)
def test_every_common_wrapping_is_unwrapped(name: str, tmp_path: Path) -> None:
    torch.save(WRAPPINGS[name], tmp_path / "teacher.pth")
    state = load_weights(tmp_path / "teacher.pth").state
    model = build_model("cnn5?width=4", classes=3, shape=SHAPE)
    load_into(model, state, "teacher.pth")
    for key, value in model.state_dict().items():
        assert torch.equal(value, STATE[key]), key


def test_safetensors_load(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "teacher.safetensors")
    state, key, _ = load_weights(tmp_path / "teacher.safetensors")
    assert key is None
    load_into(network(), state, "x")


def test_averaged_weights_are_taken_when_they_are_asked_for(tmp_path: Path) -> None:
    other = {name: value + 1 for name, value in STATE.items()}
    torch.save({"state_dict": STATE, "state_dict_ema": other}, tmp_path / "t.pth")
    assert load_weights(tmp_path / "t.pth")[1] == "state_dict"
    state, key, _ = load_weights(tmp_path / "t.pth", "state_dict_ema")
    assert key == "state_dict_ema"
    assert torch.equal(state["linear.bias"], STATE["linear.bias"] + 1)
    with pytest.raises(UnknownName, match="did you mean 'state_dict_ema'"):
        load_weights(tmp_path / "t.pth", "state_dict_em")


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (Path("pwned"),))


def test_a_checkpoint_that_needs_pickle_is_refused_and_runs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": STATE, "extra": Evil()}, "evil.pth")
    Path("plain.pth").write_bytes(pickle.dumps(Evil()))
    for name in ("evil.pth", "plain.pth"):
        with pytest.raises(InputError, match=name):
            load_weights(Path(name))
    with pytest.raises(InputError, match="needs pickle, which can run any code"):
        load_weights(Path("evil.pth"))
    assert not Path("pwned").exists()


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        (b"garbage", "t.pth", "not a readable checkpoint"),
        (b"", "t.pth", "not a readable checkpoint"),
        (b"garbage", "t.safetensors", "not a readable checkpoint"),
        (b"garbage", "t.pt2", "can run code when they are loaded"),
    ],
)
def test_unreadable_files_are_refused(
    tmp_path: Path, content: bytes, name: str, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        load_weights(tmp_path / name)


def test_a_checkpoint_without_weights_lists_what_it_holds(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "accuracy": 0.5}, tmp_path / "t.pth")
    with pytest.raises(InputError, match="it holds accuracy, epoch"):
        load_weights(tmp_path / "t.pth")


def test_keys_that_do_not_fit_are_listed_with_their_number() -> None:
    state = {**STATE, "extra.weight": torch.zeros(1), "linear.weight": torch.zeros(5, 8)}
    gone = [key for key in STATE if "features.0" in key or "features.4" in key]
    for key in gone:
        del state[key]
    with pytest.raises(InputError) as refused:
        load_into(network(), state, "t.pth")
    message = str(refused.value)
    assert f"{len(gone) - 1} missing" in message  # a BatchNorm's counter may be missing
    assert "1 unexpected: extra.weight" in message
    assert "1 mis-shaped: linear.weight (5, 8) instead of (3, 8)" in message


def test_folders_and_globs_come_in_natural_order(tmp_path: Path) -> None:
    for epoch in (10, 9, 100):
        save_file(STATE, tmp_path / f"epoch-{epoch}.safetensors")
    names = ["epoch-9", "epoch-10", "epoch-100"]
    assert [found.name for found in find_teachers([str(tmp_path)])] == names
    assert [found.name for found in find_teachers([f"{tmp_path}/epoch-*"])] == names


def test_snapshots_are_named_by_stem_or_as_asked(tmp_path: Path) -> None:
    for name in ("a.pth", "b.pth"):
        torch.save(STATE, tmp_path / name)
    places = [str(tmp_path / "a.pth"), str(tmp_path / "b.pth")]
    assert [t.name for t in find_teachers(places, ["one", "two"])] == ["one", "two"]
    assert [t.name for t in find_teachers(places, ["b"])] == ["b"]
    assert [t.arch for t in find_teachers(places, archs=["x", "y"])] == ["x", "y"]
    with pytest.raises(InputError, match="3 --snapshot names for 2 checkpoints"):
        find_teachers(places, ["one", "two", "three"])
    with pytest.raises(InputError, match="would both be snapshot 'a'"):
        find_teachers([places[0], places[0]])
    with pytest.raises(InputError, match="'x y' is not usable"):
        find_teachers(places, ["x y", "z"])
    with pytest.raises(NotFound, match="no such checkpoint, folder or training run"):
        find_teachers([str(tmp_path / "c.pth")])


@pytest.mark.parametrize("name", NETWORKS)
def test_our_networks_give_one_logit_for_each_class(name: str) -> None:
    model = build_model(name, classes=7, shape=(3, 32, 32)).eval()
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 7)


def test_the_cifar_resnets_have_the_sizes_of_the_paper() -> None:
    """Table 6 of He et al. 2015: 0.27M, 0.46M, 0.66M, 0.85M and 1.7M parameters."""
    millions = {20: 0.27, 32: 0.46, 44: 0.66, 56: 0.85, 110: 1.7}
    for depth, expected in millions.items():
        model = build_model(f"resnet{depth}", classes=10, shape=(3, 32, 32))
        count = sum(p.numel() for p in model.parameters()) / 1e6
        assert round(count, 2 if depth < 110 else 1) == expected


def test_torchvision_models_are_built_for_the_classes_of_the_data() -> None:
    model = build_model("torchvision:squeezenet1_1", classes=4, shape=(3, 64, 64)).eval()
    assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 4)


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        ("resnet65", UnknownName, "did you mean 'resnet56'"),
        ("torchvision:resnet_50", UnknownName, "did you mean 'resnet50'"),
        ("mlp?hiden=3", InputError, "unknown option 'hiden'"),
        ("mlp?hidden=wide", InputError, "expected mlp"),
        ("json:loads", InputError, "called without arguments"),
        ("nowhere.py:net", NotFound, "no such file"),
        ("collections:OrderedDict", InputError, "not a torch.nn.Module"),
    ],
)
def test_architectures_that_are_none_say_why(
    spec: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        build_model(spec, classes=3, shape=SHAPE)


def test_timm_asks_to_be_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)  # what an import finds where there is none
    with pytest.raises(MissingExtra, match="pip install timm"):
        build_model("timm:resnet18", classes=3, shape=SHAPE)
