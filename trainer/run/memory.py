"""Find the size of a batch's parts: as the settings say, or the largest that a memory limit holds.

It is found by trying real steps before training begins, and recorded in the run, so that a resumed
run splits its batches as before.  A trial leaves no trace: weights, buffers, gradients, optimiser
and random states are put back bit for bit.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from copy import deepcopy
from dataclasses import replace

import torch
from torch.amp.grad_scaler import GradScaler

from logitstore.errors import InputError
from logitstore.precompute.processes.ranks import ALONE
from logitstore.progress import Progress
from logitstore.trainer.config.settings import TrainConfig
from logitstore.trainer.data.batches import Batch, batches
from logitstore.trainer.data.order import BatchOrder
from logitstore.trainer.data.source import Source
from logitstore.trainer.run.device import Budget, own_randomness
from logitstore.trainer.run.learner import Learner
from logitstore.trainer.run.parts import first_samples, has_batchnorm
from logitstore.trainer.run.result import Inputs
from logitstore.trainer.run.step import TrainingStep

Trial = Callable[[Learner, Batch, int], object]


def micro_batch(
    config: TrainConfig,
    recorded: Inputs | None,
    learner: Learner,
    source: Source,
    order: BatchOrder,
    step: TrainingStep,
    budget: Budget | None,
    progress: Progress,
) -> int | None:
    """Return how many samples may go through the network at once, None: a whole batch.

    Within a budget a size from the settings or the run is tried too: InputError before any work.
    Each rank tries alone, and the smallest size that any of them finds is everyone's.
    """
    size = config.micro_batch if recorded is None else recorded.micro_batch
    if budget is not None:
        with closing(batches(source, replace(order, epochs=1), workers=0)) as stream:
            batch = next(stream)
        known = size if recorded is None else size or config.batch_size
        sizes = halvings(len(batch.labels)) if known is None else [known]
        fitting = find_micro_batch(learner, batch, sizes, _trial(step), budget.tighten)
        if fitting is None:
            raise _too_large(config, sizes[-1])
        size = step.ranks.smallest(fitting) if known is None else size
    if size is not None:
        _announce(progress, size, config.batch_size, has_batchnorm(learner.model))
    return size


def _trial(step: TrainingStep) -> Trial:
    """Return a step of this process alone, which nothing remembers."""
    context = step.context._replace(remember_predictions=False)
    alone = replace(step, context=context, ranks=ALONE)
    return lambda learner, batch, size: replace(alone, micro_batch=size).take(learner, batch, 0.0)


def _announce(progress: Progress, size: int, batch_size: int, batchnorm: bool) -> None:
    progress.message(f"micro-batches: {size} of a batch's {batch_size} images at once")
    if batchnorm and size < batch_size:
        progress.message(
            f"warning: BatchNorm normalises {size} images at a time by their own statistics: the "
            f"student differs from one that saw {batch_size} at once"
        )


def halvings(count: int) -> list[int]:
    """Return the sizes to try, largest first: ceil(count / k) for k = 1, 2, 4, …, down to 1."""
    sizes = [count]
    while sizes[-1] > 1:
        sizes.append(-(-count // 2 ** len(sizes)))
    return sizes


def largest_fitting(sizes: Iterable[int], attempt: Callable[[int], bool]) -> int | None:
    """Return the first size at which an attempt succeeds, or None."""
    return next((size for size in sizes if attempt(size)), None)


def find_micro_batch(
    learner: Learner,
    batch: Batch,
    sizes: Iterable[int],
    step: Trial,
    tighten: Callable[[], None],
) -> int | None:
    """Return the first size at which ``step(learner, batch, size)`` has enough memory, or None.

    Each is tried in two steps of up to two parts: the first step makes the optimiser's state and
    loads kernels into the CUDA context, for which ``tighten`` may make room before each step; the
    second part meets the first one's gradients.  Afterwards the learner is what it was.
    """

    def attempt(size: int) -> bool:
        _release(learner.device)
        try:
            with _rehearsal(learner) as trial:
                for _ in range(2):
                    tighten()
                    step(trial, first_samples(batch, 2 * size), size)
            return True
        except torch.OutOfMemoryError:
            return False

    fitting = largest_fitting(sizes, attempt)
    _release(learner.device)
    return fitting


@contextmanager
def _rehearsal(learner: Learner) -> Iterator[Learner]:
    """Lend the learner to try steps with; afterwards it and the random states are as before.

    The copies are on the host: they must not take the memory that is measured.
    """
    model, optimizer, scaler, device = learner
    weights = [(tensor, tensor.detach().cpu().clone()) for tensor in model.parameters()]
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    buffers = [
        (owner, name, tensor, tensor.detach().cpu().clone())
        for owner in model.modules()
        for name, tensor in owner.named_buffers(recurse=False)
    ]
    state = deepcopy(optimizer.state_dict())
    # With a scale of 1 the first step is not skipped, as fp16's first ones are: a skipped step
    # would not make the optimiser's state.
    trial = GradScaler(device.type, init_scale=1.0, enabled=scaler.is_enabled())
    try:
        with own_randomness(0, device):
            yield learner._replace(scaler=trial)
    finally:
        optimizer.load_state_dict(state)
        with torch.no_grad():
            for owner, name, tensor, _ in buffers:
                setattr(owner, name, tensor)
            for tensor, copy in (*weights, *(entry[2:] for entry in buffers)):
                tensor.copy_(copy)
        for parameter, gradient in gradients:
            parameter.grad = gradient


def _release(device: torch.device) -> None:
    """Free what an attempt leaves: graphs in reference cycles, the allocator's cache, its peak."""
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


@contextmanager
def oom_as_input_error(config: TrainConfig, size: int | None) -> Iterator[None]:
    """Raise InputError with the ways out where parts of ``size`` run out of memory."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        reason = ". ".join(str(error).split(". ")[:2])
        raise _too_large(config, size or config.batch_size, reason) from error


def _too_large(config: TrainConfig, size: int, reason: str = "") -> InputError:
    """Return what to do when ``size`` images at once take more memory than there is."""
    limit = config.memory_limit
    ways = [] if config.recompute else ["add --recompute"]
    if size > 1:
        ways.append(f"use --micro-batch {size // 2} (and another --out, if this run has begun)")
    if limit is not None:
        ways.append("raise --memory-limit")
    ways.append("use a smaller --student or --size")
    return InputError(
        f"{size} image{'s' * (size > 1)} at once {'is' if size == 1 else 'are'} too much for "
        f"{'the memory' if limit is None else f'--memory-limit {limit}'}"
        f"{f' ({reason})' if reason else ''}: "
        f"{', or '.join(ways)}"
    )
