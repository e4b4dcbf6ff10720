"""The search for the parts that fit into the memory, and what is said when none do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from logitstore.errors import InputError
from logitstore.precompute.networks.factory import build_model
from logitstore.text import parse_size
from logitstore.trainer import TrainConfig, train
from logitstore.trainer.data.batches import Batch
from logitstore.trainer.data.bind import open_source
from logitstore.trainer.data.order import BatchOrder
from logitstore.trainer.methods.table import make_method
from logitstore.trainer.run.checkpoint import Position, pack
from logitstore.trainer.run.device import Budget
from logitstore.trainer.run.learner import Learner, make_learner
from logitstore.trainer.run.memory import (
    find_micro_batch,
    halvings,
    largest_fitting,
    micro_batch,
    oom_as_input_error,
)
from logitstore.trainer.run.step import TrainingStep
from tests.support.runs import Listener
from tests.support.students import (
    CPU,
    STUDENTS,
    a_learner,
    batch_of,
    in_parts,
)


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    return in_parts(tmp_path)


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
        return TrainingStep(method=method, micro_batch=size).take(learner, part, lr)

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
        listener, budget = Listener(), NoCap(CPU, "2GiB", 0)
        source = open_source(limited, None)[0]
        order = BatchOrder(samples=np.arange(190), seed=0, batch_size=50, view_count=1, epochs=1)
        learner = make_learner(limited, model, CPU)
        found = micro_batch(
            limited,
            None,
            learner,
            source,
            order,
            TrainingStep(method=limited.method_object),
            budget,
            listener,
        )
        return found, listener.messages

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
