"""Describe a run's records: the names of its files, the results of its specs, and its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from logitstore.format.cards import DatasetCard
from logitstore.format.documents import Document

CONFIG, INPUTS, METRICS, RESULT = "config.toml", "inputs.json", "metrics.jsonl", "result.json"
ROWS = "rows.json"
LAST, LOCK = "checkpoints/last.safetensors", ".lock"
MODEL, BEST = "model.safetensors", "best.safetensors"
Line = dict[str, Any]


def best_epoch(history: Sequence[Line]) -> int | None:
    """Return the first epoch, from 1, with the highest validation accuracy; None without any."""
    scores = [line["val_accuracy"] for line in history if "val_accuracy" in line]
    return 1 + scores.index(max(scores)) if scores else None


_Side = Annotated[int, Field(ge=1, le=65_536)]


class Inputs(Document):
    """The results of a run's specs; a resumed run must find the same."""

    format_version: int = 1
    data: DatasetCard
    val: DatasetCard | None
    test: DatasetCard | None = None
    root: str | None
    classes: Annotated[int, Field(ge=1, le=1_000_000)]
    class_names: tuple[str, ...] | None = None
    class_map: dict[str, str | int] | None = None
    init_sha256: str | None = None
    input_shape: tuple[Annotated[int, Field(ge=1, le=4)], _Side, _Side]
    view_spec: tuple[dict[str, Any], ...]
    size: int | None
    device: str
    micro_batch: int | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Result:
    """A finished run: ``metrics`` of the last epoch, epochs counted from 1, bytes and seconds.

    ``best_epoch`` is the first one with the highest validation accuracy, None without validation;
    ``best`` are its validation figures.  ``test`` and ``test_best`` are the figures (``measure``)
    of the last and the best epoch's weights on the test data, None without any; those ending in
    ``_fitted`` after one temperature fitted to the same weights' logits of the validation data.
    ``views_seen`` counts the epochs in which each of the teacher's views was shown; ``notes`` say
    what was accepted though it is not quite what the teacher saw.
    ``teacher_rows`` is "proven" if each row of the teacher was compared with what its root covers,
    "not proven" if a server was believed for some, or 0.3 began the run; None without a teacher.
    ``micro_batch`` is the most samples that went through the network at once, None: the batch.
    ``peak_memory`` is what tensors took on the GPU if one was used, else the process's size;
    ``peak_reserved`` is what the GPU's allocator held for them.  ``context_memory`` is the CUDA
    context's share of ``memory_limit``, outside the allocator; None without a limit.
    """

    run: Path
    epochs: int
    metrics: dict[str, float]
    best_epoch: int | None
    best: dict[str, float] | None
    test: dict[str, float] | None
    test_best: dict[str, float] | None
    views_seen: tuple[int, ...]
    notes: tuple[str, ...]
    micro_batch: int | None
    peak_memory: int
    peak_reserved: int | None
    context_memory: int | None
    seconds: float
    teacher_rows: str | None = None

    def summary(self) -> dict[str, Any]:
        """Return everything as one flat dict that JSON can hold."""
        document = asdict(self)
        flat = document.pop("metrics")
        for part in ("best", "test", "test_best"):
            figures = document.pop(part) or {}
            flat |= {f"{part}_{name}": value for name, value in figures.items()}
        return {**flat, **document, "run": str(self.run)}
