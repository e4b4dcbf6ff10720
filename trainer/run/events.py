"""Write a run's metrics for TensorBoard, beside the file that they come from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from logitstore.errors import Unfinished
from logitstore.trainer.run.result import Line


class Events:
    """TensorBoard's file of a run's history, written anew at each start: no epoch comes twice."""

    def __init__(self, folder: Path, history: list[Line]) -> None:
        self._folder = folder
        with self._explained():
            for stale in folder.glob("events.out.tfevents.*"):
                stale.unlink()
            self._writer = SummaryWriter(str(folder))
        for line in history:
            self.add(line)

    def add(self, line: Line) -> None:
        """Write one epoch's numbers."""
        with self._explained():
            for name, value in line.items():
                if name != "epoch":
                    self._writer.add_scalar(name, value, line["epoch"])
            self._writer.flush()

    def close(self) -> None:
        self._writer.close()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise Unfinished(
                f"{self._folder}: TensorBoard's file cannot be written ({error}); free "
                "some space and run the same command again"
            ) from error
