"""Write a run's metrics for TensorBoard, beside the file that they come from."""

from __future__ import annotations

from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from logitstore.storage.durable import os_errors_as_ours
from logitstore.trainer.run.result import Line

_FILE = "TensorBoard's events"


class Events:
    """A file of a run's history, written anew at each start, so that no epoch comes twice."""

    def __init__(self, folder: Path, history: list[Line]) -> None:
        self._folder = folder
        with os_errors_as_ours(str(folder), _FILE):
            for stale in folder.glob("events.out.tfevents.*"):
                stale.unlink()
            self._writer = SummaryWriter(str(folder))
        for line in history:
            self.add(line)

    def add(self, line: Line) -> None:
        """Write one epoch's numbers."""
        with os_errors_as_ours(str(self._folder), _FILE):
            for name, value in line.items():
                if name != "epoch":
                    self._writer.add_scalar(name, value, line["epoch"])
            self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        self._writer.close()
