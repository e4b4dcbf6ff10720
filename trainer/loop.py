"""The training loop: epochs, checkpoints, and a run folder from which the same command goes on.

A resumed run is bit-identical to an undisturbed one on the same machine and package versions: all
that a step depends on is the checkpoint and the plan of batches.  The loop knows no method by name.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from logitstore.cache import Cache
from logitstore.errors import InputError
from logitstore.precompute.images import parse_normalize
from logitstore.precompute.models import build_model
from logitstore.progress import Progress, Silent
from logitstore.reading import prepare_reading
from logitstore.schema import Normalize
from trainer import metrics
from trainer.binding import open_source, open_validation
from trainer.checkpoint import Learner, Position, pack, pack_weights, restore
from trainer.config import TrainConfig
from trainer.data import (
    Batch,
    Indices,
    Plan,
    Source,
    batches,
    chosen_samples,
    unseen_views,
    views_seen,
)
from trainer.device import (
    Budget,
    budgeted_device,
    own_randomness,
    peak_memory,
    peak_reserved,
    reproducible,
)
from trainer.evaluate import first_shape, gather_logits, probe
from trainer.fitting import memory_explained, micro_batch
from trainer.recompute import recomputed
from trainer.run import LAST, MODEL, Events, Inputs, Line, Result, RunFolder
from trainer.schedules import learning_rate
from trainer.step import LossWatch, check_weights, epoch_figures, make_learner, take_step

MEASURE_BATCH = 256
_NOT_METRICS = ("epoch", "seconds", "images_per_second", "peak_memory")


def train(
    config: TrainConfig, *, token: str | None = None, progress: Progress | None = None
) -> Result:
    """Train a student, or go on where an interrupted run of the same configuration stopped.

    ``token`` is a server's bearer token.  Raises MismatchError or InputError before any work if
    something does not fit, NonFinite if the loss does not stay finite, Unfinished or
    PatienceExhausted if the same call should be made again.

    >>> train(TrainConfig(data="digits?train=true", student="mlp", out="run"))   # doctest: +SKIP
    """
    config = config.resolved()
    progress = progress or Silent()
    run = RunFolder(config.out)
    done = run.finished(config)
    if done is not None and config.expect_root is None and run.store() == config.store:
        progress.message(f"{run.path}: already finished, {done.epochs} epochs")
        return done
    device, budget = budgeted_device(config.device, config.precision, config.memory_limit)
    source, notes = open_source(config, token)
    val = None if config.val is None else open_validation(config.val, source)
    samples = chosen_samples(source.there(), config.limit, config.limit_seed)
    if not config.make_method().needs_teacher and (source.dataset.labels[samples] < 0).all():
        raise InputError(
            f"{source.dataset.name}: no label is known, and method {config.method!r} learns from "
            "labels alone: use --method kd with a store"
        )
    shape = first_shape(source)
    normalize = parse_normalize(config.normalize, shape[0])
    kept = nullcontext() if budget is None else budget.kept()
    enough = memory_explained(config, config.micro_batch)
    with own_randomness(config.seed, device), reproducible(device), kept, enough:
        model = build_model(config.student, classes=source.classes, shape=shape)
        learner = make_learner(config, model, device)
        for shown in (source, val):
            if shown is not None:
                probe(model, shown, normalize, device)
        for note in [*notes, *unseen_views(source, config.epochs)]:
            progress.message(note)
        with run.lock(), recomputed(model) if config.recompute else nullcontext():
            tried = None if done else budget
            micro = micro_batch(
                config, run.inputs(), learner, source, samples, normalize, tried, progress
            )
            run.begin(config, _inputs(source, val, shape, device, notes, micro))
            if done is not None:
                return done
            if source.snapshot is not None:
                cache = Cache.default(config.cache)
                reading = prepare_reading(source.snapshot, config.read, cache, progress)
                progress.message(reading.note)
            job = _Job(
                config, run, source, samples, val, normalize, progress, tuple(notes), micro, budget
            )
            with memory_explained(config, micro):
                return job.run_to_end(learner)


@dataclass(frozen=True)
class _Job:
    """A run's fixed parts."""

    config: TrainConfig
    run: RunFolder
    source: Source
    samples: Indices
    val: Source | None
    normalize: Normalize | None
    progress: Progress
    notes: tuple[str, ...]
    micro_batch: int | None
    budget: Budget | None

    def run_to_end(self, learner: Learner) -> Result:
        """Train from the last checkpoint, or from the start, until there is a result."""
        config, start, sums = self.config, Position(0, 0), None
        last = self.run.checkpoint()
        if last is not None:
            start, sums = restore(last, learner)
            self.progress.message(
                f"{last}: going on at epoch {start.epoch + 1}, step {start.step + 1}"
            )
        plan = Plan(
            samples=self.samples,
            seed=config.seed,
            batch_size=config.batch_size,
            view_count=self.source.view_count,
            epochs=config.epochs,
            first_epoch=start.epoch,
            first_step=start.step,
        )
        history = self.run.history(start.epoch)
        ahead = (config.epochs - start.epoch) * len(plan.samples) - start.step * config.batch_size
        self.progress.start(f"training {self.run.path}", ahead, "images")
        pin = learner.device.type == "cuda"
        stream = batches(self.source, plan, workers=config.workers, pin=pin)
        events = Events(self.run.path, history)
        try:
            for epoch in range(start.epoch, config.epochs):
                first = start.step if epoch == start.epoch else 0
                line = self._epoch(learner, plan, islice(stream, plan.steps - first), epoch, sums)
                sums = None
                history.append(line)
                self._save_epoch(learner, history)
                events.add(line)
                self.progress.message(_summary(line, config.epochs))
        finally:
            stream.close()
            events.close()
        result = _result(self, history, learner.device)
        self.run.put(MODEL, pack_weights(learner.model))
        self.run.put_result(result)
        return result

    def _epoch(
        self,
        learner: Learner,
        plan: Plan,
        stream: Iterable[Batch],
        epoch: int,
        sums: Tensor | None,
    ) -> Line:
        """Train (the rest of) one epoch and measure: its line of metrics."""
        config, method, watch = self.config, self.config.make_method(), LossWatch()
        begun = saved = time.monotonic()
        names: list[str] = []
        rows, lr = 0, 0.0
        for batch in stream:
            step = batch.request.step
            lr = _learning_rate(config, epoch, (step + 1) / plan.steps)
            values = take_step(
                learner,
                method,
                batch,
                lr=lr,
                normalize=self.normalize,
                precision=config.precision,
                micro_batch=self.micro_batch,
            )
            names, added = list(values), torch.stack(list(values.values()))
            sums = added if sums is None else sums + added
            watch.add(epoch, step, values["loss"])
            rows += len(batch.labels)
            self.progress.advance(len(batch.labels))
            due = time.monotonic() - saved >= config.checkpoint_seconds
            if due and step + 1 < plan.steps:
                watch.check()
                check_weights(learner.model, epoch, step)
                self.run.put(LAST, pack(learner, Position(epoch, step + 1), sums))
                saved = time.monotonic()
        watch.check()
        check_weights(learner.model, epoch, plan.steps - 1)
        assert sums is not None  # an epoch has at least one step left, or it would be finished
        line: Line = {"epoch": epoch + 1, "lr": lr}
        line |= epoch_figures(names, sums, len(plan.samples))
        seconds = time.monotonic() - begun
        line |= self._validate(learner)
        line |= {"seconds": seconds, "images_per_second": rows / seconds}
        return line | {"peak_memory": peak_memory(learner.device)}

    def _validate(self, learner: Learner) -> dict[str, float]:
        if self.val is None:
            return {}
        logits = gather_logits(
            learner.model,
            self.val,
            self.normalize,
            learner.device,
            batch_size=self.micro_batch or max(self.config.batch_size, MEASURE_BATCH),
            workers=self.config.workers,
        )
        labels = self.val.dataset.labels
        return {
            "val_accuracy": metrics.accuracy(logits, labels),
            "val_nll": metrics.nll(logits, labels),
            "val_ece": metrics.ece(logits, labels),
        }

    def _save_epoch(self, learner: Learner, history: list[Line]) -> None:
        """Metrics and snapshot first: only the checkpoint makes the epoch done."""
        done = len(history)
        self.run.put_history(history)
        if self.config.saves_epoch(done):
            weights = pack_weights(learner.model)
            self.run.put(f"snapshots/epoch-{done:04d}.safetensors", weights)
        self.run.put(LAST, pack(learner, Position(done, 0), None))


