"""Train the epochs of a run, from its last checkpoint to its result.

Each epoch takes its steps, measures the validation data and writes its files; a resumed run does
the same from where the last checkpoint stands.  Nothing is opened or refused here.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from itertools import islice

import torch
from torch import Tensor

from logitstore.precompute.networks.checkpoints import load_weights
from logitstore.precompute.networks.state_dicts import load_into
from logitstore.progress import Progress
from logitstore.trainer.config.settings import TrainConfig
from logitstore.trainer.data.batches import Batch, batches
from logitstore.trainer.data.order import BatchOrder, views_seen
from logitstore.trainer.data.run_data import RunData
from logitstore.trainer.measure.figures import test_figures, validation_figures
from logitstore.trainer.measure.network import Network
from logitstore.trainer.run.checkpoint import Position, pack, pack_weights, restore
from logitstore.trainer.run.device import (
    Budget,
    own_randomness,
    peak_memory,
    peak_reserved,
    seed_generators,
)
from logitstore.trainer.run.events import Events
from logitstore.trainer.run.finite import LossWatch, check_weights
from logitstore.trainer.run.folder import RunFolder
from logitstore.trainer.run.learner import Learner
from logitstore.trainer.run.predictions import encoded
from logitstore.trainer.run.result import BEST, LAST, MODEL, Line, Result, best_epoch
from logitstore.trainer.run.self_store import record_logits
from logitstore.trainer.run.step import TrainingStep, epoch_figures
from logitstore.trainer.schedules import learning_rate

_MEASURE_BATCH = 256
"""Fewest images per batch of an eval pass, where no micro-batch limits it."""

_NOT_METRICS = ("epoch", "seconds", "images_per_second", "peak_memory")


@dataclass(frozen=True, kw_only=True)
class Epochs:
    """All that the epochs of a run need, opened and checked."""

    config: TrainConfig
    run: RunFolder
    data: RunData
    step: TrainingStep
    progress: Progress
    budget: Budget | None

    def run_to_end(self, learner: Learner) -> Result:
        """Train from the last checkpoint, or from the start, until there is a result."""
        config, ranks, start, sums = self.config, self.step.ranks, Position(0, 0), None
        last = self.run.checkpoint()
        if last is not None:
            start, sums = restore(last, learner, self.step.context.past)
            self.progress.message(
                f"{last}: going on at epoch {start.epoch + 1}, step {start.step + 1}"
            )
        ranks.agree({"the checkpoint's epoch and step": start})
        order = replace(self.data.order, first_epoch=start.epoch, first_step=start.step)
        history = self.run.history(start.epoch)
        ahead = (config.epochs - start.epoch) * order.epoch_samples - start.step * config.batch_size
        self.progress.start(f"training {self.run.path}", ahead, "images")
        pin = learner.device.type == "cuda"
        stream = batches(self.data.source, order, workers=config.workers, pin=pin)
        writer = closing(Events(self.run.path, history)) if ranks.first else nullcontext()
        with closing(stream), writer as events:
            for epoch in range(start.epoch, config.epochs):
                first = start.step if epoch == start.epoch else 0
                line = self._epoch(learner, order, islice(stream, order.steps - first), epoch, sums)
                sums = None
                history.append(line)
                if events is not None:
                    self._save_epoch(learner, history)
                    events.add(line)
                self.progress.message(_summary(line, config.epochs))
        if ranks.first:
            self.run.put(MODEL, pack_weights(learner.model))
            self.run.put_result(self._result(learner, history))
        ranks.wait()
        result = self.run.finished(config)
        assert result is not None
        return result

    def _epoch(
        self,
        learner: Learner,
        order: BatchOrder,
        stream: Iterable[Batch],
        epoch: int,
        sums: Tensor | None,
    ) -> Line:
        """Train (the rest of) one epoch and measure; return its line of metrics."""
        config, ranks, watch = self.config, self.step.ranks, LossWatch()
        begun = saved = time.monotonic()
        names: list[str] = []
        rows, lr = 0, 0.0
        for batch in stream:
            step = batch.request.step
            samples = order.batch_samples(step)
            lr = _learning_rate(config, epoch, (step + 1) / order.steps)
            if ranks.count > 1:  # else the ranks' draws would be alike, or had to be saved
                seed_generators(ranks.step_seed(config.seed, epoch, step), learner.device)
            values = self.step.take(learner, batch, lr, samples)
            names, added = list(values), torch.stack(list(values.values()))
            sums = added if sums is None else sums + added
            watch.add(epoch, step, values["loss"])
            rows += samples
            self.progress.advance(samples)
            due = time.monotonic() - saved >= config.checkpoint_seconds
            if ranks.first and due and step + 1 < order.steps:
                watch.check()
                check_weights(learner.model, epoch, step)
                self._put_checkpoint(learner, Position(epoch, step + 1), sums)
                saved = time.monotonic()
        watch.check()
        check_weights(learner.model, epoch, order.steps - 1)
        assert sums is not None  # an epoch has at least one step left, or it would be finished
        line: Line = {"epoch": epoch + 1, "lr": lr}
        line |= epoch_figures(names, sums, order.epoch_samples)
        self._remember(learner, epoch)
        seconds = time.monotonic() - begun
        val = self.data.eval_data.val
        if val is not None and ranks.first:
            line |= validation_figures(self._network(learner), val)
        line |= {"seconds": seconds, "images_per_second": rows / seconds}
        return line | {"peak_memory": peak_memory(learner.device)}

    def _remember(self, learner: Learner, epoch: int) -> None:
        """Keep what an eval pass after the epoch predicts, if the method learns from that."""
        context, ranks = self.step.context, self.step.ranks
        if context.past is None or context.remember_predictions:
            return
        ranks.same(list(learner.model.buffers()))
        samples = context.past.samples
        part = self.data.source.evaluation(samples[ranks.part(len(samples))])
        codes = encoded(torch.from_numpy(self._network(learner).logits(part)))
        context.past.put(samples, ranks.gathered(codes, len(samples)), epoch)

    def _tested(
        self, learner: Learner, history: list[Line]
    ) -> tuple[dict[str, float] | None, dict[str, float] | None]:
        """Return the figures on the test data of the last weights, and of the best ones."""
        if self.data.eval_data.test is None:
            return None, None
        network = self._network(learner)
        last = test_figures(network, self.data.eval_data)
        if best_epoch(history) in (None, len(history)):
            return last, last
        best = self.run.path / BEST
        load_into(learner.model, load_weights(best)[0], str(best))
        return last, test_figures(network, self.data.eval_data)

    def _network(self, learner: Learner) -> Network:
        size = self.step.micro_batch or max(self.config.batch_size, _MEASURE_BATCH)
        normalize, workers = self.step.normalize, self.config.workers
        return Network(learner.model, normalize, learner.device, size, workers)

    def _save_epoch(self, learner: Learner, history: list[Line]) -> None:
        """Write an epoch's files, the checkpoint last: only that makes the epoch done.

        An epoch that was interrupted in between is done again, to the same bits, and then writes
        the same files; so the best weights, too, are those that the history will say.
        """
        done = len(history)
        self.run.put_history(history)
        weights = pack_weights(learner.model)
        if self.config.saves_epoch(done):
            self.run.put(f"snapshots/epoch-{done:04d}.safetensors", weights)
        if best_epoch(history) == done:
            self.run.put(BEST, weights)
        if self.config.record_logits:
            with own_randomness(0, learner.device):  # the rebuilt student draws, and is overwritten
                size = self.step.micro_batch
                record_logits(self.config, self.run, self.data.source.views, done, size)
        self._put_checkpoint(learner, Position(done, 0), None)

    def _put_checkpoint(self, learner: Learner, position: Position, sums: Tensor | None) -> None:
        self.run.put(LAST, pack(learner, position, sums, self.step.context.past))

    def _result(self, learner: Learner, history: list[Line]) -> Result:
        test, test_best = self._tested(learner, history)
        best = best_epoch(history)
        chosen = None if best is None else history[best - 1]
        return Result(
            run=self.run.path,
            epochs=len(history),
            metrics={
                name: value for name, value in history[-1].items() if name not in _NOT_METRICS
            },
            best_epoch=best,
            best=chosen and {name: chosen[name] for name in chosen if name.startswith("val_")},
            test=test,
            test_best=test_best,
            views_seen=views_seen(self.data.source, len(history)),
            notes=self.data.notes,
            micro_batch=self.step.micro_batch,
            peak_memory=max(line["peak_memory"] for line in history),
            peak_reserved=peak_reserved(learner.device),
            context_memory=None if self.budget is None else self.budget.context,
            seconds=sum(line["seconds"] for line in history),
            teacher_rows=self.run.teacher_rows(),
        )


def _learning_rate(config: TrainConfig, epoch: int, fraction: float) -> float:
    return learning_rate(
        epoch,
        fraction,
        base=config.base_lr,
        epochs=config.epochs,
        schedule=config.schedule,
        milestones=config.milestones,
        decay=config.lr_decay,
        warmup_epochs=config.warmup_epochs,
    )


def _summary(line: Line, epochs: int) -> str:
    parts = [f"epoch {line['epoch']}/{epochs}: loss {line['loss']:.4f}"]
    for name in ("train_accuracy", "train_kd_error", "val_accuracy", "val_nll", "val_ece"):
        if name in line:
            parts.append(f"{name.replace('_', ' ')} {line[name]:.4f}")
    return ", ".join(parts) + f" ({line['images_per_second']:,.0f} images/s)"
