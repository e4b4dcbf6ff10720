"""Ask trained runs for what ``evaluate`` measures."""

from __future__ import annotations

from pathlib import Path

from logitstore.trainer.evaluation.evaluate import load_network
from logitstore.trainer.evaluation.weights import find_trained
from logitstore.trainer.measure.gather import Labels, Logits, labels_of


def run_logits(
    run_or_checkpoint: str | Path, data: str, *, student: str | None = None
) -> tuple[Logits, Labels]:
    """Return logits float32 (N, C) and labels int32 (N,), -1 where unknown, on the CPU."""
    trained = find_trained(run_or_checkpoint, student)
    source = trained.source(data)
    network = load_network(trained, source, "cpu", batch_size=256)
    return network.logits(source), labels_of(source)
