"""Micro-batches, the search for their size, activation checkpointing, and the memory's figures."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from logitstore.errors import InputError, MismatchError
from logitstore.format.encodings.dense import Float16
from logitstore.format.encodings.rows import Rows
from logitstore.precompute.networks.factory import build_model
from logitstore.text import parse_size
from logitstore.trainer import TrainConfig, train
from logitstore.trainer.data.batches import Batch
from logitstore.trainer.data.bind import open_source
from logitstore.trainer.data.order import BatchOrder
from logitstore.trainer.data.source import Request
from logitstore.trainer.methods.base import Mixed
from logitstore.trainer.methods.table import make_method
from logitstore.trainer.run.checkpoint import Learner, Position, pack
from logitstore.trainer.run.device import Budget, budgeted_device, memory_in_use, own_randomness
from logitstore.trainer.run.memory import (
    find_micro_batch,
    halvings,
    largest_fitting,
    micro_batch,
    oom_as_input_error,
)
from logitstore.trainer.run.parts import batchnorm_momentum, has_batchnorm, split_batch
from logitstore.trainer.run.recompute import recomputed
from logitstore.trainer.run.step import NO_CONTEXT, make_learner, take_step

CPU = torch.device("cpu")
CLASSES = 10
STUDENTS = """
import torch
from torch import nn

class Limited(nn.Sequential):
    \"\"\"BatchNorm and dropout; out of memory with more than ``most`` images, or one in eval.\"\"\"

    def __init__(self, most):
        super().__init__(
            nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3),
            nn.Linear(16, 10),
        )
        self.most = most

    def forward(self, images):
        if len(images) > max(self.most, not self.training):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0")
        return super().forward(images)

def student():
    return Limited(10**6)

def small():
    return Limited(20)

def none():
    return Limited(0)

class OnePiece(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(64, 10))

    def forward(self, images):
        return images.flatten(1) @ self.weight

def whole():
    return OnePiece()