def _learning_rate(config: TrainConfig, epoch: int, fraction: float) -> float:
    return learning_rate(
        epoch,
        fraction,
        base=config.base_lr,
        epochs=config.epochs,
        schedule=config.schedule,
        milestones=config.milestones,
        gamma=config.gamma,
        warmup_epochs=config.warmup_epochs,
    )


def _inputs(
    source: Source,
    val: Source | None,
    shape: tuple[int, int, int],
    device: torch.device,
    notes: list[str],
    micro_batch: int | None,
) -> Inputs:
    return Inputs(
        data=source.dataset.samples().card(),
        val=None if val is None else val.dataset.samples().card(),
        root=source.root,
        classes=source.classes,
        class_names=source.dataset.class_names,
        class_map=None if source.class_map is None else dict(source.class_map),
        input_shape=shape,
        view_spec=source.views.spec,
        size=source.views.size,
        device=device.type,
        micro_batch=micro_batch,
        notes=tuple(notes),
    )


def _result(job: _Job, history: list[Line], device: torch.device) -> Result:
    scores = [line["val_accuracy"] for line in history if "val_accuracy" in line]
    return Result(
        run=job.run.path,
        epochs=len(history),
        metrics={name: value for name, value in history[-1].items() if name not in _NOT_METRICS},
        best_epoch=1 + scores.index(max(scores)) if scores else None,
        views_seen=views_seen(job.source, len(history)),
        notes=job.notes,
        micro_batch=job.micro_batch,
        peak_memory=max(line["peak_memory"] for line in history),
        peak_reserved=peak_reserved(device),
        context_memory=None if job.budget is None else job.budget.context,
        seconds=sum(line["seconds"] for line in history),
    )


def _summary(line: Line, epochs: int) -> str:
    parts = [f"epoch {line['epoch']}/{epochs}: loss {line['loss']:.4f}"]
    for name in ("train_accuracy", "train_kd_error", "val_accuracy", "val_nll", "val_ece"):
        if name in line:
            parts.append(f"{name.replace('_', ' ')} {line[name]:.4f}")
    return ", ".join(parts) + f" ({line['images_per_second']:,.0f} images/s)"
