"""Listen to runs, interrupt them at a step, read what they leave, and ask what they learnt."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from logitstore.progress import Silent
from logitstore.trainer.evaluation.weights import find_trained
from logitstore.trainer.measure.network import Labels, Logits, labels_of


class Listener(Silent):
    """Keeps a run's tasks and messages; Ctrl-C at the n-th step of training, or of any task."""

    def __init__(self, interrupt_at: int = -1, *, any_task: bool = False) -> None:
        self.tasks, self.messages = list[str](), list[str]()
        self._steps, self._any_task = interrupt_at, any_task

    def start(self, task: str, total: int, unit: str) -> None:
        self.tasks.append(task)

    def advance(self, count: int) -> None:
        training = bool(self.tasks) and self.tasks[-1].startswith("training")
        self._steps -= training or self._any_task
        if self._steps == 0:
            raise KeyboardInterrupt

    def message(self, text: str) -> None:
        self.messages.append(text)


def lines(run: str | Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl, one for each epoch."""
    return [json.loads(line) for line in (Path(run) / "metrics.jsonl").read_text().splitlines()]


def history(run: str | Path) -> list[dict[str, Any]]:
    """The same without what each run of the same command measures anew: times and memory."""
    measured = ("seconds", "images_per_second", "peak_memory")
    return [{name: line[name] for name in line if name not in measured} for line in lines(run)]


def weights(run: str | Path) -> bytes:
    """The file of a run's last weights."""
    return (Path(run) / "model.safetensors").read_bytes()


def run_logits(
    run_or_checkpoint: str | Path, data: str, *, student: str | None = None
) -> tuple[Logits, Labels]:
    """Return logits float32 (N, C) and labels int32 (N,), -1 where unknown, of a run of our own."""
    trained = find_trained(run_or_checkpoint, student, trust_run=True)
    source = trained.source(data)
    network = trained.network(source, "cpu", batch_size=256)
    return network.logits(source), labels_of(source)
