"""A batch in parts: gradients add up, BatchNorm forgets as much, runs go on to the same bits."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from logitstore.errors import InputError, MismatchError
from logitstore.trainer import TrainConfig, train
from logitstore.trainer.run.parts import batchnorm_momentum, has_batchnorm, split_batch
from tests.support.runs import Listener, lines
from tests.support.students import (
    batch_of,
    in_parts,
    largest_difference,
    network,
    stepped,
)


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    return in_parts(tmp_path)


class Norms(nn.Module):
    """BatchNorm of every kind of momentum, over channels."""

    def __init__(self) -> None:
        super().__init__()
        self.usual = nn.BatchNorm2d(3, momentum=0.3)
        self.cumulative = nn.BatchNorm2d(3, momentum=None)

    def forward(self, images: Tensor) -> Tensor:
        mixed: Tensor = self.cumulative(self.usual(images))
        return mixed


@pytest.mark.parametrize(
    ("count", "size", "lengths"),
    [(10, 4, [4, 3, 3]), (10, 10, [10]), (10, None, [10]), (7, 1, [1] * 7), (9, 4, [3, 3, 3])],
)
def test_a_batch_is_cut_in_as_few_nearly_equal_parts_as_can_be(
    count: int, size: int | None, lengths: list[int]
) -> None:
    assert [len(part.labels) for part in split_batch(batch_of(count), size)] == lengths


def test_the_parts_of_a_batch_are_the_batch_in_every_field() -> None:
    whole = batch_of(10)
    parts = split_batch(whole, 4)
    assert all(entry is not None for entry in whole)
    assert all(part.request[:3] == whole.request[:3] for part in parts)
    for rows in (
        lambda batch: batch.request.indices,
        lambda batch: batch.images,
        lambda batch: batch.labels,
        lambda batch: batch.teacher.logits(),
        lambda batch: batch.mixed.labels,
        lambda batch: batch.mixed.weight,
    ):
        assert np.array_equal(np.concatenate([rows(part) for part in parts]), rows(whole))


@pytest.mark.parametrize("name", ["mlp?hidden=32", "conv"])
@pytest.mark.parametrize("method", ["ce", "kd"])
@pytest.mark.parametrize("mixed", [True, False])
def test_accumulated_gradients_are_those_of_the_whole_batch(
    name: str, method: str, mixed: bool
) -> None:
    batch = batch_of(10) if mixed else batch_of(10)._replace(mixed=None)
    for size in (4, 1):
        sums, gradients = stepped(network(name), batch, None, method)
        added, accumulated = stepped(network(name), batch, size, method)
        assert added == pytest.approx(sums, rel=1e-6)
        assert largest_difference(gradients, accumulated) < 1e-5


@pytest.mark.parametrize("name", ["mlp?hidden=32", "conv"])
def test_in_double_precision_they_are_the_same_to_the_last_digits(name: str) -> None:
    """So that what differs in float32 is rounding and nothing else."""

    def double() -> nn.Module:
        return nn.Sequential(ToDouble(), network(name).double())

    _, gradients = stepped(double(), batch_of(10), None)
    _, accumulated = stepped(double(), batch_of(10), 4)
    assert largest_difference(gradients, accumulated) < 1e-12


class ToDouble(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.double()


def test_k_parts_of_equal_means_move_the_running_averages_as_one_batch_does() -> None:
    part = torch.randn(5, 3, 4, 4)
    whole, parts = Norms().train(), Norms().train()
    whole(part)
    with batchnorm_momentum(parts, 3):
        for _ in range(3):
            parts(part)
    for name in ("running_mean", "running_var"):
        once, thrice = getattr(whole.usual, name), getattr(parts.usual, name)
        torch.testing.assert_close(thrice, once, rtol=1e-6, atol=1e-7)
    assert (parts.usual.momentum, parts.cumulative.momentum) == (0.3, None)
    assert parts.cumulative.num_batches_tracked == 3


def test_a_step_in_equal_parts_remembers_what_a_whole_step_does() -> None:
    whole, parts = network("resnet20"), network("resnet20")
    assert has_batchnorm(whole)
    assert not has_batchnorm(network("conv"))
    two = batch_of(2)
    six = two._replace(
        images=two.images.repeat(3, 1, 1, 1),
        labels=two.labels.repeat(3),
        teacher=None,
        mixed=None,
    )
    _, gradients = stepped(whole, six, None)
    _, accumulated = stepped(parts, six, 2)
    assert largest_difference(gradients, accumulated) < 1e-5
    for one, other in zip(norms(whole), norms(parts), strict=True):
        torch.testing.assert_close(one.running_mean, other.running_mean, rtol=1e-5, atol=1e-6)
        assert (one.momentum, other.momentum) == (0.1, 0.1)
        assert (int(one.num_batches_tracked), int(other.num_batches_tracked)) == (1, 3)


def norms(model: nn.Module) -> list[nn.BatchNorm2d]:
    return [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]


def test_a_single_image_that_batchnorm_refuses_is_explained() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 10), nn.BatchNorm1d(10))
    with pytest.raises(
        InputError,
        match=r"from 1 of 3 images at once \(Expected more than 1 .*: choose another --micro-batch",
    ):
        stepped(model, batch_of(3), 1)


def test_a_run_in_parts_says_so_and_records_it(config: TrainConfig) -> None:
    listener = Listener()
    result = train(config, progress=listener)
    assert sum("BatchNorm" in message for message in listener.messages) == 1
    assert any("16 of a batch's 50 images at once" in message for message in listener.messages)
    inputs = json.loads((Path(config.out) / "inputs.json").read_text())
    assert inputs["micro_batch"] == result.micro_batch == 16
    assert result.summary()["micro_batch"] == 16
    assert "peak_memory" not in result.metrics
    peaks = [line["peak_memory"] for line in lines(config.out)]
    assert result.peak_memory == max(peaks) > 2**20
    assert (result.peak_reserved, result.context_memory) == (None, None)


def test_parts_change_what_a_network_without_batchnorm_learns_by_rounding_alone(
    config: TrainConfig,
) -> None:
    listener = Listener()
    whole = train(replace(config, student="mlp?hidden=32", micro_batch=None))
    parts = train(
        replace(config, student="mlp?hidden=32", out=config.out + "16"), progress=listener
    )
    assert parts.metrics == pytest.approx(whole.metrics, rel=1e-4)
    assert parts.metrics != whole.metrics
    assert not any("BatchNorm" in message for message in listener.messages)


@pytest.mark.parametrize("steps", [1, 3, 6])
def test_an_interrupted_run_in_parts_ends_in_the_same_bits(config: TrainConfig, steps: int) -> None:
    train(config)
    part = replace(config, out=config.out + "again")
    with pytest.raises(KeyboardInterrupt):
        train(part, progress=Listener(steps))
    train(replace(part, recompute=True))
    whole, again = (Path(run) / "model.safetensors" for run in (config.out, part.out))
    assert whole.read_bytes() == again.read_bytes()
    assert [line["loss"] for line in lines(part.out)] == [
        line["loss"] for line in lines(config.out)
    ]


def test_a_run_goes_on_in_the_parts_that_it_began_with(config: TrainConfig) -> None:
    """As after a search: the size stands in inputs.json alone."""
    train(config)
    found = replace(config, micro_batch=None, out=config.out + "found")
    with pytest.raises(KeyboardInterrupt):
        train(found, progress=Listener(1))
    inputs = Path(found.out) / "inputs.json"
    begun = json.loads(inputs.read_text())
    assert begun["micro_batch"] is None
    (Path(found.out) / "checkpoints/last.safetensors").unlink(missing_ok=True)
    inputs.write_text(json.dumps({**begun, "micro_batch": 16}))
    assert train(found).micro_batch == 16
    whole, again = (Path(run) / "model.safetensors" for run in (config.out, found.out))
    assert whole.read_bytes() == again.read_bytes()
    with pytest.raises(MismatchError, match="micro_batch = None, asked for is 8"):
        train(replace(found, micro_batch=8))
