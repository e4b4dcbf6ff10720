"""Activation checkpointing keeps less and changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from logitstore.errors import InputError
from logitstore.trainer import TrainConfig, train
from logitstore.trainer.run.recompute import recomputed
from tests.support.students import (
    CLASSES,
    batch_of,
    in_parts,
    largest_difference,
    network,
    stepped,
)


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    return in_parts(tmp_path)


def dropping() -> nn.Module:
    layers: list[nn.Module] = [nn.Flatten()]
    for _ in range(4):
        layers += [
            nn.Linear(192, 192),
            nn.BatchNorm1d(192),
            nn.ReLU(inplace=True),
            nn.Dropout(0.4),
        ]
    return nn.Sequential(*layers, nn.Linear(192, CLASSES))


class Stage(nn.Module):
    """Blocks in a list, as in most large networks; the blocks are recomputed one by one."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(192, 192), nn.GELU(), nn.Dropout(0.4)) for _ in range(3)
        )

    def forward(self, values: Tensor) -> Tensor:
        for block in self.blocks:
            values = values + block(values)
        return values


def staged() -> nn.Module:
    return nn.Sequential(nn.Flatten(), Stage(), Stage(), nn.Linear(192, CLASSES))


def saved_bytes(model: nn.Module, images: Tensor) -> int:
    """Bytes that the forward pass keeps for the backward pass, parameters apart."""
    own = {parameter.data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(images)
    return sum(kept.values())


@pytest.mark.parametrize(
    ("make", "share"),
    [
        (lambda: network("resnet20"), 0.5),
        (lambda: network("cnn5"), 0.6),
        (dropping, 0.7),
        (staged, 0.7),
    ],
)
def test_recomputing_keeps_less_and_changes_nothing(
    make: Callable[[], nn.Module], share: float
) -> None:
    batch = batch_of(12)

    def once(again: bool) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
        torch.manual_seed(5)
        model = make()
        if again:
            with recomputed(model):
                _, gradients = stepped(model, batch, 6)
        else:
            _, gradients = stepped(model, batch, 6)
        return gradients, dict(model.state_dict()), torch.random.get_rng_state()

    for plain, again in zip(once(False)[:2], once(True)[:2], strict=True):
        assert plain.keys() == again.keys()
        assert all(torch.equal(plain[name], again[name]) for name in plain)
    assert torch.equal(once(False)[2], once(True)[2])
    model, images = make().train(), batch.images / 255
    whole = saved_bytes(model, images)
    with recomputed(model):
        assert saved_bytes(model, images) < share * whole
    assert saved_bytes(model, images) == whole


def test_the_second_run_meets_the_buffers_as_the_first_did() -> None:
    """Here what a block computes depends on a buffer that it changes."""

    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("count", torch.zeros(()))
            self.linear = nn.Linear(192, 192)

        def forward(self, values: Tensor) -> Tensor:
            self.count = self.count + 1
            hidden: Tensor = self.linear(values * self.count).tanh()
            return hidden

    def gradients(again: bool) -> dict[str, Tensor]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), Counting(), Counting(), nn.Linear(192, CLASSES))
        if not again:
            return stepped(model, batch_of(4), 2)[1]
        with recomputed(model):
            found = stepped(model, batch_of(4), 2)[1]
        assert [int(block.count) for block in model if isinstance(block, Counting)] == [2, 2]
        return found

    assert largest_difference(gradients(False), gradients(True)) == 0


def test_a_block_that_overwrites_its_input_is_explained() -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(192, 192)

        def forward(self, values: Tensor) -> Tensor:
            hidden: Tensor = self.linear(values.relu_())
            return hidden

    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 192), InPlace(), nn.Linear(192, CLASSES))
    with (
        pytest.raises(InputError, match=r"cannot run twice .*: drop --recompute"),
        recomputed(model),
    ):
        stepped(model, batch_of(4), None)
    stepped(model, batch_of(4), None)


def test_a_network_in_one_piece_cannot_be_recomputed(config: TrainConfig) -> None:
    whole = replace(config, student=config.student.replace("student", "whole"))
    with pytest.raises(InputError, match="no parts to recompute: drop --recompute"):
        train(replace(whole, recompute=True))
    train(whole)
