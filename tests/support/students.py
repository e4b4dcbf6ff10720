"""Networks as source text and as modules, and single steps of them, for ``trainer.run``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from logitstore.format.encodings.dense import Float16
from logitstore.format.encodings.rows import Rows
from logitstore.precompute.networks.factory import build_model
from logitstore.trainer import TrainConfig
from logitstore.trainer.data.batches import Batch
from logitstore.trainer.data.source import Request
from logitstore.trainer.methods.base import Mixed
from logitstore.trainer.methods.table import make_method
from logitstore.trainer.run.device import own_randomness
from logitstore.trainer.run.learner import Learner, make_learner
from logitstore.trainer.run.step import TrainingStep

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


def in_parts(folder: Path) -> TrainConfig:
    """A run of two epochs in parts of 16; its student's file, ``net.py``, holds ``STUDENTS``."""
    (folder / "net.py").write_text(STUDENTS)
    return TrainConfig(
        data="digits?train=true&samples=0:190",
        student=f"{folder}/net.py:student",
        val="digits?train=false&samples=0:100",
        out=str(folder / "run"),
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
    """A network at the start of a run with these settings."""
    config = TrainConfig(data="digits", student="mlp", out="unused", **settings).resolved()
    return make_learner(config, model, CPU)


def stepped(
    model: nn.Module, batch: Batch, micro_batch: int | None, method: str = "ce"
) -> tuple[dict[str, float], dict[str, Tensor]]:
    """The sums of one step and the gradients that it used."""
    step = TrainingStep(method=make_method(method, {}), micro_batch=micro_batch)
    sums = step.take(a_learner(model), batch, 0.1)
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
    """Build ``conv``, without BatchNorm, or what ``build_model`` knows; always the same weights."""
    with own_randomness(3, CPU):
        return Plain() if name == "conv" else build_model(name, classes=CLASSES, shape=(3, 8, 8))