"""


class Plain(nn.Module):
    """A convolutional network without BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.ReLU(inplace=True), nn.Conv2d(8, 8, 3), nn.GroupNorm(2, 8)
        )
        self.linear = nn.Linear(8, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.linear(self.features(images).mean((2, 3)))
        return logits


class Norms(nn.Module):
    """BatchNorm of every kind of momentum, over channels."""

    def __init__(self) -> None:
        super().__init__()
        self.usual = nn.BatchNorm2d(3, momentum=0.3)
        self.cumulative = nn.BatchNorm2d(3, momentum=None)

    def forward(self, images: Tensor) -> Tensor:
        mixed: Tensor = self.cumulative(self.usual(images))
        return mixed


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    (tmp_path / "net.py").write_text(STUDENTS)
    return TrainConfig(
        data="digits?train=true&samples=0:190",
        student=f"{tmp_path}/net.py:student",
        val="digits?train=false&samples=0:100",
        out=str(tmp_path / "run"),
        batch_size=50,
        epochs=2,
        device="cpu",
        micro_batch=16,
        checkpoint_seconds=1e-9,
    )


def batch_of(count: int) -> Batch:
    """A batch with something in every field."""
    drawn = np.random.default_rng(7)
    logits = drawn.standard_normal((count, CLASSES)).astype(np.float32) * 3
    kind = Float16(classes=CLASSES)
    return Batch(
        Request(0, 0, 0, np.arange(count)),
        torch.from_numpy(drawn.integers(0, 256, (count, 3, 8, 8), np.uint8)),
        torch.from_numpy(drawn.integers(0, CLASSES, count)),
        Rows(kind, kind.encode(logits, np.zeros(count, np.int32))),
        Mixed(
            torch.from_numpy(drawn.integers(0, CLASSES, count)),
            torch.from_numpy(drawn.random(count, np.float32)),
        ),
    )


def a_learner(model: nn.Module, **settings: Any) -> Learner:
    config = TrainConfig(data="digits", student="mlp", out="unused", **settings).resolved()
    return make_learner(config, model, CPU)


def stepped(
    model: nn.Module, batch: Batch, micro_batch: int | None, method: str = "ce"
) -> tuple[dict[str, float], dict[str, Tensor]]:
    """The sums of one step and the gradients that it used."""
    chosen = make_method(method, {})
    sums = take_step(
        a_learner(model),
        chosen,
        batch,
        lr=0.1,
        normalize=None,
        precision="fp32",
        micro_batch=micro_batch,
    )
    gradients = {
        name: parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }
    return {name: value.item() for name, value in sums.items()}, gradients


def largest_difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Relative to the largest entry of each gradient."""
    assert one.keys() == other.keys()
    return max(
        ((one[name] - other[name]).abs().max() / one[name].abs().max()).item() for name in one
    )


def network(name: str) -> nn.Module:
    with own_randomness(3, CPU):
        return Plain() if name == "conv" else build_model(name, classes=CLASSES, shape=(3, 8, 8))


def lines(run: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (Path(run) / "metrics.jsonl").read_text().splitlines()]


class Told:
    """Keeps the messages; Ctrl-C at the n-th step."""

    def __init__(self, steps: int = -1) -> None:
        self.messages: list[str] = []
        self.left, self.training = steps, False

    def start(self, task: str, total: int, unit: str) -> None:
        self.training = task.startswith("training")

    def advance(self, count: int) -> None:
        self.left -= self.training
        if self.left == 0:
            raise KeyboardInterrupt

    def message(self, text: str) -> None:
        self.messages.append(text)


# --- Parts of a batch


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


# --- BatchNorm


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


# --- The size that fits


def test_sizes_are_halved_down_to_one_and_the_largest_that_can_be_done_is_taken() -> None:
    assert halvings(100) == [100, 50, 25, 13, 7, 4, 2, 1]
    assert halvings(1) == [1]
    for most in (100, 99, 26, 25, 1):
        attempts = Attempts(most)
        found = largest_fitting(halvings(100), attempts)
        assert found == max(size for size in halvings(100) if size <= most)
        assert attempts.made == [size for size in halvings(100) if size >= found]
    assert largest_fitting(halvings(100), Attempts(0)) is None


class Attempts:
    def __init__(self, most: int) -> None:
        self.most, self.made = most, list[int]()

    def __call__(self, size: int) -> bool:
        self.made.append(size)
        return size <= self.most


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_the_search_finds_what_fits_and_leaves_the_learner_untouched(
    optimizer: str, tmp_path: Path
) -> None:
    (tmp_path / "net.py").write_text(STUDENTS)

    def fresh() -> Learner:
        torch.manual_seed(0)
        model = build_model(f"{tmp_path}/net.py:small", classes=10, shape=(1, 8, 8))
        return a_learner(model, optimizer=optimizer)

    method, batch = make_method("ce", {}), batch_of(100)
    batch = batch._replace(images=batch.images[:, :1])
    tried, room = [], []

    def step(learner: Learner, part: Batch, size: int, lr: float = 0.1) -> dict[str, Tensor]:
        tried.append((size, len(part.labels), len(learner.optimizer.state)))
        return take_step(
            learner, method, part, lr=lr, normalize=None, precision="fp32", micro_batch=size
        )

    learner = fresh()
    before, modes = pack(learner, Position(0, 0), None), learner.optimizer.state_dict()
    found = find_micro_batch(learner, batch, halvings(100), step, lambda: room.append(1))
    assert found == 13
    weights = len(list(learner.model.parameters()))
    # Each failed at once; 13 was tried twice, in two parts, the second time with optimiser state.
    assert tried == [(100, 100, 0), (50, 100, 0), (25, 50, 0), (13, 26, 0), (13, 26, weights)]
    assert len(room) == len(tried)
    assert pack(learner, Position(0, 0), None) == before
    assert learner.optimizer.state_dict() == modes
    assert all(parameter.grad is None for parameter in learner.model.parameters())
    after = [step(learner, batch, 13)["loss"] for _ in range(3)]
    searched = pack(learner, Position(0, 0), None)
    undisturbed = fresh()
    assert [step(undisturbed, batch, 13)["loss"] for _ in range(3)] == after
    assert pack(undisturbed, Position(0, 0), None) == searched


class NoCap(Budget):
    """A budget where there is no allocator to cap."""

    def tighten(self) -> None: ...


def test_a_limit_makes_a_run_look_for_its_parts(config: TrainConfig) -> None:
    def searched(factory: str, **change: Any) -> tuple[int | None, list[str]]:
        student = config.student.replace("student", factory)
        limited = replace(config, student=student, device=None, memory_limit="2GiB", **change)
        model = build_model(student, classes=10, shape=(1, 8, 8))
        told, budget = Told(), NoCap(CPU, "2GiB", 0)
        source = open_source(limited, None)[0]
        order = BatchOrder(samples=np.arange(190), seed=0, batch_size=50, view_count=1, epochs=1)
        learner = make_learner(limited, model, CPU)
        found = micro_batch(limited, None, learner, source, order, None, NO_CONTEXT, budget, told)
        return found, told.messages

    assert searched("student", micro_batch=None)[0] == 50
    found, messages = searched("small", micro_batch=None)
    assert found == 13
    assert "13 of a batch's 50 images at once" in messages[0]
    assert "BatchNorm" in messages[1]
    assert searched("small", micro_batch=20)[0] == 20
    with pytest.raises(InputError, match=r"^21 images at once .* use --micro-batch 10 "):
        searched("small", micro_batch=21)
    for size in (None, 1):
        with pytest.raises(
            InputError,
            match=r"^1 image at once is too much for --memory-limit 2GiB: add --recompute, or "
            r"raise --memory-limit, or use a smaller --student or --size$",
        ):
            searched("none", micro_batch=size)


def test_out_of_memory_in_training_names_the_way_out(config: TrainConfig) -> None:
    small = replace(config, student=config.student.replace("student", "small"), micro_batch=None)
    with pytest.raises(
        InputError,
        match=r"50 images at once are too much for the memory \(CUDA out of memory. Tried to "
        r"allocate 2.00 GiB\): add --recompute, or use --micro-batch 25 ",
    ):
        train(small)
    with pytest.raises(InputError, match="use --micro-batch 12 "):
        train(replace(small, micro_batch=25, out=config.out + "25", recompute=True))
    train(replace(small, micro_batch=12, out=config.out + "12"))


def test_a_single_image_that_is_too_much_is_refused_with_the_ways_out(config: TrainConfig) -> None:
    none = replace(config, student=config.student.replace("student", "none"), micro_batch=1)
    with pytest.raises(
        InputError,
        match=r"1 image at once is too much for the memory .*: add --recompute, or use a smaller "
        r"--student or --size$",
    ):
        train(none)
    limited = replace(none, memory_limit="2GiB", device="cuda")
    with (
        pytest.raises(InputError, match=r"--memory-limit 2GiB .*, or raise --memory-limit, or use"),
        oom_as_input_error(limited, 1),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory.")


# --- Runs


def test_a_run_in_parts_says_so_and_records_it(config: TrainConfig) -> None:
    told = Told()
    result = train(config, progress=told)
    assert sum("BatchNorm" in message for message in told.messages) == 1
    assert any("16 of a batch's 50 images at once" in message for message in told.messages)
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
    told = Told()
    whole = train(replace(config, student="mlp?hidden=32", micro_batch=None))
    parts = train(replace(config, student="mlp?hidden=32", out=config.out + "16"), progress=told)
    assert parts.metrics == pytest.approx(whole.metrics, rel=1e-4)
    assert parts.metrics != whole.metrics
    assert not any("BatchNorm" in message for message in told.messages)


@pytest.mark.parametrize("steps", [1, 3, 6])
def test_an_interrupted_run_in_parts_ends_in_the_same_bits(config: TrainConfig, steps: int) -> None:
    train(config)
    part = replace(config, out=config.out + "again")
    with pytest.raises(KeyboardInterrupt):
        train(part, progress=Told(steps))
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
        train(found, progress=Told(1))
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


# --- Activation checkpointing


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


# --- Limits


@pytest.mark.parametrize(
    ("text", "size"),
    [("2GiB", 2**31), ("1500MiB", 1500 * 2**20), ("0.5 GiB", 2**29), ("3000000000", 3 * 10**9)],
)
def test_memory_is_read_as_people_write_it(text: str, size: int) -> None:
    assert parse_size("memory_limit", text) == size


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"memory_limit": "2 potatoes"}, r"'2 potatoes': expected a size above 0 such as 2GiB"),
        ({"memory_limit": "0GiB"}, "expected a size above 0"),
        ({"memory_limit": "-2GiB"}, "expected a size above 0"),
        ({"memory_limit": "2GB"}, "expected a size above 0 such as 2GiB"),
        (
            {"memory_limit": "2GiB", "device": "cpu"},
            "drop it, or train in parts with --micro-batch",
        ),
        ({"micro_batch": 0}, "micro_batch must be at least 1, not 0"),
        ({"micro_batch": 51}, "micro_batch 51 is more than batch_size 50"),
    ],
)
def test_what_cannot_be_is_refused_with_the_ways_out(
    config: TrainConfig, change: dict[str, Any], says: str
) -> None:
    with pytest.raises(InputError, match=says):
        replace(replace(config, device=None), **change)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to limit")
def test_a_limit_without_a_gpu_is_refused_before_any_work(config: TrainConfig) -> None:
    with pytest.raises(InputError, match="and this run is on the CPU: drop it, or train in parts"):
        train(replace(config, device=None, memory_limit="2GiB"))
    assert not Path(config.out).exists()


def test_the_allocator_gets_what_the_context_leaves() -> None:
    budget = Budget(CPU, "2GiB", 3 * 2**30)
    # 80 GiB, of which others hold 3, this process's allocator 1 and its context half a GiB.
    share = budget.fraction(80 * 2**30 - 4 * 2**30 - 2**29, 80 * 2**30, 2**30)
    assert budget.context == 2**29
    assert share * 80 * 2**30 == 2**31 - 2**29
    assert Budget(CPU, "96GiB", 0).fraction(79 * 2**30, 80 * 2**30, 0) == 1.0
    with pytest.raises(InputError, match=r"--memory-limit 1MiB: .* 2,097,152 bytes .*: raise the"):
        Budget(CPU, "1MiB", 0).fraction(2**30 - 2**21, 2**30, 0)


def test_what_others_hold_is_asked_of_the_driver(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert memory_in_use() == {}
    for told, understood in [
        ("GPU-1f, 3\nGPU-2e, 20480\n", {"GPU-1f": 3 * 2**20, "GPU-2e": 20 * 2**30}),
        ("GPU-1f, [N/A]\n", {}),
        ("NVIDIA-SMI has failed\n", {}),
        ("", {}),
    ]:
        (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\nprintf '{told}'\n")
        (tmp_path / "nvidia-smi").chmod(0o755)
        assert memory_in_use() == understood
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\nexit 9\n")
    assert memory_in_use() == {}


needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@needs_cuda
def test_the_cap_holds_and_is_lifted_afterwards() -> None:
    device, budget = budgeted_device("cuda", "fp32", "2GiB")
    assert budget is not None
    before = torch.cuda.get_per_process_memory_fraction(device)
    with budget.kept():
        assert 0 < budget.context < 2**31
        with pytest.raises(torch.OutOfMemoryError):
            torch.empty(2**31 - budget.context + 2**21, dtype=torch.uint8, device=device)
        torch.empty(2**30, dtype=torch.uint8, device=device)
    torch.cuda.empty_cache()
    torch.empty(2**31, dtype=torch.uint8, device=device)
    assert torch.cuda.get_per_process_memory_fraction(device) == before


@needs_cuda
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_run_stays_inside_its_budget(config: TrainConfig, precision: Any) -> None:
    free = replace(
        config,
        device="cuda",
        student="resnet20",
        size=64,
        batch_size=200,
        precision=precision,
        micro_batch=None,
        normalize=None,
    )
    unlimited = train(free)
    assert unlimited.peak_reserved is not None
    budgeted = budgeted_device("cuda", "fp32", "64GiB")[1]
    assert budgeted is not None
    budgeted.tighten()
    limit = budgeted.context + unlimited.peak_reserved // 3
    limited = replace(free, memory_limit=str(limit), out=config.out + "limited")
    result = train(limited)
    assert result.micro_batch is not None
    assert result.micro_batch < 200
    assert result.peak_reserved is not None
    assert result.context_memory is not None
    assert result.peak_memory <= result.peak_reserved <= limit - result.context_memory
